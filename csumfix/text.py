"""Text of this host made fit to be shown: device names, answers and errors may hold any bytes.

The kernel lets a network device's name be any bytes but "/", ":" and white space
(net/core/dev.c, dev_valid_name()): also control characters, and bytes that are not UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LISTED = 8
"""How many names a line lists before it only counts the rest."""

LINE = 2000
"""Longest line of a log in characters; journald and syslog cut or split long ones."""


def printable(text: str | bytes) -> str:
    """Return the text in one line, with an escape for whatever could steer a terminal.

    Text that has been made printable already stays as it is.
    """
    if isinstance(text, bytes):
        text = text.decode(errors="backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # noqa: PLR2004 - a byte that was no UTF-8, see PEP 383
        code -= 0xDC00
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004


def printable_data(data: Any) -> Any:
    """Return plain data, such as a JSON document, with all its texts made printable."""
    if isinstance(data, str | bytes):
        return printable(data)
    if isinstance(data, dict):
        return {printable_data(key): printable_data(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [printable_data(each) for each in data]
    return data


def listing(items: Iterable[object], separator: str = ", ", limit: int = LISTED) -> str:
    """Return the first items in a line, and how many more there are."""
    texts = [printable(str(item)) for item in items]
    shown = separator.join(texts[:limit])
    rest = len(texts) - limit
    return f"{shown}{separator}and {rest} more" if rest > 0 else shown


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in singular or plural: 1 port, 2 ports."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shortened(text: str, limit: int = LINE) -> str:
    """Return the text, cut off after this many characters, with a note if it was cut."""
    if len(text) <= limit:
        return text
    mark = " ... (cut off)"
    return text[: limit - len(mark)] + mark
