import pytest

from benchmarks.over_seeds import compare_seeded, join, mean_pass_at_k, seed_interval
from evaluation_rows import make_evaluation
from steptool.evaluation.compare import Difference, paired_bootstrap
from steptool.records import Evaluation


def seeded(*by_seed: dict[str, list[float]]) -> dict[int, list[Evaluation]]:
    """Rows by seed from {query: verdicts of its tries}."""
    return {
        seed: [
            make_evaluation(query, verdict, repeat=repeat, decoding="sampled")
            for query, verdicts in own.items()
            for repeat, verdict in enumerate(verdicts)
        ]
        for seed, own in enumerate(by_seed)
    }


ALL_SOLVED, NONE_SOLVED = {f"q{i}": [1.0] for i in range(20)}, {f"q{i}": [0.0] for i in range(20)}


def test_a_gain_that_one_seed_alone_has_is_sure_for_tasks_and_not_for_seeds() -> None:
    """Seed 0 gains on every task and seed 1 on none: two draws of the seeds give 0, 1/2 or 1."""
    a, b = seeded(ALL_SOLVED, NONE_SOLVED), seeded(NONE_SOLVED, NONE_SOLVED)
    assert paired_bootstrap(join(a), join(b), 500) == Difference(0.5, 0.5, 0.5, 20)
    assert seed_interval(a, b, draws=500) == (0.0, 1.0)


def test_seeds_that_agree_leave_the_interval_of_the_tasks() -> None:
    """A gain on 50 of 200 tasks with every seed: deviation sqrt(.25 * .75 / 200) = .0306, 1.96 of them are .06."""
    some, none = ({f"q{i}": [float(i < count)] for i in range(200)} for count in (50, 0))
    low, high = seed_interval(seeded(*[some] * 3), seeded(*[none] * 3))
    assert (low, high) == pytest.approx((0.19, 0.31), abs=0.01)


def test_both_sides_need_the_same_seeds() -> None:
    with pytest.raises(ValueError, match=r"the same seeds on both sides, got \[0\] and \[0, 1\]"):
        seed_interval(seeded(ALL_SOLVED), seeded(ALL_SOLVED, ALL_SOLVED))


def test_of_two_comparisons_the_surer_one_has_the_wider_correction() -> None:
    """Holm: the smaller p is doubled and its interval has confidence .975; the larger p and interval stay."""
    methods = {
        "ours": seeded({f"q{i}": [float(i < 60)] for i in range(100)}),
        "weak": seeded({f"q{i}": [float(i < 40)] for i in range(100)}),
        "close": seeded({f"q{i}": [float(i < 58 or i > 98)] for i in range(100)}),
    }
    weak, close = compare_seeded({"sampled": methods}, "ours", ["all"], draws=2000)
    assert (weak.a, weak.b, weak.difference.mean, weak.family) == ("ours", "weak", pytest.approx(0.2), 2)
    assert weak.p < close.p
    assert weak.corrected_p == pytest.approx(2 * weak.p)
    assert close.corrected_p == close.p
    assert weak.corrected[0] < weak.difference.low and weak.corrected[1] > weak.difference.high
    assert close.corrected == (close.difference.low, close.difference.high)
    assert weak.is_shown and not close.is_shown


def test_pass_at_k_is_counted_within_a_seed() -> None:
    # seed 0: one of two tries solves q0, so pass@1 = 1/2 and pass@2 = 1; seed 1 solves nothing
    assert mean_pass_at_k(seeded({"q0": [1.0, 0.0]}, {"q0": [0.0, 0.0]})) == {1: 0.25, 2: 0.5}
