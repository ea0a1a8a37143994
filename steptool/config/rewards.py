"""The section `rewards`: who scores the steps, how scores become rewards, and how rewards are checked. It also defines
the section of a chat model behind HTTP.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from steptool.config.base import FreeMapping, Natural, Positive, Share, StrictModel


class EndpointConfig(StrictModel):
    """A chat model behind an HTTP endpoint of OpenAI's form."""

    base_url: str = ""
    """Address up to the version, such as https://api.openai.com/v1 or http://localhost:8000/v1."""
    model: str = ""
    """Name of the model there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; it may be unset where the server needs none."""
    concurrency: Positive = 16
    """Requests in flight at once."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that the server may stay silent. All attempts and the waits between them may take retries + 1 times as
    long."""
    retries: Natural = 4
    """Number of further attempts after a lost connection, an HTTP status 408, 409, 429 or 5xx, or an answer that is not
    a chat completion."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature."""
    max_tokens: Positive = 1024
    """Largest number of tokens in an answer."""
    request: FreeMapping = Field(default_factory=dict)
    """Further fields of every request. They replace fields of the same name; null removes a field. For a server that
    refuses max_tokens, write {max_tokens: null, max_completion_tokens: 1024}."""
    price_in: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million input tokens, for the report of costs."""
    price_out: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million output tokens, for the report of costs."""


class JudgeConfig(StrictModel):
    """The chat model that scores steps, judges outcomes and compares answers (docs/judge.md)."""

    endpoint: EndpointConfig = EndpointConfig()
    votes: Positive = 3
    """Number of answers that the judge gives for each trajectory. A score is their mean."""
    attempts: Positive = 3
    """Number of requests for one vote, as long as its answer cannot be used. After that the vote is missing."""
    deadline: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds that all votes of a stage may take together. Votes that have not come by then are missing."""
    observation_limit: Positive = 2000
    """Largest number of characters that the judge sees of a call's arguments, of an observation and of an answer. A cut
    is marked."""
    cache: str = ""
    """File that keeps the judge's replies. A reply that is in it is not requested again, so that nothing is paid twice;
    empty: no file."""


class AuditConfig(StrictModel):
    """Checks of a round's rewards before the model learns from them (docs/annotators.md). A run stops if a figure
    crosses its threshold. A figure that cannot be computed for a round is not checked."""

    second: Literal["", "rules", "lcs", "overlap", "truth"] = "truth"
    """Second annotator, whose scores are compared with those of rewards.annotator; empty: no comparison."""
    previous: str = ""
    """File or url of the rewards of an earlier run, to measure drift from it; empty: drift is not measured."""
    max_missing: Share = 0.5
    """Largest share of the episodes that may lack a score which their reward needs. The model cannot learn from such an
    episode."""
    min_auroc: Share = 0.0
    """Smallest probability that a solved episode has a higher mean Contribution than one that was not solved; 0: not
    checked."""
    min_kappa: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Smallest Cohen's kappa of the two annotators on whether a step contributes; -1: not checked."""
    require_signal: bool = True
    """Whether to stop if step rewards carry no signal: every Contribution is 0 although solved episodes have successful
    calls, or the mean Contribution ranks unsolved above solved episodes beyond chance (AUROC below .5)."""
    max_farming: Annotated[float, Field(ge=-1, le=1)] = 1.0
    """Largest correlation of an episode's step rewards with its number of steps; 1: not checked."""


class RewardConfig(StrictModel):
    """How the components become one reward per step: r_t = step_weight * (alpha * succ_t + contribution_t) before the
    last step, and IsSolved on the last."""

    annotator: Literal["rules", "lcs", "overlap", "truth", "judge"] = "rules"
    """Who scores the steps. rules: rules on the text, which follow changes and the flow of values; lcs: the published
    rules; overlap: the published rules without failed steps, which look at the answer alone; truth: what the
    environment knows; judge: a chat model."""
    alpha: Annotated[float, Field(ge=0)] = 0.1
    """Weight of SuccCalling relative to Contribution."""
    step_weight: Annotated[float, Field(ge=0)] = 0.3
    """Weight of the steps before the last relative to IsSolved. Too large a weight teaches the model to collect calls
    (see the farming check)."""
    succ_calling: Literal["bonus", "penalty"] = "penalty"
    """bonus: succ in {0, 1} as published; penalty: succ in {-1, 0}, the same order but nothing to farm."""
    contribution: Literal["score", "progress"] = "score"
    """score: each step earns its Contribution. progress: it earns the growth of a potential, the sum of the
    Contributions so far divided by progress_steps and at most 1; once that is reached, further steps earn nothing."""
    progress_steps: Positive = 8
    """Number of contributing steps that a task needs. With contribution: progress each of them earns 1 /
    progress_steps."""
    redundant_cost: Annotated[float, Field(ge=0)] = 0.5
    """Amount that a call loses, times step_weight, if it repeats an earlier call and gets the same result."""
    weights: Literal["fixed", "calibrated"] = "fixed"
    """fixed: the weights above. calibrated: SuccCalling and Contribution are each multiplied by max(0, 2 AUROC - 1),
    where AUROC says how well the component separated solved from unsolved episodes in the last rounds. A component that
    says nothing about the outcome then pays nothing."""
    calibration_rounds: Positive = 4
    """Rounds over which calibrated weights are averaged (a moving average)."""
    normalisation: Literal["none", "trajectory", "running"] = "none"
    """trajectory: the step rewards before the last are divided by their number; running: all rewards of a round are
    divided by their standard deviation over this round and those before it."""
    judge: JudgeConfig = JudgeConfig()
    audit: AuditConfig = AuditConfig()

    @model_validator(mode="after")
    def _has_judge(self) -> RewardConfig:
        endpoint = self.judge.endpoint
        if self.annotator == "judge" and not (endpoint.base_url and endpoint.model):
            raise ValueError("the annotator judge needs rewards.judge.endpoint.base_url and .model")
        return self
