"""Generative models of what an agent sees, and its beliefs over their hidden states."""
