"""What Flyte's Admin refuses at registration (flyteadmin, pkg/manager/impl/validation)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from croniter import croniter
from flyteidl.admin.launch_plan_pb2 import LaunchPlanSpec
from flyteidl.admin.schedule_pb2 import Schedule
from flyteidl.core.execution_pb2 import WorkflowExecution
from flyteidl.core.interface_pb2 import Parameter, ParameterMap, VariableMap
from flyteidl.core.tasks_pb2 import Resources, TaskTemplate
from flyteidl.core.types_pb2 import DATETIME

from pods.compiler import faults
from pods.package import Key, Registry
from pods.types import castable, type_of

UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
NICKNAMES = {"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}
TERMINAL = {
    WorkflowExecution.SUCCEEDED,
    WorkflowExecution.FAILED,
    WorkflowExecution.TIMED_OUT,
    WorkflowExecution.ABORTED,
}


def find_refusals(registry: Registry) -> list[str]:
    """One sentence for each thing that cannot be registered."""
    tasks = [fault for task in registry.tasks.values() for fault in check_task(task)]
    workflows = [fault for workflow in registry.workflows.values() for fault in faults(workflow, registry)]
    plans = [fault for key, plan in registry.plans.items() for fault in check_plan(key, plan, registry)]
    return tasks + workflows + plans


def check_task(task: TaskTemplate) -> Iterator[str]:
    """What is wrong with a task."""
    name = task.id.name
    if not all((task.id.project, task.id.domain, name, task.id.version)):
        yield f"task {name}: its identifier lacks a project, domain, name or version"
    if not task.type or not task.metadata.runtime.version:
        yield f"task {name}: it names no type or no version of its runtime"
    if task.WhichOneof("target") != "container":
        return
    if not task.container.image or "{{" in task.container.image:
        yield f"task {name}: expected the name of an image, got {task.container.image!r}"
    yield from (f"task {name}: {fault}" for fault in _resources(task.container.resources))


def _resources(resources: Resources) -> Iterator[str]:
    requests, limits = list(resources.requests), list(resources.limits)
    for entries in (requests, limits):
        names = [entry.name for entry in entries]
        for name in sorted({n for n in names if names.count(n) > 1}):
            yield f"{_name(name)} is given more than once"
    for entry in (*requests, *limits):
        if quantity(entry.value) is None:
            yield f"{_name(entry.name)}: expected a quantity as in 500m or 2Gi, got {entry.value!r}"
    ceilings = {entry.name: quantity(entry.value) for entry in limits}
    for entry in requests:
        request, most = quantity(entry.value), ceilings.get(entry.name)
        if request is None or most is None:
            continue
        if entry.name == Resources.GPU and (request != most or request % 1):
            yield f"{_name(entry.name)}: request and limit have to be the same whole number, got {request} and {most}"
        elif math.ceil(request) > math.ceil(most):
            yield f"{_name(entry.name)}: the request {entry.value} is greater than the limit"


def _name(resource: int) -> str:
    return str(Resources.ResourceName.Name(resource))


def quantity(text: str) -> float | None:
    """A quantity of Kubernetes as a number; None for any other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)([a-zA-Z]*)", text)
    return float(match[1]) * UNITS[match[2]] if match and match[2] in UNITS else None


def check_plan(key: Key, plan: LaunchPlanSpec, registry: Registry) -> Iterator[str]:
    """What is wrong with a launch plan."""
    workflow = registry.workflows.get(Key.of(plan.workflow_id))
    if workflow is None:
        yield f"launch plan {key.name}: the workflow {plan.workflow_id.name} is not registered"
        return
    inputs = workflow.interface.inputs
    plan_faults = [*_inputs(plan, inputs), *_schedule(plan.entity_metadata.schedule, list_open_inputs(plan, inputs))]
    for notification in plan.entity_metadata.notifications:
        kind = notification.WhichOneof("type")
        receivers = list(getattr(notification, kind).recipients_email) if kind else []
        if not receivers or not all(receivers):
            plan_faults.append("a notification has no recipients")
        if not set(notification.phases) <= TERMINAL:
            plan_faults.append("a notification waits for a phase that is no end")
    yield from (f"launch plan {key.name}: {fault}" for fault in plan_faults)


def list_open_inputs(plan: LaunchPlanSpec, inputs: VariableMap) -> ParameterMap:
    """The inputs that a launch plan leaves open: its defaults, and as required what it does not mention."""
    open_inputs = {}
    for name, variable in inputs.variables.items():
        if name in plan.default_inputs.parameters:
            open_inputs[name] = plan.default_inputs.parameters[name]
        elif name not in plan.fixed_inputs.literals:
            open_inputs[name] = Parameter(var=variable, required=True)
    return ParameterMap(parameters=open_inputs)


def _inputs(plan: LaunchPlanSpec, inputs: VariableMap) -> Iterator[str]:
    types = {name: parameter.var.type for name, parameter in plan.default_inputs.parameters.items()}
    types |= {name: type_of(value) for name, value in plan.fixed_inputs.literals.items()}
    for name, kind in sorted(types.items()):
        if name not in inputs.variables:
            yield f"the workflow has no input {name}"
        elif not castable(kind, inputs.variables[name].type):
            yield f"the input {name} is of the wrong type: {' '.join(str(kind).split())}"


def _schedule(schedule: Schedule, inputs: ParameterMap) -> Iterator[str]:
    if schedule.WhichOneof("ScheduleExpression") is None:
        return
    open_inputs: Mapping[str, Parameter] = inputs.parameters
    kickoff = schedule.kickoff_time_input_arg
    for name in sorted(name for name, p in open_inputs.items() if p.required and name != kickoff):
        yield f"it has a schedule, but its input {name} is required and not given"
    if kickoff and kickoff not in open_inputs:
        yield f"the kickoff time goes to {kickoff}, which is no open input"
    elif kickoff and open_inputs[kickoff].var.type.simple != DATETIME:
        yield f"the kickoff time goes to {kickoff}, which is no datetime"
    cron = schedule.cron_expression or schedule.cron_schedule.schedule
    if cron and cron not in NICKNAMES and not (len(cron.split()) == 5 and croniter.is_valid(cron)):
        yield f"expected a cron expression of 5 fields, got {cron!r}"
