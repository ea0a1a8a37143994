"""A policy ready to play: model folder, chat codec and environment put together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Literal

from steptool.chat.codec import ChatCodec
from steptool.config import Config
from steptool.contracts.tables import read_records
from steptool.environments.base import Environment
from steptool.environments.catalog import environment_class, open_environment
from steptool.models.load import load_model, load_tokenizer
from steptool.policies.local import roll_out
from steptool.policies.search import search
from steptool.records import Query, Trajectory


@contextmanager
def player(
    folder: str | os.PathLike[str],
    queries: Sequence[Query],
    demonstrations: str | os.PathLike[str],
    config: Config,
    strategy: Literal["chain", "dfsdt"] = "chain",
) -> Iterator[Callable[..., list[Trajectory]]]:
    """`roll_out` with model, codec, environment and configuration filled in: play(queries, greedy=..., policy=...).

    With the strategy dfsdt it is `search`. `demonstrations` and the environment are those of `opened`.
    """
    play = roll_out if strategy == "chain" else partial(search, search=config.evaluation.search)
    with opened(queries, demonstrations, config) as environment:
        yield partial(
            play,
            load_model(folder),
            ChatCodec(load_tokenizer(folder), config.policy.chat_format),
            environment=environment,
            rollout=config.rollout,
            limits=config.tools,
            max_context=config.policy.max_context,
            seed=config.seed,
        )


@contextmanager
def opened(queries: Sequence[Query], demonstrations: str | os.PathLike[str], config: Config) -> Iterator[Environment]:
    """The environment that the queries name; it is closed in the end.

    `demonstrations` is a file of trajectories; it is read only by an environment that replays them. Raises ValueError
    unless the queries name one environment.
    """
    names = sorted({q.environment for q in queries})
    if len(names) != 1:
        raise ValueError(f"expected queries of one environment, got {names}; run one pipeline for each")
    needs_recordings = environment_class(names[0], config).needs_recordings
    recorded = read_records(demonstrations, Trajectory) if needs_recordings else []
    with closing(open_environment(names[0], config, recorded)) as environment:
        yield environment
