"""Files of every kind that holds records, read as a stream."""
