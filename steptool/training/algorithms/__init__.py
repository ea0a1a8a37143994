"""The algorithms: what each needs of a round, its loss, what it reports."""
