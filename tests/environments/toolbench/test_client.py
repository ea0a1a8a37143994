import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from steptool.environments.base import ToolResult, TransportError
from steptool.environments.toolbench import VirtualClient
from steptool.records import StepStatus

API = ("Weather", "sky_watch", "forecast")
BERN = {"town": "Bern", "day": 1}


def client(server, key="secret-key", timeout=5.0):
    return VirtualClient(server.url, key, "truncate", timeout)


def test_a_request_has_the_fields_of_the_protocol(serve, say):
    server = serve(lambda request: say("rain"))
    assert client(server).ask(API, {"town": "Zürich ☔", "day": 1}).status is StepStatus.OK
    ((path, headers, body),) = server.requests
    assert (path, headers["toolbench_key"], headers["Content-Type"]) == ("/virtual", "secret-key", "application/json")
    arguments = json.loads(body.pop("tool_input"))
    assert arguments == {"town": "Zürich ☔", "day": 1} and list(arguments) == ["town", "day"]
    assert body == {
        "category": "Weather",
        "tool_name": "sky_watch",
        "api_name": "forecast",
        "strip": "truncate",
        "toolbench_key": "secret-key",
    }


def test_the_whole_reply_is_what_the_model_sees(serve):
    reply = {"error": "", "response": {"mm": 9, "wind": None}, "mechanism": "é"}
    server = serve(lambda request: (200, json.dumps(reply, ensure_ascii=False).encode()))
    assert client(server).ask(API, BERN) == ToolResult(
        StepStatus.OK, '{"error": "", "response": {"mm": 9, "wind": null}, "mechanism": "\\u00e9"}'
    )


@pytest.mark.parametrize(
    ("status", "body", "became", "words"),
    [
        (500, b"Internal Server Error", "tool_error", "status_code=500"),
        (422, b'{"detail": "tool_input"}', "invalid_arguments", "status_code=422"),
        (404, b"", "tool_error", "status_code=404"),
        (302, b"", "tool_error", "status_code=302"),
        (200, b'{"error": "Tool input parse error...\\n", "response": ""}', "invalid_arguments", "parse error"),
        (200, b'{"error": "Message error...", "response": "no such town"}', "tool_error", "no such town"),
        (200, b'{"error": "", "response": "Too many requests"}', "tool_error", "Too many requests"),
        (200, b"<html>", "tool_error", "not JSON"),
        (200, b"", "tool_error", "not JSON"),
        (200, b"\xff\xfe\xfd", "tool_error", "not JSON"),
        (200, b"[" * 100_000, "tool_error", "not JSON"),
        (200, b"9" * 5_000, "tool_error", "not JSON"),
        (200, b'"rain"', "tool_error", "no object"),
        (200, b'{"response": "rain"}', "tool_error", "no object"),
        (200, b'{"error": ""}', "tool_error", "no object"),
        (200, b'{"error": "", "response": "' + b"x" * (8 << 20) + b'"}', "tool_error", "more than 8 MiB"),
    ],
)
def test_what_is_no_good_answer_is_a_failed_step(serve, status, body, became, words):
    result = client(serve(lambda request: (status, body))).ask(API, BERN)
    assert result.status == StepStatus(became) and words in result.observation
    assert set(json.loads(result.observation)) == {"error", "response"} and len(result.observation) < 200


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_that_did_not_take_the_request_may_be_asked_again(serve, status):
    with pytest.raises(TransportError, match=f"HTTP status {status}"):
        client(serve(lambda request: (status, b"later"))).ask(API, BERN)


def test_a_server_that_hangs_up_or_is_not_there_may_be_asked_again(serve):
    server = serve(lambda request: None)
    with pytest.raises(TransportError, match="RemoteProtocolError"):
        client(server).ask(API, BERN)
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}/virtual"
        with pytest.raises(TransportError, match="ConnectError"):
            VirtualClient(url, "", "", 5.0).ask(API, BERN)


def test_a_server_that_hangs_is_a_failed_step_in_time(serve, say):
    release = threading.Event()
    server = serve(lambda request: say(str(release.wait(5))))
    start = time.monotonic()
    result = client(server, timeout=0.1).ask(API, BERN)
    release.set()
    assert time.monotonic() - start < 4  # the server would take 5 s
    assert result == ToolResult(StepStatus.TOOL_ERROR, '{"error": "Timeout error...", "response": ""}')


def test_a_reply_that_never_ends_is_a_failed_step_in_time():
    listening, stop = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip():
        connection = listening.accept()[0]
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not stop.wait(0.02):
                connection.sendall(b" ")

    thread = threading.Thread(target=drip)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/virtual"
    result = VirtualClient(url, "", "", 0.2).ask(API, BERN)
    stop.set()
    thread.join(5)
    listening.close()
    assert (result.status, thread.is_alive()) == (StepStatus.TOOL_ERROR, False)
    assert "Timeout error" in result.observation


def test_the_key_is_in_no_observation_and_no_log(serve, say, caplog):
    caplog.set_level(logging.DEBUG)
    api_client = client(serve(lambda request: say(request)))
    observation = api_client.ask(API, BERN).observation
    assert json.loads(observation)["response"]["toolbench_key"] == "[key]"
    assert caplog.records and "secret-key" not in observation + caplog.text + repr(api_client)


@pytest.mark.parametrize("closes_after", [{500}, {500, 200}])
@pytest.mark.parametrize("body", [b"", b"Internal Server Error", b"x" * 100_000])
def test_no_call_is_lost_where_the_server_closes_connections_without_saying_so(serve, say, closes_after, body):
    answers = iter([(500, body), say("rain")] * 20)
    server = serve(lambda request: next(answers))
    server.closes_after = closes_after
    api_client = client(server)
    statuses = [api_client.ask(API, {"town": str(number)}).status for number in range(40)]
    assert statuses == [StepStatus.TOOL_ERROR, StepStatus.OK] * 20 and len(server.requests) == 40


@pytest.mark.parametrize("key", ["1", "zzz", "token"])
def test_a_short_key_changes_nothing_in_a_reply(serve, say, key):
    response = {"token": 1, "zzz": [11, "1 token"]}
    api_client = client(serve(lambda request: say(response)), key=key)
    assert json.loads(api_client.ask(API, BERN).observation)["response"] == response


def test_an_escaped_key_is_hidden_in_a_reply(serve):
    key = 'se"cret/key'
    body = b'{"error": "", "response": "' + b"".join(rb"\u%04x" % letter for letter in key.encode()) + b'"}'
    api_client = client(serve(lambda request: (200, body)), key=key)
    assert json.loads(api_client.ask(API, BERN).observation)["response"] == "[key]"


def test_calls_one_after_the_other_share_a_connection(serve, say):
    server = serve(lambda request: say("rain"))
    api_client = client(server)
    assert {api_client.ask(API, {"town": str(n)}).status for n in range(20)} == {StepStatus.OK}
    assert (len(server.requests), server.connections) == (20, 1)


def test_calls_of_many_threads_are_in_flight_at_once(serve, say):
    meeting = threading.Barrier(16)

    def answer(request):
        meeting.wait(5)
        return say(json.loads(request["tool_input"])["town"])

    server = serve(answer)
    api_client = client(server)
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda n: api_client.ask(API, {"town": str(n)}), range(48)))
    assert [json.loads(r.observation)["response"] for r in results] == [str(n) for n in range(48)]
    assert server.connections == 16


@pytest.mark.parametrize(
    "url", ["localhost:8080/virtual", "ftp://localhost/virtual", "http:///virtual", "http://here:port/"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="expected an address such as http://localhost:8080/virtual, got"):
        VirtualClient(url, "", "", 1.0)


@pytest.mark.parametrize("key", ["two\nlines", "ключ"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(key):
    with pytest.raises(ValueError, match="printable ASCII") as excinfo:
        VirtualClient("http://localhost:8080/virtual", key, "", 1.0)
    assert key not in str(excinfo.value)
