"""Several rounds in one process: each is played, scored, audited and learned from as in pods of its own.

Sampling and training take turns: our own sampler on the very weights that are trained (`SharedModels`), vLLM on weights
of its own, which each round replaces in place (`RestingEngine`). After each round the state is kept, so that another
attempt continues from it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from steptool.artifacts.lineage import COSTS, METRICS, of_round
from steptool.artifacts.metrics import Stopwatch
from steptool.config import Config
from steptool.models.adapter import is_adapter
from steptool.models.load import SharedModels
from steptool.pipeline.episodes import EPISODES, AuditedRound, audit_round, open_learner, play_shard, score_file
from steptool.pipeline.learning import LearnedRound, learn_round
from steptool.policies.vllm import RestingEngine
from steptool.rollout.schedule import TaskSet
from steptool.training.checkpoints import OnCheckpoint, last_checkpoint, seal

_JOINED, _FIGURES, _POLICY, _SCALE, _PAGE = "joined", "figures", "policy", "scale.json", "audit.html"
"""Names of the files and folders of a finished round."""


@dataclass(frozen=True)
class RoundInputs:
    """The inputs of all rounds of a stage."""

    start: Path
    """The model before the first round of the run. It is the reference, and the base of adapters."""
    tasks: TaskSet
    queries: Path
    config: Config


@dataclass(frozen=True)
class FinishedRound:
    """The results of a round."""

    audited: AuditedRound
    learned: LearnedRound
    """Of several rounds only the last one keeps its model."""
    page: str
    """The page of the audit."""


def play_and_learn(
    inputs: RoundInputs,
    first: int,
    count: int,
    policy: Path,
    scale: Path | None,
    folder: Path,
    *,
    on_checkpoint: OnCheckpoint | None = None,
    show: Callable[[str, str], None] = lambda name, page: None,
) -> list[FinishedRound]:
    """Make `count` rounds from the index `first` on, starting with `policy` and the running scale of the round before.

    `folder` keeps the state after each round as a checkpoint; the same call goes on from there after an interruption.
    `on_checkpoint` is called after each. `show` takes name and content of the page of each round's audit. Raises
    AuditError where the rewards of a round are beyond a threshold; the rounds before it are kept.
    """
    with closing(RestingEngine()) as resting:
        return _make_rounds(inputs, range(first, first + count), policy, scale, folder, resting, on_checkpoint, show)


def _make_rounds(
    inputs: RoundInputs,
    rounds: range,
    policy: Path,
    scale: Path | None,
    folder: Path,
    resting: RestingEngine,
    on_checkpoint: OnCheckpoint | None,
    show: Callable[[str, str], None],
) -> list[FinishedRound]:
    first = rounds.start
    models, checkpoint = SharedModels(), last_checkpoint(folder)
    results = _read_rounds(checkpoint, first) if checkpoint else []
    for round_index, result in enumerate(results, first):
        show(_page_name(round_index), result.page)
    for round_index in rounds[len(results) :]:
        if results:
            policy, scale = results[-1].learned.model, results[-1].learned.scale
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        _make_round(inputs, round_index, policy, scale, work, models, resting, show)
        checkpoint = _keep(work, folder, checkpoint, round_index - first)
        results = _read_rounds(checkpoint, first)
        if not is_adapter(results[-1].learned.model):
            models.move(policy, results[-1].learned.model)
        if on_checkpoint:
            on_checkpoint()
    return results


def _make_round(
    inputs: RoundInputs,
    round_index: int,
    policy: Path,
    scale: Path | None,
    work: Path,
    models: SharedModels,
    resting: RestingEngine,
    show: Callable[[str, str], None],
) -> None:
    """Make one round in the folder `work`."""
    start, tasks, config, queries = inputs.start, inputs.tasks, inputs.config, inputs.queries
    watch, shards = Stopwatch("rollout", round_index), []
    with open_learner(policy, start, config, round_index, models.load, resting) as player:
        for shard in range(config.rollout.shards):
            target = _make(work, f"shard{shard}")
            shards.append(play_shard(player, tasks, config, round_index, shard, target, watch))
            watch = Stopwatch("rollout", round_index)
    models.hand_over()
    scores = [
        score_file(shard / EPISODES, queries, config, round_index, _make(work, f"scores{number}"))
        for number, shard in enumerate(shards)
    ]

    def show_page(page: str) -> None:
        (work / _PAGE).write_text(page, encoding="utf-8")
        show(_page_name(round_index), page)

    audited = audit_round(shards, scores, queries, config, round_index, _make(work, _JOINED), show_page)
    learn_round(policy, start, audited, config, round_index, scale, work, load=models.load)
    if config.rollout.engine == "vllm":
        models.clear()
    models.hand_over()
    for part in (*shards, *scores):
        shutil.rmtree(part)


def _keep(work: Path, folder: Path, before: Path | None, number: int) -> Path:
    """Make the checkpoint after round `number` of the stage out of the one before and of the new round."""
    target = folder / f"checkpoint-{number + 1}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    if before:
        for old in sorted(before.glob("round_*")):
            ignored = shutil.ignore_patterns(_POLICY)
            shutil.copytree(old, target / old.name, ignore=ignored)
    work.rename(target / f"round_{number:03d}")
    seal(target)
    if before:
        shutil.rmtree(before)
    return target


def _read_rounds(checkpoint: Path, first: int) -> list[FinishedRound]:
    """The rounds of a checkpoint, by their files."""
    return [
        FinishedRound(
            AuditedRound(
                folder / _JOINED / of_round("trajectories", round_index),
                folder / _JOINED / of_round("rewards", round_index),
                folder / _JOINED / COSTS,
            ),
            LearnedRound(
                folder / _POLICY,
                folder / _FIGURES / of_round("advantages", round_index),
                folder / _FIGURES / METRICS,
                folder / _FIGURES / COSTS,
                folder / _FIGURES / _SCALE,
            ),
            (folder / _PAGE).read_text(encoding="utf-8"),
        )
        for round_index, folder in enumerate(sorted(checkpoint.glob("round_*")), first)
    ]


def _make(work: Path, name: str) -> Path:
    (work / name).mkdir(parents=True)
    return work / name


def _page_name(round_index: int) -> str:
    return f"rewards of round {round_index + 1}"
