"""Requests of adapters to servers that answer slowly, wrongly, too much or not at all."""

import gzip
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from servers import serve_bytes
from steptool.config import Config, ConfigError
from steptool.environments.adapters import LimitedClient
from steptool.environments.base import TransportError, open_environment
from steptool.environments.nemo_gym import NemoGymEnvironment

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
Send = Callable[[socket.socket], object]


def drip(text: bytes) -> Send:
    """Send a byte every tenth of a second."""

    def send(connection: socket.socket) -> None:
        for byte in text:
            connection.send(bytes([byte]))
            time.sleep(0.1)

    return send


def send_much(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"\r\n")
    for _ in range(17):
        connection.sendall(b" " * (1 << 20))


def send_bomb(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b" " * (40 << 20)))


SLOW: dict[str, Send] = {
    "silence": lambda _: time.sleep(10),
    "a slow head": drip(HEAD + b"\r\n{}"),
    "a slow body": lambda connection: (connection.send(HEAD + b"\r\n"), drip(b"{" + b" " * 100)(connection)),
}


@pytest.mark.parametrize("send", SLOW.values(), ids=SLOW.keys())
def test_an_answer_has_a_limit_of_time_as_a_whole(send: Send) -> None:
    start = time.monotonic()
    with serve_bytes(send) as url, pytest.raises(RuntimeError, match=f"{url}/x gave no answer within 1 s"):
        LimitedClient(url, {}, 1.0).request("GET", "x")
    assert time.monotonic() - start < 2.5


@pytest.mark.parametrize(
    ("send", "problem"),
    [
        (send_much, "an answer of more than 16 MB"),
        (send_bomb, "an answer of more than 16 MB"),
        (lambda c: c.sendall(HEAD + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b broken"), "DecodingError"),
        (lambda c: c.sendall(HEAD + b"Content-Length: 9\r\n\r\n{"), "RemoteProtocolError"),
        (lambda c: c.sendall(b"SSH-2.0-OpenSSH_9\r\n"), "RemoteProtocolError"),
    ],
)
def test_an_answer_that_cannot_be_read_is_an_error_that_names_the_address(send: Send, problem: str) -> None:
    with serve_bytes(send) as url, pytest.raises(RuntimeError, match=f"{url}/x gave no answer: .*{problem}"):
        LimitedClient(url, {}, 10.0).request("GET", "x")


def test_a_server_that_is_away_may_be_called_again() -> None:
    for url in ("http://127.0.0.1:9", "http://nowhere.invalid"):
        with pytest.raises(TransportError, match=f"{url}/x cannot be reached"):
            LimitedClient(url, {}, 5.0).request("GET", "x")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (
            b"Content-Length: 15\r\n\r\n<html>hi</html>",
            "schema does not answer as OpenEnv does, but with 200 '<html>hi</html>",
        ),
        (b"Content-Length: 3\r\n\r\n[1]", r"schema: expected an object with the schema of an action, got '\[1\]'"),
        (b'Content-Length: 15\r\n\r\n{"action": [1]}', "schema: expected an object with the schema of an action"),
    ],
)
def test_a_server_that_is_no_openenv_server_is_refused_by_its_field(answer: bytes, problem: str) -> None:
    pytest.importorskip("websockets", reason="pip install 'steptool[environments]'")
    with serve_bytes(lambda connection: connection.sendall(HEAD + answer)) as url:
        config = Config.model_validate({"tools": {"settings": {"url": url}}})
        with pytest.raises(ConfigError, match=rf"^tools\.settings\.url: {url}/{problem}"):
            open_environment("openenv", config)


def test_a_nemo_gym_server_that_does_not_answer_is_refused_by_its_field(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"responses_create_params": {"input": "go"}}\n')
    with (
        serve_bytes(lambda _: time.sleep(10)) as url,
        closing(NemoGymEnvironment(url, [str(tmp_path / "rows.jsonl")], timeout=1.0)) as environment,
        pytest.raises(ConfigError, match=rf"^tools\.settings\.url: .*{url}/seed_session gave no answer within 0\.9 s"),
    ):
        list(environment.tasks())
