"""Two environments of the package openenv, served as its own documentation says.

    python examples/openenv/server.py tools 8001      # tools behind its MCP environment
    python examples/openenv/server.py guess 8001      # actions of one kind: guess a number

They know nothing of StepTool, which plays them as `environment: openenv`. They need the package, in an environment of
its own: pip install openenv.
"""

import sys
from typing import Any

import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server import Action, CallToolAction, CallToolObservation, Environment, Observation, State
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.mcp_environment import MCPEnvironment
from pydantic import Field

STOCKS = {"train": [{"lamp": 2}, {"lamp": 5}], "test": [{"kettle": 7}]}
"""What is in store at the beginning of each task, by split."""


class Store(MCPEnvironment):
    """Sell everything: the reward is the share that was sold, and comes when the day is closed."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        server = FastMCP("store")
        self._stock: dict[str, int] = {}
        self._all = 0
        self._closed = False
        self._state = State()

        @server.tool
        def stock(item: str) -> int:
            """Say how many pieces of an item are in store."""
            if item not in self._stock:
                raise ValueError(f"there is no {item}")
            return self._stock[item]

        @server.tool
        def sell(item: str, pieces: int) -> str:
            """Sell pieces of an item."""
            if pieces > self._stock.get(item, 0):
                raise ValueError(f"there are only {self._stock.get(item, 0)}")
            self._stock[item] -= pieces
            return f"sold {pieces}"

        @server.tool
        def finish_day(note: str) -> str:
            """End the day with a note."""
            self._closed = True
            return f"good night: {note}"

        super().__init__(server)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **chosen: Any) -> Observation:
        """Fill the store for a task."""
        self._stock = dict(STOCKS[chosen.get("split", "train")][chosen.get("index", 0)])
        self._all, self._closed = sum(self._stock.values()), False
        self._state = State(episode_id=episode_id)
        return Observation()

    async def step_async(self, action: Action, timeout_s: float | None = None, **others: Any) -> Observation:
        """Call a tool; closing the day gives the reward."""
        observation = await super().step_async(action, timeout_s, **others)
        if isinstance(action, CallToolAction) and self._closed:
            observation.done = True
            observation.reward = 1 - sum(self._stock.values()) / self._all
        return observation

    def _step_impl(self, action: Action, timeout_s: float | None = None, **others: Any) -> Observation:
        raise ValueError("the store takes calls of its tools only")

    @property
    def state(self) -> State:
        """The number of steps."""
        return self._state

    def list_splits(self) -> list[str]:
        """The splits of its tasks."""
        return list(STOCKS)

    def num_tasks(self, split: str) -> int:
        """How many tasks a split has."""
        return len(STOCKS[split])

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """The tasks of a split."""
        items = [next(iter(stock)) for stock in STOCKS[split]]
        return [
            {"id": f"{split}-{index}", "question": f"Sell every {item}, then end the day."}
            for index, item in enumerate(items)
        ]


class Guess(Action):
    """Guess the number."""

    number: int = Field(description="your guess")


class Hint(Observation):
    """What is said to a guess."""

    text: str = ""


class GuessGame(Environment):
    """A number from 1 to 8, with hints; each guess costs an eighth."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._number, self._state = 0, State()

    def reset(self, seed: int | None = None, episode_id: str | None = None, **others: Any) -> Hint:
        """Choose the number by the seed."""
        self._number, self._state = (seed or 0) % 8 + 1, State(episode_id=episode_id)
        return Hint(text="Find the number from 1 to 8.")

    def step(self, action: Guess, timeout_s: float | None = None, **others: Any) -> Hint:
        """Say whether the number is larger or smaller."""
        self._state.step_count += 1
        if action.number == self._number:
            return Hint(text="Right.", done=True, reward=1.0)
        return Hint(text="It is larger." if action.number < self._number else "It is smaller.", reward=-0.125)

    @property
    def state(self) -> State:
        """The number of guesses."""
        return self._state


SERVED = {
    "tools": (Store, CallToolAction, CallToolObservation),
    "guess": (GuessGame, Guess, Hint),
}


def main() -> None:
    """Serve one of the two on a port of this machine."""
    environment, action, observation = SERVED[sys.argv[1]]
    app = create_fastapi_app(environment, action, observation, max_concurrent_envs=8)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")


if __name__ == "__main__":
    main()
