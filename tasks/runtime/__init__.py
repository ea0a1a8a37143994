"""Plumbing of the Flyte tasks: stages, profile, errors, versions, artifacts, checkpoints."""
