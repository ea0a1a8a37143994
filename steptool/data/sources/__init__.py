"""Where tasks come from: the sources that a configuration may name."""
