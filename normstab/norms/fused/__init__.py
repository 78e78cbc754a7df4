"""The fused kernels of the norm layers, for CPUs and CUDA: the bits and the ledger of `op_by_op`, in a few passes."""
