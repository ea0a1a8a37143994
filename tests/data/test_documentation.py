"""The examples of docs/bring-your-own-data.md work as they stand there."""

import re
from pathlib import Path

import yaml

from steptool.config import Config
from steptool.data.ingest import ingest
from steptool.records.episodes import read_queries

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own-data.md"


def code(kind: str, holds: str) -> str:
    """The block of code of a kind that holds a text."""
    (block,) = (b for b in re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL) if holds in b)
    return str(block)


def test_the_source_of_ones_own_reads_notes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.py").write_text(code("python", "class Notes"))
    (tmp_path / "notes").mkdir()
    for number in range(20):
        (tmp_path / "notes" / f"{number}.txt").write_text(f"Find order {number}.")
    sections = yaml.safe_load(code("yaml", "notes.py:Notes"))
    sections["tools"] = {"functions": f"{PAGE.parents[1]}/examples/functions/tools.py:Shop"}
    queries = read_queries(ingest(Config.model_validate(sections), tmp_path / "out").queries_path)
    assert {q.instruction for q in queries} == {f"Find order {number}." for number in range(20)}
    assert {q.environment for q in queries} == {"functions"} and len(queries[0].tools) > 1


def test_the_tasks_of_ones_own_are_read(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(code("", '"instruction": "Thanks'))
    sections = yaml.safe_load(code("yaml", "paths: [tasks.jsonl]"))
    sections["data"] |= {"paths": [str(tmp_path / "tasks.jsonl")], "recorded_answers": []}
    (tmp_path / "tools.py").write_text(
        'class Orders:\n    def cancel(self) -> str:\n        """Cancel the last order."""\n        return "done"\n'
    )
    sections["tools"] = {"functions": f"{tmp_path / 'tools.py'}:Orders"}
    queries = read_queries(ingest(Config.model_validate(sections), tmp_path / "out", for_training=False).queries_path)
    assert len(queries) == 4 and [q.reference.calls for q in queries] == [None, None, None, ()]
