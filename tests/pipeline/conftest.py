"""Fixtures of models that play."""

from play_fixtures import codec, random_model, tokenizer  # noqa: F401
