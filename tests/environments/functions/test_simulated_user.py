from typing import Any

import pytest

from steptool.chat.endpoint import EndpointError
from steptool.environments.functions.environment import END, SimulatedUser


def test_a_chat_model_plays_the_user_until_it_ends_the_conversation(chat: Any) -> None:
    replies = ["It is K7.", f" {END} "]
    server = chat.serve(lambda request, number: chat.Answer({"content": replies[len(request["messages"]) // 2 - 1]}))
    user = SimulatedUser.connect(server.url, "m", "Move booking K7.", key_variable="NO_SUCH_VARIABLE")
    assert user.reply("What is its number?") == "It is K7."
    assert user.reply("It is done.") is None
    first, second = server.requests
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert "Move booking K7." in first["messages"][0]["content"]
    assert [message["content"] for message in second["messages"][1:]] == [
        *("What is its number?", "It is K7.", "It is done.")
    ]


def test_users_do_not_know_of_each_other(chat: Any) -> None:
    server = chat.serve(lambda request, number: chat.Answer({"content": str(len(request["messages"]))}))
    one, other = (SimulatedUser.connect(server.url, "m", "Go.", "NO_SUCH_VARIABLE") for _ in range(2))
    assert [one.reply("a"), one.reply("b"), other.reply("c")] == ["2", "4", "2"]


def test_an_endpoint_that_does_not_answer_is_an_error(chat: Any) -> None:
    server = chat.serve(lambda request, number: chat.Answer(status=401))
    with pytest.raises(EndpointError):
        SimulatedUser.connect(server.url, "m", "Go.", "NO_SUCH_VARIABLE").reply("a")
