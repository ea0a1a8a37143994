"""Rollout of 64 episodes with the KV cache kept across turns, against model.generate on the history at every turn.

The same model (5.8M random weights), tokenizer, environment and greedy decoding for both, so that both make the same
episodes. Prints `rollout tokens/s: OURS OTHER RATIO`, in tokens sampled per second, after a line on what was made.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from steptool.chat.call_format import ParsedTurn
from steptool.chat.codec import ChatCodec
from steptool.config import RolloutConfig
from steptool.environments.base import Environment, Session, ToolResult
from steptool.models.load import train_tokenizer
from steptool.policies.token_policies import LocalPolicy
from steptool.records import Query, StepStatus, ToolCall, ToolSchema
from steptool.rollout.episode import Decoding
from steptool.rollout.runner import roll_out

EPISODES, TURNS, NEW_TOKENS, CONTEXT = 64, 6, 24, 1024
SENTENCE = "The parcel of order 17 left the warehouse in Lyon and waits for a courier who speaks with nobody. "
NOTE: ToolSchema = {
    "type": "function",
    "function": {
        "name": "note",
        "description": "Keep a note",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
    },
}


class NoteCodec(ChatCodec):
    """Reads whatever is said as a call of `note`, so that random weights play long episodes."""

    def parse(self, ids: Sequence[int], tools: Sequence[ToolSchema] = ()) -> ParsedTurn:
        turn = super().parse(ids)
        return ParsedTurn(ToolCall("note", {"text": turn.text}), turn.text)


class NotebookSession(Session):
    """Keeps the notes and answers with a text whose length depends on them."""

    def __init__(self, query: Query) -> None:
        self._notes = [query.instruction]

    def call(self, call: ToolCall) -> ToolResult:
        self._notes.append(str(call.arguments["text"]))
        words = (SENTENCE * 3).split()
        return ToolResult(StepStatus.OK, " ".join(words[: 8 + sum(map(len, self._notes)) % 40]))

    def solved(self, final_answer: str | None) -> float:
        return 0.0


class Notebook(Environment):
    name = "notebook"

    def reset(self, query: Query) -> NotebookSession:
        return NotebookSession(query)


def make_model(codec: ChatCodec) -> PreTrainedModel:
    """Random weights that wander from token to token and end a turn now and then."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "head_dim": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    config = Qwen3Config(vocab_size=4096, max_position_embeddings=CONTEXT, initializer_range=0.1, **sizes, **heads)
    model = Qwen3ForCausalLM(config).eval()
    head = torch.nn.Linear(256, 4096)
    head.weight, head.bias.data[:] = model.lm_head.weight, 0.0
    head.bias.data[codec.end_id] = 1.8 * 256**0.5 * 0.1
    head.bias.data[len(codec.tokenizer) :] = -1e4
    model.lm_head = head
    return model


def make_queries() -> list[Query]:
    """Prompts of various lengths."""
    tools = (NOTE,)
    return [
        Query(f"q{i}", "train", Notebook.name, f"Note {i}: {SENTENCE * (1 + i % 3)}", tools) for i in range(EPISODES)
    ]


def play_ours(model: PreTrainedModel, codec: ChatCodec, queries: list[Query]) -> list[list[int]]:
    """The library. Returns the tokens of each episode."""
    rollout = RolloutConfig(batch_size=EPISODES, max_steps=TURNS, max_new_tokens=NEW_TOKENS)
    policy = LocalPolicy(model, codec, name="random", rollout=rollout, max_context=CONTEXT, seed=0)
    trajectories = [episode.trajectory for episode in roll_out(policy, queries, Notebook(), decoding=Decoding.GREEDY)]
    SAMPLED["ours"] = sum(t.action_tokens for t in trajectories)
    return [t.input_ids.tolist() for t in trajectories]


@torch.inference_mode()
def regenerate(model: PreTrainedModel, codec: ChatCodec, queries: list[Query], turns: int = TURNS) -> list[list[int]]:
    """model.generate on the left-padded batch of whole histories, turn after turn."""
    histories = [codec.prompt_ids([{"role": "user", "content": q.instruction}], q.tools) for q in queries]
    sessions = [Notebook().reset(q) for q in queries]
    SAMPLED["other"] = 0
    for number in range(turns):
        width = max(map(len, histories))
        ids = torch.tensor([[0] * (width - len(h)) + h for h in histories])
        mask = torch.tensor([[0] * (width - len(h)) + [1] * len(h) for h in histories])
        output = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=codec.end_id,
        )
        for history, session, new in zip(histories, sessions, output[:, width:].tolist(), strict=True):
            turn = new[: new.index(codec.end_id) + 1] if codec.end_id in new else new
            SAMPLED["other"] += len(turn)
            history += turn
            call = codec.parse(turn).call
            assert call is not None
            observation = session.call(call).observation
            if number < turns - 1:
                history += codec.observation_ids(observation, "note", closed=turn[-1] == codec.end_id)
    return histories


SAMPLED: dict[str, int] = {}


def main() -> None:
    """Warm both up on a few episodes, then time them."""
    logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    codec = NoteCodec(train_tokenizer([SENTENCE, str(NOTE)] * 4))
    model, queries = make_model(codec), make_queries()
    speeds, episodes = {}, {}
    for name, run in (("ours", play_ours), ("other", regenerate)):
        run(model, codec, queries[:4])
        start = time.perf_counter()
        episodes[name] = run(model, codec, queries)
        speeds[name] = SAMPLED[name] / (time.perf_counter() - start)
    equal = sum(a == b for a, b in zip(episodes["ours"], episodes["other"], strict=True))
    longest = max(map(len, episodes["ours"]))
    sys.stdout.write(
        f"rollout: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {equal} of {EPISODES} episodes "
        f"equal, {SAMPLED['ours'] / EPISODES / TURNS:.1f} tokens a turn, up to {longest} tokens an episode\n"
        f"rollout tokens/s: {speeds['ours']:.0f} {speeds['other']:.0f} {speeds['ours'] / speeds['other']:.2f}\n"
    )


if __name__ == "__main__":
    main()
