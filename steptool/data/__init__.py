"""Data in: public formats to queries and recorded trajectories."""
