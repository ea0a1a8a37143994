"""Sampling many rows at once with a KV cache that is kept across turns.

Each row of the cache belongs to one sequence and the slot of a token is its position, so rows of any length stand side
by side without holes: a row can be extended by an observation, or given to another sequence, while the others wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from steptool.policies.kv_cache import AttentionMasks, find_cache_argument, make_forward_options, share_keys

_CHUNK = 64
"""The cache grows by half, to a multiple of this number of slots."""
_RECORDED_CHUNK = 128
"""Steps that are recorded read a multiple of this number of slots, so that one recording serves as many steps."""


@dataclass(frozen=True)
class PrefillLimits:
    """How much goes into one prefill."""

    padding: int
    """Tokens of padding, at most: about what a forward pass of its own costs."""
    mask_cells: int
    """Cells (rows x new tokens x slots) of attention mask, at most, unless one row needs more."""


CPU_LIMITS = PrefillLimits(padding=256, mask_cells=1 << 24)
GPU_LIMITS = PrefillLimits(padding=32_768, mask_cells=1 << 28)
"""On a GPU a forward pass costs its launch time, whatever its size, so a prefill has few parts."""


@dataclass(frozen=True)
class Feed:
    """Tokens to put into a row, after which its turn is sampled.

    `start` is the position of the first token (0: a new sequence); `uniforms` [max_new_tokens] in [0, 1) decide the
    turn's tokens.
    """

    row: int
    start: int
    ids: Sequence[int]
    uniforms: npt.NDArray[np.float32]


@dataclass(frozen=True)
class SampledTurn:
    """What was sampled in a row: `ids` [n] and log-probabilities [n] at the temperature of sampling (greedy: at 1)."""

    row: int
    ids: list[int]
    logprobs: npt.NDArray[np.float32]


class RowCache(Cache):  # type: ignore[misc]  # transformers is untyped here
    """Keys and values [rows, heads, slots, dim] per layer, written in place where `aim` says, read as views."""

    def __init__(self, rows: int) -> None:
        super().__init__(layers=[])
        self._rows = rows
        self._slots = 0
        self._store: dict[int, tuple[Tensor, Tensor]] = {}
        self._rows_to_read: Tensor | None = None
        self._where: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self._real: tuple[Tensor, Tensor] | None = None
        self._length = 0

    def aim(self, rows: Tensor | None, positions_RM: Tensor, real_RM: Tensor | None, length: int) -> None:
        """Set where the next forward pass writes and how many slots it reads.

        `rows` [R] are the rows of its batch (None: all of them, in order); `real_RM` leaves out padding (None: no
        padding).
        """
        index = torch.arange(self._rows, device=positions_RM.device) if rows is None else rows
        if real_RM is None:
            self._real = None
            self._where = (index[:, None].expand_as(positions_RM).flatten(), positions_RM.flatten())
        else:  # places and no mask: a mask would make the GPU wait in every layer
            row_N, place_N = real_RM.nonzero(as_tuple=True)
            self._real = row_N, place_N
            self._where = (index[row_N], positions_RM[row_N, place_N])
        self._rows_to_read = rows
        self._length = length
        self.grow(length)

    def grow(self, length: int) -> int:
        """Make room for `length` slots and one more. Return that last slot, which is written but never read."""
        if length >= self._slots:
            self._resize(-(-max(length + 1, self._slots * 3 // 2) // _CHUNK) * _CHUNK)
        return self._slots - 1

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values and return all of the batch's."""
        if layer_idx not in self._store:
            self._store[layer_idx] = (self._allocate(key_states), self._allocate(value_states))
        keys, values = self._store[layer_idx]
        return self._write(keys, key_states), self._write(values, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots that the next forward pass reads."""
        return self._length

    def copy(self, source: int, row: int, length: int) -> None:
        """Put the first slots of one row into another."""
        for keys, values in self._store.values():
            keys[row, :, :length] = keys[source, :, :length]
            values[row, :, :length] = values[source, :, :length]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, renumbered in this order."""
        self._rows = len(rows)
        self._store = {i: (k[rows], v[rows]) for i, (k, v) in self._store.items()}

    def _write(self, store: Tensor, new_RHMD: Tensor) -> Tensor:
        row, slot = self._where
        if self._real is None:
            store[row, :, slot] = new_RHMD.transpose(1, 2).flatten(0, 1)
        else:
            row_N, place_N = self._real
            store[row, :, slot] = new_RHMD[row_N, :, place_N]
        readable = store[:, :, : self._length]
        return readable if self._rows_to_read is None else readable[self._rows_to_read]

    def _allocate(self, like: Tensor) -> Tensor:
        return like.new_zeros(self._rows, like.shape[1], self._slots, like.shape[3])

    def _resize(self, slots: int) -> None:
        self._slots = slots
        self._store = {i: (self._enlarge(k), self._enlarge(v)) for i, (k, v) in self._store.items()}

    def _enlarge(self, store: Tensor) -> Tensor:
        larger = self._allocate(store)
        larger[:, :, : store.shape[2]] = store
        return larger


class StepRecordings:
    """CUDA graphs of the decoding step, one for each number of slots that it reads.

    A graph launches all kernels of a step at once. Without it the launches of a small model take several times as long
    as its computation. A graph cannot hold a step that waits for the GPU, as some mixtures of experts do; such a model
    is played without graphs.
    """

    def __init__(self) -> None:
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        """None: this step has run once, so that the libraries are set up for its sizes."""
        self._pool: Any = None
        self._waits: bool | None = None
        """Whether the step waits for the GPU; None: not known yet."""

    def clear(self) -> None:
        """Forget all graphs, because the tensors that they read and write have been replaced.

        Their memory is forgotten as well: torch takes no recording into memory that no graph holds any more.
        """
        self._graphs, self._pool = {}, None

    def run(self, key: tuple[int, int], step: Callable[[], None]) -> None:
        """Run a step: the first one of a key plainly, the second one is recorded, and the others are replayed.

        `step` reads and writes the same tensors each time.
        """
        if self._waits is None:
            self._waits = not _run_without_waiting(step)
            if not self._waits:
                return
        if self._waits or key not in self._graphs:
            self._graphs[key] = None
            step()
            return
        if (graph := self._graphs[key]) is None:
            graph = self._graphs[key] = self._record(step)
        graph.replay()

    def _record(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Record the step, which does not run meanwhile."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step()
        return graph


class BatchSampler:
    """Rows that are fed tokens and sampled from together; each row's turn ends on its own.

    A token is the inverse of the cumulated probabilities at the row's own uniform number (greedy: the most probable
    token), so that what a row samples does not depend on the rows beside it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: int,
        end_ids: set[int],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        greedy: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        self._masks = AttentionMasks(model)
        self._recordings = StepRecordings() if cuda_graphs and model.device.type == "cuda" else None
        self._model, self._device = model, model.device
        self._temperature, self._greedy, self._max_new = temperature, greedy, max_new_tokens
        self._end_ids = torch.tensor(sorted(end_ids), device=self._device)
        self._cache = RowCache(rows)
        self._options = {"use_cache": True, find_cache_argument(model) or "": self._cache} | make_forward_options(model)
        self._rows = torch.arange(rows, device=self._device)
        self._last = torch.zeros(rows, dtype=torch.long, device=self._device)
        self._position = torch.zeros_like(self._last)
        self._count = torch.zeros_like(self._last)
        # A row whose turn has ended is still computed. Its tokens go into the additional column.
        self._ids = torch.zeros(rows, max_new_tokens + 1, dtype=torch.long, device=self._device)
        self._logprobs = torch.zeros(rows, max_new_tokens + 1, device=self._device)
        self._uniforms = torch.zeros(rows, max_new_tokens + 1, device=self._device)
        self._sampling = torch.zeros(rows, dtype=torch.bool, device=self._device)
        self._open: set[int] = set()
        self._length = 0

    @property
    def open_count(self) -> int:
        """Number of turns that go on or were not taken yet."""
        return len(self._open)

    @property
    def ended_count(self) -> int:
        """Number of turns that have ended and were not taken yet."""
        return len(self._open) - int(self._sampling.sum())

    @torch.inference_mode()
    def feed(self, feeds: Sequence[Feed]) -> None:
        """Put tokens into rows and sample the first token of their turns."""
        limits = CPU_LIMITS if self._device.type == "cpu" else GPU_LIMITS
        for group in _group_feeds(feeds, limits):
            self._prefill(group)
        self._length = self._find_longest()

    @torch.inference_mode()
    def copy(self, source: int, row: int, length: int) -> None:
        """Take over what was computed in one row for the first `length` tokens of another, which is fed next."""
        self._cache.copy(source, row, length)

    @torch.inference_mode()
    def step(self) -> None:
        """Sample one more token in every row whose turn goes on."""
        self._length += 1
        if self._recordings is None:
            self._decode(self._length, self._cache.grow(self._length))
            return
        length = -(-self._length // _RECORDED_CHUNK) * _RECORDED_CHUNK
        spare = self._cache.grow(length)
        self._recordings.run((length, spare), partial(self._decode, length, spare))

    def _decode(self, length: int, spare: int) -> None:
        """Compute a step that reads `length` slots, with the same tensors each time.

        A waiting row is computed as well, and may be longer than the others. It writes to the slot `spare`.
        """
        position = torch.where(self._sampling, self._position, spare)
        self._cache.aim(None, position[:, None], None, length)
        logits_BV = self._forward(self._last[:, None], self._position[:, None], length)
        going = self._sampling
        self._position += going
        self._record(self._rows, logits_BV, going)

    @torch.inference_mode()
    def take(self) -> list[SampledTurn]:
        """Remove and return the turns that have ended. Their rows wait to be fed."""
        going = self._sampling.tolist()
        rows = sorted(row for row in self._open if not going[row])
        counts, ids, logprobs = self._count[rows].tolist(), self._ids[rows].tolist(), self._logprobs[rows].cpu().numpy()
        self._open.difference_update(rows)
        self._length = self._find_longest()
        return [
            SampledTurn(r, ids[i][:n], logprobs[i, :n].copy())
            for i, (r, n) in enumerate(zip(rows, counts, strict=True))
        ]

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only; row rows[i] becomes row i."""
        index = torch.tensor(rows, dtype=torch.long, device=self._device)
        self._cache.keep(index)
        if self._recordings:
            self._recordings.clear()
        for name in ("_last", "_position", "_count", "_ids", "_logprobs", "_uniforms", "_sampling"):
            setattr(self, name, getattr(self, name)[index])
        self._rows = torch.arange(len(rows), device=self._device)
        self._open = {new for new, old in enumerate(rows) if old in self._open}
        self._length = self._find_longest()

    def _find_longest(self) -> int:
        return int(self._position[sorted(self._open)].max()) if self._open else 0

    def _prefill(self, feeds: Sequence[Feed]) -> None:
        width = max(len(f.ids) for f in feeds)
        length = max(f.start + len(f.ids) for f in feeds)
        ids_RM = torch.zeros(len(feeds), width, dtype=torch.long)
        position_RM = torch.zeros_like(ids_RM)
        real_RM = torch.zeros_like(ids_RM, dtype=torch.bool)
        uniforms = torch.zeros(len(feeds), self._max_new + 1)
        for i, f in enumerate(feeds):
            ids_RM[i, width - len(f.ids) :] = torch.as_tensor(f.ids)
            position_RM[i, width - len(f.ids) :] = torch.arange(f.start, f.start + len(f.ids))
            real_RM[i, width - len(f.ids) :] = True
            uniforms[i, : self._max_new] = torch.from_numpy(f.uniforms)
        padded = None if bool(real_RM.all()) else real_RM.to(self._device)
        ids_RM, position_RM = ids_RM.to(self._device), position_RM.to(self._device)
        rows = torch.tensor([f.row for f in feeds], device=self._device)
        self._cache.aim(rows, position_RM, padded, length)
        logits_RV = self._forward(ids_RM, position_RM, length)
        self._position[rows] = position_RM[:, -1] + 1
        self._count[rows] = 0
        self._uniforms[rows] = uniforms.to(self._device)
        self._open.update(f.row for f in feeds)
        self._record(rows, logits_RV, torch.ones_like(rows, dtype=torch.bool))

    @share_keys()
    def _forward(self, ids_RM: Tensor, position_RM: Tensor, length: int) -> Tensor:
        """Logits [R, V] after the last token of each row."""
        mask = self._masks.build(position_RM, length)
        output = self._model(input_ids=ids_RM, position_ids=position_RM, attention_mask=mask, **self._options)
        return cast(Tensor, output.logits[:, -1].float())

    def _record(self, rows: Tensor, logits_RV: Tensor, going: Tensor) -> None:
        """Sample a token in each of the rows and note it where the turn goes on."""
        count = self._count[rows]
        if self._greedy:
            logprobs_RV = logits_RV.log_softmax(-1)
            token = logits_RV.argmax(-1)
        else:
            logprobs_RV = (logits_RV / self._temperature).log_softmax(-1)
            token = _invert(logprobs_RV.exp(), self._uniforms[rows, count])
        self._ids[rows, count] = token
        self._logprobs[rows, count] = logprobs_RV.gather(-1, token[:, None])[:, 0]
        count = count + going
        self._count[rows] = count
        self._last[rows] = torch.where(going, token, self._last[rows])
        self._sampling[rows] = going & ~torch.isin(token, self._end_ids) & (count < self._max_new)


def _run_without_waiting(step: Callable[[], None]) -> bool:
    """Run a step, and return whether it did not wait for the GPU.

    One that would wait is broken off. By then it has changed no more than keys and values, which the step writes again.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return False
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return True


def _invert(probs_RV: Tensor, uniforms_R: Tensor) -> Tensor:
    """The first token [R] whose cumulated probability exceeds the uniform number; never one of probability 0."""
    cumulated = probs_RV.cumsum(-1)
    aim = uniforms_R.clamp(max=1 - 1e-6)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, aim, right=True)[:, 0]


def _group_feeds(feeds: Sequence[Feed], limits: PrefillLimits) -> Iterator[list[Feed]]:
    """Feeds of similar length together, each group within the limits of padding and of its mask."""
    group: list[Feed] = []
    tokens = slots = 0
    for feed in sorted(feeds, key=lambda f: len(f.ids)):
        width = len(feed.ids)
        slots = max(slots, feed.start + width)
        if width * len(group) - tokens > limits.padding or width * (len(group) + 1) * slots > limits.mask_cells:
            if group:
                yield group
            group, tokens, slots = [], 0, feed.start + width
        group.append(feed)
        tokens += width
    if group:
        yield group
