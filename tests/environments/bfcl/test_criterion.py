"""The benchmark's criterion: cases worked out by hand, and the benchmark's own checker on its own data."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from steptool.config import ToolsConfig
from steptool.environments.bfcl import BfclEnvironment
from steptool.policies.text_policies import drop_last_call, list_reference_calls, play_back
from steptool.records import Query, StepStatus, ToolCall

MakeTask = Callable[..., Query]
Turns = Sequence[Sequence[tuple[str, dict[str, Any]]]]
A, B, LS = ("touch", {"file_name": "a"}), ("touch", {"file_name": "b"}), ("ls", {})
REMOVE_B = ("rm", {"file_name": "b"})
ADD, ADD_AS_FLOAT = ("add", {"a": 1, "b": 2}), ("add", {"a": 1.0, "b": 2})
LOOKS = {
    "GorillaFileSystem": ("ls", {}),
    "MathAPI": ("add", {"a": 1, "b": 2}),
    "MessageAPI": ("list_users", {}),
    "TicketAPI": ("ticket_get_login_status", {}),
    "TradingBot": ("get_current_time", {}),
    "TravelAPI": ("list_all_airports", {}),
    "TwitterAPI": ("posting_get_login_status", {}),
    "VehicleControlAPI": ("check_tire_pressure", {}),
}
CHANGES = {
    "GorillaFileSystem": ("mkdir", {"dir_name": "new folder"}),
    "MathAPI": ("add", {"a": 3, "b": 2}),
    "MessageAPI": ("add_contact", {"user_name": "Zoe"}),
    "TicketAPI": ("ticket_login", {"username": "zoe", "password": "p"}),
    "TradingBot": ("trading_login", {"username": "zoe", "password": "p"}),
    "TravelAPI": ("set_budget_limit", {"access_token": "abc123xyz", "budget_limit": 7.0}),
    "TwitterAPI": ("follow_user", {"username_to_follow": "zoe"}),
    "VehicleControlAPI": ("set_navigation", {"destination": "Nowhere"}),
}


def play_turns(environment: BfclEnvironment, query: Query, turns: Turns) -> tuple[float, bool]:
    """The verdict, and whether every call was let through to the tools."""
    session, through = environment.reset(query), True
    for turn in turns:
        for name, arguments in turn:
            status = session.call(ToolCall(name, arguments)).status
            through &= status not in (StepStatus.UNKNOWN_TOOL, StepStatus.INVALID_ARGUMENTS)
        session.next_turn("")
    return session.solved(""), through


@pytest.mark.parametrize(
    ("reference", "turns", "solved"),
    [
        ([[A, LS]], [[A, LS]], 1),
        ([[A, LS]], [[LS, A, LS]], 1),  # one look more
        ([[A, LS]], [[A]], 0),  # a result is missing
        ([[A, LS]], [[LS, A]], 0),  # the result is another
        ([[A]], [[A, B]], 0),  # one file more
        ([[A]], [[B, A, REMOVE_B]], 1),  # undone
        ([[A]], [[]], 0),
        ([[A], [B]], [[A, B], []], 0),  # the state is ahead of its turn
        ([[A], [LS]], [[A, LS], []], 0),  # a turn without a call
        ([[A], [LS]], [[A, LS], [LS]], 1),
        ([[LS], [LS]], [[LS, LS], [("pwd", {})]], 1),  # a result of an earlier turn counts
        ([[LS, LS]], [[LS]], 0),  # each as often
        ([[LS], [LS]], [[LS], [("pwd", {})]], 1),  # but turns do not use results up
        ([[LS], []], [[LS], [LS]], 1),  # nothing is asked for in the last turn
        ([[], [A]], [[A], []], 0),
        ([[], [A]], [[A], [LS]], 1),  # done ahead, in a turn that asks for nothing
    ],
)
def test_cases_worked_out_by_hand(
    environment: BfclEnvironment, make_task: MakeTask, reference: Turns, turns: Turns, solved: int
) -> None:
    assert play_turns(environment, make_task("GorillaFileSystem", turns=reference), turns) == (solved, True)


def test_a_result_counts_as_it_is_written(environment: BfclEnvironment, make_task: MakeTask) -> None:
    query = make_task("MathAPI", turns=[[ADD]])
    assert play_turns(environment, query, [[ADD]])[0] == 1.0
    assert play_turns(environment, query, [[ADD_AS_FLOAT]])[0] == 0.0  # 3.0 is not 3


def test_all_turns_have_to_be_answered(environment: BfclEnvironment, make_task: MakeTask) -> None:
    session = environment.reset(make_task("GorillaFileSystem", turns=[[A], []]))
    session.call(ToolCall(*A))
    assert session.next_turn("Done.") == "Go on."
    assert session.solved(None) == 0.0
    assert session.next_turn("Bye.") is None
    assert session.solved("Bye.") == 1.0


def test_every_solution_solves_its_task_and_none_does_without_its_last_call(
    queries: list[Query], environment: BfclEnvironment
) -> None:
    options = {"limits": ToolsConfig()}
    whole = play_back([(q, list_reference_calls(q)) for q in queries], environment, **options)
    episodes = play_back([(q, drop_last_call(list_reference_calls(q))) for q in queries], environment, **options)
    assert sum(t.solved == 1.0 for t in whole) == 800
    assert sum(t.solved == 0.0 for t in episodes) == 800


def vary_solution(query: Query, rng: random.Random) -> dict[str, list[list[tuple[str, dict[str, Any]]]]]:
    """The reference's calls by turn, whole and with a fault or a liberty each."""
    whole = [[(c.name, dict(c.arguments)) for c in turn] for turn in query.reference.turns]
    turn = rng.choice([number for number, calls in enumerate(whole) if calls])
    other, owner = rng.randrange(len(whole)), rng.choice(query.reference.environment["bfcl"]["classes"])
    call = rng.randrange(len(whole[turn]))

    def change_call(number: int, calls: list[Any]) -> list[list[Any]]:
        return [*whole[:number], calls, *whole[number + 1 :]]

    shuffled = rng.sample(whole[turn], len(whole[turn]))
    return {
        "whole": whole,
        "a call dropped": change_call(turn, [c for number, c in enumerate(whole[turn]) if number != call]),
        "a call twice": change_call(turn, [*whole[turn][: call + 1], *whole[turn][call:]]),
        "shuffled": change_call(turn, shuffled),
        "a turn dropped": change_call(turn, []),
        "a look more": change_call(other, [*whole[other], LOOKS[owner]]),
        "a change more": change_call(other, [*whole[other], CHANGES[owner]]),
        "a turn ahead": change_call(max(0, turn - 1), [*whole[max(0, turn - 1)], *whole[turn]]),
    }


def write_turns(turns: Turns) -> list[list[str]]:
    return [[f"{n}({', '.join(f'{k}={v!r}' for k, v in args.items())})" for n, args in turn] for turn in turns]


def test_the_verdict_is_that_of_the_benchmark_itself(queries: list[Query], environment: BfclEnvironment) -> None:
    """Its checker evaluates text and keeps objects by name: nothing but its own data goes to it, under a name each."""
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

    rng, verdicts = random.Random(0), Counter[tuple[str, bool]]()
    for query in queries[::8]:
        task, versions = query.reference.environment["bfcl"], vary_solution(query, rng)
        entry = {"id": query.query_id, "initial_config": task["config"], "involved_classes": task["classes"]}
        solution = write_turns(versions["whole"])
        for kind, turns in versions.items():
            calls = [[[call] for call in turn] for turn in write_turns(turns)]
            expected = multi_turn_checker(calls, solution, entry, query.tier, kind.replace(" ", "_"))["valid"]
            actual, through = play_turns(environment, query, turns)
            if through:
                assert actual == expected, (query.query_id, kind)
                verdicts[kind, expected] += 1
    assert (verdicts["whole", True], verdicts["a turn dropped", False]) == (100, 100)
    assert verdicts["a look more", False] == verdicts["a turn dropped", True] == 0
    assert all(
        verdicts[kind, valid] > 5 for kind in ("a change more", "shuffled", "a turn ahead") for valid in (True, False)
    )
    assert verdicts.total() > 780, "few of the calls are refused before they are made"
