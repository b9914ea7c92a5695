"""What is shipped for Prometheus and Grafana: valid, and about metrics that exist."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from csumfix import core
from csumfix.evidence.departures import Departure
from csumfix.service import metrics
from tests.prometheus import dashboard, dashboard_expressions, promtool
from tests.unit.snapshots import snapshot

DEPLOY = Path("deploy/prometheus")
RULES = DEPLOY / "csumfix.rules.yml"
RULE_TESTS = DEPLOY / "csumfix.rules.test.yml"

NO_METRICS = {"and", "or", "unless", "bool"}
FROM_PROMETHEUS = {"up"}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


EXPRESSIONS = [*(rule["expr"] for rule in rules()), *dashboard_expressions()]


def metric_names(expression: str) -> set[str]:
    """Names in an expression that are neither functions, nor labels, nor keywords."""
    bare = re.sub(r"\{.*?\}|\[.*?\]", "", expression)
    bare = re.sub(r"\b(by|on|group_left)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"\b[a-z_]\w*\b(?!\s*\()", bare)) - NO_METRICS


def test_metric_names() -> None:
    text = 'sum by (a, b) (rate(x_total{c="d"}[5m])) / on (e) group_left () y_z > 0 and z'
    assert metric_names(text) == {"x_total", "y_z", "z"}


def test_expressions_are_about_metrics_that_exist() -> None:
    samples = {
        sample.name for metric in metrics.registry(snapshot).collect() for sample in metric.samples
    }
    for expression in EXPRESSIONS:
        assert metric_names(expression) - FROM_PROMETHEUS <= samples, expression


def test_expressions_select_labels_that_exist() -> None:
    outcomes = {metrics.outcome(reason) for reason in core.REASONS}
    for expression in EXPRESSIONS:
        assert set(re.findall(r'outcome!?="(\w+)"', expression)) <= outcomes
        assert set(re.findall(r'reason!?="(\w+)"', expression)) <= set(core.REASONS)
        assert set(re.findall(r'checksum!?="(\w+)"', expression)) <= set(Departure)


def test_expressions_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    file = tmp_path / "dashboard.rules.json"  # JSON is YAML
    rules = [
        {"record": f"panel:{number}", "expr": expression}
        for number, expression in enumerate(dashboard_expressions())
    ]
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", file)


def shown(title: str) -> str:
    """Return the PromQL expression of a panel with one number."""
    (panel,) = (
        one for one in dashboard()["panels"] if one["type"] == "stat" and one["title"] == title
    )
    found: str = panel["targets"][0]["expr"]
    return found.replace("$instance", ".*").replace("$__rate_interval", "5m")


@pytest.mark.parametrize(
    ("tunnels", "loaded", "nat", "rules", "cured"),
    [
        (0, 0, "0x20", 2, 0),
        (1, 1, "0+600x20", 1, 10),
        (1, 0, "0x20", 0, 0),
    ],
    ids=["no tunnel", "kernel lane", "rules missing"],
)
def test_a_node_without_tunnels_is_not_red_and_the_kernel_lane_cures(
    tmp_path: Path, tunnels: int, loaded: int, nat: str, rules: int, cured: int
) -> None:
    where = "{instance='a'}"
    series = {
        f"csumfix_tunnels{where}": f"{tunnels}x20",
        f"csumfix_rules_loaded{where}": f"{loaded}x20",
        f"csumfix_nat_packets_total{where}": nat,
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": shown(title),
                "eval_time": "10m",
                "exp_samples": [{"labels": "{}", "value": value}],
            }
            for title, value in (("Rules", rules), ("Cured", cured))
        ],
    }
    file = tmp_path / "dashboard.test.json"  # JSON is YAML
    file.write_text(json.dumps({"evaluation_interval": "1m", "tests": [test]}))
    assert "SUCCESS" in promtool("test", "rules", file)


def test_rules_and_example_are_valid() -> None:
    assert f"SUCCESS: {len(rules())} rules found" in promtool("check", "rules", RULES)
    assert "FAILED" not in promtool("check", "config", DEPLOY / "prometheus.yml")


def test_rules_fire_as_they_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", RULE_TESTS)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_each_rule_is_tested_and_helps(rule: dict[str, Any]) -> None:
    assert f"alertname='{rule['alert']}'" in RULE_TESTS.read_text()
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}


def test_the_dashboard_is_what_grafana_reads() -> None:
    """Read and written by Grafana's own model, it loses nothing."""
    register_default_plugins()
    read = Dashboard.from_json(dashboard())
    assert_kept(dashboard(), json.loads(JSONEncoder().encode(read)), "dashboard")


def assert_kept(ours: Any, theirs: Any, where: str) -> None:
    """Check that all of ours is in theirs, which may have defaults beside it."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            assert key in theirs, f"{where} has no {key}"
            assert_kept(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_kept(one, other, f"{where}[{number}]")
    else:
        assert ours == theirs, where


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )


def test_panels_use_the_variables() -> None:
    variables = [variable["name"] for variable in dashboard()["templating"]["list"]]
    assert variables == ["datasource", "instance"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"
            assert 'instance=~"$instance"' in target["expr"]
        assert panel["type"] == "row" or panel["description"]
