"""CUDA graphs in software, on CPU tensors, with the rules of torch that a test on a CPU could not break otherwise.

While a step is recorded nothing is computed for good, a replay computes what was recorded and no Python, an operation
that waits for the GPU is refused, and so is memory whose graphs are all gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITING = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::_unique2")
_graphs_by_pool: dict[Any, int] = {}
_handles = count(1)


class Refusal(TorchDispatchMode):
    """Refuses operations that wait for the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in _WAITING:
            raise RuntimeError(f"called a synchronizing CUDA operation: {func}")
        return func(*args, **(kwargs or {}))


class Recorder(Refusal):
    """Keeps the operations in `tape`, and takes back in the end what they have changed."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, Any, Any, Any]] = []
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write:
                self._before.append((value, value.clone()))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.tape.append((func, args, kwargs or {}, result))
        return result

    def take_back(self) -> None:
        for tensor, value in reversed(self._before):
            tensor.copy_(value)


class SoftwareGraph:
    """Stands for torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.tape: list[tuple[Any, Any, Any, Any]] = []
        self.pool: Any = None

    def __del__(self) -> None:
        if self.pool is not None:
            _graphs_by_pool[self.pool] -= 1

    def replay(self) -> None:
        for func, args, kwargs, result in self.tape:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextmanager
def _record(graph: SoftwareGraph, pool: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
    """Stands for torch.cuda.graph. cuBLAS keeps a part of the first pool, so torch never forgets a pool."""
    if _graphs_by_pool.get(pool) == 0:
        raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
    _graphs_by_pool[pool] = _graphs_by_pool.get(pool, 0) + 1
    graph.pool = pool
    with Recorder() as recorder:
        yield
    recorder.take_back()
    graph.tape = recorder.tape


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put them in the place of torch's until the test ends."""
    refusals: list[Refusal] = []

    def set_sync_debug_mode(mode: Any) -> None:
        if mode == "error":
            refusals.append(Refusal())
            refusals[-1].__enter__()
        elif refusals:
            refusals.pop().__exit__(None, None, None)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", SoftwareGraph)
    monkeypatch.setattr(torch.cuda, "graph", _record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(_handles))
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_sync_debug_mode)
