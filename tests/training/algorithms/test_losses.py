import math

import pytest
import torch

from steptool.training.algorithms.grpo import kl_loss
from steptool.training.algorithms.step_ppo import entropy_loss, policy_loss, step_ratio, value_loss


def test_policy_loss_by_hand() -> None:
    ratio = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    # clip .2: min(1.5, 1.2) = 1.2; min(-1.5, -1.2) = -1.5; min(.5, .8) = .5; min(-.5, -.8) = -.8; 1.1 is inside
    expected = torch.tensor([-2.0, -1.2, 1.5, -0.5, 0.8, -1.1])
    torch.testing.assert_close(policy_loss(ratio, advantage, 0.2), expected)


def test_policy_gradient_stops_where_the_ratio_has_gone_far_enough() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], requires_grad=True)
    policy_loss(ratio, torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2).sum().backward()
    assert ratio.grad is not None
    assert ratio.grad.tolist() == [0.0, 1.0, -1.0, 0.0]


def test_value_loss_by_hand() -> None:
    values, old, returns = torch.tensor([1.0, 0.1, -1.0]), torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    # first: unclipped error 0, clipped value .2 -> .8^2 / 2 = .32; second: inside, .9^2 / 2; third: 2^2 / 2 > 1.2^2 / 2
    torch.testing.assert_close(value_loss(values, old, returns, 0.2), torch.tensor([0.32, 0.405, 2.0]))


def test_an_upper_clip_of_its_own_lets_ratios_grow_further() -> None:
    ratio, advantage = torch.tensor([1.3, 1.5, 0.5]), torch.tensor([1.0, 1.0, -1.0])
    torch.testing.assert_close(policy_loss(ratio, advantage, 0.2, 0.4), torch.tensor([-1.3, -1.4, 0.8]))
    torch.testing.assert_close(policy_loss(ratio, advantage, 0.2), torch.tensor([-1.2, -1.2, 0.8]))


def test_the_ratio_of_a_step_is_the_geometric_mean_of_its_tokens() -> None:
    log_ratio = torch.tensor([math.log(2), math.log(8), math.log(3)], requires_grad=True)
    ratio = step_ratio(log_ratio, torch.tensor([7, 7, 9]))
    torch.testing.assert_close(ratio, torch.tensor([4.0, 4.0, 3.0]))
    ratio[0].backward()  # d exp(mean) / d log ratio of each of two tokens: 4 / 2
    torch.testing.assert_close(log_ratio.grad, torch.tensor([2.0, 2.0, 0.0]))


def test_the_entropy_loss_has_the_gradient_of_the_entropy() -> None:
    """The expectation over all actions, each weighed by its probability."""
    logits = torch.tensor([0.3, -1.0, 2.0], requires_grad=True)
    log_probs = logits.log_softmax(0)
    entropy = -(log_probs.exp() * log_probs).sum()
    (expected,) = torch.autograd.grad(-entropy, logits, retain_graph=True)
    ratio = torch.exp(log_probs - log_probs.detach())
    losses = entropy_loss(ratio, log_probs, entropy.detach().expand(3))
    (gradient,) = torch.autograd.grad((log_probs.exp().detach() * losses).sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_the_penalty_for_leaving_the_reference_by_hand() -> None:
    # pi_ref / pi = 2 and 1: 2 - log 2 - 1 and 0
    penalty = kl_loss(torch.tensor([0.0, -1.0]), torch.tensor([math.log(2), -1.0]))
    assert penalty.tolist() == pytest.approx([1 - math.log(2), 0.0])
