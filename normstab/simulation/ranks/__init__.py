"""A simulation in one of several processes: what they tell each other, and how gradients are summed over them."""
