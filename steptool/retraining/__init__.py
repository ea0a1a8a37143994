"""Retraining: find new data, decide whether a challenger replaces the champion, and record the run."""
