"""From any number of policies to a table of how well they solve the same tasks, and what may be concluded.

pyflyte run workflows/evaluate.py evaluate --config configs/evaluate.yaml --output runs/evaluation

`evaluate_champion` compares the model in service, which it looks up in the registry:

pyflyte run workflows/evaluate.py evaluate_champion --config configs/retrain.yaml --registry runs/registry \
    --output runs/retraining --kickoff now
"""

from datetime import datetime
from functools import partial

from flytekit import map_task
from flytekit.types.directory import FlyteDirectory

from steptool.config import Config
from tasks.evaluate import CompareOutputs, compare, evaluate_policy, judge
from tasks.ingest import fingerprint, ingest
from tasks.runtime.artifacts import Tasks
from tasks.runtime.stage import stage, workflow


@stage("evaluate_policies", dynamic=True)
def evaluate_policies(config: Config, tasks: Tasks) -> list[FlyteDirectory]:
    """Evaluate every policy of the configuration, each in a task of its own."""
    play = partial(evaluate_policy, config=config, tasks=tasks)
    folders: list[FlyteDirectory] = map_task(play)(policy=list(range(len(config.evaluation.require_policies()))))
    return folders


@workflow()
def evaluate(config: Config, output: str = "") -> CompareOutputs:
    """Compare the policies of a configuration on its queries (docs/evaluation.md).

    Args:
        config: its section `evaluation` names the policies and the split.
        output: folder or url that receives tables, page and episodes; none if empty.
    """
    sources = fingerprint(config=config, output=output, for_training=False)
    data = ingest(config=config, sources=sources, for_training=False)
    evaluations = evaluate_policies(config=config, tasks=data.tasks)
    judgement = judge(config=config, queries=data.queries, evaluations=evaluations)
    return compare(
        config=config,
        output=output,
        queries=data.queries,
        evaluations=evaluations,
        verdicts=judgement.verdicts,
        preferences=judgement.preferences,
        judge_costs=judgement.costs,
        ingest_metrics=data.metrics,
    )


@stage("evaluate_in_service", dynamic=True)
def evaluate_in_service(config: Config, registry: str, output: str, kickoff: datetime) -> CompareOutputs:
    """Evaluate the model in service, the base model and the policies of the configuration."""
    from steptool.registry import Registry
    from steptool.retraining.plan import add_champion_and_base

    place = f"{output.rstrip('/')}/evaluation-{kickoff:%Y%m%dT%H%M%SZ}"
    return evaluate(config=add_champion_and_base(config, Registry(registry)), output=place)


@workflow()
def evaluate_champion(config: Config, registry: str, output: str, kickoff: datetime) -> CompareOutputs:
    """Compare the model in service with the base model, and with the policies of the configuration.

    Args:
        config: the tasks, and in its section `evaluation` the split and any further policies.
        registry: folder or url of the registry of champions.
        output: folder or url that receives a folder for each evaluation.
        kickoff: when the evaluation was started; its folder is named by it.
    """
    return evaluate_in_service(config=config, registry=registry, output=output, kickoff=kickoff)
