"""What additions lose, counted on the CPU."""
