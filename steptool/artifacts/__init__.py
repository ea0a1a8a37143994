"""What a run writes: contracts of Parquet files, their names in a folder, lineage, history and costs."""
