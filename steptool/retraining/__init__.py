"""Retraining: what is new, whether the challenger may take the champion's place, and what became of a night."""
