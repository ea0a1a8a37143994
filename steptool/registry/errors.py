"""What a registry refuses."""

from __future__ import annotations

from steptool.registry.documents import Champion


class RegistryError(Exception):
    """What a registry cannot do, and why."""


class Conflict(RegistryError):
    """Somebody promoted since the champion was looked up; nothing was changed."""

    def __init__(self, champion: Champion, after: int) -> None:
        super().__init__(
            f"number {after} is no longer the champion: {champion.version_id} was promoted as number "
            f"{champion.sequence} at {champion.since:%Y-%m-%d %H:%M:%S} UTC ({champion.reason}); compare with that one"
        )
        self.champion = champion
        """Who is in service now."""
