"""Readers of each known form of tasks and recordings."""
