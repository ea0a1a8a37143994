"""Adapter folders: where their base lies, what they hold, and the whole model that they make with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from steptool.artifacts import lineage
from steptool.config import PolicyConfig
from steptool.models import adapter
from steptool.models.load import ModelError, load_model, load_tokenizer, make_tiny_model, train_tokenizer

LORA = PolicyConfig(lora_rank=2, lora_alpha=8)


def save(model: PreTrainedModel, folder: Path, shard: str = "1GB") -> Path:
    """A model folder with a tokenizer; `shard` is the most that a file of weights may have."""
    train_tokenizer(["find the order of mira chen"], vocabulary=300).save_pretrained(folder)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny model in several files."""
    tokenizer = train_tokenizer(["find the order of mira chen"], vocabulary=300)
    return save(make_tiny_model(tokenizer, 64, seed=1, hidden=16, layers=2), tmp_path / "base", "8KB")


def make_adapter(base: Path, folder: Path, seed: int = 0) -> nn.Module:
    """An adapter over the model of a folder that changes it clearly, and the model with it."""
    policy = adapter.add_adapter(load_model(base), LORA, seed)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.1)
    adapter.save_adapter(policy, adapter.name_base(base), folder)
    return policy


def logits(model: nn.Module) -> torch.Tensor:
    half = next(model.parameters()).dtype == torch.bfloat16
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        return model(input_ids=torch.arange(5, 45)[None]).logits.float()


def test_an_adapter_folder_has_pefts_two_files_and_names_its_base_by_digest(base: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "round")
    assert {file.name for file in (tmp_path / "round").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert str(tmp_path) not in (tmp_path / "round" / "adapter_config.json").read_text()
    assert adapter.read_base_name(tmp_path / "round").startswith("sha256:")
    distance = base.rename(tmp_path / "moved")
    assert adapter.read_base_name(tmp_path / "round") == adapter.name_base(distance)


def test_the_same_adapter_is_written_to_the_same_bytes(base: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_adapter(base, tmp_path / name)
    for file in (adapter.CONFIG, adapter.WEIGHTS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
    modules = json.loads((tmp_path / "one" / adapter.CONFIG).read_text())["target_modules"]
    assert modules == sorted(modules)


def test_where_base_and_adapter_lie(base: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "round")
    assert adapter.locate(base) == adapter.ModelPlace(str(base))
    assert adapter.locate(base, "elsewhere") == adapter.ModelPlace(str(base))
    assert adapter.locate("owner/model") == adapter.ModelPlace("owner/model")
    assert adapter.locate(tmp_path / "round", base) == adapter.ModelPlace(str(base), str(tmp_path / "round"))
    with pytest.raises(ModelError, match=r"weights sha256:.*; name the folder of that model as its base"):
        adapter.locate(tmp_path / "round")


def test_an_adapter_of_the_hub_names_its_base_itself(base: Path, tmp_path: Path) -> None:
    policy = make_adapter(base, tmp_path / "round")
    adapter.save_adapter(policy, "owner/model", tmp_path / "round")
    assert adapter.locate(tmp_path / "round") == adapter.ModelPlace("owner/model", str(tmp_path / "round"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_model_is_the_base_with_its_adapter(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    save(load_model(base).to(dtype), base, "8KB")
    policy = make_adapter(base, tmp_path / "round")
    adapter.write_whole_model(tmp_path / "round", base, tmp_path / "whole")
    whole = load_model(tmp_path / "whole")
    assert whole.dtype == dtype
    assert torch.equal(logits(whole), logits(adapter.load_joined(adapter.locate(tmp_path / "round", base))))
    if dtype == torch.float32:
        torch.testing.assert_close(logits(whole), logits(policy), atol=1e-5, rtol=1e-5)
    assert (logits(whole) - logits(load_model(base))).abs().max() > 0.01
    names = [{file.name for file in folder.glob("model*")} for folder in (base, tmp_path / "whole")]
    assert names[0] == names[1] and len(names[0]) > 2  # the same files, and their index
    load_tokenizer(tmp_path / "whole")
    again = PeftModel.from_pretrained(load_model(base), tmp_path / "whole" / adapter.ADAPTER_COPY)
    torch.testing.assert_close(logits(again), logits(policy))


def test_a_model_without_an_adapter_is_copied(base: Path, tmp_path: Path) -> None:
    adapter.write_whole_model(base, tmp_path / "any", tmp_path / "whole")
    for file in base.iterdir():
        assert (tmp_path / "whole" / file.name).read_bytes() == file.read_bytes()


def test_what_training_reads_and_the_lineage_come_along(base: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "round")
    for folder, content in ((base, b"of the base"), (tmp_path / "round", b"of the round")):
        (folder / "training").mkdir()
        (folder / "training" / "optimizer.safetensors").write_bytes(content)
    lineage.sign(base, None, "warm_start", [])
    name = adapter.read_base_name(tmp_path / "round")
    lineage.sign(tmp_path / "round", base, "step_ppo", [], round_index=2, base=name)
    assert f"the digest `{name}`" in (tmp_path / "round" / "README.md").read_text()

    adapter.write_whole_model(tmp_path / "round", base, tmp_path / "whole")
    assert (tmp_path / "whole" / "training" / "optimizer.safetensors").read_bytes() == b"of the round"
    assert [entry["stage"] for entry in lineage.read(tmp_path / "whole")] == ["warm_start", "step_ppo"]
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "# step_ppo of round 3" in card and "AutoModelForCausalLM" in card and "digest `" not in card


def test_an_adapter_of_other_weights_is_refused(base: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "round")
    with torch.no_grad():
        other = load_model(base)
        other.get_input_embeddings().weight[0, 0] += 1
    save(other, tmp_path / "other", "8KB")
    with pytest.raises(ModelError, match=r"and .*/other holds others"):
        adapter.write_whole_model(tmp_path / "round", tmp_path / "other", tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_files_whose_names_are_not_the_models_own(base: Path, tmp_path: Path) -> None:
    """transformers loads the weights of a bare backbone as well; the whole model is written as it writes models."""
    (tmp_path / "bare").mkdir()
    weights = load_model(base).state_dict()
    for file in (f for f in base.iterdir() if "safetensors" not in f.name):
        (tmp_path / "bare" / file.name).write_bytes(file.read_bytes())
    bare = {k.removeprefix("model."): v.clone() for k, v in weights.items() if k != "lm_head.weight"}
    save_file(bare, tmp_path / "bare" / "model.safetensors", {"format": "pt"})
    policy = make_adapter(tmp_path / "bare", tmp_path / "round")
    adapter.write_whole_model(tmp_path / "round", tmp_path / "bare", tmp_path / "whole")
    torch.testing.assert_close(logits(load_model(tmp_path / "whole")), logits(policy), atol=1e-5, rtol=1e-5)
    assert "model.norm.weight" in load_file(tmp_path / "whole" / "model.safetensors")


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_layers_that_hold_their_weights_turned_around(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=304, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    torch.manual_seed(0)
    base = save(GPT2LMHeadModel(config), tmp_path / "gpt2")
    policy = make_adapter(base, tmp_path / "round")
    adapter.write_whole_model(tmp_path / "round", base, tmp_path / "whole")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(logits(whole.eval()), logits(policy.eval()), atol=1e-5, rtol=1e-5)
    assert (logits(whole) - logits(load_model(base))).abs().max() > 0.01


SIZES = {
    "vocab_size": 304, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
MIXTURES = [
    MixtralConfig(**SIZES, num_local_experts=4),
    PhimoeConfig(**SIZES, num_local_experts=4),
    DeepseekV3Config(
        **SIZES, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=8,
        first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    ),
]  # fmt: skip


@pytest.mark.parametrize("config", MIXTURES, ids=lambda config: config.model_type)
def test_the_adapter_of_a_mixture_of_experts_changes_attention_alone(config: PreTrainedConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = save(AutoModelForCausalLM.from_config(config).eval(), tmp_path / "base", "8KB")
    policy = make_adapter(base, tmp_path / "round")
    factors = load_file(tmp_path / "round" / adapter.WEIGHTS)
    assert factors and all(".self_attn." in name for name in factors)
    adapter.write_whole_model(tmp_path / "round", base, tmp_path / "whole")
    whole, plain = load_model(tmp_path / "whole"), load_model(base)
    joined = adapter.load_joined(adapter.locate(tmp_path / "round", base))
    for model in (whole, joined):
        torch.testing.assert_close(logits(model), logits(policy.eval()), atol=1e-5, rtol=1e-4)
    assert (logits(whole) - logits(plain)).abs().max() > 0.01
