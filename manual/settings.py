"""The settings: the sample of /etc/csumfix.toml, the table in docs/, and csumfix.toml(5)."""

from __future__ import annotations

import json
import textwrap

from csumfix.environment import variable
from csumfix.options import DEFAULTS, SETTINGS, TUNNEL_SETTINGS, Setting
from csumfix.settingsfile import heading
from manual.scdoc import entry, escape

WIDTH = 90

HEAD = """\
# /etc/csumfix.toml: settings of "csumfix run"; see csumfix.toml(5). Each is named as its flag is.
# The values shown are the defaults. Flags and the environment come before this file.
#
#   csumfix config check            look for mistakes
#   systemctl reload csumfix        put into effect; a file with mistakes changes nothing
"""


DEVICE = """\
A table, at the end of the file, has the settings of one vxlan or geneve device. Devices
that share a UDP port share its lane: queue if one of them wants that, else auto, else kernel.
"""


def _sentences(setting: Setting) -> str:
    """Return all that is said of a setting but its values."""
    meaning = setting.meaning.partition("  [")[0]
    return " ".join(part for part in (meaning, setting.more) if part)


def _default(field: str) -> str:
    """Return the default as TOML, or an empty text if it is not to be set."""
    value = getattr(DEFAULTS, field)
    return "" if value is None else json.dumps(list(value) if isinstance(value, tuple) else value)


def _comment(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=f"# {indent}", subsequent_indent=f"# {' ' * len(indent)}"
    )


def sample() -> str:
    """Return the sample file; every setting in it is a comment."""
    parts = [HEAD]
    for field, setting in SETTINGS.items():
        if setting.is_for_managers:
            continue
        parts += ["", _comment(_sentences(setting))]
        parts += [_comment(f"{name}: {says}", "  ") for name, says in setting.values.items()]
        parts.append(f"#{setting.name} = {_default(field) or json.dumps(setting.example)}")
    parts += ["", *_sample_of_a_device()]
    return "\n".join(parts).replace("\n\n\n", "\n\n") + "\n"


def _sample_of_a_device() -> list[str]:
    parts = [_comment(DEVICE), f"#{heading('flannel.1')}"]
    for setting in TUNNEL_SETTINGS.values():
        parts += [
            _comment(_sentences(setting)),
            f"#{setting.name} = {json.dumps(setting.example)}",
        ]
    return parts


def entries_of_a_device() -> str:
    """Return the settings of one device, for csumfix.toml(5)."""
    return "\n".join(
        entry(
            f"*{setting.name}* = {escape(json.dumps(setting.example))}", escape(_of_one(setting))
        )
        for setting in TUNNEL_SETTINGS.values()
    )


def _of_one(setting: Setting) -> str:
    return f"{_sentences(setting)} One of {', '.join(setting.values)}."


def _what(setting: Setting) -> str:
    if setting.is_flag:
        return ""
    return f" {setting.metavar or ('NAME' if setting.values else 'N')}"


def table() -> str:
    """Return the table of all settings in Markdown."""
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    for field, setting in SETTINGS.items():
        says = _sentences(setting)
        for name, text in setting.values.items():
            says += f"<br>`{name}`: {text}"
        default = f"`{_default(field)}`" if _default(field) else "not set"
        lines.append(f"| `--{setting.name}{_what(setting)}` | {default} | {says} |")
    return "\n".join(lines)


def entries() -> str:
    """Return the settings as they stand in the file, for csumfix.toml(5)."""
    parts = []
    for field, setting in SETTINGS.items():
        value = _default(field) or json.dumps(setting.example)
        says = [_sentences(setting)]
        says += [f"{name}: {text}." for name, text in setting.values.items()]
        if setting.bounds:
            low, high = setting.bounds
            says.append(f"From {low:g} to {high:.0f}.")
        known = f"Default: {_default(field)}." if _default(field) else "Not set by default."
        says += [known, f"Variable: {variable('port' if setting.is_list else field)}."]
        parts.append(entry(f"*{setting.name}* = {escape(value)}", escape(" ".join(says))))
    return "\n".join(parts)
