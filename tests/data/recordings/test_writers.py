"""Records as some thirty writers make them: each is read as what it is, or set aside with a reason that fits.

`writers.jsonl` holds for each writer one record in its form, written for this test, and the reason if it is set aside.
"""

import json
from pathlib import Path

import pytest

from steptool.config import Config
from steptool.data.ingest import ingest
from steptool.records import Query, Trajectory
from steptool.records.tables import read_records

WRITERS = [
    json.loads(line) for line in Path(__file__).with_name("writers.jsonl").read_text(encoding="utf-8").splitlines()
]
READ = [w for w in WRITERS if not w["reason"]]
SET_ASIDE = [w for w in WRITERS if w["reason"]]


def read(record: object, folder: Path) -> tuple[list[Query], list[Trajectory], list[dict[str, str]]]:
    """Queries, demonstrations and what was set aside of one record."""
    (folder / "log.jsonl").write_text(json.dumps(record), encoding="utf-8")
    config = Config.model_validate({"data": {"source": "recorded", "paths": [str(folder / "log.jsonl")]}})
    result = ingest(config, folder / "out", for_training=False, may_be_empty=True)
    aside = [json.loads(line) for line in result.quarantine_path.read_text(encoding="utf-8").splitlines()]
    return read_records(result.queries_path, Query), read_records(result.demonstrations_path, Trajectory), aside


@pytest.mark.parametrize("writer", READ, ids=lambda writer: writer["writer"])
def test_a_record_is_read_as_what_it_is(writer, tmp_path):
    (query,), (trajectory,), aside = read(writer["record"], tmp_path)
    assert aside == [] and query.instruction.endswith("Weather in Oslo?")
    assert [tool["function"]["name"] for tool in query.tools] == ["get_weather", "Finish"]
    assert list(query.tools[0]["function"]["parameters"]["properties"]) == ["city"]
    call, finish = trajectory.steps
    failed = writer["writer"] == "anthropic_error"
    assert call.call is not None and (call.call.name, call.call.arguments) == ("get_weather", {"city": "Oslo"})
    assert str(call.status) == ("tool_error" if failed else "ok")
    assert call.observation in (("boom",) if failed else ('{"temp": 17}', "17"))
    assert str(finish.status) == "finish"
    assert trajectory.final_answer == ("It failed." if failed else "It is 17 degrees.")


@pytest.mark.parametrize("writer", SET_ASIDE, ids=lambda writer: writer["writer"])
def test_a_record_of_another_form_is_set_aside_with_the_reason(writer, tmp_path):
    queries, trajectories, aside = read(writer["record"], tmp_path)
    assert (queries, trajectories) == ([], [])
    assert [entry["reason"] for entry in aside] == [writer["reason"]]
