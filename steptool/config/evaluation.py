"""The sections `evaluation` and `promotion`: what is compared, and when a retrained model takes over."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from steptool.config.base import ConfigError, Positive, Share, StrictModel
from steptool.config.endpoint import EndpointConfig


class SearchConfig(StrictModel):
    """DFSDT, the depth-first tree search. Its depth is the number of steps that an episode may take."""

    beam: Positive = 2
    """Turns made from one node, at most: the 2 of DFS_woFilter_w2, which ToolLLM and StepTool evaluate with; 1: the
    chain."""
    max_turns: Positive = 30
    """Turns sampled in one search, at most: max_query_count in StepTool's evaluation; ToolBench's own allows 200."""
    give_up_levels: Positive = 2
    """Turns taken back when the model gives up: prune_back_length in ToolBench. After any other end it is one."""
    hints: bool = True
    """Whether the model is told what was tried from a node, as in ToolBench; false suits small models, which such a
    message throws off course, and asks for a sampled search: a greedy one would make the same turn again."""


class EvaluatedPolicy(StrictModel):
    """One of the policies that `workflows/evaluate.py` compares."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Name in the results and in names of files."""
    kind: Literal["model", "endpoint", "playback"] = "model"
    """model: a causal language model; endpoint: a model behind an OpenAI-compatible endpoint; playback: the reference
    solution of each query or, where it has none, the first recorded answer."""
    model: str = ""
    """embedded, a model folder, the url of one or a Hugging Face id (kind model only)."""
    endpoint: EndpointConfig = EndpointConfig()
    """The endpoint (kind endpoint only)."""
    cache: str = ""
    """File of the endpoint's replies, asked before it and filled from it: an evaluation that is started again pays for
    no turn twice (kind endpoint only); empty: none."""
    strategy: Literal["chain", "dfsdt"] = "chain"
    """chain: one call after the other; dfsdt: the tree search of `search` (kind model only)."""

    @model_validator(mode="after")
    def _complete(self) -> EvaluatedPolicy:
        if self.kind == "model" and not self.model:
            raise ValueError(f"the policy '{self.name}' of the kind model needs the field model")
        if self.kind == "endpoint" and not (self.endpoint.base_url and self.endpoint.model):
            raise ValueError(f"the policy '{self.name}' of the kind endpoint needs endpoint.base_url and .model")
        if self.kind != "endpoint" and self.cache:
            raise ValueError(f"the policy '{self.name}': a cache of replies is for the kind endpoint only")
        if self.kind != "model" and self.strategy != "chain":
            raise ValueError(f"the policy '{self.name}': the strategy {self.strategy} is for the kind model only")
        return self


class EvaluationConfig(StrictModel):
    """Comparison of models: base, warm start and result in training, any policies in `workflows/evaluate.py`."""

    split: Literal["validation", "heldout", "all"] = "heldout"
    """all: every query, training queries too; in `workflows/evaluate.py` only."""
    sampled_repeats: Annotated[int, Field(ge=0)] = 1
    """Sampled episodes per query besides the greedy one."""
    bootstrap: Positive = 10000
    """Resamples of the paired bootstrap over queries."""
    policies: list[EvaluatedPolicy] = Field(default_factory=list)
    """What `workflows/evaluate.py` compares; training does not look at it."""
    recorded_only: bool = False
    """Only queries with a recorded answer; in `workflows/evaluate.py` only."""
    verdicts: list[str] = Field(default_factory=list)
    """Files or urls of stored verdicts on these policies by a judge, for the judged pass rate (docs/evaluation.md)."""
    judged: bool = False
    """The judge of `rewards.judge` is asked for a verdict on each greedy episode and for the better of each two."""
    search: SearchConfig = SearchConfig()

    @model_validator(mode="after")
    def _distinct(self) -> EvaluationConfig:
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"policies need names of their own, got {names}")
        return self

    @property
    def contestants(self) -> int:
        """Number of policies to compare. Raises ConfigError if there is none."""
        if not self.policies:
            raise ConfigError("evaluation.policies is empty: name the policies to compare (docs/evaluation.md)")
        return len(self.policies)


class PromotionConfig(StrictModel):
    """When a retrained model takes the place of the one in service (docs/retraining.md). All shares are from 0 to 1."""

    min_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """The paired 95% interval of the gain in pass rate has to lie above this."""
    max_category_loss: Share = 0.05
    """Pass rate that a category of tools may lose; a loss that may have come by chance does not count."""
    max_invalid_rise: Share = 0.0
    """The paired 95% interval of the rise in the rate of invalid calls must not lie above this."""
    min_tasks: Positive = 30
    """Held-out tasks below which nothing is promoted."""
    approval: bool = False
    """A person is asked before a model is promoted."""
    approval_hours: Annotated[float, Field(gt=0)] = 20.0
    """Hours that the question waits; after that the night has failed."""
