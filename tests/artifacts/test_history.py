from pathlib import Path

from steptool.artifacts.history import count_metrics, counts_of, extend
from steptool.contracts.tables import read_costs, read_records
from steptool.records import Cost, Metric

LOSS = Metric("warm_start", -1, 0, "loss", 2.5)


def test_a_history_grows_by_rows_and_costs(tmp_path: Path) -> None:
    first = extend(None, count_metrics("ingest", {"queries": 3}), [Cost("ingest", seconds=1.0)], tmp_path / "a.parquet")
    second = extend(first, [LOSS], [Cost("warm_start", seconds=2.0)], tmp_path / "b.parquet")
    assert [m.name for m in read_records(second, Metric)] == ["queries", "loss"]
    assert [(c.stage, c.seconds) for c in read_costs(second)] == [("ingest", 1.0), ("warm_start", 2.0)]
    assert len(read_records(first, Metric)) == 1  # the file of the stage before is untouched


def test_counts_come_back_flat_and_apart_from_metrics_of_training() -> None:
    rows = [*count_metrics("warm_start", {"kept": {"train": 3, "heldout": 2}, "dropped": 1}), LOSS]
    assert counts_of(rows, "warm_start") == {"kept/train": 3, "kept/heldout": 2, "dropped": 1}
    assert counts_of(rows, "ingest") == {}
