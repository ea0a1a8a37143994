"""Each method of configs/methods/ trains a real round on the desk, from the same tries."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file

from steptool.config import Config
from steptool.environments.desk.environment import DeskEnvironment
from steptool.environments.desk.tasks import draw_desk_queries
from steptool.models.load import load_codec, prepare_base
from steptool.pipeline.episodes import roll_out
from steptool.pipeline.learning import annotate
from steptool.policies.text_policies import list_reference_calls, play_back
from steptool.records import Query, StepReward, Trajectory
from steptool.training.rounds import train_round
from steptool.training.warm_start import encode_demonstrations

METHODS = Path(__file__).parents[3] / "configs/methods"
BASE = {
    "data": {"train_queries": 40, "validation_queries": 2, "heldout_queries": 2, "long_share": 0.0},
    "rollout": {"episodes": 24, "shards": 1, "temperature": 1.0},
    "rewards": {"annotator": "truth"},
    "ppo": {"rounds": 1, "value_warmup_rounds": 0, "batch_size": 12, "epochs": 1},
}


class Round(NamedTuple):
    model: Path
    trajectories: list[Trajectory]
    rewards: list[StepReward]


def configure(method: str) -> Config:
    sections = {name: dict(fields) for name, fields in BASE.items()}
    for name, fields in yaml.safe_load((METHODS / f"{method}.yaml").read_text(encoding="utf-8")).items():
        sections[name] = sections.get(name, {}) | fields
    return Config.model_validate(sections)


def solutions(queries: list[Query], model: Path, config: Config) -> list[Trajectory]:
    """The reference solutions as further tries, with their tokens."""
    episodes = play_back([(q, list_reference_calls(q)) for q in queries], DeskEnvironment(), limits=config.tools)
    codec = load_codec(model, config.policy.chat_format, config.policy.chat_date)
    return encode_demonstrations(queries, episodes, codec, config.policy.max_context).encoded


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Round:
    """Six queries with a solution and three sampled tries each."""
    torch.set_num_threads(1)
    config = Config.model_validate(BASE)
    model = prepare_base(config.policy, [], 0, tmp_path_factory.mktemp("base"))
    queries = [q for q in draw_desk_queries(config) if q.split == "train"][:6]
    sampled = roll_out(model, [q for q in queries for _ in range(3)], config)
    tries = sampled + [replace(t, sample=3) for t in solutions(queries, model, config)]
    return Round(model, tries, annotate(queries, tries, config))


@pytest.mark.parametrize("method", sorted(path.stem for path in METHODS.glob("*.yaml")))
def test_a_round_on_the_desk(played: Round, tmp_path: Path, method: str) -> None:
    config, tries = configure(method), played.trajectories
    result = train_round(
        played.model, played.model, tries, played.rewards, config=config, round_index=0, out_dir=tmp_path
    )
    assert result.note == "" and result.tokens > 0
    losses = [m.value for m in result.metrics if m.name == "loss"]
    assert losses and all(map(math.isfinite, losses))
    start, end = (load_file(folder / "model.safetensors") for folder in (played.model, tmp_path))
    assert any(not torch.equal(start[name], end[name]) for name in start)
    solved = {t.trajectory_id for t in tries if t.solved == 1.0}
    assert 6 <= len(solved) < len(tries)
    if method.startswith("rft"):
        assert result.left_out == len(tries) - len(solved)
    elif method != "eto":
        by_outcome = {True: [], False: []}
        for row in result.advantages:
            by_outcome[row.trajectory_id in solved].append(row.advantage)
        means = {outcome: sum(advantages) / len(advantages) for outcome, advantages in by_outcome.items()}
        assert (result.left_out, means[True] > means[False]) == (0, method != "archer")
