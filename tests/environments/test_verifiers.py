"""The example with a taskset of the real package verifiers. make test-environments installs it and runs this file."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verifiers.v1", reason="the package verifiers is not installed: make test-environments")

from listed_tasks import finish, read_tasks
from steptool.config import Config, ConfigError
from steptool.environments.base import open_environment
from steptool.policies.text_policies import play_back
from steptool.records import FINISH, StepStatus, StopReason, ToolCall

EXAMPLE = Path(__file__).parents[2] / "examples" / "verifiers" / "library.py"


def config_of(**settings: Any) -> Config:
    data = {"source": "environment", "environment": "verifiers"}
    return Config.model_validate(
        {"data": data, "tools": {"settings": {"taskset": f"{EXAMPLE}:LibraryTaskset", **settings}}}
    )


def lend(title: str, reader: str) -> ToolCall:
    return ToolCall("library_lend", {"title": title, "reader": reader})


def find(title: str) -> ToolCall:
    return ToolCall("library_find", {"title": title})


def test_a_taskset_has_its_tasks_tools_and_rewards(tmp_path: Path) -> None:
    config = config_of()
    tasks = {query.instruction: query for query in read_tasks(config, tmp_path).values()}
    assert len(tasks) == 4
    emma = tasks["You work in a library.\n\nLend Emma to Ada. How many copies of it are left?"]
    assert [tool["function"]["name"] for tool in emma.tools] == ["library_find", "library_lend", FINISH]
    played = [
        (emma, [find("Emma"), lend("Emma", "Ada"), finish("2 copies")]),
        (emma, [lend("Emma", "Ada"), finish("5 copies")]),
        (emma, [find("Dune"), find(""), ToolCall("library_find", {}), lend("Emma", "Ben"), finish("2")]),
        (emma, [find("Emma"), finish("3")]),
    ]
    with closing(open_environment("verifiers", config)) as environment:
        episodes = play_back(played, environment, limits=config.tools)
    assert [episode.solved for episode in episodes] == [1.0, 0.75, 0.25, 0.0]
    assert {episode.stop_reason for episode in episodes} == {StopReason.FINISHED}
    assert [step.observation for step in episodes[0].steps[:2]] == ["3 copies of Emma", "lent to Ada"]
    failed = episodes[2].steps
    assert failed[0].observation == '{"error": "ValueError: no book has the title Dune"}'
    assert [step.status for step in failed[:4]] == [
        StepStatus.TOOL_ERROR, StepStatus.TOOL_ERROR, StepStatus.INVALID_ARGUMENTS, StepStatus.OK,
    ]  # fmt: skip


def test_a_limit_takes_the_first_tasks(tmp_path: Path) -> None:
    assert len(read_tasks(config_of(limit=2), tmp_path)) == 2


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"taskset": "no-such-taskset"}, "tools.settings.taskset: 'no-such-taskset' cannot be loaded"),
        ({"taskset": f"{EXAMPLE}:LibraryTask"}, "expected a subclass of verifiers.v1.Taskset"),
        ({"taskset": "textarena"}, "plays by rules of its own|cannot be loaded"),
        ({"config": {"seats": 3}}, "tools.settings.config"),
        ({"config": 3}, "tools.settings.config: expected an object of fields, got 3"),
        ({"limit": -1}, "tools.settings.limit: expected a number of tasks, or 0 for all, got -1"),
        ({"limit": "3"}, "tools.settings.limit: expected a number of tasks, or 0 for all, got '3'"),
    ],
)
def test_a_taskset_that_cannot_be_played_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        open_environment("verifiers", config_of(**settings))
