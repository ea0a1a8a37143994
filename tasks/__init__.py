"""Flyte tasks: each loads its inputs, calls the library, writes what came out and returns it."""
