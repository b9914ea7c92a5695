"""The commands of csumfix as csumfix(8) lists them, from the command line's own help."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from csumfix.cli import cli
from csumfix.config import Configured
from csumfix.errors import EXIT_MEANINGS, Exit
from manual.scdoc import entry, escape, literal, paragraph

FLAG = re.compile(r"(?P<names>(-\w, )?--[\w-]+)( (?P<value>.*))?")


def _walk(
    command: click.Command, ctx: click.Context
) -> Iterator[tuple[click.Command, click.Context]]:
    if not isinstance(command, click.Group):
        yield command, ctx
        return
    for name in command.list_commands(ctx):
        below = command.get_command(ctx, name)
        assert below is not None
        yield from _walk(below, click.Context(below, ctx, name))


def _paragraphs(text: str) -> Iterator[str]:
    for part in text.split("\n\n"):
        if part.startswith("\b"):
            yield literal(part.removeprefix("\b"))
        elif part.strip().startswith("Example: "):
            yield paragraph(f"Example: *{escape(part.strip().removeprefix('Example: '))}*")
        else:
            yield paragraph(escape(part))


def _options(command: click.Command, ctx: click.Context) -> Iterator[str]:
    if isinstance(command, Configured) and ctx.info_name != "run":
        yield paragraph("Takes the options of *csumfix run*.")
        return
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        found = record and FLAG.fullmatch(record[0])
        if record and found and not found["names"].endswith("--help"):
            term = f"*{escape(found['names'])}* {escape(found['value'] or '')}"
            yield entry(term.rstrip(), escape(record[1] or "See above."))


def sections() -> str:
    """Return a subsection for each command."""
    parts = []
    root = click.Context(cli, info_name="csumfix")
    for command, ctx in _walk(cli, root):
        usage = " ".join(command.collect_usage_pieces(ctx))
        parts.append(f"## {ctx.command_path} {escape(usage)}\n")
        parts += _paragraphs((command.help or "").strip())
        if command.epilog:
            parts += _paragraphs(command.epilog)
        parts += _options(command, ctx)
    return "\n".join(parts)


def exit_status() -> str:
    """Return the exit codes for a man page."""
    return "\n".join(entry(f"*{code:d}*", escape(EXIT_MEANINGS[code])) for code in Exit)


def exit_table() -> str:
    """Return the exit codes as a table in Markdown."""
    rows = [f"| {code:d} | {EXIT_MEANINGS[code]} |" for code in Exit]
    return "\n".join(("| code | meaning |", "|---|---|", *rows))
