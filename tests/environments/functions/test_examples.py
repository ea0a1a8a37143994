"""The examples with a game and with a user who talks: solved by their reference solutions, and by nothing less."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from steptool.config import Config
from steptool.data.parsing import IngestLog
from steptool.data.sources import OwnTasksSource, SourceInputs
from steptool.data.tools import ToolCatalog
from steptool.environments.base import open_environment
from steptool.policies.text_policies import list_reference_calls, play_back
from steptool.records import FINISH, Query, StepStatus, StopReason, ToolCall, Trajectory

ROOT = Path(__file__).parents[3]
EXAMPLES = {"game": "House", "conversation": "Desk"}


def config_of(example: str, isolation: str = "thread") -> Config:
    folder = ROOT / "examples" / example
    return Config.model_validate(
        {
            "data": {"source": "jsonl", "environment": "functions", "paths": [str(folder / "tasks.jsonl")]},
            "tools": {"functions": f"{folder}/tools.py:{EXAMPLES[example]}", "isolation": isolation},
        }
    )


def read_tasks(config: Config) -> list[Query]:
    return list(OwnTasksSource().read_queries(SourceInputs(config, ToolCatalog(config), IngestLog())))


def play(config: Config, recordings: Sequence[tuple[Query, Sequence[ToolCall]]]) -> list[Trajectory]:
    with closing(open_environment("functions", config)) as environment:
        return play_back(recordings, environment, limits=config.tools)


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_reference_solutions_solve_the_tasks(example: str, isolation: str) -> None:
    config = config_of(example, isolation)
    episodes = play(config, [(query, list_reference_calls(query)) for query in read_tasks(config)])
    assert {trajectory.solved for trajectory in episodes} == {1.0}
    expected = StopReason.ENDED if example == "game" else StopReason.FINISHED
    assert {trajectory.stop_reason for trajectory in episodes} == {expected}
    assert {step.status for t in episodes for step in t.steps} <= {StepStatus.OK, StepStatus.FINISH}


def test_a_game_ends_by_itself_when_it_is_lost() -> None:
    config = config_of("game")
    down, look = ToolCall("go", {"direction": "down"}), ToolCall("look", {})
    (episodes,) = play(config, [(read_tasks(config)[0], [look, down, look, look])])
    assert (episodes.stop_reason, episodes.solved, len(episodes.steps)) == (StopReason.ENDED, 0.0, 2)
    assert episodes.steps[-1].observation.endswith("The game is over.")
    assert (episodes.messages[-1]["role"], episodes.messages[-1]["content"]) == ("tool", episodes.steps[-1].observation)


def test_the_user_of_a_conversation_speaks_after_each_answer() -> None:
    config = config_of("conversation")
    query = read_tasks(config)[0]
    (talk,) = play(config, [(query, list_reference_calls(query))])
    users = [message["content"] for message in talk.messages if message["role"] == "user"]
    assert users == ["I have to fly on another day.", "It is K7.", "On the third of December 2026."]
    finish = ToolCall(FINISH, {"return_type": "give_answer", "final_answer": "Done."})
    (silent,) = play(config, [(query, [finish] * 3)])
    assert (silent.stop_reason, silent.solved) == (StopReason.FINISHED, 0.0)
