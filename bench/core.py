"""Measures repair() without the kernel, compared with other ways to sum the same bytes.

    .venv/bin/python -m bench.core [--write]

Prints nanoseconds per packet and GB/s, as medians over interleaved rounds, and instructions per
packet, counted by callgrind, which noise does not affect. With --write the results replace
bench/results/core.json and core.md.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import report

ROUNDS = 15
SIZES = (64, 142, 590, 1478, 8978)
"""Outer IP packets in bytes. 142, 590, 1478 and 8978 carry 64, 512, 1400 and 8900 bytes of inner
UDP payload; 64 is too short for an inner UDP header and carries an unknown protocol."""

TARGET_SIZE = 1478
OUTER_IP = 20  # bytes that the UDP checksum does not cover
COUNTED = 2000  # packets under callgrind
PYTHON_SECONDS = 0.003  # of one timing of numpy or scapy
TITLES = {
    "repair-right": "repair, right packet",
    "repair-wrong": "repair, wrong packet",
    "checksum_add": "checksum_add alone",
    "rte_raw_cksum": "DPDK rte_raw_cksum, Debian's flags",
    "rte_raw_cksum-native": "DPDK rte_raw_cksum, -march=native",
    "scalar": "scalar 16-bit loop",
    "numpy": "numpy",
    "scapy": "scapy.utils.checksum",
}

_HERE = Path(__file__).parent
_ROOT = _HERE.parent
_BUILD = _ROOT / "build"
_BINARY = _BUILD / "bench-core"
_PURE = sorted(set((_ROOT / "csrc").glob("*.c")) - {_ROOT / "csrc/drain.c"})
_CFLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", f"-I{_ROOT / 'csrc'}")

Times = dict[tuple[str, int], list[float]]


def _compile(output: Path, *arguments: str) -> None:
    subprocess.run(["gcc", *arguments, "-o", str(output)], check=True)


def _dpdk_flags() -> list[str] | None:
    """Return the flags from pkg-config for DPDK; None if it is not installed."""
    if shutil.which("pkg-config") is None:
        return None
    asked = subprocess.run(
        ["pkg-config", "--cflags", "libdpdk"], capture_output=True, text=True, check=False
    )
    return asked.stdout.split() if asked.returncode == 0 else None


def build() -> bool:
    """Compile the program with the flags of the core; return whether DPDK is included."""
    _BUILD.mkdir(exist_ok=True)
    flags = _dpdk_flags()
    objects, define = [], []
    if flags is not None:
        define = ["-DWITH_DPDK"]
        source = str(_HERE / "core_dpdk.c")
        # Only an inline function of a header is used, so nothing is linked. DPDK itself uses -O3.
        for name, machine in (("dpdk_debian", []), ("dpdk_native", ["-march=native"])):
            objects.append(str(_BUILD / f"{name}.o"))
            _compile(Path(objects[-1]), "-O3", *flags, *machine, f"-DNAME={name}", "-c", source)
    _compile(_BINARY, *_CFLAGS, *define, str(_HERE / "core.c"), *map(str, _PURE), *objects)
    return flags is not None


def parse_times(text: str) -> Iterator[tuple[str, int, float]]:
    """Read name, bytes and nanoseconds from each line."""
    for line in text.splitlines():
        name, size, nanoseconds = line.split()
        yield name, int(size), float(nanoseconds)


def _python() -> dict[str, Callable[[bytes], int]]:
    import numpy as np  # noqa: PLC0415 - optional
    from scapy.utils import checksum  # noqa: PLC0415 - takes half a second

    def by_numpy(data: bytes) -> int:
        total = int(np.frombuffer(data, dtype="<u2").sum(dtype=np.uint64))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return total

    return {"numpy": by_numpy, "scapy": checksum}


def measure(rounds: int) -> Times:
    """Time every contender once per round."""
    times: Times = {}
    contenders = _python()
    for _ in range(rounds):
        text = subprocess.run(
            [str(_BINARY), "time"], capture_output=True, text=True, check=True
        ).stdout
        for name, size, nanoseconds in parse_times(text):
            times.setdefault((name, size), []).append(nanoseconds)
        for size in SIZES:
            data = bytes(index * 151 + 7 & 0xFF for index in range(size - OUTER_IP))
            for name, function in contenders.items():
                times.setdefault((name, size), []).append(_time(function, data))
    return times


def _time(function: Callable[[bytes], int], data: bytes) -> float:
    timer = timeit.Timer(lambda: function(data))
    once = timer.timeit(3) / 3
    repeats = max(3, int(PYTHON_SECONDS / once))
    return timer.timeit(repeats) / repeats * 1e9


_COLLECTED = re.compile(r"Collected : (\d+)")


def instructions(name: str, size: int) -> float | None:
    """Return the instructions of one repair(), counted by callgrind; None without valgrind."""
    if shutil.which("valgrind") is None:
        return None
    result = subprocess.run(
        ["valgrind", "--tool=callgrind", "--toggle-collect=repair",
         "--callgrind-out-file=/dev/null", str(_BINARY), "run", name, str(size), str(COUNTED)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = _COLLECTED.search(result.stderr)
    return int(found[1]) / COUNTED if found else None


def to_dpdk(times: Times, size: int, build: str = "rte_raw_cksum") -> float | None:
    """Return how many times as fast as a build of DPDK repair() verifies a right packet."""
    theirs, ours = times.get((build, size)), times["repair-right", size]
    if not theirs:
        return None
    return float(median(one / own for one, own in zip(theirs, ours, strict=True)))


def results(times: Times, counted: Mapping[tuple[str, int], float | None]) -> dict[str, Any]:
    """Return the results as one document."""
    return {
        "host": platform.node(),
        "kernel": platform.release(),
        "backend": _backend(),
        "rounds": max(map(len, times.values())),
        "repair_right_1478_to_dpdk": to_dpdk(times, TARGET_SIZE),
        "repair_right_1478_to_dpdk_native": to_dpdk(times, TARGET_SIZE, "rte_raw_cksum-native"),
        "cells": [
            {
                "name": name,
                "bytes": size,
                "ns_per_packet": median(values),
                "min": min(values),
                "max": max(values),
                # Nanoseconds per byte are seconds per GB.
                "gb_per_second": (size - OUTER_IP) / median(values),
                "instructions_per_packet": counted.get((name, size)),
            }
            for (name, size), values in sorted(times.items(), key=_rank)
        ],
    }


def _rank(item: tuple[tuple[str, int], object]) -> tuple[int, int]:
    (name, size), _ = item
    return list(TITLES).index(name), size


def _backend() -> str:
    return subprocess.run(
        [str(_BINARY), "backend"], capture_output=True, text=True, check=True
    ).stdout.strip()


def markdown(document: Mapping[str, Any]) -> str:
    """Render one table of contenders by packet size."""
    cells = {(cell["name"], cell["bytes"]): cell for cell in document["cells"]}
    names = list(dict.fromkeys(name for name, _ in cells))
    lines = [
        "# The core alone",
        "",
        f"{document['host']}, Linux {document['kernel']}, checksum backend "
        f"{document['backend']}; medians of {document['rounds']} rounds. ns per packet (GB/s of "
        "the outer UDP datagram).",
        "",
        f"| | {' | '.join(f'{size:,} B' for size in SIZES)} |",
        f"|---|{'---:|' * len(SIZES)}",
    ]
    for name in names:
        row = [cells[name, size] for size in SIZES]
        texts = [f"{one['ns_per_packet']:,.1f} ({one['gb_per_second']:.1f})" for one in row]
        lines.append(f"| {TITLES[name]} | {' | '.join(texts)} |")
    for name in names:
        counts = [cells[name, size]["instructions_per_packet"] for size in SIZES]
        if None not in counts:
            texts = [f"{one:,.0f}" for one in counts]
            lines.append(f"| instructions, {TITLES[name]} | {' | '.join(texts)} |")
    speed = document["repair_right_1478_to_dpdk"]
    if speed is not None:
        lines += [
            "",
            f"repair on a right {TARGET_SIZE:,} B packet is {speed:.2f} times as fast as DPDK's "
            f"rte_raw_cksum of the same bytes, built with the flags of Debian's libdpdk-dev, and "
            f"{document['repair_right_1478_to_dpdk_native']:.2f} times as fast as one built for "
            "this CPU.",
        ]
    return "\n".join((*lines, ""))


def main(argv: Sequence[str]) -> int:
    """Build, measure and print; with --write, write the results."""
    if set(argv) - {"--write"}:
        sys.stderr.write("usage: .venv/bin/python -m bench.core [--write]\n")
        return 2
    if not build():
        sys.stderr.write(
            "bench.core: without DPDK, which is not installed; "
            "run 'apt install libdpdk-dev pkg-config'\n"
        )
    times = measure(ROUNDS)
    counted = {
        (name, size): instructions(name, size)
        for name in ("repair-right", "repair-wrong")
        for size in SIZES
    }
    if None in counted.values():
        sys.stderr.write("bench.core: without instructions; run 'apt install valgrind'\n")
    document = results(times, counted)
    text = markdown(document)
    sys.stdout.write(text)
    if "--write" in argv:
        (report.RESULTS / "core.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        (report.RESULTS / "core.md").write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
