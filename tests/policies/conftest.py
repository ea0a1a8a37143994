"""Fixtures of episodes: environments, models that recite, policies."""

from play_fixtures import *  # noqa: F403
from strict_chat_server import serve  # noqa: F401
