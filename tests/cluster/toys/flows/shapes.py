"""Map tasks, dynamic tasks, sub-workflows, branches and gates."""

from datetime import timedelta
from functools import partial

from flytekit import approve, conditional, dynamic, map_task, task, wait_for_input, workflow


@task
def scaled(n: int, factor: int) -> int:
    return n * factor


@task
def total(values: list[int]) -> int:
    return sum(values)


@dynamic
def inner(n: int) -> list[int]:
    return map_task(partial(scaled, factor=2))(n=list(range(n)))


@workflow
def middle(n: int) -> int:
    return total(values=inner(n=n))


@dynamic
def outer(n: int) -> int:
    return middle(n=n)


@workflow
def nested(n: int = 3) -> int:
    """A map task in a dynamic task in a sub-workflow in a dynamic task."""
    return outer(n=n)


@task
def halved(x: float) -> float:
    return x / 2


@dynamic
def widening(n: int) -> float:
    return halved(x=scaled(n=n, factor=1))


@workflow
def widened(n: int) -> float:
    """A dynamic task that hands over an int where a float is wanted."""
    return widening(n=n)


@workflow
def chosen(n: int) -> int:
    """A branch."""
    return (
        conditional("size").if_(n > 10).then(scaled(n=n, factor=2)).elif_(n > 5).then(middle(n=2)).else_().fail("small")
    )


@workflow
def asked(n: int) -> int:
    """Two gates: a number that a person gives, and a person's consent."""
    factor = wait_for_input("factor", timeout=timedelta(minutes=5), expected_type=int)
    allowed = approve(scaled(n=n, factor=factor), "allowed", timeout=timedelta(minutes=5))
    return scaled(n=allowed, factor=1)
