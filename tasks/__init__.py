"""Flyte tasks: each loads its inputs, calls the library, writes what came out and returns it."""

import os

from tasks.runtime.stage import read_configurations

read_configurations()

# Flyte's local cache remembers files of folders that may be gone by the next run.
os.environ.setdefault("FLYTE_LOCAL_CACHE_ENABLED", "false")

# Flyte gives pods the address of its store and the keys under names of its own; fsspec looks for these.
for _flyte, _common in (
    ("FLYTE_AWS_ENDPOINT", "AWS_ENDPOINT_URL"),
    ("FLYTE_AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"),
    ("FLYTE_AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"),
):
    if _flyte in os.environ:
        os.environ.setdefault(_common, os.environ[_flyte])
