"""Markov chains that leave the Gibbs distribution unchanged, and what their samples are worth."""
