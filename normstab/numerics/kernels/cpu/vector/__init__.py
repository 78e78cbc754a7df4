"""Vector operations on lines of 64 float32, as LLVM instructions."""
