"""Warm start, StepPPO and rejection fine-tuning."""
