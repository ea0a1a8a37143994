"""The section `rewards`: who scores the steps, how scores become rewards, what is checked of them, and a model behind
HTTP.
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
    """Further attempts after a lost connection, a 408, 409, 429 or 5xx, and an answer that is no chat completion."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature."""
    max_tokens: Positive = 1024
    """Tokens of an answer, at most."""
    request: FreeMapping = Field(default_factory=dict)
    """Further fields of every request, which replace those above; null removes one. A server that refuses max_tokens
    takes {max_tokens: null, max_completion_tokens: 1024}."""
    price_in: Annotated[float, Field(ge=0)] = 0.0
    """Money per million tokens read, for the account of costs."""
    price_out: Annotated[float, Field(ge=0)] = 0.0
    """Money per million tokens written, for the account of costs."""


class JudgeConfig(StrictModel):
    """The chat model that scores steps, judges outcomes and compares answers (docs/judge.md)."""

    endpoint: EndpointConfig = EndpointConfig()
    votes: Positive = 3
    """Answers asked for each trajectory; a score is their mean."""
    attempts: Positive = 3
    """Times that a vote is asked for until its answer can be used; after that it is missing."""
    deadline: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds for all votes of a stage; those that have not come by then are missing."""
    observation_limit: Positive = 2000
    """Characters of a call's arguments, of an observation and of an answer that the judge sees; a cut is marked."""
    cache: str = ""
    """File of the judge's replies, asked before the endpoint and filled from it, so that nothing is paid twice; empty:
    none."""


class AuditConfig(StrictModel):
    """What is checked of a round's rewards before anything learns from them (docs/annotators.md). A run stops where a
    threshold is crossed; a figure that the round does not determine crosses none."""

    second: Literal["", "rules", "lcs", "overlap", "truth"] = "truth"
    """Annotator whose opinion the rewards are compared with; empty: none."""
    previous: str = ""
    """File or url of the rewards of an earlier run, which drift is measured against; empty: none."""
    max_missing: Share = 0.5
    """Share of the episodes, at most, that cannot be learned from: a score that their reward needs is missing."""
    min_auroc: Share = 0.0
    """Chance, at least, that a solved episode has a higher mean Contribution than one that was not solved; 0:
    unchecked."""
    min_kappa: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Cohen's kappa, at least, with the second opinion on whether a step contributes; -1: unchecked."""
    require_signal: bool = True
    """Stop where step rewards carry no signal: every Contribution is 0 although solved episodes have successful calls,
    or the mean Contribution ranks unsolved above solved episodes beyond chance (AUROC below .5)."""
    max_farming: Annotated[float, Field(ge=-1, le=1)] = 1.0
    """Correlation, at most, of an episode's step rewards with its number of steps; 1: unchecked."""


class RewardConfig(StrictModel):
    """From components to one reward per step: r_t = step_weight * (alpha * succ_t + contribution_t) before the last
    step, and IsSolved on the last."""

    annotator: Literal["rules", "lcs", "overlap", "truth", "judge"] = "rules"
    """rules: from the text, by changes and the flow of values; lcs: the published rules; overlap: the same without
    failed steps, against the answer alone; truth: what the environment knows; judge: a chat model."""
    alpha: Annotated[float, Field(ge=0)] = 0.1
    """Weight of a successful call against its contribution."""
    step_weight: Annotated[float, Field(ge=0)] = 0.3
    """Weight of the steps before the last against IsSolved. Too much of it teaches to collect calls (see the farming
    check)."""
    succ_calling: Literal["bonus", "penalty"] = "penalty"
    """bonus: succ in {0, 1} as published; penalty: succ in {-1, 0}, the same order but nothing to farm."""
    contribution: Literal["score", "progress"] = "score"
    """score: each step earns its Contribution. progress: it earns the growth of a potential, the sum of the
    Contributions so far divided by progress_steps and at most 1; once that is reached, further steps earn nothing."""
    progress_steps: Positive = 8
    """Contributing steps that a task needs; with contribution: progress each earns one part of so many."""
    redundant_cost: Annotated[float, Field(ge=0)] = 0.5
    """Taken from the reward of a call that repeats an earlier one and gets the same result, times step_weight."""
    weights: Literal["fixed", "calibrated"] = "fixed"
    """calibrated: SuccCalling and Contribution are each multiplied by how well they told solved episodes over the last
    rounds, max(0, 2 AUROC - 1), so that a component which says nothing of the outcome pays nothing."""
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
