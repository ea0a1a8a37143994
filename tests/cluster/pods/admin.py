"""Flyte's Admin over gRPC, as far as pyflyte asks it: registration, activation, executions, uploads."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
from flyteidl.admin import execution_pb2, launch_plan_pb2, node_execution_pb2, task_pb2, workflow_pb2
from flyteidl.core import compiler_pb2
from flyteidl.core.execution_pb2 import ExecutionError, WorkflowExecution
from flyteidl.core.identifier_pb2 import LAUNCH_PLAN, Identifier, WorkflowExecutionIdentifier
from flyteidl.core.literals_pb2 import LiteralMap
from flyteidl.service import admin_pb2_grpc, dataproxy_pb2, dataproxy_pb2_grpc
from google.protobuf.message import Message

from pods.admission import check_plan, check_task, list_open_inputs
from pods.compiler import faults
from pods.engine import Engine, Execution
from pods.package import Key
from pods.store import Store
from pods.types import castable, type_of

Named = tuple[str, str, str]  # project, domain, name


class Admin(admin_pb2_grpc.AdminServiceServicer):
    """Keeps what is registered, and executes launch plans on an engine over the same registry."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.registry = engine, engine.registry
        self.specs: dict[Key, workflow_pb2.WorkflowSpec] = {}
        self.active: dict[Named, Key] = {}
        self.executions: dict[str, tuple[execution_pb2.Execution, LiteralMap, Execution]] = {}

    # registration

    def CreateTask(self, request: Any, context: Any) -> Any:
        template = request.spec.template
        template.id.CopyFrom(request.id)
        _refuse(list(check_task(template)), context)
        _keep(self.registry.tasks, request.id, template, context)
        return task_pb2.TaskCreateResponse()

    def CreateWorkflow(self, request: Any, context: Any) -> Any:
        spec = request.spec
        spec.template.id.CopyFrom(request.id)
        parts = {Key.of(workflow.id): workflow for workflow in spec.sub_workflows}
        visible = self.registry.extend({}, parts)
        _refuse([f for w in (spec.template, *spec.sub_workflows) for f in faults(w, visible)], context)
        _keep(self.registry.workflows, request.id, spec.template, context)
        for key, workflow in parts.items():
            self.registry.workflows.setdefault(key, workflow)
        self.specs[Key.of(request.id)] = spec
        return workflow_pb2.WorkflowCreateResponse()

    def CreateLaunchPlan(self, request: Any, context: Any) -> Any:
        key, spec = Key.of(request.id), request.spec
        _refuse(list(check_plan(key, spec, self.registry)), context)
        workflow = self.registry.workflow(spec.workflow_id)
        spec.default_inputs.CopyFrom(list_open_inputs(spec, workflow.interface.inputs))
        _keep(self.registry.plans, request.id, spec, context)
        return launch_plan_pb2.LaunchPlanCreateResponse()

    def UpdateLaunchPlan(self, request: Any, context: Any) -> Any:
        key = _find(self.registry.plans, request.id, context)
        if request.state == launch_plan_pb2.ACTIVE:
            self.active[key[:3]] = key
        elif self.active.get(key[:3]) == key:
            del self.active[key[:3]]
        return launch_plan_pb2.LaunchPlanUpdateResponse()

    # what there is

    def GetWorkflow(self, request: Any, context: Any) -> Any:
        spec = self.specs[_find(self.registry.workflows, request.id, context)]
        closure = compiler_pb2.CompiledWorkflowClosure(
            primary=compiler_pb2.CompiledWorkflow(template=spec.template),
            sub_workflows=[compiler_pb2.CompiledWorkflow(template=part) for part in spec.sub_workflows],
            tasks=[compiler_pb2.CompiledTask(template=task) for task in self.registry.tasks.values()],
        )
        return workflow_pb2.Workflow(id=request.id, closure=workflow_pb2.WorkflowClosure(compiled_workflow=closure))

    def GetLaunchPlan(self, request: Any, context: Any) -> Any:
        return self._plan(_find(self.registry.plans, request.id, context))

    def ListLaunchPlans(self, request: Any, context: Any) -> Any:
        """Newest first."""
        wanted_key = (request.id.project, request.id.domain, request.id.name)
        keys = [key for key in reversed(self.registry.plans) if key[:3] == wanted_key]
        return launch_plan_pb2.LaunchPlanList(launch_plans=map(self._plan, keys))

    def _plan(self, key: Key) -> launch_plan_pb2.LaunchPlan:
        spec = self.registry.plans[key]
        active = self.active.get(key[:3]) == key
        closure = launch_plan_pb2.LaunchPlanClosure(
            state=launch_plan_pb2.ACTIVE if active else launch_plan_pb2.INACTIVE,
            expected_inputs=spec.default_inputs,
            expected_outputs=self.registry.workflow(spec.workflow_id).interface.outputs,
        )
        name = Identifier(resource_type=LAUNCH_PLAN, **key._asdict())
        return launch_plan_pb2.LaunchPlan(id=name, spec=spec, closure=closure)

    # executions

    def CreateExecution(self, request: Any, context: Any) -> Any:
        """Start a launch plan; a thread runs it."""
        if request.spec.launch_plan.resource_type != LAUNCH_PLAN:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "only launch plans can be executed here")
        plan = self.registry.plans[_find(self.registry.plans, request.spec.launch_plan, context)]
        _refuse(list(_unfit(plan, request.inputs)), context)
        name = request.name or f"f{uuid.uuid4().hex[:19]}"
        identifier = WorkflowExecutionIdentifier(project=request.project, domain=request.domain, name=name)
        execution = execution_pb2.Execution(id=identifier, spec=request.spec)
        execution.closure.phase = WorkflowExecution.RUNNING
        execution.closure.workflow_id.CopyFrom(plan.workflow_id)
        run = Execution(name)
        self.executions[name] = (execution, request.inputs, run)
        threading.Thread(target=self._run, args=(plan, request.inputs, run), daemon=True).start()
        return execution_pb2.ExecutionCreateResponse(id=identifier)

    def _run(self, plan: launch_plan_pb2.LaunchPlanSpec, inputs: LiteralMap, run: Execution) -> None:
        closure = self.executions[run.name][0].closure
        self.engine.launch(plan, inputs, run)
        if run.error:
            error = ExecutionError(code=run.error.code, message=run.error.message)
            closure.error.CopyFrom(error)
        closure.phase = WorkflowExecution.FAILED if run.error else WorkflowExecution.SUCCEEDED

    def GetExecution(self, request: Any, context: Any) -> Any:
        if request.id.name not in self.executions:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no execution {request.id.name}")
        return self.executions[request.id.name][0]

    def GetExecutionData(self, request: Any, context: Any) -> Any:
        _, inputs, run = self.executions[request.id.name]
        return execution_pb2.WorkflowExecutionGetDataResponse(full_inputs=inputs, full_outputs=run.outputs)

    def ListNodeExecutions(self, request: Any, context: Any) -> Any:
        return node_execution_pb2.NodeExecutionList()


class DataProxy(dataproxy_pb2_grpc.DataProxyServiceServicer):
    """Where a client without credentials of the store may upload to."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def CreateUploadLocation(self, request: Any, context: Any) -> Any:
        folder = request.filename_root or request.content_md5.hex()
        url = f"{self.store.root}/uploads/{request.project}/{request.domain}/{folder}/{request.filename}"
        return dataproxy_pb2.CreateUploadLocationResponse(signed_url=self.store.sign_url(url), native_url=url)


@contextlib.contextmanager
def serve_admin(engine: Engine) -> Iterator[tuple[Admin, str]]:
    """Admin on a port of loopback, and its address; the engine's registry receives what is registered."""
    server, admin = grpc.server(futures.ThreadPoolExecutor(8)), Admin(engine)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    dataproxy_pb2_grpc.add_DataProxyServiceServicer_to_server(DataProxy(engine.kubelet.store), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield admin, f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def _unfit(plan: launch_plan_pb2.LaunchPlanSpec, inputs: LiteralMap) -> Iterator[str]:
    """What is wrong with the inputs of an execution."""
    expected = plan.default_inputs.parameters
    for name, value in inputs.literals.items():
        if name not in expected:
            yield f"there is no open input {name}"
        elif not castable(type_of(value), expected[name].var.type):
            yield f"the input {name} is of the wrong type"
    for name, parameter in expected.items():
        if parameter.required and name not in inputs.literals:
            yield f"the input {name} is missing"


def _refuse(wrong: list[str], context: Any) -> None:
    if wrong:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "; ".join(wrong))


def _keep(entities: Any, identifier: Identifier, entity: Message, context: Any) -> None:
    """Keep an entity. The same once more is told; another of the same version is refused."""
    stored_entity = entities.get(Key.of(identifier))
    if stored_entity == entity:
        context.abort(grpc.StatusCode.ALREADY_EXISTS, f"{identifier.name} {identifier.version} exists already")
    if stored_entity is not None:
        message = f"{identifier.name} {identifier.version} exists already with a different structure"
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
    entities[Key.of(identifier)] = entity


def _find(entities: Any, identifier: Identifier, context: Any) -> Key:
    key = Key.of(identifier)
    if key not in entities:
        context.abort(grpc.StatusCode.NOT_FOUND, f"{key.name} {key.version} is not registered")
    return key
