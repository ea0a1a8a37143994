"""Credit of a large round of trajectories: the packed arrays against a plain Python loop over tokens, on one core.

Prints `credit tokens/s: OURS OTHER RATIO` for both levels of credit; whitening included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from steptool.config import CreditConfig
from steptool.training import credit

TRAJECTORIES, STEPS, TOKENS = 1000, 10, 40
KL_COEF = 0.02
Arrays = list[np.ndarray]


def make_round() -> tuple[Arrays, Arrays, Arrays, Arrays]:
    """Rewards, step lengths, values and KL of trajectories of 1 to 10 steps of 1 to 40 tokens."""
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, TOKENS, size=rng.integers(1, STEPS + 1)) for _ in range(TRAJECTORIES)]
    return (
        [rng.normal(size=len(x)) for x in lengths],
        lengths,
        [rng.normal(size=int(x.sum())).astype(np.float32) for x in lengths],
        [rng.normal(size=int(x.sum())).astype(np.float32) for x in lengths],
    )


def measure_ours(rewards: Arrays, lengths: Arrays, values: Arrays, kl: Arrays, config: CreditConfig) -> np.ndarray:
    """The library."""
    assigned = credit.assign(rewards, lengths, np.concatenate(values), np.concatenate(kl), KL_COEF, config)
    return credit.whiten(assigned.advantages_N)


def plain(rewards: Arrays, lengths: Arrays, values: Arrays, kl: Arrays, config: CreditConfig) -> list[list[float]]:
    """The same, written as the equations read, one token at a time."""
    raw = [
        _plain_one(r.tolist(), n.tolist(), v.tolist(), k.tolist(), config)
        for r, n, v, k in zip(rewards, lengths, values, kl, strict=True)
    ]
    flat = [a for advantages in raw for a in advantages]
    mean = sum(flat) / len(flat)
    scale = (sum((a - mean) ** 2 for a in flat) / len(flat) + 1e-8) ** 0.5
    return [[(a - mean) / scale for a in advantages] for advantages in raw]


def _plain_one(
    rewards: list[float], lengths: list[int], values: list[float], kl: list[float], config: CreditConfig
) -> list[float]:
    token_rewards = [-KL_COEF * k for k in kl]
    end = 0
    for reward, length in zip(rewards, lengths, strict=True):
        end += length
        token_rewards[end - 1] += reward
    if config.level == "token":
        return _plain_gae(token_rewards, values, config)
    starts = [sum(lengths[:t]) for t in range(len(lengths))]
    step_rewards = [sum(token_rewards[s : s + n]) for s, n in zip(starts, lengths, strict=True)]
    advantages = _plain_gae(step_rewards, [values[s] for s in starts], config)
    return [a for a, n in zip(advantages, lengths, strict=True) for _ in range(n)]


def _plain_gae(rewards: list[float], values: list[float], config: CreditConfig) -> list[float]:
    advantages = [0.0] * len(rewards)
    following = next_value = 0.0
    for i in range(len(rewards) - 1, -1, -1):
        delta = rewards[i] + config.gamma * next_value - values[i]
        following = delta + config.gamma * config.lam * following
        advantages[i] = following
        next_value = values[i]
    return advantages


def best_seconds(run: Callable[[], object], repeats: int = 7) -> float:
    """The fastest of several runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Check that both agree, then time them."""
    arrays = make_round()
    tokens = sum(len(x) for x in arrays[2])
    for name, config in (("credit", CreditConfig()), ("credit by step", CreditConfig(level="step"))):
        np.testing.assert_allclose(measure_ours(*arrays, config), np.concatenate(plain(*arrays, config)), atol=1e-9)
        fast = tokens / best_seconds(partial(measure_ours, *arrays, config))
        slow = tokens / best_seconds(partial(plain, *arrays, config), repeats=3)
        print(f"{name} tokens/s: {fast:.0f} {slow:.0f} {fast / slow:.1f}")


if __name__ == "__main__":
    main()
