from steptool.artifacts.metrics import count_metrics, counts_of, total_counts, update_metrics
from steptool.records import Cost, Metric


def test_figures_of_optimizer_steps_are_numbered_from_0() -> None:
    assert update_metrics([{"loss": 2.5, "kl": 0}, {"loss": 2.0}], "ppo", 3) == [
        Metric("ppo", 3, 0, "loss", 2.5),
        Metric("ppo", 3, 0, "kl", 0.0),
        Metric("ppo", 3, 1, "loss", 2.0),
    ]


def test_counts_come_back_flat_and_apart_from_metrics_of_training() -> None:
    counts = count_metrics("warm_start", {"kept": {"train": 3, "heldout": 2}, "dropped": 1})
    metrics = [*counts, Metric("warm_start", -1, 0, "loss", 2.5)]
    assert counts_of(metrics, "warm_start") == {"kept/train": 3, "kept/heldout": 2, "dropped": 1}
    assert counts_of(metrics, "ingest") == {}


def test_counts_of_shards_are_summed_by_name() -> None:
    shards = [Cost("annotate", 0, counts={"requests": 2, "money": 0.5}), Cost("annotate", 0, counts={"requests": 3})]
    assert total_counts([*shards, Cost("ppo", 0)]) == {"requests": 5, "money": 0.5}
