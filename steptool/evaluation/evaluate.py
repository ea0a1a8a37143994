"""The evaluation of a policy: it plays the queries, greedily and sampled, and its episodes are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from steptool.config import ToolsConfig
from steptool.environments.base import Environment
from steptool.evaluation.measures import measure_episodes
from steptool.records import Evaluation, Query, Trajectory
from steptool.rollout.policy import Policy
from steptool.rollout.runner import DEFAULT_LIMITS, Progress, roll_out
from steptool.rollout.turns import Decoding


@dataclass(frozen=True)
class PolicyEvaluation:
    """The episodes of one policy and their measures."""

    rows: list[Evaluation] = field(default_factory=list)
    """Rows of Evaluation, one for each episode."""
    greedy: list[Trajectory] = field(default_factory=list)
    sampled: list[Trajectory] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    """What the endpoint said in each episode that it did not continue."""

    @property
    def check_errors(self) -> list[str]:
        """Why the environment's check failed, of each episode where it did."""
        return [t.check_error for t in (*self.greedy, *self.sampled) if t.check_error]

    @property
    def tokens(self) -> int:
        """Tokens that the policy wrote."""
        return sum(row.tokens for row in self.rows)

    @property
    def greedy_verdicts(self) -> list[float | None]:
        """The verdicts on the greedy episodes."""
        return [row.passed for row in self.rows if row.decoding == Decoding.GREEDY]


def evaluate_policy(
    policy: Policy,
    queries: Sequence[Query],
    environment: Environment,
    *,
    sampled_repeats: int = 0,
    limits: ToolsConfig = DEFAULT_LIMITS,
    progress: Callable[[Decoding], Progress] | None = None,
) -> PolicyEvaluation:
    """Play every query greedily once and sampled `sampled_repeats` times, and measure the episodes.

    `progress` gives the callback for one pass over the queries. Raises what `roll_out` raises.
    """
    result = PolicyEvaluation()
    passes = [(Decoding.GREEDY, 0), *((Decoding.SAMPLED, repeat) for repeat in range(sampled_repeats))]
    for decoding, repeat in passes:
        played = roll_out(
            policy,
            queries,
            environment,
            decoding=decoding,
            sample=repeat,
            limits=limits,
            progress=progress(decoding) if progress else None,
        )
        trajectories = [episode.trajectory for episode in played]
        costs = {episode.trajectory.trajectory_id: episode.cost for episode in played}
        result.rows.extend(measure_episodes(queries, trajectories, policy.name, decoding, repeat, costs))
        (result.greedy if decoding is Decoding.GREEDY else result.sampled).extend(trajectories)
        result.refusals.extend(episode.refusal for episode in played if episode.refusal)
    return result
