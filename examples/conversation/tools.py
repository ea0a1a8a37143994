"""An airline's desk with a user who answers questions: tools, a policy, and a conversation of several turns.

The user is `next_turn`: it is called with each answer of the assistant and returns what the user says next, or None at
the end of the conversation. Here it follows the script of its task, so that the example runs offline; with
STEPTOOL_USER_URL and STEPTOOL_USER_MODEL set, a chat model behind that endpoint plays the user instead.
"""

import datetime
import os
from collections.abc import Mapping
from typing import Any

from steptool.environments.functions import read_only
from steptool.environments.functions.environment import SimulatedUser


class Desk:
    """Made from a task's `reference.state`: the bookings. Basic fares cannot be changed."""

    def __init__(self, bookings: dict[str, dict[str, str]]) -> None:
        self._bookings = bookings
        self._turns = 0
        self._user: SimulatedUser | None = None

    @read_only
    def find_booking(self, number: str) -> dict[str, str]:
        """Show a booking.

        Args:
            number: of the booking
        """
        return self._bookings[number]

    def change_date(self, number: str, date: datetime.date) -> str:
        """Move a booking to another day. Basic fares cannot be changed.

        Args:
            number: of the booking
            date: new day of the flight
        """
        booking = self._bookings[number]
        if booking["fare"] == "basic":
            raise ValueError("a basic fare cannot be changed")
        booking["date"] = date.isoformat()
        return f"{number} is on {booking['date']}"

    def next_turn(self, final_answer: str, reference: Mapping[str, Any]) -> str | None:
        """What the user says to an answer of the assistant."""
        if url := os.environ.get("STEPTOOL_USER_URL"):
            self._user = self._user or SimulatedUser.connect(url, os.environ["STEPTOOL_USER_MODEL"], reference["goal"])
            return self._user.reply(final_answer)
        self._turns += 1
        return reference["script"][self._turns - 1] if self._turns <= len(reference["script"]) else None

    def solved(self, final_answer: str | None, reference: Mapping[str, Any]) -> float:
        """1 if the bookings are as they should be at the end of the conversation."""
        return float(final_answer is not None and self._bookings == reference["bookings"])
