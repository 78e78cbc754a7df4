"""torch.compile(model, backend="normstab"): graphs of aten operations that a simulation runs node by node."""
