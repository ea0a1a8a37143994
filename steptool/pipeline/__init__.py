"""The steps of a run as functions: each takes models, records and a configuration, and returns what came of them.

The Flyte tasks call them between reading and writing files, and a notebook calls them directly (docs/notebook.md).
"""
