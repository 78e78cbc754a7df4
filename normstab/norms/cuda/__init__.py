"""What runs the passes of a norm on a CUDA device, in Triton."""
