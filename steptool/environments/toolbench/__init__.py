"""Tools behind the `/virtual` protocol of StableToolBench and ToolBench."""
