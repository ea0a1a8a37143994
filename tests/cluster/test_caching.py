"""Cached tasks start no pod while inputs, interface and cache version are the same."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pods.catalog import Catalog
from pods.engine import Engine
from pods.package import Registry

pytestmark = pytest.mark.cluster
Make = Callable[..., Engine]
TOYS = Path(__file__).parent / "toys"
FIRST, SECOND = "flows.cached.first", "flows.cached.second"


def test_what_is_known_starts_no_pod(toys: Registry, engine: Make, registered: Callable[..., Registry]) -> None:
    catalog = Catalog()
    chain = engine(toys, catalog=catalog)
    once = chain.execute("flows.cached.chain", {"n": 1, "note": "a"})
    assert [pod.task for pod in once.pods] == [FIRST, SECOND]

    again = chain.execute("flows.cached.chain", {"n": 1, "note": "b"})  # the note does not count
    assert (again.pods, again.cached) == ([], [FIRST, SECOND])
    assert again.outputs == once.outputs

    execution = chain.execute("flows.cached.chain", {"n": 2, "note": "a"})
    assert [pod.task for pod in execution.pods] == [FIRST, SECOND]

    newer = engine(registered(TOYS, "flows", TOYS_CACHE_VERSION="2"), catalog=catalog)
    renewed = newer.execute("flows.cached.chain", {"n": 1, "note": "a"})
    assert [pod.task for pod in renewed.pods] == [FIRST]  # it gives the same number, which the second knows
    assert renewed.cached == [SECOND]


def test_elements_of_a_map_task_are_cached_one_by_one(toys: Registry, engine: Make) -> None:
    squares = engine(toys)
    squares.execute("flows.cached.squares", {"numbers": [1, 2]})
    more = squares.execute("flows.cached.squares", {"numbers": [2, 3]})
    assert [part.scalar.primitive.integer for part in more.outputs.literals["o0"].collection.literals] == [4, 9]
    assert len(more.pods) == 1
