"""The running scale of rewards: their spread over a round and all rounds before it.

Each round takes the state of the round before and hands on its own, as a file, so that a round that is run again
finds the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Rewards = npt.NDArray[np.float64]
_LEAST = 1e-8


@dataclass(frozen=True)
class RunningScale:
    """Count, mean and sum of squared deviations of the rewards seen so far."""

    count: float = 0.0
    mean: float = 0.0
    deviations: float = 0.0

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
        deviation = float(np.sqrt(self.deviations / self.count)) if self.count else 0.0
        return deviation if deviation > _LEAST else 1.0

    def apply(self, rewards: Sequence[Rewards | None]) -> list[Rewards | None]:
        """Rewards divided by the deviation. No mean is taken off: that would pay or fine every further step."""
        return [None if r is None else r / self.deviation for r in rewards]

    def save(self, path: Path) -> Path:
        """Write the state into a JSON file."""
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> RunningScale:
        """Read the state that `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


NO_REWARDS_SEEN = RunningScale()
"""The scale before the first round."""
