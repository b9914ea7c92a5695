"""One-line messages about wrong usage, which name the command whose help to read."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import click
from click.exceptions import NoSuchOption

from csumfix.errors import Exit

WISHES = {
    "start": "To start csumfix: 'csumfix run', or 'systemctl start csumfix'.",
    "stop": "To stop csumfix: 'systemctl stop csumfix', or Ctrl-C where you started it by hand.",
    "reload": "To have it read its settings again: 'systemctl reload csumfix', or 'kill -HUP'.",
    "version": "For the version: 'csumfix --version'.",
    "help": "For help: 'csumfix --help'.",
}
"""Commands that people expect and that do not exist, and what to type instead."""


class WholeNumber(click.IntRange):
    """A whole number within bounds."""

    name = "number"

    def _describe_range(self) -> str:
        """Return what click's help shows, instead of 1<=x<=64."""
        return _range(self)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; fail in plain words."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number.", param, ctx)
        if not _is_within(self, number):
            self.fail(f"{number} is not in the range {_range(self)}.", param, ctx)
        return number


class Number(click.FloatRange):
    """A number within bounds."""

    name = "number"

    def _describe_range(self) -> str:
        """Return what click's help shows, instead of 1<=x<=64."""
        return _range(self)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; fail in plain words."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number.", param, ctx)
        if not _is_within(self, number):  # "nan" is in no range
            self.fail(f"{number} is not in the range {_range(self)}.", param, ctx)
        return number


def _is_within(bounds: click.IntRange | click.FloatRange, number: float) -> bool:
    low, high = bounds.min, bounds.max
    return (low is None or number >= low) and (high is None or number <= high)


def _range(bounds: click.IntRange | click.FloatRange) -> str:
    if bounds.max is None:
        return f"from {bounds.min} up"
    return f"from {bounds.min} to {bounds.max}"


class _Located(click.Command):
    """Names the command in errors of the parser, which click leaves out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse them."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


class Command(_Located):
    """A command."""


class Group(_Located, click.Group):
    """A group of commands."""

    command_class = Command
    group_class = type

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse them; without any, show the help as an error."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(Exit.USAGE)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; fail in plain words."""
        name = args[0]
        is_unknown = not name.startswith("-") and self.get_command(ctx, name) is None
        if is_unknown and not ctx.resilient_parsing:
            remedy = WISHES.get(name) or _guess(get_close_matches(name, self.commands))
            raise click.UsageError(f"No such command {name!r}. {remedy}", ctx)
        return super().resolve_command(ctx, args)


def explain(error: click.UsageError) -> str:
    """Return what is wrong, in one or two sentences."""
    if isinstance(error, NoSuchOption):
        return f"No such option {error.option_name!r}. {_guess(error.possibilities or ())}"
    return error.format_message()


def _guess(possibilities: Iterable[str]) -> str:
    """Return a question, or an empty text if nothing is similar."""
    names = " or ".join(repr(each) for each in possibilities)
    return f"Did you mean {names}?" if names else ""


def line(what: str, ctx: click.Context | None) -> str:
    """Return the whole line about an error: what is wrong, and which help to read."""
    what = what.strip()
    end = "" if what.endswith((".", "?", "!")) else "."
    return f"{what}{end} See '{ctx.command_path if ctx else 'csumfix'} --help'."
