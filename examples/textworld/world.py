"""TextWorld as an environment: each task names a game file, and the one tool `act` takes the player's commands.

    data: {source: jsonl, environment: "examples/textworld/world.py:TextWorld", paths: [games/tasks.jsonl]}
    tools: {settings: {games: games}}

`make_tasks.py` beside this file makes games and their tasks. Both need the package: pip install textworld.
"""

from pathlib import Path
from typing import Any

import textworld

from steptool.environments.base import Environment, Session, ToolResult
from steptool.records import Query, StepStatus, ToolCall, ToolSchema

ACT: ToolSchema = {
    "type": "function",
    "function": {
        "name": "act",
        "description": (
            "Do something in the game and read what happens: look, inventory, examine THING, go north, open THING, "
            "take THING from THING, put THING on THING, insert THING into THING, unlock THING with KEY, ..."
        ),
        "parameters": {
            "type": "object",
            "properties": {"command": {"type": "string", "description": "one command to the game"}},
            "required": ["command"],
            "additionalProperties": False,
        },
    },
}


class Game(Session):
    """One game, from its beginning. A command that the game does not allow at this point is a failed step."""

    def __init__(self, path: Path) -> None:
        infos = textworld.EnvInfos(feedback=True, won=True, lost=True, admissible_commands=True)
        self._game = textworld.start(str(path), infos)
        self._state: Any = self._game.reset()

    def call(self, call: ToolCall) -> ToolResult:
        """Send a command. The game ends the episode when it is won or lost."""
        if call.name != "act":
            return ToolResult(StepStatus.UNKNOWN_TOOL, f"there is no tool '{call.name}'; the only one is act")
        command = " ".join(str(call.arguments.get("command", "")).split())
        allowed = command in self._state.admissible_commands
        self._state, _, over = self._game.step(command)
        status = StepStatus.OK if allowed else StepStatus.TOOL_ERROR
        return ToolResult(status, without_prompt(self._state.feedback), ends_episode=over)

    def solved(self, final_answer: str | None) -> float:
        """1 for a game that was won."""
        return float(self._state.won)

    def close(self) -> None:
        """End the game."""
        self._game.close()


class TextWorld(Environment):
    """Games of a folder. A task names its file: "reference": {"game": "simple-1.z8"}."""

    name = "textworld"

    def __init__(self, games: str) -> None:
        self._games = Path(games)

    def reset(self, query: Query) -> Game:
        """Start the game of a task."""
        path = self._games / query.reference.environment["game"]
        if not path.is_file():
            raise ValueError(f"task '{query.query_id}': expected the game {path}, which is not there: make_tasks.py")
        return Game(path)

    def tools(self) -> list[ToolSchema]:
        """The only tool."""
        return [ACT]


def without_prompt(feedback: str) -> str:
    """What the game says, without the line where the next command is typed."""
    text, prompt, _ = feedback.rpartition("\n>")
    return (text if prompt else feedback).strip()
