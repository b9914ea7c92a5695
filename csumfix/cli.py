"""The command line: arguments in, exit code out. The commands themselves are elsewhere."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from csumfix import config, protocols, usage
from csumfix.config import PORT, Configured
from csumfix.errors import EXIT_MEANINGS, CsumfixError, Exit
from csumfix.text import printable
from csumfix.usage import Number, WholeNumber

DAY = 24 * 3600

DEFAULT_PORTS = (8472, 4789)

GENEVE_PORT_OPTION = click.option(
    "--geneve-port",
    "geneve_ports",
    type=PORT,
    multiple=True,
    help="UDP destination port that carries Geneve, besides 6081.",
)

LAB_CAUSES = (
    *("none", "kube-proxy", "cni", "snat", "dnat", "stateless", "ipvs"),
    *("nic", "nic-udpcsum", "relay", "forwarded"),
)
"""The causes of csumfix_lab, which is imported only by the command that needs it."""

EXIT_CODES = f"Exit codes: {'; '.join(f'{code} {EXIT_MEANINGS[code]}' for code in Exit)}."

TRACE_EXAMPLE = """\
\b
14:03:22.118203 flannel.1 VNI 1 WRONG: off by 8274
  192.0.2.1:50362 > 192.0.2.2:8472
  outer 0xa0e4, complete 0x8092, inner partial, 128 bytes by eth0
  IP / UDP 10.244.0.0:37012 > 10.244.1.10:domain / DNS Qry b'example.org.'"""

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@click.group(
    cls=usage.Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog=EXIT_CODES,
)
@click.version_option(None, "--version", "-V", package_name="csumfix")
def cli() -> None:
    """Repair wrong outer UDP checksums of VXLAN and Geneve, without touching NIC settings."""


@cli.command("run", short_help="Repair packets of this namespace's tunnels", cls=Configured)
@click.pass_context
def run_command(ctx: click.Context, /, **_: Any) -> None:
    """Repair the packets of this network namespace's tunnels, in the foreground.

    Waits for devices that do not exist yet. SIGTERM and SIGINT remove the rules, empty the
    queues and exit with 0; no packet is lost. SIGHUP reads the settings again.

    Every setting can also be in /etc/csumfix.toml (queue-base = 4) or in the environment
    (CSUMFIX_QUEUE_BASE=4). The environment overrides the file; the command line overrides both.

    Example: csumfix run --lane auto --metrics 127.0.0.1:9478
    """
    from csumfix import logs
    from csumfix.lean import absent

    with absent("ssl"):
        import asyncio  # noqa: F401
    from csumfix.service import service

    arguments, options = ctx.meta[config.ARGUMENTS], config.options(ctx)
    logs.set_up(options.log_format)
    service.run(
        options,
        lambda: config.load(run_command, arguments),
        # -P: never import from the directory that this happens to run in.
        [sys.executable, "-P", "-m", "csumfix", "run", *arguments],
    )


@cli.group("config", short_help="Check and show the settings")
def config_group() -> None:
    """Check and show the settings of the service."""


@config_group.command("check", short_help="Look for mistakes in a file of settings")
@click.argument("file", required=False)
def config_check(file: str | None) -> None:
    """Look for mistakes in FILE, or in the file that the service reads by default.

    Changes nothing. Exits with 2 if there is a mistake.

    Example: csumfix config check /etc/csumfix.toml && systemctl reload csumfix
    """
    parent = click.get_current_context().find_root()
    with run_command.make_context("run", ["--config", file] if file else [], parent) as ctx:
        config.options(ctx)
        click.echo(f"{ctx.params['config'] or 'no file, all defaults'}: good")


@config_group.command("show", short_help="Print the settings and their sources", cls=Configured)
@click.pass_context
def config_show(ctx: click.Context, /, **_: Any) -> None:
    """Print the settings that 'run' would use with these flags, and where each comes from.

    Example: csumfix config show --queues 2
    """
    config.options(ctx)
    for line in config.describe(ctx):
        click.echo(line)


@cli.command("restart", short_help="Replace the service, losing no packet")
def restart_command() -> None:
    """Replace the running service with a new process, losing no packet.

    The new process runs the installed version and reads the settings again. It takes over
    before the old process exits, and becomes the main process of the systemd service.

    Example: make install && csumfix restart
    """
    from csumfix.service import handover

    click.echo(handover.restart())


@cli.command(
    "rules",
    short_help="Load or remove the iptables rules by hand",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def rules_command(as_json: bool, arguments: tuple[str, ...]) -> None:
    """Show, apply, remove or check the iptables rules by hand.

    Passes everything to csumfix-rules; see its --help.

    Example: csumfix rules show --lane both --port 8472
    """
    from csumfix.host import rules

    result = rules.run(arguments or ("--help",), capture=as_json)
    if as_json:
        _print_json(
            {
                "exit_code": result.returncode,
                "output": result.stdout.splitlines(),
                "errors": result.stderr.splitlines(),
            }
        )
    sys.exit(result.returncode)


@cli.command("status", short_help="Show whether all is well, and details")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status_command(as_json: bool) -> None:
    """Show whether all is well; then tunnels, lanes, rules, queues and counters.

    Exits with 1 if no service runs in this network namespace.

    Example: csumfix status --json | jq .service.queues
    """
    from rich.console import Console

    from csumfix.views import status

    state = status.gather()
    if as_json:
        _print_json(state.as_json())
    else:
        status.show(state, Console())
    sys.exit(Exit.OK if state.service else Exit.NEGATIVE)


@cli.command("top", short_help="Watch lanes and queues live")
@click.option(
    "--interval",
    type=Number(0.1, DAY),
    default=1.0,
    show_default=True,
    help="Seconds between two updates.",
)
@click.option("--once", is_flag=True, help="Print the rates over one interval, as plain text.")
def top_command(interval: float, once: bool) -> None:
    """Watch the running service: its tunnels and lanes, and the rates of each queue.

    Press q or Ctrl-C to end it. Exits with 1 if no service runs in this network
    namespace. The wait is measured only while metrics are on.

    Example: csumfix top --interval 5
    """
    from csumfix.views import top

    top.run(interval, once=once)


@cli.command("check", short_help="Explain the checksums in a capture")
@click.argument("source", metavar="[FILE|DEVICE]", required=False)
@click.option("--live", is_flag=True, help="Watch what arrives, instead of reading a file.")
@click.option(
    "--seconds",
    type=Number(0.1, DAY),
    default=10.0,
    show_default=True,
    help="How long to watch.",
)
@click.option(
    "--receiver", is_flag=True, help="The file has only packets that arrived (tcpdump -Q in)."
)
@click.option("--sender", is_flag=True, help="The file was captured on the host that sent them.")
@click.option(
    "--local",
    metavar="ADDRESS",
    multiple=True,
    help="Underlay address of the capturing host; shows which packets arrived and which left.",
)
@click.option(
    "--port",
    "ports",
    type=PORT,
    multiple=True,
    default=DEFAULT_PORTS,
    show_default=True,
    help="UDP destination port that carries VXLAN; 6081 carries Geneve.",
)
@GENEVE_PORT_OPTION
@click.option("-v", "--verbose", is_flag=True, help="Also print a line for each packet.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def check_command(
    source: str | None, live: bool, receiver: bool, sender: bool, **others: Any
) -> None:
    """Report which tunnel packets have wrong checksums, outer or inner, and why.

    Reads a capture file, or standard input if FILE is "-". With --live it watches
    DEVICE, or the devices that carry tunnels. Knows VXLAN and Geneve.

    A departing packet may have checksums that the NIC has yet to compute; an arriving
    packet must not. tcpdump -i any records the direction of each packet. For other
    captures, give --receiver, --sender or --local.

    Exits with 1 only if a packet is certainly wrong.

    Example: tcpdump -i any -w - udp port 8472 | csumfix check -
    """
    from csumfix.evidence.tapsocket import Direction
    from csumfix.views import check

    if not live and source is None:
        raise click.UsageError("Missing argument 'FILE'")
    if receiver + sender + bool(others["local"]) + live > 1:
        raise click.UsageError("--receiver, --sender, --local and --live exclude each other")
    direction = Direction.IN if receiver else Direction.OUT if sender else None
    ports = protocols.named(others.pop("ports"), others.pop("geneve_ports"))
    options = check.CheckOptions(source, ports, live=live, direction=direction, **others)
    sys.exit(Exit.NEGATIVE if check.run(options) else Exit.OK)


@cli.command("doctor", short_help="Find out what loses packets, by experiment")
@click.option(
    "--to", metavar="ADDRESS", multiple=True, help="Address of a pod or node behind the tunnel."
)
@click.option("--tcp", metavar="HOST:PORT", help="Also send 1 MB there: for NICs that ruin GSO.")
@click.option(
    "--probe",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="Send probes.",
)
@click.option("--receiver", is_flag=True, help="Find out who sends wrong packets to this host.")
@click.option(
    "--seconds",
    type=Number(0.1, DAY),
    default=10.0,
    show_default=True,
    help="How long --receiver watches.",
)
@click.option("--kernel", is_flag=True, help="Test which of the bugs this kernel has.")
@click.option(
    "--bundle",
    "bundle_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a support bundle (tar.gz) to this new file.",
)
@click.option(
    "--replace-addresses",
    is_flag=True,
    help="Replace addresses and names in the bundle, consistently.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor_command(  # noqa: PLR0913 - one for each option
    *,
    to: tuple[str, ...],
    tcp: str | None,
    probe: str,
    receiver: bool,
    seconds: float,
    kernel: bool,
    bundle_file: Path | None,
    replace_addresses: bool,
    as_json: bool,
) -> None:
    """Find out what loses packets of this host's tunnels. Changes nothing.

    Sends a few packets to the other ends of this host's tunnels, watches how they
    leave, and reads NAT rules and device features. That takes less than 10 s.

    --receiver instead watches the packets that arrive, and the checksum errors of
    this host and its pods. --kernel tests the running kernel for the known bugs, in
    throwaway namespaces. That takes about 10 s, and needs no root where
    unprivileged users may create namespaces.

    Exits with 0 if all is well, 1 if a fault was found, 7 if undecided.

    Example: csumfix doctor --to 10.244.1.10
    """
    from csumfix.views import bundle

    if receiver and kernel:
        raise click.UsageError("--receiver and --kernel exclude each other")
    with bundle.optional(bundle_file, replace=replace_addresses) as diagnosed:
        if kernel:
            from csumfix_lab import doctor as laboratory

            code, document = laboratory.run(as_json=as_json)
        elif receiver:
            from csumfix.views import receiver as arrivals

            code, document = arrivals.run(seconds, protocols.named(DEFAULT_PORTS), as_json=as_json)
        else:
            from csumfix.views import doctor

            code, document = doctor.run(doctor.options(to, tcp, probe == "on", as_json))
        diagnosed(document)
    sys.exit(code)


@cli.command("trace", short_help="Show packets as they leave this host", epilog=TRACE_EXAMPLE)
@click.option("--bad-only", is_flag=True, help="Show only packets whose outer checksum is wrong.")
@click.option("--count", type=WholeNumber(1), help="Stop after this many packets.")
@click.option(
    "--pcap",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write them to this file, for Wireshark.",
)
@click.option(
    "--port",
    "ports",
    type=PORT,
    multiple=True,
    help="Extra VXLAN port, for tunnels without a local device; 6081 carries Geneve.",
)
@GENEVE_PORT_OPTION
def trace_command(
    bad_only: bool,
    count: int | None,
    pcap: Path | None,
    ports: tuple[int, ...],
    geneve_ports: tuple[int, ...],
) -> None:
    """Show the tunnel packets that leave this host, until Ctrl-C. Changes none of them.

    It shows packets as the network device gets them, after all NAT. The device
    completes the checksums that are "partial".

    Example: csumfix trace --bad-only --count 10 --pcap wrong.pcapng
    """
    from csumfix.views import trace

    trace.run(trace.TraceOptions(bad_only, count or 0, pcap, protocols.named(ports, geneve_ports)))


@cli.command("lab", short_help="Try csumfix in a throwaway two-node lab")
@click.option(
    "--cause",
    type=click.Choice(LAB_CAUSES),
    default="kube-proxy",
    show_default=True,
    metavar="CAUSE",
    help=f"The bug to reproduce: {', '.join(LAB_CAUSES)}.",
)
@click.option("--ipv6", is_flag=True, help="Use an IPv6 underlay.")
@click.option(
    "--mtu",
    type=WholeNumber(1350, 9000),
    default=1500,
    show_default=True,
    help="MTU of the underlay.",
)
@click.option("--port", type=PORT, default=8472, show_default=True, help="UDP port of the tunnel.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def lab_command(cause: str, ipv6: bool, mtu: int, port: int, command: tuple[str, ...]) -> None:
    """Run a command, or a shell, on a node of a throwaway two-node VXLAN lab.

    Needs no root, except for cause nic on hosts where only root may use /dev/net/tun.

    Example: csumfix lab --cause snat -- csumfix run
    """
    from csumfix_lab.session import run_session

    sys.exit(run_session(cause, ipv6, mtu, port, command))


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2, default=str))


def main() -> None:
    """Run the command line. Every error is one line."""
    try:
        sys.exit(cli(prog_name="csumfix", standalone_mode=False) or Exit.OK)
    except CsumfixError as error:
        _fail(str(error), error.code)
    except click.UsageError as error:
        _fail(usage.line(config.explain(error), error.ctx), Exit.USAGE)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", Exit.NEGATIVE)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        # Python would try again on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(
            f"the output cannot be written: {error.strerror}: check the file or disk it goes to",
            Exit.BROKEN,
        )


def _fail(message: str, code: Exit) -> None:
    click.echo(f"csumfix: {printable(message)}", err=True)
    sys.exit(code)
