"""Reads the settings file, and says in its own words what is wrong in it.

A key without a table is a flag's. ``[tunnel."flannel.1"]`` has the settings of one device.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from csumfix.errors import CsumfixError, Exit
from csumfix.options import TUNNEL_SETTINGS, LaneSetting, TunnelOptions
from csumfix.text import printable

MAX_FILE = 1 << 20

TUNNEL = "tunnel"
"""The table that has a table for each device."""

NAME_BYTES = 15
"""Longest name of a network device (linux/if.h, IFNAMSIZ)."""

_ESCAPE = re.compile(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}")
"""How csumfix shows what is not printable in a name; see printable()."""


@dataclass(frozen=True)
class Contents:
    """What a file says.

    flags: values by the name of the flag's parameter.
    tunnels: settings of devices, by the name that csumfix shows.
    """

    flags: Mapping[str, Any] = field(default_factory=dict)
    tunnels: Mapping[str, TunnelOptions] = field(default_factory=dict)


def read(file: Path, flags: Iterable[click.Option]) -> Contents:
    """Return what is in a file; raise if any of it is wrong."""
    document = _parse(file)
    tunnels = _tunnels(file, document.pop(TUNNEL, {}))
    known = {key_of(option): option for option in flags}
    for key, value in document.items():
        _require_known(file, key, [*known, TUNNEL])
        _check(file, key, known[key], value)
    return Contents({str(known[key].name): value for key, value in document.items()}, tunnels)


def key_of(option: click.Option) -> str:
    """Return the key of a flag in the file."""
    return option.opts[0].removeprefix("--")


def heading(name: str) -> str:
    """Return the line that begins the table of a device."""
    return f"[{TUNNEL}.{json.dumps(name, ensure_ascii=False)}]"


def _parse(file: Path) -> dict[str, Any]:
    try:
        with file.open(encoding="utf-8") as stream:
            text = stream.read(MAX_FILE + 1)
        if len(text) > MAX_FILE:
            raise _wrong(file, "is far too long for settings")
        return tomllib.loads(text)
    except OSError as error:
        remedy = "name a file with settings in TOML"
        raise _wrong(file, f"cannot be read: {error.strerror}", remedy) from None
    except (ValueError, RecursionError) as error:  # TOML's, UTF-8's, and too many brackets
        raise _wrong(file, f"is not TOML: {error}") from None


def _require_known(file: Path, key: str, known: list[str], where: str = "") -> None:
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"known are {' '.join(known)}"
    raise _wrong(file, f"{where}no such setting: {key}", remedy)


def _check(file: Path, key: str, option: click.Option, value: Any) -> None:
    """Raise unless the value is of the option's type and range."""
    kinds, wanted = _wanted(option)
    values = value if option.multiple else [value]
    if not isinstance(values, list) or any(type(each) not in kinds for each in values):
        wanted = f"a list, each of it {wanted}" if option.multiple else wanted
        raise _wrong(file, f"{key} = {json.dumps(value, default=str)}: wants {wanted}")
    try:
        for each in values:
            option.type.convert(each, option, None)
    except click.BadParameter as error:
        raise _wrong(file, f"{key}: {error.message}") from None


def _wanted(option: click.Option) -> tuple[tuple[type, ...], str]:
    """Return the types that a value in the file may have, and what to call them."""
    if option.is_flag:
        return (bool,), "true or false"
    if isinstance(option.type, click.IntRange):
        return (int,), "a whole number"
    if isinstance(option.type, click.FloatRange):
        return (int, float), "a number"
    return (str,), "a text in quotes"


def _wrong(file: Path, what: str, remedy: str = "") -> CsumfixError:
    again = f"correct it, then try 'csumfix config check {shlex.quote(str(file))}'"
    return CsumfixError(f"{file}: {what.rstrip('.')}: {remedy or again}", Exit.USAGE)


# Tables of devices

_TUNNEL_OPTIONS = {
    setting.name: click.Option([f"--{setting.name}"], type=click.Choice(list(setting.values)))
    for setting in TUNNEL_SETTINGS.values()
}


def _tunnels(file: Path, tables: Any) -> dict[str, TunnelOptions]:
    if not isinstance(tables, dict):
        raise _wrong(file, f"{TUNNEL}: wants tables, such as {heading('flannel.1')}")
    found: dict[str, TunnelOptions] = {}
    for name, table in tables.items():
        shown = _device_name(file, name)
        if shown in found:
            raise _wrong(file, f"{heading(shown)}: is there twice", "give each device one table")
        found[shown] = _tunnel(file, shown, table)
    return found


def _device_name(file: Path, name: str) -> str:
    """Return a device's name as csumfix shows it; raise if no device can have it.

    See dev_valid_name() in net/core/dev.c.
    """
    shown = printable(name)
    size = len(_ESCAPE.sub("?", shown).encode())
    if not 0 < size <= NAME_BYTES or name in {".", ".."} or re.search(r"[/:\s]", name):
        what = f"{heading(shown)}: no network device can have this name"
        raise _wrong(file, what, "write it as 'csumfix status' shows it")
    return shown


def _tunnel(file: Path, name: str, table: Any) -> TunnelOptions:
    where = f"{heading(name)}: "
    if not isinstance(table, dict):
        raise _wrong(file, f"{where}wants a table of settings, such as lane")
    for key, value in table.items():
        if isinstance(value, dict):
            remedy = f"write a name with dots in quotes: {heading(f'{name}.{key}')}"
            raise _wrong(file, f"{where}{key} is a table", remedy)
        _require_known(file, key, list(_TUNNEL_OPTIONS), where)
        _check(file, f"{where}{key}", _TUNNEL_OPTIONS[key], value)
    return TunnelOptions(LaneSetting(table["lane"]) if "lane" in table else None)
