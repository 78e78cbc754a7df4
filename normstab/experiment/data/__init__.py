"""Real images: the embedded sample and the readers of local data sets."""
