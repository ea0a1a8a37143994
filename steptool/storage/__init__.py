"""Where files live: folders, urls, SQLite databases."""
