"""What the compiler and Admin let pass and refuse, on types and on workflows that flytekit serialised."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from flyteidl.core.interface_pb2 import TypedInterface, Variable, VariableMap
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from flytekit.core.type_engine import TypeEngine
from flytekit.types.file import FlyteFile

from pods import catalog
from pods.admission import check_plan, find_refusals, quantity
from pods.literals import literal, literals
from pods.package import Registry
from pods.types import castable, type_of
from steptool.config import Config

TOYS = Path(__file__).parent / "toys"


def of(kind: type) -> object:
    return TypeEngine.to_literal_type(kind).to_flyte_idl()


@pytest.mark.parametrize(
    ("source", "target", "fits"),
    [
        (int, int, True),
        (int, float, False),  # what local runs let pass
        (float, int, False),
        (str, int, False),
        (list[int], list[int], True),
        (list[int], list[float], False),
        (list[int], int, False),
        (dict[str, int], dict[str, int], True),
        (dict[str, int], dict[str, str], False),
        (int, int | None, True),
        (int | None, int, False),
        (int | str, int | str | None, True),
        (int | None, int | str, False),
        (FlyteFile, FlyteFile["parquet"], True),  # type: ignore[type-arg, name-defined]
        (FlyteFile["csv"], FlyteFile["parquet"], False),  # type: ignore[type-arg, name-defined]
        (Config, Config, True),
    ],
)
def test_which_type_goes_where(source: type, target: type, fits: bool) -> None:
    assert castable(of(source), of(target)) is fits


def test_a_value_tells_its_type() -> None:
    assert type_of(literal([1, 2])) == of(list[int])
    assert type_of(literal({"a": datetime(2026, 1, 1)})) == of(dict[str, datetime])
    assert castable(type_of(literal([])), of(list[str]))  # an empty list fits any list
    assert castable(type_of(literal(Config())), of(Config))
    assert not castable(type_of(literal([1, "a"])), of(list[int]))


def test_quantities_of_kubernetes() -> None:
    assert [quantity(text) for text in ("500m", "2", "1.5Gi", "3k")] == [0.5, 2, 1.5 * 2**30, 3000]
    assert [quantity(text) for text in ("lots", "2 Gi", "2gb", "", "-1")] == [None] * 5


def test_good_workflows_pass(toys: Registry) -> None:
    assert find_refusals(toys) == []
    assert len(toys.plans) > 10


def test_what_flytekit_lets_pass_is_refused(registered: Callable[..., Registry]) -> None:
    assert sorted(find_refusals(registered(TOYS, "wrong"))) == [
        "launch plan no_time: the kickoff time goes to n, which is no datetime",
        "launch plan nowhere: the kickoff time goes to kickoff, which is no open input",
        "launch plan six_fields: expected a cron expression of 5 fields, got '0 15 2 * * *'",
        "launch plan uncovered: it has a schedule, but its input n is required and not given",
        "task wrong.plans.greedy: CPU: the request 2 is greater than the limit",
        "task wrong.plans.greedy: MEMORY: expected a quantity as in 500m or 2Gi, got 'lots'",
        "wrong.plans.widened: n1: the input x: expected simple: FLOAT, got simple: INTEGER",
    ]


def test_a_launch_plan_with_foreign_inputs_is_refused(toys: Registry) -> None:
    key, plan = toys.plan("nightly")
    wrong = type(plan)()
    wrong.CopyFrom(plan)
    wrong.fixed_inputs.CopyFrom(literals({"word": 3, "volume": 11}))
    assert list(check_plan(key, wrong, toys)) == [
        "launch plan nightly: the workflow has no input volume",
        "launch plan nightly: the input word is of the wrong type: simple: INTEGER",
    ]


def cached(version: str = "1", **inputs: type) -> TaskTemplate:
    task = TaskTemplate()
    task.id.project, task.id.domain, task.id.name, task.id.version = "p", "d", "tasks.one", "v1"
    task.metadata.discoverable, task.metadata.discovery_version = True, version
    variables = {name: Variable(type=of(kind)) for name, kind in inputs.items()}
    task.interface.CopyFrom(TypedInterface(inputs=VariableMap(variables=variables)))
    return task


def test_outputs_are_found_by_task_interface_cache_version_and_inputs() -> None:
    inputs = literals({"n": 1, "config": Config()})
    task = cached(n=int, config=Config)
    key = catalog.key(task, inputs)
    task.id.version = "v2"  # another registration of the same
    assert catalog.key(task, literals({"config": Config(), "n": 1})) == key
    others = [
        catalog.key(cached(version="2", n=int, config=Config), inputs),
        catalog.key(cached(n=int), inputs),
        catalog.key(task, literals({"n": 2, "config": Config()})),
        catalog.key(task, literals({"n": 1, "config": Config(seed=9)})),
    ]
    assert len({key, *others}) == 5
    task.metadata.discoverable = False
    assert catalog.key(task, inputs) is None


def test_a_literal_with_a_hash_counts_by_its_hash() -> None:
    def with_hash(url: str, digest: str) -> LiteralMap:
        inputs = literals({"files": [FlyteFile(url)]})
        inputs.literals["files"].collection.literals[0].hash = digest
        return inputs

    task = cached(files=list[FlyteFile])  # type: ignore[type-arg]
    key = catalog.key(task, with_hash("s3://flyte/a", "abc"))
    assert catalog.key(task, with_hash("s3://flyte/b", "abc")) == key
    assert catalog.key(task, with_hash("s3://flyte/a", "abd")) != key
    assert catalog.key(task, with_hash("s3://flyte/a", "")) != catalog.key(task, with_hash("s3://flyte/b", ""))


def test_ignored_inputs_do_not_count() -> None:
    task = cached(n=int, note=str)
    task.metadata.cache_ignore_input_vars.append("note")
    key = catalog.key(task, literals({"n": 1, "note": "a"}))
    assert catalog.key(task, literals({"n": 1, "note": "b"})) == key
    assert catalog.key(task, literals({"n": 2, "note": "a"})) != key
