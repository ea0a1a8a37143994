"""LoRA adapters: what a round hands over in place of a model, and how an adapter joins the weights of its base.

An adapter folder has PEFT's layout (adapter_config.json, adapter_model.safetensors) and the state that only training
reads. It has neither the weights nor the tokenizer of its base, which lie in a model folder that travels once. It names
its base by the digest of the weights, because the places of folders change.
"""

from __future__ import annotations

import copy
import filecmp
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from steptool.artifacts import lineage
from steptool.config import PolicyConfig
from steptool.models.load import ADAPTER, LoadModel, ModelError, load_model, load_tokenizer, save_model
from steptool.models.logprobs import unwrap_model

CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"
"""PEFT's names."""
TRAINING = "training"
"""Folder of what only training reads: vLLM takes every *.safetensors beside config.json for weights of the model."""
ADAPTER_COPY = f"{TRAINING}/adapter"
"""Place of the adapter in a model folder whose weights it was merged into."""
NOT_MERGED = shutil.ignore_patterns("*.safetensors", TRAINING)
"""Files of the base that a merged model does not take as they are."""
_DIGEST = "sha256:"
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
"""How PEFT names the two factors of a layer's update."""
_OF_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Last part of the names of layers that PEFT takes for experts in a mixture of experts, whatever they belong to."""
Place = str | os.PathLike[str]


@dataclass(frozen=True)
class ModelPlace:
    """Where the weights of a policy lie."""

    base: str
    """Folder or Hub id of a whole model, with its tokenizer."""
    adapter: str = ""
    """Folder of the adapter over it; empty: the base is the policy."""


def is_adapter(folder: Place) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (Path(folder) / CONFIG).is_file()


def locate(model: Place, base: Place = "") -> ModelPlace:
    """Where base and adapter of a model lie. `base` counts only if `model` is an adapter folder.

    Without it, the base is what the adapter itself names. Raises ModelError if that is a digest.
    """
    if not is_adapter(model):
        return ModelPlace(os.fspath(model))
    base_name = os.fspath(base) or read_base_name(model)
    if not base_name or base_name.startswith(_DIGEST):
        raise ModelError(
            f"{model}: holds an adapter over the model with the weights {base_name or 'of an unknown base'}; name the "
            "folder of that model as its base as well"
        )
    return ModelPlace(base_name, os.fspath(model))


def load_joined(place: ModelPlace, load: LoadModel = load_model) -> PreTrainedModel:
    """The model of a place, the adapter added to the weights in memory; the base's weights stay as they are.

    Raises ModelError as `load_model` does.
    """
    model = load(place.base)
    if not place.adapter:
        return model
    from peft import PeftModel  # takes seconds
    from peft.tuners.lora import LoraLayer

    adapted = PeftModel.from_pretrained(model, place.adapter, torch_device=str(model.device))
    for layer in [module for module in adapted.modules() if isinstance(module, LoraLayer)]:
        plain = layer.get_base_layer()
        for name, weight in list(plain.named_parameters(recurse=False)):
            setattr(plain, name, nn.Parameter(weight.detach().clone(), requires_grad=False))
        layer.merge()
    joined: PreTrainedModel = adapted.unload()
    return joined.eval()


def list_adapted_layers(model: PreTrainedModel) -> list[str]:
    """Names of the layers that get an adapter: all linear layers but the output layer.

    In a mixture of experts these are the layers of attention: experts, which are one tensor together, routers and the
    other layers of its MLPs stay as they are.
    """
    output = model.get_output_embeddings()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not output}
    if any("experts" in name and weight.dim() == 3 for name, weight in model.named_parameters()):
        return [n for n, m in layers.items() if type(m) is nn.Linear and n.rpartition(".")[2] not in _OF_EXPERTS]
    return list(layers)


def add_adapter(model: PreTrainedModel, config: PolicyConfig, seed: int) -> nn.Module:
    """The model with fresh low-rank adapters (no change yet) on the layers of `list_adapted_layers`."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules=list_adapted_layers(model),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: nn.Module = get_peft_model(model, lora)
    return _leave_inputs(adapted)


def find_weights(policy_dir: Path, reference_dir: Path, config: PolicyConfig) -> Path:
    """The folder whose weights training loads: the policy's own, or with LoRA those of the reference.

    Raises ValueError if LoRA would have to start from weights that are not the reference.
    """
    if config.lora_rank == 0:
        return policy_dir
    if not is_adapter(policy_dir) and not _have_same_weights(policy_dir, reference_dir):
        raise ValueError(
            f"{policy_dir}: has no {CONFIG} and other weights than the reference {reference_dir}; with lora_rank > 0 "
            "the first round starts from the reference itself"
        )
    return reference_dir


def adapt(model: nn.Module, policy_dir: Path, config: PolicyConfig, seed: int) -> nn.Module:
    """The model with the adapter of a policy, or with a fresh one where the policy has none."""
    if not is_adapter(policy_dir):
        return add_adapter(model, config, seed)
    from peft import PeftModel

    device = str(unwrap_model(model).device)  # else peft reads for every process into the memory of the first GPU
    adapted: nn.Module = PeftModel.from_pretrained(model, policy_dir, is_trainable=True, torch_device=device)
    return _leave_inputs(adapted)


def save_policy(policy: nn.Module, policy_dir: Path, reference_dir: Path, out_dir: Path) -> None:
    """Write what was trained into `out_dir`: the adapter alone, or weights and tokenizer."""
    if hasattr(policy, "peft_config"):
        save_adapter(policy, read_base_name(policy_dir) or name_base(reference_dir), out_dir)
        return
    out_dir.mkdir(parents=True, exist_ok=True)
    save_model(policy, "auto", out_dir)
    load_tokenizer(policy_dir).save_pretrained(out_dir)


def save_adapter(policy: Any, base_name: str, folder: Path) -> None:
    """Write the adapter of a policy that PEFT has wrapped; the same adapter is written to the same bytes."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    config = copy.copy(policy.peft_config["default"])
    config.base_model_name_or_path, config.inference_mode = base_name, True
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)
    state = get_peft_model_state_dict(policy, save_embedding_layers=False)
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / WEIGHTS, {"format": "pt"})
    config.save_pretrained(str(folder))


def read_base_name(folder: Place) -> str:
    """How an adapter names its base; empty for the folder of a whole model."""
    if not is_adapter(folder):
        return ""
    base_name: str = _read_config(folder).get("base_model_name_or_path") or ""
    return base_name


def name_base(folder: Path) -> str:
    """The digest of a model's weights: SHA-256 over the names and digests of their files."""
    lines = [f"{lineage.hash_file(file)}  {file.name}\n" for file in sorted(folder.glob("*.safetensors"))]
    return _DIGEST + hashlib.sha256("".join(lines).encode()).hexdigest()


def write_whole_model(model: Path, base: Path, folder: Path) -> None:
    """Write a whole model into a new folder: an adapter merged into its base, any other model as it is.

    One file of weights is in memory at a time. What only training reads comes along; the adapter is copied as well.
    Raises ModelError if the adapter belongs to another base.
    """
    if not is_adapter(model):
        shutil.copytree(model, folder)
        return
    base_name = read_base_name(model)
    if base_name.startswith(_DIGEST) and base_name != name_base(base):
        raise ModelError(f"{model}: the adapter belongs to the weights {base_name}, and {base} holds others")
    shutil.copytree(base, folder, ignore=NOT_MERGED)
    merge_weights(model, base, folder)
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns(CONFIG, WEIGHTS), dirs_exist_ok=True)
    (folder / ADAPTER_COPY).mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(model / name, folder / ADAPTER_COPY / name)
    lineage.write_card(folder)


@dataclass(frozen=True)
class _Update:
    """What an adapter adds to a weight: scale x up @ down (Hu et al. 2021, equation 3), computed in float32."""

    down: Tensor
    """[rank, inputs]"""
    up: Tensor
    """[outputs, rank]"""
    scale: float

    def add_to(self, weight: Tensor) -> Tensor:
        return (weight.float() + (self.up.float() @ self.down.float()) * self.scale).to(weight.dtype)


def merge_weights(adapter: Path, base: Path, folder: Path) -> None:
    """Write the weights of the base with the adapter added, in the files and in the precision of the base."""
    updates, files = _read_updates(adapter), sorted(base.glob("*.safetensors"))
    if not updates.keys() <= {name for file in files for name in _read_names(file)}:
        # The model's own names are not those of its files: transformers knows how they belong together.
        save_model(load_joined(ModelPlace(str(base), str(adapter))), "auto", folder)
        return
    for file in files:
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata()
        weights = load_file(file)
        for name in weights.keys() & updates.keys():
            weights[name] = updates[name].add_to(weights[name])
        save_file(weights, folder / file.name, metadata)


def _read_updates(adapter: Path) -> dict[str, _Update]:
    """The update of each adapted weight by its name in the model, of an adapter that `add_adapter` has made."""
    factors, config, updates = load_file(adapter / WEIGHTS), _read_config(adapter), {}
    for layer in (key.removesuffix(_DOWN) for key in factors if key.endswith(_DOWN)):
        down, up = factors[layer + _DOWN], factors[layer + _UP]
        if config["fan_in_fan_out"]:  # the layers of GPT-2 hold their weights as [inputs, outputs]
            down, up = up.T, down.T
        updates[f"{layer.removeprefix(_PREFIX)}.weight"] = _Update(down, up, config["lora_alpha"] / config["r"])
    return updates


def _read_names(file: Path) -> list[str]:
    with safe_open(file, "pt") as stored:
        return list(stored.keys())


def _read_config(adapter: Place) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((Path(adapter) / CONFIG).read_text(encoding="utf-8"))
    return config


def _leave_inputs(adapted: nn.Module) -> nn.Module:
    """Keep peft from widening what goes into a float32 adapter: the training computes it in the model's precision."""
    from peft.tuners.lora import LoraLayer

    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
    return adapted


def _have_same_weights(one: Path, other: Path) -> bool:
    names = sorted(p.name for p in one.glob("model*.safetensors"))
    return one.resolve() == other.resolve() or (
        bool(names) and all((other / n).is_file() and filecmp.cmp(one / n, other / n, shallow=False) for n in names)
    )
