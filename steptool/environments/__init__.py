"""Tools and environments."""
