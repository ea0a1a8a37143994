"""A task of several processes. It has a package of its own, since declaring one imports torch."""
