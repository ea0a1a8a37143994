"""Launch plans: what runs by schedule on a cluster, and a plan that starts the same by hand.

The section `launch_plans` of the profile names times, data and the people to notify (configs/cluster.yaml); without it
there is no plan. A registered plan does not run before it is activated.
"""

from flytekit import CronSchedule, Email, LaunchPlan, PagerDuty, Slack
from flytekit.models.concurrency import ConcurrencyPolicy
from flytekit.models.core.execution import WorkflowExecutionPhase

from steptool.config import load_config
from tasks.runtime.profile import ROOT, LaunchPlans, Recipients, profile
from workflows.evaluate import evaluate_champion
from workflows.retrain import retrain

_ONE_AT_A_TIME = ConcurrencyPolicy(max_concurrency=1)
"""A run that comes due while another is at work is skipped."""
_BROKEN = [WorkflowExecutionPhase.FAILED, WorkflowExecutionPhase.TIMED_OUT, WorkflowExecutionPhase.ABORTED]


def _declare(plans: LaunchPlans) -> None:
    places = {"registry": plans.registry, "output": plans.output}
    notifications = _make_notifications(plans.notify)
    retraining = {"config": load_config(ROOT / plans.retraining), **places}
    LaunchPlan.get_or_create(
        workflow=retrain,
        name="nightly_retraining",
        fixed_inputs=retraining,
        schedule=CronSchedule(schedule=plans.nightly, kickoff_time_input_arg="kickoff"),
        notifications=notifications,
        concurrency=_ONE_AT_A_TIME,
    )
    LaunchPlan.get_or_create(
        workflow=evaluate_champion,
        name="weekly_evaluation",
        fixed_inputs={"config": load_config(ROOT / plans.evaluation), **places},
        schedule=CronSchedule(schedule=plans.weekly, kickoff_time_input_arg="kickoff"),
        notifications=notifications,
        concurrency=_ONE_AT_A_TIME,
    )
    LaunchPlan.get_or_create(
        workflow=retrain, name="manual_retraining", default_inputs=retraining, notifications=notifications
    )


def _make_notifications(recipients: Recipients) -> list[Email | Slack | PagerDuty]:
    ways = ((Email, recipients.email), (Slack, recipients.slack), (PagerDuty, recipients.pagerduty))
    return [way(phases=_BROKEN, recipients_email=addresses) for way, addresses in ways if addresses]


if (_plans := profile().launch_plans) is not None:
    _declare(_plans)
