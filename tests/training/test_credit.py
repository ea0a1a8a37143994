import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steptool.config import CreditConfig
from steptool.training import credit
from steptool.training.credit import Groups

TOKEN = CreditConfig(level="token", gamma=0.5, lam=0.5)
STEP = CreditConfig(level="step", gamma=0.5, lam=0.5)


def array(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float64)


def plain_gae(rewards, values, gamma, lam):
    out, following, next_value = [], 0.0, 0.0
    for r, v in zip(reversed(rewards), reversed(values), strict=True):
        following = r + gamma * next_value - v + gamma * lam * following
        out.append(following)
        next_value = v
    return out[::-1]


def test_spans_lead_to_step_lengths():
    assert credit.count_step_tokens([(3, 5), (9, 10), (12, 15)]).tolist() == [2, 1, 3]


@pytest.mark.parametrize("spans", [[(3, 3)], [(5, 4)], [(0, 3), (2, 4)], [(4, 6), (0, 2)], [(-1, 2)]])
def test_spans_that_are_empty_or_out_of_order_are_refused(spans):
    with pytest.raises(ValueError, match="ascending, disjoint"):
        credit.count_step_tokens(spans)


def test_step_rewards_sit_on_last_tokens_and_every_token_pays_for_its_kl():
    rewards = credit.token_rewards(array(1, 2), np.array([2, 3]), array(0.1, -0.2, 0, 0.4, 1), kl_coef=0.5)
    np.testing.assert_allclose(rewards, [-0.05, 1.1, 0, -0.2, 1.5])


def test_token_level_credit_by_hand():
    # rewards [0, 1, 0, 2]; deltas: 0+.5*2-1=0, 1+.5*3-2=.5, 0+.5*4-3=-1, 2+0-4=-2; gamma*lam=.25
    # A4=-2, A3=-1-.5=-1.5, A2=.5-.375=.125, A1=0+.03125
    got = credit.assign([array(1, 2)], [np.array([2, 2])], array(1, 2, 3, 4), np.zeros(4), 0.7, TOKEN)
    np.testing.assert_allclose(got.advantages_N, [0.03125, 0.125, -1.5, -2])
    np.testing.assert_allclose(got.returns_N, [1.03125, 2.125, 1.5, 2])
    assert got.value_mask_N.all()


def test_step_level_credit_by_hand():
    # Values of the steps' first tokens: 1, 3; rewards: 1 - .1*(1+2) = .7 and 2 - .1*(0+1) = 1.9.
    # delta_1 = .7 + .5*3 - 1 = 1.2, delta_2 = 1.9 - 3 = -1.1; A_2 = -1.1, A_1 = 1.2 - .25*1.1 = .925
    got = credit.assign([array(1, 2)], [np.array([2, 2])], array(1, 99, 3, 99), array(1, 2, 0, 1), 0.1, STEP)
    np.testing.assert_allclose(got.advantages_N, [0.925, 0.925, -1.1, -1.1])
    assert got.value_mask_N.tolist() == [True, False, True, False]
    np.testing.assert_allclose(got.returns_N[got.value_mask_N], [1.925, 1.9])


def test_time_does_not_pass_while_the_model_reads():
    """Two steps of 20 tokens around an observation of 100, reward 1 at the end, gamma .99, lambda .95."""
    spans = [(50, 70), (170, 190)]
    config = CreditConfig(level="token", gamma=0.99, lam=0.95)
    got = credit.assign([array(0, 1)], [credit.count_step_tokens(spans)], np.zeros(40), np.zeros(40), 0.1, config)
    at_end_of_step_1 = got.advantages_N[19]
    assert at_end_of_step_1 == pytest.approx((0.99 * 0.95) ** 20)
    assert round(at_end_of_step_1, 3) == 0.293
    # What a decay that walks through the observation would give instead:
    walked = credit.gae(np.eye(1, 190, 189)[0], np.zeros(190), np.array([190]), 0.99, 0.95)[69]
    assert round(walked, 4) == 0.0006


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6).flatmap(
        lambda lengths: st.tuples(
            st.just(lengths),
            st.lists(st.integers(0, 7), min_size=len(lengths) + 1, max_size=len(lengths) + 1),
            st.lists(st.integers(0, 50), min_size=len(lengths) + 1, max_size=len(lengths) + 1),
        )
    ),
    st.sampled_from(["token", "step"]),
    st.integers(0, 2**32 - 1),
)
def test_inserting_observation_tokens_changes_no_advantage(layout, level, seed):
    """The gaps between the steps grow anywhere: every action token keeps its advantage."""
    lengths, gaps, inserted = layout
    rng = np.random.default_rng(seed)
    config = CreditConfig(level=level)
    rewards, values, kl = rng.normal(size=len(lengths)), rng.normal(size=sum(lengths)), rng.normal(size=sum(lengths))

    def advantages(gaps):
        spans, position = [], 0
        for gap, length in zip(gaps, lengths, strict=False):
            spans.append((position + gap, position + gap + length))
            position += gap + length
        return credit.assign([rewards], [credit.count_step_tokens(spans)], values, kl, 0.1, config)

    before, after = advantages(gaps), advantages([g + i for g, i in zip(gaps, inserted, strict=True)])
    assert np.array_equal(before.advantages_N, after.advantages_N)
    assert np.array_equal(before.returns_N, after.returns_N)


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=8),
    st.sampled_from([(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.7), (0.5, 0.5)]),
    st.integers(0, 2**32 - 1),
)
def test_packed_gae_is_the_recurrence_of_each_sequence(lengths, decay, seed):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=sum(lengths)), rng.normal(size=sum(lengths))
    got = credit.gae(rewards, values, np.array(lengths), *decay)
    cuts = np.cumsum(lengths)[:-1]
    expected = [plain_gae(r, v, *decay) for r, v in zip(np.split(rewards, cuts), np.split(values, cuts), strict=True)]
    np.testing.assert_allclose(got, np.concatenate([np.zeros(0), *expected]), atol=1e-10)


def test_long_sequences_lose_nothing_to_the_cut_of_negligible_terms():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=20_000), rng.normal(size=20_000)
    for gamma, lam in ((0.99, 0.95), (1.0, 1.0), (1.0, 0.999)):
        got = credit.gae(rewards, values, np.array([20_000]), gamma, lam)
        np.testing.assert_allclose(got, plain_gae(rewards, values, gamma, lam), rtol=1e-9, atol=1e-9)


def test_a_broken_trajectory_does_not_reach_its_neighbours():
    values = array(1, np.nan, np.inf, 1, 2)
    got = credit.gae(np.zeros(5), values, np.array([1, 2, 2]), 1.0, 1.0)
    np.testing.assert_allclose(got[[0, 3, 4]], [-1, -1, -2])


@pytest.mark.parametrize("level", ["token", "step"])
def test_a_batch_gives_each_trajectory_what_it_gets_alone(level):
    rng, config = np.random.default_rng(1), CreditConfig(level=level)
    lengths = [np.array([3, 1, 2]), np.array([4]), np.zeros(0, dtype=np.int64), np.array([1, 1])]
    rewards = [rng.normal(size=len(x)) for x in lengths]
    values = [rng.normal(size=int(x.sum())).astype(np.float32) for x in lengths]
    kl = [rng.normal(size=int(x.sum())).astype(np.float32) for x in lengths]
    together = credit.assign(rewards, lengths, np.concatenate(values), np.concatenate(kl), 0.1, config)
    alone = [
        credit.assign([r], [n], v, k, 0.1, config) for r, n, v, k in zip(rewards, lengths, values, kl, strict=True)
    ]
    for name in ("advantages_N", "returns_N", "value_mask_N"):
        np.testing.assert_array_equal(getattr(together, name), np.concatenate([getattr(part, name) for part in alone]))
    assert credit.assign([], [], np.zeros(0), np.zeros(0), 0.1, config).advantages_N.size == 0


def test_quantities_by_step():
    packed, lengths = array(1, 2, 3, 4, 5, 6), np.array([1, 3, 2])
    assert credit.sum_by_step(packed, lengths).tolist() == [1, 9, 11]
    assert credit.take_first_of_step(packed, lengths).tolist() == [1, 2, 5]


def test_whitening_by_hand():
    # 1, 2, 3 and 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5
    np.testing.assert_allclose(credit.whiten(array(1, 2, 3, 6)), array(-2, -1, 0, 3) / np.sqrt(3.5), rtol=1e-7)


def test_equal_advantages_whiten_to_zero():
    assert credit.whiten(array(2, 2, 2)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("rewards", "lengths", "values", "kl", "message"),
    [
        ([0.0], [2, 1], 3, 3, r"step_rewards_T should have shape \(2,\) for 2 steps"),
        ([0.0, 1.0], [2, 1], 4, 3, r"values_N should have shape \(3,\) for 3 action tokens, has \(4,\)"),
        ([0.0, 1.0], [2, 1], 3, 2, r"kl_N should have shape \(3,\)"),
        ([0.0, 1.0], [3, 0], 3, 3, "each step needs an action token"),
        ([np.nan, 1.0], [2, 1], 3, 3, "leave out trajectories with a missing score"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(rewards, lengths, values, kl, message):
    with pytest.raises(ValueError, match=message):
        credit.assign([np.array(rewards)], [np.array(lengths)], np.zeros(values), np.zeros(kl), 0.1, TOKEN)


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="rewards and step lengths of the same trajectories"):
        credit.assign([array(1)], [], np.zeros(1), np.zeros(1), 0.1, TOKEN)


def test_values_learn_with_a_lambda_of_their_own():
    # rewards 1, 2; values 1, 3; gamma .5: deltas 1 + .5*3 - 1 = 1.5 and 2 - 3 = -1
    # policy, lambda 0: advantages are the deltas; values, lambda 1: returns are 1 + .5*2 = 2 and 2
    config = CreditConfig(level="step", gamma=0.5, lam=0.0, value_lam=1.0)
    got = credit.assign([array(1, 2)], [np.array([1, 1])], array(1, 3), np.zeros(2), 0.0, config)
    np.testing.assert_allclose(got.advantages_N, [1.5, -1])
    np.testing.assert_allclose(got.returns_N, [2, 2])


def test_the_mean_of_a_group_as_value_by_hand():
    # Two tries of two steps from one state; gamma .5. Returns: 0 + .5*1 = .5 and 1; 0 + .5*0 = 0 and 0.
    # State 0 is worth .25; the others came up once, so they are worth the mean of the query, 1.5 / 4 = .375.
    groups = Groups(np.array([0, 0]), np.array([0, 0, 0, 0]), np.array([0, 1, 0, 2]))
    config = CreditConfig(level="step", gamma=0.5, lam=1.0, value="group_mean")
    lengths = [np.array([2, 1]), np.array([1, 1])]
    got = credit.assign([array(0, 1), array(0, 0)], lengths, np.full(5, 99.0), np.zeros(5), 0.0, config, groups)
    np.testing.assert_allclose(got.values_N, [0.25, 0.25, 0.375, 0.25, 0.375])
    np.testing.assert_allclose(got.advantages_N, [0.25, 0.25, 0.625, -0.25, -0.375])
    assert not got.value_mask_N.any()
    with pytest.raises(ValueError, match="group_mean needs the state of each of 4 steps, got none"):
        credit.assign([array(0, 1), array(0, 0)], lengths, np.zeros(5), np.zeros(5), 0.0, config)


def test_advantages_within_groups_by_hand():
    # Three tries at one query, solved or not, and one at another; steps 2, 1, 1, 2.
    groups = Groups(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 0, 0, 2, 3]))
    rewards = [array(0, 1), array(0), array(0), array(0, 1)]
    # sums 1, 0, 0: mean 1/3, deviation sqrt(2)/3: advantages 2/sqrt(2) and -1/sqrt(2); the other query has one try
    by_episode = credit.episode_advantages(rewards, groups, scale=True)
    root = 2**0.5
    np.testing.assert_allclose(by_episode, [root, root, -1 / root, -1 / root, 0, 0], rtol=1e-5)
    # discounted returns in state 0: .5, 0, 0: mean 1/6; all other states came up once
    by_state = credit.state_advantages(rewards, groups, gamma=0.5, scale=False)
    np.testing.assert_allclose(by_state, [1 / 3, 0, -1 / 6, -1 / 6, 0, 0])


def test_whitening_counts_each_step_once_if_configured():
    lengths, advantages = np.array([3, 1]), array(2, 2, 2, 0)
    by_token = credit.shape(advantages, lengths, np.zeros(4), CreditConfig(negative_weight=1.0))
    by_step = credit.shape(advantages, lengths, np.zeros(4), CreditConfig(negative_weight=1.0, whiten_by="step"))
    # tokens: mean 1.5, variance .75; steps: mean 1, variance 1
    np.testing.assert_allclose(by_token, np.array([0.5, 0.5, 0.5, -1.5]) / 0.75**0.5, rtol=1e-6)
    np.testing.assert_allclose(by_step, [1, 1, 1, -1], rtol=1e-6)


def test_by_default_steps_that_did_worse_than_expected_are_left_out():
    shaped = credit.shape(array(2, 2, 2, 0), np.array([3, 1]), np.zeros(4), CreditConfig())
    np.testing.assert_allclose(shaped, np.array([0.5, 0.5, 0.5, 0]) / 0.75**0.5, rtol=1e-6)


def test_negative_advantages_weigh_less_and_unlikely_tokens_are_left_out():
    config = CreditConfig(whiten=False, negative_weight=0.5, negative_min_probability=0.2)
    log_probs = np.log(array(0.1, 0.1, 0.3))
    shaped = credit.shape(array(1, -1, -1), np.array([1, 1, 1]), log_probs, config)
    assert shaped.tolist() == [1, 0, -0.5]
