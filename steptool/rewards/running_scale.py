"""The running scale of rewards: their spread over a round and all rounds before it.

The state travels from round to round in the history of the run, as metrics of the stage "rewards", so that a
round that is run again finds the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from steptool.records import Metric

Rewards = npt.NDArray[np.float64]
STAGE = "rewards"
_LEAST = 1e-8


@dataclass(frozen=True)
class RunningScale:
    """Count, mean and sum of squared deviations of the rewards seen so far."""

    count: float = 0.0
    mean: float = 0.0
    deviations: float = 0.0

    @classmethod
    def before(cls, round: int, history: Iterable[Metric]) -> RunningScale:
        """The state that the round before this one left in a history; empty where there is none."""
        state = {m.name: m.value for m in history if (m.stage, m.round) == (STAGE, round - 1)}
        return cls(**state)

    def after(self, rewards: Iterable[Rewards | None]) -> RunningScale:
        """The state with a round's rewards added (Chan, Golub and LeVeque 1979)."""
        known = [r for r in rewards if r is not None]
        values = np.concatenate(known) if known else np.zeros(0)
        if not values.size:
            return self
        count, gap = self.count + values.size, float(values.mean()) - self.mean
        spread = float(((values - values.mean()) ** 2).sum())
        return RunningScale(
            count,
            self.mean + gap * values.size / count,
            self.deviations + spread + gap**2 * self.count * values.size / count,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation of the rewards; 1 while they do not vary."""
        found = float(np.sqrt(self.deviations / self.count)) if self.count else 0.0
        return found if found > _LEAST else 1.0

    def apply(self, rewards: Sequence[Rewards | None]) -> list[Rewards | None]:
        """Rewards divided by the deviation. No mean is taken off: that would pay or fine every further step."""
        return [None if r is None else r / self.deviation for r in rewards]

    def metrics(self, round: int) -> list[Metric]:
        """The state after a round as metrics."""
        return [Metric(STAGE, round, -1, name, float(value)) for name, value in asdict(self).items()]
