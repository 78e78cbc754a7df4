"""What a simulation puts around a model: places, parameters, hooks, the torch mode, one session."""
