"""Records in Parquet files: how a dataclass becomes a contract, and how its records are written, checked and read."""
