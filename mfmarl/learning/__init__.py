"""Learning: the contract of an agent, its memory, the training loop, and run folders that survive."""
