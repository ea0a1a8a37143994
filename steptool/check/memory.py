"""How much memory and disk the stages of a run need, and what a process of a stage gets.

The figures are those of one process. Processes that train together hold the whole model each, or with `ppo.sharding:
fsdp` a part of it. Activations are computed for a decoder of the Llama kind. A test compares them with what torch keeps
for tiny models: they are right to within a quarter.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steptool.config import Config, ConfigError

GIB = 1 << 30
_UNITS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": GIB,
    "Ti": 1 << 40,
}
"""Kubernetes' units of bytes."""
_GPU_GIB = {
    "T4": 15, "V100": 16, "L4": 22, "A10G": 22, "A100": 40, "L40S": 45, "A100_80GB": 80, "H100": 80, "H200": 141,
}  # fmt: skip
"""Usable memory of GPUs by the names that a profile uses."""


@dataclass(frozen=True)
class Machine:
    """What one process of a stage gets."""

    memory: float
    """Bytes of memory: of the GPU if there is one."""
    name: str
    has_gpu: bool = False
    processes: int = 1
    """Processes of the stage that work together."""
    disk: float = math.inf
    """Bytes that the stage may write; infinite where it is not known."""


def detect_machine() -> Machine:
    """The first GPU of this machine, or its memory without a GPU; the disk of the temporary folder.

    The memory is that of the container, where a container may not take all of the machine's.
    """
    import torch

    disk = shutil.disk_usage(tempfile.gettempdir()).free
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Machine(properties.total_memory, properties.name, has_gpu=True, disk=disk)
    memory, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), read_memory_limit()
    if limit < memory:
        return Machine(limit, "this container", disk=disk)
    return Machine(memory, "this machine", disk=disk)


def read_memory_limit(groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that the control groups of this process allow it, of version 2 or 1; infinite if they set no limit.

    `groups` lists the groups of the process, and `mount` is where their files are. A container often sees its own group
    at the mount itself, and the limit of a group holds for the groups inside it.
    """
    limits = [math.inf]
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        folder, name = (mount, "memory.max") if not controllers else (mount / "memory", "memory.limit_in_bytes")
        inner = folder / path.strip("/")
        for group in (inner, *inner.parents):
            if (group / name).is_file() and (text := (group / name).read_text(encoding="utf-8").strip()) != "max":
                limits.append(float(text))
            if group == folder:
                break
    return min(limits)


def read_machine(gpus: int, gpu_type: str, memory: str, processes: int, storage: str = "") -> Machine:
    """What a profile gives to one process of a stage; its memory and its disk are infinite if the profile does not say.

    Args:
        gpus: on a node; each process has one.
        gpu_type: as flytekit calls it, such as A100 or L4; empty for any.
        memory: limit of the pod as Kubernetes writes it, such as 16Gi; empty for none.
        processes: on a node, which share the memory where they have no GPUs.
        storage: limit of the pod's own disk, as `memory`.
    """
    disk = _read_quantity(storage)
    if gpus:
        size = _GPU_GIB.get(gpu_type, math.inf)
        return Machine(size * GIB, gpu_type or "a GPU", has_gpu=True, processes=processes, disk=disk)
    name = f"a pod with a limit of {memory}" if memory else "a pod"
    return Machine(_read_quantity(memory) / processes, name, processes=processes, disk=disk)


def _read_quantity(text: str) -> float:
    """Bytes, as Kubernetes writes them; infinite if it is empty."""
    match = re.fullmatch(r"([\d.]+)([kMGT]i?|Ki)?", text)
    return float(match[1]) * _UNITS[match[2] or ""] if match else math.inf


STAGES = ("prepare", "warm_start", "rollout", "ppo", "rounds_together", "evaluate")
"""The stages that hold a model."""
_FLOAT32, _BFLOAT16 = 4, 2
"""Bytes of a number."""
_FRAMEWORK = {False: 0.7 * GIB, True: 1.5 * GIB}
"""What Python and torch take in a process without and with a GPU."""
_LOGITS = 0.6 * GIB
"""Largest size in bytes of the logits that are held at once."""
_WARM_START_SEQUENCES = 16
"""Demonstrations in a forward pass of the warm start."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a causal language model that its memory depends on."""

    parameters: int
    outside: int
    """Parameters that belong to no decoder layer: embedding, output layer, last norm."""
    linear_sizes: int
    """Sum of inputs and outputs over the layers that an adapter would change. LoRA has rank times as many weights."""
    layers: int
    hidden: int
    intermediate: int
    """Numbers of a token between the two products of an MLP, over all experts that it goes to."""
    queries: int
    """Numbers in the queries of a token in one layer: heads times their size."""
    keys: int
    """Numbers in the keys of a token in one layer, and as many in its values."""
    vocabulary: int
    bytes_per_weight: int


@dataclass(frozen=True)
class StageMemory:
    """Bytes that a stage needs in memory, by what they are for, and on disk."""

    stage: str
    weights: float
    optimizer: float = 0.0
    """Gradients and the state of the optimizer."""
    activations: float = 0.0
    cache: float = 0.0
    """Keys and values of the episodes that are played together."""
    framework: float = 0.0
    disk: float = 0.0

    @property
    def total(self) -> float:
        """All that is in memory at once."""
        return self.weights + self.optimizer + self.activations + self.cache + self.framework


def read_shape(model_config: Any, dtype: str) -> ModelShape:
    """The shape of the model that a transformers configuration describes; no weights are made.

    `dtype` is `policy.dtype`: auto takes bfloat16 if the model was saved in it, else float32.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from steptool.models.adapter import list_adapted_layers

    text = model_config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    heads = getattr(text, "num_attention_heads", None) or 1  # a model with a recurrent state may have none
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    blocks = {id(weight) for layers in _find_layers(model) for weight in layers.parameters()}
    is_half = dtype == "bfloat16" or (dtype == "auto" and text.dtype == torch.bfloat16)
    return ModelShape(
        parameters=sum(weight.numel() for weight in model.parameters()),
        outside=sum(weight.numel() for weight in model.parameters() if id(weight) not in blocks),
        linear_sizes=sum(sum(model.get_submodule(name).weight.shape) for name in list_adapted_layers(model)),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=_count_intermediate(text),
        queries=heads * head_size,
        keys=(getattr(text, "num_key_value_heads", None) or heads) * head_size,
        vocabulary=text.vocab_size,
        bytes_per_weight=_BFLOAT16 if is_half else _FLOAT32,
    )


def _find_layers(model: Any) -> list[Any]:
    """The lists of decoder layers of a model, whatever it calls them."""
    import torch

    count = model.config.get_text_config().num_hidden_layers
    return [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == count]


def _count_intermediate(text: Any) -> int:
    """The intermediate size of a configuration, under the names that it has there; with experts that of a token's."""
    names = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
    size = next((value for name in names if (value := getattr(text, name, None))), 4 * text.hidden_size)
    whole = max(size) if isinstance(size, (list, tuple)) else size
    of_expert = getattr(text, "moe_intermediate_size", None) or whole
    return int(max(whole, of_expert * (getattr(text, "num_experts_per_tok", None) or 1)))


def estimate_memory(
    shape: ModelShape, config: Config, *, has_gpu: bool = False, processes: int = 1, is_local: bool = False
) -> list[StageMemory]:
    """What each stage that holds a model needs in one process. `processes` train together.

    `is_local` tells a local run from a run on a cluster: `rounds.placement: auto` has other stages there.
    """
    model, framework = _measure_model(shape), _FRAMEWORK[has_gpu]
    warm_start, ppo = _estimate_training(shape, config, framework, processes)
    cache = _estimate_cache(shape, config, -(-config.rollout.episodes // config.rollout.shards))
    rollout = StageMemory("rollout", model, cache=cache, framework=framework, disk=model)
    rounds = [rollout, ppo]
    if config.rounds.are_together(is_local=is_local):
        copied_weights = model if config.policy.lora_rank else 0.0  # the layers that the adapter is added to
        vllm_at_rest = model if config.rollout.engine == "vllm" and not has_gpu else 0.0
        learning = replace(ppo, weights=ppo.weights + vllm_at_rest)
        rounds = [_take_turns(rollout, learning, copied_weights, ppo.disk + _measure_checkpoint(shape, config))]
    return [
        StageMemory("prepare", model, framework=framework, disk=2 * model),
        *([warm_start] if config.warm_start.steps else []),
        *rounds,
        StageMemory("evaluate", model, cache=_estimate_cache(shape, config), framework=framework, disk=model),
    ]


def estimate_on(
    machines: Mapping[str, Machine], shape: ModelShape, config: Config, *, is_local: bool
) -> list[StageMemory]:
    """What each stage needs in one process of its machine, by the names of the stages."""
    has_gpu = any(machine.has_gpu for machine in machines.values())
    processes = machines["ppo"].processes if "ppo" in machines else 1
    return estimate_memory(shape, config, has_gpu=has_gpu, processes=processes, is_local=is_local)


def _estimate_training(
    shape: ModelShape, config: Config, framework: float, processes: int
) -> tuple[StageMemory, StageMemory]:
    """The warm start and PPO, in one of the processes that train together."""
    has_adapter = config.policy.lora_rank > 0
    model, trained_parameters = _measure_model(shape), _count_trained_parameters(shape, config)
    parts = processes if config.ppo.sharding == "fsdp" else 1
    weights = model if parts == 1 else _measure_sharded_weights(shape, config, parts)
    weights += trained_parameters * _FLOAT32 if has_adapter else 0.0
    state = trained_parameters * _count_optimizer_bytes(shape, config)
    if parts > 1 and not has_adapter:
        # Gradients are whole until they are cut.
        state = trained_parameters * 3 * _FLOAT32 / parts + _measure_whole_weights(shape)
    checkpoint = _measure_checkpoint(shape, config)
    context, tokens = config.policy.max_context, config.ppo.tokens_per_pass
    sequences = min(_WARM_START_SEQUENCES, config.warm_start.batch_size)
    warm_start = StageMemory(
        "warm_start",
        weights,
        optimizer=state,
        activations=_estimate_activations(shape, config, tokens or context * sequences),
        framework=framework,
        disk=model + 3 * checkpoint + (model if has_adapter else 0.0),  # the adapter is merged
    )
    moments_and_reference = state - _FLOAT32 * trained_parameters / parts + (0.0 if has_adapter else model / parts)
    ppo = StageMemory(
        "ppo",
        weights,
        optimizer=max(state, moments_and_reference),  # the reference model is gone before the first gradient
        activations=_estimate_activations(shape, config, tokens or context * config.ppo.micro_batch_size),
        framework=framework,
        disk=(1 if has_adapter else 2) * model
        + (5 if parts > 1 and not has_adapter else 4) * checkpoint,  # parts, then joined
    )
    return warm_start, ppo


def _measure_model(shape: ModelShape) -> float:
    """Bytes of the weights of a whole model."""
    return float(shape.parameters * shape.bytes_per_weight)


def _measure_checkpoint(shape: ModelShape, config: Config) -> float:
    """Bytes of a checkpoint: an adapter and its moments; or all weights, moments and the lower halves of bfloat16
    weights."""
    trained_parameters = _count_trained_parameters(shape, config)
    if config.policy.lora_rank:
        return 12.0 * trained_parameters
    return _measure_model(shape) + (2 * _count_moment_bytes(shape, config) + 2.0) * trained_parameters


def _take_turns(rollout: StageMemory, ppo: StageMemory, copied: float, disk: float) -> StageMemory:
    """The stage that plays and trains in turn. It needs what the larger of the two needs: each keeps only weights."""
    playing = replace(rollout, weights=rollout.weights + copied)
    return replace(max(playing, ppo, key=lambda turn: turn.total), stage="rounds_together", disk=disk)


def describe_memory(stages: Sequence[StageMemory]) -> list[str]:
    """A table in text: GiB by stage."""
    names = ("weights", "optimizer", "activations", "cache", "framework", "total", "disk")
    lines = [f"{'GiB of one process':<18}" + "".join(f"{name:>12}" for name in names)]
    for stage in stages:
        lines.append(f"{stage.stage:<18}" + "".join(f"{getattr(stage, name) / GIB:>12.1f}" for name in names))
    return lines


def check_memory(stages: Sequence[StageMemory], machines: Mapping[str, Machine]) -> None:
    """Raise ConfigError, with what may help, for each stage that cannot fit the memory or the disk of its machine."""
    faults = []
    for stage in stages:
        machine = machines.get(stage.stage, Machine(math.inf, ""))
        if stage.total > machine.memory:
            faults.append(
                f"{stage.stage} needs {stage.total / GIB:.1f} GiB, and {machine.name} has "
                f"{machine.memory / GIB:.1f}: {_advise(stage)}"
            )
        if stage.disk > machine.disk:
            faults.append(
                f"{stage.stage} needs {stage.disk / GIB:.1f} GiB of disk, and {machine.disk / GIB:.1f} are there: "
                "raise limits.storage of the profile, on this machine free its temporary folder or name another with "
                "TMPDIR; or set policy.lora_rank"
            )
    if faults:
        raise ConfigError("the run does not fit\n  " + "\n  ".join(faults))


def _count_trained_parameters(shape: ModelShape, config: Config) -> float:
    rank = config.policy.lora_rank
    return float(rank * shape.linear_sizes if rank else shape.parameters)


def _measure_sharded_weights(shape: ModelShape, config: Config, parts: int) -> float:
    """Bytes of one process's part of the weights, float32 if they are trained, and of those that are whole at a
    time."""
    of_weight = shape.bytes_per_weight if config.policy.lora_rank else _FLOAT32
    return shape.parameters * of_weight / parts + _measure_whole_weights(shape)


def _measure_whole_weights(shape: ModelShape) -> float:
    """Bytes of the weights that are whole at a time: those outside the layers, the layer that computes and the next."""
    layer = (shape.parameters - shape.outside) / shape.layers
    return (shape.outside + 2 * layer) * shape.bytes_per_weight


def _count_optimizer_bytes(shape: ModelShape, config: Config) -> int:
    """Bytes of gradient and optimizer for each trained weight: float32 gradient and two moments, and for full
    fine-tuning in bfloat16 the lower half of the float32 weight."""
    return _FLOAT32 + 2 * _count_moment_bytes(shape, config) + (2 if _trains_half(shape, config) else 0)


def _trains_half(shape: ModelShape, config: Config) -> bool:
    """Whether the weights that are trained are bfloat16."""
    return shape.bytes_per_weight == _BFLOAT16 and not config.policy.lora_rank


def _count_moment_bytes(shape: ModelShape, config: Config) -> int:
    is_half = config.ppo.moments == "bfloat16" and config.ppo.sharding == "ddp" and _trains_half(shape, config)
    return _BFLOAT16 if is_half else _FLOAT32


def _estimate_activations(shape: ModelShape, config: Config, tokens: int) -> float:
    """What the backward pass needs of a forward pass, and the logits of some of its tokens."""
    of_layer = (
        tokens * shape.bytes_per_weight * (8 * shape.hidden + 4 * (shape.queries + shape.keys + shape.intermediate))
    )
    inputs = tokens * shape.bytes_per_weight * shape.hidden * shape.layers
    activations = inputs + of_layer if config.ppo.gradient_checkpointing else of_layer * shape.layers
    return activations + min(_LOGITS, 2.0 * tokens * shape.vocabulary * _FLOAT32)


def _estimate_cache(shape: ModelShape, config: Config, episodes: int | None = None) -> float:
    """Keys and values of the episodes that are decoded together, each as long as the context."""
    together = min(config.rollout.batch_size, episodes or config.rollout.batch_size)
    return float(together * config.policy.max_context * shape.layers * 2 * shape.keys * shape.bytes_per_weight)


def _advise(stage: StageMemory) -> str:
    if stage.cache > stage.weights:
        return "lower rollout.batch_size or policy.max_context"
    if stage.activations > stage.weights + stage.optimizer:
        return "set ppo.gradient_checkpointing, or lower ppo.tokens_per_pass or ppo.micro_batch_size"
    return (
        "set policy.lora_rank, policy.dtype: bfloat16 or, with several processes, ppo.sharding: fsdp; or take a larger "
        "machine or a smaller model"
    )
