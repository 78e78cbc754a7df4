"""Operations that torch computes in one kernel, taken apart into smaller ones that are simulated."""
