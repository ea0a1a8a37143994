"""Model folders: where a policy comes from, how it is checked, and how it is loaded."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
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
_COUNT = re.compile(r"^(num|n)_.*(layers?|experts?)$")
_LARGEST_COUNT = 2_000
"""Layers or experts of a model: each is made before any weight is read."""
_LARGEST_GROWTH = 64
"""Times that a tokenizer may make a text longer. SentencePiece puts one character in place of a space."""
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
_OTHER_KIND = re.compile(r"Unrecognized configuration class <class '(?:\w+\.)*(\w+)'> for this kind of AutoModel")
"""What transformers says where a configuration is not that of a causal language model."""
_INDEX = "model.safetensors.index.json"
MAX_FILE = 5 << 30
"""Bytes of weights in a file of a model folder, at most, if no tensor is larger. Adapters are merged file by file."""
DECODING = "generation_config.json"
"""Where transformers and vLLM read how a model is decoded."""
ADAPTER = "adapter_config.json"
"""File of an adapter. transformers would load another model in place of the one that it lies beside."""
_DEQUANTISED = frozenset({"fp8", "mxfp4"})
"""Methods of quantisation whose weights transformers makes bfloat16 again."""

transformers_logging.disable_progress_bar()  # one bar for every load would drown the pipeline's own progress


class ModelError(ValueError):
    """A model folder that cannot be used, with what it lacks."""


def read_model_config(folder: str | os.PathLike[str]) -> PreTrainedConfig:
    """The configuration of a model folder or Hub id.

    Raises ModelError for one that transformers cannot use, that fetches code or that has more layers than any model,
    and for the folder of an adapter.
    """
    if (Path(folder) / ADAPTER).is_file():
        raise ModelError(
            f"{folder}: holds an adapter ({ADAPTER}), and a whole model is expected; merge the adapter into its base "
            "(merge_and_unload of peft, then save_pretrained), or remove its files if the weights beside it are whole"
        )
    _check_folder(folder, ("config.json",), "configuration", "expected a Hugging Face model folder with a config.json")
    with explain_errors(folder, "configuration"):
        values, _ = PreTrainedConfig.get_config_dict(os.fspath(folder))
        _check_values(values)
        config: PreTrainedConfig = AutoConfig.from_pretrained(os.fspath(folder), trust_remote_code=False)
    return config


def _check_values(values: Any) -> None:
    """Raise ValueError for a value, at any depth of a configuration, that no model needs."""
    if isinstance(values, list):
        for value in values:
            _check_values(value)
    for name, value in values.items() if isinstance(values, dict) else ():
        if name.endswith(("attn_implementation", "experts_implementation")) and "/" in str(value):
            raise ValueError(f"{name}: {value} is a kernel of the Hub, which is code and is never fetched; remove it")
        if _COUNT.search(name) and isinstance(value, int) and value > _LARGEST_COUNT:
            raise ValueError(f"{name}: expected at most {_LARGEST_COUNT}, got {value}")
        _check_values(value)


def load_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or Hub id. Raises ModelError where it is missing or cannot be used."""
    _check_folder(folder, _TOKENIZER_FILES, "tokenizer", "save the tokenizer there with tokenizer.save_pretrained")
    with explain_errors(folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(os.fspath(folder), trust_remote_code=False)
        if tokenizer.is_fast:
            _check_growth(json.loads(tokenizer.backend_tokenizer.to_str()))
        tokenizer.encode("a text")
    return tokenizer


def _check_growth(tokenizer: dict[str, Any]) -> None:
    """Raise ValueError where replacements, one after the other, may make a text much longer than it was."""
    for part in ("normalizer", "decoder"):
        if (growth := math.prod(_list_replacement_lengths(tokenizer.get(part)))) > _LARGEST_GROWTH:
            raise ValueError(
                f"its {part} makes texts up to {growth} times as long; at most {_LARGEST_GROWTH} are taken"
            )


def _list_replacement_lengths(part: Any) -> Iterator[int]:
    """Characters that each replacement below a part of a tokenizer may make of one."""
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if isinstance(part, dict) and part.get("type") == "Replace":
        yield max(1, len(part["content"]))
    for value in inner:
        yield from _list_replacement_lengths(value)


def load_model(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """The causal language model of a folder or Hub id, on a GPU where there is one.

    In bfloat16 if it was saved in that, else in float32. Raises ModelError where configuration, weights, tokenizer or
    chat template are missing, where weights are pickled or quantised and where the model needs code of its own.
    """
    config = read_model_config(folder)
    is_quantised = _dequantise(config, folder)
    _check_weights(folder)
    load_tokenizer(folder)
    with explain_errors(folder, "model"):
        model, report = AutoModelForCausalLM.from_pretrained(
            os.fspath(folder),
            config=config,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    if other_sizes := sorted(report["mismatched_keys"]):
        name, stored, expected = other_sizes[0]
        raise ModelError(
            f"{folder}: the weights '{name}' have the sizes {list(stored)}, and config.json asks for {list(expected)} "
            f"({len(other_sizes)} weights differ); take config.json and weights from the same model"
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{folder}: the weights hold no {', '.join(missing[:3])} ({len(missing)} of the model's parameters are "
            f"missing; unknown are {sorted(report['unexpected_keys'])[:3]}): these would be random. Save the model "
            "with save_pretrained, so that the names are those of its class"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{folder}: an adapter, and a whole model is expected; merge it into its base and save that")
    if is_quantised:
        model._weight_conversions = None  # transformers would quantise them again where it saves the model
    if model.dtype != torch.bfloat16:
        model = model.float()
    return model.to(choose_device()).eval()


def _dequantise(config: PreTrainedConfig, folder: str | os.PathLike[str]) -> bool:
    """Have quantised weights made bfloat16 when they are loaded; False for weights that are not quantised.

    Raises ModelError where that is not possible.
    """
    quantisation = getattr(config, "quantization_config", None)
    if not quantisation:
        return False
    method = str(quantisation.get("quant_method")) if isinstance(quantisation, dict) else type(quantisation).__name__
    if method not in _DEQUANTISED:
        raise ModelError(
            f"{folder}: its weights are quantised ({method}), and float32 or bfloat16 weights are trained; name the "
            "model that it was made from, or remove quantization_config from config.json if they are so no longer"
        )
    quantisation["dequantize"] = True
    return True


def check_model(folder: str | os.PathLike[str], policy: PolicyConfig) -> None:
    """Check the files of a model folder or Hub id, but load no weights: that all are there, whole and of use here.

    Raises ModelError as `load_model` and `load_codec` do, except for weights that do not belong to the configuration.
    """
    _dequantise(read_model_config(folder), folder)
    _check_weights(folder)
    load_codec(folder, policy.chat_format, policy.chat_date)


def _check_weights(folder: str | os.PathLike[str]) -> None:
    """Raise ModelError unless a local folder holds all files of weights, whole. A Hub id is not checked."""
    _check_folder(folder, ("*.safetensors",), "weights", _CONVERT)
    path = Path(folder)
    if not path.is_dir():
        return
    with explain_errors(folder, "weights"):
        names = {"model.safetensors"}
        if not (path / "model.safetensors").is_file() and (path / _INDEX).is_file():
            names = set(json.loads((path / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        for name in sorted(names):
            with safe_open(path / name, "pt"):
                pass  # opening reads the header, and compares it with the size of the file


def load_codec(folder: str | os.PathLike[str], chat_format: str = AUTO, day: str = DATE) -> ChatCodec:
    """The chat codec of a model folder or Hub id; a turn ends with each token that the folder names as an end.

    `day` is the date that a chat template prints as today's.
    Raises ModelError as `load_tokenizer` does, and where the chat template or the end of a turn cannot be used.
    """
    tokenizer, ends = load_tokenizer(folder), _read_ends(folder)
    try:
        return ChatCodec(tokenizer, chat_format, ends, day)
    except ValueError as error:
        raise ModelError(f"{folder}: {error}") from error


def _read_ends(folder: str | os.PathLike[str]) -> list[int]:
    """The tokens that the generation configuration names as ends of a turn; a model needs no such configuration."""
    try:
        with explain_errors(folder, DECODING):
            end = GenerationConfig.from_pretrained(os.fspath(folder)).eos_token_id
    except ModelError:
        if (Path(folder) / DECODING).exists():
            raise
        return []
    ends = end if isinstance(end, list) else [] if end is None else [end]
    if wrong := [token for token in ends if type(token) is not int]:
        raise ModelError(f"{folder}: {DECODING} names {wrong[0]!r} as eos_token_id; expected numbers of tokens")
    return ends


def choose_device() -> torch.device:
    """The GPU of this process, of those that torchrun started on this machine; the CPU on a machine without a GPU."""
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
        save_model(make_tiny_model(tokenizer, policy.max_context, seed), policy.dtype, target)
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
    """Write a model in a precision, in files of MAX_FILE; auto: in its own. Every later stage takes the precision of
    the folder. Of its decoding the numbers of special tokens alone are written."""
    if dtype != "auto":
        model = model.to(getattr(torch, dtype))
    decoding, model.generation_config = model.generation_config, keep_special_tokens(model.generation_config)
    try:
        model.save_pretrained(folder, max_shard_size=MAX_FILE)
    finally:
        model.generation_config = decoding


def keep_special_tokens(decoding: GenerationConfig | None) -> GenerationConfig:
    """A decoding with the special tokens of another and nothing else.

    Penalties, beams and forced tokens of a base are not those of the rollouts, and the trained model must not be served
    with them. transformers refuses to save some combinations of them.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return GenerationConfig(**{name: getattr(decoding, name, None) for name in names})


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


def make_tiny_model(
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
def explain_errors(folder: str | os.PathLike[str], part: str) -> Iterator[None]:
    """Turn what transformers raises for a part of a model into a ModelError that names the folder.

    The content of a folder comes from outside and can make transformers raise errors of any class. What it logs about
    such a folder, over dozens of lines, is not shown.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except Exception as error:
        raise ModelError(f"{folder}: {_explain(error, part, is_local=Path(folder).is_dir())}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _explain(error: Exception, part: str, *, is_local: bool) -> str:
    """What is wrong with a part of a model, and what to do."""
    text = str(error)
    if isinstance(error, OSError) and not is_local:
        return f"neither a model folder here nor a model that the Hub gives ({text})"
    if "trust_remote_code" in text:
        return "it brings Python code of its own, which is never run; use an architecture that transformers knows"
    if kind := _OTHER_KIND.search(text):
        return f"a model with {kind[1]} writes no text; expected a causal language model, such as Qwen3ForCausalLM"
    reason = " ".join(f"{type(error).__name__}: {text}".split())[:500]
    return f"its {part} cannot be used ({reason}); take an intact copy of the model"


def _check_folder(folder: str | os.PathLike[str], patterns: tuple[str, ...], what: str, remedy: str) -> None:
    """Raise ModelError unless a local folder has a file of one of the patterns.

    What is no local path is taken for a Hub id, which is not checked.
    """
    if not os.fspath(folder):
        raise ModelError("no model is named; expected a model folder, the url of one or a Hub id as in owner/name")
    path = Path(folder)
    if not path.exists() and len(path.parts) <= 2 and not os.fspath(folder).startswith((os.sep, ".")):
        return
    if not path.is_dir():
        raise ModelError(
            f"{folder}: no such model folder; expected one with a config.json, or a Hub id as in owner/name"
        )
    if not any(any(path.glob(p)) for p in patterns):
        names = sorted(p.name for p in path.iterdir())[:8]
        raise ModelError(f"{folder}: no {what} ({' or '.join(patterns)}) in the folder, found {names}; {remedy}")


LoadModel: TypeAlias = Callable[[str | os.PathLike[str]], PreTrainedModel]
"""Gives the model of a folder, from its files or from memory."""
