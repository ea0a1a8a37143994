"""Fixtures of episodes: environments, models that recite, policies."""

from play_fixtures import *  # noqa: F403
