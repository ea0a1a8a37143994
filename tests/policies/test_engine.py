"""A policy over an engine with continuous batching: here a small one that computes each token from the whole prompt."""

import copy
import os
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from play_fixtures import GatedEnvironment, NoteCodec
from steptool.chat.codec import ChatCodec
from steptool.chat.formats import HERMES, REACT
from steptool.chat.messages import make_call_message, make_tool_message
from steptool.config import Config, EvaluatedPolicy, RolloutConfig, SearchConfig, ToolsConfig
from steptool.config.base import ConfigError
from steptool.environments.base import Environment
from steptool.models.load import EMBEDDED
from steptool.policies.catalog import open_policy
from steptool.policies.token_policies import Completion, EnginePolicy, Sampling
from steptool.policies.vllm import VllmEngine, _make_lora_options
from steptool.records import Query, StepStatus, StopReason, ToolCall, Trajectory
from steptool.rollout.episode import Decoding
from steptool.rollout.runner import roll_out

MakeQuery = Callable[..., Query]
ROLLOUT = RolloutConfig(max_steps=3, max_new_tokens=12, batch_size=3, temperature=1.0)


class PlainEngine:
    """Requests go on side by side, one token of each in a step, and end one by one."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self.closed = model, False
        self._running: dict[str, tuple[list[int], list[int], list[float], Sampling, torch.Generator]] = {}
        self.together = 0

    def add(self, request_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        draws = torch.Generator().manual_seed(sampling.seed)
        self._running[request_id] = (list(prompt_ids), [], [], sampling, draws)

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        self.together = max(self.together, len(self._running))
        ended = []
        for request_id, (prompt, ids, logprobs, sampling, draws) in list(self._running.items()):
            logits = self._model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1].float()
            tempered = logits / (sampling.temperature or 1.0)
            sampled = torch.multinomial(tempered.softmax(-1), 1, generator=draws)
            token = int(sampled if sampling.temperature else logits.argmax())
            ids.append(token)
            logprobs.append(float(tempered.log_softmax(-1)[token]))
            if token in sampling.end_ids or len(ids) == sampling.max_new_tokens:
                del self._running[request_id]
                ended.append(Completion(request_id, ids, np.asarray(logprobs, dtype=np.float32)))
        return ended

    def abort(self, request_ids: Collection[str]) -> None:
        for request_id in request_ids:
            self._running.pop(request_id, None)

    def close(self) -> None:
        self.closed = True


def play(
    model: PreTrainedModel, codec: ChatCodec, queries: Sequence[Query], environment: Environment, **settings: Any
) -> tuple[list[Trajectory], PlainEngine]:
    options = {"name": "p", "rollout": ROLLOUT, "max_context": 4000, "seed": 0, "search": settings.pop("search", None)}
    engine = PlainEngine(model)
    with closing(EnginePolicy(engine, codec, **options)) as policy:
        episodes = roll_out(policy, queries, environment, **settings)
    return [episode.trajectory for episode in episodes], engine


@pytest.mark.parametrize("search", [None, SearchConfig(max_turns=5)], ids=["chain", "dfsdt"])
def test_greedy_episodes_are_those_of_our_own_sampler(
    random_model: PreTrainedModel,
    codec: ChatCodec,
    make_query: MakeQuery,
    environment: Environment,
    play_locally: Any,
    search: SearchConfig | None,
) -> None:
    queries, notes = [make_query(f"q{n}", "please " * n + "go") for n in range(5)], NoteCodec(codec.tokenizer)
    episodes, engine = play(random_model, notes, queries, environment, decoding=Decoding.GREEDY, search=search)
    settings = {"rollout": ROLLOUT, "max_context": 4000, "greedy": True, "search": search}
    actual = play_locally(random_model, notes, queries, environment, **settings)
    assert engine.closed and engine.together == 3
    for one, other in zip(episodes, actual, strict=True):
        assert (one.input_ids.tolist(), one.spans, one.messages) == (
            other.input_ids.tolist(),
            other.spans,
            other.messages,
        )
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
        assert (one.trajectory_id, one.abandoned_turns) == (other.trajectory_id, other.abandoned_turns)


def test_samples_depend_on_seed_round_query_and_sample(
    random_model: PreTrainedModel, codec: ChatCodec, make_query: MakeQuery, environment: Environment
) -> None:
    queries, notes = [make_query(name, "go") for name in "abab"], NoteCodec(codec.tokenizer)
    together, _ = play(random_model, notes, queries, environment)
    alone = [play(random_model, notes, [query], environment, sample=n // 2)[0][0] for n, query in enumerate(queries)]
    assert [t.input_ids.tolist() for t in together] == [t.input_ids.tolist() for t in alone]
    later, _ = play(random_model, notes, queries, environment, round_index=1)
    assert len({tuple(t.input_ids.tolist()) for t in (*together, *later)}) == 8


def test_an_episode_whose_tool_answers_late_holds_nobody_up(
    random_model: PreTrainedModel, codec: ChatCodec, make_query: MakeQuery
) -> None:
    queries = [make_query("slow", "go"), *(make_query(f"q{n}", "go") for n in range(4))]
    episodes, _ = play(
        random_model, NoteCodec(codec.tokenizer), queries, GatedEnvironment(4), limits=ToolsConfig(timeout=600)
    )
    assert [t.stop_reason for t in episodes] == [StopReason.STEP_LIMIT] * 5
    assert {step.status for t in episodes for step in t.steps} == {StepStatus.OK}


def test_a_full_context_ends_an_episode(
    random_model: PreTrainedModel, codec: ChatCodec, make_query: MakeQuery, environment: Environment
) -> None:
    query = make_query("q", "go")
    room = len(codec.prompt_ids([{"role": "user", "content": "go"}], query.tools)) + ROLLOUT.max_new_tokens
    with closing(EnginePolicy(
        PlainEngine(random_model), NoteCodec(codec.tokenizer), name="p", rollout=ROLLOUT, max_context=room, seed=0
    )) as policy:  # fmt: skip
        (episodes,) = roll_out(policy, [query], environment)
    assert (episodes.trajectory.stop_reason, len(episodes.trajectory.steps)) == (StopReason.CONTEXT_LIMIT, 1)


def test_an_adapter_of_a_rank_that_vllm_does_not_take_is_refused() -> None:
    assert _make_lora_options("", 9) == {"enable_lora": True, "max_loras": 1, "max_lora_rank": 16}
    with pytest.raises(ConfigError, match=r"policy\.lora_rank: vLLM takes at most 512, got 513"):
        _make_lora_options("", 513)


@pytest.mark.skipif("vllm" in sys.modules, reason="vLLM is there")
def test_vllm_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    config = Config.model_validate({"rollout": {"engine": "vllm"}})
    with (
        pytest.raises(ConfigError, match=r"rollout\.engine is vllm.*install the extra 'gpu'"),
        open_policy(EvaluatedPolicy(name="small", model="embedded"), config),
    ):
        pass


GET, LOST = ToolCall("get", {"key": "a"}), ToolCall("get", {"key": "c"})
EIGHT, SEVEN = (ToolCall("Finish", {"return_type": "give_answer", "final_answer": n}) for n in "87")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
S = StepStatus


@pytest.fixture(scope="module")
def plain(tokenizer: PreTrainedTokenizerBase) -> ChatCodec:
    plain_tokenizer = copy.deepcopy(tokenizer)
    plain_tokenizer.chat_template = CHATML
    return ChatCodec(plain_tokenizer)


@pytest.fixture
def play_prompts(play_locally: Any) -> Callable[..., Trajectory]:
    def go(codec: ChatCodec, model: Any, query: Any, environment: Any) -> Trajectory:
        rollout = RolloutConfig(max_new_tokens=200, batch_size=1)
        (t,) = play_locally(model, codec, [query], environment, rollout=rollout, max_context=6000, greedy=True)
        return t

    return go


def test_an_episode_in_react(
    play_prompts: Any, plain: ChatCodec, parrot: Any, make_query: Any, environment: Any
) -> None:
    turns = [REACT.render(GET, "Look at a.\nAction: first"), REACT.render(LOST), HERMES.render(GET), "who knows"]
    turns.append(REACT.render(SEVEN, "So it is 7."))
    query = make_query("q", "go")
    t = play_prompts(plain, parrot({"go": turns}), query, environment)
    assert [s.status for s in t.steps] == [S.OK, S.TOOL_ERROR, S.MALFORMED, S.MALFORMED, S.FINISH]
    assert (t.stop_reason, t.final_answer, t.solved) == (StopReason.FINISHED, "7", 1.0)
    assert [plain.tokenizer.decode(t.input_ids[a:b]) for a, b in t.spans] == [turn + "<|im_end|>" for turn in turns]
    assert len(t.logprobs) == t.action_tokens
    assert t.messages == [
        {"role": "user", "content": "go"},
        make_call_message(GET, "Look at a.\nAction: first"),
        make_tool_message("get", '{"a": 7}'),
        make_call_message(LOST),
        make_tool_message("get", '{"error": "out of reach"}'),
        {"role": "assistant", "content": turns[2]},
        make_tool_message("error", '{"error": "no tool call"}'),
        {"role": "assistant", "content": "who knows"},
        make_tool_message("error", '{"error": "no tool call"}'),
        make_call_message(SEVEN, "So it is 7."),
    ]


def test_what_is_sampled_is_what_is_kept_and_taught(
    play_prompts: Any, plain: ChatCodec, parrot: Any, make_query: Any, environment_that_talks: Any
) -> None:
    turns = [REACT.render(GET, "Look."), REACT.render(EIGHT), "hm", REACT.render(SEVEN, "Again.")]
    query = make_query("q", "go")
    model = parrot({"go": turns})
    t = play_prompts(plain, model, query, environment_that_talks)
    assert [s.status for s in t.steps] == [S.OK, S.FINISH, S.MALFORMED, S.FINISH]
    prompt = plain.prompt_ids(t.messages[:1], query.tools)
    assert t.input_ids[: len(prompt)].tolist() == prompt
    text = plain.tokenizer.decode(t.input_ids)
    assert '\n<|im_start|>user\nObservation: {"a": 7}<|im_end|>\n<|im_start|>assistant\n' in text
    assert "\n<|im_start|>user\nObservation: \n\nAnd now?<|im_end|>\n<|im_start|>assistant\n" in text
    assert model.computed == len(t.input_ids) - 1, "every token is computed once; the last is never fed back"
    encoded = plain.encode(t.messages, query.tools)
    assert encoded.input_ids.tolist() == t.input_ids.tolist()
    assert list(encoded.spans) == list(t.spans)


def test_a_template_with_tools_can_speak_react_as_well(
    play_prompts: Any, tokenizer: PreTrainedTokenizerBase, parrot: Any, make_query: Any, environment: Any
) -> None:
    codec, query = ChatCodec(tokenizer, "react"), make_query("q", "go")
    t = play_prompts(codec, parrot({"go": [REACT.render(GET, "Look."), REACT.render(SEVEN)]}), query, environment)
    assert (t.stop_reason, t.solved) == (StopReason.FINISHED, 1.0)
    assert codec.encode(t.messages, query.tools).input_ids.tolist() == t.input_ids.tolist()


def test_on_a_gpu_vllm_gets_a_fresh_process_and_all_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that has asked for GPUs cannot share them with its forks, and memory that torch keeps is not free."""
    events: list[str] = []

    class Engine:
        @staticmethod
        def from_engine_args(options: dict[str, Any]) -> None:
            events.append(f"started by {os.environ['VLLM_WORKER_MULTIPROC_METHOD']}, eager {options['enforce_eager']}")

    stand_in = SimpleNamespace(SamplingParams=dict, EngineArgs=dict, LLMEngine=Engine)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("freed"))
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "")
    monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD")
    VllmEngine(str(EMBEDDED), max_context=64, max_requests=2)
    assert events == ["freed", "started by spawn, eager False"]
