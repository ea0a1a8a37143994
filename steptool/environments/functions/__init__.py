"""Python functions as tools."""

from steptool.environments.functions.signatures import read_only as read_only
