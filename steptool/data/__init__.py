"""From the files of others to queries and recorded trajectories, and out again."""
