"""The metrics of a snapshot: their values, their names, and the document that lists them."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

from csumfix import core
from csumfix.evidence.departures import Departure
from csumfix.service import metrics
from csumfix.service.snapshot import ReloadSnapshot, Snapshot
from tests.prometheus import promtool
from tests.unit.snapshots import STARTED, queue, snapshot, tunnel

DOCUMENT = Path("deploy/prometheus/METRICS.md")


def registry(shown: Snapshot) -> CollectorRegistry:
    return metrics.registry(lambda: shown)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("csumfix_bytes_total", 123_456),
        ("csumfix_receives_total", 41),
        ("csumfix_sends_total", 42),
        ("csumfix_send_errors_total", 43),
        ("csumfix_verdict_errors_total", 44),
        ("csumfix_overrun_packets_total", 45),
        ("csumfix_interrupts_total", 46),
        ("csumfix_malformed_messages_total", 47),
        ("csumfix_unexpected_messages_total", 48),
        ("csumfix_queue_packets", 51),
        ("csumfix_queue_dropped_packets_total", 52),
        ("csumfix_user_dropped_packets_total", 53),
        ("csumfix_batch_packets_count", 4),
        ("csumfix_batch_packets_sum", 100),
        ("csumfix_queue_wait_seconds_count", 10),
        ("csumfix_queue_wait_seconds_sum", 2.5),
    ],
)
def test_values_of_a_queue(name: str, value: float) -> None:
    assert registry(snapshot()).get_sample_value(name, {"queue": "0"}) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("csumfix_tunnels", 1),
        ("csumfix_rules_loaded", 1),
        ("csumfix_rule_repairs_total", 63),
        ("csumfix_rule_failures_total", 64),
        ("csumfix_config_last_reload_successful", 1),
        ("csumfix_config_last_reload_timestamp_seconds", STARTED + 60),
    ],
)
def test_values_of_the_service(name: str, value: float) -> None:
    assert registry(snapshot()).get_sample_value(name) == value


def test_buckets_are_cumulative() -> None:
    get = registry(snapshot()).get_sample_value

    def bucket(name: str, bound: str) -> float | None:
        return get(f"{name}_bucket", {"queue": "0", "le": bound})

    sizes = [bucket("csumfix_batch_packets", le) for le in ("1.0", "4.0", "8.0", "64.0", "+Inf")]
    assert sizes == [1, 1, 3, 4, 4]
    waits = [bucket("csumfix_queue_wait_seconds", le) for le in ("1e-05", "5e-05", "1.0", "+Inf")]
    assert waits == [5, 8, 9, 10]


def test_every_reason_has_one_outcome() -> None:
    outcomes = {reason: metrics.outcome(reason) for reason in core.REASONS}
    assert {reason for reason, what in outcomes.items() if what in ("repaired", "filled")} == (
        core.WRITTEN
    )
    assert outcomes["right"] == "verified"
    assert outcomes["zero_kept"] == "not_judged"
    for reason, what in outcomes.items():
        labels = {"queue": "0", "outcome": what, "reason": reason}
        count = queue().reasons[reason]
        assert registry(snapshot()).get_sample_value("csumfix_packets_total", labels) == count


def test_queues_and_tunnels_have_samples_of_their_own() -> None:
    shown = snapshot(
        queues={3: queue(overruns=1), 4: queue(overruns=2)},
        tunnels=(tunnel(), tunnel("meta0", vni=0, metadata=True, family="both", mtu=1500)),
    )
    get = registry(shown).get_sample_value
    overruns = [get("csumfix_overrun_packets_total", {"queue": number}) for number in "34"]
    assert overruns == [1, 2]
    labels = {
        "device": "meta0",
        "vni": "any",
        "port": "8472",
        "family": "both",
        "protocol": "vxlan",
    }
    assert get("csumfix_tunnel_info", labels) == 1
    assert get("csumfix_tunnel_mtu_bytes", {"device": "meta0"}) == 1500
    assert get("csumfix_tunnels") == 2


def test_nothing_is_made_up() -> None:
    shown = snapshot(
        queues={0: queue(kernel=None)},
        rules=None,
        reload=ReloadSnapshot(ok=False, time=1.0, failed=1),
    )
    get = registry(shown).get_sample_value
    for name in (
        "csumfix_queue_packets",
        "csumfix_queue_dropped_packets_total",
        "csumfix_user_dropped_packets_total",
    ):
        assert get(name, {"queue": "0"}) is None
    assert get("csumfix_rules_loaded") == 0
    assert get("csumfix_config_last_reload_successful") == 0
    assert get("csumfix_config_reloads_total", {"result": "failure"}) == 1


def test_a_tap_that_is_turned_off_is_neither_up_nor_down() -> None:
    def up(pause: float, fault: str | None) -> float | None:
        shown = snapshot(config={"tap_pause": pause}, tap_fault=fault)
        return registry(shown).get_sample_value("csumfix_tap_up")

    assert (up(1.0, None), up(1.0, "no permission"), up(0.0, None)) == (1, 0, None)


def test_build_info() -> None:
    (info,) = (m for m in registry(snapshot()).collect() if m.name == "csumfix_build_info")
    labels = info.samples[0].labels
    assert labels["version"] == "9.8.7"
    assert labels["checksum_backend"] == core.checksum_backend()


def documented() -> Iterator[tuple[str, str, frozenset[str]]]:
    """Name, type and labels of each row of the table."""
    row = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \| ([\w, ]*)\|", re.M)
    for name, kind, labels in row.findall(DOCUMENT.read_text()):
        yield name, kind, frozenset(labels.replace(",", " ").split())


def exposed(metric: Metric) -> tuple[str, str, frozenset[str]]:
    labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    return name, metric.type, frozenset(labels)


def test_the_document_lists_exactly_what_is_exposed() -> None:
    rows = list(documented())
    assert len(rows) == len(set(rows))
    assert set(rows) == {exposed(metric) for metric in registry(snapshot()).collect()}


def test_the_document_lists_the_reasons_under_their_outcomes() -> None:
    text = DOCUMENT.read_text().partition("## Outcomes and reasons")[2].partition("\n## ")[0]
    for reason in core.REASONS:
        what = metrics.outcome(reason)
        (row,) = re.findall(rf"^\| `{what}` \| .*$", text, re.M)
        assert f"`{reason}`" in row or what == "not_judged"


def test_promtool_has_no_complaint() -> None:
    assert promtool("check", "metrics", input=generate_latest(registry(snapshot())).decode()) == ""


def test_the_document_explains_every_departure() -> None:
    text = DOCUMENT.read_text().partition("## Departures")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == [str(one) for one in Departure]
