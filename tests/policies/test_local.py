import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from steptool.chat.codec import ChatCodec
from steptool.chat.formats import HERMES
from steptool.config import RolloutConfig
from steptool.records import Query, StepStatus, StopReason, ToolCall, Trajectory
from steptool.records.columns import from_row, to_row

A, C, LOST = (HERMES.render(ToolCall("get", {"key": k})) for k in ("a", "c", "b"))
BAD, UNKNOWN = HERMES.render(ToolCall("get", {})), HERMES.render(ToolCall("put", {"key": "a"}))
EIGHT = HERMES.render(ToolCall("Finish", {"return_type": "give_answer", "final_answer": "8"}))
SEVEN = HERMES.render(ToolCall("Finish", {"return_type": "give_answer", "final_answer": "7"}))
NO_ANSWER = HERMES.render(ToolCall("Finish", {"return_type": "give_answer"}))
NO_TYPE = HERMES.render(ToolCall("Finish", {"final_answer": "7"}))
GIVE_UP = HERMES.render(ToolCall("Finish", {"return_type": "give_up_and_restart"}))

S = StepStatus
MakeQuery = Callable[..., Query]


@pytest.fixture
def run(codec: ChatCodec, environment: Any, play_locally: Any) -> Callable[..., list[Trajectory]]:
    def go(model: PreTrainedModel, queries: list[Query], **options: Any) -> list[Trajectory]:
        rollout = {"max_new_tokens": 160, "batch_size": 4, "max_steps": 8, "temperature": 1.0, **options}
        names = ("greedy", "seed", "max_context", "round_index", "progress")
        settings = {name: rollout.pop(name) for name in names if name in rollout}
        settings = {"max_context": 4000, "round_index": 2, **settings}
        return play_locally(model, codec, queries, environment, rollout=RolloutConfig(**rollout), **settings)

    return go


def test_an_episode_from_the_first_call_to_the_answer(
    run: Any, parrot: Any, make_query: MakeQuery, codec: ChatCodec, environment: Any
) -> None:
    turns = [A, "Hm. " + C, BAD, UNKNOWN, "who knows", NO_ANSWER, NO_TYPE, SEVEN]
    (t,) = run(parrot({"go": turns}), [make_query("q1", "go")])
    statuses = [S.OK, S.TOOL_ERROR, S.INVALID_ARGUMENTS, S.UNKNOWN_TOOL, S.MALFORMED]
    assert [s.status for s in t.steps] == [*statuses, S.INVALID_ARGUMENTS, S.INVALID_ARGUMENTS, S.FINISH]
    assert [s.observation for s in t.steps] == [
        '{"a": 7}',
        '{"error": "out of reach"}',
        '{"error": "key is missing"}',
        '{"error": "unknown tool put"}',
        '{"error": "no tool call"}',
        '{"error": "final_answer is missing"}',
        '{"error": "return_type must be give_answer or give_up_and_restart"}',
        "",
    ]
    assert (t.stop_reason, t.final_answer, t.solved) == (StopReason.FINISHED, "7", 1.0)
    assert (t.trajectory_id, t.query_id, t.policy, t.round, t.sample) == ("p-r2-q1-s0", "q1", "p", 2, 0)
    assert (t.environment, t.tier, t.temperature) == ("shelf", "single", 1.0)
    assert [codec.tokenizer.decode(t.input_ids[a:b]) for a, b in t.spans] == [turn + "<|im_end|>" for turn in turns]
    assert len(t.logprobs) == t.action_tokens == sum(b - a for a, b in t.spans)
    assert t.spans[-1][1] == len(t.input_ids)
    assert len(environment.sessions[0].calls) == 3, "neither unknown tools nor Finish reach the environment"
    assert t.seconds > 0


def test_messages_say_what_was_said(run: Any, parrot: Any, make_query: MakeQuery) -> None:
    (t,) = run(parrot({"go": ["Hm. " + A, "who knows", SEVEN]}), [make_query("q", "go")])
    call = {"name": "get", "arguments": {"key": "a"}}
    finish = {"name": "Finish", "arguments": {"return_type": "give_answer", "final_answer": "7"}}
    assert t.messages == [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "Hm.", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "name": "get", "content": '{"a": 7}'},
        {"role": "assistant", "content": "who knows"},
        {"role": "tool", "name": "error", "content": '{"error": "no tool call"}'},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": finish}]},
    ]
    json.dumps(t.messages)
    assert from_row(to_row(t), Trajectory).steps == t.steps


def test_training_on_the_messages_sees_the_tokens_of_the_rollout(
    run: Any, parrot: Any, make_query: MakeQuery, codec: ChatCodec
) -> None:
    as_rendered = [
        turn.replace("<tool_call>", "<tool_call>\n").replace("</tool_call>", "\n</tool_call>") for turn in (A, C, SEVEN)
    ]
    query = make_query("q", "go")
    (t,) = run(parrot({"go": as_rendered}), [query])
    encoded = codec.encode(t.messages, query.tools)
    assert encoded.input_ids.tolist() == t.input_ids.tolist()
    assert list(encoded.spans) == list(t.spans)


@pytest.mark.parametrize(
    ("turns", "max_steps", "stop", "steps"),
    [
        ([A, GIVE_UP], 0, StopReason.GAVE_UP, 2),
        (["eh", "eh", "eh"], 0, StopReason.MALFORMED, 3),
        (["eh", "eh", A, "eh", "eh", A, SEVEN], 0, StopReason.FINISHED, 7),
        ([A], 0, StopReason.STEP_LIMIT, 8),
        ([A], 3, StopReason.STEP_LIMIT, 3),
        ([A, A, SEVEN], 3, StopReason.FINISHED, 3),
        ([A, A, NO_ANSWER], 3, StopReason.STEP_LIMIT, 3),
    ],
)
def test_why_an_episode_stops(
    run: Any, parrot: Any, make_query: MakeQuery, turns: list[str], max_steps: int, stop: StopReason, steps: int
) -> None:
    (t,) = run(parrot({"go": turns}), [make_query("q", "go", max_steps)])
    assert (t.stop_reason, len(t.steps), len(t.spans)) == (stop, steps, steps)
    assert t.solved == float(stop is StopReason.FINISHED)
    assert (t.final_answer is None) == (stop is not StopReason.FINISHED)
    if stop is StopReason.STEP_LIMIT:
        assert t.steps[-1].observation, "the last observation is kept"


def test_the_context_limit_leaves_room_for_a_whole_turn(
    run: Any, parrot: Any, make_query: MakeQuery, codec: ChatCodec
) -> None:
    query, turn = make_query("q", "go"), len(codec.tokenizer.encode(A)) + 1
    prompt = len(codec.prompt_ids([{"role": "user", "content": "go"}], query.tools))
    observation = len(codec.observation_ids('{"a": 7}', "get"))
    needed = prompt + 2 * (turn + observation) + 100
    (fits,) = run(parrot({"go": [A, A, SEVEN]}), [query], max_context=needed, max_new_tokens=100)
    (short,) = run(parrot({"go": [A, A, SEVEN]}), [query], max_context=needed - 1, max_new_tokens=100)
    assert (fits.stop_reason, len(fits.steps)) == (StopReason.FINISHED, 3)
    assert (short.stop_reason, len(short.steps)) == (StopReason.CONTEXT_LIMIT, 2)
    assert short.steps[-1].observation == '{"a": 7}'


def test_a_turn_that_is_cut_off_is_closed_outside_its_span(
    run: Any, parrot: Any, make_query: MakeQuery, codec: ChatCodec
) -> None:
    (t,) = run(parrot({"go": ["on and on...", A]}), [make_query("q", "go")], max_new_tokens=100, max_steps=2)
    (a, b), _ = t.spans
    assert b - a == 100
    assert codec.end_id not in t.input_ids[a:b]
    assert t.input_ids[b] == codec.end_id
    assert t.input_ids[b : t.spans[1][0]].tolist() == codec.observation_ids(
        '{"error": "no tool call"}', "error", closed=False
    )
    assert [s.status for s in t.steps] == [S.MALFORMED, S.OK]


def test_a_prompt_that_does_not_fit_is_refused_before_anything_runs(
    run: Any, parrot: Any, make_query: MakeQuery, environment: Any, codec: ChatCodec
) -> None:
    model, long = parrot({}), make_query("q-long", "x" * 900)
    length = len(codec.prompt_ids([{"role": "user", "content": long.instruction}], long.tools))
    with pytest.raises(ValueError, match=rf"'q-long'.* {length} tokens.*max_context = 1200"):
        run(model, [make_query("q", "go"), long], max_context=1200)
    assert (model.computed, environment.sessions) == (0, [])


def test_every_token_is_computed_once(run: Any, parrot: Any, make_query: MakeQuery) -> None:
    model = parrot({"go": [A, A, A, A, SEVEN]})
    (t,) = run(model, [make_query("q", "go")])
    assert model.computed == len(t.input_ids) - 1, "the last sampled token is never fed back"


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_what_prompts_begin_with_is_computed_once(
    run: Any, parrot: Any, make_query: MakeQuery, codec: ChatCodec, batch_size: int
) -> None:
    """Ten prompts with the same tools: a row takes it over from another one, or from the episode before it."""
    turns = {f"go {n}": [A] * (n % 3) + [SEVEN] for n in range(10)}
    queries = [make_query(f"q{n}", f"go {n}") for n in range(10)]
    model = parrot(turns)
    process = run(model, queries, batch_size=batch_size)
    prompts = [codec.prompt_ids([{"role": "user", "content": q.instruction}], q.tools) for q in queries]
    shared = next(n for n, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)
    assert shared > 500
    once = sum(len(t.input_ids) - 1 for t in process) - 9 * shared
    assert once <= model.computed <= (once if batch_size == 1 else once + shared), "padding and idle rows included"
    alone = [run(parrot(turns), [query])[0] for query in queries]
    assert all(same(one, other) for one, other in zip(process, alone, strict=True))
    assert [len(t.steps) for t in process] == [n % 3 + 1 for n in range(10)]


def test_results_come_in_the_order_of_the_queries(run: Any, parrot: Any, make_query: MakeQuery) -> None:
    turns = {
        f"go{i}": [A] * (i % 4)
        + [HERMES.render(ToolCall("Finish", {"return_type": "give_answer", "final_answer": str(i)}))]
        for i in range(11)
    }
    done: list[tuple[int, int]] = []
    queries = [make_query(f"q{i}", f"go{i}") for i in range(11)]
    process = run(parrot(turns), queries, batch_size=3, progress=lambda n, total: done.append((n, total)))
    assert [t.query_id for t in process] == [f"q{i}" for i in range(11)]
    assert [t.final_answer for t in process] == [str(i) for i in range(11)]
    assert [len(t.steps) for t in process] == [i % 4 + 1 for i in range(11)]
    assert done == [(n, 11) for n in range(1, 12)]


def test_no_queries_no_episodes(run: Any, parrot: Any) -> None:
    assert run(parrot({}), []) == []


# Random models of three architectures: they say nothing that can be read, at various lengths, for three turns.


def ragged_prompts(make_query: MakeQuery, count: int = 6) -> list[Query]:
    return [make_query(f"q{i}", "please " * (i * i % 11) + "go") for i in range(count)]


def same(a: Trajectory, b: Trajectory) -> bool:
    return a.input_ids.tolist() == b.input_ids.tolist() and list(a.spans) == list(b.spans)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_logprobs_are_those_of_a_fresh_forward_pass(
    run: Any, random_model: PreTrainedModel, make_query: MakeQuery, greedy: bool, temperature: float
) -> None:
    process = run(random_model, ragged_prompts(make_query), max_new_tokens=30, greedy=greedy, temperature=temperature)
    assert greedy or len({b - a for t in process for a, b in t.spans}) > 3, "turns of various lengths"
    assert {len(t.spans) for t in process} == {3}
    for t in process:
        with torch.inference_mode():
            logits = random_model(input_ids=torch.tensor(t.input_ids[None]).long()).logits[0]
        logprobs = (logits / (1.0 if greedy else temperature)).log_softmax(-1)
        fresh = np.concatenate([logprobs[np.arange(a, b) - 1, t.input_ids[a:b]].numpy() for a, b in t.spans])
        np.testing.assert_allclose(t.logprobs, fresh, atol=1e-4)
        if greedy:
            best = np.concatenate([logprobs[np.arange(a, b) - 1].max(-1).values.numpy() for a, b in t.spans])
            np.testing.assert_allclose(t.logprobs, best, atol=1e-4)


@pytest.mark.parametrize("greedy", [False, True])
def test_the_batch_changes_no_episode(
    run: Any, random_model: PreTrainedModel, make_query: MakeQuery, greedy: bool
) -> None:
    queries = ragged_prompts(make_query)
    alone = [run(random_model, [q], max_new_tokens=30, greedy=greedy)[0] for q in queries]
    for size in (2, 16):
        together = run(random_model, queries, max_new_tokens=30, greedy=greedy, batch_size=size)
        assert all(same(a, b) for a, b in zip(alone, together, strict=True))


def test_seeds_rounds_and_samples_draw_differently(
    run: Any, random_model: PreTrainedModel, make_query: MakeQuery
) -> None:
    query = make_query("q", "go")
    first, second = run(random_model, [query, query], max_new_tokens=30)
    assert (first.sample, second.sample, second.trajectory_id) == (0, 1, "p-r2-q-s1")
    (again,), (seeded,), (later,) = (
        run(random_model, [query], max_new_tokens=30, **o) for o in ({}, {"seed": 1}, {"round_index": 3})
    )
    assert same(first, again)
    assert not any(same(first, other) for other in (second, seeded, later))


def test_the_model_is_left_as_it_was(run: Any, random_model: PreTrainedModel, make_query: MakeQuery) -> None:
    for training in (True, False):
        random_model.train(training)
        run(random_model, [make_query("q", "go")], max_new_tokens=4)
        assert random_model.training is training


def test_a_user_may_go_on_after_an_answer(
    codec: ChatCodec, parrot: Any, make_query: MakeQuery, environment_that_talks: Any, play_locally: Any
) -> None:
    options = {"max_context": 4000, "greedy": True}
    rollout = RolloutConfig(max_new_tokens=160, batch_size=2)
    model, queries = parrot({"go": [A, EIGHT, SEVEN]}), [make_query("q1", "go"), make_query("q2", "go")]
    played = play_locally(model, codec, queries, environment_that_talks, rollout=rollout, **options)
    for t in played:
        assert [s.status for s in t.steps] == [S.OK, S.FINISH, S.FINISH]
        assert (t.stop_reason, t.final_answer, t.solved) == (StopReason.FINISHED, "7", 1.0)
        assert [m["role"] for m in t.messages] == [
            "user", "assistant", "tool", "assistant", "tool", "user", "assistant"
        ]  # fmt: skip
        between = t.input_ids[t.spans[1][1] : t.spans[2][0]].tolist()
        assert between == codec.observation_ids("", "Finish", user_turn="And now?")
        assert "And now?" in codec.tokenizer.decode(between)
    assert [(s.answers, s.closed) for s in environment_that_talks.sessions] == [(["8", "7"], 1)] * 2


def test_a_limit_between_two_answers_leaves_no_answer(
    codec: ChatCodec, parrot: Any, make_query: MakeQuery, environment_that_talks: Any, play_locally: Any
) -> None:
    options = {"max_context": 4000, "greedy": True}
    rollout = RolloutConfig(max_new_tokens=160, batch_size=2, max_steps=2)
    (t,) = play_locally(
        parrot({"go": [A, SEVEN]}), codec, [make_query("q", "go")], environment_that_talks, rollout=rollout, **options
    )
    assert (t.stop_reason, t.final_answer, t.solved) == (StopReason.STEP_LIMIT, None, 0.0)


def test_sessions_are_closed_when_the_run_breaks_off(
    codec: ChatCodec, parrot: Any, make_query: MakeQuery, environment_that_talks: Any, play_locally: Any
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    queries = [make_query("q1", "go"), make_query("q2", "stay")]
    with pytest.raises(KeyboardInterrupt):
        play_locally(
            parrot({"go": [SEVEN, SEVEN], "stay": [A, A, A, A, A, SEVEN, SEVEN]}),
            codec,
            queries,
            environment_that_talks,
            rollout=RolloutConfig(max_new_tokens=160, batch_size=2),
            max_context=4000,
            greedy=True,
            progress=stop,
        )
    assert [s.closed for s in environment_that_talks.sessions] == [1, 1]
