from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from steptool.models.actor import Actor
from steptool.models.load import load_model
from steptool.models.optimizer import make_adamw
from steptool.training.processes import PassLimit
from steptool.training.trainer import DivergedError, Settings, Supervised, Trainer, warm_up_and_cosine


@pytest.mark.parametrize(("steps", "warmup"), [(20, 2), (7, 0), (500, 50)])
def test_the_schedule_is_that_of_transformers(steps: int, warmup: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    expected = get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, steps, min_lr_rate=0.1)
    actual = warm_up_and_cosine(steps, warmup)
    for step in range(steps):
        assert 0.5 * actual(step) == expected.get_last_lr()[0]
        optimizer.step()
        expected.step()


def test_a_training_that_diverges_stops_at_the_update(model_dir: Path, make: SimpleNamespace) -> None:
    """Weights of 1e30 after the first update make the gradient of the second one not a number; no third is made."""
    actor, rows, losses = Actor(load_model(model_dir)), make.trajectories(4), []
    trainer = Trainer(
        actor,
        make_adamw(actor.policy, 1e30),
        Supervised(),
        rows,
        Settings(PassLimit(4), max_grad_norm=1.0),
        on_step=lambda step, loss: losses.append((step, loss)),
    )
    with pytest.raises(DivergedError, match="update 1: grad_norm is nan; the training has diverged"):
        trainer.train([trainer.lengths.argsort()] * 3)
    assert [step for step, _ in losses] == [1]
