"""Populations: what an environment says, how many copies of it run, and what agents feel of each other."""
