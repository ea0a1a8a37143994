"""A text game: find the lamp, bring it to the gate, and mind the cellar. Each episode has a house of its own.

The game ends an episode itself: `ended` is asked after each call, and no Finish follows. `solved` looks at the outcome
alone. The tasks differ in where the lamp is.
"""

from typing import Literal

from steptool.environments.functions import read_only

EXITS = {
    "hall": {"north": "kitchen", "east": "library", "down": "cellar", "south": "gate"},
    "kitchen": {"south": "hall"},
    "library": {"west": "hall"},
    "cellar": {"up": "hall"},
    "gate": {"north": "hall"},
}


class House:
    """Made from a task's `reference.state`."""

    def __init__(self, lamp: str) -> None:
        self._lamp, self._room, self._carried = lamp, "hall", False
        self._outcome = ""

    @read_only
    def look(self) -> str:
        """Look around in the room where you are."""
        things = " You see a lamp." if self._lamp == self._room and not self._carried else ""
        return f"You are in the {self._room}.{things} Exits: {', '.join(sorted(EXITS[self._room]))}."

    def go(self, direction: Literal["north", "south", "east", "west", "up", "down"]) -> str:
        """Go through an exit of the room.

        Args:
            direction: where to go
        """
        if direction not in EXITS[self._room]:
            raise ValueError(f"there is no way {direction}")
        self._room = EXITS[self._room][direction]
        if self._room == "cellar" and not self._carried:
            self._outcome = "lost"
            return "It is dark, and the stairs are broken. You fall. The game is over."
        if self._room == "gate" and self._carried:
            self._outcome = "won"
            return "The lamp shines on the gate, and it opens. You have won."
        return self.look()

    def take(self) -> str:
        """Take the lamp, if it is in this room."""
        if self._lamp != self._room or self._carried:
            raise ValueError("there is nothing to take")
        self._carried = True
        return "You carry the lamp."

    def ended(self) -> bool:
        """Whether the game is over."""
        return bool(self._outcome)

    def solved(self, final_answer: str | None, reference: dict[str, object]) -> float:
        """1 for a game that was won."""
        return float(self._outcome == "won")
