"""Python functions as tools."""

from steptool.environments.functions.toolbox import read_only as read_only
