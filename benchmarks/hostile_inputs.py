"""Hostile strings through every chat format, damaged files through every form of data: crashes, hangs and losses.

A string is made of the marks of all formats, of calls, and of characters that break parsers. A format crashes if it
raises; a call is invented if its name does not stand in the string. A file is a good one of its form in which some
bytes were changed, removed or repeated. Ingest crashes if it raises anything but a refusal of its own; a record is lost
if what was read is not what was kept and dropped. One string or file may take two seconds.

Prints the figures and the peak memory; ends with 1 if anything crashes, hangs, is invented or is lost.

    python benchmarks/hostile_inputs.py                                   4,000 strings, 150 files, half a minute
    python benchmarks/hostile_inputs.py --strings 100000 --files 5000     the long form (make hostile)
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from steptool.chat.call_format import Format
from steptool.chat.formats import FORMATS
from steptool.config import Config
from steptool.data.ingest import COUNTS_FILE, ingest
from steptool.data.parsing import IngestError
from steptool.records import ToolCall

LIMIT = 2.0
"""Seconds for one string or file."""
CALLS = (
    '{"name": "find", "arguments": {"id": 1}}', '{"name": "find", "parameters": {"id": 1}}', "Action: find\n",
    "Action Input: {}", "<function=find>\n<parameter=id>\n1\n</parameter>\n</function>", "to=functions.find",
    '[{"name": "find", "arguments": {}}]', '{"name": "find", "arguments": "{\\"id\\": 1}"}',
)  # fmt: skip
ODD = (
    *("\ud800", "\x00", "\u2028", "\ufeff", "\x1b[2J", "é", "\\", '"', "'", "`", "\n", "\r", " ", "{", "}", "[", "]"),
    *("NaN", "1e999", "9" * 400, "-" * 50, "<think>", "</think>", "null", "[" * 200, "{" * 200, "a" * 500, "Finish"),
)
FIND: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Find an order",
        "parameters": {"type": "object", "properties": {"id": {"type": "integer"}}},
    },
}
"""The one tool."""
MARKS = tuple(mark for form in FORMATS.values() for mark in (*form.marks, *form.observation))


def make_string(draw: random.Random) -> str:
    """A hostile string: pieces of calls and marks in any order; or a right call in which something was changed."""
    right = draw.choice(tuple(FORMATS.values())).write(ToolCall("find", {"id": draw.randrange(10)}), "")
    if draw.random() < 0.5:
        place = draw.randrange(len(right) + 1)
        return right[:place] + draw.choice(("", *ODD)) + right[place + draw.randrange(2) :]
    pieces = [draw.choice(draw.choice((MARKS, CALLS, ODD))) for _ in range(draw.randrange(1, 12))]
    text = "".join(pieces)
    for _ in range(draw.randrange(3)):
        place = draw.randrange(len(text) + 1)
        text = text[:place] + draw.choice(ODD) + text[place + draw.randrange(3) :]
    return text


def parse(form: Format, text: str, figures: Counter[str]) -> None:
    """Read a string in a format."""
    start = time.thread_time()
    try:
        turn = form.parse(text, [FIND])
    except BaseException as error:
        figures["crashes"] += 1
        print(f"{form.name}: {type(error).__name__} of {text[:80]!r}")
        return
    figures["hangs"] += time.thread_time() - start > LIMIT
    figures["calls"] += turn.call is not None
    invented = turn.call is not None and not stands_in(turn.call.name, text)
    figures["invented calls"] += invented or (turn.call is None) != bool(turn.problem)
    if invented:
        print(f"{form.name}: a call of {turn.call} in {text[:80]!r}")


def stands_in(name: str, text: str) -> bool:
    """Whether a text holds a name, as it is or as JSON writes it."""
    return any(form in text for form in (name, json.dumps(name)[1:-1], json.dumps(name, ensure_ascii=False)[1:-1]))


def run_strings(number: int, draw: random.Random) -> Counter[str]:
    """Strings through every format."""
    figures: Counter[str] = Counter()
    for _ in range(number):
        text = make_string(draw)
        for form in FORMATS.values():
            parse(form, text, figures)
    return figures


def make_conversations() -> list[dict[str, Any]]:
    """Records of the form that all kinds of files can hold."""
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"id": 7}'}}
    return [
        {
            "messages": json.dumps(
                [
                    {"role": "user", "content": f"Where is order {number}? ☔"},
                    {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": "1", "content": f"order {number} is on its way"},
                    {"role": "assistant", "content": "It is on its way."},
                ],
                ensure_ascii=False,
            ),
            "tools": json.dumps([FIND]),
        }
        for number in range(20)
    ]


def write_lines(records: list[dict[str, Any]]) -> bytes:
    """JSON lines with the fields as values."""
    objects = ({name: json.loads(value) for name, value in record.items()} for record in records)
    return "".join(json.dumps(value) + "\n" for value in objects).encode()


def write_csv(records: list[dict[str, Any]]) -> bytes:
    """A table with JSON in its cells."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["messages", "tools"])
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def write_parquet(records: list[dict[str, Any]], compression: str) -> bytes:
    """A Parquet file of several row groups."""
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), target, compression=compression, row_group_size=7)
    return target.getvalue()


def write_arrow(records: list[dict[str, Any]]) -> bytes:
    """A file in Arrow's own form."""
    target, table = io.BytesIO(), pa.Table.from_pylist(records)
    with pa.ipc.new_file(target, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return target.getvalue()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "jsonl": write_lines,
    "json": lambda records: b"[" + b",".join(write_lines(records).splitlines()) + b"]",
    "jsonl.gz": lambda records: gzip.compress(write_lines(records), mtime=0),
    "csv": write_csv,
    "parquet": lambda records: write_parquet(records, "zstd"),
    "plain.parquet": lambda records: write_parquet(records, "none"),
    "arrow": write_arrow,
}


def damage(content: bytes, draw: random.Random) -> bytes:
    """The bytes with a few changed, removed or repeated."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 50))):
        place = draw.randrange(len(data) + 1)
        kind = draw.randrange(5)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[place : place + 1] = draw.randbytes(1)
        elif kind == 2:
            del data[place : place + draw.randrange(40)]
        elif kind == 3:
            data[place:place] = data[place : place + draw.randrange(40)]
        else:
            data[place:place] = draw.choice(ODD).encode(errors="surrogatepass")
    return bytes(data[: draw.randrange(len(data))] if draw.random() < 0.1 and data else data)


def read_file(name: str, content: bytes, folder: Path, figures: Counter[str]) -> None:
    """Ingest one file beside a good one, so that a refusal of the damaged file alone is no refusal of everything."""
    data, out = folder / "data", folder / "out"
    data.mkdir(exist_ok=True)
    for former in data.iterdir():
        former.unlink()
    (data / f"damaged.{name}").write_bytes(content)
    sizes = {f"{split}_queries": 1_000 for split in ("train", "validation", "heldout")}
    config = Config.model_validate({"data": {"source": "recorded", "paths": [str(data)], **sizes}})
    start = time.process_time()
    try:
        counts = ingest(config, out, for_training=False, may_be_empty=True).counts
    except IngestError:
        figures["refused whole"] += 1
        counts = json.loads((out / COUNTS_FILE).read_text(encoding="utf-8")) if (out / COUNTS_FILE).exists() else {}
    except BaseException as error:
        figures["crashes"] += 1
        print(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        return
    figures["hangs"] += time.process_time() - start > LIMIT
    for kind in ("queries", "demonstrations"):
        settled = sum(n for key, n in counts.items() if key.startswith((f"{kind} kept", f"{kind} dropped")))
        if counts.get(f"{kind} read", 0) != settled:
            figures["lost records"] += 1
            print(f"{name}: {counts}")
    figures["records kept"] += counts.get("queries kept", 0)


def run_files(number: int, draw: random.Random) -> Counter[str]:
    """Damaged files of every form."""
    figures: Counter[str] = Counter()
    good = {name: write(make_conversations()) for name, write in WRITERS.items()}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(number):
            name = list(good)[index % len(good)]
            read_file(name, damage(good[name], draw), Path(folder), figures)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strings", type=int, default=4_000)
    parser.add_argument("--files", type=int, default=150)
    options = parser.parse_args(arguments)
    draw = random.Random(0)
    strings, files = run_strings(options.strings, draw), run_files(options.files, draw)
    print(
        f"hostile strings: {options.strings:,} through {len(FORMATS)} formats, {strings['calls']:,} calls read, "
        f"{strings['crashes']} crashes, {strings['hangs']} hangs, {strings['invented calls']} invented calls"
    )
    print(
        f"hostile files: {options.files:,} of {len(WRITERS)} forms, {files['records kept']:,} records kept, "
        f"{files['refused whole']:,} refused whole, {files['crashes']} crashes, {files['hangs']} hangs, "
        f"{files['lost records']} lost records"
    )
    print(f"hostile inputs: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB at most")
    faults = ("crashes", "hangs", "invented calls", "lost records")
    if any(figures[name] for figures in (strings, files) for name in faults):
        sys.exit(1)


if __name__ == "__main__":
    main()
