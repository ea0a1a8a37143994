"""Pods have no files of their own: what a configuration names may lie in a store."""

import json
from pathlib import Path
from typing import Any

import fsspec

from steptool.config import Config
from steptool.records.episodes import read_queries
from tasks.ingest import fingerprint, ingest
from tasks.training import prepare


def test_data_and_a_base_model_from_a_store_are_those_from_here(
    bucket: str, round_inputs: dict[str, Any], tmp_path: Path
) -> None:
    tool = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}
    tasks = [json.dumps({"instruction": f"look at {n}", "tools": [tool]}) for n in range(12)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(tasks))
    store = fsspec.filesystem("s3")
    store.put(round_inputs["policy"], f"{bucket}/base", recursive=True)
    store.put_file(str(tmp_path / "tasks.jsonl"), f"{bucket}/data/tasks.jsonl")
    runs = []
    for place, base in ((str(tmp_path), round_inputs["policy"]), (f"{bucket}/data", f"{bucket}/base")):
        sections = {"data": {"source": "jsonl", "paths": [place]}, "policy": {"base": base, "max_context": 1600}}
        sections["warm_start"] = {"steps": 0}
        config = Config.model_validate(sections)
        digest = fingerprint(config=config, output="", for_training=False)
        result = ingest(config=config, sources=digest, for_training=False)
        names = ("queries", "demonstrations", "quarantine")
        files = {name: getattr(result, name) for name in names}
        runs.append((digest, read_queries(str(result.queries)), prepare(config=config, **files)))
    (here, queries, near), (there, same, far) = runs
    assert queries == same and len(queries) == 12 and here != there
    weights = [(Path(str(prepared.model)) / "model.safetensors").read_bytes() for prepared in (near, far)]
    assert weights[0] == weights[1]
    assert f"{bucket}/base" in (Path(str(far.model)) / "README.md").read_text()
