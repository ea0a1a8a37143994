from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from steptool.models.optimizer import fill_buckets, join_halves, load_moments, make_adamw, save_moments, split_halves


def model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1, bias=False)).to(dtype)


def gradients(parameters: list[nn.Parameter], step: int) -> None:
    """The same float32 gradients whatever the precision of the parameters."""
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_float32_weights_are_updated_as_by_torch() -> None:
    actual, expected = model(torch.float32), model(torch.float32)
    optimizer = make_adamw(actual, 1e-2, weight_decay=0.01)
    reference = torch.optim.AdamW(expected.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    for step in range(5):
        for net, adam in ((actual, optimizer), (expected, reference)):
            gradients([*net.parameters()], step)
            adam.step()
    for a, b in zip(actual.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bfloat16_weights_have_float32_weights_behind_them() -> None:
    """Updates of a thousandth of a weight, which bfloat16 alone would lose, add up to what float32 gives."""
    half = model(torch.bfloat16)
    full = model(torch.bfloat16).float()
    optimizer = make_adamw(half, 1e-5)
    reference = torch.optim.AdamW(full.parameters(), lr=1e-5, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    start = [p.clone() for p in half.parameters()]
    for step in range(50):
        for net, adam in ((half, optimizer), (full, reference)):
            gradients([*net.parameters()], step)
            adam.step()
    for weight, expected in zip(half.parameters(), full.parameters(), strict=True):
        assert torch.equal(join_halves(weight, optimizer.state[weight]["low"]), expected)
        assert (
            torch.equal(weight, expected.bfloat16()) or (weight - expected).abs().max() < 2**-8 * expected.abs().max()
        )
    assert any(not torch.equal(a, b) for a, b in zip(half.parameters(), start, strict=True))


def test_bfloat16_moments_change_an_update_by_their_rounding() -> None:
    """Moments have eight bits, so that a weight moves by what float32 moments give, to within a few percent."""
    nets, moved = [model(torch.bfloat16), model(torch.bfloat16)], []
    optimizers = [make_adamw(nets[0], 1e-3), make_adamw(nets[1], 1e-3, moments="bfloat16")]
    for net, optimizer in zip(nets, optimizers, strict=True):
        start = [p.float() for p in net.parameters()]
        for step in range(50):
            gradients([*net.parameters()], step)
            optimizer.step()
        full = [join_halves(p, optimizer.state[p]["low"]) for p in net.parameters()]
        moved.append(torch.cat([(after - before).flatten() for after, before in zip(full, start, strict=True)]))
    assert 0 < (moved[1] - moved[0]).norm() < 0.03 * moved[0].norm()
    first = [next(net.parameters()) for net in nets]
    assert [o.state[w]["exp_avg_sq"].dtype for o, w in zip(optimizers, first, strict=True)] == [
        torch.float32,
        torch.bfloat16,
    ]


@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32, allow_subnormal=False)))
def test_halves_lose_nothing(numbers: list[float]) -> None:
    full = torch.tensor(numbers, dtype=torch.float32)
    weight, low = torch.zeros_like(full, dtype=torch.bfloat16), torch.zeros_like(full, dtype=torch.int16)
    split_halves(full, weight, low)
    assert torch.equal(join_halves(weight, low), full)
    assert ((weight.double() - full.double()).abs() <= 2**-8 * full.double().abs() + 1e-38).all()


def test_buckets_keep_the_order_and_a_large_item_comes_alone() -> None:
    assert list(fill_buckets([3, 4, 2, 9, 1, 6], float, 7)) == [[3, 4], [2], [9], [1, 6]]
    assert list(fill_buckets([], float, 7)) == []


def test_gradients_of_bfloat16_weights_add_up_in_float32() -> None:
    net = nn.Linear(1, 1, bias=False).bfloat16()
    make_adamw(net, 1e-3)
    for number in (1.0, 2.0**-9):  # the sum needs ten bits; bfloat16 has eight
        (net.weight * number).sum().backward()
    assert net.weight.grad is not None
    assert net.weight.grad.item() == 1.0 + 2.0**-9


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_the_state_survives_the_folder(tmp_path: Path, moments: Literal["float32", "bfloat16"]) -> None:
    net = model(torch.bfloat16)
    optimizer = make_adamw(net, 1e-3, moments=moments)
    gradients([*net.parameters()], 0)
    optimizer.step()
    save_moments(optimizer, net, tmp_path)
    stored = load_file(tmp_path / "training/optimizer.safetensors")
    assert {key.split("/")[0] for key in stored} == {"step", "exp_avg", "exp_avg_sq", "low"}
    again = make_adamw(net, 1e-3, moments=moments)
    load_moments(again, net, tmp_path)
    for parameter in net.parameters():
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(again.state[parameter][key], value)
