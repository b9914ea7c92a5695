"""deploy/kubernetes: what the API server would accept, and what we mean by it."""

from __future__ import annotations

import copy
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.kubernetes import PROBES, Manifest, render

OLDEST, NEWEST = "1.25", kubernetes_validate.latest_version()
CRD = Path(__file__).parent / "data" / "prometheus-operator" / "podmonitors.yaml"
BASE, MONITORED = "base", "examples/monitored"


def pod(name: str) -> Manifest:
    spec: Manifest = render(name)["DaemonSet"]["spec"]["template"]["spec"]
    return spec


def container(name: str) -> Manifest:
    (only,) = pod(name)["containers"]
    assert isinstance(only, dict)
    return only


# What the API server would say


@pytest.mark.parametrize("release", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", [BASE, MONITORED])
def test_fits_the_schemas_of_kubernetes(name: str, release: str) -> None:
    manifests = render(name)
    manifests.pop("PodMonitor", None)
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, release, strict=True)


def test_a_misspelt_field_does_not_fit() -> None:
    manifest = render(BASE)["DaemonSet"]
    manifest["spec"]["template"]["spec"]["hostNetwrok"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, NEWEST, strict=True)


def closed(schema: Any) -> Any:
    """Return the schema with unknown fields forbidden; the API server drops them in silence."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: closed(each) for name, each in schema.items()}
    if isinstance(schema.get("properties"), dict):
        result.setdefault("additionalProperties", False)
    return result


def pod_monitor_schema() -> Any:
    (served,) = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    schema = closed(served["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # described elsewhere in the API server
    return schema


def test_the_pod_monitor_fits_its_definition() -> None:
    monitor = render(MONITORED)["PodMonitor"]
    schema = pod_monitor_schema()
    jsonschema.Draft4Validator(schema).validate(monitor)
    misspelt = copy.deepcopy(monitor)
    misspelt["spec"]["podMetricsEndpoints"][0]["pth"] = "/metrics"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(schema).validate(misspelt)


# What we mean


def test_no_rights_in_the_cluster() -> None:
    assert set(render(BASE)) == {"Namespace", "ServiceAccount", "ConfigMap", "DaemonSet"}
    assert render(BASE)["ServiceAccount"]["automountServiceAccountToken"] is False
    assert pod(BASE)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", [BASE, MONITORED])
def test_no_rights_on_the_node_but_those_it_needs(name: str) -> None:
    assert container(name)["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    spec = pod(name)
    assert not {"securityContext", "hostPID", "hostIPC", "initContainers"} & spec.keys()
    host_paths = [volume["hostPath"] for volume in spec["volumes"] if "hostPath" in volume]
    assert host_paths == [
        {"path": "/run/xtables.lock", "type": "FileOrCreate"},
        {"path": "/run/csumfix", "type": "DirectoryOrCreate"},
    ]


def test_the_namespace_admits_the_pod() -> None:
    level = "pod-security.kubernetes.io/enforce"
    assert render(BASE)["Namespace"]["metadata"]["labels"][level] == "privileged"


def test_runs_on_every_linux_node() -> None:
    spec = pod(BASE)
    assert spec["hostNetwork"] is True
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["priorityClassName"] == "system-node-critical"


@pytest.mark.parametrize("name", [BASE, MONITORED])
def test_a_new_pod_takes_over_from_the_old_one_beside_it(name: str) -> None:
    update = render(name)["DaemonSet"]["spec"]["updateStrategy"]
    assert update["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert container(name)["args"] == ["run", "--take-over", "--superseded=wait"]
    assert "ports" not in container(name)


def test_a_service_can_not_change_settings() -> None:
    assert pod(BASE)["enableServiceLinks"] is False


def test_is_not_throttled() -> None:
    assert set(container(BASE)["resources"]["limits"]) == {"memory"}


def test_the_image_is_of_this_version() -> None:
    assert container(BASE)["image"] == f"registry.invalid/csumfix:{version('csumfix')}"


# Probes and metrics meet


def settings() -> Manifest:
    return tomllib.loads(render(BASE)["ConfigMap"]["data"]["csumfix.toml"])


def test_probes_ask_where_the_service_listens() -> None:
    for name in PROBES:
        target = container(BASE)[name]["httpGet"]
        assert f"{target['host']}:{target['port']}" == settings()["metrics"]
        assert target["path"] == "/healthz"


def test_the_mounted_configuration_is_the_one_that_is_read() -> None:
    (mount,) = [each for each in container(BASE)["volumeMounts"] if each["name"] == "config"]
    assert mount == {
        "name": "config",
        "mountPath": "/etc/csumfix.toml",
        "subPath": "csumfix.toml",
        "readOnly": True,
    }


def test_monitored_probes_and_prometheus_ask_at_the_node_address() -> None:
    address, listen = container(MONITORED)["env"]
    assert address["valueFrom"]["fieldRef"]["fieldPath"] == "status.hostIP"
    assert listen == {"name": "CSUMFIX_METRICS", "value": f"$({address['name']}):9478"}
    for name in PROBES:
        target = container(MONITORED)[name]["httpGet"]
        assert target == {"port": 9478, "path": "/healthz"}
    (endpoint,) = render(MONITORED)["PodMonitor"]["spec"]["podMetricsEndpoints"]
    for relabeling in endpoint["relabelings"][:2]:
        assert relabeling["targetLabel"] == "__address__"
        assert relabeling["replacement"].endswith(":9478")


def test_the_pod_monitor_selects_the_pods() -> None:
    manifests = render(MONITORED)
    labels = manifests["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    monitor = manifests["PodMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"] == labels
    assert labels[monitor["jobLabel"]] == "csumfix"  # the job that the alerts know
