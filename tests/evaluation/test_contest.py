"""The program behind `make seeds`: every method and size is a configuration, and its table says what the rows say."""

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from benchmarks.contest import merge
from benchmarks.seeds import METHODS, SIZES, picture, read_method, results, table
from benchmarks.tuning import SIZE, measure, read_trials
from evaluation_rows import make_evaluation
from steptool.config import Config
from steptool.records import Evaluation
from steptool.records.tables import write_records

CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_file_of_methods_takes_part() -> None:
    assert sorted(METHODS) == sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_every_size(method: str, size: str) -> None:
    base, own = (
        yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
        for name in ("laptop.yaml", f"methods/{method}.yaml")
    )
    config = Config.model_validate(merge(merge(base, SIZES[size].overlay), own))
    assert config.rollout.episodes >= config.rollout.samples_per_query * config.rollout.shards


def write_run(folder: Path, shares: dict[str, float]) -> None:
    """Evaluations of a run in which each model solves this share of 40 tasks, greedily and with each of two tries."""
    rows = [
        make_evaluation(
            f"q{i:02d}", float(i < share * 40), model=model, decoding=decoding, repeat=repeat, tier="single",
            calls=4, invalid_calls=1, redundant_calls=2 * repeat,
        )
        for model, share in shares.items()
        for decoding, repeats in (("greedy", 1), ("sampled", 2))
        for repeat in range(repeats)
        for i in range(40)
    ]  # fmt: skip
    folder.mkdir(exist_ok=True)
    write_records(folder / "evaluations.parquet", rows, Evaluation)


def test_the_table_by_hand(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"start-{seed}", {"warm_start": 0.5})
        write_run(tmp_path / f"steptool-{seed}", {"steptool": 0.9 + 0.05 * seed})
        write_run(tmp_path / f"rft-{seed}", {"rft": 0.5})
    tables = results(tmp_path, [0, 1], ["steptool", "rft"], draws=500)
    assert list(tables) == ["all greedy", "all sampled"]
    greedy, sampled = (tables[f"all {decoding}"] for decoding in ("greedy", "sampled"))
    assert greedy["methods"]["steptool"]["by_seed"] == pytest.approx([0.9, 0.95])
    assert greedy["methods"]["steptool"]["pass_rate"][0] == pytest.approx(0.925)
    assert greedy["methods"]["rft"]["invalid_call_rate"][0] == 0.25
    assert sampled["methods"]["rft"]["redundant_call_rate"][0] == 0.25  # 0 and 2 of 4 calls in two tries
    assert sampled["methods"]["rft"]["pass_at_k"] == {1: 0.5, 2: 0.5}
    by_other = {c["b"]: c for c in greedy["comparisons"]}
    assert by_other.keys() == {"warm_start", "rft"}
    assert by_other["rft"]["difference"]["mean"] == pytest.approx(0.425)
    assert (by_other["rft"]["family"], by_other["rft"]["shown"]) == (4, True)
    low, high = by_other["rft"]["over_seeds"]
    assert low < 0.4 and high > 0.45  # seeds differ by .05, and tasks are drawn as well
    text = table(tables)
    assert "steptool - rft" in text and "corrected [" in text and "over seeds too [" in text and ", shown" in text


def test_every_method_has_as_many_trials_and_each_is_a_configuration() -> None:
    laptop = yaml.safe_load((CONFIGS / "laptop.yaml").read_text(encoding="utf-8"))
    trials = read_trials(kinds=("trials",))
    assert len({trial.folder for trial in read_trials()}) == len(read_trials())
    assert Counter(trial.method for trial in trials) == dict.fromkeys(METHODS, 5)
    for trial in read_trials():
        Config.model_validate(merge(merge(laptop, SIZE), trial.overlay))


def test_the_settings_of_every_method_were_a_trial_of_its_own() -> None:
    trials = read_trials(kinds=("trials",))
    for method in METHODS:
        assert read_method(method) in [trial.overlay for trial in trials if trial.method == method]


def test_a_trial_counts_by_both_ways_of_decoding() -> None:
    """Greedily 1 of 2 tasks, sampled 1 of 4 tries; 2 of 12 calls repeat an earlier one."""
    rows = [
        make_evaluation("a", 1.0, tier="single", calls=2),
        make_evaluation("b", 0.0, tier="long", calls=2, redundant_calls=2),
        *(
            make_evaluation(query, verdict, tier=tier, decoding="sampled", repeat=repeat, calls=2)
            for query, tier, verdicts in (("a", "single", (1.0, 0.0)), ("b", "long", (0.0, 0.0)))
            for repeat, verdict in enumerate(verdicts)
        ),
    ]
    figures = measure(rows)
    assert figures["mean"] == (0.5 + 0.25) / 2
    assert (figures["single greedy"], figures["long greedy"], figures["single sampled"]) == (1.0, 0.0, 0.5)
    assert figures["redundant"] == pytest.approx(2 / 12)


def test_the_picture_has_a_bar_for_each_model_and_way_of_decoding(tmp_path: Path) -> None:
    write_run(tmp_path / "start-0", {"warm_start": 0.5})
    write_run(tmp_path / "steptool-0", {"steptool": 0.9})
    image = ElementTree.fromstring(picture(results(tmp_path, [0], ["steptool"], draws=50), "steptool"))
    bars = [e for e in image.iter("{http://www.w3.org/2000/svg}rect") if "bar" in e.get("class", "")]
    assert [bar.get("class") for bar in bars] == ["bar other", "bar ours"] * 2
    widths = [float(bar.get("width", 0)) for bar in bars[:2]]
    assert widths[1] / widths[0] == pytest.approx(1.8, rel=0.01)
