"""What a night begins with: what is new since the last runs, and who is in service."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from steptool.config import Config
from steptool.data.files import Source, sources
from steptool.retraining.outcome import FINISHED, Result, RunOutcome

if TYPE_CHECKING:
    from steptool.registry import Registry


class RetrainingPlan(BaseModel):
    """The plan of one run of retraining."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    kickoff: datetime
    sequence: int
    """Number of the champion when the night began; 0: there is none."""
    champion: str
    """Its version; empty: the base model of the configuration is in service."""
    base: str
    """The model in service, which training starts from."""
    new: list[Source]
    """What no finished run has seen, by content."""
    files: int
    """Number of all that the sources hold."""
    forced: bool

    @property
    def due(self) -> bool:
        """Whether there is anything to train on."""
        return bool(self.new) or self.forced

    def skipped(self) -> RunOutcome:
        """The end of a night on which there is nothing to do."""
        files = f"{self.files} source{'' if self.files == 1 else 's'}"
        return RunOutcome(result=Result.SKIPPED, reasons=[f"nothing new in {files} since the last finished run"])

    def config(self, config: Config) -> Config:
        """The configuration of the training: from the model in service, with what is new first."""
        first = [source.sha256 for source in self.new] if len(self.new) < self.files else []
        return config.model_copy(
            update={
                "policy": config.policy.model_copy(update={"base": self.base}),
                "data": config.data.model_copy(update={"first": first}),
            }
        )


def plan(config: Config, registry: Registry, run_id: str, kickoff: datetime, force: bool) -> RetrainingPlan:
    """Look at the sources and at the registry.

    New is content that no run of this registry has seen which came to an end: a file that was renamed is not new, and
    one that only a failed run has seen is. Raises IngestError for sources that cannot be read.
    """
    held, champion = sources(config.data), registry.champion()
    return RetrainingPlan(
        run_id=run_id,
        kickoff=kickoff,
        sequence=champion.sequence if champion else 0,
        champion=champion.version_id if champion else "",
        base=registry.model_place(champion.version_id) if champion else config.policy.base,
        new=unseen(held, registry.runs()),
        files=len(held),
        forced=force,
    )


def unseen(held: Iterable[Source], runs: Sequence[dict[str, Any]]) -> list[Source]:
    """The sources whose content is new to all finished runs, each content once."""
    judged = [run for run in runs if run["result"] in FINISHED and not run["stale"]]
    seen = {source["sha256"] for run in judged for source in run["new"]}
    return list({source.sha256: source for source in held if source.sha256 not in seen}.values())


def run_id(kickoff: datetime, token: str) -> str:
    """Name of a run, which sorts by its kickoff."""
    return f"{kickoff.astimezone(UTC):%Y%m%dT%H%M%SZ}-{token}"
