"""The filter that a container runtime calls RuntimeDefault, as an OCI runtime wants it.

containerd has its own compiled in; this one is from the same source and comes with buildah
(golang-github-containers-common). Its conditions are settled here as the runtimes do.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

PROFILE = Path("/usr/share/containers/seccomp.json")
ARCHITECTURES = {"amd64", "x86", "x32"}
FIELDS = ("names", "action", "args", "errnoRet")

Rule = dict[str, Any]


def runtime_default(capabilities: Collection[str]) -> dict[str, Any]:
    """Return the filter for a container with these capabilities."""
    profile = json.loads(PROFILE.read_text())
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {name: rule[name] for name in FIELDS if rule.get(name) is not None}
            for rule in profile["syscalls"]
            if _applies(rule, capabilities)
        ],
    }


def _applies(rule: Rule, capabilities: Collection[str]) -> bool:
    includes, excludes = rule["includes"], rule["excludes"]
    if "arches" in includes and not ARCHITECTURES & set(includes["arches"]):
        return False
    if not set(includes.get("caps", ())) <= set(capabilities):
        return False
    return not set(excludes.get("caps", ())) & set(capabilities)
