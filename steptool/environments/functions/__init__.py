"""Python functions as tools."""

from steptool.environments.base import EpisodeEnd as EpisodeEnd
from steptool.environments.functions.toolbox import read_only as read_only
