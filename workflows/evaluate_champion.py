"""From the registry to a table of how well the model in service solves the held-out tasks, next to others.

pyflyte run workflows/evaluate_champion.py evaluate_champion --config configs/retrain.yaml --registry runs/registry \
    --output runs/retraining --kickoff now
"""

from datetime import datetime

from steptool.config import Config
from tasks.evaluate import Comparison
from tasks.runtime.stage import stage, workflow
from workflows.evaluate import evaluate


@stage("line_up", dynamic=True)
def line_up(config: Config, registry: str, output: str, kickoff: datetime) -> Comparison:
    """Look up the model in service, and evaluate it."""
    from steptool.registry import Registry
    from steptool.retraining.plan import add_champion_and_base

    place = f"{output.rstrip('/')}/evaluation-{kickoff:%Y%m%dT%H%M%SZ}"
    return evaluate(config=add_champion_and_base(config, Registry(registry)), output=place)


@workflow()
def evaluate_champion(config: Config, registry: str, output: str, kickoff: datetime) -> Comparison:
    """Compare the model in service with the base model, and with the policies of the configuration.

    Args:
        config: the tasks, and in its section `evaluation` the split and any further policies.
        registry: folder or url of the registry of champions.
        output: folder or url that receives a folder for each evaluation.
        kickoff: when the evaluation was started; its folder is named by it.
    """
    return line_up(config=config, registry=registry, output=output, kickoff=kickoff)
