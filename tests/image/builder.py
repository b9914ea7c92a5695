"""Builds the image as an operator does, but for its base, which here comes from no registry.

mmdebstrap makes the base and buildah builds on it, which needs no daemon. Both run in mount and
pid namespaces of their own: whatever they mount or start is gone with them, also after Ctrl-C.
All that is kept is in one folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from csumfix_lab.sandbox import search_path

REPOSITORY = Path(__file__).parents[2]
BASE = "localhost/debian:bookworm-slim"
IMAGE = "localhost/csumfix:test"

# buildah keeps a cache in /var/lib/containers, whatever it is told.
PRIVATE = 'mount -t tmpfs none /var/lib; exec "$@"'


class Builder:
    """The image and everything it is made of, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buildah = [
            *("buildah", f"--root={folder}/storage", f"--runroot={folder}/run"),
            "--storage-driver=vfs",
        ]
        self._settings = folder / "containers.conf"
        self._settings.write_text(f'[network]\nnetwork_config_dir = "{folder}/networks"\n')

    def build(self) -> None:
        """Make the base, then the image."""
        base = str(self._folder / "base.tar")
        # The image is thrown away: nothing has to reach the disk. Debian's own base does so, too.
        unsafe = "--dpkgopt=force-unsafe-io"
        self._run("mmdebstrap", "--mode=root", "--variant=minbase", unsafe, "bookworm", base)
        container = self._run(*self._buildah, "from", "scratch")
        self._run(*self._buildah, "add", container, base, "/")
        self._run(*self._buildah, "commit", "--rm", container, BASE)
        flags = ["--isolation=chroot", "--pull-never", *self._pip_settings()]
        self._run(
            *("make", f"--directory={REPOSITORY}", "image", f"BUILDER={' '.join(self._buildah)}"),
            *(f"BASE={BASE}", f"IMAGE={IMAGE}", f"BUILD_FLAGS={' '.join(flags)}"),
        )

    def config(self) -> dict[str, Any]:
        """Return the image's configuration: Entrypoint, Env, Labels, ..."""
        inspected = json.loads(self._run(*self._buildah, "inspect", "--type=image", IMAGE))
        config: dict[str, Any] = inspected["OCIv1"]["config"]
        return config

    def root(self) -> Path:
        """Return the image's files."""
        container = self._run(*self._buildah, "from", "--pull-never", IMAGE)
        return Path(self._run(*self._buildah, "mount", container))

    def _pip_settings(self) -> list[str]:
        """Return the volumes by which pip in the build reaches the index that it reaches here."""
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        pairs = (line.split("=", 1) for line in listed.splitlines())
        found = {name.rpartition(".")[2]: value.strip("'") for name, value in pairs}
        settings = {name: found[name] for name in ("cert", "index-url") if name in found}
        volumes = []
        if certificates := settings.get("cert"):
            settings["cert"] = "/mnt/certificates"
            volumes.append(f"--volume={certificates}:/mnt/certificates:ro")
        file = self._folder / "pip.conf"
        file.write_text("\n".join(["[global]", *map(" = ".join, settings.items())]))
        return [*volumes, f"--volume={file}:/etc/pip.conf:ro"]

    def _run(self, *command: str) -> str:
        """Run a command in namespaces of its own; return what it prints."""
        result = subprocess.run(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("sh", "-euc", PRIVATE, "sh", *command),
            ],
            env={
                **os.environ,
                "PATH": search_path(),
                "TMPDIR": str(self._folder),
                "CONTAINERS_CONF": str(self._settings),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{command}:\n{result.stdout}\n{result.stderr}"
        return result.stdout.strip()
