from steptool.evaluation.results import CostPerSolved, cost_per_solved


def row(passed, money):
    return {"passed": passed, "tokens": 30, "seconds": 1.5, "money": money}


def test_what_was_spent_in_vain_counts():
    """Three episodes of 30 tokens and 1.5 s for 1.5 solved tasks."""
    assert cost_per_solved([row(1.0, 0.25), row(0.0, 0.5), row(0.5, 0.75)]) == CostPerSolved(60.0, 3.0, 1.0)


def test_an_unknown_price_is_no_price_of_zero():
    assert cost_per_solved([row(1.0, 0.0), row(1.0, None)]) == CostPerSolved(30.0, 1.5, None)


def test_nothing_solved_has_no_cost_per_solved_task():
    assert cost_per_solved([row(0.0, 1.0)]) == CostPerSolved(None, None, None)


def test_nobody_counts_the_tokens_of_what_is_played_back():
    assert cost_per_solved([{**row(1.0, None), "tokens": 0}]).tokens is None
