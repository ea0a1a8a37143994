"""What a run writes: the names of its files, metrics, lineage, and lines of progress."""
