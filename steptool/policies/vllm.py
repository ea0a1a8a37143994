"""vLLM as the engine of rollouts, in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steptool.config.base import ConfigError
from steptool.models.load import read_model_config
from steptool.policies.engine import Completion, Sampling

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_STEP_TOKENS = 4096
"""Tokens of prompts that a step computes on a CPU, at most, unless one prompt has more."""


class VllmEngine:
    """One model in vLLM, with its prefix cache and continuous batching, in the precision in which training loads it.

    Log-probabilities are those at the temperature of sampling, of a greedy turn those at 1. Samples depend on the seed
    of their request alone, up to rounding, which depends on what runs beside them. On a CPU prompts are computed whole:
    after a part of a prompt vLLM turns the random numbers of its request back, which only those of a GPU can do.

    An `adapter` folder is applied to the model of `folder` as it is, without merging it.

    Raises ConfigError if vLLM is not installed.
    """

    def __init__(self, folder: str, *, adapter: str = "", max_context: int, max_requests: int) -> None:
        if not torch.cuda.is_available():
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            # vLLM would tie the threads of this process to processors, and training goes on in it.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        try:
            vllm: Any = import_module("vllm")
        except ImportError as error:
            raise ConfigError(
                f"rollout.engine is vllm, which cannot be imported here ({error}); install the extra 'gpu' of this "
                "package, run the stage in the image gpu, or set rollout.engine to transformers"
            ) from error
        self._sampling_params, gpu = vllm.SamplingParams, torch.cuda.is_available()
        self._engine = vllm.LLMEngine.from_engine_args(
            vllm.EngineArgs(
                model=folder,
                dtype="bfloat16" if read_model_config(folder).dtype is torch.bfloat16 else "float32",
                max_model_len=max_context,
                max_num_seqs=max_requests,
                enable_prefix_caching=True,
                enforce_eager=not gpu,
                logprobs_mode="processed_logprobs",
                trust_remote_code=False,
                **(_lora_options(adapter) if adapter else {}),
                **({} if gpu else _whole_prompts(max_context)),
            )
        )
        self._request_options = {}
        if adapter:
            lora: Any = import_module("vllm.lora.request")
            self._request_options = {"lora_request": lora.LoRARequest("policy", 1, adapter)}

    def add(self, request_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        """Take in a request."""
        params = self._sampling_params(
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=list(sampling.end_ids),
            logprobs=0,
            seed=sampling.seed,
            detokenize=False,
        )
        self._engine.add_request(request_id, {"prompt_token_ids": list(prompt_ids)}, params, **self._request_options)

    def step(self) -> list[Completion]:
        """Compute one step of all requests and return those that have ended."""
        return [_completion(output) for output in self._engine.step() if output.finished]

    def abort(self, request_ids: Collection[str]) -> None:
        """Drop requests whose turns are no longer needed."""
        if request_ids:
            self._engine.abort_request(list(request_ids))

    def close(self) -> None:
        """Give back the memory of the engine."""
        self._engine.engine_core.shutdown()


def _lora_options(adapter: str) -> dict[str, Any]:
    """Room for one adapter, of the least rank that vLLM knows and that is enough."""
    rank = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": next(r for r in _LORA_RANKS if r >= rank)}


def _whole_prompts(max_context: int) -> dict[str, Any]:
    """Compute a prompt in one step, and others beside it as far as there is room."""
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(_STEP_TOKENS, max_context)}


def _completion(output: Any) -> Completion:
    sampled = output.outputs[0]
    ids = [int(token) for token in sampled.token_ids]
    token_logprobs = [float(logprobs[token].logprob) for token, logprobs in zip(ids, sampled.logprobs, strict=True)]
    return Completion(output.request_id, ids, np.asarray(token_logprobs, dtype=np.float32))
