"""The sections `evaluation` and `promotion`: what is compared, and when a retrained model takes over."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from steptool.config.base import ConfigError, Natural, Positive, Share, StrictModel
from steptool.config.data import Places
from steptool.config.rewards import EndpointConfig


class SearchConfig(StrictModel):
    """The tree search DFSDT (docs/search.md), as StepTool's evaluation runs it. Its depth is an episode's number of
    steps."""

    beam: Positive = 2
    """Turns made from one node, at most; 1: the chain. ToolLLM and StepTool evaluate with 2 (DFS_woFilter_w2)."""
    max_turns: Positive = 30
    """Turns sampled in one search, at most (max_query_count); ToolBench's own evaluation allows 200."""
    give_up_levels: Positive = 2
    """Turns taken back when the model gives up (prune_back_length); after any other end of a path it is one."""
    hints: bool = True
    """Whether the model is told, as in ToolBench, what was tried before it makes another turn from a node. Such a
    message confuses small models; without it the search has to be sampled, because a greedy one repeats its turn."""


class EvaluatedPolicy(StrictModel):
    """One of the policies that workflows/evaluate.py compares."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Name in the results and in the names of files."""
    kind: Literal["model", "endpoint", "playback"] = "model"
    """model: a causal language model; endpoint: a model behind an OpenAI-compatible endpoint; playback: the reference
    solution of each query or, where it has none, the first recorded answer; with `recordings` what these hold."""
    model: str = ""
    """embedded, a model folder, the url of one or a Hugging Face id. It may be a LoRA adapter. Of the kind endpoint:
    the folder or url of the model behind it, whose serving.json replaces instructions and endpoint.max_tokens
    (docs/serve.md); empty: a model without one."""
    base: str = ""
    """The model that an adapter belongs to, named in the same way (kind model only); empty: what the adapter itself
    names."""
    endpoint: EndpointConfig = EndpointConfig()
    instructions: str | None = None
    """System message of an endpoint's episodes; empty: none, which is how a model that was trained here learned; null:
    a sentence that asks for one call in each turn and says how to answer (kind endpoint only)."""
    cache: str = ""
    """File of the endpoint's replies, asked before it and filled from it, so that an evaluation that is started again
    pays for no turn twice (kind endpoint only); empty: none."""
    recordings: Places = Field(default_factory=list)
    """Files, folders or urls of the recorded answers that this policy plays, in any form (kind playback only); empty:
    reference solutions and what `data.recorded_answers` holds."""
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
        if self.kind != "playback" and self.recordings:
            raise ValueError(f"the policy '{self.name}': recordings are for the kind playback only")
        if self.kind != "model" and self.base:
            raise ValueError(f"the policy '{self.name}': a base is for the kind model only")
        if self.kind != "model" and self.strategy != "chain":
            raise ValueError(f"the policy '{self.name}': the strategy {self.strategy} is for the kind model only")
        return self


class EvaluationConfig(StrictModel):
    """Held-out comparison: of base, warm start and result after training, of any policies in workflows/evaluate.py."""

    split: Literal["validation", "heldout", "all"] = "heldout"
    """heldout; validation: to tune settings without touching the held-out tasks; all: training queries too, in
    workflows/evaluate.py only."""
    sampled_repeats: Natural = 1
    """Sampled episodes per query besides the greedy one."""
    bootstrap: Positive = 10000
    """Resamples of the paired bootstrap over queries, and draws of its permutation tests."""
    policies: list[EvaluatedPolicy] = Field(default_factory=list)
    """What workflows/evaluate.py compares (docs/evaluation.md); training ignores it."""
    recorded_only: bool = False
    """Only queries with a recorded answer; in workflows/evaluate.py only."""
    verdicts: Places = Field(default_factory=list)
    """Files or urls of stored verdicts on these policies by a judge, for the judged pass rate (docs/evaluation.md)."""
    judged: bool = False
    """Whether workflows/evaluate.py asks the judge of rewards.judge for a verdict on each greedy episode and for the
    better of each two."""
    search: SearchConfig = SearchConfig()

    @model_validator(mode="after")
    def _distinct(self) -> EvaluationConfig:
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"policies need names of their own, got {names}")
        return self

    @property
    def policy_count(self) -> int:
        """Number of policies to compare. Raises ConfigError if no policy is named."""
        if not self.policies:
            raise ConfigError("evaluation.policies is empty: name the policies to compare (docs/evaluation.md)")
        return len(self.policies)


class PromotionConfig(StrictModel):
    """When workflows/retrain.py puts a model in the place of the one in service (docs/retraining.md)."""

    min_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """The paired 95% interval of the gain in pass rate has to lie above this."""
    max_category_loss: Share = 0.05
    """Pass rate that a category of tools may lose; a loss that may have come by chance does not count."""
    max_invalid_rise: Share = 0.0
    """The paired 95% interval of the rise in the rate of invalid calls must not lie above this."""
    min_tasks: Positive = 30
    """Held-out tasks below which nothing is promoted."""
    approval: bool = False
    """Whether a person is asked before a model is promoted."""
    approval_hours: Annotated[float, Field(gt=0)] = 20.0
    """Hours that the question waits; after that the run has failed."""
