"""Model folders: load and save them, log-probabilities, the value head."""
