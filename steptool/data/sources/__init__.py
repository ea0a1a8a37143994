"""Where tasks come from: one module for each source that a configuration may name."""
