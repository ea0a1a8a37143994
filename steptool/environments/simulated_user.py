"""A user played by a chat model, for conversations in which the user answers questions and has a goal of its own."""

from __future__ import annotations

from functools import cache
from typing import Self

from steptool.chat.endpoint import Endpoint
from steptool.config import EndpointConfig
from steptool.records import Message

END = "[END]"
"""What the model writes when the conversation is over."""
_PROMPT = """You play the user of an assistant. You are not the assistant.

Your goal:
{goal}

Rules:
- Write one short message at a time, as a user would type it.
- Give information only when the assistant asks for it, and invent nothing that your goal does not say.
- When your goal is reached, or the assistant says that it cannot be reached, write {end} and nothing else."""


class SimulatedUser:
    """One user in one conversation. The model sees the assistant's messages as those of its partner.

    The endpoint's file, if it has one, keeps the replies, so that the same conversation gets the same user again.
    """

    def __init__(self, endpoint: Endpoint, goal: str) -> None:
        self._endpoint = endpoint
        self._messages: list[Message] = [{"role": "system", "content": _PROMPT.format(goal=goal, end=END)}]

    @classmethod
    def connect(cls, base_url: str, model: str, goal: str, key_variable: str = "OPENAI_API_KEY") -> Self:
        """A user behind an endpoint of OpenAI's form. All users of an endpoint share its connections."""
        return cls(_shared_endpoint(base_url, model, key_variable), goal)

    def reply(self, assistant: str) -> str | None:
        """What the user says to a message of the assistant; None at the end of the conversation.

        Raises EndpointError where the endpoint does not answer.
        """
        self._messages.append({"role": "user", "content": assistant})
        answer = self._endpoint.chat(self._messages).message
        text = str(answer.get("content") or "").strip()
        self._messages.append({"role": "assistant", "content": text})
        return None if not text or END in text else text


@cache
def _shared_endpoint(base_url: str, model: str, key_variable: str) -> Endpoint:
    return Endpoint(EndpointConfig(base_url=base_url, model=model, key_variable=key_variable))
