"""The registry of models in service (docs/registry.md)."""

from steptool.registry.documents import Champion, Conflict, RegistryError, StoredFile, Version
from steptool.registry.registry import Registry

__all__ = ["Champion", "Conflict", "Registry", "RegistryError", "StoredFile", "Version"]
