"""The manifests of deploy/kubernetes, rendered by kubectl, which needs no cluster for that."""

from __future__ import annotations

import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "deploy" / "kubernetes"
KUBECTL = Path(sysconfig.get_path("scripts")) / "kubectl"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")

Manifest = dict[str, Any]


def render(name: str) -> dict[str, Manifest]:
    """Return the objects of a kustomization by kind, of which each has one."""
    manifests = list(yaml.safe_load_all(_rendered(name)))
    by_kind = {manifest["kind"]: manifest for manifest in manifests}
    assert len(by_kind) == len(manifests)
    return by_kind


@cache
def _rendered(name: str) -> str:
    command = [str(KUBECTL), "kustomize", str(FOLDER / name)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
