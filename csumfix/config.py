"""Reads the settings of ``csumfix run`` from three places; ``csumfix.options`` describes them.

The command line wins over the environment (``CSUMFIX_QUEUE_BASE``), which wins over the file
(``queue-base``). click merges the three; ``csumfix.settingsfile`` reads the file.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from csumfix import environment, settingsfile, usage
from csumfix.errors import CsumfixError, Exit
from csumfix.options import DEFAULTS, LAST_QUEUE, SETTINGS, LaneSetting, Options, Setting
from csumfix.settingsfile import Contents, key_of
from csumfix.usage import Command, Number, WholeNumber

DEFAULT_FILE = Path("/etc/csumfix.toml")
PORT = WholeNumber(1, 65535)

ARGUMENTS, TUNNELS = f"{__name__}.arguments", f"{__name__}.tunnels"
"""Keys of the context's meta: the arguments as given, and the settings of single devices."""


class Address(click.types.StringParamType):
    """ADDRESS:PORT to listen at; an IPv6 address stands in brackets."""

    name = "address:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check it and return it as it is."""
        try:
            address = urlsplit(f"//{value}")
            ipaddress.ip_address(address.hostname or "")
            whole = bool(address.port) and not address.username and address.netloc == value
        except ValueError:
            whole = False
        if not whole:
            self.fail(f"{value!r} is not like 127.0.0.1:9478 or [::1]:9478.", param, ctx)
        return str(value)


def _read_file(ctx: click.Context, _: click.Parameter, file: Path | None) -> Path | None:
    """Make the file's values the defaults of all other options."""
    chosen = file or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    contents = settingsfile.read(chosen, FLAGS) if chosen else Contents()
    ctx.default_map = dict(contents.flags)
    ctx.meta[TUNNELS] = contents.tunnels
    return chosen


class PortOption(click.Option):
    """An option whose variable, ...PORT, Kubernetes may have set for its own purposes."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return the variable's value if it is meant for us."""
        value = super().resolve_envvar_value(ctx)
        return None if value and environment.is_service_link(value) else value


FILE = click.Option(
    ["--config"],
    type=click.Path(path_type=Path),
    metavar="FILE",
    is_eager=True,
    callback=_read_file,
    help=f"Read settings from here.  [default: {DEFAULT_FILE}, if it exists]",
)


def _flag(field: str, setting: Setting) -> click.Option:
    """Make the flag of a setting; ``field`` is its name in Options."""
    default = getattr(DEFAULTS, field)
    kind = PortOption if field in ("ports", "geneve_ports") else click.Option
    if setting.is_flag:
        return kind([f"--{setting.name}"], is_flag=True, help=setting.meaning)
    return kind(
        [f"--{setting.name}"],
        type=_type(setting, default),
        multiple=setting.is_list,
        default=str(default) if setting.values else default,
        show_default=default not in (None, ()),
        metavar=setting.metavar,
        help=setting.meaning,
    )


def _type(setting: Setting, default: object) -> click.ParamType[Any]:
    if setting.values:
        return click.Choice(list(setting.values))
    if setting.bounds is None:
        return Address()
    low, high = setting.bounds
    if isinstance(default, float):
        return Number(low, high)
    return WholeNumber(int(low), int(high))


FLAGS = tuple(_flag(field, setting) for field, setting in SETTINGS.items())


class Configured(Command):
    """A command that has all the settings of the service.

    Its context keeps the arguments as they were given, so that load() can read them again.
    """

    def __init__(self, *args: Any, **attributes: Any) -> None:
        attributes["params"] = [*FLAGS, FILE, *attributes.get("params", [])]
        attributes["context_settings"] = {
            "auto_envvar_prefix": environment.PREFIX,
            **attributes.get("context_settings", {}),
        }
        super().__init__(*args, **attributes)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember the arguments, then parse them."""
        environment.check(os.environ, [str(setting.name) for setting in (*FLAGS, FILE)])
        ctx.meta[ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)


def options(ctx: click.Context) -> Options:
    """Return the settings of a parsed command; raise if they do not go together."""
    values = {str(setting.name): ctx.params[str(setting.name)] for setting in FLAGS}
    ports, geneve_ports = (tuple(sorted(set(values.pop(key)))) for key in ("port", "geneve_port"))
    lane = LaneSetting(values.pop("lane"))
    result = Options(
        ports=ports, geneve_ports=geneve_ports, lane=lane, tunnels=ctx.meta[TUNNELS], **values
    )
    if result.queue_numbers[-1] > LAST_QUEUE:
        raise click.UsageError(
            f"--queue-base {result.queue_base} leaves no room for {result.queues} queues", ctx
        )
    return result


def load(command: click.Command, arguments: Sequence[str]) -> Options:
    """Read everything again, as this command would with these arguments."""
    try:
        with command.make_context(command.name, list(arguments)) as ctx:
            return options(ctx)
    except click.UsageError as error:
        raise CsumfixError(explain(error), Exit.USAGE) from None


def explain(error: click.UsageError) -> str:
    """Return click's message, and the variable that it is about if it is about one."""
    message = usage.explain(error)
    if isinstance(error, click.BadParameter) and error.param and error.ctx:
        name = str(error.param.name)
        if error.ctx.get_parameter_source(name) is ParameterSource.ENVIRONMENT:
            return f"{_variable(name)}: {message}"
    return message


def describe(ctx: click.Context) -> list[str]:
    """Return the effective settings as lines of TOML, each with the place that it comes from."""
    lines = []
    for setting in FLAGS:
        value = ctx.params[str(setting.name)]
        text = f"{key_of(setting)} = {json.dumps(value)}"
        line = f"# {key_of(setting)}: not set" if value is None else text
        lines.append(f"{line:<30}  # {_source(ctx, setting)}")
    for name, tunnel in ctx.meta[TUNNELS].items():
        lines += ["", f"{settingsfile.heading(name):<30}  # {ctx.params['config']}"]
        lines += [f"lane = {json.dumps(tunnel.lane)}"] if tunnel.lane else []
    return lines


def _source(ctx: click.Context, setting: click.Option) -> str:
    source = ctx.get_parameter_source(str(setting.name))
    if source is ParameterSource.COMMANDLINE:
        return "command line"
    if source is ParameterSource.ENVIRONMENT:
        return f"environment {_variable(str(setting.name))}"
    if source is ParameterSource.DEFAULT_MAP:
        return str(ctx.params["config"])
    return "default"


def _variable(name: str) -> str:
    return environment.variable(name)
