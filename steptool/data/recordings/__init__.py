"""Recorded trajectories, in the forms in which others write them."""
