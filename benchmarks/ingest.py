"""Reading data: 100,000 conversations against pandas, and ToolBench's files, on one core; for memory see million.py.

Prints lines `name: OURS OTHER RATIO`. Each reading is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SAMPLE, ANSWERS, INSTRUCTIONS = 100_000, 2_000, 10_000

OURS = """
import sys, time, resource
import pandas  # which pyarrow imports at its first table, whatever its size
from steptool.config import Config
from steptool.data.ingest import ingest
sizes = {f"{split}_queries": 10_000_000 for split in ("train", "validation", "heldout")}
config = Config.model_validate({"data": {"source": sys.argv[3], "paths": [sys.argv[1]], **sizes}})
start = time.process_time()
done = ingest(config, sys.argv[2])
print(done.counts["queries kept"], time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
PANDAS = """
import sys, time, resource
import pandas, pyarrow
start = time.process_time()
frame = pandas.read_json(sys.argv[1] + "/rows.jsonl", lines=True)
for column in frame.columns:
    frame[column] = frame[column].map(str)
frame.to_parquet(sys.argv[2])
print(len(frame), time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
PLAIN = """
import json, sys, time, resource
from pathlib import Path
start = time.process_time()
read = [json.loads(file.read_text("utf-8")) for file in Path(sys.argv[1]).iterdir()]
print(len(read), time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

TOOL = {
    "type": "function",
    "function": {
        "name": "find_order",
        "description": "Find an order by its number",
        "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
    },
}


def conversation(number: int) -> dict[str, object]:
    """A conversation with one call."""
    call = {"name": "find_order", "arguments": json.dumps({"number": number})}
    return {
        "messages": [
            {"role": "user", "content": f"Where is order {number}, and when will it be here?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": call}]},
            {"role": "tool", "tool_call_id": "c1", "content": json.dumps({"order": number, "status": "shipped"})},
            {"role": "assistant", "content": f"Order {number} has been shipped and will arrive on Friday."},
        ],
        "tools": [TOOL],
    }


def answer(number: int) -> dict[str, object]:
    """An answer as ToolBench records it, of its usual size: the search tree and the messages of its final path."""
    name, response = "search_for_shop", json.dumps({"error": "", "response": "word and number 17, " * 50})
    functions = [
        {
            "name": f"{verb}_for_shop",
            "description": f"To {verb} what a shop has",
            "parameters": {
                "type": "object",
                "properties": {"query": {"type": "string", "description": "", "example_value": f"lamp {number}"}},
                "required": ["query"],
                "optional": [],
            },
        }
        for verb in ("search", "list", "order", "price", "rate")
    ]
    call = {"name": name, "arguments": json.dumps({"query": f"lamp {number}"})}
    steps = [
        message
        for _ in range(6)
        for message in (
            {"role": "assistant", "content": "Next.", "function_call": call},
            {"role": "function", "name": name, "content": response},
        )
    ]
    finish = json.dumps({"return_type": "give_answer", "final_answer": "The lamp."})
    steps.append({"role": "assistant", "content": "", "function_call": {"name": "Finish", "arguments": finish}})
    leaf = {"node_type": "Action Input", "description": call["arguments"], "observation": response, "children": []}
    tree = {"node_type": "Thought", "description": "Which shop?", "children": [dict(leaf) for _ in range(12)]}
    return {
        "win": True,
        "tree": {"tree": tree},
        "answer_generation": {
            "query": f"Which shop has lamp {number}?",
            "function": functions,
            "train_messages": [steps[: 2 * n] for n in range(1, 6)] + [steps],
        },
    }


def instruction(number: int) -> dict[str, object]:
    """A task as ToolBench writes it, of its usual size."""
    names = ("town", "days", "language", "units")
    parameters = [{"name": n, "type": "STRING", "description": f"The {n} that is meant", "default": ""} for n in names]
    apis = [
        {
            "category_name": "Weather",
            "tool_name": f"Sky Watch {number % 50}",
            "api_name": f"{what} of day {number % 70}",
            "api_description": "What the sky over a town will look like, hour by hour, with all its warnings. " * 3,
            "required_parameters": parameters[:1],
            "optional_parameters": parameters[1:],
            "method": "GET",
            "template_response": {"hours": [{"hour": "int", "sky": "str", "rain": "float"}] * 3},
        }
        for what in ("Forecast", "Warnings", "Wind", "Tides", "Air")
    ]
    relevant = [[api["tool_name"], api["api_name"]] for api in apis[:2]]
    return {"query": f"Will it rain on day {number}?", "query_id": number, "api_list": apis, "relevant APIs": relevant}


def measure(program: str, *arguments: Path | str) -> tuple[int, float, float]:
    """Rows, seconds of work and peak memory in GiB of a program."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    rows, seconds, kilobytes = result.stdout.split()[-3:]
    return int(rows), float(seconds), int(kilobytes) / 2**20


def write_conversations(folder: Path, rows: int) -> float:
    """Write conversations as JSON lines; their size in MB."""
    folder.mkdir()
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(conversation(n)) + "\n" for n in range(rows))
    return (folder / "rows.jsonl").stat().st_size / 1e6


def write_answers(folder: Path) -> float:
    """Write answers, a file each; their size in MB."""
    folder.mkdir()
    for number in range(ANSWERS):
        (folder / f"{number}.json").write_text(json.dumps(answer(number)), encoding="utf-8")
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


def write_instructions(folder: Path) -> float:
    """Write files of instructions; their size in MB."""
    folder.mkdir()
    for part in range(10):
        rows = [instruction(number) for number in range(part, INSTRUCTIONS, 10)]
        (folder / f"G{part}.json").write_text(json.dumps(rows, indent=4), encoding="utf-8")
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


def compare(work: Path) -> None:
    """A sample against pandas, and ToolBench's files against reading their JSON alone."""
    write_conversations(work / "sample", SAMPLE)
    rows, seconds, memory = measure(OURS, work / "sample", work / "out", "recorded")
    other_rows, other_seconds, other_memory = measure(PANDAS, work / "sample", work / "pandas.parquet")
    ours, other = rows / seconds, other_rows / other_seconds
    print(f"ingest conversations rows/s (pandas reads, checks nothing): {ours:.0f} {other:.0f} {ours / other:.2f}")
    print(f"ingest {SAMPLE} conversations GiB (pandas): {memory:.2f} {other_memory:.2f} {memory / other_memory:.2f}")
    for name, source, write in (
        ("answers", "recorded", write_answers),
        ("instructions", "toolbench", write_instructions),
    ):
        size, folder = write(work / name), work / name
        ours, other = size / measure(OURS, folder, work / "out", source)[1], size / measure(PLAIN, folder)[1]
        print(f"ingest ToolBench {name} MB/s (json.loads alone): {ours:.1f} {other:.1f} {ours / other:.2f}")


def main() -> None:
    """Everything in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        compare(Path(folder))


if __name__ == "__main__":
    main()
