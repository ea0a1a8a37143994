"""Cached tasks one behind the other, and launch plans."""

import os
from datetime import datetime

from flytekit import CronSchedule, LaunchPlan, map_task, task, workflow

VERSION = os.environ.get("TOYS_CACHE_VERSION", "1")


@task(cache=True, cache_version=VERSION)
def first(n: int) -> int:
    return n + 1


@task(cache=True, cache_version="1", cache_ignore_input_vars=("note",))
def second(n: int, note: str) -> int:
    return n * 10


@task(cache=True, cache_version="1")
def squared(n: int) -> int:
    return n * n


@workflow
def chain(n: int, note: str) -> int:
    return second(n=first(n=n), note=note)


@workflow
def squares(numbers: list[int]) -> list[int]:
    return map_task(squared)(n=numbers)


@task
def said(n: int, word: str, kickoff: datetime) -> str:
    return f"{word} {n} {kickoff:%Y-%m-%d}"


@workflow
def greeted(n: int, word: str, kickoff: datetime) -> str:
    return said(n=n, word=word, kickoff=kickoff)


nightly = LaunchPlan.get_or_create(
    greeted,
    name="nightly",
    default_inputs={"n": 7},
    fixed_inputs={"word": "hello"},
    schedule=CronSchedule(schedule="15 2 * * *", kickoff_time_input_arg="kickoff"),
)
