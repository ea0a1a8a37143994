"""What a run writes: the names of its files, its queries, metrics, lineage, and lines for whoever waits."""
