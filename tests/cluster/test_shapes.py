"""Each shape of a workflow, run in pods."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from pods.engine import Engine, Execution
from pods.literals import primitive
from pods.package import Registry

pytestmark = pytest.mark.cluster
TOYS = Path(__file__).parent / "toys"
Make = Callable[..., Engine]


def value(execution: Execution) -> object:
    assert execution.error is None, execution.story()
    return primitive(execution.outputs.literals["o0"].scalar.primitive)


def test_a_pod_has_its_code_and_the_variables_of_a_pod_and_nothing_else(toys: Registry, engine: Make) -> None:
    execution = engine(toys).execute("flows.faults.looked", {})
    assert execution.error is None, execution.story()
    texts = [part.scalar.primitive.string_value for part in execution.outputs.literals["o0"].collection.literals]
    place, files, variables, installed = texts
    assert place.endswith("work/flows/__init__.py")
    unpacked = {path.name for path in TOYS.iterdir()}
    assert {name for name in files.split(",") if not name.endswith(".tar.gz")} == unpacked
    assert {"FLYTE_INTERNAL_EXECUTION_ID", "FLYTE_ATTEMPT_NUMBER", "AWS_ENDPOINT_URL"} <= set(variables.split(","))
    assert "PYTEST_CURRENT_TEST" not in variables
    assert installed == "False"  # the project is in the tarball or nowhere


def test_a_map_task_in_a_dynamic_task_in_a_sub_workflow_in_a_dynamic_task(toys: Registry, engine: Make) -> None:
    execution = engine(toys).execute("flows.shapes.nested", {"n": 3})
    assert value(execution) == 2 * (0 + 1 + 2)
    assert len(execution.ran("flows.shapes.scaled")) == 3


def test_what_a_dynamic_task_hands_over_is_compiled_too(toys: Registry, engine: Make) -> None:
    execution = engine(toys).execute("flows.shapes.widened", {"n": 3})
    assert execution.error is not None
    assert execution.error.code == "DynamicWorkflowBuildFailed"
    assert "expected simple: FLOAT, got simple: INTEGER" in execution.error.message
    assert [pod.task for pod in execution.pods] == ["flows.shapes.widening"]


def test_branches(toys: Registry, engine: Make) -> None:
    assert value(engine(toys).execute("flows.shapes.chosen", {"n": 11})) == 22
    small = engine(toys).execute("flows.shapes.chosen", {"n": 1})
    assert small.error is not None
    assert small.error.message == "small"
    assert small.pods == []


def test_gates(toys: Registry, engine: Make) -> None:
    agreed = engine(toys, answers={"factor": 4, "allowed": True}).execute("flows.shapes.asked", {"n": 2})
    assert value(agreed) == 8
    rejected = engine(toys, answers={"factor": 4, "allowed": False}).execute("flows.shapes.asked", {"n": 2})
    assert rejected.error is not None
    assert rejected.error.code == "ReceivedRejectSignal"
    silent = engine(toys).execute("flows.shapes.asked", {"n": 2})
    assert silent.error is not None
    assert silent.error.code == "TimedOut"


def test_launch_plans_have_defaults_and_fixed_inputs(toys: Registry, engine: Make) -> None:
    execution = engine(toys).execute("nightly", {"kickoff": datetime(2026, 3, 4)})
    assert value(execution) == "hello 7 2026-03-04"


def test_several_processes_of_one_pod(registered: Callable[..., Registry], engine: Make) -> None:
    registry = registered(TOYS, "several")
    execution = engine(registry).execute("several.ranks.together", {"n": 5})
    assert value(execution) == (5 + 0) + (5 + 1)
    assert len(execution.pods) == 1
