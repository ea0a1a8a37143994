from dataclasses import replace

import numpy as np
import pytest

from steptool.chat.codec import ChatCodec, Encoded
from steptool.config import Config, WarmStartConfig
from steptool.environments.desk.expert import desk_demonstrations
from steptool.environments.desk.tasks import desk_queries
from steptool.models.load import train_tokenizer
from steptool.records import Query, Trajectory
from steptool.training.demonstrations import fitting, lessons, texts, tokens_seen


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
    return desk_queries(config())


@pytest.fixture(scope="module")
def shown(queries: list[Query]) -> list[Trajectory]:
    return desk_demonstrations(config(), queries)


@pytest.fixture(scope="module")
def codec(queries: list[Query], shown: list[Trajectory]) -> ChatCodec:
    return ChatCodec(train_tokenizer(texts(queries, shown), 600))


def lengths(queries: list[Query], codec: ChatCodec) -> list[int]:
    return [len(codec.prompt_ids([{"role": "user", "content": q.instruction}], q.tools)) for q in queries]


def test_a_prompt_may_fill_the_context_up_to_the_room_for_a_turn(queries: list[Query], codec: ChatCodec) -> None:
    exact = max(lengths(queries, codec)) + config().rollout.max_new_tokens
    assert fitting(queries, codec, config(max_context=exact)) == queries
    longest = queries[int(np.argmax(lengths(queries, codec)))]
    with pytest.raises(ValueError, match=f"query '{longest.query_id}': its prompt has"):
        fitting(queries, codec, config(max_context=exact - 1))


def test_recorded_queries_that_do_not_fit_are_left_out(queries: list[Query], codec: ChatCodec) -> None:
    exact = max(lengths(queries, codec)) + config().rollout.max_new_tokens
    kept = fitting(queries, codec, config("toolbench", exact - 1))
    assert 0 < len(kept) < len(queries)
    with pytest.raises(ValueError, match="no query of the split 'train'"):
        fitting(queries, codec, config("toolbench", 49))


def test_a_later_round_that_cannot_fill_its_shards_is_refused_at_the_start(
    queries: list[Query], codec: ChatCodec
) -> None:
    """Two shards of two episodes on three queries: the second round ends one pass and may draw the same query again."""

    def refused(rounds: int, seed: int) -> bool:
        sections = {"rollout": {"episodes": 2, "shards": 2}, "ppo": {"rounds": rounds}, "policy": {"max_context": 4096}}
        try:
            fitting(queries, codec, Config.model_validate({**sections, "seed": seed}))
        except ValueError as error:
            assert "lower rollout.shards" in str(error)
            return True
        return False

    assert not any(refused(1, seed) for seed in range(20))
    assert {refused(2, seed) for seed in range(20)} == {True, False}


def test_demonstrations_are_learned_from_with_the_tools_of_their_queries(
    queries: list[Query], shown: list[Trajectory], codec: ChatCodec
) -> None:
    heldout = next(q.query_id for q in queries if q.split == "heldout")
    others = [replace(shown[0], query_id="left out"), replace(shown[0], query_id=heldout)]
    examples = lessons(queries, [*shown, *others], codec)
    assert len(examples) == len(shown)
    for example, demonstration in zip(examples, shown, strict=True):
        assert len(example.spans) == len(demonstration.steps)


def test_a_demonstration_that_cannot_be_cut_is_named(
    queries: list[Query], shown: list[Trajectory], codec: ChatCodec
) -> None:
    with pytest.raises(ValueError, match=f"demonstration '{shown[0].trajectory_id}'"):
        lessons(queries, [replace(shown[0], messages=shown[0].messages[:1])], codec)


def test_tokens_of_the_warm_start_count_every_pass() -> None:
    examples = [Encoded(np.zeros(9, np.int32), ((1, 3), (5, 9))), Encoded(np.zeros(4, np.int32), ((2, 4),))]
    assert tokens_seen(examples, WarmStartConfig(steps=10, batch_size=3)) == 4 * 30
