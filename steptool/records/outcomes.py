"""Records that are computed from episodes: rewards, advantages, evaluations, verdicts, metrics and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from steptool.records.columns import (
    JSON_OBJECT,
    Float32,
    Float64,
    Int32,
    Int64,
    contract,
)
from steptool.records.episodes import StopReason

EpisodeId = Annotated[str, "Episode; in trajectories"]
StepIndex = Annotated[Int32, "Number of the step, counted from 0"]
JudgementIndex = Annotated[Int32, "Number of the judgement, counted from 0"]
RoundIndex = Annotated[Int32, "Round of training, counted from 0; -1 outside of rounds"]
Rationale = Annotated[str, "Why, in words; may be empty"]


class VerdictSource(StrEnum):
    """Where the verdict on an episode comes from."""

    ENVIRONMENT = "environment"
    """The environment checked the episode."""
    REFERENCE = "reference"
    """The final answer was compared with the task's reference answer."""
    JUDGE = "judge"
    """Verdicts of a judge, stored or asked for: their mean."""
    RULE = "rule"
    """An episode without an answer is unsolved, where a judge gives the verdicts."""
    NONE = "none"
    """There is no verdict: the task has neither a check nor a reference answer."""
    FAILED = "failed"
    """There is no verdict: the environment's check failed."""


@contract("rewards", version=1)
@dataclass(frozen=True)
class StepReward:
    """The scores of one step by one annotator. A missing score is null, never 0."""

    trajectory_id: EpisodeId
    step: StepIndex
    annotator: Annotated[str, "Name of the annotator"]
    annotator_version: Annotated[str, "Changes whenever the annotator may give the same episode another score"]
    prompt_hash: Annotated[str, "SHA-256 of the prompt; empty for an annotator without one"] = ""
    succ_calling: Annotated[Float32 | None, "1: well formed and no failure; else 0; null: missing"] = None
    contribution: Annotated[
        Float32 | None, "How much the step serves the final answer, in [0, 1]; null: missing, or the step is a Finish"
    ] = None
    is_solved: Annotated[
        Float32 | None, "0, 0.5 (unsure) or 1, on the last step alone; null: missing, or another step"
    ] = None
    votes: Annotated[str, "Votes behind the scores, and other details of the annotator: JSON object"] = "{}"
    rationale: Rationale = ""


@contract("advantages", version=1)
@dataclass(frozen=True)
class Advantage:
    """The reward and the advantage of one step, as training used them."""

    trajectory_id: EpisodeId
    step: StepIndex
    reward: Annotated[Float32, "Composed reward of the step"]
    kl: Annotated[Float32, "Sum over the tokens of the step of log pi - log pi_ref (nats)"]
    value: Annotated[Float32, "Value of the state before the first token of the step"]
    advantage: Annotated[Float32, "Mean over the tokens of the step, before whitening"]


@contract("evaluations", version=3)
@dataclass(frozen=True)
class Evaluation:
    """The result of one model on one query in one repeat."""

    query_id: Annotated[str, "Task that was played; in queries"]
    split: Annotated[str, "Split of the query"]
    tier: Annotated[str, "Tier of the query"]
    model: Annotated[str, "Name of the model or policy"]
    decoding: Annotated[str, "greedy or sampled"]
    repeat: Annotated[Int32, "Number of the repeat, counted from 0"]
    trajectory_id: Annotated[str, "Episode behind the row"]
    passed: Annotated[Float32 | None, "Verdict in [0, 1]; 0.5 is unsure; null: not measurable, or the check failed"]
    verdict_source: Annotated[str, f"Where the verdict comes from: {', '.join(VerdictSource)}"]
    recall: Annotated[
        Float32 | None,
        "Share of the reference's tools that were called with success, in [0, 1]; null: the task names no tools",
    ]
    steps: Annotated[Int32, "Steps of the assistant"]
    calls: Annotated[Int32, "Steps that are not a well-formed Finish"]
    invalid_calls: Annotated[Int32, "Calls whose status is not ok, unreadable ones included"]
    redundant_calls: Annotated[Int32, "Calls that repeat an earlier one and bring nothing new"]
    tokens: Annotated[Int64, "Tokens written by the model, abandoned branches included"]
    prompt_tokens: Annotated[Int64 | None, "Tokens read by the model; null where they were not counted"]
    money: Annotated[Float64 | None, "Price of the episode, in the currency of the configuration; null: not known"]
    seconds: Annotated[Float64, "Wall-clock seconds of the episode"]
    stop_reason: Annotated[str, f"Why the episode ended: {', '.join(StopReason)}"]


@contract("verdicts", version=1)
@dataclass(frozen=True)
class Verdict:
    """The status that one judgement gave to one answer."""

    query_id: Annotated[str, "Task that was answered"]
    model: Annotated[str, "Model that answered"]
    repeat: JudgementIndex
    status: Annotated[str | None, "solved, unsure or unsolved; null: missing"]
    judge: Annotated[str, "Model that judged; empty: no model was asked, or it is not known"] = ""
    prompt_hash: Annotated[str, "SHA-256 of the prompt; empty without one"] = ""
    rationale: Rationale = ""


@contract("preferences", version=1)
@dataclass(frozen=True)
class Preference:
    """Which of two answers one judgement preferred."""

    query_id: Annotated[str, "Task that both answered"]
    model: Annotated[str, "Model that is compared"]
    other: Annotated[str, "Model that it is compared with"]
    repeat: JudgementIndex
    swapped: Annotated[bool, "Whether the judge saw the other's answer first"]
    preference: Annotated[str | None, "model, other or tie; null: missing"]
    judge: Annotated[str, "Model that judged; empty: no model was asked"] = ""
    prompt_hash: Annotated[str, "SHA-256 of the prompt; empty without one"] = ""
    rationale: Rationale = ""


@contract("metrics", version=1)
@dataclass(frozen=True)
class Metric:
    """One number that a stage measured."""

    stage: Annotated[str, "Stage that measured it, such as warm_start or ppo"]
    round: RoundIndex
    update: Annotated[Int32, "Optimizer step of the stage, counted from 0; -1 for a count of the whole stage"]
    name: Annotated[str, "What was measured"]
    value: Annotated[Float64, "The number"]


@contract("costs", version=1)
@dataclass(frozen=True)
class Cost:
    """The time, tokens and memory that one task of a stage took."""

    stage: Annotated[str, "Stage, such as rollout"]
    round: RoundIndex = -1
    seconds: Annotated[Float64, "Wall-clock seconds; tasks of a stage may run side by side"] = 0.0
    tokens: Annotated[Int64, "Tokens generated, or trained on"] = 0
    peak_memory_mb: Annotated[Float64, "Peak resident memory of the process until then, in MiB"] = 0.0
    counts: Annotated[
        Mapping[str, float], JSON_OBJECT, "Other counts by name, such as requests to an endpoint and money: JSON object"
    ] = field(default_factory=dict)
