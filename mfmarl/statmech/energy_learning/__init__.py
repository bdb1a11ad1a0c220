"""Learning an energy from data: losses, contrastive divergence, score matching."""
