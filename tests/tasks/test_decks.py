"""Every stage shows its page in Flyte's console."""

from pathlib import Path
from typing import Any

import flytekit
from flytekit.bin.entrypoint import setup_execution

from tasks.episodes import annotate
from tasks.ingest import ingest
from tasks.runtime.artifacts import Parquet


def test_a_stage_shows_what_came_in_and_what_went_out(round_inputs: dict[str, Any], tmp_path: Path) -> None:
    config = round_inputs["config"]
    with setup_execution(str(tmp_path)):
        execution = ingest.execute(config=config, sources="digest", for_training=True)
        annotate.execute(
            trajectories=Parquet(round_inputs["trajectories"]),
            config=config,
            queries=Parquet(str(execution.queries)),
        )
        decks = {deck.name: deck.html for deck in flytekit.current_context().decks}
    assert {"ingest", "annotate"} <= set(decks)
    assert "queries, 10 rows" in decks["ingest"] and "trajectories, 6 rows" in decks["ingest"]
    assert "trajectories, 4 rows" in decks["annotate"] and "Mean scores" in decks["annotate"]
    assert all(
        "<h1>" in html and "MB of memory" in html for name, html in decks.items() if name in ("ingest", "annotate")
    )
