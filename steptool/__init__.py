"""StepTool: step-grained reward shaping and step-grained PPO for multi-step tool use (arXiv 2410.07745)."""

import os

# A library for private data and models reports to nobody unless its user asks for it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"
