"""The registry of models in service (docs/registry.md)."""

from steptool.registry.registry import Conflict, Registry
from steptool.registry.store import Champion, RegistryError, StoredFile, Version

__all__ = ["Champion", "Conflict", "Registry", "RegistryError", "StoredFile", "Version"]
