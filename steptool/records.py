"""The words that every layer speaks: queries, calls, steps and trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

FINISH = "Finish"
"""Name of the call that ends an episode: Finish(return_type, final_answer), as in ToolBench."""

Message = dict[str, Any]
"""One chat message in OpenAI's form (role, content, tool_calls)."""
ToolSchema = dict[str, Any]
"""One tool in OpenAI's form: {"type": "function", "function": {"name", "description", "parameters"}}."""


class StopReason(StrEnum):
    """Why an episode ended."""

    FINISHED = "finished"
    GAVE_UP = "gave_up"
    STEP_LIMIT = "step_limit"
    CONTEXT_LIMIT = "context_limit"
    MALFORMED = "malformed"
    REFUSED = "refused"
    """The endpoint that plays would not go on: a filter of contents, a conversation that it does not take."""


class StepStatus(StrEnum):
    """What became of one assistant step."""

    OK = "ok"
    """The tool ran and did not fail."""
    TOOL_ERROR = "tool_error"
    """The tool ran and reported an error."""
    INVALID_ARGUMENTS = "invalid_arguments"
    """The arguments do not satisfy the tool's JSON schema."""
    UNKNOWN_TOOL = "unknown_tool"
    """No such tool was offered."""
    MALFORMED = "malformed"
    """The text holds no call that can be read."""
    FINISH = "finish"
    """A well-formed Finish."""


@dataclass(frozen=True)
class ToolCall:
    """A call of one tool with its parsed arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One assistant step: the call that was read from its tokens, what became of it, and what came back."""

    call: ToolCall | None
    status: StepStatus
    observation: str
    """Text returned to the model; empty for a Finish."""


@dataclass(frozen=True)
class Query:
    """A task: an instruction, the tools that may be used, and what is known about its solution.

    `reference` may hold "answer" (str), "calls" (list of {"name", "arguments"}) and "tools" (list of names);
    an environment may keep more under its own name.
    """

    query_id: str
    split: str
    environment: str
    instruction: str
    tools: tuple[ToolSchema, ...]
    reference: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    tier: str = ""
    """Group of difficulty or origin by which results are broken down."""
    max_steps: int = 0
    """Assistant steps allowed, Finish included; 0 leaves the limit to the rollout's configuration."""


@dataclass(frozen=True)
class Trajectory:
    """One episode: exactly the tokens that were seen and sampled, and what they did.

    `input_ids` [L] int32 holds prompt, assistant and observation tokens; `spans` gives [start, end) of each assistant
    step within it (the end-of-turn token included); `logprobs` [sum(end - start)] float32 holds the behaviour
    log-probabilities of the tokens inside the spans, packed end to end (natural log, at temperature 1).
    """

    trajectory_id: str
    query_id: str
    environment: str
    tier: str
    policy: str
    round: int
    sample: int
    temperature: float
    messages: Sequence[Message]
    input_ids: npt.NDArray[np.int32]
    spans: Sequence[tuple[int, int]]
    logprobs: npt.NDArray[np.float32]
    steps: Sequence[Step]
    stop_reason: StopReason
    final_answer: str | None
    solved: float | None
    """The environment's own verdict in [0, 1]; None where the environment has none."""
    seconds: float
    """Wall-clock seconds from reset to stop (episodes of a batch overlap)."""
    abandoned_turns: int = 0
    """Turns sampled on other branches of the search that found this path; 0 for a chain."""
    abandoned_tokens: int = 0
    """Tokens sampled on other branches."""

    @property
    def action_tokens(self) -> int:
        """Number of sampled tokens."""
        return sum(end - start for start, end in self.spans)

    @property
    def sampled_turns(self) -> int:
        """Number of turns that the policy was asked for, those on other branches included."""
        return len(self.steps) + self.abandoned_turns

    @property
    def sampled_tokens(self) -> int:
        """Number of tokens sampled in all, those on other branches included: what the episode cost."""
        return self.action_tokens + self.abandoned_tokens
