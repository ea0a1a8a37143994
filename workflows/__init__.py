"""Workflows: what a user starts. One file each."""
