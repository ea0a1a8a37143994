"""Workflows with one feature of Flyte each, on numbers."""
