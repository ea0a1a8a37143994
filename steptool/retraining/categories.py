"""Groups of tasks in which a retrained model must not become worse."""

from __future__ import annotations

from steptool.environments.toolbench.naming import endpoints
from steptool.records import Query


def categories(query: Query) -> tuple[str, ...]:
    """The groups that a task counts in, sorted.

    They are ToolBench's categories of the tools that it offers; where it names none, its tier, and without a tier its
    environment. Raises ValueError for a reference that names ToolBench's categories in another form.
    """
    named = {category for category, _, _ in endpoints(query).values()}
    return tuple(sorted(named)) or (query.tier or query.environment,)
