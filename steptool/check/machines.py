"""What a process of a stage gets: on this machine, or by a profile of a cluster."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

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
    """Bytes: of the GPU if there is one."""
    name: str
    has_gpu: bool = False


def this_machine() -> Machine:
    """The first GPU of this machine, or its memory where there is none."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Machine(properties.total_memory, properties.name, has_gpu=True)
    return Machine(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine")


def machine_of_profile(gpus: int, gpu_type: str, memory: str, processes: int) -> Machine | None:
    """What a profile gives to one process of a stage; None if it does not say.

    Args:
        gpus: on a node; each process has one.
        gpu_type: as flytekit calls it, such as A100 or L4; empty for any.
        memory: limit of the pod as Kubernetes writes it, such as 16Gi; empty for none.
        processes: on a node, which share the memory where they have no GPUs.
    """
    if gpus:
        size = _GPU_GIB.get(gpu_type)
        return Machine(size * GIB, gpu_type, has_gpu=True) if size else None
    match = re.fullmatch(r"([\d.]+)([kMGT]i?|Ki)?", memory)
    if not match:
        return None
    return Machine(float(match[1]) * _UNITS[match[2] or ""] / processes, f"a pod with a limit of {memory}")
