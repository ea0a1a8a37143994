"""Map tasks: what one element gets, and what all of them give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from flyteidl.core.literals_pb2 import Literal, LiteralCollection, LiteralMap, Scalar, Void
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.core.workflow_pb2 import ArrayNode

MISSING = Literal(scalar=Scalar(none_type=Void()))


def elements(array: ArrayNode, inputs: LiteralMap) -> list[LiteralMap]:
    """The inputs of each element: its own part of every list, but for lists that all of them get whole."""
    lists = {k for k, v in inputs.literals.items() if v.HasField("collection")} - set(array.bound_inputs)
    size = max((len(inputs.literals[name].collection.literals) for name in lists), default=0)

    def part(name: str, value: Literal, index: int) -> Literal:
        return value.collection.literals[index] if name in lists else value

    return [LiteralMap(literals={k: part(k, v, n) for k, v in inputs.literals.items()}) for n in range(size)]


def single(task: TaskTemplate) -> TaskTemplate:
    """A map task with the outputs of one element, which is how they are cached."""
    template = TaskTemplate()
    template.CopyFrom(task)
    for name, variable in task.interface.outputs.variables.items():
        template.interface.outputs.variables[name].type.CopyFrom(variable.type.collection_type)
    return template


def count_needed(array: ArrayNode, size: int) -> int:
    """How many elements have to end well."""
    match array.WhichOneof("success_criteria"):
        case "min_successes":
            return array.min_successes
        case "min_success_ratio":
            return math.ceil(array.min_success_ratio * size)
    return size


def gather_outputs(names: Iterable[str], outputs: Sequence[LiteralMap | None]) -> LiteralMap:
    """The outputs of all elements as lists, with None for those that failed."""
    columns = {name: [MISSING if each is None else each.literals[name] for each in outputs] for name in names}
    return LiteralMap(
        literals={name: Literal(collection=LiteralCollection(literals=column)) for name, column in columns.items()}
    )
