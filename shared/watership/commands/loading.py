"""``MODULE:NAME``: what a command is told to look at in the user's own code."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from watership.errors import ConfigurationError


def load_object(target: str, *, what: str, example: str) -> Any:
    """Imports ``MODULE:NAME``. ``what`` it should name, for messages. Raises `ConfigurationError` that says what is wrong."""
    module_name, colon, name = target.partition(":")
    if not colon or not module_name or not name:
        raise ConfigurationError(f"{target!r} does not name {what}: write MODULE:NAME, e.g. {example}")
    sys.path.insert(0, "")  # as `python -m` does: the user's modules lie where the command is run
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigurationError(f"there is no module {module_name} to import from here") from error
        raise ConfigurationError(f"{module_name} cannot be imported: {error}") from error
    except Exception as error:  # the user's code may raise anything: a saga that is written wrong does, by name
        raise ConfigurationError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise ConfigurationError(f"module {module_name} has no {name}")
    return getattr(module, name)
