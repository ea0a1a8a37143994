"""Models of which each process holds a part (FSDP2), and their files, which are read and written part by part.

`torch.distributed.fsdp.fully_shard` cuts every weight along its first dimension. A layer is put together just before
it computes and cut again after it; gradients are added up over the processes as they are cut. Weights that are trained
are float32 in their parts and computed in the precision of their folder, so the parts of a bfloat16 model are what the
optimizer of one process keeps as two halves. Value head and adapters are small: every process has them whole.

Files are safetensors throughout. A process reads its rows of each tensor and writes its rows into a file of its own;
where others are to read the result, the first process joins the files into the layout that transformers writes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from steptool.models.actor import Actor
from steptool.models.load import (
    DECODING,
    MAX_FILE,
    ModelError,
    choose_device,
    keep_special_tokens,
    load_tokenizer,
    read_model_config,
)
from steptool.models.logprobs import unwrap_model
from steptool.models.optimizer import FILE, get_local_part, join_halves, split_halves
from steptool.models.packed_attention import enable_packing

_JOINED = "model-00001-of-00001.safetensors"
"""Name under which torch joins parts into a single file."""


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds parts of the model's weights alone."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def load_sharded_actor(folder: Path, processes: int, *, trained: bool, **options: Any) -> Actor:
    """The model of a folder, cut over all processes, as an actor without a value head; `options` are those of Actor.

    With `trained` the parts are float32, else they stay as they are saved and never change. Adapters are added to the
    actor's policy afterwards. Raises ModelError where the files of the folder name other weights than the model's own.
    """
    model, saved = _make_empty(folder)
    buffers = {name: torch.empty_like(buffer) for name, buffer in _list_saved_buffers(model).items()}
    model = model.float() if trained else model.requires_grad_(False)
    actor = Actor(model, **options)
    mesh = init_device_mesh(choose_device().type, (processes,))
    precision = MixedPrecisionPolicy(param_dtype=saved if trained else None, reduce_dtype=torch.float32)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for module, keep in [*((layer, False) for layer in layers), (actor, True)]:
        fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=not keep)
    for module in actor.modules():
        if isinstance(module, FSDPModule):  # losses are divided by numbers of the whole step: gradients add up
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    weights = {name: _make_room(p, p.dtype) for name, p in model.named_parameters()} | buffers
    _check_names(weights, folder)
    read_parts(weights, folder)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    actor.packed = enable_packing(model, saved)
    return actor


def save_sharded_model(policy: nn.Module, policy_dir: Path, out_dir: Path) -> None:
    """Write a model folder in transformers' layout: the weights part by part, the tokenizer of `policy_dir`.

    The weights get the precision that the model was saved in. To be called by all processes with the same folder.
    """
    lm = unwrap_model(policy)
    half = _find_saved_dtype(lm.config) is torch.bfloat16
    weights = {n: _take_high_half(p) if half else p.detach() for n, p in lm.named_parameters()}
    weights |= _list_saved_buffers(lm)
    files = _number_files(weights)
    _write_joined(weights, out_dir, files)
    if _is_first():
        if max(files.values()) == 1:
            (out_dir / _JOINED).replace(out_dir / "model.safetensors")
            (out_dir / "model.safetensors.index.json").unlink()
        lm.config.save_pretrained(out_dir)
        if (policy_dir / DECODING).is_file():
            keep_special_tokens(GenerationConfig.from_pretrained(policy_dir)).save_pretrained(out_dir)
        load_tokenizer(policy_dir).save_pretrained(out_dir)


def save_sharded_moments(optimizer: torch.optim.Optimizer, actor: Actor, folder: Path) -> None:
    """Write the optimizer's state whole, in one file as `save_moments` does, with the lower halves of bfloat16 weights.

    To be called by all processes with the same folder.
    """
    state, saved = read_moments(optimizer, actor), _find_saved_dtype(unwrap_model(actor.policy).config)
    for name, parameter in actor.named_parameters():
        if saved is torch.bfloat16 and isinstance(parameter, DTensor) and parameter in optimizer.state:
            state[f"low/{name}"] = _take_low_half(parameter).view(torch.float16)  # torch joins no integers
    target = folder / FILE
    joined = target.parent / "joined"
    _write_joined(state, joined, dict.fromkeys(state, 1))
    if _is_first():
        (joined / _JOINED).replace(target)
        shutil.rmtree(joined)


def read_moments(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state by the names of `save_moments`, cut as the weights are.

    Numbers of steps have one dimension, because torch does not join tensors without any.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(parameter, DTensor) and key != "step":
                value = _cut_like(value, parameter)
            state[f"{key}/{name}"] = value.reshape(value.shape or (1,))
    return state


@torch.no_grad()
def load_sharded_moments(optimizer: torch.optim.Optimizer, model: nn.Module, folder: Path) -> None:
    """Restore the optimizer's state from a folder that one process or several have written, whole or in parts."""
    parameters, state = dict(model.named_parameters()), {}
    for entry, stored in _read_metadata(folder).items():
        key, _, name = entry.partition("/")
        if name not in parameters:
            continue
        if key == "step":
            state[entry] = torch.empty(stored.size)
        else:
            state[entry] = _make_room(parameters[name], stored.properties.dtype)
    read_parts(state, folder)
    for entry, value in state.items():
        key, _, name = entry.partition("/")
        part, parameter = get_local_part(value), parameters[name]
        if key == "low":
            weights = get_local_part(parameter)
            weights.copy_(join_halves(weights.bfloat16(), part.view(torch.int16)))
        else:
            value = part.reshape(()) if key == "step" else part.float()
            optimizer.state[parameter][key] = value.to(parameter.device)  # a GPU reads no step from the CPU


def write_parts(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors into a folder, each process its parts into a file of its own, and what all have whole once."""
    save(dict(state), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_parts(state: dict[str, Tensor], folder: Path) -> None:
    """Fill tensors from the safetensors files of a folder, of which this process reads the rows that it holds."""
    load(state, storage_reader=HuggingFaceStorageReader(str(folder)))


def _write_joined(state: Mapping[str, Tensor], folder: Path, files: dict[str, int]) -> None:
    """Write tensors whole, each into the file of its number. The first process joins the parts of all."""
    writer = HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=files, save_distributed=True, enable_consolidation=True
    )
    save(dict(state), storage_writer=writer)
    if _is_first():
        shutil.rmtree(folder / "sharded")


def _number_files(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of the file of each weight, counted from 1, so that no file is larger than MAX_FILE."""
    files: dict[str, int] = {}
    number, filled = 1, 0
    for name, tensor in weights.items():
        size = tensor.numel() * tensor.element_size()
        if filled and filled + size > MAX_FILE:
            number, filled = number + 1, 0
        files[name], filled = number, filled + size
    return files


def _make_empty(folder: Path) -> tuple[PreTrainedModel, torch.dtype]:
    """A model whose parameters take no memory, and the precision that it is saved in."""
    load_tokenizer(folder)
    config = read_model_config(folder)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=_find_saved_dtype(config))
    model.tie_weights()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(choose_device())
    return model.eval(), _find_saved_dtype(config)


def check_parts(folder: Path) -> None:
    """Raise ModelError where the files of a folder do not hold the weights by the names by which parts are read."""
    model, _ = _make_empty(folder)
    _check_names(dict(model.named_parameters()) | _list_saved_buffers(model), folder)


def _check_names(weights: Mapping[str, Tensor], folder: Path) -> None:
    if missing := sorted(weights.keys() - _read_metadata(folder).keys()):
        raise ModelError(
            f"{folder}: the files hold no {', '.join(missing[:3])} ({len(missing)} in all), and several processes read "
            "their parts by the names that the weights have in the model; transformers saves some models under other "
            "names, most mixtures of experts among them: set ppo.sharding to ddp, or choose another model"
        )


def _list_saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to a model's weights, such as the bias of a router. Every process has them whole."""
    return {
        f"{prefix}.{name}".removeprefix("."): buffer
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }


def _find_saved_dtype(config: Any) -> torch.dtype:
    """The precision in which a model is computed and saved: bfloat16 or float32."""
    return torch.bfloat16 if config.dtype is torch.bfloat16 else torch.float32


def _read_metadata(folder: Path) -> dict[str, Any]:
    """Shape and precision of every tensor in the safetensors files of a folder."""
    stored: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return stored


def _make_room(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for a tensor of the shape of a parameter, cut as it is."""
    if not isinstance(parameter, DTensor):
        return torch.empty_like(parameter, dtype=dtype)
    return _cut_like(torch.empty(parameter.to_local().shape, dtype=dtype, device=choose_device()), parameter)


def _cut_like(part: Tensor, whole: DTensor) -> DTensor:
    """The tensor of which this process holds `part`, cut as `whole` is."""
    return DTensor.from_local(
        part, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _take_high_half(parameter: Tensor) -> Tensor:
    """The bfloat16 weights of float32 ones."""
    return _split_halves(parameter)[0]


def _take_low_half(parameter: Tensor) -> Tensor:
    """What the bfloat16 weights of float32 ones leave out."""
    return _split_halves(parameter)[1]


@torch.no_grad()
def _split_halves(parameter: Tensor) -> tuple[Tensor, Tensor]:
    full = get_local_part(parameter).contiguous()
    high, low = full.bfloat16(), torch.empty_like(full, dtype=torch.int16)
    split_halves(full, high, low)
    if isinstance(parameter, DTensor):
        return _cut_like(high, parameter), _cut_like(low, parameter)
    return high, low


def _is_first() -> bool:
    return distributed.get_rank() == 0
