"""Episodes: a policy and an environment in turns, token in, token out."""
