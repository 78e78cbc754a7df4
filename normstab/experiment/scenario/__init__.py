"""From the text of a scenario to its cells: the only reader of YAML; every error of a user ends here."""
