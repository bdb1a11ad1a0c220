"""Statistical mechanics on torch tensors, in nats: what agents, environments and reports share."""
