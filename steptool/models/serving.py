"""What a server needs to prompt a model as in training.

`write_serving` writes it into a file beside the weights, and the decoding of training into generation_config.json,
which vLLM and transformers follow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from transformers import GenerationConfig

from steptool.chat.call_format import ChatFormat, offer_tools
from steptool.chat.codec import AUTO
from steptool.chat.messages import FINISH_SCHEMA
from steptool.chat.template import DATE
from steptool.config import Config, FinishMode
from steptool.models.load import DECODING, ModelError, keep_special_tokens, load_codec
from steptool.records import ToolSchema
from steptool.records.tables import write_text

SERVING_FILE = "serving.json"
_PARSERS = {
    ChatFormat.HERMES: "hermes",
    ChatFormat.LLAMA: "llama3_json",
    ChatFormat.QWEN_XML: "qwen3_coder",
    ChatFormat.GLM: "glm45",
    ChatFormat.DEEPSEEK: "deepseek_v3",
    ChatFormat.GPT_OSS: "openai",
    ChatFormat.MISTRAL: "mistral",
}
"""vLLM's parsers of calls. It cannot parse ReAct's text."""


@dataclass(frozen=True)
class Serving:
    """How a model was prompted and decoded in training."""

    system: str = ""
    """System message of every conversation; empty: none."""
    finish_tool: ToolSchema | None = None
    """The tool with which the model ends a task; None: it ends with an answer without a call."""
    chat_format: str = AUTO
    """Format in which the model writes calls (docs/chat-formats.md)."""
    chat_date: str = DATE
    """The date that the chat template prints as today's."""
    temperature: float = 1.0
    """Sampling temperature of the rollouts."""
    max_tokens: int = 1024
    """Tokens of a turn, at most."""
    max_context: int = 4096
    """Tokens of prompt, calls and observations together."""
    vllm: tuple[str, ...] = ()
    """Flags of `vllm serve`; without a parser of calls where the model writes them in a form that vLLM cannot read."""

    @property
    def finish(self) -> FinishMode:
        """How the model ends a task."""
        return "text" if self.finish_tool is None else "tool"

    def offer(self, tools: Sequence[ToolSchema]) -> list[ToolSchema]:
        """The tools as the model saw them in training: with its Finish as the last one, unless they hold it already."""
        return list(tools) if self.finish_tool is None else offer_tools(tools, "tool")


def write_serving(folder: str | os.PathLike[str], config: Config) -> Serving:
    """Write into a model folder how the run of this configuration prompted and decoded the model.

    Raises ModelError and ValueError where the folder's tokenizer or template cannot be used.
    """
    codec = load_codec(folder, config.policy.chat_format, config.policy.chat_date)
    parser = _PARSERS.get(codec.format.name) if codec.native else None
    calls = ("--enable-auto-tool-choice", "--tool-call-parser", parser) if parser else ()
    serving = Serving(
        finish_tool=FINISH_SCHEMA if config.rollout.finish == "tool" else None,
        chat_format=str(codec.format.name),
        chat_date=config.policy.chat_date,
        temperature=config.rollout.temperature,
        max_tokens=config.rollout.max_new_tokens,
        max_context=config.policy.max_context,
        vllm=("--max-model-len", str(config.policy.max_context), *calls),
    )
    text = json.dumps(asdict(serving), indent=1, ensure_ascii=False)
    write_text(Path(folder) / SERVING_FILE, text + "\n")
    _write_decoding(Path(folder), serving, codec.end_ids)
    return serving


def has_serving(folder: str | os.PathLike[str]) -> bool:
    """Whether a run has written into the folder how its model was prompted."""
    return (Path(folder) / SERVING_FILE).is_file()


def read_serving(folder: str | os.PathLike[str]) -> Serving:
    """How the model of a folder was prompted and decoded; the defaults for a folder without the file.

    Raises ModelError for a file with other fields.
    """
    path = Path(folder) / SERVING_FILE
    if not has_serving(folder):
        return Serving()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if unknown := values.keys() - {field.name for field in fields(Serving)}:
            raise ValueError(f"unknown fields {sorted(unknown)}")
        return Serving(**{**values, "vllm": tuple(values.get("vllm", ()))})
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: not the settings of a served model ({error}); train again or remove the file"
        ) from error


def _write_decoding(folder: Path, serving: Serving, end_ids: Iterable[int]) -> None:
    former = GenerationConfig.from_pretrained(folder) if (folder / DECODING).is_file() else None
    decoding = keep_special_tokens(former)
    decoding.update(
        do_sample=True,
        temperature=serving.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=serving.max_tokens,
        eos_token_id=sorted(end_ids),
    )
    decoding.save_pretrained(folder)
