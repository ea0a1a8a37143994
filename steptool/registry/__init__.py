"""The registry of models in service (docs/registry.md)."""

from steptool.registry.documents import Champion, StoredFile, Version
from steptool.registry.errors import Conflict, RegistryError
from steptool.registry.registry import Registry

__all__ = ["Champion", "Conflict", "Registry", "RegistryError", "StoredFile", "Version"]
