from collections.abc import Callable, Sequence
from typing import Any

import pytest

from steptool.chat.messages import FINISH_SCHEMA
from steptool.environments.bfcl import BfclEnvironment
from steptool.environments.bfcl_tasks import is_installed, list_schemas, read_bfcl_queries
from steptool.records import Query, Reference

Calls = Sequence[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="session")
def environment() -> BfclEnvironment:
    if not is_installed():
        pytest.skip("the package bfcl-eval is not installed: make bfcl")
    return BfclEnvironment()


@pytest.fixture(scope="session")
def queries(environment: BfclEnvironment) -> list[Query]:
    return read_bfcl_queries()


@pytest.fixture(scope="session")
def by_id(queries: list[Query]) -> dict[str, Query]:
    return {query.query_id: query for query in queries}


@pytest.fixture
def make_task(environment: BfclEnvironment) -> Callable[..., Query]:
    """A task of our own: classes, the reference's turns, and the state to begin with (the classes' own by default)."""

    def make(
        *classes: str, turns: Sequence[Calls] = ((),), later: dict[str, list[str]] | None = None, **state: Any
    ) -> Query:
        tools = {name: schema for owner in classes for name, schema in list_schemas(owner).items()}
        later_tools = {turn: [tools.pop(name) for name in names] for turn, names in (later or {}).items()}
        solution = [[{"name": name, "arguments": arguments} for name, arguments in turn] for turn in turns]
        scenario = {"config": {}, "long_context": False, "messages": ["Go on."] * (len(turns) - 1), **state}
        return Query(
            query_id="own",
            split="train",
            environment="bfcl",
            instruction="Go.",
            tools=(*tools.values(), FINISH_SCHEMA),
            reference=Reference.from_json(
                {
                    "turns": solution,
                    "calls": [call for turn in solution for call in turn],
                    "bfcl": {"classes": list(classes), "later_tools": later_tools, **scenario},
                }
            ),
        )

    return make
