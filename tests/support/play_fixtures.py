"""What tests of policies and of the runner share: small environments, models that recite, and local policies."""

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from steptool.chat.call_format import ParsedTurn
from steptool.chat.codec import ChatCodec
from steptool.chat.messages import FINISH_SCHEMA
from steptool.config import RolloutConfig, SearchConfig
from steptool.environments.base import Environment, Session, ToolResult
from steptool.models.load import train_tokenizer
from steptool.policies.token_policies import LocalPolicy
from steptool.records import Query, Reference, StepStatus, ToolCall, ToolSchema, Trajectory
from steptool.rollout.episode import Decoding
from steptool.rollout.runner import roll_out

GET = {
    "type": "function",
    "function": {
        "name": "get",
        "description": "Read a number",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
    },
}


class ShelfSession(Session):
    """Three numbers on a shelf; one of them cannot be reached."""

    def __init__(self, query: Query) -> None:
        self._wanted = query.reference.answer
        self.calls: list[ToolCall] = []

    def call(self, call: ToolCall) -> ToolResult:
        self.calls.append(call)
        key = call.arguments.get("key")
        if not isinstance(key, str):
            return ToolResult(StepStatus.INVALID_ARGUMENTS, '{"error": "key is missing"}')
        if key == "c":
            return ToolResult(StepStatus.TOOL_ERROR, '{"error": "out of reach"}')
        return ToolResult(StepStatus.OK, f'{{"{key}": {len(key) * 7}}}')

    def solved(self, final_answer: str | None) -> float:
        return float(final_answer == self._wanted)


class ShelfEnvironment(Environment):
    name = "shelf"

    def __init__(self) -> None:
        self.sessions: list[ShelfSession] = []

    def reset(self, query: Query) -> ShelfSession:
        self.sessions.append(ShelfSession(query))
        return self.sessions[-1]


class TalkingSession(ShelfSession):
    """The user has one more wish after the first answer."""

    def __init__(self, query: Query) -> None:
        super().__init__(query)
        self.answers: list[str] = []
        self.closed = 0

    def next_turn(self, final_answer: str) -> str | None:
        self.answers.append(final_answer)
        return "And now?" if len(self.answers) == 1 else None

    def close(self) -> None:
        self.closed += 1


class TalkingEnvironment(Environment):
    name = "talking"
    blocking = True

    def __init__(self) -> None:
        self.sessions: list[TalkingSession] = []

    def reset(self, query: Query) -> TalkingSession:
        self.sessions.append(TalkingSession(query))
        return self.sessions[-1]


def query(name: str, instruction: str, max_steps: int = 0) -> Query:
    return Query(
        query_id=name,
        split="train",
        environment="shelf",
        instruction=instruction,
        tools=(GET, FINISH_SCHEMA),
        reference=Reference("7"),
        tier="single",
        max_steps=max_steps,
    )


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def environment() -> ShelfEnvironment:
    return ShelfEnvironment()


@pytest.fixture
def environment_that_talks() -> TalkingEnvironment:
    return TalkingEnvironment()


@pytest.fixture
def make_query() -> Callable[..., Query]:
    return query


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["Solve the task with these tools, one call in each turn"] * 5, vocabulary=320)


@pytest.fixture(scope="session")
def codec(tokenizer: PreTrainedTokenizerBase) -> ChatCodec:
    return ChatCodec(tokenizer)


def _qwen(vocabulary: int) -> PreTrainedModel:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary, num_key_value_heads=4, **sizes))


def _llama(vocabulary: int) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, num_key_value_heads=2, max_position_embeddings=8192, **sizes)
    )


def _gpt2(vocabulary: int) -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=8192))


@pytest.fixture(params=[_qwen, _llama, _gpt2], ids=["qwen3", "llama", "gpt2"])
def random_model(request: pytest.FixtureRequest, codec: ChatCodec) -> PreTrainedModel:
    """Random weights, but peaked, and with a liking for the end of the turn."""
    torch.manual_seed(3)
    model: PreTrainedModel = request.param(len(codec.tokenizer))
    head = torch.nn.Linear(32, len(codec.tokenizer))
    torch.nn.init.normal_(head.weight, std=0.3)
    head.bias.data.zero_()
    head.bias.data[codec.end_id] = 3.0
    model.lm_head = head
    return model.eval()


class Parrot(PreTrainedModel):
    """A causal language model that recites: it reads what was said from its KV cache and goes on as scripted."""

    config_class = Qwen3Config

    def __init__(self, codec: ChatCodec, turns: dict[str, Sequence[str]]) -> None:
        super().__init__(Qwen3Config(attn_implementation="eager"))
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self._tokenizer, self._turns, self._end = codec.tokenizer, turns, codec.end_id
        self.computed = 0

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past_key_values: object,
        use_cache: bool = True,
    ) -> object:
        self.computed += input_ids.numel()
        observed, _ = past_key_values.update(*[input_ids[:, None, :, None].float()] * 2, 0)
        visible = attention_mask[:, 0, -1] == 0
        logits = torch.zeros(*input_ids.shape, len(self._tokenizer))
        for row in range(len(input_ids)):
            logits[row, -1, self._next(observed[row, 0, visible[row], 0].long().tolist())] = 50.0
        return type("Output", (), {"logits": logits})

    def _next(self, history: list[int]) -> int:
        prompt, *turns_so_far = self._tokenizer.decode(history).split("<|im_start|>assistant\n")
        text = self._text(prompt, turns_so_far)
        script = self._tokenizer.encode(text) + ([] if text.endswith("...") else [self._end])
        already = len(self._tokenizer.encode(turns_so_far[-1]))
        return script[already] if already < len(script) else self._tokenizer.encode(".")[0]

    def _text(self, prompt: str, turns_so_far: list[str]) -> str:
        turns = next((t for i, t in self._turns.items() if f"user\n{i}<|im_end|>" in prompt), [""])
        return turns[min(len(turns_so_far), len(turns)) - 1]


@pytest.fixture
def parrot(codec: ChatCodec) -> Callable[[dict[str, Sequence[str]]], Parrot]:
    return lambda turns: Parrot(codec, turns)


class Chooser(Parrot):
    """A parrot that says what a function makes of all that was said: the prompt, then each turn and what followed."""

    def __init__(self, codec: ChatCodec, choose: Callable[[list[str]], str]) -> None:
        super().__init__(codec, {})
        self._choose = choose

    def _text(self, prompt: str, turns_so_far: list[str]) -> str:
        return self._choose([prompt, *turns_so_far[:-1]])


@pytest.fixture
def chooser(codec: ChatCodec) -> Callable[[Callable[[list[str]], str]], Chooser]:
    return lambda choose: Chooser(codec, choose)


def roll_out_locally(
    model: PreTrainedModel,
    codec: ChatCodec,
    queries: Sequence[Query],
    environment: Environment,
    *,
    rollout: RolloutConfig,
    max_context: int,
    greedy: bool = False,
    seed: int = 0,
    search: SearchConfig | None = None,
    **settings: Any,
) -> list[Trajectory]:
    """The trajectories of a local policy named p."""
    options = {"name": "p", "rollout": rollout, "max_context": max_context, "seed": seed, "search": search}
    decoding = Decoding.GREEDY if greedy else Decoding.SAMPLED
    with closing(LocalPolicy(model, codec, **options)) as policy:
        episodes = roll_out(policy, queries, environment, decoding=decoding, **settings)
    return [episode.trajectory for episode in episodes]


@pytest.fixture
def play_locally() -> Callable[..., list[Trajectory]]:
    return roll_out_locally


class GatedEnvironment(Environment):
    """Calls of the query "slow" wait until all other episodes have ended."""

    name, blocking = "gated", True

    def __init__(self, others: int) -> None:
        self.open, self._others, self._lock = threading.Event(), others, threading.Lock()

    def reset(self, query: Query) -> "GatedSession":
        return GatedSession(query, self)

    def count_ended(self) -> None:
        with self._lock:
            self._others -= 1
            if self._others == 0:
                self.open.set()


class GatedSession(Session):
    def __init__(self, query: Query, environment: GatedEnvironment) -> None:
        self._slow, self._environment = query.query_id.startswith("slow"), environment

    def call(self, call: ToolCall) -> ToolResult:
        in_time = self._environment.open.wait(10) if self._slow else True
        return ToolResult(StepStatus.OK if in_time else StepStatus.TOOL_ERROR, "[7]")

    def solved(self, final_answer: str | None) -> float:
        if not self._slow:
            self._environment.count_ended()
        return 1.0


class NoteCodec(ChatCodec):
    """Reads whatever is said as a call, so that random weights play on."""

    def parse(self, ids: Sequence[int], tools: Sequence[ToolSchema] = ()) -> ParsedTurn:
        return ParsedTurn(ToolCall("get", {"key": super().parse(ids).text}), "")
