import decimal
import json
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import mpmath
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steptool.config import ToolsConfig
from steptool.environments.base import ToolResult
from steptool.environments.bfcl import BfclEnvironment, BfclSession
from steptool.environments.bfcl_tasks import CLASSES, list_schemas, load_class
from steptool.policies.text_policies import list_recorded_calls, list_reference_calls, play_back
from steptool.records import Query, StepStatus, StopReason, ToolCall
from steptool.records.columns import from_row, to_row

OK, ERROR, INVALID, UNKNOWN = (
    StepStatus.OK,
    StepStatus.TOOL_ERROR,
    StepStatus.INVALID_ARGUMENTS,
    StepStatus.UNKNOWN_TOOL,
)
MakeTask = Callable[..., Query]
OPTIONS = {"limits": ToolsConfig()}
FLIGHT = {"travel_from": "SFO", "travel_to": "LAX", "travel_date": "2026-01-01", "travel_class": "economy"}


@pytest.fixture
def begin(environment: BfclEnvironment, make_task: MakeTask) -> Callable[..., BfclSession]:
    return lambda *classes, **options: environment.reset(make_task(*classes, **options))


def do(session: BfclSession, name: str, /, **arguments: Any) -> ToolResult:
    return session.call(ToolCall(name, arguments))


def test_results_are_shown_as_the_benchmark_shows_them(begin: Callable[..., BfclSession]) -> None:
    files, numbers, flights = begin("GorillaFileSystem"), begin("MathAPI"), begin("TravelAPI")
    assert do(files, "touch", file_name="a.txt") == ToolResult(OK, "None")
    assert do(files, "ls") == ToolResult(OK, '{"current_directory_content": ["a.txt"]}')
    assert do(flights, "list_all_airports").observation.startswith("['RMS', 'SBK', ")
    assert do(flights, "get_flight_cost", **FLIGHT) == ToolResult(OK, '{"travel_cost_list": [400.0]}')
    assert do(numbers, "logarithm", value=100.0, base=10.0, precision=5) == ToolResult(OK, "{'result': mpf('2.0')}")
    assert do(numbers, "add", a=1, b=2.5) == ToolResult(OK, '{"result": 3.5}')


def test_what_went_wrong_is_a_failed_step(begin: Callable[..., BfclSession]) -> None:
    files, tickets, market = begin("GorillaFileSystem"), begin("TicketAPI"), begin("TradingBot")
    assert do(files, "cat", file_name="b") == ToolResult(ERROR, '{"error": "cat: \'b\': No such file or directory"}')
    assert do(tickets, "get_user_tickets").status is ERROR  # a list of one error
    assert do(market, "get_watchlist").status is ERROR  # a list of one sentence
    assert do(begin("TravelAPI"), "get_flight_cost", **{**FLIGHT, "travel_to": "XXX"}) == ToolResult(
        ERROR, "Error during execution: No available route for the given airports."
    )
    assert do(files, "ls", a="yes") == ToolResult(
        INVALID, '{"error": "argument \'a\' must be boolean, got \\"yes\\"."}'
    )
    assert do(files, "cd") == ToolResult(INVALID, '{"error": "missing required argument \'folder\'."}')


@pytest.mark.parametrize("name", ["_load_scenario", "__init__", "_populate_directory", "root", "add", "Finish"])
def test_only_documented_functions_of_the_task_can_be_called(
    environment: BfclEnvironment, make_task: MakeTask, name: str
) -> None:
    query = make_task("GorillaFileSystem")
    schema = {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
    session = environment.reset(Query(**{**vars(query), "tools": (*query.tools, schema)}))
    assert do(session, name) == ToolResult(UNKNOWN, f'{{"error": "unknown tool {name}"}}')
    assert not session.offers(name)


def test_tools_come_with_their_turn(begin: Callable[..., BfclSession]) -> None:
    session = begin("MathAPI", turns=[[], [("add", {"a": 1, "b": 1})], []], later={"1": ["add"]})
    assert do(session, "add", a=1, b=1).status is UNKNOWN
    assert session.next_turn("I cannot.") == "Go on."
    assert session.offers("add")
    assert do(session, "add", a=1, b=1).status is OK
    assert session.next_turn("2") == "Go on."
    assert (session.next_turn("Bye."), session.solved("Bye.")) == (None, 1.0)


def test_what_the_reference_does_stands(by_id: dict[str, Query], environment: BfclEnvironment) -> None:
    early = by_id["multi_turn_miss_func_49"]
    assert "tail" not in {tool["function"]["name"] for tool in early.tools}
    (episodes,) = play_back([(early, list_reference_calls(early))], environment, **OPTIONS)
    assert (episodes.solved, [s.status for s in episodes.steps if s.call and s.call.name == "tail"]) == (1.0, [OK])
    ill_typed = environment.reset(by_id["multi_turn_base_173"])
    assert do(ill_typed, "close_ticket", ticket_id="ticket_001").status is OK
    assert do(ill_typed, "close_ticket", ticket_id="ticket_002").status is INVALID


def test_a_tool_that_comes_late_is_unknown_to_a_policy_before(
    by_id: dict[str, Query], environment: BfclEnvironment
) -> None:
    query = by_id["multi_turn_miss_func_2"]  # cp and cat come with turn 4
    look = ToolCall("cat", {"file_name": "x"})
    calls = list_reference_calls(query)
    (episodes,) = play_back([(query, [look, *calls, look])], environment, **OPTIONS)
    assert (episodes.steps[0].status, episodes.solved) == (UNKNOWN, 1.0)
    assert [s.status for s in episodes.steps if s.call and s.call.name == "cat"] == [UNKNOWN, OK]
    assert [m["role"] for m in episodes.messages].count("user") == 6


# Sessions share nothing.


def test_a_default_list_is_not_shared(begin: Callable[..., BfclSession]) -> None:
    first, second = (begin("TwitterAPI", config={"TwitterAPI": {"authenticated": True}}) for _ in range(2))
    do(first, "post_tweet", content="one")
    assert do(first, "mention", tweet_id=0, mentioned_usernames=["@bo"]).status is OK
    assert json.loads(do(second, "post_tweet", content="two").observation)["mentions"] == []
    assert json.loads(do(first, "post_tweet", content="three").observation)["mentions"] == []


def test_arguments_are_left_as_they_were_given(begin: Callable[..., BfclSession]) -> None:
    session, mentions = begin("TwitterAPI", config={"TwitterAPI": {"authenticated": True}}), ["@al"]
    do(session, "post_tweet", content="one", mentions=mentions)
    do(session, "mention", tweet_id=0, mentioned_usernames=["@bo"])
    assert json.loads(do(session, "get_tweet", tweet_id=0).observation)["mentions"] == ["@al", "@bo"]
    assert mentions == ["@al"]


def test_padding_is_not_shared(begin: Callable[..., BfclSession]) -> None:
    state = {"config": {"TravelAPI": {"access_token": "t"}}, "long_context": True}
    first, second = (begin("TravelAPI", **state) for _ in range(2))
    cards = json.loads(do(first, "get_all_credit_cards").observation)["credit_card_list"]
    card, balance = next((key, value["balance"]) for key, value in cards.items() if value["balance"] >= 400)
    assert do(first, "book_flight", access_token="t", card_id=card, **FLIGHT).status is OK
    assert do(first, "get_credit_card_balance", access_token="t", card_id=card).observation == json.dumps(
        {"card_balance": balance - 400.0}
    )
    assert do(second, "get_credit_card_balance", access_token="t", card_id=card).observation == json.dumps(
        {"card_balance": balance}
    )


def test_the_query_is_left_as_it_was(by_id: dict[str, Query], environment: BfclEnvironment) -> None:
    for name in ("multi_turn_long_context_160", "multi_turn_base_150", "multi_turn_base_60"):
        query = by_id[name]
        before = json.dumps(to_row(query))
        play_back([(query, list_reference_calls(query))], environment, **OPTIONS)
        assert json.dumps(to_row(query)) == before


def test_the_precision_of_the_process_is_left_as_it_was(begin: Callable[..., BfclSession]) -> None:
    session, before = begin("MathAPI"), (mpmath.mp.dps, decimal.getcontext().prec)
    assert do(session, "logarithm", value=2.0, base=10.0, precision=50).status is OK
    assert do(session, "square_root", number=2.0, precision=50).observation.count("1.414213562373095048801688") == 1
    assert do(session, "logarithm", value=2.0, base=1.0, precision=7).status is ERROR
    assert (mpmath.mp.dps, decimal.getcontext().prec) == before


def module_state() -> Iterator[str]:
    """All data that the benchmark's modules, classes and defaults hold, but for an entry that is written when read."""
    for name in CLASSES:
        values = vars(import_module(load_class(name).__module__)) | vars(load_class(name))
        for key, value in values.items():
            if isinstance(value, dict | list | set) and not key.startswith("__"):
                yield re.sub(r"(, )?'outsideTemperature': [-+.\de]+", "", f"{name}.{key} {value}")
            yield f"{name}.{key} {getattr(value, '__defaults__', None)}"


def test_interleaved_runs_see_what_a_run_alone_sees(queries: list[Query], environment: BfclEnvironment) -> None:
    before = list(module_state())
    assert len(before) > 50
    sample = queries[::4]
    recordings = [(query, list_reference_calls(query)) for query in sample]
    alone = [play_back([recording], environment, **OPTIONS)[0] for recording in recordings]
    twice = [recording for recording in recordings for _ in range(2)]
    together = play_back(twice, environment, **OPTIONS)
    for number, single in enumerate(alone):
        for other in together[2 * number : 2 * number + 2]:
            assert [s.observation for s in other.steps] == [s.observation for s in single.steps]
            assert (other.messages, other.solved) == (single.messages, 1.0)
    assert list(module_state()) == before


def test_a_query_from_a_file_plays_the_same(by_id: dict[str, Query], environment: BfclEnvironment) -> None:
    for name in ("multi_turn_miss_func_2", "multi_turn_long_context_100", "multi_turn_base_173"):
        query = from_row(to_row(by_id[name]), Query)
        (episodes,) = play_back([(query, list_reference_calls(query))], environment, **OPTIONS)
        (again,) = play_back([(query, list_recorded_calls(episodes))], environment, **OPTIONS)
        assert (episodes.solved, episodes.stop_reason) == (1.0, StopReason.FINISHED)
        assert [s.observation for s in again.steps] == [s.observation for s in episodes.steps]


# What the benchmark's tools would not return from.


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("power", {"base": 10, "exponent": 10**9}, "the result is too large"),
        ("logarithm", {"value": 2, "base": 3, "precision": 10**9}, "precision must be between -1000 and 1000"),
        ("square_root", {"number": 2, "precision": 10**9}, "precision must be between -1000 and 1000"),
        ("round_number", {"number": 5, "decimal_places": -(10**9)}, "decimal_places must be between -1000 and 1000"),
    ],
)
def test_huge_numbers_are_refused(
    begin: Callable[..., BfclSession], name: str, arguments: dict[str, Any], reason: str
) -> None:
    assert do(begin("MathAPI"), name, **arguments) == ToolResult(ERROR, json.dumps({"error": reason}))


def test_numbers_of_use_are_not_refused(begin: Callable[..., BfclSession]) -> None:
    session = begin("MathAPI")
    assert do(session, "power", base=2, exponent=100) == ToolResult(OK, f'{{"result": {2**100}}}')
    assert do(session, "power", base=10.0, exponent=-400) == ToolResult(OK, '{"result": 0.0}')
    assert do(session, "power", base=10.0, exponent=400).status is ERROR  # overflows by itself
    assert do(session, "round_number", number=2.345, decimal_places=2) == ToolResult(OK, '{"result": 2.35}')


def test_folders_copied_into_each_other_fill_the_file_system(begin: Callable[..., BfclSession]) -> None:
    session = begin("GorillaFileSystem", turns=[[("ls", {})]])
    do(session, "mkdir", dir_name="x")
    results = []
    for number in range(40):  # each pair doubles what is below x
        results.append(do(session, "cp", source="x", destination=f"y{number}"))
        results.append(do(session, "cp", source=f"y{number}", destination="x"))
    assert results[-1] == ToolResult(ERROR, '{"error": "the file system is full"}')
    assert do(session, "du").status is OK
    assert (session.next_turn(""), session.solved("")) == (None, 0.0)


def test_a_folder_copied_into_itself_ends_no_run(begin: Callable[..., BfclSession]) -> None:
    session = begin("GorillaFileSystem", turns=[[("ls", {})]])
    do(session, "mkdir", dir_name="x")
    do(session, "cp", source="x", destination="x")
    assert do(session, "find", path=".").observation.startswith("Error during execution: maximum recursion depth")
    assert do(session, "cp", source="x", destination="y").observation == '{"error": "the file system is full"}'
    assert (session.next_turn(""), session.solved("")) == (None, 0.0)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


FITTING = {
    "string": st.text(max_size=8) | st.sampled_from(["/", "..", "driver", "SFO", "AAPL", "USD", "2026-01-01"]),
    "integer": st.integers(),
    "number": st.floats() | st.integers(),
    "boolean": st.booleans(),
}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_call_raises(begin: Callable[..., BfclSession], data: st.DataObject) -> None:
    owner = data.draw(st.sampled_from(CLASSES))
    session = begin(owner, long_context=data.draw(st.booleans()))
    for _ in range(3):
        name, schema = data.draw(st.sampled_from(sorted(list_schemas(owner).items(), key=lambda item: item[0])))
        parameters = schema["function"]["parameters"]["properties"]
        arguments = {k: data.draw(FITTING.get(p["type"], VALUES) | VALUES) for k, p in parameters.items()}
        result = do(session, name, **arguments)
        assert result.status in (OK, ERROR, INVALID)
        assert isinstance(result.observation, str)
