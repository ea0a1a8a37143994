import gzip
import json
import logging
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.chat.endpoint import Endpoint, EndpointError, EndpointRefused
from steptool.config import EndpointConfig
from steptool.storage.sqlite import Replies, make_request_key

KEY = "sk-very-secret-key"
ASKER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from steptool.config import EndpointConfig
from steptool.chat.endpoint import Endpoint
url, cache, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
endpoint = Endpoint(EndpointConfig(base_url=url, model="m", concurrency=4), cache)
def ask(n):
    endpoint.chat([{"role": "user", "content": f"question {n}"}])
    print(f"{n}\\n", end="", flush=True)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(ask, range(count)))
endpoint.close()
"""


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def connect(monkeypatch):
    """Endpoints that are closed at the end."""
    monkeypatch.setenv("TEST_KEY", KEY)
    opened = []

    def make(server, cache="", **settings):
        settings = {"base_url": server.url, "model": "m", "key_variable": "TEST_KEY", "timeout": 5.0, **settings}
        opened.append(Endpoint(EndpointConfig(**settings), cache))
        return opened[-1]

    yield make
    for endpoint in opened:
        endpoint.close()


def test_a_request_says_what_was_configured_and_brings_message_tokens_and_price(chat, connect):
    server = chat.serve(lambda *_: chat.call("f", {"x": 1}))
    endpoint = connect(server, temperature=0.5, max_tokens=7, price_in=3.0, price_out=20.0)
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    reply = endpoint.chat(user("hi"), [tool], {"type": "function", "function": {"name": "f"}})
    assert reply.message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert (reply.prompt_tokens, reply.completion_tokens, reply.cached) == (100, 10, False)
    expected = {"model": "m", "messages": user("hi"), "temperature": 0.5, "max_tokens": 7, "tools": [tool]}
    assert server.requests == [{**expected, "tool_choice": {"type": "function", "function": {"name": "f"}}}]
    assert server.keys == {f"Bearer {KEY}"}
    assert endpoint.usage.money == pytest.approx((100 * 3.0 + 10 * 20.0) / 1e6)


def test_fields_of_the_configuration_are_merged_into_the_request_and_null_removes_one(chat, connect):
    server = chat.serve(lambda *_: chat.Answer({"content": "hi"}))
    fields = {"max_tokens": None, "temperature": None, "max_completion_tokens": 9, "tool_choice": "required"}
    unknown_to_the_client = {"top_k": 5, "chat_template_kwargs": {"enable_thinking": False}}
    connect(server, request={**fields, **unknown_to_the_client}).chat(user("hi"), [], "auto")
    connect(server, request={"extra_body": {"top_k": 7}}).chat(user("hi"))
    first, second = server.requests
    request_fields = {"max_completion_tokens": 9, "tool_choice": "required", **unknown_to_the_client}
    assert first == {"model": "m", "messages": user("hi"), **request_fields}
    assert second["top_k"] == 7 and second["max_tokens"] == 1024


def test_what_was_answered_is_never_asked_again_and_another_vote_is(chat, connect, tmp_path):
    server = chat.serve(lambda request, number: chat.Answer({"content": f"answer {number}"}))
    first = connect(server, tmp_path / "replies.sqlite")
    votes = [first.chat(user("hi"), vote=v).message["content"] for v in (0, 1, 0)]
    assert votes == ["answer 1", "answer 2", "answer 1"]
    second = connect(server, tmp_path / "replies.sqlite")
    assert second.chat(user("hi"), vote=1).cached
    second.chat(user("hi"), tools=[{"type": "function", "function": {"name": "f"}}])
    connect(server, tmp_path / "replies.sqlite", temperature=1.0).chat(user("hi"))
    connect(server, tmp_path / "replies.sqlite", model="other").chat(user("hi"))
    assert len(server.requests) == 5
    assert (first.usage.requests, first.usage.cached, second.usage.requests, second.usage.cached) == (2, 1, 1, 1)
    assert second.usage.prompt_tokens == 100


def test_a_repeated_prompt_in_flight_is_asked_once_and_all_get_the_answer(chat, connect):
    server = chat.serve(lambda request, number: chat.Answer({"content": f"answer {number}"}, delay=0.2))
    endpoint = connect(server, concurrency=16)
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda n: endpoint.chat(user(f"question {n % 2}")), range(16)))
    assert len(server.requests) == 2 and sum(r.cached for r in replies) == 14
    assert {r.message["content"] for r in replies} == {"answer 1", "answer 2"}


def test_64_requests_are_in_flight_at_once_and_never_more_than_configured(chat, connect):
    server = chat.serve(lambda *_: chat.Answer(delay=0.5))
    endpoint = connect(server, concurrency=64)
    with ThreadPoolExecutor(100) as pool:
        list(pool.map(lambda n: endpoint.chat(user(f"question {n}")), range(100)))
    assert server.most == 64 and len(server.requests) == 100


def test_a_429_is_asked_again_after_the_time_it_names(chat, connect):
    busy = {"status": 429, "headers": {"Retry-After": "0.7"}}
    server = chat.serve(lambda request, number: chat.Answer(**busy if number == 1 else {}))
    endpoint = connect(server, retries=1)
    assert endpoint.chat(user("hi")).message["content"] == "hello"
    assert 0.7 <= server.times[1] - server.times[0] < 1.5
    assert (endpoint.usage.requests, endpoint.usage.sent) == (1, 2)


@pytest.mark.parametrize("fault", [{"status": 500}, {"cut": True}, {"body": "<html>"}, {"body": '{"choices": []}'}])
def test_faults_are_asked_again_as_often_as_configured(chat, connect, fault):
    server = chat.serve(lambda request, number: chat.Answer(**fault if number <= 2 else {}))
    assert connect(server, retries=2).chat(user("hi")).message["content"] == "hello"
    assert len(server.requests) == 3


def test_a_fault_that_stays_is_an_error_and_not_kept(chat, connect):
    server = chat.serve(lambda request, number: chat.Answer(status=500 if number <= 2 else 200))
    endpoint = connect(server, retries=1)
    with pytest.raises(EndpointError, match=r"m at http://127.*answered 500"):
        endpoint.chat(user("hi"))
    assert endpoint.chat(user("hi")).cached is False
    assert (endpoint.usage.failed, endpoint.usage.requests) == (1, 1)


def test_a_silent_server_is_left_alone_in_time(chat, connect):
    server = chat.serve(lambda *_: chat.Answer(delay=8.0))
    began = time.monotonic()
    with pytest.raises(EndpointError, match=r"timed out|no reply within"):
        connect(server, timeout=0.2, retries=0).chat(user("hi"))
    assert time.monotonic() - began < 4  # the server would take 8 s


def test_nobody_waits_beyond_the_deadline_whatever_the_server_asks_for(chat, connect):
    server = chat.serve(lambda *_: chat.Answer(status=429, headers={"Retry-After": "60"}))
    endpoint, began = connect(server, concurrency=1), time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        requests = [pool.submit(endpoint.chat, user(f"{n}"), deadline=began + 0.4) for n in range(3)]
        assert all("before the deadline" in str(future.exception()) for future in requests)
    assert 0.4 <= time.monotonic() - began < 20  # the server asked for 60 s
    assert len(server.requests) == 1  # the others had not got their turn


@pytest.mark.parametrize("limits", [(0.3, 20.0), (20.0, 0.3)])
def test_callers_of_one_request_wait_each_until_their_own_deadline(chat, connect, limits):
    server = chat.serve(lambda *_: chat.Answer(delay=1.5))
    endpoint, began = connect(server), time.monotonic()

    def ask(limit):
        try:
            return endpoint.chat(user("hi"), deadline=began + limit).message["content"], time.monotonic() - began
        except EndpointError as error:
            return str(error), time.monotonic() - began

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, limits[0])
        while not server.requests:
            time.sleep(0.01)
        second = pool.submit(ask, limits[1])
        (late, waited), (reply, _) = sorted([first.result(), second.result()], key=lambda result: result[1])
    assert "no reply before the deadline" in late and waited < 1.2
    assert reply == "hello"
    assert (len(server.requests), endpoint.usage.requests, endpoint.usage.failed) == (1, 1, 0)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_address_or_model_is_refused_for_good(chat, connect, status):
    server = chat.serve(lambda *_: chat.Answer(status=status, body='{"error": {"message": "no such thing"}}'))
    with pytest.raises(EndpointRefused, match=r"no such thing.*base_url, model and the key in TEST_KEY"):
        connect(server).chat(user("hi"))
    assert len(server.requests) == 1


def test_an_endpoint_without_address_or_model_is_refused():
    with pytest.raises(ValueError, match="base_url"):
        Endpoint(EndpointConfig(model="m"))


def test_the_key_is_in_no_error_log_or_file_even_where_the_server_repeats_it(chat, connect, tmp_path, caplog):
    def tell(request, number):
        content = request["messages"][0]["content"]
        error = json.dumps({"error": {"message": f"the key {KEY} is wrong"}})
        return {"ok": chat.Answer({"content": f"you said {KEY}"}), "junk": chat.Answer(body=KEY)}.get(
            content, chat.Answer(status=int(content) if content.isdigit() else 200, body=error)
        )

    caplog.set_level(logging.DEBUG)
    endpoint = connect(chat.serve(tell), tmp_path / "replies.sqlite", retries=0)
    assert endpoint.chat(user("ok")).message["content"] == "you said [key]"
    for content in ("401", "400", "500", "junk"):
        with pytest.raises(EndpointError) as raised:
            endpoint.chat(user(content))
        text = f"{raised.value!r} {raised.value.__cause__!r} {raised.value.__context__!r}"
        assert KEY not in text, content
    assert "chat/completions" in caplog.text and KEY not in caplog.text
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("key", ["1", "zzz", "token", 'long "and" escaped'])
def test_a_reply_stays_whole_where_the_key_is_short_and_hides_it_where_it_is_long(chat, monkeypatch, key):
    monkeypatch.setenv("TEST_KEY", key)
    server = chat.serve(lambda *_: chat.Answer({"content": f"1 token, zzz, and the key {key}"}))
    settings = EndpointConfig(base_url=server.url, model="m", key_variable="TEST_KEY")
    with closing(Endpoint(settings)) as endpoint:
        content = endpoint.chat(user("hi")).message["content"]
    assert content == f"1 token, zzz, and the key {key if len(key) < 8 else '[key]'}"


def test_a_server_that_needs_no_key_gets_a_stand_in(chat):
    server = chat.serve(lambda *_: chat.Answer())
    with closing(Endpoint(EndpointConfig(base_url=server.url, model="m", key_variable="NO_SUCH_VARIABLE"))) as endpoint:
        endpoint.chat(user("hi"))
    assert server.keys == {"Bearer none"}


def test_after_a_kill_exactly_the_missing_requests_are_asked(chat, tmp_path):
    server = chat.serve(lambda *_: chat.Answer(delay=0.05))
    command = [sys.executable, "-c", ASKER, server.url, str(tmp_path / "replies.sqlite"), "40"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        numbers = [int(process.stdout.readline()) for _ in range(12)]
        process.kill()
    assert process.returncode == -signal.SIGKILL
    replies = Replies(tmp_path / "replies.sqlite")
    fields = {"model": "m", "temperature": 0.0, "max_tokens": 1024}
    answered_numbers = {
        n for n in range(40) if replies.get(make_request_key({**fields, "messages": user(f"question {n}")}, 0))
    }
    replies.close()
    assert set(numbers) <= answered_numbers and len(answered_numbers) < 40

    server.requests.clear()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=30).returncode == 0
    assert sorted(server.texts()) == sorted(f"question {n}" for n in range(40) if n not in answered_numbers)
    server.requests.clear()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=30).returncode == 0
    assert server.requests == []


JSON = st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=3), max_size=3)


@given(JSON, JSON, st.integers(0, 3), st.integers(0, 3))
def test_keys_are_equal_where_the_request_and_the_vote_are(one, other, vote, second):
    same = json.dumps([one, vote], sort_keys=True) == json.dumps([other, second], sort_keys=True)
    assert (make_request_key(one, vote) == make_request_key(other, second)) == same


@given(st.text())
def test_any_text_is_kept_as_it_was_and_the_first_reply_stays(text):
    with closing(Replies()) as replies:
        assert replies.get("r") is None
        replies.add("r", {"message": text})
        replies.add("r", {"message": "later"})
        assert replies.get("r") == {"message": text}


def completion(message, usage):
    """A body as a server writes it; `usage` may hold numbers that only text can say."""
    return f'{{"choices": [{{"message": {json.dumps(message)}}}], "usage": {usage}}}'


@pytest.mark.parametrize(
    ("count", "expected"),
    [("1e999", 0), ("-7", 0), ("1" + "0" * 30, 10**9), ("true", 0), ('"12"', 0), ("null", 0), ("[]", 0), ("12.7", 12)],
)
def test_token_counts_are_bounded_when_they_are_read(chat, connect, tmp_path, count, expected):
    usage = f'{{"prompt_tokens": {count}, "completion_tokens": 3}}'
    server = chat.serve(lambda *_: chat.Answer(body=completion({"role": "assistant", "content": "hi"}, usage)))
    endpoint = connect(server, tmp_path / "replies.sqlite", price_in=1.0)
    for cached in (False, True):
        reply = endpoint.chat(user("hi"))
        assert (reply.prompt_tokens, reply.completion_tokens, reply.cached) == (expected, 3, cached)
    assert endpoint.usage.prompt_tokens == expected and endpoint.usage.money == expected / 1e6


def test_a_reply_that_cannot_be_used_is_not_kept(chat, connect, tmp_path):
    deep = {"role": "assistant", "content": "hi"}
    for _ in range(200):
        deep = {"role": "assistant", "content": "hi", "extra": [deep]}
    mended = [False]

    def answer(*_):
        return chat.Answer({"content": "mended"}) if mended[0] else chat.Answer(deep)

    endpoint = connect(chat.serve(answer), tmp_path / "replies.sqlite", retries=0)
    with pytest.raises(EndpointError, match="something that is no chat completion"):
        endpoint.chat(user("hi"))
    mended[0] = True
    assert endpoint.chat(user("hi")).message == {"content": "mended"}


def test_an_answer_that_is_too_large_once_unpacked_is_not_read(chat, connect):
    """100 KB of gzip that would become 100 MB; the process does not grow by them."""
    bomb = gzip.compress(b"[" + b" " * (100 << 20))
    assert len(bomb) < 200_000
    server = chat.serve(lambda *_: chat.Answer(body=bomb, headers={"Content-Encoding": "gzip"}))
    endpoint = connect(server, retries=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(EndpointError, match="an answer of more than 16 MB"):
        endpoint.chat(user("hi"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 90_000  # KB


def test_an_answer_that_was_compressed_is_read(chat, connect):
    packed = gzip.compress(completion({"role": "assistant", "content": "hi"}, "{}").encode())
    server = chat.serve(lambda *_: chat.Answer(body=packed, headers={"Content-Encoding": "gzip"}))
    assert connect(server).chat(user("hi")).message["content"] == "hi"


@pytest.mark.parametrize("closes_after", [{500}, {500, 200}])
def test_no_request_is_lost_where_the_server_closes_connections_without_saying_so(chat, connect, closes_after):
    server = chat.serve(lambda request, number: chat.Answer(status=500 if number % 2 else 200))
    server.closes_after = closes_after
    endpoint = connect(server, retries=0)
    for number in range(20):
        with pytest.raises(EndpointError, match="answered 500"):
            endpoint.chat(user(f"fails {number}"))
        assert endpoint.chat(user(f"works {number}")).message["content"] == "hello"
    assert (endpoint.usage.requests, endpoint.usage.failed, endpoint.usage.sent) == (20, 20, 40)
