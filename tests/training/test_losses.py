import torch

from steptool.training.losses import policy_loss, value_loss


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
