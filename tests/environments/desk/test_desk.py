"""The embedded world is executable, stateful, deterministic, and its splits share nothing."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steptool.chat.messages import reads_only
from steptool.config import Config
from steptool.environments.desk import tasks
from steptool.environments.desk.environment import TOOLS, DeskEnvironment, make_database
from steptool.environments.desk.goals import COMPOSITIONS, ERRANDS, PROCEDURES, REFERENCES
from steptool.environments.desk.tasks import (
    DONE,
    ERRAND,
    LONG,
    SHORT,
    SINGLE,
    Expert,
    draw_combination_split,
    draw_query,
    make_desk_demonstrations,
)
from steptool.environments.schema import check_tools
from steptool.models.load import load_tokenizer
from steptool.records import StepStatus, ToolCall

BASE = Path(tasks.__file__).parent / "base"
SPLITS = ("train", "validation", "heldout")
QUERIES = [draw_query(split, tier, f"test{i}") for split in SPLITS for tier in (SINGLE, LONG) for i in range(40)]


def _call(session, name, /, **arguments):
    return session.call(ToolCall(name, arguments))


def _query(condition):
    return next(q for i in range(10_000) if condition(q := draw_query("train", SINGLE, f"search{i}")))


def test_schemas_say_which_tools_only_read():
    writes = {tool["function"]["name"] for tool in DeskEnvironment().tools() if reads_only(tool) is False}
    assert writes == {
        *(
            "cancel_order",
            "open_return",
            "restock",
            "book_flight",
            "join_waitlist",
            "escalate",
            "assign_agent",
            "report",
        )
    }
    assert all(reads_only(tool) is not None for tool in DeskEnvironment().tools())


def test_there_are_19_tools_with_valid_schemas():
    assert len(TOOLS) == 19
    check_tools([tool.schema for tool in TOOLS.values()], "desk")


@pytest.mark.parametrize("query", QUERIES, ids=lambda q: q.query_id)
def test_the_reference_solution_solves_every_query_within_its_budget(query):
    session = DeskEnvironment().reset(query)
    offered = {t["function"]["name"] for t in query.tools}
    for call in query.reference.calls:
        assert call.name in offered
        assert _call(session, call.name, **call.arguments).status is StepStatus.OK
    assert session.solved(DONE) == 1.0
    assert len(query.reference.calls) + 1 < query.max_steps
    assert query.tier == SINGLE or 7 <= len(query.reference.calls) <= 12


def test_exactly_the_right_writes_and_reports_solve_a_query():
    query = _query(lambda q: q.reference.environment["goals"][0][:2] == ["cancel", "order.id"])
    *before, last = query.reference.calls
    session = DeskEnvironment().reset(query)
    for call in before:
        _call(session, call.name, **call.arguments)
    assert session.solved(DONE) == 0.0  # nothing has been reported
    _call(session, last.name, **last.arguments)
    assert session.solved(DONE) == 1.0
    assert session.solved(None) == 0.0
    ticket = next(iter(session.database.tables["ticket"]))
    assert _call(session, "escalate", ticket_id=ticket).status is StepStatus.OK
    assert session.solved(DONE) == 0.0


def test_a_wrong_report_does_not_solve_and_the_same_report_is_made_once():
    query = QUERIES[0]
    session = DeskEnvironment().reset(query)
    for call in query.reference.calls:
        _call(session, call.name, **call.arguments)
    again = query.reference.calls[-1]
    assert json.loads(_call(session, again.name, **again.arguments).observation) == {"error": "already reported"}
    assert session.solved(DONE) == 1.0
    assert _call(session, "report", value="esc_99").status is StepStatus.OK
    assert session.solved(DONE) == 0.0


def test_a_shipped_order_cannot_be_cancelled_and_is_returned_instead():
    query = _query(lambda q: q.reference.calls[-2].name == "open_return")
    order = query.reference.calls[-2].arguments["order_id"]
    session = DeskEnvironment().reset(query)
    refusals = _call(session, "cancel_order", order_id=order)
    assert refusals.status is StepStatus.TOOL_ERROR
    assert json.loads(refusals.observation) == {"error": "already shipped"}
    returned = _call(session, "open_return", order_id=order)
    assert json.loads(returned.observation) == {"return_id": query.reference.calls[-1].arguments["value"]}
    assert _call(session, "open_return", order_id=order).status is StepStatus.TOOL_ERROR  # the state has changed


def test_failures_have_their_status():
    session = DeskEnvironment().reset(QUERIES[0])
    assert _call(session, "get_order", order_id="order 7").status is StepStatus.INVALID_ARGUMENTS
    assert _call(session, "get_order", order_id="ord_01", more=1).status is StepStatus.INVALID_ARGUMENTS
    assert _call(session, "get_order").status is StepStatus.INVALID_ARGUMENTS
    assert _call(session, "open_sesame").status is StepStatus.UNKNOWN_TOOL
    assert _call(session, "find_user", name="nobody at all").status is StepStatus.TOOL_ERROR


def test_sessions_share_no_state_and_are_deterministic():
    query = _query(lambda q: q.reference.environment["writes"])
    one, two = DeskEnvironment().reset(query), DeskEnvironment().reset(query)
    calls = list(query.reference.calls)
    first = [one.call(c) for c in calls]
    assert [two.call(c) for c in calls] == first


def test_splits_share_neither_compositions_nor_databases():
    single = {s: set(tasks.list_compositions(s)) for s in SPLITS}
    assert set.union(*single.values()) == set(COMPOSITIONS)
    assert sum(map(len, single.values())) == len(COMPOSITIONS)
    used = {s: [q for q in QUERIES if q.split == s] for s in SPLITS}
    for split, queries in used.items():
        for query in queries:
            goals = [(p, r) for p, r, *_ in query.reference.environment["goals"]]
            assert goals[0] in single[split] if query.tier == SINGLE else draw_combination_split(goals) == split
    databases = [{q.reference.environment["database"] for q in queries} for queries in used.values()]
    assert len(set.union(*databases)) == sum(map(len, databases))


def test_every_procedure_and_reference_is_trained_on():
    trained = tasks.list_compositions("train")
    assert {p for p, _ in trained} == set(PROCEDURES)
    assert {r for _, r in trained} >= set(REFERENCES) - {"order.host", "product.last"}


def test_queries_are_paraphrased():
    wordings = {draw_query("train", SINGLE, f"{i}").instruction.split(" ord_")[0] for i in range(300)}
    assert len(wordings) > 60


def test_a_careful_expert_solves_everything_and_a_hurried_one_does_not():
    rng = random.Random(0)
    assert all(Expert(q, rng, slips=0.0, shortcuts=0.0).attempt().solved == 1.0 for q in QUERIES)
    hurried = [Expert(q, rng, slips=0.3, shortcuts=0.9).attempt() for q in QUERIES]
    assert 0.1 < sum(t.solved for t in hurried) / len(hurried) < 0.6


def test_demonstrations_come_from_training_queries_only():
    config = Config.model_validate(
        {
            "data": {"train_queries": 30, "validation_queries": 5, "heldout_queries": 5},
            "warm_start": {"demonstrations": 20},
        }
    )
    queries = tasks.draw_desk_queries(config)
    demonstrations = make_desk_demonstrations(config, queries)
    train = {q.query_id for q in queries if q.split == "train"}
    assert len(demonstrations) == 20
    assert {t.query_id for t in demonstrations} <= train
    assert tasks.draw_desk_queries(config) == queries


def test_short_queries_for_pretraining_stay_below_the_long_ones():
    assert all(len(draw_query(ERRAND, SHORT, f"{i}").reference.calls) <= 7 for i in range(30))


def test_errands_are_solved_by_their_expert_and_are_no_procedures_of_the_desk():
    errands = [draw_query(ERRAND, tier, f"errand{i}") for tier in (SINGLE, LONG) for i in range(60)]
    rng = random.Random(0)
    assert all(Expert(q, rng, slips=0.0, shortcuts=0.0).attempt().solved == 1.0 for q in errands)
    assert not set(ERRANDS) & set(PROCEDURES)
    phrases = {phrase for procedure in PROCEDURES.values() for phrase in procedure.phrases}
    assert not phrases & {phrase for errand in ERRANDS.values() for phrase in errand.phrases}


def test_a_conditional_errand_does_what_holds_and_offers_both_branches():
    query = next(
        q
        for i in range(10_000)
        if (q := draw_query(ERRAND, SINGLE, f"{i}")).reference.environment["goals"][0][0]
        == "ticket:major:escalate:author"
    )
    database = make_database(query.reference.environment["database"])
    _, _, start, _ = query.reference.environment["goals"][0]
    names = [call.name for call in query.reference.calls]
    major = database.tables["ticket"][start]["severity"] == "major"
    assert names == (["get_ticket", "escalate", "report"] if major else ["get_ticket", "report"])
    assert "escalate" in {tool["function"]["name"] for tool in query.tools}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_the_tokenizer_loses_no_text(text):
    tokenizer = load_tokenizer(BASE)
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_the_words_of_the_world_are_single_tokens():
    tokenizer = load_tokenizer(BASE)
    spelled = [q for q in QUERIES if any(t.startswith("<0x") for t in tokenizer.tokenize(q.instruction))]
    assert len(spelled) < 0.03 * len(QUERIES)  # a wording of several goals may put a word where no training query did
    values = {str(v) for q in QUERIES for c in q.reference.calls for k, v in c.arguments.items() if k != "name"}
    assert {len(tokenizer.tokenize(v)) for v in values} == {1}


def test_the_embedded_model_is_under_two_megabytes():
    assert sum(f.stat().st_size for f in BASE.iterdir()) < 2_000_000
