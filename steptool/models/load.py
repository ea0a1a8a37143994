"""Model folders: where a policy comes from and how it is loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging as transformers_logging

from steptool.chat.codec import AUTO, ChatCodec, give_template
from steptool.chat.template import DATE
from steptool.config import PolicyConfig

EMBEDDED = Path(__file__).parents[1] / "environments" / "desk" / "base"
"""Folder of the small model shipped with the project."""
_HERMES = Path(__file__).parents[1] / "chat" / "templates" / "hermes.jinja"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_CONVERT = (
    "expected *.safetensors beside config.json; weights in pytorch_model*.bin are pickled and are not read: if you "
    "trust them, convert them with AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")


transformers_logging.disable_progress_bar()  # one bar for every load would drown the pipeline's own progress


class ModelError(ValueError):
    """A model folder that cannot be used, with what it lacks."""


def load_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or Hub id. Raises ModelError where it is missing."""
    _check_folder(folder, _TOKENIZER_FILES, "tokenizer", "save the tokenizer there with tokenizer.save_pretrained")
    try:
        with _without_remote_code(folder):
            tokenizer = AutoTokenizer.from_pretrained(os.fspath(folder), trust_remote_code=False)
    except OSError as error:
        raise ModelError(f"{folder}: neither a model folder here nor a model that the Hub gives ({error})") from error
    return tokenizer


def load_model(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """The causal language model of a folder or Hub id, on a GPU where there is one.

    In bfloat16 if it was saved in that, else in float32. Raises ModelError where configuration, weights, tokenizer or
    chat template are missing, where weights are pickled and where the model needs code of its own.
    """
    _check_folder(folder, ("config.json",), "configuration", "expected a Hugging Face model folder with a config.json")
    _check_folder(folder, ("*.safetensors",), "weights", _CONVERT)
    load_tokenizer(folder)
    with _without_remote_code(folder):
        model, report = AutoModelForCausalLM.from_pretrained(
            os.fspath(folder), dtype="auto", use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{folder}: the weights hold no {', '.join(missing[:3])} ({len(missing)} of the model's parameters are "
            f"missing; unknown are {sorted(report['unexpected_keys'])[:3]}): these would be random. Save the model "
            "with save_pretrained, so that the names are those of its class"
        )
    if model.dtype != torch.bfloat16:
        model = model.float()
    return model.to(device()).eval()


def load_codec(folder: str | os.PathLike[str], chat_format: str = AUTO, day: str = DATE) -> ChatCodec:
    """The chat codec of a model folder or Hub id; a turn ends with each token that the folder names as an end.

    `day` is the date that a chat template prints as today's.
    Raises ModelError and ValueError as `load_tokenizer` and `ChatCodec` do.
    """
    tokenizer = load_tokenizer(folder)
    try:
        end = GenerationConfig.from_pretrained(os.fspath(folder)).eos_token_id
    except OSError:  # a folder needs no generation configuration
        end = None
    return ChatCodec(tokenizer, chat_format, [end] if isinstance(end, int) else end or [], day)


def device() -> torch.device:
    """The GPU of this process, of those that torchrun started on this machine; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def prepare_base(policy: PolicyConfig, texts: Iterable[str], seed: int, out_dir: str | os.PathLike[str]) -> Path:
    """Put the model to improve into `out_dir`: the embedded one, one from random weights, or any folder or Hub id.

    `texts` and `seed` are used only by "scratch": its tokenizer is trained on the texts, its weights are drawn by the
    seed. `policy.dtype` decides in which precision it is saved. Raises ModelError where the base cannot be used.
    """
    target = Path(out_dir)
    target.mkdir(parents=True, exist_ok=True)
    if policy.base == "scratch":
        tokenizer = train_tokenizer(texts)
        tokenizer.save_pretrained(target)
        save_model(tiny_model(tokenizer, policy.max_context, seed), policy.dtype, target)
        return target
    base = EMBEDDED if policy.base == "embedded" else policy.base
    if policy.base == "embedded":
        _check_folder(EMBEDDED, ("config.json",), "embedded model", "install the package with its data files")
        if policy.dtype == "auto":
            shutil.copytree(EMBEDDED, target, dirs_exist_ok=True)
            return target
    tokenizer = load_tokenizer(base)
    try:
        give_template(tokenizer, policy.chat_format)
    except ValueError as error:
        raise ModelError(f"{base}: {error}") from error
    tokenizer.save_pretrained(target)
    save_model(load_model(base), policy.dtype, target)
    return target


def save_model(model: PreTrainedModel, dtype: Literal["auto", "float32", "bfloat16"], folder: Path) -> None:
    """Write a model in a precision; auto: in its own. Every later stage takes the precision of the folder."""
    if dtype != "auto":
        model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder)


def train_tokenizer(texts: Iterable[str], vocabulary: int = 4096) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the texts with a Hermes chat template. Any text survives a round trip."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[s for s in _SPECIAL if s not in ("<|endoftext|>", "<|im_end|>")],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _HERMES.read_text(encoding="utf-8")
    return tokenizer


def tiny_model(
    tokenizer: PreTrainedTokenizerBase, max_context: int, seed: int, hidden: int = 64, layers: int = 2
) -> Qwen3ForCausalLM:
    """A small Qwen3 with weights drawn by the seed, for the tokenizer's vocabulary."""
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=hidden // 4,
        intermediate_size=2 * hidden,
        max_position_embeddings=max_context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


@contextmanager
def _without_remote_code(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Raise ModelError in place of transformers' question whether to run the code that a model brings along."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ModelError(
            f"{folder}: the model brings Python code of its own, which is never run; use an architecture that "
            "transformers knows"
        ) from error


def _check_folder(folder: str | os.PathLike[str], patterns: tuple[str, ...], what: str, remedy: str) -> None:
    """A local folder needs a file of one of the patterns. What is no local path is taken for a Hub id."""
    path = Path(folder)
    if not path.exists() and len(path.parts) <= 2 and not os.fspath(folder).startswith((os.sep, ".")):
        return
    if not path.is_dir():
        raise ModelError(f"{folder}: no such model folder")
    if not any(any(path.glob(p)) for p in patterns):
        names = sorted(p.name for p in path.iterdir())[:8]
        raise ModelError(f"{folder}: no {what} ({' or '.join(patterns)}) in the folder, found {names}; {remedy}")
