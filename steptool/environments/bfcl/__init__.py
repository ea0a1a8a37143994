"""BFCL multi-turn: the benchmark's executable tools as an environment, its tasks and its criterion of success."""
