"""What a run would do and need, before anything expensive starts."""
