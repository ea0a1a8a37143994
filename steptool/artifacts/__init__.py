"""What a run writes: the names of its files, its queries, lineage, history and costs."""
