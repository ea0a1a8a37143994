"""Everything that stops a registration, once each."""

from datetime import datetime

from flytekit import CronSchedule, LaunchPlan, Resources, task, workflow


@task
def whole() -> int:
    return 1


@task
def halved(x: float) -> float:
    return x / 2


@workflow
def widened() -> float:
    """An int where a float is wanted."""
    return halved(x=whole())


@task(requests=Resources(cpu="2", mem="lots"), limits=Resources(cpu="1", gpu="1"))
def greedy() -> int:
    return 1


@workflow
def alone(n: int, when: datetime, rate: float = 0.5) -> float:
    greedy()
    return halved(x=rate)


NIGHTLY, WHEN = "15 2 * * *", datetime(2026, 1, 1)
six_fields = LaunchPlan.get_or_create(
    alone, name="six_fields", default_inputs={"n": 1, "when": WHEN}, schedule=CronSchedule(schedule="0 15 2 * * *")
)
nowhere = LaunchPlan.get_or_create(
    alone,
    name="nowhere",
    default_inputs={"n": 1, "when": WHEN},
    schedule=CronSchedule(schedule=NIGHTLY, kickoff_time_input_arg="kickoff"),
)
no_time = LaunchPlan.get_or_create(
    alone,
    name="no_time",
    default_inputs={"n": 1, "when": WHEN},
    schedule=CronSchedule(schedule=NIGHTLY, kickoff_time_input_arg="n"),
)
uncovered = LaunchPlan.get_or_create(
    alone, name="uncovered", schedule=CronSchedule(schedule=NIGHTLY, kickoff_time_input_arg="when")
)
