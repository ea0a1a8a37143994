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
from steptool.models.actor import free_gpu_memory
from steptool.models.load import read_model_config
from steptool.policies.token_policies import Completion, Sampling

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_STEP_TOKENS = 4096
"""Tokens of prompts that a step computes on a CPU, at most, unless one prompt has more."""


class VllmEngine:
    """One model in vLLM, with its prefix cache and continuous batching, in the precision in which training loads it.

    Log-probabilities are taken at the temperature of sampling, and at 1 for a greedy turn. Samples depend only on the
    seed of their request, up to rounding, which depends on the requests beside it. On a CPU prompts are computed whole:
    after a part of a prompt vLLM turns the random numbers of its request back, and only a GPU's generator can do that.

    The LoRA weights in the folder `adapter` are applied without merging them. `lora_rank` reserves room for the adapter
    of a later `resume`. With `rests` the engine lives on after `close`, until `shut_down`.

    Raises ConfigError if vLLM is not installed.
    """

    def __init__(
        self,
        folder: str,
        *,
        adapter: str = "",
        max_context: int,
        max_requests: int,
        lora_rank: int = 0,
        rests: bool = False,
    ) -> None:
        _prepare_process()
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
                enable_sleep_mode=gpu and rests,
                **_make_lora_options(adapter, lora_rank),
                **({} if gpu else _make_prompt_options(max_context)),
            )
        )
        self.folder, self._rests, self._adapters = folder, rests, 0
        self._cache_sizes: list[int] = []
        self._request_options: dict[str, Any] = {}
        self._apply(adapter)

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
        return [_read_completion(output) for output in self._engine.step() if output.finished]

    def abort(self, request_ids: Collection[str]) -> None:
        """Drop requests whose turns are no longer needed."""
        if request_ids:
            self._engine.abort_request(list(request_ids))

    def close(self) -> None:
        """Give back the memory of the engine. A resting engine keeps its weights, on a GPU in main memory."""
        if not self._rests:
            self.shut_down()
            return
        self._engine.sleep(level=1)
        if not torch.cuda.is_available():
            self._cache_sizes = self._engine.collective_rpc(_free_caches)[0]

    def resume(self, folder: str, adapter: str = "") -> None:
        """Go on after `close`, with another adapter or, on a GPU, with the weights of another folder of the same model.

        The cache of earlier prompts is emptied.
        """
        if not torch.cuda.is_available():
            self._engine.collective_rpc(_restore_caches, args=(self._cache_sizes,))
        self._engine.wake_up()
        if folder != self.folder:
            self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
            self.folder = folder
        self._apply(adapter)

    def shut_down(self) -> None:
        """End the engine."""
        self._engine.engine_core.shutdown()

    def _apply(self, adapter: str) -> None:
        """Play with the adapter from the next request on; without one for an empty name."""
        if self._request_options:
            self._engine.remove_lora(self._adapters)
        self._request_options = {}
        if adapter:
            self._adapters += 1
            lora: Any = import_module("vllm.lora.request")
            request = lora.LoRARequest(f"policy{self._adapters}", self._adapters, adapter)
            self._request_options = {"lora_request": request}


class RestingEngine:
    """The vLLM of a process that plays and trains in turn: started once, and at rest while the process trains."""

    def __init__(self) -> None:
        self._engine: VllmEngine | None = None

    def open(self, folder: str, **options: Any) -> VllmEngine:
        """The engine with the weights of a folder. Of the `options` of `VllmEngine` only the adapter may change."""
        if self._engine and (folder == self._engine.folder or torch.cuda.is_available()):
            self._engine.resume(folder, options.get("adapter", ""))
            return self._engine
        self.close()  # on a CPU vLLM has packed the weights and cannot replace them
        self._engine = VllmEngine(folder, rests=True, **options)
        return self._engine

    def close(self) -> None:
        """End the engine, if it was started."""
        if self._engine is not None:
            self._engine.shut_down()
            self._engine = None


def _prepare_process() -> None:
    """Set what vLLM reads from the environment, where the user has not set it, and free the GPU for it."""
    if torch.cuda.is_available():
        # vLLM runs in a process of its own. This one has asked for GPUs, after which a fork of it cannot use them.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        free_gpu_memory()  # vLLM refuses to start unless nearly all of it is free
    else:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # vLLM would tie the threads of this process to processors, and training goes on in it.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def _free_caches(worker: Any) -> list[int]:
    """Give back the memory of keys and values, which vLLM itself does on GPUs alone; returns the bytes by layer."""
    storages = [cache.untyped_storage() for cache in worker.model_runner.kv_caches]
    sizes = [storage.nbytes() for storage in storages]
    for storage in storages:
        storage.resize_(0)
    return sizes


def _restore_caches(worker: Any, sizes: list[int]) -> None:
    for cache, size in zip(worker.model_runner.kv_caches, sizes, strict=True):
        cache.untyped_storage().resize_(size)


def _make_lora_options(adapter: str, lora_rank: int) -> dict[str, Any]:
    """Options that reserve room for one adapter, of the smallest rank of vLLM that is large enough.

    Raises ConfigError where none is.
    """
    rank = lora_rank
    if adapter:
        rank = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    if not rank:
        return {}
    if rank > _LORA_RANKS[-1]:
        raise ConfigError(
            f"policy.lora_rank: vLLM takes at most {_LORA_RANKS[-1]}, got {rank}; lower it, or set rollout.engine to "
            "transformers"
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": next(r for r in _LORA_RANKS if r >= rank)}


def _make_prompt_options(max_context: int) -> dict[str, Any]:
    """Options that compute a prompt in one step, with further prompts as far as there is room."""
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(_STEP_TOKENS, max_context)}


def _read_completion(output: Any) -> Completion:
    sampled = output.outputs[0]
    ids = [int(token) for token in sampled.token_ids]
    token_logprobs = [float(logprobs[token].logprob) for token, logprobs in zip(ids, sampled.logprobs, strict=True)]
    return Completion(output.request_id, ids, np.asarray(token_logprobs, dtype=np.float32))
