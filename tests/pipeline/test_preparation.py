import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MambaConfig, MistralConfig, MistralForCausalLM, PreTrainedModel

from play_fixtures import query
from steptool.chat.codec import ChatCodec
from steptool.check.data import check_data
from steptool.config import Config
from steptool.data.parsing import IngestError
from steptool.models.load import EMBEDDED, ModelError, load_codec, load_model
from steptool.pipeline import preparation
from steptool.pipeline.preparation import rehearse, try_model
from steptool.records import Query

CONFIG = Config.model_validate({"policy": {"max_context": 4000}, "rollout": {"max_new_tokens": 24}})


@pytest.fixture
def queries() -> list[Query]:
    return [query(f"q{n}", "please " * n + "go") for n in (1, 20, 4)]


class Careless(MistralForCausalLM):
    """Plays without its window: with a cache, a token sees every earlier one."""

    def forward(
        self, position_ids: Any = None, past_key_values: Any = None, attention_mask: Any = None, **inputs: Any
    ) -> Any:
        if attention_mask is not None:
            slots = torch.arange(attention_mask.shape[-1])
            attention_mask = torch.where(slots <= position_ids[:, None, :, None], 0.0, torch.finfo(torch.float32).min)
        return super().forward(
            position_ids=position_ids, past_key_values=past_key_values, attention_mask=attention_mask, **inputs
        )


def mistral(codec: ChatCodec, window: int, kind: type[MistralForCausalLM] = MistralForCausalLM) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=len(codec.tokenizer), num_key_value_heads=2, sliding_window=window, **sizes)
    model = kind(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


def test_a_model_that_plays_as_it_trains_passes(
    codec: ChatCodec, queries: list[Query], random_model: PreTrainedModel
) -> None:
    assert try_model(random_model, codec, queries, CONFIG) < 1e-4
    assert try_model(mistral(codec, 2000), codec, queries, CONFIG) < 1e-4


def test_a_window_that_play_ignores_is_found_though_prompts_are_short(codec: ChatCodec, queries: list[Query]) -> None:
    with pytest.raises(ModelError, match=r"Careless samples turns whose log-probabilities differ .* 0\.01 are allowed"):
        try_model(mistral(codec, 2000, Careless), codec, queries, CONFIG)


def test_where_another_engine_decodes_the_model_is_not_played(codec: ChatCodec, queries: list[Query]) -> None:
    config = Config.model_validate({"policy": {"max_context": 4000}, "rollout": {"engine": "vllm"}})
    sizes = {"hidden_size": 16, "num_hidden_layers": 1}
    hybrid = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=len(codec.tokenizer), **sizes))
    assert try_model(hybrid, codec, queries, config) == 0.0
    with pytest.raises(ModelError, match=r"MambaForCausalLM cannot be played.*set rollout\.engine to vllm"):
        try_model(hybrid, codec, queries, CONFIG)
    next(hybrid.parameters()).data[0] = float("inf")
    with pytest.raises(ModelError, match="hold values that are no numbers"):
        try_model(hybrid, codec, queries, config)


def test_a_model_that_takes_no_adapter_is_refused_before_it_is_trained(codec: ChatCodec, queries: list[Query]) -> None:
    tree = {"policy": {"max_context": 4000, "lora_rank": 2}, "rollout": {"engine": "vllm"}}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1}
    hybrid = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=len(codec.tokenizer), **sizes))
    with pytest.raises(ModelError, match=r"MambaForCausalLM cannot be trained.*set policy\.lora_rank to 0"):
        try_model(hybrid, codec, queries, Config.model_validate(tree))


def test_weights_that_are_no_numbers_are_refused(codec: ChatCodec, queries: list[Query]) -> None:
    model = mistral(codec, 2000)
    model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(ModelError, match=r"'model\.norm\.weight' hold values that are no numbers"):
        try_model(model, codec, queries, CONFIG)


def test_a_failure_of_the_trial_names_the_model(codec: ChatCodec, queries: list[Query]) -> None:
    model = mistral(codec, 2000)
    del model.model.layers[0].self_attn.q_proj.weight
    with pytest.raises(ModelError, match=r"MistralForCausalLM cannot be played by our engine, a trial turn ended with"):
        try_model(model, codec, queries, CONFIG)
    long = Config.model_validate({"policy": {"max_context": 10**6}})
    with pytest.raises(ModelError, match=r"policy\.base: .*positions for \d+ tokens"):
        try_model(mistral(codec, 2000), codec, queries, long)


def test_a_prompt_with_a_token_that_has_no_embedding_is_refused(codec: ChatCodec, queries: list[Query]) -> None:
    model = mistral(codec, 2000)
    model.resize_token_embeddings(200)
    with pytest.raises(ModelError, match=r"a prompt has the token \d+, and the model has embeddings for 200 tokens"):
        try_model(model, codec, queries, CONFIG)


TOOLS = '''from pathlib import Path


def count(item: str) -> int:
    """Count what is in stock.

    Args:
        item: What to count.
    """
    Path(__file__).with_name("called").touch()
    return 3


TOOLS = [count]
'''


@pytest.fixture
def shop(tmp_path: Path) -> Config:
    """Eight tasks for a tool that leaves a file behind when it is called."""
    (tmp_path / "tools.py").write_text(TOOLS)
    calls = [{"name": "count", "arguments": {"item": "kettles"}}]
    tasks = [{"instruction": f"How many, {n}?", "reference": {"answer": "3", "calls": calls}} for n in range(8)]
    (tmp_path / "tasks.jsonl").write_text("".join(f"{json.dumps(task)}\n" for task in tasks))
    counts = {"train_queries": 4, "validation_queries": 2, "heldout_queries": 2}
    data = {"source": "jsonl", "environment": "functions", "paths": [str(tmp_path / "tasks.jsonl")], **counts}
    return Config.model_validate({"data": data, "tools": {"functions": f"{tmp_path / 'tools.py'}:TOOLS"}})


def test_a_check_reads_tasks_as_a_dry_run_does_and_calls_no_tool(shop: Config, tmp_path: Path) -> None:
    (recordings := tmp_path / "recordings.jsonl").write_text('{"messages": [\n')
    data = shop.data.model_copy(update={"recorded_answers": [str(recordings)]})
    lines = check_data(shop.model_copy(update={"data": data}))
    assert lines[0] == "data        read: 8 of 8 queries are kept"
    assert any(line.strip() == "demonstrations dropped: not JSON 1" for line in lines)
    assert not (tmp_path / "called").exists()
    with (tmp_path / "tasks.jsonl").open("a") as file:
        file.write('{"instruction": \n')
    for read in (check_data, lambda config: list(rehearse(config, for_training=True))):
        with pytest.raises(IngestError, match=r"tasks\.jsonl, line 9: not JSON"):
            read(shop)


def test_weights_under_other_names_are_refused(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("self_attn.q_proj", "attention.query"): value for name, value in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the weights hold no model\.layers\.0\.self_attn\.q_proj\.weight"):
        load_model(tmp_path)


def test_every_end_of_a_turn_that_a_model_folder_names_is_obeyed(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "generation_config.json"
    for end_ids, expected in (([6, 11, 12], {6, 11, 12}), (9, {6, 9}), (None, {6})):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": end_ids}))
        assert load_codec(tmp_path).end_ids == expected
    file.unlink()
    assert load_codec(tmp_path).end_ids == {6}


def test_the_trial_fills_the_context_once(codec: ChatCodec, queries: list[Query]) -> None:
    lengths = [len(ids) for ids in preparation._make_prompts(codec, queries, "tool", 1000)]
    prompts: list[Any] = [codec.prompt_ids([{"role": "user", "content": q.instruction}], q.tools) for q in queries]
    assert lengths == [len(prompts[0]), len(prompts[1]), 1000]
    assert len(preparation._make_prompts(codec, queries, "tool", 10)) == 2
