"""Episodes through a real HTTP server that speaks OpenAI's chat completions and refuses what is not well formed."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest

from steptool.chat.call_format import Format
from steptool.chat.endpoint import Endpoint, EndpointError, EndpointRefused
from steptool.chat.formats import HERMES
from steptool.chat.messages import strip_hints
from steptool.config import Config, EvaluatedPolicy, FinishMode, RolloutConfig
from steptool.environments.base import Environment
from steptool.environments.desk.environment import DeskEnvironment
from steptool.environments.desk.tasks import DONE, draw_desk_queries
from steptool.evaluation.measures import measure_episodes
from steptool.policies.catalog import open_policy
from steptool.policies.text_policies import EndpointPolicy
from steptool.records import FINISH, Query, StepStatus, StopReason, ToolCall, Trajectory
from steptool.records.columns import from_row, to_row
from steptool.records.tables import write_records
from steptool.rollout.episode import Decoding, PlayedEpisode, TurnCost
from steptool.rollout.runner import roll_out
from strict_chat_server import Message, calls, finish, script, turn_of


def play(
    endpoint: Endpoint,
    queries: Sequence[Query],
    environment: Environment,
    max_steps: int = 8,
    instructions: str = "Go.",
    finish: FinishMode = "tool",
    form: Format | None = None,
    **settings: Any,
) -> list[PlayedEpisode]:
    """The episodes of an endpoint that samples as it is greedy."""
    endpoints = dict.fromkeys(Decoding, endpoint)
    rollout = RolloutConfig(max_steps=max_steps, finish=finish)
    policy = EndpointPolicy(endpoints, name="far", rollout=rollout, instructions=instructions, form=form)
    return roll_out(policy, queries, environment, decoding=Decoding.GREEDY, **settings)


def test_desk_tasks_are_solved_through_an_endpoint(serve):
    config = Config.model_validate({"data": {"train_queries": 1, "validation_queries": 1, "heldout_queries": 4}})
    queries = [q for q in draw_desk_queries(config) if q.split == "heldout"]
    references = {q.instruction: q.reference for q in queries}

    def expert(messages: list[Message]) -> Message:
        reference, turn = references[messages[1]["content"]], turn_of(messages)
        if turn < len(reference.calls):
            call = reference.calls[turn]
            return calls((call.name, call.arguments), text="Let me look.")
        return finish(DONE)

    endpoint, server = serve(expert, price_in=2.0, price_out=5.0, concurrency=3)
    counts: list[int] = []
    episodes = play(endpoint, queries, DeskEnvironment(), 20, progress=lambda done, _: counts.append(done))
    trajectories = [episode.trajectory for episode in episodes]

    assert [t.query_id for t in trajectories] == [q.query_id for q in queries]
    assert [t.solved for t in trajectories] == [1.0] * 4 and counts == [1, 2, 3, 4]
    first = trajectories[0]
    assert first.messages[1]["content"] == "Let me look."
    assert (first.policy, first.sample, first.temperature, first.action_tokens) == ("far", 0, 0.0, 0)
    assert from_row(to_row(first), Trajectory).steps == first.steps
    turns = len(queries[0].reference.calls) + 1
    assert episodes[0].cost == TurnCost(10 * turns, 100 * turns, pytest.approx((200 * turns + 50 * turns) / 1e6))
    assert len(server.requests) == sum(len(q.reference.calls) + 1 for q in queries)
    its_own = next(r for r in server.requests if r["messages"][1]["content"] == queries[0].instruction)
    assert its_own["tools"] == strip_hints(queries[0].tools)
    row = measure_episodes(queries, trajectories, "far", "greedy", spent={first.trajectory_id: episodes[0].cost})[0]
    assert (row.passed, row.recall, row.tokens, row.redundant_calls) == (1.0, 1.0, 10 * turns, 0)


def test_without_instructions_an_endpoint_sees_the_prompt_that_a_model_was_trained_on(serve, environment, make_query):
    endpoint, server = serve(lambda messages: finish("7"))
    query = make_query("q0", "What is a?")
    play(endpoint, [query], environment, instructions="")
    play(endpoint, [query], environment, instructions="Use the tools.")
    alone, instructed = (request["messages"] for request in server.requests)
    assert alone == [{"role": "user", "content": "What is a?"}]
    assert instructed == [{"role": "system", "content": "Use the tools."}, *alone]


def test_replies_that_make_no_clean_call_are_steps_and_never_end_the_evaluation(serve, environment, make_query):
    endpoint, server = serve(
        script(
            {"role": "assistant", "content": "The answer is 7."},
            calls(("get", "{key: a}")),
            calls(("get", {"key": "a"}), ("get", {"key": "c"})),
            calls(("fetch", {"key": "a"})),
            calls(("get", "")),
            calls(("get", {"key": "c"})),
            finish("7"),
        )
    )
    (episode,) = play(endpoint, [make_query("q", "get a")], environment)
    played = episode.trajectory
    assert [s.status for s in played.steps] == [
        StepStatus.MALFORMED, StepStatus.MALFORMED, StepStatus.OK, StepStatus.UNKNOWN_TOOL,
        StepStatus.INVALID_ARGUMENTS, StepStatus.TOOL_ERROR, StepStatus.FINISH,
    ]  # fmt: skip
    assert [c.arguments for c in environment.sessions[0].calls] == [{"key": "a"}, {}, {"key": "c"}]
    assert played.solved == 1.0 and episode.cost.money is None
    messages = server.requests[-1]["messages"]
    assert messages[3] == {"role": "user", "content": '{"error": "no tool call"}'}
    assert "{key: a}" in messages[4]["content"] and "invalid JSON" in messages[5]["content"]
    assert messages[7]["content"] == '{"a": 7}'


def test_giving_up_silence_and_the_step_limit_end_an_episode(serve, environment, make_query):
    endings = {
        "up": calls((FINISH, {"return_type": "give_up_and_restart"})),
        "silence": {"role": "assistant", "content": None},
        "again": calls(("get", {"key": "a"})),
    }
    endpoint, _ = serve(lambda messages: endings[messages[1]["content"]])
    queries = [make_query(name, name) for name in endings]
    trajectories = [episode.trajectory for episode in play(endpoint, queries, environment)]
    assert [t.stop_reason for t in trajectories] == [
        StopReason.GAVE_UP, StopReason.MALFORMED, StopReason.STEP_LIMIT,
    ]  # fmt: skip
    assert [len(t.steps) for t in trajectories] == [1, 3, 8]


def test_the_user_goes_on_after_an_answer(serve, environment_that_talks, make_query):
    endpoint, server = serve(lambda messages: finish("7" if messages[-1]["content"] == "And now?" else "6"))
    (episode,) = play(endpoint, [make_query("q", "hello")], environment_that_talks)
    played = episode.trajectory
    assert (played.final_answer, played.solved) == ("7", 1.0)
    assert [m["role"] for m in server.requests[-1]["messages"]] == ["system", "user", "assistant", "tool", "user"]
    assert environment_that_talks.sessions[0].closed == 1


def test_every_sample_of_a_query_is_asked_anew(serve, environment, make_query):
    endpoint, server = serve(script(calls(("get", {"key": "a"})), finish("7")))
    queries = [make_query("q", "get a")] * 2
    episodes = play(endpoint, queries, environment, sample=1)
    assert [episode.trajectory.trajectory_id for episode in episodes] == ["far-r-1-q-g1", "far-r-1-q-g2"]
    assert len(server.requests) == 4
    play(endpoint, queries, environment, sample=1)
    assert len(server.requests) == 4


REFUSALS = {
    "filter": ("the content was filtered", StopReason.REFUSED),
    "openai": ("This model's maximum context length is 8192 tokens.", StopReason.CONTEXT_LIMIT),
    "llama": ("the request exceeds the available context size", StopReason.CONTEXT_LIMIT),
    "other": ("prompt is too long: 200001 tokens", StopReason.CONTEXT_LIMIT),
    "gemini": ("The input exceeds the maximum number of tokens allowed", StopReason.CONTEXT_LIMIT),
}


def test_a_request_that_is_refused_ends_its_episode_and_no_other(serve, environment, make_query):
    def brain(messages: list[Message]) -> Message | str:
        if turn_of(messages) == 0:
            return calls(("get", {"key": "a"}))
        instruction = messages[1]["content"]
        return REFUSALS[instruction][0] if instruction in REFUSALS else finish("7")

    endpoint, server = serve(brain)
    queries = [make_query(name, name) for name in (*REFUSALS, "good")]
    episodes = play(endpoint, queries, environment)
    played = [episode.trajectory for episode in episodes]
    reasons = [reason for _, reason in REFUSALS.values()]
    assert [t.stop_reason for t in played] == [*reasons, StopReason.FINISHED]
    assert [(len(t.steps), t.solved) for t in played] == [(1, 0.0)] * len(REFUSALS) + [(2, 1.0)]
    assert "query 'filter'" in episodes[0].refusal and "filtered" in episodes[0].refusal
    assert episodes[-1].refusal == "" and len(server.requests) == 2 * len(queries)
    row = measure_episodes(queries, played, "far", "greedy", spent={played[0].trajectory_id: episodes[0].cost})[0]
    assert (row.passed, row.stop_reason, row.tokens) == (0.0, "refused", 10)
    assert from_row(to_row(played[0]), Trajectory).stop_reason is StopReason.REFUSED


def test_an_endpoint_that_never_answers_is_an_error_and_no_failed_episodes(serve, environment_that_talks, make_query):
    endpoint, _ = serve(lambda messages: "unsupported parameter")
    queries = [make_query("q", "x"), make_query("r", "y")]
    with pytest.raises(EndpointRefused, match=r"no episode got an answer; query 'q'.*400.*unsupported parameter"):
        play(endpoint, queries, environment_that_talks)
    assert [s.closed for s in environment_that_talks.sessions] == [1, 1]


def test_a_wrong_key_stops_everything_at_once(serve, environment, make_query):
    endpoint, server = serve(lambda messages: 401, concurrency=2)
    queries = [make_query(f"q{n}", "x") for n in range(200)]
    with pytest.raises(EndpointRefused, match=r"query 'q\d'.*401.*the key in NO_KEY_HERE"):
        play(endpoint, queries, environment)
    assert len(server.requests) < 20


def test_what_failed_on_the_way_is_taken_up_where_it_stopped(serve, environment, make_query, tmp_path):
    broken = True

    def brain(messages: list[Message]) -> Message | int:
        turn = turn_of(messages)
        if broken and turn == 2 and messages[1]["content"] == "b":
            return 500
        return finish("7") if turn == 3 else calls(("get", {"key": "a" * (turn + 1)}))

    endpoint, server = serve(brain, concurrency=1)
    queries = [make_query(name, name) for name in "ab"]

    def play_again() -> list[StopReason]:
        with closing(Endpoint(endpoint.config, tmp_path / "replies.sqlite")) as with_replies:
            episodes = play(with_replies, queries, environment)
        assert [episode.cost.completion_tokens for episode in episodes] == [40, 40]
        return [episode.trajectory.stop_reason for episode in episodes]

    with pytest.raises(EndpointError, match=r"query 'b'.*500"):
        play_again()
    assert len(server.requests) == 4 + 3
    broken = False
    assert play_again() == [StopReason.FINISHED] * 2
    assert len(server.requests) == 4 + 3 + 2  # the turn that failed and the one after it
    assert play_again() == [StopReason.FINISHED] * 2 and len(server.requests) == 9


@pytest.mark.parametrize(
    "odd",
    [
        {"content": "no role"},
        {"role": "assistant", "content": [{"type": "text", "text": "parts"}]},
        {"role": "assistant", "tool_calls": [{"id": "c"}]},
        {"role": "assistant", "tool_calls": ["get"]},
        {"role": "assistant", "tool_calls": {"get": 1}},
        {"role": "assistant", "content": "half a pair \ud83d"},
    ],
)
def test_an_odd_reply_is_a_malformed_step_that_can_be_written(serve, environment, make_query, tmp_path, odd):
    endpoint, _ = serve(lambda messages: odd if turn_of(messages) == 0 else finish("7"))
    (episode,) = play(endpoint, [make_query("q", "get a")], environment)
    played = episode.trajectory
    assert [s.status for s in played.steps] == [StepStatus.MALFORMED, StepStatus.FINISH]
    write_records(tmp_path / "t.parquet", [played], Trajectory)


def test_an_endpoint_is_greedy_at_its_own_temperature_and_samples_at_that_of_the_rollouts(serve):
    config = Config.model_validate({"data": {"train_queries": 1, "validation_queries": 1, "heldout_queries": 2}})
    queries = [q for q in draw_desk_queries(config) if q.split == "heldout"]
    endpoint, server = serve(lambda messages: finish("?"), temperature=0.25)
    settings = EvaluatedPolicy(name="far", kind="endpoint", endpoint=endpoint.config)
    with open_policy(settings, config) as policy:
        greedy = roll_out(policy, queries, DeskEnvironment(), decoding=Decoding.GREEDY)
        sampled = roll_out(policy, queries, DeskEnvironment(), decoding=Decoding.SAMPLED)
    assert [r["temperature"] for r in server.requests] == [0.25, 0.25, 0.7, 0.7]
    assert [episode.trajectory.temperature for episode in (*greedy, *sampled)] == [0.25, 0.25, 0.7, 0.7]
    assert len({episode.trajectory.trajectory_id for episode in (*greedy, *sampled)}) == 4


def test_arguments_nested_too_deeply_are_a_malformed_step(serve, environment, make_query, tmp_path):
    deep = calls(("get", '{"key": ' + "[" * 965 + "]" * 965 + "}"))
    endpoint, _ = serve(lambda messages: deep if turn_of(messages) == 0 else finish("7"))
    (episode,) = play(endpoint, [make_query("q", "get a")], environment)
    assert [s.status for s in episode.trajectory.steps] == [StepStatus.MALFORMED, StepStatus.FINISH]
    assert episode.trajectory.steps[0].observation == '{"error": "invalid JSON: nested too deeply"}'
    write_records(tmp_path / "t.parquet", [episode.trajectory], Trajectory)


def test_arguments_may_come_as_an_object_and_a_refusal_is_told_as_text(serve, environment, make_query):
    as_object = calls(("get", "{}"))
    as_object["tool_calls"][0]["function"]["arguments"] = {"key": "a"}
    refusal = {"role": "assistant", "content": None, "refusal": "I would rather not."}
    endpoint, server = serve(script(as_object, refusal, {"role": "assistant", "content": None}, finish("7")))
    (episode,) = play(endpoint, [make_query("q", "get a")], environment)
    statuses = [StepStatus.OK, StepStatus.MALFORMED, StepStatus.MALFORMED, StepStatus.FINISH]
    assert [s.status for s in episode.trajectory.steps] == statuses
    assert environment.sessions[0].calls == [ToolCall("get", {"key": "a"})]
    texts = [m["content"] for m in server.requests[-1]["messages"] if m["role"] == "assistant"]
    assert texts == [None, "I would rather not.", "(no reply)"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_in_a_field_of_its_own_is_the_thought_and_is_not_sent_back(field, serve, environment, make_query):
    thinking = {**calls(("get", '{"key": "a"}')), "content": "I look.", field: "The shelf has it."}
    silent = {"role": "assistant", "content": "", field: "Hmm."}
    parts = {**finish("7"), "content": [{"type": "text", "text": "I "}, {"type": "text", "text": "know."}]}
    endpoint, server = serve(script(thinking, silent, parts))
    (episode,) = play(endpoint, [make_query("q", "get a")], environment)
    texts = [m["content"] for m in episode.trajectory.messages if m["role"] == "assistant"]
    assert texts == [
        "<think>\nThe shelf has it.\n</think>\nI look.",
        "<think>\nHmm.\n</think>",
        "I know.",
    ]
    contents = [m["content"] for m in server.requests[-1]["messages"] if m["role"] == "assistant"]
    assert contents == ["I look.", "(no reply)"]


def test_an_answer_in_text_ends_an_episode_or_brings_the_users_next_wish(serve, make_query, environment_that_talks):
    words = {"role": "assistant", "content": "6", "reasoning_content": "hm"}
    endpoint, server = serve(script(calls(("get", {"key": "a"})), words, {"role": "assistant", "content": "7"}))
    (played,) = play(endpoint, [make_query("q", "go")], environment_that_talks, finish="text")
    assert all([tool["function"]["name"] for tool in r["tools"]] == ["get"] for r in server.requests)
    assert server.requests[-1]["messages"][-2:] == [
        {"role": "assistant", "content": "6"}, {"role": "user", "content": "And now?"},
    ]  # fmt: skip
    t = played.trajectory
    assert environment_that_talks.sessions[0].answers == ["6", "7"] and (t.final_answer, t.solved) == ("7", 1.0)
    assert t.messages[3] == {"role": "assistant", "content": "<think>\nhm\n</think>\n6"}


def test_a_call_that_the_server_did_not_read_is_no_answer(serve, make_query, environment):
    turns = [{"role": "assistant", "content": text} for text in ("<tool_call>{", "<think>\n7?\n</think>\n7")]
    endpoint, server = serve(script(*turns))
    (played,) = play(endpoint, [make_query("q", "go")], environment, finish="text", form=HERMES)
    assert [s.status for s in played.trajectory.steps] == [StepStatus.MALFORMED, StepStatus.FINISH]
    assert server.requests[1]["messages"][-1]["content"] == '{"error": "tool call not closed"}'
    assert (played.trajectory.final_answer, played.trajectory.solved) == ("7", 1.0)


@pytest.mark.parametrize(
    "cut", [{"content": "<think>\n7"}, {"content": None, "reasoning_content": "7"}, {"content": "", "reasoning": "7"}]
)
def test_thinking_that_is_cut_is_no_answer(cut, serve, make_query, environment):
    """The same turn of a local model is malformed. A server may leave out the tag that the prompt has opened."""
    message = {"role": "assistant", "finish_reason": "length", **cut}
    endpoint, _ = serve(script(message, {"role": "assistant", "content": "hm, 7?</think>\n7"}))
    (played,) = play(endpoint, [make_query("q", "go")], environment, finish="text")
    assert [s.status for s in played.trajectory.steps] == [StepStatus.MALFORMED, StepStatus.FINISH]
    assert played.trajectory.steps[0].observation == '{"error": "thinking not closed"}'
    assert played.trajectory.final_answer == "7"
