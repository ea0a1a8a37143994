import inspect
from contextlib import closing
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from steptool.config import Config
from steptool.config.base import ConfigError
from steptool.config.tasks import ENVIRONMENT_NAMES
from steptool.environments.base import (
    ENVIRONMENTS,
    Environment,
    check_queries,
    find_environment_class,
    open_environment,
)
from steptool.records import Query, Reference, StepStatus, ToolCall

ROOT = Path(__file__).parents[2]
OWN = """
    from steptool.environments.base import Environment, Session, ToolResult
    from steptool.records import StepStatus


    class Echo(Session):
        def __init__(self, prefix):
            self.prefix = prefix

        def call(self, call):
            return ToolResult(StepStatus.OK, self.prefix + str(call.arguments["text"]))


    class EchoEnvironment(Environment):
        name = "echo"

        def __init__(self, prefix=""):
            if prefix == "broken":
                raise SystemExit("no echo today")
            self.prefix = prefix

        def reset(self, query):
            return Echo(self.prefix)


    class Incomplete(Environment):
        name = "incomplete"


    class Loose(EchoEnvironment):
        read_only = "look"


    class Lookalike:
        name = "lookalike"

        def reset(self, query):
            return Echo("")


    def function():
        return EchoEnvironment()
"""


def make_config(environment: str, **settings: Any) -> Config:
    return Config.model_validate({"data": {"environment": environment}, "tools": {"settings": settings}})


def write_module(folder: Path, text: str = OWN) -> str:
    (folder / "mine.py").write_text(dedent(text))
    return f"{folder}/mine.py"


def test_an_environment_of_ones_own_is_named_by_its_place(tmp_path: Path) -> None:
    place = f"{write_module(tmp_path)}:EchoEnvironment"
    environment = open_environment(place, make_config(place))
    session = environment.reset(Query("q", "train", place, "go", ()))
    result = session.call(ToolCall("echo", {"text": "hello"}))
    assert (result.status, result.observation) == (StepStatus.OK, "hello")
    assert session.solved("hello") is None
    with pytest.raises(ValueError, match="'echo' has no tools of its own"):
        environment.tools()


def test_an_environment_of_ones_own_is_made_with_its_settings(tmp_path: Path) -> None:
    place = f"{write_module(tmp_path)}:EchoEnvironment"
    session = open_environment(place, make_config(place, prefix="> ")).reset(Query("q", "train", place, "go", ()))
    assert session.call(ToolCall("echo", {"text": "hello"})).observation == "> hello"
    with pytest.raises(ConfigError, match=r"tools\.settings: EchoEnvironment: .*unexpected keyword argument 'colour'"):
        open_environment(place, make_config(place, colour="red"))
    with pytest.raises(ConfigError, match="cannot be opened: SystemExit: no echo today"):
        open_environment(place, make_config(place, prefix="broken"))


def documented_names(kind: str) -> str:
    """The example of the page, or that of the docstring."""
    if kind == "page":
        page = (ROOT / "docs/bring-your-own-tools.md").read_text(encoding="utf-8")
        return page.partition("```python\n")[2].partition("```")[0]
    text = inspect.cleandoc(Environment.__doc__ or "")
    classes = text[text.index("    class ShelfSession") : text.index("`data.environment")]
    imports = "from steptool.environments.base import *\nfrom steptool.records import *\n"
    return imports + dedent(classes)


@pytest.mark.parametrize("kind", ["page", "docstring"])
def test_the_documented_example_works(tmp_path: Path, kind: str) -> None:
    place = f"{write_module(tmp_path, documented_names(kind))}:Shelf"
    query = Query("q", "train", place, "Take both.", (), Reference(environment={"items": ["kettle", "mug"]}))
    with closing(open_environment(place, make_config(place, capacity=2))) as environment:
        session = environment.reset(query)
        results = [session.call(ToolCall("take", {"item": item})) for item in ("kettle", "mug", "jar")]
        assert [result.status for result in results] == [StepStatus.OK, StepStatus.OK, StepStatus.TOOL_ERROR]
        assert (session.solved("done"), environment.reset(query).solved("done")) == (1.0, 0.0)


def test_tasks_without_what_the_environment_needs_are_found_before_a_run() -> None:
    config = Config.model_validate({"tools": {"functions": "examples/functions/tools.py:Shop"}})
    state = {"stock": {"cup": 1}, "prices": {"cup": 2}}
    whole = [Query(f"w{n}", "train", "functions", "go", (), Reference(environment={"state": state})) for n in range(3)]
    bare = [Query(f"b{n}", "heldout", "functions", "go", ()) for n in range(5)]
    with closing(open_environment("functions", config)) as environment:
        check_queries(environment, whole)
        with pytest.raises(ConfigError, match=r"cannot start 5 of 8 tasks: heldout query 'b0': .*stock.*; \.\.\.$"):
            check_queries(environment, [*whole, *bare])


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_an_object_that_cannot_be_made_is_found_before_a_run(tmp_path: Path, isolation: str) -> None:
    source = """
        class Shop:
            def __init__(self):
                raise ValueError("no shelf")

            def count(self) -> int:
                "Pieces."
                return 13
    """
    tools = {"functions": f"{write_module(tmp_path, source)}:Shop", "isolation": isolation, "timeout": 30.0}
    message = "cannot start 1 of 2 tasks: train query 'q0': .*making Shop failed: ValueError: no shelf"
    queries = [Query(f"q{n}", "train", "functions", "go", ()) for n in range(2)]
    environment = open_environment("functions", Config.model_validate({"tools": tools}))
    with closing(environment), pytest.raises(ConfigError, match=message):
        check_queries(environment, queries)


def test_tools_that_cannot_be_reached_are_found_before_a_run() -> None:
    config = Config.model_validate({"tools": {"mcp": {"command": ["no-such-program"]}}})
    with closing(open_environment("mcp", config)) as environment, pytest.raises(ConfigError, match="no-such-program"):
        check_queries(environment, [Query("q", "train", "mcp", "go", ())])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Loose", "Loose.read_only: expected a set of names, got 'look'"),
        ("Incomplete", "the class Incomplete lacks the methods reset"),
        ("Lookalike", r"expected a subclass of steptool\.environments\.base\.Environment, got <class '.*Lookalike'>"),
        ("function", r"expected a subclass of steptool\.environments\.base\.Environment, got <function"),
        ("Nobody", "has nothing named 'Nobody'"),
    ],
)
def test_only_a_complete_environment_is_accepted(tmp_path: Path, name: str, message: str) -> None:
    place = f"{write_module(tmp_path)}:{name}"
    with pytest.raises(ConfigError, match=f"data.environment: .*{message}"):
        open_environment(place, make_config(place))


@pytest.mark.parametrize("name", ["sys:exit", "os:abort", "{folder}/mine.py:EchoEnvironment"])
def test_a_name_that_the_configuration_does_not_name_runs_no_code(tmp_path: Path, name: str) -> None:
    file = write_module(tmp_path, f"raise SystemExit({str(tmp_path)!r})\n")
    for config in (Config(), make_config("functions"), make_config(f"{file}:Other")):
        with pytest.raises(ConfigError, match="no environment is named"):
            open_environment(name.format(folder=tmp_path), config)


def test_a_program_that_exits_when_it_is_imported_is_refused(tmp_path: Path) -> None:
    place = f"{write_module(tmp_path, 'raise SystemExit(0)')}:EchoEnvironment"
    with pytest.raises(ConfigError, match=r"cannot be imported: SystemExit: 0 \(\w+\.py, line 1\)"):
        open_environment(place, make_config(place))


def test_the_configuration_knows_the_environments_of_this_package():
    assert set(ENVIRONMENT_NAMES) == set(ENVIRONMENTS)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_of_the_table_has_the_name_it_is_found_by(name: str) -> None:
    environment = find_environment_class(name, Config())
    assert issubclass(environment, Environment) and environment.name == name
    assert environment.needs_recordings is (name == "replay")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dsek", f"no environment is named 'dsek'; expected one of {', '.join(ENVIRONMENTS)}, or in data.environment"),
        ("functions", "tools.functions"),
        ("mcp", "tools.mcp"),
        ("toolbench", "tools.toolbench"),
    ],
)
def test_what_cannot_be_opened_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_environment(name, Config())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py:Echo", "data.environment: there is no file 'nowhere.py'"),
        ("steptool.environments:Echo", "'steptool.environments' has nothing named 'Echo'"),
    ],
)
def test_a_class_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_environment(name, make_config(name))
