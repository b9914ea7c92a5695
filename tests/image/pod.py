"""A pod on a lab node, started as kubelet and its runtime start the DaemonSet's.

crun is a runtime that Kubernetes nodes use, too. What kubelet and containerd would tell it is put
together here from the manifest and the image's configuration: arguments, environment, user,
capabilities, seccomp, the read-only root, mounts. With hostNetwork a pod is in the network
namespace of its node, here the lab node's; its processes have a pid namespace of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csumfix_lab.node import Node
from csumfix_lab.spec import SENDER
from tests.image.seccomp import runtime_default
from tests.kubernetes import Manifest
from tests.lab.harness import READY_TIMEOUT, until

CRUN = ["crun", "--cgroup-manager=disabled"]
HOST_IP = SENDER.ip(False)
# What a runtime hides or protects in every container that is not privileged.
MASKED = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


@dataclass(frozen=True)
class Image:
    """An image that was built: its files and its configuration."""

    root: Path
    config: dict[str, Any]


def bundle(image: Image, manifests: dict[str, Manifest], folder: Path) -> dict[str, Any]:
    """Return what the runtime is told; the files of ConfigMaps are written to the folder."""
    spec = manifests["DaemonSet"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    security = container["securityContext"]
    assert security["capabilities"]["drop"] == ["ALL"]
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    capabilities = [f"CAP_{name}" for name in security["capabilities"]["add"]]
    return {
        "ociVersion": "1.0.0",
        "process": {
            "args": [*image.config["Entrypoint"], *container["args"]],
            "env": [*image.config["Env"], *_environment(container)],
            "cwd": "/",
            "user": {"uid": security["runAsUser"], "gid": security["runAsGroup"]},
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": not security["allowPrivilegeEscalation"],
        },
        "root": {"path": str(image.root), "readonly": security["readOnlyRootFilesystem"]},
        "mounts": [
            _mount("proc", "/proc", "proc"),
            _mount("tmpfs", "/dev", "tmpfs", "nosuid", "mode=755"),
            _mount("/sys", "/sys", "none", "rbind", "ro"),
            *_volumes(spec, manifests["ConfigMap"], folder),
        ],
        "linux": {
            "namespaces": [{"type": name} for name in ("mount", "pid", "ipc", "uts")],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": runtime_default(capabilities),
        },
    }


def _environment(container: Manifest) -> Iterator[str]:
    """Yield the container's variables; each may refer to those before it."""
    known: dict[str, str] = {}
    for variable in container.get("env", ()):
        if "valueFrom" in variable:
            assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "status.hostIP"}}
            value = HOST_IP
        else:
            value = variable["value"]
            for name, text in known.items():
                value = value.replace(f"$({name})", text)
        known[variable["name"]] = value
        yield f"{variable['name']}={value}"


def _mount(source: str, destination: str, kind: str, *options: str) -> dict[str, Any]:
    return {"source": source, "destination": destination, "type": kind, "options": options}


def _volumes(spec: Manifest, config_map: Manifest, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the mounts of the container's volumes."""
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for mount in spec["containers"][0]["volumeMounts"]:
        volume = volumes[mount["name"]]
        if "hostPath" in volume:
            source = volume["hostPath"]["path"]
        else:
            file = folder / mount["subPath"]
            file.write_text(config_map["data"][mount["subPath"]])
            source = str(file)
        access = "ro" if mount.get("readOnly") else "rw"
        yield _mount(source, mount["mountPath"], "none", "bind", access)


class Pod:
    """A running pod."""

    def __init__(self, node: Node, container: Manifest, folder: Path) -> None:
        self._node, self._container, self._name = node, container, folder.name
        self._log = folder / "log"
        with self._log.open("w") as log:
            self.process = node.popen(
                [*CRUN, "run", f"--bundle={folder}", self._name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def wait_for(self, beginning: str) -> str:
        """Wait for a log line with this beginning and return it."""
        return until(
            lambda: next((line for line in self.lines() if line.startswith(beginning)), None),
            READY_TIMEOUT,
            lambda: f"no line {beginning!r} in {self.lines()}",
        )

    def run(self, *command: str) -> str:
        """Run a command in the pod as `kubectl exec` does."""
        return self._node.run([*CRUN, "exec", self._name, *command]).stdout

    def probe(self, name: str) -> str:
        """Probe the pod as kubelet does, which is in the node's namespace; return the answer."""
        target = self._container[name]["httpGet"]
        url = f"http://{target.get('host', HOST_IP)}:{target['port']}{target['path']}"
        get = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
        return self._node.run([sys.executable, "-c", get, url]).stdout.strip()

    def stop(self) -> int:
        """Ask the pod to stop as kubelet does; return its exit code."""
        self.process.terminate()
        return self.process.wait(10)


@contextmanager
def pod(node: Node, image: Image, manifests: dict[str, Manifest], folder: Path) -> Iterator[Pod]:
    """Run a pod of the DaemonSet on a node; the folder is for what belongs to it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(bundle(image, manifests, folder)))
    (container,) = manifests["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    running = Pod(node, container, folder)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait(10)
