"""Optimisers with a temperature, as `torch.optim.Optimizer`."""
