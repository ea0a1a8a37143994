"""Objects that a configuration names: in a package, or in a file of the user's own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from steptool.config.base import ConfigError

_PROJECT = Path(__file__).parents[2]


def find_named(named: str, field: str, what: str) -> Any:
    """The object behind `package.module:name` or `path/to/file.py:name`.

    Raises ConfigError naming the configuration's `field` if there is no such object; `what` says what is expected.
    """
    place, _, name = named.rpartition(":")
    if not place or not name:
        raise ConfigError(f"{field}: expected 'package.module:name' or 'path/to/file.py:name' of {what}, got '{named}'")
    try:
        module = _load(Path(place), field) if place.endswith(".py") else importlib.import_module(place)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{field}: '{place}' cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise ConfigError(f"{field}: '{place}' has nothing named '{name}'")
    return getattr(module, name)


def _load(path: Path, field: str) -> ModuleType:
    """The module in a file, imported once. A relative path counts from the current folder, else from the project's."""
    file = next((f.resolve() for f in (path, _PROJECT / path) if f.is_file()), None)
    if file is None:
        raise ConfigError(f"{field}: there is no file '{path}', neither in {Path.cwd()} nor in {_PROJECT}")
    name = str(file)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
