"""The workflows a user starts."""
