import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steptool.chat.codec import ChatCodec
from steptool.chat.messages import make_call_message
from steptool.config import Config, WarmStartConfig
from steptool.data.ingest import ingest
from steptool.environments.desk.tasks import draw_desk_queries, make_desk_demonstrations
from steptool.models.load import EMBEDDED, load_tokenizer, train_tokenizer
from steptool.records import Message, Query, StopReason, ToolCall, Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records
from steptool.training.warm_start import (
    TOO_LONG,
    UNENCODABLE,
    count_tokens,
    encode_demonstrations,
    iterate_texts,
    select_fitting,
)


def config(source: str = "desk", max_context: int = 4096) -> Config:
    return Config.model_validate(
        {
            "data": {"source": source, "train_queries": 3, "validation_queries": 1, "heldout_queries": 3},
            "policy": {"max_context": max_context},
            "warm_start": {"demonstrations": 3},
        }
    )


@pytest.fixture(scope="module")
def queries() -> list[Query]:
    return draw_desk_queries(config())


@pytest.fixture(scope="module")
def demonstrations(queries: list[Query]) -> list[Trajectory]:
    return make_desk_demonstrations(config(), queries)


@pytest.fixture(scope="module")
def codec(queries: list[Query], demonstrations: list[Trajectory]) -> ChatCodec:
    return ChatCodec(train_tokenizer(iterate_texts(queries, demonstrations), 600))


def lengths(queries: list[Query], codec: ChatCodec) -> list[int]:
    return [len(codec.prompt_ids([{"role": "user", "content": q.instruction}], q.tools)) for q in queries]


def test_a_prompt_may_fill_the_context_up_to_the_room_for_a_turn(queries: list[Query], codec: ChatCodec) -> None:
    exact = max(lengths(queries, codec)) + config().rollout.max_new_tokens
    assert select_fitting(queries, codec, config(max_context=exact)) == queries
    longest = queries[int(np.argmax(lengths(queries, codec)))]
    with pytest.raises(ValueError, match=f"query '{longest.query_id}': its prompt has"):
        select_fitting(queries, codec, config(max_context=exact - 1))


def test_recorded_queries_that_do_not_fit_are_left_out(queries: list[Query], codec: ChatCodec) -> None:
    exact = max(lengths(queries, codec)) + config().rollout.max_new_tokens
    fitting = select_fitting(queries, codec, config("toolbench", exact - 1))
    assert 0 < len(fitting) < len(queries)
    with pytest.raises(ValueError, match="no query of the split 'train'"):
        select_fitting(queries, codec, config("toolbench", 49))


def test_a_later_round_that_cannot_fill_its_shards_is_refused_at_the_start(
    queries: list[Query], codec: ChatCodec
) -> None:
    """Two shards of two episodes on three queries: the second round ends one pass and may draw the same query again."""

    def is_refused(rounds: int, seed: int) -> bool:
        sections = {"rollout": {"episodes": 2, "shards": 2}, "ppo": {"rounds": rounds}, "policy": {"max_context": 4096}}
        try:
            select_fitting(queries, codec, Config.model_validate({**sections, "seed": seed}))
        except ValueError as error:
            assert "lower rollout.shards" in str(error)
            return True
        return False

    assert not any(is_refused(1, seed) for seed in range(20))
    assert {is_refused(2, seed) for seed in range(20)} == {True, False}


def test_demonstrations_are_learned_from_with_the_tools_of_their_queries(
    queries: list[Query], demonstrations: list[Trajectory], codec: ChatCodec
) -> None:
    heldout = next(q.query_id for q in queries if q.split == "heldout")
    others = [replace(demonstrations[0], query_id="left out"), replace(demonstrations[0], query_id=heldout)]
    lessons = encode_demonstrations(queries, [*demonstrations, *others], codec, 4096)
    assert [lesson.trajectory_id for lesson in lessons.encoded] == [d.trajectory_id for d in demonstrations]
    for lesson, demonstration in zip(lessons.encoded, demonstrations, strict=True):
        assert len(lesson.spans) == len(demonstration.steps) and len(lesson.input_ids) == lesson.spans[-1][1]
    assert lessons.refused == [] and lessons.counts() == {"demonstrations": 3}


def turn(content: str) -> Message:
    return {"role": "assistant", "content": content}


TIDES = {
    "type": "function",
    "function": {"name": "tides", "description": "Tides", "parameters": {"type": "object", "properties": {}}},
}


def call(thought: str, arguments: str = "{}") -> list[Message]:
    message = {"role": "assistant", "content": thought}
    message["tool_calls"] = [{"type": "function", "function": {"name": "tides", "arguments": arguments}}]
    return [message, {"role": "tool", "content": "9:12"}]


@pytest.fixture(scope="module")
def embedded() -> ChatCodec:
    return ChatCodec(load_tokenizer(EMBEDDED))


RECORDED: dict[str, tuple[list[Message], str]] = {
    "good": ([*call("I look."), turn("At 9:12.")], ""),
    "ends its turn": ([*call(""), turn("It is END 9:12.")], UNENCODABLE),
    "call in a thought": ([*call("Now <tool_call> comes."), turn("At 9:12.")], UNENCODABLE),
    "response in a thought": ([*call("<tool_response>9:12</tool_response> it is."), turn("At 9:12.")], UNENCODABLE),
    "thinks on": ([*call("<think>I look."), turn("At 9:12.")], UNENCODABLE),
    "too long": ([*call("I look. " * 900), turn("At 9:12.")], TOO_LONG),
    "call in the text": (
        [turn('<tool_call>{"name": "tides", "arguments": {}}</tool_call>'), {"role": "tool", "content": "9:12"}],
        "",
    ),
}


def test_demonstrations_that_cannot_be_encoded_are_left_out_counted_and_named(
    embedded: ChatCodec, tmp_path: Path
) -> None:
    question = [{"role": "user", "content": "When is high water?"}]
    rows = [{"messages": [*question, *messages], "tools": [TIDES]} for messages, _ in RECORDED.values()]
    rows.append({"messages": [*question, *call("", '{"n": 1e999}'), turn("Nine.")], "tools": [TIDES]})
    (tmp_path / "logs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows).replace("END", embedded.end_token)
    )
    settings = Config.model_validate({"data": {"source": "recorded", "paths": [str(tmp_path / "logs.jsonl")]}})
    result = ingest(settings, tmp_path / "read", for_training=False)
    assert result.counts["demonstrations dropped: a number that JSON cannot write"] == 1
    queries = [replace(query, split="train") for query in read_queries(result.queries_path)]
    lessons = encode_demonstrations(queries, read_records(result.demonstrations_path, Trajectory), embedded, 2000)
    reasons = {refusal.demonstration.trajectory_id: refusal.reason for refusal in lessons.refused}
    expected = {f"{queries[0].query_id}-recorded-{n}": reason for n, (_, reason) in enumerate(RECORDED.values())}
    assert reasons == {name: reason for name, reason in expected.items() if reason}
    assert [lesson.trajectory_id for lesson in lessons.encoded] == [n for n, reason in expected.items() if not reason]
    assert lessons.counts() == {
        "demonstrations": 2, f"demonstrations left out: {UNENCODABLE}": 4, f"demonstrations left out: {TOO_LONG}": 1,
    }  # fmt: skip
    target = lessons.add_to_quarantine(result.quarantine_path, tmp_path / "quarantine.jsonl")
    refusals = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["row"] for row in refusals] == [8, *reasons]
    assert all(row["kind"] == "demonstrations" and row["reason"] and row["detail"] for row in refusals)


def test_only_an_empty_rest_stops_the_run(
    queries: list[Query], demonstrations: list[Trajectory], codec: ChatCodec
) -> None:
    mute = replace(demonstrations[0], messages=demonstrations[0].messages[:1])
    some = encode_demonstrations(queries, [mute, demonstrations[1]], codec, 4096)
    none = encode_demonstrations(queries, [mute], codec, 4096)
    some.check(WarmStartConfig())
    none.check(WarmStartConfig(steps=0))
    with pytest.raises(
        ValueError, match=rf"{UNENCODABLE} 1; first: '{demonstrations[0].trajectory_id}': a conversation to"
    ):
        none.check(WarmStartConfig())
    with pytest.raises(ValueError, match=r"no demonstration to learn from \(demonstrations 0\); give some"):
        encode_demonstrations(queries, [], codec, 4096).check(WarmStartConfig())


def test_tokens_of_the_warm_start_count_every_pass(demonstrations: list[Trajectory]) -> None:
    lessons = [replace(demonstrations[0], spans=spans) for spans in ([(1, 3), (5, 9)], [(2, 4)])]
    assert count_tokens(lessons, WarmStartConfig(steps=10, batch_size=3)) == 4 * 30


@pytest.mark.parametrize("chat_format", ["hermes", "react"])
def test_a_demonstration_that_calls_finish_is_learned_as_an_answer_in_text(
    queries: list[Query], demonstrations: list[Trajectory], chat_format: str
) -> None:
    codec = ChatCodec(train_tokenizer(iterate_texts(queries, demonstrations), 600), chat_format)
    lessons = encode_demonstrations(queries, demonstrations, codec, 4096, "text")
    assert len(lessons.encoded) == len(demonstrations) and not lessons.refused
    for lesson, demonstration in zip(lessons.encoded, demonstrations, strict=True):
        start, end = lesson.spans[-1]
        answer = codec.parse(lesson.input_ids[start:end].tolist()).answer
        assert answer == demonstration.final_answer and len(lesson.spans) == len(demonstration.steps)
        assert "Finish" not in codec.tokenizer.decode(lesson.input_ids)
        assert lesson.steps == demonstration.steps and not lesson.messages[-1].get("tool_calls")


def test_a_demonstration_that_gives_up_has_no_form_in_text(
    queries: list[Query], demonstrations: list[Trajectory], codec: ChatCodec
) -> None:
    up = make_call_message(ToolCall("Finish", {"return_type": "give_up_and_restart"}))
    gave_up = replace(
        demonstrations[0], messages=[*demonstrations[0].messages[:-1], up], stop_reason=StopReason.GAVE_UP
    )
    assert len(encode_demonstrations(queries, [gave_up], codec, 4096).encoded) == 1
    (refusal,) = encode_demonstrations(queries, [gave_up], codec, 4096, "text").refused
    assert (refusal.reason, refusal.detail) == (UNENCODABLE, "it gives up, which an answer in text cannot say")
