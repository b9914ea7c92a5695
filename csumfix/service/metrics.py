"""The service's counters as Prometheus metrics; deploy/prometheus/METRICS.md says what each means.

Nothing is counted here: each scrape converts one snapshot.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from csumfix import core
from csumfix.evidence.departures import Departure
from csumfix.host.tunnels import Tunnel
from csumfix.lean import parts_of
from csumfix.service.snapshot import QueueSnapshot, ReloadSnapshot, Snapshot

with parts_of("prometheus_client"):
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.openmetrics import exposition as openmetrics
    from prometheus_client.process_collector import ProcessCollector
    from prometheus_client.registry import Collector, CollectorRegistry

Queues = Mapping[int, QueueSnapshot]

LABELLED = 200
"""Devices, and ports, that have their own series at most; csumfix_tunnels counts all devices."""

DRAIN_COUNTERS = (
    ("bytes", "csumfix_bytes", "Bytes of the queue lane's packets."),
    ("batches", "csumfix_receives", "Receive calls that brought messages from the kernel."),
    ("sends", "csumfix_sends", "Send calls with verdicts."),
    ("send_errors", "csumfix_send_errors", "Send calls with verdicts that the kernel refused."),
    ("verdict_errors", "csumfix_verdict_errors", "Verdicts that the kernel refused."),
    (
        "overruns",
        "csumfix_overrun_packets",
        "Packets that passed unrepaired because the socket's buffer was full.",
    ),
    ("interrupts", "csumfix_interrupts", "Receive calls that a signal ended."),
    (
        "malformed",
        "csumfix_malformed_messages",
        "Messages from the kernel that could not be parsed.",
    ),
    (
        "unexpected",
        "csumfix_unexpected_messages",
        "Messages from the kernel that were not for the service.",
    ),
)
"""Field of QueueSnapshot, metric, help."""

KERNEL_COUNTERS = (
    (
        "queue_dropped",
        "csumfix_queue_dropped_packets",
        "Packets that the kernel dropped because the queue was full.",
    ),
    (
        "user_dropped",
        "csumfix_user_dropped_packets",
        "Packets that the kernel dropped because it could not hand them to the service.",
    ),
)
"""Field of KernelCounters, metric, help."""


CLASSIC = "text/plain; version=0.0.4; charset=utf-8"


def renderer(snapshot: Callable[[], Snapshot]) -> Callable[[str], tuple[bytes, str]]:
    """Return a function from a client's Accept header to the metrics and their content type.

    Prometheus accepts OpenMetrics. The classic text format, for all other clients, is imported
    when one asks, because it comes with 6 MB of HTTP servers and clients.
    """
    metrics = registry(snapshot)

    def render(accepted: str) -> tuple[bytes, str]:
        if "application/openmetrics-text" in accepted:
            rendered: bytes = openmetrics.generate_latest(metrics)  # type: ignore[no-untyped-call]
            return rendered, openmetrics.CONTENT_TYPE_LATEST
        from prometheus_client.exposition import generate_latest

        return generate_latest(metrics), CLASSIC

    return render


def registry(snapshot: Callable[[], Snapshot]) -> CollectorRegistry:
    """Make a registry with all metrics of the service and its process."""
    made = CollectorRegistry()
    made.register(_SnapshotCollector(snapshot))
    ProcessCollector(registry=made)
    return made


def outcome(reason: str) -> str:
    """Return what became of packets with this reason."""
    return core.OUTCOMES[reason].name.lower()


class _SnapshotCollector(Collector):
    """Turns a snapshot into metric families."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering takes no snapshot."""
        return ()

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        queues = snapshot.queues
        yield _packets(queues)
        for field, name, text in DRAIN_COUNTERS:
            counts = {number: getattr(queue, field) for number, queue in queues.items()}
            yield _counter(name, text, counts)
        yield from _histograms(queues)
        yield from _kernel(queues)
        yield from _tunnels(snapshot)
        yield from _lanes(snapshot)
        yield from _tap(snapshot)
        yield from _probes(snapshot)
        yield from _rules(snapshot)
        yield from _config(snapshot.reload)
        yield _build(snapshot.version)


def _counter(name: str, text: str, by_queue: Mapping[int, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["queue"])
    for number, value in by_queue.items():
        family.add_metric([str(number)], value)
    return family


def _packets(queues: Queues) -> Metric:
    labels = ["queue", "outcome", "reason"]
    family = CounterMetricFamily("csumfix_packets", "Packets of the queue lane.", labels=labels)
    for number, queue in queues.items():
        for reason, count in queue.reasons.items():
            family.add_metric([str(number), outcome(reason), reason], count)
    return family


def _histograms(queues: Queues) -> Iterator[Metric]:
    batches = HistogramMetricFamily(
        "csumfix_batch_packets", "Packets brought by one receive call.", labels=["queue"]
    )
    waits = HistogramMetricFamily(
        "csumfix_queue_wait_seconds",
        "Time that a packet would wait for its verdict, sampled by probes at random moments.",
        labels=["queue"],
    )
    for number, queue in queues.items():
        sizes = _buckets(core.BATCH_BOUNDS, queue.batch_sizes)
        batches.add_metric([str(number)], sizes, queue.packets)
        times = _buckets(core.WAIT_BOUNDS, queue.waits)
        waits.add_metric([str(number)], times, queue.wait_us / 1e6)
    yield batches
    yield waits


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return the cumulative buckets that Prometheus wants."""
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return list(zip(names, accumulate(counts), strict=True))


def _kernel(queues: Queues) -> Iterator[Metric]:
    """Yield what the kernel shows of each queue; nothing of those that it does not show."""
    shown = {number: queue.kernel for number, queue in queues.items() if queue.kernel}
    waiting = GaugeMetricFamily(
        "csumfix_queue_packets", "Packets that wait for their verdict.", labels=["queue"]
    )
    for number, kernel in shown.items():
        waiting.add_metric([str(number)], kernel.waiting)
    yield waiting
    for field, name, text in KERNEL_COUNTERS:
        counts = {number: getattr(kernel, field) for number, kernel in shown.items()}
        yield _counter(name, text, counts)


def _tunnels(snapshot: Snapshot) -> Iterator[Metric]:
    count = snapshot.tunnels_count
    yield GaugeMetricFamily("csumfix_tunnels", "Vxlan and geneve devices found.", value=count)
    info = GaugeMetricFamily(
        "csumfix_tunnel_info",
        "A vxlan or geneve device; always 1.",
        labels=["device", "vni", "port", "family", "protocol"],
    )
    mtu = GaugeMetricFamily(
        "csumfix_tunnel_mtu_bytes", "MTU of a vxlan or geneve device.", labels=["device"]
    )
    for tunnel in snapshot.tunnels[:LABELLED]:
        port, family = str(tunnel.port), tunnel.family
        info.add_metric([tunnel.name, _vni(tunnel), port, family, tunnel.protocol], 1)
        mtu.add_metric([tunnel.name], tunnel.mtu)
    yield info
    yield mtu


def _vni(tunnel: Tunnel) -> str:
    return "any" if tunnel.metadata else str(tunnel.vni)


def _lanes(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield the lane of each tunnel port, and what its packets met there."""
    lane = GaugeMetricFamily(
        "csumfix_port_lane_info", "The lane of a tunnel port; always 1.", labels=["port", "lane"]
    )
    kernel = CounterMetricFamily(
        "csumfix_kernel_lane_packets",
        "Packets that met the CHECKSUM rule of the kernel lane, GSO packets included.",
        labels=["port"],
    )
    repaired = CounterMetricFamily(
        "csumfix_queue_lane_repaired_packets",
        "Packets whose outer checksum the queue lane recomputed.",
        labels=["port"],
    )
    for one in snapshot.lanes[:LABELLED]:
        port = str(one.port)
        lane.add_metric([port, one.lane], 1)
        kernel.add_metric([port], one.kernel_packets)
        repaired.add_metric([port], one.repaired)
    yield from (lane, kernel, repaired)
    yield CounterMetricFamily(
        "csumfix_lane_changes",
        "Times that a tunnel port changed its lane.",
        value=snapshot.lane_changes,
    )
    yield CounterMetricFamily(
        "csumfix_nat_packets",
        "Tunnel packets whose outer header NAT rewrites.",
        value=snapshot.nat_packets,
    )


def _tap(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield what the egress tap saw of the packets that it looked at."""
    looked = CounterMetricFamily(
        "csumfix_departures",
        "Tunnel packets that the egress tap looked at, by the state of their outer checksum.",
        labels=["port", "checksum"],
    )
    for one in snapshot.lanes[:LABELLED]:
        for departure in Departure:
            count = one.departures.get(departure, 0)
            looked.add_metric([str(one.port), departure], count)
    yield looked
    if snapshot.config.get("tap_pause") == 0:  # it is turned off, which is no fault
        return
    yield GaugeMetricFamily(
        "csumfix_tap_up",
        "Whether the egress tap can see packets.",
        value=not snapshot.tap_fault,
    )


def _probes(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield what came of the probes to the other ends of the tunnels."""
    yield CounterMetricFamily(
        "csumfix_probe_rounds",
        "Times that the other ends of the tunnels were asked.",
        value=snapshot.probe_rounds,
    )
    labels = ["port", "kind"]
    sent = CounterMetricFamily(
        "csumfix_probes_sent",
        "Probes sent to the other ends, by how their checksum was sent.",
        labels=labels,
    )
    answered = CounterMetricFamily(
        "csumfix_probes_answered",
        "Probes that were answered, by how their checksum was sent.",
        labels=labels,
    )
    lost = GaugeMetricFamily(
        "csumfix_probe_lost",
        "Whether probes whose checksum is left to offload are lost while others are answered.",
        labels=["port"],
    )
    for one in snapshot.lanes[:LABELLED]:
        port = str(one.port)
        for kind in ("complete", "offloaded"):
            sent.add_metric([port, kind], one.probes_sent.get(kind, 0))
            answered.add_metric([port, kind], one.probes_answered.get(kind, 0))
        if one.probe_lost is not None:
            lost.add_metric([port], one.probe_lost)
    yield from (sent, answered, lost)


def _rules(snapshot: Snapshot) -> Iterator[Metric]:
    loaded = snapshot.rules is not None
    yield GaugeMetricFamily("csumfix_rules_loaded", "Whether our rules are loaded.", value=loaded)
    yield CounterMetricFamily(
        "csumfix_rule_repairs",
        "Times that another program's change to our rules was undone.",
        value=snapshot.rules_restored,
    )
    yield CounterMetricFamily(
        "csumfix_rule_failures",
        "Times that rules could not be loaded.",
        value=snapshot.rule_failures,
    )


def _config(reload: ReloadSnapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "csumfix_config_last_reload_successful",
        "Whether the configuration that was read last is valid.",
        value=reload.ok,
    )
    yield GaugeMetricFamily(
        "csumfix_config_last_reload_timestamp_seconds",
        "When the configuration was last read.",
        value=reload.time,
    )
    reloads = CounterMetricFamily(
        "csumfix_config_reloads", "Times that the configuration was read again.", labels=["result"]
    )
    reloads.add_metric(["success"], reload.succeeded)
    reloads.add_metric(["failure"], reload.failed)
    yield reloads


def _build(version: str) -> Metric:
    family = GaugeMetricFamily(
        "csumfix_build_info",
        "What runs; always 1.",
        labels=["version", "checksum_backend", "python"],
    )
    family.add_metric([version, core.checksum_backend(), platform.python_version()], 1)
    return family
