"""Warm start and reinforcement: credit, algorithms, the training loop, checkpoints."""
