"""The model that is trained, and the tensors of one forward pass.

The model is a policy, with a value head where the algorithm needs one. The tensors are made of token sequences with
spans, padded or packed end to end (steptool.models.packed_attention).
"""

from __future__ import annotations

import copy
import ctypes
import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from steptool.models.logprobs import (
    AccumulatingEmbedding,
    TileWays,
    compute_token_log_probs,
    has_large_vocabulary,
    unwrap_model,
)
from steptool.models.packed_attention import enable_packing

Indices = npt.NDArray[np.int64]


class Spanned(Protocol):
    """Tokens of which those inside the spans [start, end) are the model's own: a Trajectory, an encoded example."""

    @property
    def input_ids(self) -> Any:
        """[L] token ids."""
        ...

    @property
    def spans(self) -> Sequence[tuple[int, int]]:
        """[start, end) of each assistant step."""
        ...


@dataclass(frozen=True)
class Packing:
    """How sequences lie end to end in one row."""

    position_ids_BL: Tensor
    """Starts again at 0 with each sequence."""
    bounds: Tensor
    """Where each sequence starts and the last one ends, int32."""
    longest: int


@dataclass(frozen=True)
class TokenBatch:
    """The sequences of one forward pass and where the model acts in them."""

    input_ids_BL: Tensor
    """Padded on the right with token 0, which no action token can see under causal attention; or packed in one row."""
    before_N: Tensor
    """Place of the token just before each action token, counted through the rows of `input_ids_BL`."""
    targets_N: Tensor
    """The action tokens, sequence after sequence."""
    packing: Packing | None = None
    """None: one sequence per row."""

    def to(self, device: torch.device) -> TokenBatch:
        """The batch on a device."""
        packing = self.packing and replace(
            self.packing,
            position_ids_BL=self.packing.position_ids_BL.to(device),
            bounds=self.packing.bounds.to(device),
        )
        return TokenBatch(self.input_ids_BL.to(device), self.before_N.to(device), self.targets_N.to(device), packing)


def find_action_places(row: Spanned) -> Indices:
    """Places of the action tokens in a sequence. Raises ValueError for spans that are impossible."""
    length, last = len(row.input_ids), 1  # the first token has nothing before it to be predicted from
    for start, end in row.spans:
        if not last <= start < end <= length:
            raise ValueError(
                f"span [{start}, {end}) of a sequence of {length} tokens: expected spans in order, not empty, "
                f"within [{last}, {length}]"
            )
        last = end
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(start, end) for start, end in row.spans)])


def collate(rows: Sequence[Spanned], packed: bool = False) -> TokenBatch:
    """The sequences as rows of one tensor, padded to the length of the longest; or packed end to end in one row."""
    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    if packed:
        starts = np.cumsum(lengths) - lengths
        input_ids_BL = np.concatenate([np.asarray(row.input_ids, np.int64) for row in rows])[None]
    else:
        starts = np.arange(len(rows)) * lengths.max()
        input_ids_BL = np.zeros((len(rows), lengths.max()), dtype=np.int64)
        for ids_L, row in zip(input_ids_BL, rows, strict=True):
            ids_L[: len(row.input_ids)] = row.input_ids
    places_N = np.concatenate([start + find_action_places(row) for start, row in zip(starts, rows, strict=True)])
    return TokenBatch(
        torch.from_numpy(input_ids_BL),
        torch.from_numpy(places_N - 1),
        torch.from_numpy(input_ids_BL.reshape(-1)[places_N]),
        _make_packing(lengths) if packed else None,
    )


def _make_packing(lengths: Indices) -> Packing:
    positions = np.concatenate([np.arange(length) for length in lengths])
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return Packing(torch.from_numpy(positions[None]), torch.from_numpy(bounds), int(lengths.max()))


WIDTH = 128
FILE = "training/value_head.safetensors"
"""Its place in a model folder (steptool.models.load)."""


class ValueHead(nn.Module):
    """V(s) = w . tanh(W h(s) + b) + c, zero at first."""

    def __init__(self, hidden_size: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.Linear(hidden_size, WIDTH)
        self.out = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Values [N] of hidden states [N, H]."""
        values_N: Tensor = self.out(torch.tanh(self.hidden(hidden_NH.to(self.out.weight.dtype)))).squeeze(-1)
        return values_N.float()


def load_value_head(folder: Path, hidden_size: int, seed: int) -> ValueHead:
    """The value head of a model folder, or a fresh one for a folder without a value head."""
    head = ValueHead(hidden_size, seed)
    if (folder / FILE).is_file():
        head.load_state_dict(load_file(folder / FILE))
    return head


def save_value_head(head: ValueHead, folder: Path) -> None:
    """Write the value head into a model folder."""
    (folder / FILE).parent.mkdir(exist_ok=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()}, folder / FILE)


_COMPILATIONS = 64
"""Ways in which the code of a layer may be compiled."""
_LARGE = 50_000_000
"""Parameters of a model whose passes take seconds on a CPU."""


class ActionOutputs(NamedTuple):
    """What a forward pass says of the action tokens of a batch, sequence after sequence."""

    log_probs_N: Tensor
    """Nats, float32, at the temperature of the rollouts."""
    entropy_N: Tensor
    """Nats, float32, without gradient."""
    states_NH: Tensor
    """Hidden states just before the tokens."""


_NAMES = ("activation_checkpointing", "gradient_checkpointing")
CHECKPOINTING = next(name for name in _NAMES if hasattr(PreTrainedModel, f"{name}_enable"))
"""What transformers calls it when layers keep only their inputs; newer versions have the first name."""


class Actor(nn.Module):
    """A causal language model (plain or wrapped by peft) and, where an algorithm needs it, a value head.

    With `detach_value` the value loss does not reach the backbone. `temperature` is that of the rollouts: the policy
    that is improved is the one that was sampled from. Dropout is off at all times: the ratio of new to old
    probabilities has to be 1 before the first update.
    """

    def __init__(
        self,
        policy: nn.Module,
        head: ValueHead | None = None,
        *,
        detach_value: bool = True,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.policy = policy.eval()
        self.head = head
        self.detach_value = detach_value
        self.temperature = temperature
        self.ways = TileWays()
        self.packed = enable_packing(policy)
        """Whether the sequences of a forward pass are packed end to end; else they are padded."""

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of each layer for the backward pass, which then computes the layer a second time."""
        lm = unwrap_model(self.policy)
        getattr(lm, f"{CHECKPOINTING}_enable")({"use_reentrant": False})
        for module in lm.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True  # layers look at it; the dropout of the modules within them stays off
                _switch_dropout_off(module)

    def accumulate_gradients(self) -> None:
        """Hold one gradient for each table of a large vocabulary and no copies; for training by `backward` alone."""
        lm = unwrap_model(self.policy)
        if not has_large_vocabulary(lm):
            return
        self.ways = replace(self.ways, accumulate=True)
        embedding: Any = lm.get_input_embeddings()
        if type(embedding) is nn.Embedding and not isinstance(embedding.weight, DTensor):
            embedding.__class__ = AccumulatingEmbedding  # keeps its weight, its name and its hooks

    def release_memory(self) -> None:
        """Give back to the system what a pass has freed, for a model whose passes take seconds on a CPU."""
        if unwrap_model(self.policy).device.type == "cpu" and sum(p.numel() for p in self.parameters()) >= _LARGE:
            give_back_free_memory()

    def compile_layers(self) -> None:
        """Compile each layer, and what is done to the logits of a large vocabulary, into fewer kernels."""
        # Scoring, training, one packed sequence or several, each kind of layer: all compile the same code anew, and
        # torch would leave it uncompiled from the eighth time on.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _COMPILATIONS)
        self.ways = replace(self.ways, fused=True)
        for module in unwrap_model(self.policy).modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile()

    def forward(self, batch: TokenBatch, temperature: float | None = None) -> ActionOutputs:
        """Log-probability and entropy of each action token, at the actor's temperature if none is given.

        Logits are computed for these tokens alone.
        """
        return score_actions(self.policy, batch, temperature or self.temperature, self.ways)

    def compute_values(self, states_NH: Tensor) -> Tensor:
        """Values [N] of the states of a forward pass, float32."""
        if self.head is None:
            raise ValueError("this model has no value head; an algorithm that uses values sets needs_value_head")
        values_N: Tensor = self.head(states_NH.detach() if self.detach_value else states_NH)
        return values_N

    @torch.no_grad()
    def compute_reference_log_probs(self, batch: TokenBatch, reference: Actor | None) -> Tensor:
        """Log-probabilities [N] under the reference: another model or, if None, this one with its adapter off."""
        if reference is not None:
            log_probs_N: Tensor = reference(batch).log_probs_N
            return log_probs_N
        with self.policy.disable_adapter():  # type: ignore[operator]
            own_N: Tensor = self(batch).log_probs_N
            return own_N


def _switch_dropout_off(layer: nn.Module) -> None:
    """Take the dropout out of a layer that computes it by itself, as OPT's do, and not by a module."""
    if hasattr(layer, "config"):
        layer.config = copy.copy(layer.config)  # the model's own configuration is saved
    for owner in filter(None, (layer, getattr(layer, "config", None))):
        for name in [name for name, value in vars(owner).items() if "drop" in name and isinstance(value, float)]:
            setattr(owner, name, 0.0)


def give_back_free_memory() -> None:
    """Give free pages of the heap back to the system.

    The GNU C library keeps the freed activations of a forward pass in its heap, in pieces that the next pass, with
    other sizes, cannot always use. Where the library has no `malloc_trim` nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def free_gpu_memory() -> None:
    """Give the GPU memory that nothing uses any more back, so that another process or library can have it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def score_actions(
    policy: nn.Module, batch: TokenBatch, temperature: float, ways: TileWays | None = None
) -> ActionOutputs:
    """Run a policy on a batch."""
    states_NH = compute_action_states(policy, batch)
    log_probs_N, entropy_N = compute_token_log_probs(
        unwrap_model(policy), states_NH, batch.targets_N, temperature, ways
    )
    return ActionOutputs(log_probs_N, entropy_N, states_NH)


def compute_action_states(policy: nn.Module, batch: TokenBatch) -> Tensor:
    """Last hidden states [N, H] just before each action token."""
    lm = unwrap_model(policy)
    options: dict[str, Any] = {}
    if batch.packing is not None:
        bounds, longest = batch.packing.bounds, batch.packing.longest
        options = {
            "position_ids": batch.packing.position_ids_BL,
            "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest,
        }  # fmt: skip
    # float32 adapters on a bfloat16 model: their products are bfloat16 as well
    mixed = lm.dtype == torch.bfloat16 and policy is not lm
    backbone: Any = lm.model if lm.base_model is lm else lm.base_model  # Llama 4 has none under the name it gives
    with torch.autocast(lm.device.type, torch.bfloat16, enabled=mixed):
        hidden_BLH: Tensor = backbone(input_ids=batch.input_ids_BL, use_cache=False, **options).last_hidden_state
    return hidden_BLH.flatten(0, 1)[batch.before_N]
