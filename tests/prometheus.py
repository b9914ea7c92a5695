"""Debian's prometheus, which `make` unpacks without installing it."""

import json
import subprocess
from pathlib import Path
from typing import Any

PROGRAMS = Path("build/prometheus/usr/bin").resolve()
PROMETHEUS = PROGRAMS / "prometheus"


def promtool(*arguments: str | Path, input: str | None = None) -> str:  # noqa: A002
    """Run promtool and return what it has to say; it must succeed."""
    result = subprocess.run(
        [PROGRAMS / "promtool", *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        input=input,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


DASHBOARD = Path("deploy/grafana/csumfix.json")


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def dashboard_expressions() -> list[str]:
    """Every PromQL expression of the dashboard, with values for Grafana's variables."""
    values = {"$__rate_interval": "5m", "$__range": "1h", "$instance": ".*"}
    expressions = [
        target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])
    ]
    for name, value in values.items():
        expressions = [expression.replace(name, value) for expression in expressions]
    return expressions
