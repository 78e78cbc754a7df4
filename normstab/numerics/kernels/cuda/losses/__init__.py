"""What additions lose, counted on CUDA devices."""
