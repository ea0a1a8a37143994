"""Measures of a policy and paired comparisons between policies."""
