"""What a cluster makes of errors and of pods that are lost."""

from collections.abc import Callable

import pytest

from pods.engine import Engine
from pods.literals import primitive
from pods.package import Registry
from pods.pod import Ended, Kill
from pods.store import Store

pytestmark = pytest.mark.cluster
Make = Callable[..., Engine]


def test_an_error_that_may_pass_is_tried_again_as_often_as_the_task_says(toys: Registry, engine: Make) -> None:
    passed = engine(toys).execute("flows.faults.temporary", {"fails": 1})
    assert [pod.ended for pod in passed.pods] == [Ended.FAILED, Ended.DONE]
    stayed = engine(toys).execute("flows.faults.temporary", {"fails": 9})
    assert [pod.ended for pod in stayed.pods] == [Ended.FAILED] * 3
    assert stayed.error is not None
    assert "not yet in attempt 2" in stayed.error.message


def test_an_error_that_stays_stops_at_once_and_runs_the_failure_node(
    toys: Registry, engine: Make, store: Store
) -> None:
    place = f"{store.root}/told"
    execution = engine(toys).execute("flows.faults.permanent", {"n": 3, "place": place})
    assert len(execution.ran("flows.faults.hopeless")) == 1
    assert len(execution.ran("flows.faults.tell")) == 1
    record = (store.read(place) or b"").decode()
    assert record.startswith("3: ")
    assert "nothing can be done about 3" in record


def test_a_killed_pod_goes_on_from_its_checkpoint(toys: Registry, engine: Make, store: Store) -> None:
    kill = Kill("flows.faults.counted", lambda attempt: bool(store.names(attempt.checkpoints)))
    execution = engine(toys, (kill,)).execute("flows.faults.killed", {"steps": 5})
    assert [pod.ended for pod in execution.pods] == [Ended.LOST, Ended.DONE]  # although the task itself allows no retry
    assert primitive(execution.outputs.literals["o0"].scalar.primitive) == 5


def test_a_lost_element_of_a_map_task_is_done_again_alone(toys: Registry, engine: Make, store: Store) -> None:
    kill = Kill("flows.faults.part", lambda attempt: bool(store.read(f"{store.root}/part0")), index=0)
    numbers = {"numbers": [0, 3, 4], "place": f"{store.root}/part0"}
    execution = engine(toys, (kill,)).execute("flows.faults.parts", numbers)
    assert execution.error is None, execution.story()
    results = [part.scalar.primitive.integer for part in execution.outputs.literals["o0"].collection.literals]
    assert results == [0, 9, 16]
    attempts = sorted((pod.attempt.index, pod.attempt.number, pod.ended) for pod in execution.pods)
    assert attempts == [(0, 0, Ended.LOST), (0, 1, Ended.DONE), (1, 0, Ended.DONE), (2, 0, Ended.DONE)]
