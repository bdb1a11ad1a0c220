"""Copies of one disordered system: overlaps, replica theory, ensembles."""
