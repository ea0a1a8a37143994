import json
from dataclasses import replace

import pytest

from steptool.config import AuditConfig, RewardConfig
from steptool.records import Reference, StepReward, StepStatus, ToolCall
from steptool.rewards.annotators import annotate, make_annotator
from steptool.rewards.audit import AuditError, audit, check_thresholds

CONFIG = RewardConfig(step_weight=1.0, alpha=0.5)


def row(name, step, succ, contribution, solved=None, who="rules", why=""):
    return StepReward(name, step, who, "1", "", succ, contribution, solved, "{}", why)


@pytest.fixture
def episodes(make_step, make_trajectory):
    """Four episodes of one or two calls and a Finish; two are solved."""
    call = make_step("look", {"a": 1}, x=1)
    other = make_step("find", {"b": 1}, StepStatus.TOOL_ERROR, y=1)
    return [
        make_trajectory([call], "yes", trajectory_id="a", solved=1.0),
        make_trajectory([call, other], "yes", trajectory_id="b", solved=1.0),
        make_trajectory([call, other], "no", trajectory_id="c", solved=0.0),
        make_trajectory([other], "no", trajectory_id="d", solved=0.0),
    ]


RULES = [
    row("a", 0, 1, 1.0), row("a", 1, 1, None, 1.0),
    row("b", 0, 1, 1.0), row("b", 1, 0, 0.0), row("b", 2, 1, None, 1.0),
    row("c", 0, 1, 1.0), row("c", 1, 0, 0.0), row("c", 2, 1, None, 0.5),
    row("d", 0, 0, 0.0), row("d", 1, 1, None, 0.0),
]  # fmt: skip
OTHER = [
    row("a", 0, 1, 0.6, who="judge"), row("a", 1, 1, None, 1.0, "judge"),
    row("b", 0, 1, 0.2, who="judge", why="never used"), row("b", 1, 0, 0.0, who="judge"),
    row("b", 2, 1, None, 1.0, "judge"),
    row("c", 0, None, None, who="judge"), row("c", 1, 0, 0.0, who="judge"), row("c", 2, 1, None, 0.0, "judge"),
]  # fmt: skip


def test_agreement_counts_the_steps_that_both_scored(episodes, make_query):
    result = audit({"q1": make_query()}, episodes, [*RULES, *OTHER], CONFIG)
    assert (result.annotator, list(result.others)) == ("rules 1", ["judge 1"])
    tables = {a.component: a.table for a in result.agreements}
    # a0 both yes, b0 only the rules, b1 and c1 both no; c0 is missing, d was not judged.
    assert tables["contribution"] == ((2, 0), (1, 1))
    assert result.contribution_kappa().value == pytest.approx((0.75 - 0.5) / 0.5)
    assert tables["is_solved"] == ((0, 0), (0, 2))  # the rules were unsure of c
    assert result.agreements[1].same == 0.75


def test_the_widest_differences_are_shown_with_their_step(episodes, make_query):
    query = make_query()
    result = audit({"q1": query}, episodes, [*RULES, *OTHER], CONFIG)
    first = result.disputes[0]
    assert (first.trajectory_id, first.step, first.tool, first.component) == ("b", 0, "look", "contribution")
    assert first.scores == {"rules 1": 1.0, "judge 1": 0.2}
    assert first.rationales["judge 1"] == "never used"
    assert (first.instruction, first.arguments, first.observation) == (query.instruction, '{"x": 1}', '{"a": 1}')
    assert [(d.trajectory_id, d.step) for d in result.disputes] == [("b", 0), ("a", 0)]


def test_separation_is_against_the_environments_verdict(episodes):
    result = audit({}, episodes, RULES, CONFIG)
    figures = {s.figure: s.auroc.value for s in result.separations}
    # Mean Contribution: solved 1 and .5, unsolved .5 and 0: 3.5 of 4 pairs.
    assert figures["contribution"] == pytest.approx(3.5 / 4) == result.contribution_auroc().value
    # Step rewards (succ - 1) * .5 + contribution: solved 1 and .5, unsolved .5 and -.5.
    assert figures["steps"] == pytest.approx(3.5 / 4)
    assert result.judged == 4


def test_without_a_verdict_the_annotators_own_is_solved_stands_in_and_unsure_counts_for_nothing(episodes):
    result = audit({}, [replace(t, solved=None) for t in episodes], RULES, CONFIG)
    assert result.judged == 0
    figures = {s.figure: s.auroc for s in result.separations}
    assert set(figures) == {"contribution", "steps"}
    assert (figures["contribution"].n, figures["contribution"].value) == (3, 1.0)  # a and b against d


def test_farming_is_what_length_is_paid(episodes):
    steps, tokens = audit({}, episodes, RULES, CONFIG).farming
    assert [(b.size, b.reward.value, b.reward.n) for b in steps.bins] == [(2, 0.25, 2), (3, 0.5, 2)]
    assert steps.slope == pytest.approx(0.25)
    assert (tokens.slope, tokens.correlation) == (None, None)  # these episodes have no tokens


def test_tools_and_missing_scores(episodes):
    rows = [replace(r, contribution=None) if (r.trajectory_id, r.step) == ("c", 0) else r for r in RULES]
    result = audit({}, episodes, rows, CONFIG)
    tools = {t.tool: (t.calls, t.succ_calling, t.contribution, t.idle) for t in result.tools}
    assert tools == {"look": (3, 1.0, 1.0, 0.0), "find": (3, 0.0, 0.0, 1.0)}
    assert {t.tool: t.spread for t in result.tools} == {"look": (0, 0, 0, 0, 2), "find": (3, 0, 0, 0, 0)}
    assert result.missing == {"succ_calling": 0.0, "contribution": pytest.approx(1 / 6), "is_solved": 0.0}
    assert result.left_out == 0.25
    unscored = audit({}, episodes, RULES[:2], CONFIG)
    assert unscored.missing["is_solved"] == 0.75


def test_the_spread_of_a_tool_puts_a_bound_into_the_bin_below_and_leaves_missing_scores_out(episodes):
    scores = dict(zip([("a", 0), ("b", 0), ("c", 0)], [0.25, 0.6, None], strict=True))
    rows = [replace(r, contribution=scores.get((r.trajectory_id, r.step), r.contribution)) for r in RULES]
    look = next(t for t in audit({}, episodes, rows, CONFIG).tools if t.tool == "look")
    assert look.spread == (0, 1, 0, 1, 0) and look.calls == 3


def test_drift_compares_with_an_earlier_run(episodes):
    earlier = [row(f"old{i}", 0, 1, float(i % 2)) for i in range(40)]
    drifts = {d.component: d for d in audit({}, episodes, RULES, CONFIG, earlier).drifts}
    assert drifts["contribution"].change.value == pytest.approx(0.5 - 0.5)
    assert drifts["contribution"].index == pytest.approx(0.0)
    assert drifts["succ_calling"].index > 0.25
    assert (drifts["is_solved"].change, drifts["is_solved"].index) == (None, None)
    assert audit({}, episodes, RULES, CONFIG).drifts == []


def test_rows_about_nothing_are_refused(episodes):
    with pytest.raises(ValueError, match="no row of the rewards is about one of the 4 trajectories given"):
        audit({}, episodes, [row("elsewhere", 0, 1, 1.0)], CONFIG)


def test_rules_and_truth_agree_where_the_reference_is_followed(make_query, make_step, make_trajectory):
    calls = (ToolCall("last_order", {"user_id": "usr_03"}),)
    query = make_query(reference=Reference("ord_07", calls))
    step = make_step("last_order", {"order_id": "ord_07"}, user_id="usr_03")
    trajectory = make_trajectory([step], "ord_07", solved=1.0)
    rows = [r for name in ("rules", "truth") for r in annotate([query], [trajectory], make_annotator(name))]
    result = audit({"q1": query}, [trajectory], rows, CONFIG)
    assert [a.table for a in result.agreements] == [((0, 0), (0, 2)), ((0, 0), (0, 1)), ((0, 0), (0, 1))]
    assert result.disputes == []


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"min_auroc": 0.9}, r"in 0\.875 of the pairs, below rewards\.audit\.min_auroc 0\.9; see the disputed steps"),
        ({"min_kappa": 0.6}, r"kappa 0\.500 with 'judge 1' on Contribution is below rewards\.audit\.min_kappa 0\.6"),
        (
            {"max_farming": 0.2},
            r"number of steps is 0\.229, above rewards\.audit\.max_farming 0\.2; lower rewards\.step",
        ),
    ],
)
def test_a_figure_beyond_its_threshold_stops_the_run(thresholds, message, episodes):
    result = audit({}, episodes, [*RULES, *OTHER], CONFIG)
    check_thresholds(result, AuditConfig(), "round 1")
    with pytest.raises(AuditError, match=message) as excinfo:
        check_thresholds(result, AuditConfig(**thresholds), "round 1")
    assert str(excinfo.value).startswith("round 1: the rewards by 'rules 1' were refused, and training did not start")


def test_missing_scores_stop_the_run_by_default_when_they_are_most(episodes):
    with pytest.raises(AuditError, match=r"0\.750 of the episodes .* above rewards\.audit\.max_missing 0\.5"):
        check_thresholds(audit({}, episodes, RULES[:2], CONFIG), AuditConfig(), "round 1")


def test_what_the_reward_does_not_need_may_be_missing(episodes):
    rows = [replace(r, contribution=None) for r in RULES]
    assert audit({}, episodes, rows, CONFIG).left_out == 1
    assert audit({}, episodes, rows, CONFIG, reward="final").left_out == 0


def test_a_figure_that_is_not_defined_stops_nothing(make_step, make_trajectory):
    alone = make_trajectory([make_step("look", "1")], "1", trajectory_id="a", solved=1.0)
    strict = AuditConfig(max_missing=0.0, min_auroc=1.0, min_kappa=1.0, max_farming=-1.0)
    result = audit({}, [alone], RULES[:2], CONFIG)
    assert result.contribution_auroc() is result.contribution_kappa() is result.farming[0].correlation is None
    check_thresholds(result, strict, "round 1")


def check(episodes, rows, config=CONFIG, reward="step", **thresholds):
    check_thresholds(audit({}, episodes, rows, config, reward=reward), AuditConfig(**thresholds), "round 1")


def test_rewards_without_any_contribution_stop_the_run_by_default(episodes):
    """a0, b0 succeeded in solved episodes; nothing contributes, although the environment calls a and b solved."""
    idle = [replace(r, contribution=None if r.contribution is None else 0.0) for r in RULES]
    with pytest.raises(
        AuditError, match="no signal: every Contribution is 0, also of the 2 successful calls in solved"
    ):
        check(episodes, idle)
    check(episodes, idle, require_signal=False)
    check(episodes, idle, reward="final")  # nothing but the outcome is learned from
    check(episodes, idle, RewardConfig(step_weight=0.0))
    check([replace(t, solved=0.0) for t in episodes], idle)  # nothing was solved, so nothing can contribute
    check(episodes, RULES)


def test_a_contribution_that_ranks_unsolved_episodes_first_stops_the_run_by_default(make_step, make_trajectory):
    """Of 12 solved and 12 unsolved episodes the unsolved have the Contribution: AUROC 0, its interval below .5."""
    call = make_step("look", {"a": 1})
    episodes = [make_trajectory([call], "yes", trajectory_id=f"t{n}", solved=float(n < 12)) for n in range(24)]
    rows = [r for n in range(24) for r in (row(f"t{n}", 0, 1, float(n >= 12)), row(f"t{n}", 1, 1, None, 1.0))]
    with pytest.raises(AuditError, match=r"no signal: the mean Contribution ranks unsolved above solved .*AUROC 0.000"):
        check(episodes, rows)
    right = [r for n in range(24) for r in (row(f"t{n}", 0, 1, float(n < 12)), row(f"t{n}", 1, 1, None, 1.0))]
    check(episodes, right)
    few = [episodes[0], episodes[12]]  # one against one says nothing, whichever is first
    check(few, [r for r in rows if r.trajectory_id in ("t0", "t12")])


def test_the_first_line_says_why_votes_are_missing_counted_by_reason(episodes):
    """Of five votes three found the endpoint down and two were refused."""
    votes = {"a": ["answered 503"], "b": ["answered 503", "the answer was refused"], "c": ["the answer was refused"]}
    votes["d"] = ["answered 503"]
    rows = [replace(r, is_solved=None, votes=json.dumps({"missing": votes[r.trajectory_id]})) for r in RULES]
    with pytest.raises(AuditError) as raised:
        check(episodes, rows)
    first = str(raised.value).splitlines()[0]
    assert first.endswith("votes are missing: 3 × answered 503; 2 × the answer was refused")


def test_the_farming_check_sees_calls_that_are_repeated_for_their_reward(make_step, make_trajectory):
    """One look and up to four repeats of it, each of which the annotator pays: the options take that pay away."""
    look = make_step("look", "the same", x=1)
    padded = [
        make_trajectory([look] * calls, "x", trajectory_id=f"t{calls}", solved=float(calls % 2))
        for calls in range(1, 6)
    ]
    scores = [
        row(t.trajectory_id, step, 1, None if step == last else 1.0, t.solved if step == last else None)
        for t in padded
        for last in [len(t.steps) - 1]
        for step in range(last + 1)
    ]

    def check(**options):
        return audit({}, padded, scores, RewardConfig(alpha=0.0, step_weight=1.0, **options))

    result = check(redundant_cost=0.0)
    assert (result.redundancy.calls, result.redundancy.redundant) == (15, 10)
    assert result.redundancy.reward == pytest.approx(1.0)
    assert result.farming[0].correlation.value == pytest.approx(1.0)
    with pytest.raises(AuditError, match=r"farming: the correlation of the step rewards .* is 1\.000"):
        check_thresholds(result, AuditConfig(max_farming=0.9, require_signal=False), "round 0")
    assert check(redundant_cost=1.0).redundancy.reward == pytest.approx(0.0)
    capped = check(redundant_cost=0.0, contribution="progress", progress_steps=1)  # the first look earns all there is
    assert capped.redundancy.reward == pytest.approx(0.0)
    assert capped.farming[0].correlation is None  # every episode earns 1, whatever its length


def test_the_audit_shows_what_each_option_would_change_by_hand(make_step, make_trajectory):
    """A solved episode of one look, and an unsolved one that looks twice; alpha 0 and weight 1, so a look is paid 1."""
    look = make_step("look", "the same", x=1)
    solved = make_trajectory([look], "x", trajectory_id="s", solved=1.0)
    padded = make_trajectory([look, look], "x", trajectory_id="p", solved=0.0)
    scores = [row("s", 0, 1, 1.0), row("s", 1, 1, None, 1.0)]
    scores += [row("p", 0, 1, 1.0), row("p", 1, 1, 1.0), row("p", 2, 1, None, 0.0)]
    config = RewardConfig(alpha=0.0, step_weight=1.0, redundant_cost=2.0, progress_steps=1)
    options = audit({}, [solved, padded], scores, config).options
    # sums: 1 against 1 + (1 - 2) = 0; progress: 1 against 1 + (0 - 2); no cost: 1 against 2; mean Contribution is 1
    # for both, so calibrated weights are 0: 0 against -2
    assert [o.option for o in options] == ["", "contribution: progress", "redundant_cost: 0.0", "weights: calibrated"]
    assert [o.separation.value for o in options] == [1.0, 1.0, 0.0, 1.0]
    assert [o.redundant for o in options] == [-1.0, -2.0, 1.0, -2.0]
    back = audit({}, [solved, padded], scores, config.model_copy(update={"weights": "calibrated"})).options
    assert [(o.option, o.redundant) for o in (back[0], back[-1])] == [("", -2.0), ("weights: fixed", -1.0)]
