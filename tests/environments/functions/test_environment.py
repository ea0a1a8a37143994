import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from steptool.chat.messages import reads_only
from steptool.config import Config, ToolsConfig, load_config
from steptool.config.base import ConfigError
from steptool.environments.base import ToolResult, VerdictError, open_environment
from steptool.environments.functions.environment import FunctionsEnvironment
from steptool.environments.limits import LimitedEnvironment
from steptool.records import Query, Reference, StepStatus, ToolCall

ROOT = Path(__file__).parents[3]
COUNTER = '''
    from __future__ import annotations
    import asyncio, dataclasses, sys
    from typing import Literal

    @dataclasses.dataclass
    class Counter:
        """Counts."""

        values: list[int]
        label: str = "n"

        def __post_init__(self) -> None:
            if self.label == "broken":
                raise RuntimeError("no counter today")

        def add(self, function: int, unit: Literal["one", "ten"] = "one") -> dict[str, int]:
            """Add a number.

            Args:
                function: the number
                unit: what it counts
            """
            self.values.append(function * (10 if unit == "ten" else 1))
            return {"sum": sum(self.values)}

        def keep(self, numbers: list[int], note: str | None = None) -> str:
            """Keep a list and change it.

            Args:
                numbers: the list
                note: words
            """
            numbers.append(0)
            self.values = numbers
            return f"{numbers} {note}"

        async def later(self) -> str:
            """Take a moment."""
            await asyncio.sleep(0)
            return "è \\udc00"

        @staticmethod
        def fail(kind: str) -> object:
            """Fail somehow.

            Args:
                kind: of failure
            """
            if kind == "exit":
                sys.exit("bye")
            if kind == "key":
                raise KeyError("left")
            return {"set": {1}, "nan": float("nan"), "loop": [[]]}[kind]

        def solved(self, final_answer: str | None, reference: dict) -> float | None:
            reference["answer"] += "!"
            return {"yes": 1, "half": 0.5, "none": None, "odd": 7}[final_answer]

        def _hidden(self) -> None: ...
'''
PLAIN = '''
    def double(n: int) -> int:
        """Double a number.

        Args:
            n: the number
        """
        return 2 * n

    def solved(final_answer, reference):
        return float(final_answer == reference["answer"])

    tools = [double, solved]
    unnamed, twice, empty = [print], [double, double], []

    def no_docstring(n: int) -> int:
        return n

    def no_hint(n) -> int:
        """Say n.

        Args:
            n: the number
        """

    def no_argument(n: int) -> int:
        """Say n."""

    def no_words() -> int:
        """Returns:
            a number
        """

    def any_number(*numbers: int) -> int:
        """Say them.

        Args:
            numbers: the numbers
        """

    class Silent:
        pass
'''


def query(**reference: Any) -> Query:
    return Query("q1", "train", "functions", "count", (), Reference.from_json(reference))


def test_type_hints_and_docstrings_become_schemas(module: Any) -> None:
    tools = FunctionsEnvironment(f"{module(COUNTER)}:Counter").tools()
    assert [t["function"]["name"] for t in tools] == ["add", "keep", "later", "fail"]
    assert tools[0] == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add a number.",
            "parameters": {
                "type": "object",
                "properties": {
                    "function": {"type": "integer", "description": "the number"},
                    "unit": {"type": "string", "enum": ["one", "ten"], "description": "what it counts"},
                },
                "required": ["function"],
            },
        },
    }
    note = tools[1]["function"]["parameters"]["properties"]["note"]
    assert note == {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "words"}


def test_each_episode_has_an_object_of_its_own_made_from_the_tasks_state(module: Any) -> None:
    environment, task = FunctionsEnvironment(f"{module(COUNTER)}:Counter"), query(state={"values": [5]})
    first, second = environment.reset(task), environment.reset(task)
    add = ToolCall("add", {"function": 2, "unit": "ten"})
    assert first.call(add) == ToolResult(StepStatus.OK, '{"sum": 25}')
    assert first.call(add).observation == '{"sum": 45}'
    assert second.call(add).observation == '{"sum": 25}'
    assert task.reference.environment == {"state": {"values": [5]}}


def test_a_function_cannot_change_what_was_called_or_asked(module: Any) -> None:
    task = query(state={"values": []}, answer="x")
    session = FunctionsEnvironment(f"{module(COUNTER)}:Counter").reset(task)
    call = ToolCall("keep", {"numbers": [1], "note": None})
    assert session.call(call).observation == "[1, 0] None"
    assert call.arguments == {"numbers": [1], "note": None}
    assert [session.solved("yes"), session.solved("yes")] == [1.0, 1.0]
    assert task.reference.answer == "x"


@pytest.mark.parametrize(
    ("name", "arguments", "status", "message"),
    [
        ("fail", {"kind": "key"}, StepStatus.TOOL_ERROR, "KeyError: 'left'"),
        ("fail", {"kind": "exit"}, StepStatus.TOOL_ERROR, "SystemExit: bye"),
        (
            "fail",
            {"kind": "set"},
            StepStatus.TOOL_ERROR,
            "TypeError: the result cannot be written as JSON: Object of type set is not JSON serializable",
        ),
        ("add", {"function": "2"}, StepStatus.INVALID_ARGUMENTS, "argument 'function' must be integer, got \"2\"."),
        ("add", {}, StepStatus.INVALID_ARGUMENTS, "missing required argument 'function'."),
        ("add", {"function": 2, "self": 3}, StepStatus.INVALID_ARGUMENTS, "unknown argument 'self'."),
        ("solved", {"final_answer": "yes"}, StepStatus.UNKNOWN_TOOL, "no function is named 'solved'"),
        ("_hidden", {}, StepStatus.UNKNOWN_TOOL, "no function is named '_hidden'"),
    ],
)
def test_what_goes_wrong_is_a_failed_step(
    module: Any, name: str, arguments: dict[str, Any], status: StepStatus, message: str
) -> None:
    session = FunctionsEnvironment(f"{module(COUNTER)}:Counter").reset(query(state={"values": [1]}))
    assert session.call(ToolCall(name, arguments)) == ToolResult(status, json.dumps({"error": message}))


def test_no_number_is_no_json_and_half_a_surrogate_pair_no_text(module: Any) -> None:
    session = FunctionsEnvironment(f"{module(COUNTER)}:Counter").reset(query(state={"values": [1]}))
    assert "out of range float" in session.call(ToolCall("fail", {"kind": "nan"})).observation.lower()
    assert session.call(ToolCall("later", {})) == ToolResult(StepStatus.OK, "è ?")


def test_an_object_that_cannot_be_made_fails_the_step(module: Any) -> None:
    session = FunctionsEnvironment(f"{module(COUNTER)}:Counter").reset(query(state={"values": [], "label": "broken"}))
    result = session.call(ToolCall("later", {}))
    assert result == ToolResult(StepStatus.TOOL_ERROR, '{"error": "RuntimeError: no counter today"}')
    with pytest.raises(VerdictError, match="no counter today"):
        session.solved("yes")


@pytest.mark.parametrize("state", [{}, {"values": [1], "colour": "red"}, [1]])
def test_a_state_that_the_class_does_not_take_is_refused_by_query(module: Any, state: Any) -> None:
    with pytest.raises(ValueError, match=r"query 'q1': field 'reference\.state': expected keyword arguments"):
        FunctionsEnvironment(f"{module(COUNTER)}:Counter").reset(query(state=state))


def test_the_class_gives_the_verdict(module: Any) -> None:
    session = FunctionsEnvironment(f"{module(COUNTER)}:Counter").reset(query(state={"values": []}, answer="x"))
    assert (session.solved("yes"), session.solved("half"), session.solved("none")) == (1.0, 0.5, None)
    with pytest.raises(VerdictError, match="expected a number from 0 to 1 or None, got 7"):
        session.solved("odd")
    with pytest.raises(VerdictError, match="KeyError: None"):
        session.solved(None)


def test_functions_have_no_state_and_may_give_a_verdict(module: Any) -> None:
    path = module(PLAIN)
    session = FunctionsEnvironment(f"{path}:tools").reset(query(answer="8"))
    assert session.call(ToolCall("double", {"n": 4})) == ToolResult(StepStatus.OK, "8")
    assert (session.solved("8"), session.solved(None)) == (1.0, 0.0)
    with pytest.raises(ValueError, match=r"reference\.state"):
        FunctionsEnvironment(f"{path}:tools").reset(query(state={"n": 1}))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("no_docstring", "'no_docstring'.*no docstring"),
        ("no_hint", "'no_hint'.*Argument n is missing a type hint"),
        ("no_argument", "'no_argument'.*no description for the argument 'n'"),
        ("no_words", "'no_words'.*its docstring does not say what it does"),
        ("any_number", r"'any_number'.*argument '\*numbers: int' cannot be given by its name"),
    ],
)
def test_a_function_without_a_description_is_refused_by_name(module: Any, named: str, message: str) -> None:
    path = module(f"{dedent(PLAIN)}\nlisted = [{named}]\n")
    with pytest.raises(ConfigError, match=message) as excinfo:
        FunctionsEnvironment(f"{path}:listed")
    assert "needs type hints and a docstring in Google's style" in str(excinfo.value)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("", "expected 'package.module:name' or 'path/to/file.py:name'"),
        ("mine.py", "expected 'package.module:name' or 'path/to/file.py:name'"),
        ("no/such/file.py:tools", "no file 'no/such/file.py'"),
        ("no_such_package.tools:tools", "cannot be imported: ModuleNotFoundError"),
        ("{}:nothing", "has nothing named 'nothing'"),
        ("{}:unnamed", "expected a class or a list of functions"),
        ("{}:empty", "expected a class or a list of functions"),
        ("{}:twice", "several functions of one name"),
        ("{}:double", "expected a class or a list of functions"),
        ("{}:Silent", "no public methods"),
    ],
)
def test_what_cannot_be_found_is_refused(module: Any, named: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_environment("functions", Config(tools=ToolsConfig(functions=named.format(module(PLAIN)))))


def test_a_module_that_fails_is_refused_each_time(module: Any) -> None:
    path = module("1 / 0")
    for _ in range(2):
        with pytest.raises(ConfigError, match="ZeroDivisionError"):
            FunctionsEnvironment(f"{path}:tools")


def test_a_file_is_found_from_the_projects_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [t["function"]["name"] for t in FunctionsEnvironment("examples/functions/tools.py:Shop").tools()]
    assert names == ["items", "count", "price", "order"]


def test_a_package_is_imported_by_its_name(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shop_of_ours").mkdir()
    module(PLAIN, "shop_of_ours/tools.py")
    assert [t["function"]["name"] for t in FunctionsEnvironment("shop_of_ours.tools:tools").tools()] == ["double"]


def test_the_examples_tasks_are_solved_by_their_reference() -> None:
    config = load_config(ROOT / "configs/functions.yaml")
    tasks = [json.loads(line) for line in (ROOT / config.data.paths[0]).read_text().splitlines()]
    guard = LimitedEnvironment(open_environment("functions", config), config.tools)
    for task in tasks:
        reference = task["reference"]
        done, idle = guard.reset(query(**reference)), guard.reset(query(**reference))
        results = [done.call(ToolCall(**call)) for call in reference["calls"]]
        assert {result.status for result in results} == {StepStatus.OK}
        assert done.solved(reference["answer"]) == 1.0
        assert idle.solved(reference["answer"]) == float(not reference["orders"])
    assert [task["split"] for task in tasks] == ["train"] * 6 + ["validation"] * 3 + ["heldout"] * 3


def test_functions_may_say_that_they_only_read() -> None:
    tools = FunctionsEnvironment("examples/functions/tools.py:Shop").tools()
    assert {tool["function"]["name"]: reads_only(tool) for tool in tools} == {
        "items": True,
        "count": True,
        "price": True,
        "order": None,
    }


def test_the_documented_example_works(module: Any) -> None:
    page = (ROOT / "docs/tools/functions.md").read_text(encoding="utf-8")
    source, task, settings = (
        page.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("python", "json", "yaml")
    )
    assert Config.model_validate(yaml.safe_load(settings)).data.environment == "functions"
    session = FunctionsEnvironment(f"{module(source)}:Shop").reset(query(**json.loads(task)["reference"]))
    assert session.call(ToolCall("count", {"item": "kettle"})) == ToolResult(StepStatus.OK, "13")
    assert session.solved("13") == 1.0
