"""Recorded trajectories: one module for each form in which others write them."""
