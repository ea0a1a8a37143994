"""Up to 1,000,000 trajectories through ingest, annotation, viewer and export: time and peak memory of each stage.

python -m benchmarks.million [COUNT ...]

The conversations are written as JSON lines, one after the other. Each stage is a process of its own that reads the
files of the one before, so its peak memory is its own. Prints a line for each stage and count; exits with 1 if a stage
needs more than the limit, or more than 1.5 times the memory for ten times the trajectories. Growth is counted from
100,000 on: below, buffers of a fixed size fill up. A million takes nine gigabytes of disk and half an hour.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

COUNTS = (10_000, 100_000, 1_000_000)
LIMIT_GIB, GROWTH, FROM = 2.0, 1.5, 100_000
MEASURED = """
import json, os, resource, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
started = time.process_time()
{stage}
seconds, peak = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({{"rows": count(), "seconds": seconds, "kib": peak, "note": note}}))
"""
STAGES: Mapping[str, str] = {
    "ingest": """
from steptool.config import Config
from steptool.data.ingest import ingest
sizes = {f"{split}_queries": 10_000_000 for split in ("train", "validation", "heldout")}
data = {"source": "recorded", "paths": [str(folder / "conversations")], **sizes}
counts = ingest(Config.model_validate({"data": data}), folder / "data").counts
count = lambda: counts["demonstrations kept"]
note = ""
""",
    "annotate": """
import pyarrow.parquet as pq
from steptool.rewards.annotators import annotate_file, open_annotator
with open_annotator("rules") as annotator:
    data = folder / "data"
    episodes = data / "demonstrations.parquet"
    done = annotate_file(data / "queries.parquet", episodes, annotator, folder / "rewards.parquet")
count = lambda: len(pq.read_table(done, columns=["trajectory_id"])["trajectory_id"].unique())
note = f"{pq.read_metadata(done).num_rows:,} steps"
""",
    "view": """
import base64, re, zlib
from steptool.report.viewer import write_viewer
from steptool.report.viewer_pages import EpisodeFiles
data = folder / "data"
source = EpisodeFiles(data / "demonstrations.parquet", folder / "rewards.parquet")
write_viewer(folder / "pages" / "viewer.html", data / "queries.parquet", [source])
pages = list((folder / "pages").iterdir())
index = re.compile(r'id="index">([^<]*)<')
unpack = lambda page: json.loads(zlib.decompress(base64.b64decode(index.search(page.read_text("utf-8"))[1])))
count = lambda: sum(len(unpack(page)["rows"]) for page in pages)
note = f"{len(pages)} pages, {sum(page.stat().st_size for page in pages) / 1e6:,.0f} MB"
""",
    "export": """
from steptool.data.export import Form, export
data = folder / "data"
done = export(data / "demonstrations.parquet", data / "queries.parquet", Form.SFT, folder)
count = lambda: done.counts["rows written"]
note = ""
""",
}
"""What the process of each stage does, with the files of the stages before it in `folder`."""


def make_conversation(number: int) -> dict[str, object]:
    """A conversation of two calls and an answer that uses what they returned."""
    order, town = f"A{number:07d}", ("Oslo", "Lyon", "Graz", "Cork")[number % 4]
    calls = (("find_order", {"number": order}), ("track_parcel", {"parcel": f"P{number * 7 % 9_999_991:07d}"}))
    replies = ({"order": order, "status": "shipped", "parcel": calls[1][1]["parcel"]}, {"town": town, "days": 2})
    messages: list[dict[str, object]] = [
        {"role": "system", "content": "You help customers of a shop. Look things up before you answer."},
        {"role": "user", "content": f"Where is my order {order}, and when will it be here?"},
    ]
    for place, ((name, arguments), reply) in enumerate(zip(calls, replies, strict=True)):
        call = {"id": f"c{place}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        messages.append({"role": "assistant", "content": f"Next I use {name}.", "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"c{place}", "content": json.dumps(reply)})
    messages.append({"role": "assistant", "content": f"Order {order} is in {town} and will arrive in 2 days."})
    return {"messages": messages, "tools": [make_tool("find_order", "number"), make_tool("track_parcel", "parcel")]}


def make_tool(name: str, argument: str) -> dict[str, object]:
    """A tool with one argument."""
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "description": f"Call {name}", "parameters": parameters}}


def write_conversations(folder: Path, count: int) -> None:
    """Write conversations as JSON lines."""
    folder.mkdir()
    with (folder / "conversations.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(make_conversation(number)) + "\n" for number in range(count))


def run_stage(name: str, folder: Path) -> dict[str, float | str]:
    """Run a stage in a process of its own; what it printed last."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", MEASURED.format(stage=STAGES[name]), str(folder)]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float | str] = json.loads(result.stdout.splitlines()[-1])
    return figures


def run_all(count: int) -> Iterator[tuple[str, float]]:
    """Take trajectories through all stages; the peak memory of each stage in GiB."""
    with tempfile.TemporaryDirectory(prefix="million-") as name:
        folder = Path(name)
        write_conversations(folder / "conversations", count)
        for stage in STAGES:
            figures = run_stage(stage, folder)
            rows, seconds, peak = int(figures["rows"]), float(figures["seconds"]), float(figures["kib"]) / 2**20
            assert rows == count, f"{stage}: {rows} of {count} trajectories"
            note = f" ({figures['note']})" if figures["note"] else ""
            print(f"{stage} {count:,}: {peak:.2f} GiB, {seconds:.0f} s, {rows / seconds:,.0f} rows/s{note}", flush=True)
            yield stage, peak


def main() -> None:
    """Run every count and compare the peaks of each stage."""
    counts = sorted(int(argument.replace("_", "").replace(",", "")) for argument in sys.argv[1:]) or list(COUNTS)
    peaks = {count: dict(run_all(count)) for count in counts}
    flat = all(peak <= LIMIT_GIB for stages in peaks.values() for peak in stages.values())
    large = [count for count in counts if count >= FROM]
    for stage in STAGES if len(large) > 1 else ():
        growth = peaks[large[-1]][stage] / peaks[large[0]][stage]
        print(f"{stage}: {growth:.2f} times the memory for {large[-1] / large[0]:.0f} times the trajectories")
        flat = flat and growth <= GROWTH
    sys.exit(0 if flat else 1)


if __name__ == "__main__":
    main()
