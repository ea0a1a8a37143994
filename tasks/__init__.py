"""Flyte tasks: load, call one function of steptool, write, return."""
