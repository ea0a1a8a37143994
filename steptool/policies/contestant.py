"""The policies that an evaluation compares, whatever they are, ready to play."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Protocol

from steptool.artifacts.queries import read_queries
from steptool.chat.endpoint import Endpoint
from steptool.config import Config, EvaluatedPolicy, EvaluationConfig
from steptool.contracts.tables import read_records
from steptool.policies.endpoint import Remote, play_remote
from steptool.policies.local import Progress
from steptool.policies.player import opened, player
from steptool.policies.scripted import play_back, recorded_calls, reference_calls
from steptool.records import Query, ToolCall, Trajectory


class Play(Protocol):
    """Plays the evaluation's queries once: greedily, or sampled for the sample of that number."""

    def __call__(self, greedy: bool = True, sample: int = 0, progress: Progress | None = None) -> Remote:
        """The episodes in the order of the queries, and what an endpoint counted for them."""
        ...


def questions(
    queries: str | os.PathLike[str], demonstrations: str | os.PathLike[str], settings: EvaluationConfig
) -> list[Query]:
    """The queries that an evaluation asks, of a file. Raises ValueError if there is none."""
    asked = read_queries(queries, None if settings.split == "all" else settings.split)
    if settings.recorded_only:
        recorded = {t.query_id for t in read_records(demonstrations, Trajectory)}
        asked = [q for q in asked if q.query_id in recorded]
    if not asked:
        raise ValueError(
            f"evaluation.recorded_only: no query of the split '{settings.split}' has a recorded answer; "
            "name recordings in data.recorded_answers"
        )
    return asked


@contextmanager
def contestant(
    policy: EvaluatedPolicy,
    folder: str | os.PathLike[str],
    queries: Sequence[Query],
    demonstrations: str | os.PathLike[str],
    config: Config,
) -> Iterator[Play]:
    """The policy with everything filled in. `folder`: its model, for the kind model.

    An endpoint is greedy at its own temperature and samples at that of the rollouts. Raises ValueError where a query
    has nothing to play back.
    """
    if policy.kind == "model":
        with _model(policy, folder, queries, demonstrations, config) as play:
            yield play
    elif policy.kind == "endpoint":
        with _endpoint(policy, queries, demonstrations, config) as play:
            yield play
    else:
        with _playback(policy, queries, demonstrations, config) as play:
            yield play


@contextmanager
def _model(
    policy: EvaluatedPolicy,
    folder: str | os.PathLike[str],
    queries: Sequence[Query],
    demonstrations: str | os.PathLike[str],
    config: Config,
) -> Iterator[Play]:
    with player(folder, queries, demonstrations, config, policy.strategy) as roll:

        def play(greedy: bool = True, sample: int = 0, progress: Progress | None = None) -> Remote:
            return Remote(roll(queries, greedy=greedy, policy=policy.name, sample=sample, progress=progress), {})

        yield play


@contextmanager
def _endpoint(
    policy: EvaluatedPolicy, queries: Sequence[Query], demonstrations: str | os.PathLike[str], config: Config
) -> Iterator[Play]:
    warmer = policy.endpoint.model_copy(update={"temperature": config.rollout.temperature})
    with (
        opened(queries, demonstrations, config) as environment,
        closing(Endpoint(policy.endpoint, policy.cache)) as greedily,
        closing(Endpoint(warmer, policy.cache)) as freely,
    ):

        def play(greedy: bool = True, sample: int = 0, progress: Progress | None = None) -> Remote:
            return play_remote(
                greedily if greedy else freely,
                queries,
                environment,
                rollout=config.rollout,
                limits=config.tools,
                policy=policy.name,
                sample=sample,
                progress=progress,
            )

        yield play


@contextmanager
def _playback(
    policy: EvaluatedPolicy, queries: Sequence[Query], demonstrations: str | os.PathLike[str], config: Config
) -> Iterator[Play]:
    recorded = {t.query_id: t for t in reversed(read_records(demonstrations, Trajectory))}
    recordings = [(query, _calls(query, recorded)) for query in queries]
    with opened(queries, demonstrations, config) as environment:

        def play(greedy: bool = True, sample: int = 0, progress: Progress | None = None) -> Remote:
            given = play_back(recordings, environment, rollout=config.rollout, limits=config.tools, policy=policy.name)
            return Remote(given, {})

        yield play


def _calls(query: Query, recorded: Mapping[str, Trajectory]) -> list[ToolCall]:
    if query.reference.get("turns") or query.reference.get("calls"):
        return reference_calls(query)
    if query.query_id in recorded:
        return recorded_calls(recorded[query.query_id])
    raise ValueError(
        f"query '{query.query_id}' has neither reference calls nor a recorded answer to play back: leave the kind "
        "playback out, or evaluate on queries that were recorded"
    )
