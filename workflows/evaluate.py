"""From any number of policies to a table of how well they solve the same tasks, and what may be concluded.

pyflyte run workflows/evaluate.py evaluate --config configs/evaluate.yaml --output runs/evaluation
"""

from functools import partial

from flytekit import map_task
from flytekit.types.directory import FlyteDirectory

from steptool.config import Config
from tasks.evaluate import Comparison, compare, evaluate_policy, judge
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
def evaluate(config: Config, output: str = "") -> Comparison:
    """Compare the policies of a configuration on its queries (docs/evaluation.md).

    Args:
        config: its section `evaluation` names the policies and the split.
        output: folder or url that receives tables, page and episodes; none if empty.
    """
    sources = fingerprint(config=config, output=output, for_training=False)
    ingested = ingest(config=config, sources=sources, for_training=False)
    evaluations = evaluate_policies(config=config, tasks=ingested.tasks)
    judgement = judge(config=config, queries=ingested.queries, evaluations=evaluations)
    return compare(
        config=config,
        output=output,
        queries=ingested.queries,
        evaluations=evaluations,
        verdicts=judgement.verdicts,
        preferences=judgement.preferences,
        judge_costs=judgement.costs,
        ingest_metrics=ingested.metrics,
    )
