"""The cache of outputs, keyed as Flyte's DataCatalog keys them."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field

from flyteidl.core.interface_pb2 import TypedInterface, VariableMap
from flyteidl.core.literals_pb2 import Literal, LiteralCollection, LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from google.protobuf.message import Message


@dataclass
class Catalog:
    """Outputs of cached tasks; it outlives executions and serves any number of them at once."""

    outputs: dict[str, tuple[str, LiteralMap]] = field(default_factory=dict)
    """By key, the task's name in the code and its outputs."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: str) -> LiteralMap | None:
        """What is known for a key."""
        with self.lock:
            return self.outputs[key][1] if key in self.outputs else None

    def put(self, key: str, task: str, outputs: LiteralMap) -> None:
        """Keep the outputs of a task that has ended well."""
        with self.lock:
            self.outputs[key] = (task, outputs)

    def without(self, *tasks: str) -> Catalog:
        """A copy that does not know these tasks."""
        with self.lock:
            return Catalog(
                {
                    key: outputs_of_task
                    for key, outputs_of_task in self.outputs.items()
                    if outputs_of_task[0] not in tasks
                }
            )


def key(task: TaskTemplate, inputs: LiteralMap) -> str | None:
    """What a task's outputs are found by: the task but not its version, its interface, the cache version, the inputs.

    Inputs count by what stands in their literals (a file by its url), or by the literal's hash where it has one. None
    for a task that is not cached.
    """
    if not task.metadata.discoverable:
        return None
    ignored = set(task.metadata.cache_ignore_input_vars)
    hashed_inputs = LiteralMap(literals={k: _hash_values(v) for k, v in inputs.literals.items() if k not in ignored})
    names = (task.id.project, task.id.domain, task.id.name, task.metadata.discovery_version.strip())
    parts = [*(name.encode() for name in names), *map(_bytes, _signature(task.interface)), _bytes(hashed_inputs)]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _signature(interface: TypedInterface) -> tuple[VariableMap, VariableMap]:
    return interface.inputs, interface.outputs


def _hash_values(value: Literal) -> Literal:
    """The value, replaced by its hash wherever it has one."""
    if value.hash:
        return Literal(hash=value.hash)
    match value.WhichOneof("value"):
        case "collection":
            return Literal(collection=LiteralCollection(literals=[_hash_values(v) for v in value.collection.literals]))
        case "map":
            return Literal(map=LiteralMap(literals={k: _hash_values(v) for k, v in value.map.literals.items()}))
    return value


def _bytes(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)
