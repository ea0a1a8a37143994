"""The plan of a retraining run, with its new data and the model in service, and the outcome of the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from steptool.config import Config, EvaluatedPolicy
from steptool.data.ingest import SourceFile, list_files

if TYPE_CHECKING:
    from steptool.registry import Registry


class Criterion(BaseModel):
    """One part of the rule, and whether the challenger passes it. Differences are challenger minus champion, paired
    over tasks."""

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    statement: str
    """The figure and its bound in words."""
    tasks: int
    measured: bool = False
    """Whether the criterion rests on a difference, which follows with its 95% interval."""
    mean: float = 0.0
    low: float = 0.0
    high: float = 0.0


class Decision(BaseModel):
    """What the rule decides, and why."""

    model_config = ConfigDict(frozen=True)

    criteria: list[Criterion]
    left_out: int = 0
    """Number of held-out tasks that do not count, since the champion was trained on them."""

    @property
    def promote(self) -> bool:
        """Whether the challenger passes every part of the rule."""
        return all(criterion.passed for criterion in self.criteria)

    @property
    def reasons(self) -> list[str]:
        """What speaks against the challenger, in words."""
        return [f"{criterion.name}: {criterion.statement}" for criterion in self.criteria if not criterion.passed]


class Result(StrEnum):
    """How a run ended."""

    PROMOTED = "promoted"
    """The challenger is in service."""
    REFUSED = "refused"
    """The champion stays in service. The outcome gives the reasons."""
    SKIPPED = "skipped"
    """There was no new data."""
    FAILED = "failed"
    """An error ended the run. The data that it read stay new."""


FINISHED = frozenset({Result.PROMOTED, Result.REFUSED})
"""Results of the runs that trained on the new data."""


class RunOutcome(BaseModel):
    """The end of a run."""

    model_config = ConfigDict(frozen=True)

    result: Result
    reasons: list[str]
    """Why, in words."""
    version: str = ""
    """The challenger's version; empty where it was not published."""
    stale: bool = False
    """The challenger was refused because another model was promoted meanwhile. The new data stay new, since nothing
    trained on them was compared with the model that is in service now."""
    decision: Decision | None = None
    """The figures of the rule; None where there was no challenger."""


class RetrainingPlan(BaseModel):
    """The plan of one run of retraining."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    kickoff: datetime
    sequence: int
    """Number of the champion when the run began; 0 where no model was ever promoted."""
    champion: str
    """The champion's version; empty where the base model of the configuration is in service."""
    base: str
    """Folder, url or name of the model in service, which training starts from."""
    new: list[SourceFile]
    """The sources whose content no finished run has seen."""
    files: int
    """Number of all sources, new and seen."""
    forced: bool

    @property
    def due(self) -> bool:
        """Whether to train: there is new data, or the run is forced."""
        return bool(self.new) or self.forced

    def skip(self) -> RunOutcome:
        """The outcome of a run without new data."""
        files = f"{self.files} source{'' if self.files == 1 else 's'}"
        return RunOutcome(result=Result.SKIPPED, reasons=[f"nothing new in {files} since the last finished run"])

    def configure(self, config: Config) -> Config:
        """The configuration of the training: it starts from the model in service and takes new tasks first.

        Each task stays in its split, whatever tasks come and go: no task is held out that an earlier run was trained
        on.
        """
        first = [source.sha256 for source in self.new] if len(self.new) < self.files else []
        return config.model_copy(
            update={
                "policy": config.policy.model_copy(update={"base": self.base}),
                "data": config.data.model_copy(update={"first": first, "exact_splits": False}),
            }
        )


def plan_run(config: Config, registry: Registry, run_id: str, kickoff: datetime, force: bool) -> RetrainingPlan:
    """Compare the sources with those that the registry's runs have seen, and look up the champion.

    Content is new if no finished run of this registry has seen it. A renamed file is not new; a file that only a failed
    run has seen is new. Raises IngestError for sources that cannot be read.
    """
    present, champion = list_files(config.data), registry.champion()
    return RetrainingPlan(
        run_id=run_id,
        kickoff=kickoff,
        sequence=champion.sequence if champion else 0,
        champion=champion.version_id if champion else "",
        base=registry.model_place(champion.version_id) if champion else config.policy.base,
        new=_select_unseen(present, registry.runs()),
        files=len(present),
        forced=force,
    )


def add_champion_and_base(config: Config, registry: Registry) -> Config:
    """The configuration of the regular evaluation: the policies `champion` and `base` before those that it names.

    There is no champion before the first promotion. A base from random weights (`scratch`) is left out.
    """
    champion, base = registry.champion(), config.policy.base
    places = {"champion": registry.model_place(champion.version_id)} if champion else {}
    places |= {} if base == "scratch" else {"base": base}
    policies = [EvaluatedPolicy(name=name, model=place) for name, place in places.items()]
    evaluation = config.evaluation.model_dump() | {"policies": [*policies, *config.evaluation.policies]}
    return config.model_copy(update={"evaluation": type(config.evaluation).model_validate(evaluation)})


def make_run_id(kickoff: datetime, token: str) -> str:
    """Name of a run. Names sort by the kickoff."""
    return f"{kickoff.astimezone(UTC):%Y%m%dT%H%M%SZ}-{token}"


def _select_unseen(present: Iterable[SourceFile], runs: Sequence[dict[str, Any]]) -> list[SourceFile]:
    """The sources whose content is new to all finished runs, each content once."""
    finished_runs = [run for run in runs if run["result"] in FINISHED and not run["stale"]]
    old_digests = {source["sha256"] for run in finished_runs for source in run["new"]}
    return list({source.sha256: source for source in present if source.sha256 not in old_digests}.values())
