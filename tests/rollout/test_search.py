import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from play_fixtures import NoteCodec
from steptool.chat.codec import ChatCodec
from steptool.chat.formats import HERMES
from steptool.config import RolloutConfig, SearchConfig
from steptool.environments.desk.environment import TOOLS, DeskEnvironment, DeskSession
from steptool.environments.desk.tasks import DONE, LONG, draw_query
from steptool.records import Query, StopReason, ToolCall, Trajectory
from steptool.records.columns import from_row, to_row

A, B, C, D = (HERMES.render(ToolCall("get", {"key": key})) for key in ("a", "b", "c", "dd"))
SEVEN = HERMES.render(ToolCall("Finish", {"return_type": "give_answer", "final_answer": "7"}))
GIVE_UP = HERMES.render(ToolCall("Finish", {"return_type": "give_up_and_restart"}))

MakeQuery = Callable[..., Query]
Tree = dict[tuple[str, ...], Sequence[str]]


class Planner:
    """Takes the turns of a tree: from the path so far to the turns made there, one more for each that the hint shows.

    `hints` keeps the calls that were shown last at a node, `before` what stood before them, and `requests` in which
    order turns were requested.
    """

    def __init__(self, tree: Tree) -> None:
        self.hints: dict[tuple[str, ...], list[Any]] = {}
        self.before: dict[tuple[str, ...], str] = {}
        self.requests: list[tuple[tuple[str, ...], int]] = []
        self._tree = tree

    def __call__(self, parts: list[str]) -> str:
        path = tuple(part.partition("<|im_end|>")[0] for part in parts[1:])
        before, hinted, rest = parts[-1].partition("what the tools answered:\n")
        tried = json.loads(rest.partition("\nLook at")[0]) if hinted else []
        self.hints[path], self.before[path] = tried, before
        if (path, len(tried)) not in self.requests:
            self.requests.append((path, len(tried)))
        turns = self._tree[path]
        return turns[min(len(tried), len(turns) - 1)]


@pytest.fixture
def find(codec: ChatCodec, environment: Any, play_locally: Any) -> Callable[..., list[Trajectory]]:
    def go(model: PreTrainedModel, queries: list[Query], **options: Any) -> list[Trajectory]:
        settings = {"beam": 2, "max_turns": 30, "give_up_levels": 2, "hints": True, "batch_size": 4}
        settings |= {
            "max_new_tokens": 100,
            "max_steps": 8,
            "temperature": 1.0,
            "max_context": 8000,
        }
        settings |= {"codec": codec, "environment": environment, **options}
        tree = SearchConfig(**{name: settings.pop(name) for name in SearchConfig.model_fields})
        rollout = RolloutConfig(**{n: settings.pop(n) for n in list(settings) if n in RolloutConfig.model_fields})
        return play_locally(model=model, queries=queries, rollout=rollout, search=tree, **settings)

    return go


@pytest.fixture
def plan(find: Any, chooser: Any, make_query: MakeQuery) -> Callable[..., tuple[Trajectory, Planner]]:
    def go(tree: Tree, **options: Any) -> tuple[Trajectory, Planner]:
        planner = Planner(tree)
        (trajectory,) = find(chooser(planner), [options.pop("query", None) or make_query("q", "go")], **options)
        return trajectory, planner

    return go


def test_giving_up_takes_two_turns_back_and_shows_what_was_tried(
    plan: Any, codec: ChatCodec, make_query: MakeQuery, environment: Any
) -> None:
    t, planner = plan({(): [A, C], (A,): [GIVE_UP], (C,): [SEVEN]})
    assert planner.requests == [((), 0), ((A,), 0), ((), 1), ((C,), 0)]
    assert planner.hints[()] == [{"name": "get", "arguments": {"key": "a"}, "answer": '{"a": 7}'}]
    assert (t.stop_reason, t.final_answer, t.solved) == (StopReason.FINISHED, "7", 1.0)
    assert [codec.tokenizer.decode(t.input_ids[a:b]) for a, b in t.spans] == [C + "<|im_end|>", SEVEN + "<|im_end|>"]
    assert [s.call for s in t.steps] == [codec.parse(codec.tokenizer.encode(turn)).call for turn in (C, SEVEN)]
    assert (t.abandoned_turns, t.sampled_turns) == (2, 4)
    assert t.abandoned_tokens == sum(len(codec.tokenizer.encode(turn)) + 1 for turn in (A, GIVE_UP))
    assert t.sampled_tokens == t.action_tokens + t.abandoned_tokens
    restored = from_row(to_row(t), Trajectory)
    assert (restored.abandoned_turns, restored.abandoned_tokens) == (2, t.abandoned_tokens)
    assert codec.encode(t.messages, make_query("q", "go").tools).input_ids.tolist()[: t.spans[0][0]] == (
        t.input_ids[: t.spans[0][0]].tolist()
    ), "the hint is no part of the path"
    assert [len(session.calls) for session in environment.sessions] == [1, 1]


def test_any_other_end_takes_one_turn_back(plan: Any) -> None:
    t, planner = plan({(): [A], (A,): [B, SEVEN]}, max_steps=2)
    assert planner.requests == [((), 0), ((A,), 0), ((A,), 1)]
    assert planner.hints[(A,)] == [{"name": "get", "arguments": {"key": "b"}, "answer": '{"b": 7}'}]
    assert (t.stop_reason, len(t.steps), t.abandoned_turns) == (StopReason.FINISHED, 2, 1)


def test_without_hints_the_model_is_told_nothing(plan: Any) -> None:
    t, planner = plan({(): [A], (A,): [B, SEVEN]}, max_steps=2, hints=False)
    assert planner.hints == {(): [], (A,): []}
    assert (t.stop_reason, t.sampled_turns) == (StopReason.STEP_LIMIT, 6)


def test_a_turn_without_a_call_is_not_shown(plan: Any) -> None:
    t, planner = plan({(): ["eh"], ("eh",): ["eh"], ("eh", "eh"): ["eh"]})
    assert planner.hints == {(): [], ("eh",): [], ("eh", "eh"): []}
    assert (t.stop_reason, t.sampled_turns) == (StopReason.MALFORMED, 2 + 4 + 8)


def test_the_first_turn_given_up_leaves_nowhere_to_go(plan: Any) -> None:
    t, _ = plan({(): [GIVE_UP, SEVEN]})
    assert (t.stop_reason, t.solved, t.sampled_turns) == (StopReason.GAVE_UP, 0.0, 1)
    t, _ = plan({(): [GIVE_UP, SEVEN]}, give_up_levels=1)
    assert (t.stop_reason, t.solved, t.sampled_turns) == (StopReason.FINISHED, 1.0, 2)


def test_a_search_without_an_answer_ends_with_the_last_path(plan: Any) -> None:
    tree: Tree = {(): [A, B], (A,): [C, D], (B,): [D, C]}
    t, planner = plan(tree, max_steps=2)
    assert planner.requests == [((), 0), ((A,), 0), ((A,), 1), ((), 1), ((B,), 0), ((B,), 1)]
    assert [s.call.arguments["key"] for s in t.steps if s.call] == ["b", "c"]
    assert (t.stop_reason, t.final_answer, t.solved, t.sampled_turns) == (StopReason.STEP_LIMIT, None, 0.0, 6)


@pytest.mark.parametrize("turns", [1, 2, 3, 5])
def test_a_search_keeps_to_its_budget(plan: Any, turns: int) -> None:
    tree: Tree = {(): [A, B], (A,): [C, D], (B,): [D, SEVEN]}
    t, planner = plan(tree, max_steps=2, max_turns=turns)
    assert t.sampled_turns == turns == len(planner.requests)
    assert (t.stop_reason, t.final_answer, t.solved) == (StopReason.STEP_LIMIT, None, 0.0)
    assert t.spans[-1][1] == len(t.input_ids)
    assert len(t.spans) == len(t.steps)


def test_a_hint_without_room_is_left_out(plan: Any, codec: ChatCodec, make_query: MakeQuery) -> None:
    tree: Tree = {(): [A], (A,): [B, SEVEN]}
    query = make_query("q", "go")
    prompt, turn = codec.prompt_ids([{"role": "user", "content": "go"}], query.tools), codec.tokenizer.encode(A)
    path = len(prompt) + len(turn) + 1 + len(codec.observation_ids('{"a": 7}', "get"))
    short, planner = plan(tree, max_steps=2, max_context=path + 100)
    assert (planner.hints[(A,)], short.stop_reason, short.sampled_turns) == ([], StopReason.STEP_LIMIT, 6)


class KeptDesk(DeskEnvironment):
    def __init__(self) -> None:
        self.sessions: list[DeskSession] = []

    def reset(self, query: Query) -> DeskSession:
        self.sessions.append(super().reset(query))
        return self.sessions[-1]


def test_going_back_restores_the_state_of_the_environment(plan: Any) -> None:
    """The last write is made too early, after the first one, and given up: only the first one is made again."""
    query, calls, first, last = next(task for seed in range(200) if (task := _with_two_writes(f"search{seed}")))
    turns = [HERMES.render(call) for call in calls]
    turns.append(HERMES.render(ToolCall("Finish", {"return_type": "give_answer", "final_answer": DONE})))
    tree: Tree = {tuple(turns[:k]): [turn] for k, turn in enumerate(turns)}
    fork, early = tuple(turns[: first + 1]), HERMES.render(calls[last])
    tree |= {fork: [early, turns[first + 1]], (*fork, early): [GIVE_UP]}
    desk = KeptDesk()
    t, _ = plan(tree, query=query, environment=desk, max_context=20_000, max_new_tokens=160)
    assert (t.solved, t.abandoned_turns, len(t.steps)) == (1.0, 2, len(turns))
    journal_left, journal_used = ([list(entry) for entry in session.database.journal] for session in desk.sessions)
    assert len(journal_left) == 2, "the writes before and after the fork"
    assert journal_used[0] == journal_left[0]
    assert sorted(journal_used) == query.reference.environment["writes"]


def _with_two_writes(seed: str) -> tuple[Query, list[ToolCall], int, int] | None:
    query = draw_query("train", LONG, seed)
    calls = list(query.reference.calls)
    writes = [number for number, call in enumerate(calls) if TOOLS[call.name].writes]
    return (query, calls, writes[0], writes[-1]) if len(writes) > 1 and writes[-1] > writes[0] + 1 else None


def test_a_user_who_goes_on_is_answered_again(plan: Any, environment_that_talks: Any) -> None:
    tree: Tree = {(): [SEVEN], (SEVEN,): [A, SEVEN], (SEVEN, A): [GIVE_UP]}
    t, planner = plan(tree, environment=environment_that_talks)
    assert planner.hints[(SEVEN,)] == [{"name": "get", "arguments": {"key": "a"}, "answer": '{"a": 7}'}]
    assert "<|im_start|>user\nAnd now?\n\nYou have tried" in planner.before[(SEVEN,)]
    assert (t.stop_reason, t.final_answer, len(t.steps)) == (StopReason.FINISHED, "7", 2)
    assert [m["content"] for m in t.messages if m["role"] == "user"] == ["go", "And now?"]
    assert [s.answers for s in environment_that_talks.sessions] == [["7"], ["7", "7"]]
    assert [s.closed for s in environment_that_talks.sessions] == [1, 1]


def test_a_beam_of_one_is_the_chain(
    random_model: PreTrainedModel,
    find: Any,
    make_query: MakeQuery,
    codec: ChatCodec,
    environment: Any,
    play_locally: Any,
) -> None:
    queries = [make_query(f"q{n}", f"go {n}") for n in range(5)]
    rollout = RolloutConfig(max_steps=4, max_new_tokens=20, batch_size=4, temperature=1.0)
    shared = {"codec": NoteCodec(codec.tokenizer), "max_context": 4000, "seed": 3}
    chain = play_locally(random_model, queries=queries, environment=environment, rollout=rollout, **shared)
    tree = find(random_model, queries, beam=1, max_steps=4, max_new_tokens=20, **shared)
    for one, other in zip(chain, tree, strict=True):
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.logprobs.tolist() == other.logprobs.tolist()
        assert (one.messages, one.steps, one.stop_reason) == (other.messages, other.steps, other.stop_reason)
        assert (other.abandoned_turns, other.abandoned_tokens) == (0, 0)


def test_a_beam_of_one_ends_where_the_chain_ends(plan: Any) -> None:
    t, _ = plan({(): [A], (A,): [GIVE_UP]}, beam=1)
    assert (t.stop_reason, t.solved, t.sampled_turns, t.abandoned_turns) == (StopReason.GAVE_UP, 0.0, 2, 0)


def test_searches_depend_on_the_seed_and_not_on_what_runs_beside_them(
    random_model: PreTrainedModel, find: Any, make_query: MakeQuery, codec: ChatCodec
) -> None:
    queries = [make_query(f"q{n}", f"go {n}") for n in range(4)]
    options = {"codec": NoteCodec(codec.tokenizer), "max_steps": 2, "max_new_tokens": 12, "max_turns": 5}
    together = find(random_model, queries, **options)
    assert [t.sampled_turns for t in together] == [5] * 4
    for again in (
        find(random_model, queries, **options),
        find(random_model, queries[::-1], **options)[::-1],
        find(random_model, queries, batch_size=1, **options),
    ):
        assert [_calls_of(t) for t in again] == [_calls_of(t) for t in together]
    assert [_calls_of(t) for t in find(random_model, queries, seed=1, **options)] != [_calls_of(t) for t in together]


def _calls_of(t: Trajectory) -> tuple[Any, ...]:
    return t.input_ids.tolist(), t.abandoned_turns, t.abandoned_tokens, t.messages


@torch.inference_mode()
def test_after_going_back_the_model_sees_the_path_alone(
    random_model: PreTrainedModel, find: Any, make_query: MakeQuery, codec: ChatCodec
) -> None:
    """Six turns: down to the third, another third one, another second one after a hint, and a third one after that."""
    options = {"max_steps": 3, "max_new_tokens": 16, "max_turns": 6}
    (t,) = find(random_model, [make_query("q", "go")], codec=NoteCodec(codec.tokenizer), **options)
    assert (len(t.spans), t.abandoned_turns) == (3, 3)
    ids = torch.as_tensor(t.input_ids.astype(np.int64))[None]
    logprobs = random_model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    first, _, last = t.spans
    sampled = np.concatenate([t.logprobs[: first[1] - first[0]], t.logprobs[last[0] - last[1] :]])
    own = np.concatenate([logprobs[start - 1 : end - 1] for start, end in (first, last)])
    np.testing.assert_allclose(sampled, own, atol=1e-4)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_order_is_that_of_the_recursive_search(find: Any, chooser: Any, make_query: MakeQuery, levels: int) -> None:
    """Random trees of depth 4 against the definition: each call returns how many calls go back, as in ToolBench."""
    trees = {f"go {seed}": _random_tree(random.Random(seed)) for seed in range(6)}
    planners = {name: Planner(tree) for name, tree in trees.items()}
    model = chooser(lambda parts: planners[next(n for n in trees if f"user\n{n}" in parts[0])](parts))
    queries = [make_query(name, name) for name in trees]
    searched = find(model, queries, give_up_levels=levels, max_steps=4, max_turns=50)
    for t, (name, tree) in zip(searched, trees.items(), strict=True):
        expected: list[tuple[tuple[str, ...], int]] = []
        _recursive(tree, (), levels, expected)
        assert planners[name].requests == expected
        assert t.sampled_turns == len(expected)


def _random_tree(rng: random.Random) -> Tree:
    tree: Tree = {}
    open_paths: list[tuple[str, ...]] = [()]
    while open_paths:
        path = open_paths.pop()
        kinds = [rng.choice("ccccgga") if path else "c" for _ in range(2)]
        name = {"c": "", "g": GIVE_UP, "a": SEVEN}
        calls = [HERMES.render(ToolCall("get", {"key": str(number)})) for number in range(2)]
        tree[path] = [name[kind] or call for kind, call in zip(kinds, calls, strict=True)]
        if len(path) < 3:
            open_paths += [(*path, turn) for turn in tree[path] if turn not in (GIVE_UP, SEVEN)]
    return tree


def _recursive(tree: Tree, path: tuple[str, ...], levels: int, requests: list[tuple[tuple[str, ...], int]]) -> float:
    """How many levels to go back from this node: infinitely many once there is an answer."""
    if path and path[-1] in (SEVEN, GIVE_UP):
        return float("inf") if path[-1] == SEVEN else levels
    if len(path) == 4:
        return 1
    for number, turn in enumerate(tree[path]):
        requests.append((path, number))
        back = _recursive(tree, (*path, turn), levels, requests)
        if back > 1:
            return back - 1
    return 1
