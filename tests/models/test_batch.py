from types import SimpleNamespace

import numpy as np
import pytest

from steptool.models.actor import collate, find_action_places


def row(ids: list[int], *spans: tuple[int, int]) -> SimpleNamespace:
    return SimpleNamespace(input_ids=np.array(ids, np.int32), spans=list(spans))


def test_targets_are_the_tokens_inside_the_spans_and_places_those_before_them() -> None:
    batch = collate([row([7, 8, 9, 10], (1, 2), (3, 4)), row([5, 6], (1, 2))])
    assert batch.input_ids_BL.tolist() == [[7, 8, 9, 10], [5, 6, 0, 0]]
    assert batch.targets_N.tolist() == [8, 10, 6]
    assert batch.before_N.tolist() == [0, 2, 4]
    assert batch.input_ids_BL.flatten()[batch.before_N].tolist() == [7, 9, 5]


def test_packed_sequences_lie_end_to_end() -> None:
    batch = collate([row([7, 8, 9, 10], (1, 2), (3, 4)), row([5, 6], (1, 2))], packed=True)
    assert batch.input_ids_BL.tolist() == [[7, 8, 9, 10, 5, 6]]
    assert batch.targets_N.tolist() == [8, 10, 6]
    assert batch.before_N.tolist() == [0, 2, 4]
    assert batch.packing is not None
    assert batch.packing.position_ids_BL.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert (batch.packing.bounds.tolist(), batch.packing.longest) == ([0, 4, 6], 4)


@pytest.mark.parametrize("spans", [[(0, 1)], [(1, 1)], [(2, 4), (1, 3)], [(1, 3), (2, 4)], [(1, 5)]])
def test_impossible_spans_are_refused(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="a sequence of 4 tokens"):
        find_action_places(row([1, 2, 3, 4], *spans))
