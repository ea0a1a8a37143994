"""From what is new since the last run to a better model in service, or to the reasons why none was promoted.

pyflyte run workflows/retrain.py retrain --config configs/retrain.yaml --registry runs/registry \
    --output runs/retraining --kickoff now
"""

import warnings
from datetime import datetime, timedelta

from flytekit import wait_for_input

from steptool.config import Config
from steptool.retraining.plan import Decision, RetrainingPlan
from tasks.retrain import RetrainOutputs, decide, plan_retraining, promote, record_failure, report_retraining
from tasks.runtime.stage import stage, workflow
from workflows.train import train

# flytekit names the option of a boolean input twice, and click warns its user of it.
warnings.filterwarnings("ignore", "The parameter --force is used more than once")


@stage("ask_approval", dynamic=True)
def ask_approval(decision: Decision, hours: float) -> bool:
    """Wait for a person's answer if the rule lets the challenger pass. Otherwise the answer is no, without asking."""
    if not decision.promote:
        return False
    answer: bool = wait_for_input("approve", timeout=timedelta(hours=hours), expected_type=bool)
    return answer


@stage("challenge", dynamic=True)
def challenge(config: Config, registry: str, output: str, plan: RetrainingPlan) -> RetrainOutputs:
    """Train a challenger if there is new data, and let it take over if the rule and the person agree."""
    if not plan.due:
        return report_retraining(registry=registry, output=output, plan=plan, outcome=plan.skip(), training="")
    training = train(config=plan.configure(config), output=f"{output.rstrip('/')}/{plan.run_id}/training")
    decision = decide(config=config, registry=registry, plan=plan, rows=training.evaluations, queries=training.queries)
    hours = config.promotion.approval_hours
    approved = ask_approval(decision=decision, hours=hours) if config.promotion.approval else True
    outcome = promote(
        config=config,
        registry=registry,
        plan=plan,
        decision=decision,
        approved=approved,
        model=training.model,
        rows=training.evaluations,
        queries=training.queries,
    )
    return report_retraining(
        registry=registry, output=output, plan=plan, outcome=outcome, training="training/report.html"
    )


@workflow(on_failure=record_failure)
def retrain(config: Config, registry: str, output: str, kickoff: datetime, force: bool = False) -> RetrainOutputs:
    """Train on what is new, starting from the model in service, and promote the result if it is better.

    Args:
        config: the training, and in its section `promotion` the rule (docs/retraining.md).
        registry: folder or url of the registry of champions.
        output: folder or url that receives a folder for each run: its page, and what `workflows/train.py` writes.
        kickoff: when the run was started; its name and its folder begin with it.
        force: train even if nothing is new.
    """
    plan = plan_retraining(config=config, registry=registry, kickoff=kickoff, force=force)
    return challenge(config=config, registry=registry, output=output, plan=plan)
