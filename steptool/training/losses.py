"""The losses of the algorithms, per action token or per pair of trajectories."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


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


def kl_loss(log_probs_N: Tensor, reference_N: Tensor) -> Tensor:
    """r - log r - 1 with r = pi_ref / pi: GRPO's penalty for leaving the reference (arXiv 2402.03300, equation 4)."""
    log_r_N = reference_N - log_probs_N
    return torch.exp(log_r_N) - log_r_N - 1.0


def preference_loss(better_P: Tensor, worse_P: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * (better - worse)) for each pair, of log pi(tau) - log pi_ref(tau) of both trajectories.

    DPO (Rafailov et al. 2023, arXiv 2305.18290, equation 7); on trajectories, over the tokens of the assistant, ETO
    (Song et al. 2024, arXiv 2403.02502).
    """
    return -logsigmoid(beta * (better_P - worse_P))


def value_loss(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip: float) -> Tensor:
    """max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2) / 2 for each token."""
    clipped_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
    return 0.5 * torch.maximum((values_N - returns_N) ** 2, (clipped_N - returns_N) ** 2)
