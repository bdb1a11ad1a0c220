"""Evaluation: many runs, honest statistics, figures and a report."""
