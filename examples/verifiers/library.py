"""A taskset of the package verifiers: books in a library, with a toolset that keeps state and a reward on the state.

    data: {source: environment, environment: verifiers}
    tools: {settings: {taskset: "examples/verifiers/library.py:LibraryTaskset"}}

It is written as verifiers' own documentation asks for, and knows nothing of StepTool. It needs the package: pip install
verifiers.
"""

from collections.abc import Iterator

import verifiers.v1 as vf
from pydantic import Field

LOANS = [
    ("Emma", "Ada", 3),
    ("Ulysses", "Ben", 1),
    ("Emma", "Cleo", 2),
    ("Middlemarch", "Dan", 5),
]
"""Book, reader and copies on the shelf of each task."""


class LibraryData(vf.TaskData):
    """The wire half of a task."""

    book: str
    reader: str
    copies: int


class LibraryState(vf.State):
    """What the tools change and the reward reads."""

    copies: dict[str, int] = Field(default_factory=dict)
    loans: list[tuple[str, str]] = Field(default_factory=list)


class LibraryToolset(vf.Toolset[vf.ToolsetConfig, LibraryState]):
    """The tools of the library's desk."""

    TOOL_PREFIX = "library"

    @vf.tool
    async def find(self, title: str) -> str:
        """Say how many copies of a book are on the shelf."""
        if title not in self.state.copies:
            raise ValueError(f"no book has the title {title}")
        return f"{self.state.copies[title]} copies of {title}"

    @vf.tool
    async def lend(self, title: str, reader: str) -> str:
        """Lend a copy of a book to a reader."""
        if not self.state.copies.get(title):
            raise ValueError(f"there is no copy of {title}")
        self.state.copies[title] -= 1
        self.state.loans.append((title, reader))
        return f"lent to {reader}"


class LibraryTask(vf.Task[LibraryData, LibraryState]):
    """Lend a book to a reader, and say how many copies are left."""

    async def setup(self, trace: vf.Trace, runtime: vf.Runtime) -> None:
        """Put the copies on the shelf."""
        trace.state.copies = {self.data.book: self.data.copies}

    @classmethod
    def toolsets(cls, config: vf.TaskConfig) -> list[vf.Toolset]:
        """The library's desk."""
        return [LibraryToolset(vf.ToolsetConfig())]

    @vf.reward(weight=0.75)
    async def lent(self, trace: vf.Trace) -> float:
        """1 if that book was lent to that reader, and nothing else."""
        return float(trace.state.loans == [(self.data.book, self.data.reader)])

    @vf.reward(weight=0.25)
    async def answered(self, trace: vf.Trace) -> float:
        """1 if the answer names the number of copies that are left."""
        return float(str(self.data.copies - 1) in trace.last_reply)


class LibraryTaskset(vf.Taskset[LibraryTask, vf.TasksetConfig]):
    """One task for each loan."""

    def load(self) -> Iterator[LibraryTask]:
        """The tasks."""
        for book, reader, copies in LOANS:
            prompt = f"Lend {book} to {reader}. How many copies of it are left?"
            data = LibraryData(
                prompt=prompt, system_prompt="You work in a library.", book=book, reader=reader, copies=copies
            )
            yield LibraryTask(data, self.config.task)


__all__ = ["LibraryTaskset"]
