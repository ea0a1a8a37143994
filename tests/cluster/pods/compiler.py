"""What flytepropeller's compiler refuses in a workflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flyteidl.core.condition_pb2 import BooleanExpression, Operand
from flyteidl.core.interface_pb2 import TypedInterface, Variable, VariableMap
from flyteidl.core.literals_pb2 import Binding, BindingData
from flyteidl.core.types_pb2 import LiteralType
from flyteidl.core.workflow_pb2 import GateNode, IfElseBlock, Node, WorkflowTemplate

from pods.literals import START
from pods.package import Key, Registry
from pods.types import castable, optional, type_of_primitive, type_of_scalar

Types = Mapping[str, LiteralType]


def faults(workflow: WorkflowTemplate, registry: Registry) -> list[str]:
    """One sentence for each thing that is wrong; none if the workflow can run."""
    return [f"{workflow.id.name}: {fault}" for fault in _Check(workflow, registry).faults()]


def children(block: IfElseBlock) -> list[Node]:
    """The nodes that a branch chooses from."""
    otherwise = [block.else_node] if block.HasField("else_node") else []
    return [block.case.then_node, *(case.then_node for case in block.other), *otherwise]


def upstream(node: Node) -> set[str]:
    """The nodes that have to end before this one starts."""
    upstream_ids = set(node.upstream_node_ids) | {p for b in node.inputs for p in find_promises(b.binding)}
    if node.WhichOneof("target") == "branch_node":
        inner = children(node.branch_node.if_else)
        upstream_ids |= {before for child in inner for before in upstream(child)} - {child.id for child in inner}
    return upstream_ids - {START, ""}


def find_promises(data: BindingData) -> Iterator[str]:
    """The nodes whose outputs a binding needs."""
    match data.WhichOneof("value"):
        case "promise":
            yield data.promise.node_id
        case "collection":
            for part in data.collection.bindings:
                yield from find_promises(part)
        case "map":
            for part in data.map.bindings.values():
                yield from find_promises(part)


class Refused(Exception):
    """A fault that ends the check of one part."""


class _Check:
    """The check of one workflow."""

    def __init__(self, workflow: WorkflowTemplate, registry: Registry) -> None:
        self.workflow, self.registry = workflow, registry
        self.outputs: dict[str, Types] = {START: _types(workflow.interface.inputs)}

    def faults(self) -> Iterator[str]:
        """All that is wrong."""
        if not self.workflow.nodes:
            yield "it has no nodes"
        failure = [self.workflow.failure_node] if self.workflow.HasField("failure_node") else []
        nodes = {node.id: node for node in (*self.workflow.nodes, *failure)}
        interfaces: dict[str, TypedInterface] = {}
        for node in nodes.values():
            try:
                interfaces[node.id] = self.interface(node)
                self.outputs[node.id] = _types(interfaces[node.id].outputs)
            except Refused as fault:
                yield f"{node.id}: {fault}"
        for name, interface in interfaces.items():
            yield from self.node(nodes[name], interface)
        yield from self.bindings("outputs", list(self.workflow.outputs), _types(self.workflow.interface.outputs))
        if circle := _circle(nodes):
            yield f"the nodes {', '.join(circle)} wait for each other"

    def interface(self, node: Node) -> TypedInterface:
        """Inputs and outputs of what a node runs."""
        match node.WhichOneof("target"):
            case "task_node":
                return self._find(self.registry.tasks, Key.of(node.task_node.reference_id))
            case "workflow_node":
                return self._of_workflow(node)
            case "array_node":
                return self.interface(node.array_node.node)
            case "branch_node":
                return self._of_branch(node)
            case "gate_node":
                return self._of_gate(node, node.gate_node)
        raise Refused("it runs nothing")

    def _find(self, entities: Mapping[Key, object], key: Key) -> TypedInterface:
        if key not in entities:
            raise Refused(f"{key.name} in version {key.version or '(none)'} is not registered")
        interface: TypedInterface = entities[key].interface  # type: ignore[attr-defined]
        return interface

    def _of_workflow(self, node: Node) -> TypedInterface:
        if node.workflow_node.WhichOneof("reference") == "sub_workflow_ref":
            return self._find(self.registry.workflows, Key.of(node.workflow_node.sub_workflow_ref))
        key = Key.of(node.workflow_node.launchplan_ref)
        if key not in self.registry.plans:
            raise Refused(f"the launch plan {key.name} in version {key.version or '(none)'} is not registered")
        plan = self.registry.plans[key]
        whole = self._find(self.registry.workflows, Key.of(plan.workflow_id))
        bound_names = {b.var for b in node.inputs}
        settled = set(plan.fixed_inputs.literals) | {
            name for name, p in plan.default_inputs.parameters.items() if p.WhichOneof("behavior") == "default"
        }
        free = {name: v for name, v in whole.inputs.variables.items() if name in bound_names or name not in settled}
        return TypedInterface(inputs=VariableMap(variables=free), outputs=whole.outputs)

    def _of_branch(self, node: Node) -> TypedInterface:
        """The outputs that all cases have, which have to be of the same type."""
        block = node.branch_node.if_else
        if block.WhichOneof("default") is None:
            raise Refused("the branch has no else")
        cases = [self.interface(child).outputs.variables for child in children(block)]
        common = set.intersection(*(set(case) for case in cases))
        for name in sorted(common):
            if any(case[name].type != cases[0][name].type for case in cases):
                raise Refused(f"the cases of the branch give outputs {name} of different types")
        shared = VariableMap(variables={name: cases[0][name] for name in common})
        return TypedInterface(inputs=self._of_bindings(node), outputs=shared)

    def _of_gate(self, node: Node, gate: GateNode) -> TypedInterface:
        match gate.WhichOneof("condition"):
            case "approve":
                passed = self._of_bindings(node)
                return TypedInterface(inputs=passed, outputs=passed)
            case "signal":
                answer = {gate.signal.output_variable_name: Variable(type=gate.signal.type)}
                return TypedInterface(outputs=VariableMap(variables=answer))
        return TypedInterface()

    def _of_bindings(self, node: Node) -> VariableMap:
        """Inputs that nobody declared: whatever is bound."""
        return VariableMap(variables={b.var: Variable(type=self._type(b.binding)) for b in node.inputs})

    def node(self, node: Node, interface: TypedInterface) -> Iterator[str]:
        """What is wrong with a node's inputs and conditions, and those of the nodes it chooses from."""
        yield from self.bindings(node.id, list(node.inputs), _types(interface.inputs))
        if node.WhichOneof("target") != "branch_node":
            return
        block, inputs = node.branch_node.if_else, _types(interface.inputs)
        for case in (block.case, *block.other):
            yield from self._condition(node.id, case.condition, inputs)
        for child in children(block):
            yield from self.node(child, self.interface(child))

    def _condition(self, place: str, expression: BooleanExpression, inputs: Types) -> Iterator[str]:
        if expression.WhichOneof("expr") == "conjunction":
            for side in (expression.conjunction.left_expression, expression.conjunction.right_expression):
                yield from self._condition(place, side, inputs)
            return
        sides = [_operand(o, inputs) for o in (expression.comparison.left_value, expression.comparison.right_value)]
        if None in sides:
            yield f"{place}: a condition compares something that is not bound"
        elif sides[0] != sides[1]:
            yield f"{place}: a condition compares {_describe(sides[0])} with {_describe(sides[1])}"

    def bindings(self, place: str, bindings: list[Binding], target_types: Types) -> Iterator[str]:
        """What is wrong with the values that something gets."""
        names = [b.var for b in bindings]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{place}: the input {name} is bound more than once"
        for name in sorted(set(names) - set(target_types)):
            yield f"{place}: there is no input {name}"
        for name, kind in sorted(target_types.items()):
            if name not in names and not optional(kind):
                yield f"{place}: the input {name} is not bound"
        for binding in bindings:
            if binding.var in target_types:
                try:
                    self._fit(binding.binding, target_types[binding.var])
                except Refused as fault:
                    yield f"{place}: the input {binding.var}: {fault}"

    def _fit(self, data: BindingData, target_type: LiteralType) -> None:
        """Check a binding against the type that is wanted.

        Raises:
            Refused: it does not fit.
        """
        match data.WhichOneof("value"):
            case "collection" if target_type.HasField("collection_type"):
                for part in data.collection.bindings:
                    self._fit(part, target_type.collection_type)
                return
            case "map" if target_type.HasField("map_value_type"):
                for part in data.map.bindings.values():
                    self._fit(part, target_type.map_value_type)
                return
            case "collection" | "map" if target_type.HasField("union_type"):
                if sum(self._fits(data, variant) for variant in target_type.union_type.variants) != 1:
                    raise Refused(f"expected a value for exactly one of {_describe(target_type)}")
                return
        kind = self._type(data)
        if not castable(kind, target_type):
            raise Refused(f"expected {_describe(target_type)}, got {_describe(kind)}")
        allowed = target_type.enum_type.values
        if allowed and data.HasField("scalar") and data.scalar.primitive.string_value not in allowed:
            raise Refused(f"expected one of {', '.join(allowed)}")

    def _fits(self, data: BindingData, target_type: LiteralType) -> bool:
        try:
            self._fit(data, target_type)
        except Refused:
            return False
        return True

    def _type(self, data: BindingData) -> LiteralType:
        """The type of a scalar or of what another node gives."""
        match data.WhichOneof("value"):
            case "scalar":
                return type_of_scalar(data.scalar)
            case "promise":
                return self._promised_type(data)
            case "collection":
                (first, *_) = data.collection.bindings
                return LiteralType(collection_type=self._type(first))
            case "map":
                return LiteralType(map_value_type=self._type(next(iter(data.map.bindings.values()))))
        raise Refused("nothing is bound")

    def _promised_type(self, data: BindingData) -> LiteralType:
        promise = data.promise
        outputs = self.outputs.get(promise.node_id or START)
        if outputs is None:
            raise Refused(f"there is no node {promise.node_id}")
        if promise.var not in outputs:
            raise Refused(f"{promise.node_id or 'the workflow'} gives no {promise.var}")
        kind = outputs[promise.var]
        for attribute in promise.attr_path:
            match kind.WhichOneof("type"):
                case "collection_type":
                    kind = kind.collection_type
                case "map_value_type":
                    kind = kind.map_value_type
                case _:
                    fields = kind.structure.dataclass_type
                    if attribute.string_value not in fields:
                        raise Refused(f"{promise.var} has no field {attribute.string_value}")
                    kind = fields[attribute.string_value]
        return kind


def _types(variables: VariableMap) -> Types:
    return {name: variable.type for name, variable in variables.variables.items()}


def _operand(operand: Operand, inputs: Types) -> LiteralType | None:
    if operand.WhichOneof("val") == "primitive":
        return LiteralType(simple=type_of_primitive(operand.primitive))
    return inputs.get(operand.var)


def _describe(kind: LiteralType | None) -> str:
    """A type on one line."""
    return " ".join(str(kind).split())[:120]


def _circle(nodes: Mapping[str, Node]) -> list[str]:
    """Nodes that wait for each other, sorted; none as a rule."""
    waiting = {name: upstream(node) & set(nodes) for name, node in nodes.items()}
    while ready := {name for name, before in waiting.items() if not before & set(waiting)}:
        waiting = {name: before for name, before in waiting.items() if name not in ready}
    return sorted(waiting)
