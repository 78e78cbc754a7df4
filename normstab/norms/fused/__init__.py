"""The fused CPU kernels of the norm layers: the bits and the ledger of `op_by_op`, in a few passes over a cache."""
