"""The fused kernels of linf, topK and range on a CPU, and which layers kernels and traced programs compute."""
