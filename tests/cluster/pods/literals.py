"""Values between nodes: bindings resolved, conditions decided, Python values as literals."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
from flyteidl.core.condition_pb2 import BooleanExpression, ComparisonExpression, ConjunctionExpression, Operand
from flyteidl.core.literals_pb2 import Binding, BindingData, Literal, LiteralCollection, LiteralMap, Primitive
from flyteidl.core.types_pb2 import PromiseAttribute
from flytekit.core.context_manager import FlyteContextManager
from flytekit.core.type_engine import TypeEngine

START = "start-node"  # stands for the inputs of the workflow
Known = Mapping[str, LiteralMap]
"""Outputs by node."""

COMPARISONS: dict[int, Callable[[Any, Any], bool]] = {
    ComparisonExpression.EQ: operator.eq,
    ComparisonExpression.NEQ: operator.ne,
    ComparisonExpression.GT: operator.gt,
    ComparisonExpression.GTE: operator.ge,
    ComparisonExpression.LT: operator.lt,
    ComparisonExpression.LTE: operator.le,
}


def literal(value: Any) -> Literal:
    """A Python value as flytekit writes it; a file or folder has to lie in the store already."""
    if isinstance(value, list):
        return Literal(collection=LiteralCollection(literals=[literal(part) for part in value]))
    if isinstance(value, dict):
        return Literal(map=literals(value))
    kind = type(value)
    context = FlyteContextManager.current_context()
    result: Literal = TypeEngine.to_literal(context, value, kind, TypeEngine.to_literal_type(kind)).to_flyte_idl()
    return result


def literals(values: Mapping[str, Any]) -> LiteralMap:
    """Python values as inputs."""
    return LiteralMap(literals={name: literal(value) for name, value in values.items()})


def bound(bindings: list[Binding], known: Known) -> LiteralMap:
    """What a node's inputs, or a workflow's outputs, are bound to."""
    return LiteralMap(literals={b.var: resolve(b.binding, known) for b in bindings})


def resolve(data: BindingData, known: Known) -> Literal:
    """The value of a binding."""
    match data.WhichOneof("value"):
        case "scalar":
            return Literal(scalar=data.scalar)
        case "collection":
            parts = [resolve(part, known) for part in data.collection.bindings]
            return Literal(collection=LiteralCollection(literals=parts))
        case "map":
            return Literal(map=LiteralMap(literals={k: resolve(v, known) for k, v in data.map.bindings.items()}))
        case "promise":
            literal = known[data.promise.node_id or START].literals[data.promise.var]
            for attribute in data.promise.attr_path:
                literal = _attribute(literal, attribute)
            return literal
        case other:
            raise ValueError(f"expected a scalar, collection, map or promise, got {other}")


def _attribute(value: Literal, attribute: PromiseAttribute) -> Literal:
    """An element of a list or map, or a field of a structure."""
    match value.WhichOneof("value"):
        case "collection":
            return value.collection.literals[attribute.int_value]
        case "map":
            return value.map.literals[attribute.string_value]
    fields = msgpack.loads(value.scalar.binary.value, strict_map_key=False)
    return literal(fields[attribute.string_value])


def holds(expression: BooleanExpression, inputs: LiteralMap) -> bool:
    """Whether a branch's condition holds."""
    if expression.WhichOneof("expr") == "conjunction":
        sides = (holds(side, inputs) for side in _sides(expression.conjunction))
        return all(sides) if expression.conjunction.operator == ConjunctionExpression.AND else any(sides)
    left, right = expression.comparison.left_value, expression.comparison.right_value
    return COMPARISONS[expression.comparison.operator](_operand(left, inputs), _operand(right, inputs))


def _sides(conjunction: ConjunctionExpression) -> tuple[BooleanExpression, BooleanExpression]:
    return conjunction.left_expression, conjunction.right_expression


def _operand(operand: Operand, inputs: LiteralMap) -> Any:
    if operand.WhichOneof("val") == "primitive":
        return primitive(operand.primitive)
    return primitive(inputs.literals[operand.var].scalar.primitive)


def primitive(value: Primitive) -> Any:
    """The number, text, truth value, time or duration of a primitive."""
    return getattr(value, value.WhichOneof("value") or "integer")


def uri(value: Literal) -> str:
    """Where a file or folder lies."""
    return str(value.scalar.blob.uri)
