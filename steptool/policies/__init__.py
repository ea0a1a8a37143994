"""Policies: a local language model, an endpoint, recorded calls."""
