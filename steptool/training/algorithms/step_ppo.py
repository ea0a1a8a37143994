"""Step-grained PPO: one round of updates on the trajectories that the current policy has just made.

The models score every action token once; `credit` turns step rewards, values and the divergence from the reference into
advantages; then a few shuffled passes minimise, over action tokens alone,

    E[ w * -min(rho A, clip(rho) A) ] + value_coef * E[ max((V - R)^2, (clip(V) - R)^2) / 2 ]
    + nll_coef * E_solved[ -log pi ] - entropy_coef * E[ H(pi) ],

the last two if so configured; the mean of the third is over the tokens of solved episodes alone (the language-model
loss on positive examples of VAPO, Yue et al. 2025, arXiv 2504.05118).

rho = pi / pi_old, where the models themselves score pi_old at the start of the round; the log-probabilities that the
engine stored with the tokens enter by the importance weight w alone, which `ppo.importance: none` leaves at 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from steptool.config import Config
from steptool.models.actor import ActionOutputs, Actor
from steptool.records import Advantage, Metric, StepReward, Trajectory
from steptool.rewards.compose import RunningScale, compose_round
from steptool.training import credit
from steptool.training.algorithms.base import Algorithm, Selection, find_solved_ids
from steptool.training.scores import Floats, Scores, compute_importance_weights, read_engine_log_probs
from steptool.training.trainer import ForwardPass, LossTerms, Objective


@dataclass(frozen=True)
class Experience:
    """What the losses need of the action tokens [N] of a round, on the device of the model; float32."""

    old_log_probs_N: Tensor
    reference_N: Tensor
    old_values_N: Tensor
    advantages_N: Tensor
    """Whitened over the action tokens of the round if the configuration says so."""
    returns_N: Tensor
    value_mask_N: Tensor
    """1 where the value head learns, 0 elsewhere."""
    weights_N: Tensor
    """Importance weights of the policy loss (steptool.training.scores)."""
    solved_N: Tensor
    """1 for tokens of solved trajectories, 0 elsewhere."""
    steps_N: Tensor
    """Number of the step of each token, trajectory after trajectory; int64."""

    def take(self, places_n: Tensor) -> Experience:
        """The experience of some of the tokens."""
        return Experience(*(tensor[places_n] for tensor in vars(self).values()))


class StepPPO(Algorithm, Objective):
    """Learns from the composed rewards of every step."""

    stage = "ppo"
    needs_scores = True
    sums = (
        "tokens", "policy", "value", "kl", "clipped", "entropy", "targets", "return", "return2", "error", "error2"
    )  # fmt: skip
    maxima = ("ratio_deviation",)

    def __init__(self, config: Config, round_index: int) -> None:
        super().__init__(config, round_index)
        self.needs_value_head = self.learns_values(config)
        self.trains_policy = not self.needs_value_head or round_index >= config.ppo.value_warmup_rounds
        self._experience: Experience | None = None

    def select(
        self, trajectories: Sequence[Trajectory], rewards: Sequence[StepReward], scale: RunningScale
    ) -> Selection:
        """The trajectories that have steps and complete rewards.

        Raises ValueError without such a trajectory, or if a trajectory has another number of rewards than of steps.
        """
        settings = self.config.rewards
        scale, composed = compose_round(trajectories, rewards, settings, self.config.ppo.reward, scale)
        weights = scale.weights if settings.weights == "calibrated" else {}
        metrics = [Metric(self.stage, self.round_index, 0, f"weight_{name}", value) for name, value in weights.items()]
        pairs = [(t, r) for t, r in zip(trajectories, composed, strict=True) if r is not None and t.spans]
        for trajectory, reward_T in pairs:
            if len(reward_T) != len(trajectory.spans):
                raise ValueError(
                    f"trajectory {trajectory.trajectory_id}: expected one reward for each of its "
                    f"{len(trajectory.spans)} steps, got {len(reward_T)}"
                )
        if not pairs:
            raise ValueError(
                f"none of the {len(trajectories)} trajectories has steps and complete rewards: there is nothing to "
                "train on; look at the missing components in the rewards of this round"
            )
        left_out, solved = len(trajectories) - len(pairs), find_solved_ids(rewards)
        return Selection([t for t, _ in pairs], left_out, [r for _, r in pairs], solved, scale, metrics)

    def prepare(self, selection: Selection, scores: Scores, device: torch.device) -> list[Advantage]:
        """Turn rewards, values and the divergence from the reference into advantages and returns."""
        trajectories = selection.trajectories
        lengths = [credit.count_step_tokens(t.spans) for t in trajectories]
        lengths_S = np.concatenate(lengths)
        estimate = self.assign(selection, lengths, scores)
        solved_B = [t.trajectory_id in selection.solved for t in trajectories]
        self._experience = make_experience(
            device,
            old_log_probs_N=scores.log_probs_N,
            reference_N=scores.reference_N,
            old_values_N=scores.values_N,
            advantages_N=credit.shape(estimate.advantages_N, lengths_S, scores.log_probs_N, self.config.credit),
            returns_N=estimate.returns_N,
            value_mask_N=estimate.value_mask_N,
            weights_N=compute_importance_weights(
                scores.log_probs_N, read_engine_log_probs(trajectories), self.config.ppo
            ),
            solved_N=np.repeat(solved_B, [t.action_tokens for t in trajectories]),
            steps_N=np.repeat(np.arange(len(lengths_S)), lengths_S),
        )
        kl_N = scores.log_probs_N - scores.reference_N
        return average_advantages(selection, kl_N, estimate.values_N, estimate.advantages_N)

    @staticmethod
    def learns_values(config: Config) -> bool:
        """Whether a value head says what states are worth."""
        return config.credit.value == "head"

    def assign(self, selection: Selection, lengths: Sequence[credit.Ints], scores: Scores) -> credit.Credit:
        """Credit of the action tokens; `lengths` holds those of each trajectory's steps."""
        kl_N = scores.log_probs_N - scores.reference_N
        settings = self.config.credit
        groups = (
            credit.group_trajectories(selection.trajectories, settings.state)
            if settings.value == "group_mean"
            else None
        )
        return credit.assign(
            selection.rewards, lengths, scores.values_N, kl_N, self.config.ppo.kl_coef, settings, groups
        )

    def loss(self, actor: Actor, part: ForwardPass) -> LossTerms:
        """Clipped policy loss per action token and clipped value loss per value target."""
        if self._experience is None:
            raise RuntimeError("there are no advantages to train on yet: call prepare first")
        ppo, experience = self.config.ppo, self._experience.take(part.places_n)
        out = actor(part.batch)
        values_N = actor.compute_values(out.states_NH) if actor.head else torch.zeros_like(out.log_probs_N)
        ratio_N = torch.exp(out.log_probs_N - experience.old_log_probs_N)
        if ppo.ratio == "step":
            ratio_N = step_ratio(out.log_probs_N - experience.old_log_probs_N, experience.steps_N)
        policy_N = experience.weights_N * policy_loss(ratio_N, experience.advantages_N, ppo.clip, ppo.clip_high)
        value_N = (
            value_loss(values_N, experience.old_values_N, experience.returns_N, ppo.clip_value)
            * experience.value_mask_N
        )
        loss = ppo.value_coef * value_N.sum() / _count(self._experience.value_mask_N, part)
        if self.trains_policy:
            loss = loss + (policy_N.sum() + self.penalty(ratio_N, out, experience)) / float(len(part.step_places_n))
            if ppo.nll_coef:
                solved = _count(self._experience.solved_N, part)
                loss = loss - ppo.nll_coef * (out.log_probs_N * experience.solved_N).sum() / solved
        away_N = (ratio_N - 1.0).abs().detach()
        reach_N = torch.where(ratio_N > 1.0, ppo.clip_high or ppo.clip, ppo.clip)
        sums = _sum_figures(policy_N, value_N, values_N, away_N > reach_N, out, experience)
        return LossTerms(loss, sums, {"ratio_deviation": away_N.max()})

    def penalty(self, ratio_N: Tensor, out: ActionOutputs, experience: Experience) -> Tensor | float:
        """What is added to the policy loss of the tokens: minus the entropy bonus."""
        coef = self.config.ppo.entropy_coef
        return coef * entropy_loss(ratio_N, out.log_probs_N, out.entropy_N).sum() if coef else 0.0

    def report(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Means over the tokens of an optimizer step (docs/how-it-works.md)."""
        tokens, targets = max(1.0, figures["tokens"]), max(1.0, figures["targets"])
        variance = figures["return2"] / targets - (figures["return"] / targets) ** 2
        unexplained = figures["error2"] / targets - (figures["error"] / targets) ** 2
        return {
            "policy_loss": figures["policy"] / tokens,
            "value_loss": figures["value"] / targets,
            "kl": figures["kl"] / tokens,
            "ratio_deviation": figures["ratio_deviation"],
            "clip_fraction": figures["clipped"] / tokens,
            "entropy": figures["entropy"] / tokens,
            "explained_variance": 1.0 - unexplained / variance if variance > 1e-12 else 0.0,
            "tokens": figures["tokens"],
        }


def make_experience(device: torch.device, *, steps_N: npt.NDArray[np.int64], **arrays: npt.NDArray[Any]) -> Experience:
    """The arrays, one entry per action token, on a device."""
    tensors = {name: torch.tensor(array_N, dtype=torch.float32, device=device) for name, array_N in arrays.items()}
    return Experience(**tensors, steps_N=torch.from_numpy(steps_N).to(device))


def _count(mask_N: Tensor, part: ForwardPass) -> Tensor:
    """Tokens of the whole optimizer step that a mask holds, at least 1."""
    return mask_N[part.step_places_n].sum().clamp(min=1.0)


@torch.no_grad()
def _sum_figures(
    policy_N: Tensor, value_N: Tensor, values_N: Tensor, clipped_N: Tensor, out: ActionOutputs, experience: Experience
) -> dict[str, Tensor]:
    returns_N = experience.returns_N * experience.value_mask_N
    errors_N = (experience.returns_N - values_N) * experience.value_mask_N
    per_token = {
        "tokens": torch.ones_like(policy_N),
        "policy": policy_N,
        "value": value_N,
        "kl": experience.old_log_probs_N - experience.reference_N,
        "clipped": clipped_N,
        "entropy": out.entropy_N,
        "targets": experience.value_mask_N,
        "return": returns_N,
        "return2": returns_N**2,
        "error": errors_N,
        "error2": errors_N**2,
    }
    return {name: tensor_N.sum(dtype=torch.float64) for name, tensor_N in per_token.items()}


def average_advantages(selection: Selection, kl_N: Floats, values_N: Floats, advantages_N: Floats) -> list[Advantage]:
    """The advantage of each step. The arrays hold one entry per action token of the selection."""
    advantages = []
    start = 0
    for trajectory, rewards_T in zip(selection.trajectories, selection.rewards, strict=True):
        for step, ((first, last), reward) in enumerate(zip(trajectory.spans, rewards_T, strict=True)):
            tokens = slice(start, start + last - first)
            advantages.append(
                Advantage(
                    trajectory_id=trajectory.trajectory_id,
                    step=step,
                    reward=float(reward),
                    kl=float(kl_N[tokens].sum()),
                    value=float(values_N[start]),
                    advantage=float(np.mean(advantages_N[tokens])),
                )
            )
            start = tokens.stop
    return advantages


def policy_loss(ratio_N: Tensor, advantages_N: Tensor, clip: float, clip_high: float = 0.0) -> Tensor:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps_high) A) for each token, with rho = pi(a|s) / pi_old(a|s).

    Schulman et al. 2017 (arXiv 1707.06347, equation 7); an upper clip of its own lets unlikely tokens grow further
    (clip-higher of DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.1). clip_high 0: eps_high = eps.
    """
    clipped_N = ratio_N.clamp(1.0 - clip, 1.0 + (clip_high or clip))
    return -torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)


def step_ratio(log_ratio_N: Tensor, steps_N: Tensor) -> Tensor:
    """The ratio [N] of the step of each token: the geometric mean of the ratios of its tokens.

    s_t = exp(mean over the tokens i of step t of log rho_i), as GSPO does it for whole responses (Zheng et al. 2025,
    arXiv 2507.18071). Tokens with the same number in `steps_N` belong to one step, all of whose tokens are
    here.
    """
    _, places_N, counts_S = torch.unique(steps_N, return_inverse=True, return_counts=True)
    sums_S = torch.zeros(len(counts_S), dtype=log_ratio_N.dtype, device=log_ratio_N.device)
    return torch.exp(sums_S.index_add(0, places_N, log_ratio_N) / counts_S)[places_N]


def entropy_loss(ratio_N: Tensor, log_probs_N: Tensor, entropy_N: Tensor) -> Tensor:
    """A loss [N] whose gradient is that of -H(pi(.|s)), for actions that were sampled from pi_old.

    grad H = E_pi[(-log pi(a|s) - H) grad log pi(a|s)]: the score function, with H itself as the baseline. So

    loss = -rho * (-log pi(a|s) - H),    the bracket without gradient.

    It needs no gradient of the entropy over the whole vocabulary.
    """
    return -ratio_N * (-log_probs_N - entropy_N).detach()


def value_loss(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip: float) -> Tensor:
    """max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2) / 2 for each token."""
    clipped_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
    return 0.5 * torch.maximum((values_N - returns_N) ** 2, (clipped_N - returns_N) ** 2)
