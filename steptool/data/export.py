"""Writes trajectories as OpenAI's messages, and as data that TRL's trainers for SFT and preferences take.

Cells of CSV files are written so that no spreadsheet runs them as formulas.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from sqlite3 import Connection
from typing import Annotated, Any

from steptool.chat.call_format import offers_finish, to_text_answers
from steptool.records import Message, Query, Trajectory
from steptool.records.columns import JSON_LIST, Row, Stored, contract, decode_value
from steptool.records.tables import iterate_rows, open_scratch_folder, write_rows, write_whole
from steptool.storage.sqlite import open_scratch_database

UNSURE = 0.5
"""A verdict above it is solved, one below it is not."""
_SUSPECT = re.compile(r"NaN|Infinity|\d[eE]\+?\d{3}")
"""What a text holds wherever its JSON holds a number beyond the range of floats."""
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""How a cell begins that a spreadsheet runs as a formula; or one that `quote_formula` has made from such a cell."""
_COLUMNS = ("trajectory_id", "query_id", "messages", "solved")
_TABLES = """
CREATE TABLE queries (query_id TEXT PRIMARY KEY, tools TEXT NOT NULL);
CREATE TABLE episodes (row INTEGER PRIMARY KEY, query_id TEXT NOT NULL, good INTEGER NOT NULL, sample INTEGER NOT NULL,
    trajectory_id TEXT NOT NULL, messages TEXT NOT NULL);
CREATE INDEX partners ON episodes (query_id, good, sample);
"""
_PAIRS = """
SELECT good.trajectory_id, bad.trajectory_id, good.messages, bad.messages, tools FROM episodes good
    CROSS JOIN episodes bad ON bad.query_id = good.query_id AND NOT bad.good AND bad.sample = good.sample
    CROSS JOIN queries ON queries.query_id = good.query_id WHERE good.good ORDER BY good.row
"""


class Form(StrEnum):
    """The forms in which trajectories can be written."""

    MESSAGES = "messages"
    """messages.jsonl: a conversation in OpenAI's form per line, with `tools` and the verdict `solved`."""
    SFT = "sft"
    """sft.parquet: `messages` and `tools` (as JSON text); of trajectories that are not known to have failed."""
    PREFERENCE = "preference"
    """preference.parquet: `prompt`, `chosen`, `rejected` and `tools` (as JSON text); of pairs of a solved and an
    unsolved trajectory of one query."""


Documents = Annotated[Sequence[str], Stored(JSON_LIST)]
"""Messages as JSON text, stored in Arrow's JSON type."""


@contract("sft", version=1)
@dataclass(frozen=True)
class SftExample:
    """A conversation to learn from."""

    messages: Annotated[Documents, "OpenAI messages"]
    tools: Annotated[str, "JSON array of OpenAI tool schemas"]
    trajectory_id: Annotated[str, "Episode that it was made from"]


@contract("preference", version=1)
@dataclass(frozen=True)
class PreferencePair:
    """A solved and an unsolved conversation with the same beginning."""

    prompt: Annotated[Documents, "OpenAI messages until the first one of the assistant"]
    chosen: Annotated[Documents, "The rest of the solved conversation"]
    rejected: Annotated[Documents, "The rest of the unsolved conversation"]
    tools: Annotated[str, "JSON array of OpenAI tool schemas"]
    chosen_trajectory_id: Annotated[str, "Episode that `chosen` was made from"]
    rejected_trajectory_id: Annotated[str, "Episode that `rejected` was made from"]


@dataclass(frozen=True)
class Exported:
    """What was written. `counts` holds "trajectories read", "rows written" and "left out: <reason>"."""

    path: Path
    counts: dict[str, int]


Place = str | os.PathLike[str]


def export(trajectories: Place | Sequence[Place], queries: Place, form: Form, out_dir: Place) -> Exported:
    """Write the trajectories of a file, or of several files together, in a form.

    `queries` is the file of the queries that they answer. All files are streamed. The new file appears whole or not at
    all. Raises ValueError naming a trajectory whose query is not among the queries, and where no row is left to write,
    since readers refuse an empty file.
    """
    files = [trajectories] if isinstance(trajectories, str | os.PathLike) else trajectories
    out, counts = Path(out_dir).absolute(), Counter[str]()
    out.mkdir(parents=True, exist_ok=True)
    with (
        open_scratch_folder(out, "export") as folder,
        closing(open_scratch_database(folder, _TABLES)) as database,
    ):
        tools = ((row["query_id"], row["tools"]) for row in iterate_rows(queries, Query))
        database.executemany("INSERT INTO queries VALUES (?, ?)", tools)
        rows = _FORMS[form](_iterate_episodes(files, counts), database, counts)
        path = _WRITERS[form](out, _count_rows(rows, counts, form))
    return Exported(path, dict(counts))


def _iterate_episodes(files: Iterable[Place], counts: Counter[str]) -> Iterator[Row]:
    for file in files:
        for row in iterate_rows(file, Trajectory, columns=_COLUMNS):
            counts["trajectories read"] += 1
            yield row


def _count_rows(rows: Iterable[Row], counts: Counter[str], form: Form) -> Iterator[Row]:
    """The rows. Raises ValueError at the end if no row was made."""
    for row in rows:
        counts["rows written"] += 1
        yield row
    if not counts["rows written"]:
        numbers = ", ".join(f"{name} {number}" for name, number in counts.items() if number)
        advice = (
            "; a pair needs a solved and an unsolved trajectory of one query: give several files of the same queries, "
            "such as greedy and sampled ones, or those of several rounds"
        )
        raise ValueError(f"nothing to write as {form} ({numbers}){advice if form is Form.PREFERENCE else ''}")


def _find_tools(database: Connection, episode: Row) -> str:
    row = database.execute("SELECT tools FROM queries WHERE query_id = ?", (episode["query_id"],)).fetchone()
    if row is None:
        raise ValueError(
            f"trajectory '{episode['trajectory_id']}' answers the query '{episode['query_id']}', which is not in the "
            "file of queries; give the queries that the trajectories were made from"
        )
    return str(row[0])


def _make_conversations(episodes: Iterable[Row], database: Connection, counts: Counter[str]) -> Iterator[Row]:
    for episode in episodes:
        tools = _find_tools(database, episode)
        if _is_finite(episode["messages"], tools, counts):
            solved, messages = episode["solved"], _read_messages(episode["messages"], tools)
            yield {
                "id": episode["trajectory_id"],
                "query_id": episode["query_id"],
                "solved": solved if solved is not None and math.isfinite(solved) else None,
                "messages": [_write_arguments_as_text(message) for message in messages],
                "tools": list(decode_value(Query, "tools", tools)),
            }


def _make_sft_examples(episodes: Iterable[Row], database: Connection, counts: Counter[str]) -> Iterator[Row]:
    for episode in episodes:
        if episode["solved"] is not None and episode["solved"] < UNSURE:
            counts["left out: unsolved"] += 1
            continue
        tools = _find_tools(database, episode)
        if _is_finite(episode["messages"], tools, counts):
            yield {
                "messages": _write_as_texts(_read_messages(episode["messages"], tools)),
                "tools": tools,
                "trajectory_id": episode["trajectory_id"],
            }


def _make_preference_pairs(episodes: Iterable[Row], database: Connection, counts: Counter[str]) -> Iterator[Row]:
    """The first solved trajectory of a query with its first unsolved one, and so on; each is used once at most."""
    samples = Counter[tuple[str, bool]]()
    for episode in episodes:
        solved = episode["solved"]
        if solved is None or solved == UNSURE:
            counts["left out: no clear verdict"] += 1
            continue
        if not _is_finite(episode["messages"], _find_tools(database, episode), counts):
            continue
        side = (episode["query_id"], solved > UNSURE)
        values = (*side, samples[side], episode["trajectory_id"], episode["messages"])
        database.execute("INSERT INTO episodes VALUES (NULL, ?, ?, ?, ?, ?)", values)
        samples[side] += 1
    pairs = sum(min(number, samples[query_id, False]) for (query_id, good), number in list(samples.items()) if good)
    if alone := samples.total() - 2 * pairs:
        counts["left out: no partner"] += alone
    for chosen_id, rejected_id, chosen, rejected, tools in database.execute(_PAIRS):
        good, bad = _read_messages(chosen, tools), _read_messages(rejected, tools)
        begin = next((n for n, message in enumerate(good) if message["role"] == "assistant"), len(good))
        if good[:begin] != bad[:begin] or begin == len(good) or begin == len(bad):
            counts["left out: partners with different beginnings"] += 2
            continue
        yield {
            "prompt": _write_as_texts(good[:begin]),
            "chosen": _write_as_texts(good[begin:]),
            "rejected": _write_as_texts(bad[begin:]),
            "tools": tools,
            "chosen_trajectory_id": chosen_id,
            "rejected_trajectory_id": rejected_id,
        }


def _read_messages(text: str, tools: str) -> list[Message]:
    """The messages with ids. Without the tool Finish, a task ends with an answer in text."""
    messages: list[Message] = decode_value(Trajectory, "messages", text)
    return with_ids(messages if offers_finish(decode_value(Query, "tools", tools)) else to_text_answers(messages))


def _is_finite(messages: str, tools: str, counts: Counter[str]) -> bool:
    """Whether JSON can write what two texts hold; where it cannot, the trajectory is counted as left out."""
    try:
        for text in (messages, tools):
            if _SUSPECT.search(text):
                json.dumps(json.loads(text), allow_nan=False)
    except (ValueError, RecursionError):
        counts["left out: a number that JSON cannot write"] += 1
        return False
    return True


def with_ids(messages: Sequence[Message]) -> list[Message]:
    """Messages in OpenAI's form with ids that tie each answer to its call."""
    identified_messages: list[Message] = []
    call_id, number = None, 0
    for message in messages:
        if message["role"] == "assistant":
            calls = [{"id": f"call{number + n:05d}", **call} for n, call in enumerate(message.get("tool_calls") or [])]
            number += len(calls)
            call_id = calls[0]["id"] if calls else None
            identified_messages.append({**message, "tool_calls": calls} if calls else message)
        elif message["role"] == "tool" and call_id:
            identified_messages.append({**message, "tool_call_id": call_id})
        else:
            identified_messages.append(message)
    return identified_messages


def _write_arguments_as_text(message: Message) -> Message:
    """The message with its calls' arguments as JSON text, as OpenAI writes them."""
    if not message.get("tool_calls"):
        return message
    calls = [{**call, "function": _write_function(**call["function"])} for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


def _write_function(name: str, arguments: Any) -> dict[str, str]:
    return {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False, allow_nan=False)}


def _write_as_texts(messages: Iterable[Message]) -> list[str]:
    return [json.dumps(message, ensure_ascii=False, allow_nan=False) for message in messages]


def _write_lines(out: Path, rows: Iterable[Row]) -> Path:
    target = out / "messages.jsonl"
    with write_whole(target) as partial, partial.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return target


_FORMS: dict[Form, Callable[[Iterable[Row], Connection, Counter[str]], Iterator[Row]]] = {
    Form.MESSAGES: _make_conversations,
    Form.SFT: _make_sft_examples,
    Form.PREFERENCE: _make_preference_pairs,
}
_WRITERS: dict[Form, Callable[[Path, Iterable[Row]], Path]] = {
    Form.MESSAGES: _write_lines,
    Form.SFT: lambda out, rows: write_rows(out / "sft.parquet", rows, SftExample),
    Form.PREFERENCE: lambda out, rows: write_rows(out / "preference.parquet", rows, PreferencePair),
}


def quote_formula(cell: Any) -> Any:
    """A cell of a CSV file. An apostrophe goes before text that a spreadsheet would run as a formula."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def unquote_formula(cell: Any) -> Any:
    """The inverse of `quote_formula`."""
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") and _FORMULA.match(cell[1:]) else cell
