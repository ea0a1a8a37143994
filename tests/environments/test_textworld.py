"""The example with TextWorld: its games are solved by their walkthroughs, and `rules` pays for what solves them.

`make textworld` installs the package into an environment of its own and runs this file there.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("textworld", reason="the package textworld is not installed: make textworld")

from benchmarks.annotators import add_disturbed_calls, agreement, play_tasks, separation
from steptool.config import Config
from steptool.environments.base import open_environment
from steptool.records import Query, Reference, StepStatus, StopReason, ToolCall
from steptool.rewards.annotators import annotate, make_annotator

pytestmark = pytest.mark.textworld
EXAMPLE = Path(__file__).parents[2] / "examples" / "textworld"


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two games of each kind, and their tasks."""
    folder = tmp_path_factory.mktemp("games")
    program = [sys.executable, str(EXAMPLE / "make_tasks.py"), str(folder), "--seeds", "2"]
    subprocess.run(program, check=True, timeout=600)
    return folder


@pytest.fixture(scope="module")
def config(games: Path) -> Config:
    """A configuration with these games."""
    data = {
        "source": "jsonl",
        "environment": f"{EXAMPLE}/world.py:TextWorld",
        "paths": [str(games / "tasks.jsonl")],
    }
    return Config.model_validate({"data": data, "tools": {"settings": {"games": str(games)}}})


def commands(*texts: str) -> Sequence[ToolCall]:
    return [ToolCall("act", {"command": text}) for text in texts]


def test_rules_pay_the_steps_of_solved_games(config: Config) -> None:
    queries, episodes = play_tasks(config, lambda calls: [calls])
    assert len(queries) == 10
    assert {(t.solved, t.stop_reason) for t in episodes} == {(1.0, StopReason.ENDED)}
    rows = annotate(queries, episodes, make_annotator("rules"))
    total = sum(row.contribution or 0 for row in rows)
    print(f"\nrules pay {total:.0f} of {len(rows)} steps of {len(episodes)} solved games")
    assert all(row.succ_calling == 1 for row in rows)
    assert total >= 0.85 * len(rows)


def test_rules_agree_with_the_walkthroughs_and_separate_solved_games(config: Config) -> None:
    queries, episodes = play_tasks(config, add_disturbed_calls)
    solved = {t.trajectory_id for t in episodes if t.solved == 1}
    assert 0 < len(solved) < len(episodes)
    rules, truth = (annotate(queries, episodes, make_annotator(name)) for name in ("rules", "truth"))
    every = {t.trajectory_id for t in episodes}
    kappas, area = [agreement(rules, truth, of) for of in (every, solved)], separation(rules, episodes)
    print(f"\n{len(episodes)} episodes: kappa {kappas[0]:.2f}, in solved ones {kappas[1]:.2f}, AUROC {area:.3f}")
    assert kappas[0] > 0.6 and kappas[1] > 0.4 and area > 0.75


def test_a_command_that_the_game_does_not_know_is_a_failed_step(config: Config, games: Path) -> None:
    task = json.loads((games / "tasks.jsonl").read_text(encoding="utf-8").splitlines()[0])
    query = Query("q", "train", "textworld", task["instruction"], (), Reference(environment={"game": "simple-1.z8"}))
    with closing(open_environment(config.data.environment, config)) as environment:
        session = environment.reset(query)
        with closing(session):
            looked, nonsense = (session.call(call) for call in commands("look", "take the moon"))
            assert looked.status is StepStatus.OK and "Exits" not in nonsense.observation
            assert nonsense.status is StepStatus.TOOL_ERROR and nonsense.observation
            assert "\n>" not in looked.observation and not looked.ends_episode
            assert session.call(ToolCall("fly", {})).status is StepStatus.UNKNOWN_TOOL
            assert session.solved(None) == 0
        with pytest.raises(ValueError, match=r"missing\.z8, which is not there"):
            environment.reset(Query("q", "train", "textworld", "?", (), Reference(environment={"game": "missing.z8"})))
