"""Recorded responses in place of live tools."""
