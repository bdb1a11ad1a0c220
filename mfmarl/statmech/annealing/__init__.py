"""Temperatures over time, and the search for ground states by cooling."""
