"""The walk over the nodes of a workflow, as flytepropeller does it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

from flyteidl.admin.launch_plan_pb2 import LaunchPlanSpec
from flyteidl.core.dynamic_job_pb2 import DynamicJobSpec
from flyteidl.core.errors_pb2 import ContainerError
from flyteidl.core.execution_pb2 import ExecutionError
from flyteidl.core.identifier_pb2 import Identifier
from flyteidl.core.interface_pb2 import TypedInterface
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.core.types_pb2 import ERROR
from flyteidl.core.workflow_pb2 import ArrayNode, GateNode, Node, NodeMetadata, WorkflowTemplate

from pods import catalog as cache
from pods.arrays import count_needed, elements, gather_outputs, single
from pods.catalog import Catalog
from pods.compiler import children, faults, upstream
from pods.literals import START, bound, holds, literal, literals
from pods.package import Key, Registry
from pods.pod import Attempt, Ended, Kubelet, Pod, name_of

SYSTEM_RETRIES = 3  # flytepropeller's max-node-retries-system-failures


class NodeFailed(Exception):
    """A node that cannot go on, and with it the execution."""

    def __init__(self, node: str, code: str, message: str) -> None:
        super().__init__(f"{node}: [{code}] {message}")
        self.node, self.code, self.message = node, code, message


@dataclass
class Execution:
    """One run of a launch plan: what came out, and the pods that it took in the order of their ends."""

    name: str
    outputs: LiteralMap = field(default_factory=LiteralMap)
    error: NodeFailed | None = None
    pods: list[Pod] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    """Names in the code of tasks whose outputs came from the cache, once for each time."""

    def ran(self, task: str) -> list[Pod]:
        """The pods of a task."""
        return [pod for pod in self.pods if pod.task == task]

    def story(self) -> str:
        """What happened, for a message."""
        lost_pods = [pod.log[-3000:] for pod in self.pods if pod.ended is not Ended.DONE]
        return "\n".join([*(pod.line() for pod in self.pods), *lost_pods, str(self.error or "succeeded")])


@dataclass(frozen=True)
class Engine:
    """Executes launch plans of a registry.

    answers: what people say at gates, by the gate's name; a gate without an answer times out.
    """

    registry: Registry
    kubelet: Kubelet
    catalog: Catalog = field(default_factory=Catalog)
    answers: Mapping[str, Any] = field(default_factory=dict)

    def execute(self, plan: str, inputs: Mapping[str, Any]) -> Execution:
        """Run the launch plan of a name on Python values to its end, good or bad."""
        return self.launch(self.registry.plan(plan)[1], literals(inputs))

    def launch(self, plan: LaunchPlanSpec, inputs: LiteralMap, execution: Execution | None = None) -> Execution:
        """Run a launch plan to its end, good or bad."""
        execution = execution or Execution(f"f{uuid.uuid4().hex[:19]}")
        try:
            execution.outputs.CopyFrom(_Walk(self, execution, self.registry).launch(plan, inputs, ""))
        except NodeFailed as error:
            execution.error = error
        return execution


@dataclass(frozen=True)
class _Walk:
    """The walk of one execution, with what is registered at this depth of dynamic tasks."""

    engine: Engine
    execution: Execution
    registry: Registry

    def launch(self, plan: LaunchPlanSpec, inputs: LiteralMap, path: str) -> LiteralMap:
        defaults = plan.default_inputs.parameters
        literals = {name: p.default for name, p in defaults.items() if p.WhichOneof("behavior") == "default"}
        literals |= {**inputs.literals, **plan.fixed_inputs.literals}
        return self.workflow(self.registry.workflow(plan.workflow_id), LiteralMap(literals=literals), path)

    def workflow(self, workflow: WorkflowTemplate, inputs: LiteralMap, path: str) -> LiteralMap:
        try:
            return self._nodes(workflow, inputs, path)
        except NodeFailed as error:
            if workflow.HasField("failure_node"):
                failure = workflow.failure_node
                failure_inputs = _with_error(bound(list(failure.inputs), {START: inputs}), error)
                self.node(failure, {START: inputs}, f"{path}{failure.id}", failure_inputs)
            raise

    def _nodes(self, workflow: WorkflowTemplate, inputs: LiteralMap, path: str) -> LiteralMap:
        """Start each node when those before it have ended; stop starting when one fails."""
        outputs = {START: inputs}
        pending = {node.id: (node, upstream(node)) for node in workflow.nodes}
        running: dict[Future[LiteralMap], str] = {}
        with ThreadPoolExecutor(len(pending)) as threads:
            while pending or running:
                for name in [name for name, (_, before) in pending.items() if before <= set(outputs)]:
                    node, _ = pending.pop(name)
                    running[threads.submit(self.node, node, dict(outputs), f"{path}{name}")] = name
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    outputs[running.pop(ended)] = ended.result()
        return bound(list(workflow.outputs), outputs)

    def node(
        self, node: Node, known: Mapping[str, LiteralMap], path: str, inputs: LiteralMap | None = None
    ) -> LiteralMap:
        """Run a node, on the inputs that it is bound to or on those given."""
        inputs = inputs or bound(list(node.inputs), known)
        match node.WhichOneof("target"):
            case "task_node":
                return self.task(self.registry.task(node.task_node.reference_id), node.metadata, inputs, path)
            case "workflow_node" if node.workflow_node.WhichOneof("reference") == "sub_workflow_ref":
                template = self.registry.workflow(node.workflow_node.sub_workflow_ref)
                return self.workflow(template, inputs, f"{path}/")
            case "workflow_node":
                plan = self.registry.plans[Key.of(node.workflow_node.launchplan_ref)]
                return self.launch(plan, inputs, f"{path}/")
            case "array_node":
                return self._array(node.array_node, inputs, path)
            case "branch_node":
                return self._branch(node, known, inputs, path)
            case "gate_node":
                return self._gate(node.gate_node, inputs, path)
        raise NodeFailed(path, "BadSpecification", "the node runs nothing")

    def _branch(self, node: Node, known: Mapping[str, LiteralMap], inputs: LiteralMap, path: str) -> LiteralMap:
        block = node.branch_node.if_else
        conditions = [block.case.condition, *(case.condition for case in block.other)]
        case_index = next((n for n, condition in enumerate(conditions) if holds(condition, inputs)), len(conditions))
        cases = children(block)
        if case_index == len(cases):
            raise NodeFailed(path, "UserProvidedError", block.error.message)
        return self.node(cases[case_index], known, f"{path}-{cases[case_index].id}")

    def _gate(self, gate: GateNode, inputs: LiteralMap, path: str) -> LiteralMap:
        kind = gate.WhichOneof("condition")
        if kind == "sleep":
            time.sleep(gate.sleep.duration.seconds)
            return LiteralMap()
        name = getattr(gate, kind).signal_id
        if name not in self.engine.answers:
            raise NodeFailed(path, "TimedOut", f"nobody answered {name}")
        if kind == "signal":
            return LiteralMap(literals={gate.signal.output_variable_name: literal(self.engine.answers[name])})
        if not self.engine.answers[name]:
            raise NodeFailed(path, "ReceivedRejectSignal", "received a reject signal to disapprove the input values")
        return inputs

    def _array(self, array: ArrayNode, inputs: LiteralMap, path: str) -> LiteralMap:
        """A map task: every element in a pod of its own, each retried alone."""
        task = single(self.registry.task(array.node.task_node.reference_id))
        parts, whole = elements(array, inputs), array.data_mode == ArrayNode.SINGLE_INPUT_FILE
        failed: list[NodeFailed] = []

        def one(index: int, part: LiteralMap) -> LiteralMap | None:
            handed = inputs if whole else part
            try:
                return self.task(task, array.node.metadata, part, f"{path}/{index}", index, handed)
            except NodeFailed as error:
                failed.append(error)
                return None

        with ThreadPoolExecutor(array.parallelism or max(len(parts), 1)) as threads:
            outputs = list(threads.map(one, range(len(parts)), parts))
        if len(parts) - len(failed) < count_needed(array, len(parts)):
            raise failed[0]
        return gather_outputs(task.interface.outputs.variables, outputs)

    def task(
        self,
        task: TaskTemplate,
        metadata: NodeMetadata,
        inputs: LiteralMap,
        path: str,
        index: int | None = None,
        handed: LiteralMap | None = None,
    ) -> LiteralMap:
        """Run a task, or take its outputs from the cache.

        inputs: what counts for the cache; handed: what its pod gets, if that is more.
        """
        key = cache.key(task, inputs)
        if key and (known := self.engine.catalog.get(key)):
            self.execution.cached.append(name_of(task))
            return known
        outputs = self._attempts(task, metadata, handed or inputs, path, index)
        if key:
            self.engine.catalog.put(key, name_of(task), outputs)
        return outputs

    def _attempts(
        self, task: TaskTemplate, metadata: NodeMetadata, inputs: LiteralMap, path: str, index: int | None
    ) -> LiteralMap:
        """Run a task until it ends well, fails for good, or has used up its attempts."""
        store = self.engine.kubelet.store
        place = f"{store.root}/metadata/{self.execution.name}/{path}"
        store.write(f"{place}/inputs.pb", inputs.SerializeToString())
        left = {ExecutionError.USER: metadata.retries.retries or task.metadata.retries.retries}
        left[ExecutionError.SYSTEM] = SYSTEM_RETRIES
        raw = f"{store.root}/data/{self.execution.name}/{path}"
        attempt = Attempt(
            self.execution.name, path, task, 0, f"{place}/inputs.pb", f"{place}/0", f"{raw}/0", index=index
        )
        while True:
            pod = self.engine.kubelet.run(attempt)
            self.execution.pods.append(pod)
            error = pod.error or _without_document(pod)
            if error is None:
                return self._outputs(pod, path)
            kind = error.origin if pod.ended is Ended.FAILED else ExecutionError.SYSTEM
            if error.kind == ContainerError.NON_RECOVERABLE or not left[kind]:
                raise NodeFailed(path, error.code, error.message)
            left[kind] -= 1
            number = attempt.number + 1
            attempt = replace(
                attempt, number=number, outputs=f"{place}/{number}", raw=f"{raw}/{number}", previous=attempt.checkpoints
            )

    def _outputs(self, pod: Pod, path: str) -> LiteralMap:
        """What a task wrote; if that is further nodes, what they give."""
        store, attempt = self.engine.kubelet.store, pod.attempt
        futures = store.message(f"{attempt.outputs}/futures.pb", DynamicJobSpec())
        if futures is not None:
            return self._dynamic(attempt.task, futures, path)
        outputs = store.message(f"{attempt.outputs}/outputs.pb", LiteralMap())
        if outputs is None:
            raise NodeFailed(path, "OutputsNotFound", f"the pod wrote no outputs:\n{pod.log[-1000:]}")
        return outputs

    def _dynamic(self, task: TaskTemplate, spec: DynamicJobSpec, path: str) -> LiteralMap:
        """Compile and run the nodes that a dynamic task hands over."""
        own = self.registry.extend({Key.of(t.id): t for t in spec.tasks}, {Key.of(w.id): w for w in spec.subworkflows})
        interface = TypedInterface(outputs=task.interface.outputs)
        identifier = Identifier(name=f"{task.id.name} (dynamic)", version=task.id.version)
        workflow = WorkflowTemplate(id=identifier, interface=interface, nodes=spec.nodes, outputs=spec.outputs)
        if wrong := faults(workflow, own):
            raise NodeFailed(path, "DynamicWorkflowBuildFailed", "; ".join(wrong))
        return replace(self, registry=own).workflow(workflow, LiteralMap(), f"{path}/")


def _without_document(pod: Pod) -> ContainerError | None:
    """What is wrong with a pod that wrote no error; None if nothing."""
    if pod.ended is Ended.DONE:
        return None
    code = {Ended.LOST: "Interrupted", Ended.TIMED_OUT: "TimeoutExpired"}[pod.ended]
    return ContainerError(code=code, message=pod.log[-3000:], kind=ContainerError.RECOVERABLE)


def _with_error(inputs: LiteralMap, error: NodeFailed) -> LiteralMap:
    """The inputs of a failure node, with the error in `err` if it asks for it."""
    if "err" in inputs.literals:
        union = inputs.literals["err"].scalar.union
        union.value.scalar.error.message, union.value.scalar.error.failed_node_id = error.message, error.node
        union.type.simple, union.type.structure.tag = ERROR, "FlyteError"
    return inputs
