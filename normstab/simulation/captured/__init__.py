"""A step of training recorded once and replayed: `run.capture`."""
