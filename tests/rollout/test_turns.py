import pytest

from steptool.rollout.episode import TurnCost


@pytest.mark.parametrize(
    ("one", "other", "total"),
    [
        (TurnCost(3), TurnCost(4), TurnCost(7)),
        (TurnCost(3, 10, 0.5), TurnCost(4, 20, 0.25), TurnCost(7, 30, 0.75)),
        (TurnCost(3, None, None), TurnCost(4, 20, 0.0), TurnCost(7, 20, 0.0)),
        (TurnCost(), TurnCost(0, 0), TurnCost(0, 0)),
    ],
)
def test_costs_add_up_and_what_nobody_counts_stays_unknown(one: TurnCost, other: TurnCost, total: TurnCost) -> None:
    assert one + other == other + one == total
