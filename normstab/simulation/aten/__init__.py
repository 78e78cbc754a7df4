"""What each operation of torch does in an Arithmetic."""
