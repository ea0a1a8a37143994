"""Chat templates and tool-call formats: between messages, text and tokens."""
