"""The steps of a training run: taken, looked at, taken back, and what is said of them at the end."""
