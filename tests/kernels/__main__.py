"""Boots Debian's own kernels and runs the tests of this folder in each; see `make test-kernels`.

A guest has no disk: it sees this machine's files, and what it writes is gone with it. It needs no
KVM, at the price of running some fifteen times slower than the machine.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / "build" / "kernels"
SUITES = {"6.1": "bookworm", "6.12": "trixie"}

# In this order: once a module is loaded, it cannot be missing any more.
FILES = (
    "test_nft.py",
    "test_modules.py",
    "test_tunnels.py",
    "test_geneve.py",
    "test_doctor.py",
)

PATIENCE = 1800.0  # seconds
BEGINNING = re.compile(r"virtme-ng-init: starting script")
END = re.compile(r"the guest's exit status: (\d+)")


def fetch(kernel: str) -> Path:
    """Return the image of a kernel, with its modules beside it."""
    directory = CACHE / kernel
    subprocess.run([ROOT / "tools/fetch-kernel", SUITES[kernel], directory], check=True)
    (image,) = (directory / "boot").glob("vmlinuz-*")
    return image


def command(image: Path, pytest: list[str]) -> list[str]:
    """Return the command that boots a kernel and runs pytest in it."""
    share = "local,path=/,mount_tag=csumfix,security_model=none,readonly=on,multidevs=remap"
    inside = [str(HERE / "init"), str(ROOT), sys.executable, "-m", "pytest", *pytest]
    busybox = ROOT / "build/busybox-static/bin/busybox"
    return [
        "vng", "--verbose", "--run", str(image), "--disable-kvm", "--force-9p", "--user", "root",
        "--cpus", "1", "--memory", "2G", "--busybox", str(busybox),
        f"--qemu-opts=-virtfs {share}", "--", shlex.join(inside),
    ]  # fmt: skip


def run(kernel: str, image: Path, pytest: list[str], failed: list[str]) -> None:
    """Boot a kernel, show what its tests say, and note whether they failed."""
    environment = {
        **os.environ,
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    guest = subprocess.Popen(
        command(image, pytest),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    timer = threading.Timer(PATIENCE, guest.terminate)
    timer.start()
    boot: list[str] = []
    began, status = False, "none: it did not end by itself"
    assert guest.stdout
    for line in guest.stdout:
        end = END.search(line)
        if end:
            status = end[1]
        elif began:
            print(f"{kernel}: {line.rstrip()}", flush=True)
        else:
            boot.append(line)
            began = bool(BEGINNING.search(line))
    guest.wait()
    timer.cancel()
    if not began:
        sys.stdout.writelines(f"{kernel}: {line}" for line in boot)
    if status != "0":
        failed.append(f"kernel {kernel}: exit status {status}")


def main() -> int:
    """Test with all kernels side by side."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernels")
    parser.add_argument("--kernel", choices=SUITES, action="append", help="default: all")
    parser.add_argument("--select", metavar="EXPRESSION", help="only these tests, as pytest's -k")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest; default: all tests")
    options = parser.parse_args()
    kernels = options.kernel or list(SUITES)
    images = {kernel: fetch(kernel) for kernel in kernels}
    arguments = [
        "-v", "--color=no",
        *("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:xdist"),
        *(["-k", options.select] if options.select else []),
        *(options.pytest or [str(HERE / name) for name in FILES]),
    ]  # fmt: skip
    failed: list[str] = []
    threads = [
        threading.Thread(target=run, args=(kernel, images[kernel], arguments, failed))
        for kernel in kernels
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("\n".join(failed) or f"passed with {' and '.join(kernels)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
