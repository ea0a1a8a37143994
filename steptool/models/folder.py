"""Model folders: Hugging Face weights and tokenizer, and what the next round of training needs besides.

With LoRA a folder holds the merged weights, so that anyone can load it, and the adapter, from which the next round goes
on over the unchanged base. What only training reads lies in a folder of its own: vLLM takes every *.safetensors beside
config.json for weights of the model.
"""

from __future__ import annotations

import filecmp
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from steptool.config import PolicyConfig
from steptool.models.load import load_model, load_tokenizer

TRAINING = "training"
"""Folder in a model folder of what only training reads."""
ADAPTER = f"{TRAINING}/adapter"


def load_policy(policy_dir: Path, reference_dir: Path, config: PolicyConfig, seed: int) -> nn.Module:
    """The model to train. Full fine-tuning: that of `policy_dir`; LoRA: its adapter over the model of `reference_dir`.

    Raises ValueError if LoRA would have to start from weights that are not the reference.
    """
    if config.lora_rank == 0:
        full: nn.Module = load_model(policy_dir)
        return full
    if (policy_dir / ADAPTER).is_dir():
        adapted: nn.Module = PeftModel.from_pretrained(
            load_model(reference_dir), policy_dir / ADAPTER, is_trainable=True
        )
        return _leave_inputs(adapted)
    if not _same_weights(policy_dir, reference_dir):
        raise ValueError(
            f"{policy_dir}: has no folder '{ADAPTER}' and other weights than the reference {reference_dir}; "
            "with lora_rank > 0 the first round starts from the reference itself"
        )
    return new_adapter(load_model(reference_dir), config, seed)


def new_adapter(model: PreTrainedModel, config: PolicyConfig, seed: int) -> nn.Module:
    """The model with fresh low-rank adapters (no change yet) on all linear layers except the output layer."""
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: nn.Module = get_peft_model(model, lora)
    return _leave_inputs(adapted)


def _leave_inputs(adapted: nn.Module) -> nn.Module:
    """Keep peft from widening what goes into a float32 adapter: the training computes it in the model's precision."""
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
    return adapted


def save_policy(policy: nn.Module, policy_dir: Path, reference_dir: Path, out_dir: Path) -> None:
    """Write weights and tokenizer (and the adapter, if there is one) into `out_dir`."""
    out_dir.mkdir(parents=True, exist_ok=True)
    if isinstance(policy, PeftModel):
        policy.save_pretrained(str(out_dir / ADAPTER))
        merged = PeftModel.from_pretrained(load_model(reference_dir), str(out_dir / ADAPTER)).merge_and_unload()
        merged.save_pretrained(out_dir)
    else:
        policy.save_pretrained(out_dir)  # type: ignore[operator]
    load_tokenizer(policy_dir).save_pretrained(out_dir)


def _same_weights(one: Path, other: Path) -> bool:
    names = sorted(p.name for p in one.glob("model*.safetensors"))
    return one.resolve() == other.resolve() or (
        bool(names) and all((other / n).is_file() and filecmp.cmp(one / n, other / n, shallow=False) for n in names)
    )
