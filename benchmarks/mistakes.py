"""Mistakes that users make, through the real command line: what it says, and whether the first line says enough.

    python benchmarks/mistakes.py [--only NAME]     # all take a few minutes

Prints each mistake with the message that came. A message is clear if its first line holds the words that say what was
expected, what came or what to do, if it has few lines and no stack, and if the command ends with an error. The last
line is `mistakes with a clear message: OURS OF RATIO`; the program ends with 1 if one is unclear.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LINES = 6
"""Lines of a message at most."""
_FRAME = re.compile(r"Usage: |Try '|╭|╰")
"""Lines that the libraries of both commands put around a message about an option."""
STEPTOOL = (sys.executable, "-m", "steptool.cli")
PYFLYTE = (str(Path(sys.executable).parent / "pyflyte"), "run")
EXAMPLE = {"instruction": "How many kettles are in stock?", "reference": {"answer": "13"}}
TOOLS = '''
def count(item: str) -> int:
    """Pieces in stock.

    Args:
        item: what to count
    """
    return 13


TOOLS = [count]
'''
SHOP = '''
class Shop:
    def count(self, item: str) -> int:
        """Pieces in stock.

        Args:
            item: what to count
        """
        return 13

'''
CALL = {"name": "count", "arguments": {"item": "kettle"}}
OWN = """
data: {source: jsonl, environment: functions, paths: [DIR/tasks.jsonl]}
tools: {functions: 'DIR/tools.py:TOOLS'}
"""
SMALL = "data: {train_queries: 4, validation_queries: 1, heldout_queries: 1}\nwarm_start: {demonstrations: 4}\n"
NOWHERE = "http://127.0.0.1:9/v1"
"""An address where nothing answers."""


@dataclass(frozen=True)
class Mistake:
    """A command with a mistake in it. `DIR` is the folder of its files, `SERVER` a server that refuses every key."""

    name: str
    command: Sequence[str]
    words: Sequence[str]
    """Patterns that the first line has to match."""
    files: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


def check(name: str, config: str, *words: str, **files: str) -> Mistake:
    """A mistake that `steptool check` finds in a configuration."""
    return Mistake(name, (*STEPTOOL, "check", "DIR/config.yaml"), words, {"config.yaml": config, **dot_names(files)})


def ingest(name: str, config: str, *words: str, **files: str) -> Mistake:
    """A mistake that shows when tasks and tools are read."""
    command = (*STEPTOOL, "ingest", "DIR/config.yaml", "--output", "DIR/out")
    return Mistake(name, command, words, {"config.yaml": config, **dot_names(files)})


def rehearse(name: str, config: str, *words: str, **files: str) -> Mistake:
    """A mistake that shows when tools are started and the model is tried."""
    command = (*STEPTOOL, "train", "DIR/config.yaml", "--dry-run", "--output", "DIR/out")
    return Mistake(name, command, words, {"config.yaml": config, **dot_names(files)})


def dot_names(files: Mapping[str, str]) -> dict[str, str]:
    """Names of files as keyword arguments can hold them: tasks_jsonl is tasks.jsonl."""
    return {name.replace("_", ".", 1): text for name, text in files.items()}


def tasks(*changes: Mapping[str, object], count: int = 12) -> str:
    """Lines of tasks: the changed ones, then enough that are right."""
    right = [{**EXAMPLE, "instruction": f"{EXAMPLE['instruction']} ({n})"} for n in range(count - len(changes))]
    return "\n".join(json.dumps(task) for task in [*({**EXAMPLE, **change} for change in changes), *right])


MISTAKES = (
    # the command line
    Mistake(
        "a mistyped path", (*STEPTOOL, "check", "configs/labtop.yaml"), ["labtop.yaml", "laptop.yaml|no such file"]
    ),
    Mistake("a mistyped command", (*STEPTOOL, "trian", "configs/laptop.yaml"), ["trian", "Did you mean 'train'"]),
    Mistake(
        "a mistyped path for pyflyte",
        (*PYFLYTE, "workflows/train.py", "train", "--config", "configs/labtop.yaml", "--output", "DIR/out"),
        ["labtop.yaml", "no such file|laptop.yaml"],
    ),
    Mistake(
        "an override of an unknown field",
        (*STEPTOOL, "check", "configs/laptop.yaml", "--set", "ppo.round=4"),
        ["ppo.round", "did you mean '(ppo.)?rounds'"],
    ),
    Mistake("an override without a value", (*STEPTOOL, "check", "configs/laptop.yaml", "--set", "ppo.rounds"), ["="]),
    Mistake(
        "a registry that is not there",
        (*STEPTOOL, "registry", "list", "--registry", "DIR/registry"),
        ["DIR/registry", "no registry|not"],
    ),
    Mistake(
        "a file of another kind",
        (
            *(*STEPTOOL, "view", "--trajectories", "DIR/config.yaml", "--queries", "DIR/config.yaml"),
            *("--output", "DIR/v.html"),
        ),
        ["config.yaml", "Parquet"],
        {"config.yaml": "seed: 0"},
    ),
    # the configuration
    check("broken YAML", "data: {source: desk\nppo:\n  rounds: 2", "config.yaml", "line", "YAML"),
    check("a tab in YAML", "ppo:\n\trounds: 2", "config.yaml", "line 2"),
    check("an empty configuration file that is a list", "- 1\n- 2", "mapping|fields"),
    check("a misspelt section", "rolout: {episodes: 3}", "rolout", "did you mean 'rollout'"),
    check("a misspelt field", "ppo: {learning_rat: 0.1}", "learning_rat", "did you mean 'learning_rate'"),
    check("a misspelt value", "rewards: {annotator: rule}", "rule", "did you mean 'rules'"),
    check("a field of another type", "ppo: {rounds: many}", "ppo.rounds", "integer", "many"),
    check("an infinite learning rate", "ppo: {learning_rate: .inf}", "learning_rate", "finite", "inf"),
    check("a seed that is too large", "seed: 4294967296", "seed", "4294967296"),
    check("the same folder twice", "data: {source: jsonl, paths: [logs, logs/]}", "named twice"),
    check(
        "the recordings of the tasks again",
        "data: {source: recorded, paths: [logs], recorded_answers: [logs]}",
        "recorded_answers",
        "named twice",
    ),
    check(
        "an unknown environment",
        OWN.replace("functions,", "function,"),
        "function",
        "expected one of",
        tasks_jsonl=tasks(),
    ),
    check("a judge without an endpoint", "rewards: {annotator: judge}", "base_url", "model"),
    # data
    ingest(
        "data that is not there", "data: {source: jsonl, paths: [DIR/tasks.jsonl]}", "tasks.jsonl", "does not exist"
    ),
    ingest("a source without files", "data: {source: jsonl}", "data.paths", "at least one"),
    ingest("an empty file", OWN, "data.paths", "hold none", tasks_jsonl="", tools_py=TOOLS),
    ingest("lines that are no JSON", OWN, "1 read|JSON", tasks_jsonl="How many kettles?\n", tools_py=TOOLS),
    ingest(
        "a task with a misspelt field", OWN, "instructon", tasks_jsonl=json.dumps({"instructon": "x"}), tools_py=TOOLS
    ),
    ingest(
        "a wrong tool schema",
        OWN,
        "tasks.jsonl",
        "tools",
        tasks_jsonl=tasks({"tools": [{"type": "function", "function": {"parameters": {}}}]}),
        tools_py=TOOLS,
    ),
    ingest("tools that are not there", OWN, "tools.py", "not|no ", tasks_jsonl=tasks()),
    ingest(
        "tools with a syntax error", OWN, "tools.py", "line 1|SyntaxError", tasks_jsonl=tasks(), tools_py="def count(:"
    ),
    ingest(
        "a tool without type hints",
        OWN,
        "count",
        "type hints and a docstring",
        tasks_jsonl=tasks(),
        tools_py="def count(item): ...\nTOOLS = [count]",
    ),
    ingest(
        "a reference solution with a misspelt tool",
        OWN,
        "cuont",
        "did you mean 'count'",
        tasks_jsonl=tasks(*[{"reference": {"calls": [{**CALL, "name": "cuont"}]}}], count=1),
        tools_py=TOOLS,
    ),
    ingest(
        "a solved that raises",
        OWN.replace("TOOLS", "Shop"),
        "solved",
        "KeyError",
        "anwser",
        tasks_jsonl=tasks({"reference": {"answer": "13", "calls": [CALL]}}),
        tools_py=f"{SHOP}    def solved(self, final_answer: str | None, reference: dict) -> float:\n"
        "        return float(final_answer == reference['anwser'])\n",
    ),
    # models, tools, endpoints
    rehearse("a base that is not there", SMALL + "policy: {base: ./models/none}", "models/none", "no such"),
    rehearse(
        "a base that is the wrong folder",
        SMALL + "policy: {base: DIR/model}",
        "DIR/model: no (configuration|tokenizer)",
        "README.md",
        "expected|save",
        **{"model/README.md": "x"},
    ),
    rehearse("a context that is too short", SMALL + "policy: {max_context: 64}", "max_context", "raise max_context"),
    rehearse(
        "an MCP server that is not there",
        OWN.replace("functions, paths", "mcp, paths").replace(
            "functions: 'DIR/tools.py:TOOLS'", "mcp: {command: [shopd]}"
        ),
        "shopd",
        tasks_jsonl=tasks(),
    ),
    rehearse(
        "an environment that the file lacks",
        OWN.replace("functions, paths", "'DIR/tools.py:Shelf', paths"),
        "tools.py",
        "Shelf",
        tasks_jsonl=tasks(),
        tools_py=TOOLS,
    ),
    rehearse(
        "a tool that raises when it is made",
        OWN.replace("TOOLS", "Shop") + "warm_start: {steps: 0}\n",
        "Shop",
        "ValueError|no shelf",
        tasks_jsonl=tasks(),
        tools_py=f"{SHOP}    def __init__(self):\n        raise ValueError('no shelf')\n",
    ),
    Mistake(
        "an endpoint that is down",
        (*STEPTOOL, "evaluate", "DIR/config.yaml", "--output", "DIR/out"),
        ["127.0.0.1:9", "onnect"],
        {
            "config.yaml": "data: {train_queries: 2, validation_queries: 1, heldout_queries: 1}\n"
            "evaluation:\n  policies: [{name: served, kind: endpoint, "
            f"endpoint: {{base_url: '{NOWHERE}', model: m, retries: 0}}}}]\n"
        },
    ),
    Mistake(
        "a key that is not set",
        (*STEPTOOL, "evaluate", "DIR/config.yaml", "--output", "DIR/out"),
        ["answered 401", "the key in UNSET_KEY"],
        {
            "config.yaml": "data: {train_queries: 2, validation_queries: 1, heldout_queries: 1}\n"
            "evaluation:\n  policies: [{name: served, kind: endpoint, "
            "endpoint: {base_url: 'SERVER', model: m, retries: 0, key_variable: UNSET_KEY}}]\n"
        },
    ),
    Mistake(
        "an output that is a file",
        (*STEPTOOL, "ingest", "DIR/config.yaml", "--output", "DIR/taken"),
        ["DIR/taken", "expected a folder"],
        {"config.yaml": SMALL, "taken": "x"},
    ),
    Mistake(
        "machines that are not there",
        (*STEPTOOL, "check", "configs/laptop.yaml", "--profile", "DIR/machines.yaml"),
        ["machines.yaml", "no such file|does not exist"],
    ),
    Mistake(
        "policies to compare that are none",
        (*STEPTOOL, "evaluate", "DIR/config.yaml"),
        ["evaluation.policies", "name the policies"],
        {"config.yaml": "seed: 0"},
    ),
    Mistake(
        "make register without a cluster",
        (sys.executable, "-m", "scripts.registration", "--cluster", "DIR/flyte.config"),
        ["127.0.0.1:9", "flyte.config"],
        {"flyte.config": "[platform]\nurl = 127.0.0.1:9\ninsecure = True\n"},
    ),
)


class Locked(BaseHTTPRequestHandler):
    """A server that lets nobody in."""

    def do_POST(self) -> None:
        """Refuse the request."""
        body = b'{"error": {"message": "no such key"}}'
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serve() -> Iterator[str]:
    """The address of such a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Locked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def make_mistake(mistake: Mistake, folder: Path, server: str) -> tuple[int, list[str]]:
    """Exit code and lines of what the command said on standard error."""
    for name, text in mistake.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("DIR", str(folder)).replace("SERVER", server), encoding="utf-8")
    command = [part.replace("DIR", str(folder)) for part in mistake.command]
    own_variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200", "TMPDIR": str(folder)}
    variables = {**os.environ, **own_variables, **mistake.variables}
    result = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False)
    message = result.stderr.replace(str(folder), "DIR").replace(str(ROOT), ".")
    lines = [line.strip("│ ") for line in message.splitlines() if line.strip()]
    return result.returncode, [line for line in lines if not _FRAME.match(line)]


def find_problems(mistake: Mistake, code: int, lines: Sequence[str]) -> list[str]:
    """What is wrong with a message."""
    first = lines[0] if lines else ""
    problems = [f"the first line lacks {word!r}" for word in mistake.words if not re.search(word, first)]
    if code == 0:
        problems.append("the command ends as if all were well")
    if len(lines) > _LINES:
        problems.append(f"{len(lines)} lines")
    if any("Traceback" in line for line in lines):
        problems.append("a stack")
    return problems


def main() -> int:
    """Make each mistake and print what came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of the names of the mistakes to make")
    mistakes = [mistake for mistake in MISTAKES if parser.parse_args().only in mistake.name]
    clear = 0
    for mistake in mistakes:
        with tempfile.TemporaryDirectory() as folder, serve() as server:
            code, lines = make_mistake(mistake, Path(folder), server)
        problems = find_problems(mistake, code, lines)
        clear += not problems
        print(
            f"{mistake.name}:\n  " + "\n  ".join(lines or ["(nothing)"]) + f"\n  => {'; '.join(problems) or 'clear'}",
            flush=True,
        )
    print(f"mistakes with a clear message: {clear} {len(mistakes)} {clear / max(1, len(mistakes)):.2f}")
    return clear < len(mistakes)


if __name__ == "__main__":
    sys.exit(main())
