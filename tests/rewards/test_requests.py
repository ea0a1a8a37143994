import pytest

from steptool.rewards.reports import Branch, collect_requested_words, read_goals, stem_words


def test_stems_leave_out_endings_and_function_words():
    assert stem_words("get the prices of orders") == {"pric", "order"}
    assert stem_words("trackParcel") == {"track", "parcel"}
    assert stem_words("refund_id") == {"refund"}
    assert stem_words("the bus is red") == {"bus", "red"}  # three letters stay


def test_the_goals_of_a_request_are_read_in_order():
    goals = read_goals("Track the parcel of ord_07, then name the price of prd_01 and also escalate tck_02.")
    assert [branch.words for goal in goals for branch in goal] == [
        {"track", "parcel", "ord"},
        {"nam", "pric", "prd"},
        {"escalat", "tck"},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "cancel it if it is pending, otherwise return it",
        "Cancel it when the order is Pending, else return it.",
        "if the order is pending, cancel it, otherwise return it",
        "return it unless it is pending, otherwise cancel it",
        "return it if it is not pending, otherwise cancel it",
        "cancel it if it is pending, if not return it",
    ],
)
def test_a_condition_says_which_branch_is_requested(text):
    (goal,) = read_goals(text)
    cancel, turn_back = (next(b for b in goal if verb in b.words) for verb in ("cancel", "return"))
    assert cancel.is_requested({"pending", "19"}) and not cancel.is_requested({"shipped"})
    assert turn_back.is_requested({"shipped"}) and not turn_back.is_requested({"pending"})
    assert (
        collect_requested_words(goal, {"pending"})[0] >= {"cancel"}
        and "return" in collect_requested_words(goal, {"pending"})[1]
    )


def test_without_a_condition_everything_is_requested():
    (goal,) = read_goals("say where ord_07 is now")
    assert collect_requested_words(goal, set()) == (set(goal[0].words), set())
    assert goal[0].value == ""
    assert read_goals("") == []
    assert Branch(frozenset()).is_requested(())
