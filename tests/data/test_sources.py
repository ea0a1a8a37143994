"""Sources by name: ours and the user's own."""

import json
from collections import Counter
from pathlib import Path

import pytest

from steptool.config import Config
from steptool.config.base import ConfigError
from steptool.config.tasks import SOURCE_NAMES
from steptool.data.ingest import fingerprint_sources, ingest, list_files
from steptool.data.parsing import IngestError
from steptool.data.sources import SOURCES, Source, open_source
from steptool.environments.desk.tasks import draw_query
from steptool.records import Trajectory
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records

OWN = """
from steptool.data.parsing import Record, UnusableError
from steptool.data.recordings.recording import RecordedTurn, make_recording
from steptool.data.sources import Source
from steptool.records import Query


class Notes(Source):
    suffixes = (".note",)

    def read_queries(self, inputs):
        for file in inputs.files(self.suffixes):
            text = file.read_text()
            if not text.strip():
                inputs.log.refuse("queries", Record(file, None, text), UnusableError("an empty note", "no text"))
                continue
            yield Query(file.stem, "", inputs.catalog.environment(), text, inputs.catalog.tools())

    def read_recordings(self, inputs):
        file = next(inputs.files(self.suffixes))
        turn = RecordedTurn("", "Finish", '{"return_type": "give_answer", "final_answer": "Done."}', None)
        yield make_recording(Record(file, None, None), file.read_text(), inputs.catalog.tools(), [turn])


class NoSource:
    suffixes = (".note",)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "code" / "notes.py"
    file.parent.mkdir()
    file.write_text(OWN)
    return file


def config(own: Path, notes: Path, name: str = "Notes") -> Config:
    sizes = {f"{split}_queries": 100 for split in ("train", "validation", "heldout")}
    data = {"source": f"{own}:{name}", "paths": [str(notes)], "environment": "desk", **sizes}
    return Config.model_validate({"data": data})


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_of_the_table_is_one(name: str) -> None:
    if name == "bfcl":
        pytest.importorskip("bfcl_eval", reason="BFCL's tools are not installed: make bfcl")
    assert isinstance(open_source(name), Source)


def test_the_configuration_knows_the_names_of_the_table() -> None:
    assert set(SOURCE_NAMES) == set(SOURCES)
    with pytest.raises(ConfigError, match=r"data\.source.*expected one of desk.*package\.module:Class.*'dest'"):
        Config.model_validate({"data": {"source": "dest"}})


def test_a_source_of_the_users_own_takes_part_like_ours(own: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(40):
        (notes / f"n{number:02}.note").write_text(f"Cancel order {number}.")
    (notes / "without.note").write_text(" ")
    result = ingest(config(own, notes), tmp_path / "out")
    queries = read_queries(result.queries_path)
    assert len(queries) == 40 and {q.environment for q in queries} == {"desk"}
    assert len(Counter(q.split for q in queries)) == 3
    assert result.counts == {
        "queries read": 41, "queries kept": 40, "queries dropped: an empty note": 1,
        "demonstrations read": 1, "demonstrations kept": 1,
    }  # fmt: skip
    (demonstration,) = read_records(result.demonstrations_path, Trajectory)
    assert (demonstration.query_id, demonstration.final_answer) == ("n00", "Done.")
    (refusal,) = map(json.loads, result.quarantine_path.read_text().splitlines())
    assert refusal["file"].endswith("without.note") and refusal["reason"] == "an empty note"


def test_the_fingerprint_of_a_run_covers_the_files_and_the_program_of_an_own_source(own: Path, tmp_path: Path) -> None:
    note = tmp_path / "a.note"
    note.write_text("Who?")
    settings = config(own, tmp_path)
    assert [file.place for file in list_files(settings.data)] == [str(note)]
    first = fingerprint_sources(settings)
    note.write_text("Why?")
    second = fingerprint_sources(settings)
    own.write_text(OWN + "\n")
    assert len({first, second, fingerprint_sources(settings)}) == 3


def test_a_class_that_is_no_source_is_refused(own: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.source: expected a subclass of .*Source, got .*NoSource"):
        ingest(config(own, tmp_path, "NoSource"), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"data\.source: .* has nothing named 'Missing'"):
        ingest(config(own, tmp_path, "Missing"), tmp_path / "out")


def test_reference_solutions_of_an_own_source_become_demonstrations(tmp_path: Path) -> None:
    (tmp_path / "desk_tasks.py").write_text(
        "from steptool.data.sources import Source\n"
        "from steptool.environments.desk.tasks import draw_query\n\n\n"
        "class Few(Source):\n"
        "    def read_queries(self, inputs):\n"
        "        for number in range(3):\n"
        "            yield draw_query('train', 'single', f'few.{number}')\n"
    )
    settings = Config.model_validate({"data": {"source": f"{tmp_path / 'desk_tasks.py'}:Few"}})
    result = ingest(settings, tmp_path / "out", for_training=False)
    expected = [draw_query("train", "single", f"few.{number}").query_id for number in range(3)]
    demonstrations = read_records(result.demonstrations_path, Trajectory)
    assert [d.query_id for d in demonstrations] == expected and all(d.solved == 1.0 for d in demonstrations)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("raise KeyError('shelf')", r"failed: KeyError: 'shelf' \(shelf\.py, line 6\)"),
        ("yield 5", "yields 5; expected a Query"),
    ],
)
def test_a_source_of_ones_own_that_fails_is_named_with_the_line(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "shelf.py").write_text(
        "from steptool.data.sources import Source\n\n\n"
        "class Shelf(Source):\n"
        "    def read_queries(self, inputs):\n"
        f"        {line}\n"
    )
    settings = Config.model_validate({"data": {"source": f"{tmp_path / 'shelf.py'}:Shelf"}})
    with pytest.raises(IngestError, match=rf"^data\.source: '.*shelf\.py:Shelf' {complaint}"):
        ingest(settings, tmp_path / "out", for_training=False)


def test_an_environment_that_fails_to_list_its_tasks_is_named_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "world.py").write_text(
        "from steptool.environments.base import Environment\n\n\n"
        "class World(Environment):\n"
        "    name = 'world'\n\n"
        "    def reset(self, query): ...\n\n"
        "    def tasks(self):\n"
        "        return {}['tasks']\n"
    )
    data = {"source": "environment", "environment": f"{tmp_path / 'world.py'}:World"}
    with pytest.raises(IngestError, match=r"cannot list its tasks: KeyError: 'tasks' \(world\.py, line 10\)"):
        ingest(Config.model_validate({"data": data}), tmp_path / "out", for_training=False)
