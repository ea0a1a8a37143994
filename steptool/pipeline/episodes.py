"""Episodes: of the model that learns, of the policies that are evaluated, and a page to read them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from steptool.artifacts.metrics import Ticker, format_rate, say
from steptool.config import Config, EvaluatedPolicy
from steptool.data.recordings.forms import policy_recordings
from steptool.evaluation.measures import PolicyEvaluation, evaluate_policy
from steptool.policies.catalog import open_environment_of, open_policy
from steptool.records import Query, StepReward, Trajectory
from steptool.records.tables import write_records
from steptool.report.viewer import write_viewer
from steptool.report.viewer_pages import EpisodeFiles
from steptool.rollout import runner
from steptool.rollout.policy import Policy

if TYPE_CHECKING:  # its imports take seconds
    from steptool.models.shared import LoadModel

Place = str | os.PathLike[str]


def roll_out(
    model: Place,
    queries: Sequence[Query],
    config: Config,
    *,
    base: Place = "",
    round_index: int = 0,
    recordings: Sequence[Trajectory] = (),
) -> list[Trajectory]:
    """Sample an episode of each query with the model of a folder or Hub id, as a round of training does.

    `base` is the model of an adapter, if `model` is an adapter folder. An environment that replays answers from the
    `recordings`. Raises ValueError unless the queries name one environment.
    """
    with open_learner(model, base, config, round_index) as policy:
        return play(policy, queries, config, round_index=round_index, recordings=recordings)


@contextmanager
def open_learner(
    model: Place, base: Place, config: Config, round_index: int, load: LoadModel | None = None
) -> Iterator[Policy]:
    """The policy of a round, ready to play; it is closed in the end.

    `base` is the model of an adapter, as in `roll_out`. `load` gives the model of a folder, as in `open_policy`.
    """
    learner = EvaluatedPolicy(name=f"round_{round_index:02d}", model=os.fspath(model), base=os.fspath(base))
    with open_policy(learner, config, load=load) as policy:
        yield policy


def play(
    policy: Policy,
    queries: Sequence[Query],
    config: Config,
    *,
    round_index: int = 0,
    recordings: Sequence[Trajectory] = (),
) -> list[Trajectory]:
    """Sample an episode of each query with an open policy; otherwise as `roll_out`."""
    ticker = Ticker("rollout", len(queries), "episodes")
    with open_environment_of(queries, config, recordings) as environment:
        played = runner.roll_out(
            policy, queries, environment, round_index=round_index, limits=config.tools, progress=ticker
        )
    return [episode.trajectory for episode in played]


def evaluate(
    policy: EvaluatedPolicy | Place,
    queries: Sequence[Query],
    config: Config,
    *,
    recordings: Sequence[Trajectory] = (),
) -> PolicyEvaluation:
    """Play the queries greedily once, and sampled as often as configured; what is played back has nothing to sample.

    The policy is one of a configuration, or the folder or Hub id of a model. An environment that replays answers from
    the `recordings`, and a policy that plays back plays them unless it names others.
    """
    if not isinstance(policy, EvaluatedPolicy):
        policy = EvaluatedPolicy(name=Path(policy).name, model=os.fspath(policy))
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as fetched:
        own = policy_recordings(policy, queries, config, Path(fetched))
    with (
        open_environment_of(queries, config, recordings) as environment,
        open_policy(policy, config, own or recordings) as opened,
    ):
        result = evaluate_policy(
            opened,
            queries,
            environment,
            sampled_repeats=0 if policy.kind == "playback" else config.evaluation.sampled_repeats,
            limits=config.tools,
            progress=lambda decoding: Ticker("evaluate", len(queries), f"{decoding} episodes of {policy.name}"),
        )
    _report(result, policy.name, len(queries))
    return result


def view(
    queries: Sequence[Query],
    trajectories: Sequence[Trajectory],
    target: Place,
    *,
    rewards: Sequence[StepReward] = (),
    title: str = "Trajectories",
) -> Path:
    """Write one HTML file in which the trajectories can be searched and read, with the scores of their steps."""
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as scratch:
        folder = Path(scratch)
        queries_file = write_records(folder / "queries.parquet", queries, Query)
        episodes = write_records(folder / "trajectories.parquet", trajectories, Trajectory)
        scores = write_records(folder / "rewards.parquet", rewards, StepReward) if rewards else None
        return write_viewer(target, queries_file, [EpisodeFiles(episodes, scores)], title)


def _report(result: PolicyEvaluation, name: str, queries: int) -> None:
    """Say how often the policy passed, and what went wrong."""
    say("evaluate", f"{name}: {format_rate(result.greedy_verdicts)} on {queries} queries")
    if errors := result.check_errors:
        say("evaluate", f"the check failed on {len(errors)} episodes of {name}, first: {errors[0]}")
    if refusals := result.refusals:
        say("evaluate", f"the endpoint ended {len(refusals)} episodes of {name}, first: {refusals[0]}")
