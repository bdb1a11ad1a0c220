"""Self-consistent equations: naive, TAP, Bethe, logit equilibria; stability and susceptibility."""
