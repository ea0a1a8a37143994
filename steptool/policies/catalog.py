"""Opens the policies that a configuration names, and the environment that queries name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from steptool.chat.call_format import Format
from steptool.chat.endpoint import Endpoint
from steptool.chat.formats import FORMATS
from steptool.config import Config, EvaluatedPolicy
from steptool.environments.base import Environment, open_environment
from steptool.policies.text_policies import (
    INSTRUCTIONS,
    EndpointPolicy,
    ScriptedPolicy,
    has_reference_calls,
    list_recorded_calls,
    list_reference_calls,
)
from steptool.records import Query, ToolCall, Trajectory
from steptool.rollout.episode import Decoding
from steptool.rollout.runner import Policy

if TYPE_CHECKING:  # its imports take seconds
    from steptool.models.load import LoadModel
    from steptool.policies.vllm import RestingEngine


@contextmanager
def open_policy(
    policy: EvaluatedPolicy,
    config: Config,
    recordings: Iterable[Trajectory] = (),
    load: LoadModel | None = None,
    resting: RestingEngine | None = None,
) -> Iterator[Policy]:
    """Open a policy with the settings of the configuration, and close it in the end.

    `policy.model` is "embedded", a folder or a Hub id; fetch a url before. For the model of a training stage give
    `EvaluatedPolicy(name=..., model=folder)`. An endpoint plays greedy turns at its own temperature, and sampled turns
    at the temperature of the rollouts. A playback plays the reference solution of a query, or else the first of the
    `recordings`; a playback that names recordings plays only these. Its `begin` raises ValueError for a query with
    nothing to play. `load` loads the model of a folder for our own sampler; None: from its files. `resting` is the vLLM
    that plays if the engine is vllm; None: a new one is started and ended.
    """
    with closing(_make_policy(policy, config, recordings, load, resting)) as opened_policy:
        yield opened_policy


@contextmanager
def open_environment_of(
    queries: Sequence[Query], config: Config, recordings: Iterable[Trajectory] = ()
) -> Iterator[Environment]:
    """Open the environment that the queries name, and close it in the end.

    A replaying environment takes its answers from the `recordings`. Raises ValueError unless the queries name one
    environment.
    """
    names = sorted({q.environment for q in queries})
    if len(names) != 1:
        raise ValueError(f"expected queries of one environment, got {names}; run one pipeline for each")
    with closing(open_environment(names[0], config, recordings)) as environment:
        yield environment


def _make_policy(
    policy: EvaluatedPolicy,
    config: Config,
    recordings: Iterable[Trajectory],
    load: LoadModel | None,
    resting: RestingEngine | None,
) -> Policy:
    if policy.kind == "model":
        return _make_local(policy, config, load, resting)
    if policy.kind == "endpoint":
        return _make_endpoint(policy, config)
    first = {t.query_id: t for t in reversed(list(recordings))}
    only_recorded = bool(policy.recordings)
    return ScriptedPolicy(lambda query, _: _list_calls(query, first, only_recorded), policy.name, config.rollout.finish)


def _make_endpoint(policy: EvaluatedPolicy, config: Config) -> Policy:
    greedy, rollout = policy.endpoint, config.rollout
    form: Format | None = None
    instructions = INSTRUCTIONS[rollout.finish] if policy.instructions is None else policy.instructions
    if policy.model:
        from steptool.models.serving import has_serving, read_serving

        serving = read_serving(policy.model)
        instructions = serving.system
        form = next((form for form in FORMATS.values() if form.name == serving.chat_format), None)
        greedy = greedy.model_copy(update={"max_tokens": serving.max_tokens})
        rollout = rollout.model_copy(update={"finish": serving.finish}) if has_serving(policy.model) else rollout
    sampled_config = greedy.model_copy(update={"temperature": config.rollout.temperature})
    endpoints = {
        Decoding.GREEDY: Endpoint(greedy, policy.cache),
        Decoding.SAMPLED: Endpoint(sampled_config, policy.cache),
    }
    return EndpointPolicy(endpoints, name=policy.name, rollout=rollout, instructions=instructions, form=form)


def _make_local(
    policy: EvaluatedPolicy, config: Config, load: LoadModel | None, resting: RestingEngine | None
) -> Policy:
    from steptool.models.adapter import load_joined, locate
    from steptool.models.load import EMBEDDED, load_codec, load_model
    from steptool.policies.token_policies import EnginePolicy, LocalPolicy, PolicySettings
    from steptool.policies.vllm import VllmEngine

    place = locate(EMBEDDED if policy.model == "embedded" else policy.model, policy.base)
    codec = load_codec(place.base, config.policy.chat_format, config.policy.chat_date)
    settings: PolicySettings = {
        "name": policy.name,
        "rollout": config.rollout,
        "max_context": config.policy.max_context,
        "seed": config.seed,
        "search": config.evaluation.search if policy.strategy == "dfsdt" else None,
    }
    if config.rollout.engine == "vllm":
        options: dict[str, Any] = {
            "adapter": place.adapter,
            "max_context": config.policy.max_context,
            "max_requests": config.rollout.batch_size,
        }
        if resting:
            engine = resting.open(place.base, lora_rank=config.policy.lora_rank, **options)
        else:
            engine = VllmEngine(place.base, **options)
        return EnginePolicy(engine, codec, **settings)
    return LocalPolicy(load_joined(place, load or load_model), codec, **settings)


def _list_calls(query: Query, recorded: Mapping[str, Trajectory], only_recorded: bool) -> list[ToolCall]:
    if not only_recorded and has_reference_calls(query):
        return list_reference_calls(query)
    if query.query_id in recorded:
        return list_recorded_calls(recorded[query.query_id])
    raise ValueError(
        f"query '{query.query_id}' has neither reference calls nor a recorded answer to play back: leave the kind "
        "playback out, or evaluate on queries that were recorded"
    )
