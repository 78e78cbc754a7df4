"""Numbers: tensor to tensor; knows torch, but neither nn nor YAML."""
