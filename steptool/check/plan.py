"""What a run would do, in a few lines, from its configuration and the files that the configuration names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from steptool.check.memory import ModelShape, read_shape
from steptool.config import Config, EndpointConfig, PolicyConfig
from steptool.data.ingest import list_files


def describe_plan(config: Config) -> list[str]:
    """A line for each stage of `train`, and one for each policy that `evaluate` would compare.

    Raises IngestError for data that is not there.
    """
    lines = [
        _describe_data(config),
        _describe_policy(config),
        _describe_warm_start(config),
        *_describe_rounds(config),
        _describe_evaluation(config),
    ]
    lines += [line for endpoint, purpose in _find_endpoints(config) for line in _describe_endpoint(endpoint, purpose)]
    return lines


def read_base_shape(policy: PolicyConfig) -> ModelShape | None:
    """The shape of the base model; None if it is made later (scratch), lies behind a url or is not on this machine.

    Raises ModelError for a folder whose configuration cannot be used.
    """
    from steptool.models.load import EMBEDDED, ModelError, explain_errors, read_model_config

    if policy.base == "scratch" or "://" in policy.base:
        return None
    try:
        place = EMBEDDED if policy.base == "embedded" else policy.base
        model_config = read_model_config(place)
    except ModelError:
        if Path(place).exists():
            raise
        return None  # a Hub id that is not on this machine, and no network to fetch it
    with explain_errors(place, "configuration"):
        return read_shape(model_config, policy.dtype)


def _describe_data(config: Config) -> str:
    data = config.data
    files = [file for file in list_files(data) if file.size]
    noun = "file" if len(files) == 1 else "files"
    size = f" from {len(files)} {noun} of {sum(file.size for file in files) / 1e6:,.1f} MB" if files else ""
    most = "" if data.source == "desk" else "at most "
    counts = f"{data.train_queries} training, {data.validation_queries} validation and {data.heldout_queries} held-out"
    return f"data        {data.source}: {most}{counts} queries{size}"


def _describe_policy(config: Config) -> str:
    policy = config.policy
    tuning = f"LoRA of rank {policy.lora_rank}" if policy.lora_rank else "full fine-tuning"
    return f"policy      {policy.base}: {tuning}, {policy.max_context} tokens of context"


def _describe_warm_start(config: Config) -> str:
    warm_start = config.warm_start
    if not warm_start.steps:
        return "warm start  none"
    return f"warm start  {warm_start.steps} steps on at most {warm_start.demonstrations} demonstrations"


def _describe_rounds(config: Config) -> Iterator[str]:
    ppo, rollout = config.ppo, config.rollout
    updates = ppo.epochs * -(-rollout.episodes // ppo.batch_size)
    tries = f", {rollout.samples_per_query} of each query," if rollout.samples_per_query > 1 else ""
    yield (
        f"rounds      {ppo.rounds} rounds of {rollout.episodes} episodes{tries} in {rollout.shards} shards; "
        f"{updates} updates a round, {ppo.rounds * updates} in all"
    )
    yield f"learning    {ppo.algorithm} on {ppo.reward} rewards by the annotator {config.rewards.annotator}"


def _describe_evaluation(config: Config) -> str:
    evaluation = config.evaluation
    repeats = 1 + evaluation.sampled_repeats
    if not evaluation.policies:
        return f"evaluation  base, warm start and result on the {evaluation.split} queries, {repeats} times each"
    names = ", ".join(f"{policy.name} ({policy.kind})" for policy in evaluation.policies)
    return f"evaluation  {names} on the {evaluation.split} queries, {repeats} times each"


def _find_endpoints(config: Config) -> Iterator[tuple[EndpointConfig, str]]:
    """The endpoints that the run would call."""
    if config.rewards.annotator == "judge" or config.evaluation.judged:
        yield config.rewards.judge.endpoint, "judge"
    for policy in config.evaluation.policies:
        if policy.kind == "endpoint":
            yield policy.endpoint, policy.name


def _describe_endpoint(endpoint: EndpointConfig, purpose: str) -> Iterator[str]:
    key = "set" if os.environ.get(endpoint.key_variable) else "not set, which suits a server without keys"
    yield f"endpoint    {purpose}: {endpoint.model} at {endpoint.base_url}; {endpoint.key_variable} is {key}"
