"""The readable meaning of every rounded operation, in plain torch: the oracle of all kernels."""
