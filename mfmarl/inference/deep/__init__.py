"""Active inference whose model of the world is learned by networks: an ensemble of them stands for its posterior."""
