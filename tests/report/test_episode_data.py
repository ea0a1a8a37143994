import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.config import RewardConfig
from steptool.report.run_inputs import EpisodePair, ScoredEpisode
from steptool.report.viewer import MAX_CHARACTERS, classify_pair, embed, make_pair_data


@given(st.text())
def test_embedded_text_cannot_end_its_script(text):
    embedded = embed({"text": text, text: ["</script>", "<!--", "&lt;"]})
    assert not set("<>&") & set(embedded)
    assert json.loads(embedded) == {"text": text, text: ["</script>", "<!--", "&lt;"]}


def test_a_number_that_is_none_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        embed({"x": float("nan")})


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0.0, 1.0, "fixed"),
        (1.0, 0.5, "broken"),
        (1.0, 1.0, "both"),
        (0.0, 0.5, "neither"),
        (None, 1.0, "unknown"),
    ],
)
def test_outcomes(query, trajectory, before, after, expected):
    example = EpisodePair(
        query(), ScoredEpisode(trajectory("a", ["finish"], before)), ScoredEpisode(trajectory("b", ["finish"], after))
    )
    assert classify_pair(example) == expected


def test_an_episode_without_a_counterpart_stands_alone(query, trajectory):
    example = EpisodePair(query(), None, ScoredEpisode(trajectory("b", ["finish"], 1.0)))
    (task,) = make_pair_data([example])["tasks"]
    assert task["before"] is None and task["outcome"] == "alone" and task["after"]["verdict"] == 1.0


def test_rewards_of_an_evaluated_episode_are_composed_as_configured(query, trajectory, reward):
    t = trajectory("a", ["ok", "tool_error", "finish"], 1.0)
    rows = [reward("a", 0, 1, 0.5), reward("a", 1, 0, 0.0), reward("a", 2, 1, None, 1.0)]
    config = {"rewards": RewardConfig(step_weight=0.3, alpha=0.3).model_dump()}
    (task,) = make_pair_data([EpisodePair(query(), ScoredEpisode(t, rows), None)], config)["tasks"]
    # .3 * (.3 * (succ - 1) + contribution), and IsSolved
    assert [s["reward"] for s in task["before"]["steps"]] == [0.15, -0.09, 1.0]
    assert [s["advantage"] for s in task["before"]["steps"]] == [None] * 3
    (task,) = make_pair_data([EpisodePair(query(), ScoredEpisode(t, rows[:2]), None)], config)["tasks"]
    assert [s["reward"] for s in task["before"]["steps"]] == [None] * 3


def test_a_verdict_of_the_evaluation_goes_before_the_environment(query, trajectory):
    before, after = (ScoredEpisode(trajectory(n, ["finish"], None), passed=p) for n, p in (("a", 0.0), ("b", 1.0)))
    assert classify_pair(EpisodePair(query(), before, after)) == "fixed"


def test_steps_carry_their_scores_and_missing_ones_stay_missing(query, trajectory, reward, advantage):
    t = trajectory("a", ["ok", "malformed", "finish"], 1.0, round=2)
    rows = [reward("a", 0, 1, 0.6), reward("a", 2, 1, None, 1.0), reward("other", 1, 1, 1.0)]
    episode = ScoredEpisode(t, rows, [advantage("a", 0, 0.18, -0.25)])
    (task,) = make_pair_data([EpisodePair(query(), episode, None)])["tasks"]
    first, second, last = task["before"]["steps"]

    assert task["before"]["tokens"] == 12 and task["before"]["origin"] == "training, round 2"
    assert first["call"] == "get_order" and first["arguments"] == [["order_id", "o1"]]
    assert (first["succ_calling"], first["contribution"], first["reward"], first["advantage"]) == (1, 0.6, 0.18, -0.25)
    assert second["call"] is None and second["status"] == "malformed"
    assert [second[n] for n in ("succ_calling", "contribution", "is_solved", "reward", "advantage")] == [None] * 5
    assert last["is_solved"] == 1.0 and last["contribution"] is None


def test_a_long_observation_is_cut_and_says_by_how_much(query, trajectory):
    t = trajectory("a", ["ok"], observation="x" * (MAX_CHARACTERS + 7))
    (task,) = make_pair_data([EpisodePair(query(), ScoredEpisode(t), None)])["tasks"]
    assert len(task["before"]["steps"][0]["observation"]) == MAX_CHARACTERS and task["before"]["steps"][0]["cut"] == 7


def test_what_training_changed_comes_first(query, trajectory):
    def example(name, before, after):
        return EpisodePair(
            query(name),
            ScoredEpisode(trajectory("a", ["finish"], before)),
            ScoredEpisode(trajectory("b", ["finish"], after)),
        )

    examples = [example("neither", 0, 0), example("both", 1, 1), example("broken", 1, 0), example("fixed", 0, 1)]
    assert [t["id"] for t in make_pair_data(examples)["tasks"]] == ["fixed", "broken", "both", "neither"]
