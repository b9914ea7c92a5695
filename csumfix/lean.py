"""Keeps imports small: the service stays in the memory of every node, and starts on each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType


@contextmanager
def parts_of(package: str) -> Iterator[None]:
    """Within this context, importing a module of the package does not import the whole of it.

    Python runs a package's ``__init__`` before any of its modules, and some import everything:
    pyroute2's costs 9 MB and 0.1 s for the two modules with messages that the service needs.
    Here an empty package stands in for it. A later import finds the real one; only the attribute
    of the package that names the module is then missing, so use "from package.module import".
    """
    if package in sys.modules:
        yield
        return
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No package named {package!r}", name=package)
    stand_in = ModuleType(package)
    stand_in.__path__ = spec.submodule_search_locations
    sys.modules[package] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(package) is stand_in:
            del sys.modules[package]


@contextmanager
def absent(module: str) -> Iterator[None]:
    """Within this context, importing the module fails as if Python had been built without it.

    asyncio works without ssl (asyncio/sslproto.py), which costs 4.5 MB for OpenSSL, and the
    service makes no TLS connection. A later import of the module finds it.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
