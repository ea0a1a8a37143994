"""Errors that pass, errors that stay, a failure node, and work that outlives its pod."""

import importlib.util
import os
import time
from functools import partial
from pathlib import Path

import fsspec
from flytekit import current_context, map_task, task, workflow
from flytekit.exceptions.user import FlyteRecoverableException
from flytekit.types.error import FlyteError


@task(retries=2)
def shaky(fails: int) -> int:
    attempt = int(os.environ["FLYTE_ATTEMPT_NUMBER"])
    if attempt < fails:
        raise FlyteRecoverableException(f"not yet in attempt {attempt}")
    return attempt


@workflow
def temporary(fails: int) -> int:
    return shaky(fails=fails)


@task(retries=2)
def hopeless(n: int) -> int:
    if n > 0:
        raise ValueError(f"nothing can be done about {n}")
    return n


@task
def tell(n: int, place: str, err: FlyteError | None = None) -> None:
    with fsspec.open(place, "w") as file:
        file.write(f"{n}: {err.message if err else ''}")


@workflow(on_failure=tell)
def permanent(n: int, place: str) -> int:
    return hopeless(n=n)


@task(retries=0)
def counted(steps: int) -> int:
    """Count on from the checkpoint of the attempt before; once a checkpoint is there, wait for the end of this pod."""
    checkpoint, start = current_context().checkpoint, 0
    if checkpoint.prev_exists():
        start = int(checkpoint.read() or b"0")
    if start == 0:
        checkpoint.write(str(steps - 1).encode())
        time.sleep(60)
    return start + 1


@workflow
def killed(steps: int) -> int:
    return counted(steps=steps)


@task
def part(n: int, place: str) -> int:
    """The square; of 0 in the first attempt only after a long while, of which a file tells."""
    if n == 0 and os.environ["FLYTE_ATTEMPT_NUMBER"] == "0":
        with fsspec.open(place, "w") as file:
            file.write("at work")
        time.sleep(60)
    return n * n


@workflow
def parts(numbers: list[int], place: str) -> list[int]:
    return map_task(partial(part, place=place))(n=numbers)


@task
def surroundings() -> list[str]:
    """What a pod sees: where the code comes from, what lies in its folder, which variables of Flyte it has."""
    import flows

    files = sorted(p.name for p in Path.cwd().iterdir())
    installed = importlib.util.find_spec("steptool") is not None
    return [str(Path(flows.__file__)), ",".join(files), ",".join(sorted(os.environ)), str(installed)]


@workflow
def looked() -> list[str]:
    return surroundings()
