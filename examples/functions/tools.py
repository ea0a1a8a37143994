"""A shop and its stock: the tools of configs/functions.yaml. Each episode has a shop of its own."""

from collections.abc import Mapping
from typing import Any

from steptool.environments.functions import read_only


class Shop:
    """Made from a task's `reference.state`; its public methods are the tools, but for `solved`."""

    def __init__(self, stock: dict[str, int], prices: dict[str, int]) -> None:
        self._stock, self._prices = stock, prices
        self._orders: dict[str, int] = {}

    @read_only
    def items(self) -> list[str]:
        """List the names of all items."""
        return sorted(self._stock)

    @read_only
    def count(self, item: str) -> int:
        """Say how many pieces of an item are in stock.

        Args:
            item: name of the item
        """
        return self._stock[self._known(item)]

    @read_only
    def price(self, item: str) -> int:
        """Say what one piece of an item costs, in euros.

        Args:
            item: name of the item
        """
        return self._prices[self._known(item)]

    def order(self, item: str, pieces: int) -> dict[str, int]:
        """Order more pieces of an item.

        Args:
            item: name of the item
            pieces: how many, at least 1
        """
        if pieces < 1:
            raise ValueError(f"at least 1 piece has to be ordered, got {pieces}")
        self._orders[item] = self._orders.get(self._known(item), 0) + pieces
        return {"pieces": pieces, "cost": pieces * self._prices[item]}

    def solved(self, final_answer: str | None, reference: Mapping[str, Any]) -> float:
        """Whether the answer is right and exactly the right orders were made."""
        right = (final_answer or "").strip() == reference["answer"]
        return float(right and self._orders == reference.get("orders", {}))

    def _known(self, item: str) -> str:
        if item not in self._stock:
            raise LookupError(f"no item is named '{item}'")
        return item
