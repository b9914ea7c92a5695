"""The lab shows what it says it shows, and leaves nothing behind."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csumfix.errors import CsumfixError, Exit
from csumfix_lab import CAUSES, Lab, Node
from csumfix_lab.demo import main as demo
from csumfix_lab.session import run_session
from csumfix_lab.spec import CLIENT_POD_IP, CLIENT_POD_IP6

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = (
    "/usr/bin/python3"  # the virtual environment may be out of an ordinary user's reach
)
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
DATAGRAMS = 10
FAMILIES = pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])

# Sends datagrams of one size to a port; prints nothing.
SEND = """
import socket, sys, time
address, port, count, size = sys.argv[1], *map(int, sys.argv[2:])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as sock:
    sock.connect((address, port))
    for number in range(count):
        try:
            sock.send(bytes([number]) * size)
        except OSError:
            pass
        time.sleep(0.002)
"""

# Prints "ready" and, on SIGTERM, how many whole datagrams of one size came.
SINK = """
import signal, socket, sys
def stop(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, stop)
address, port, size = sys.argv[1], *map(int, sys.argv[2:])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
count = 0
with socket.socket(family, socket.SOCK_DGRAM) as sock:
    sock.bind((address, port))
    print("ready", flush=True)
    try:
        while True:
            data = sock.recv(65536)
            count += len(data) == size and len(set(data)) == 1
    except KeyboardInterrupt:
        print(count)
"""


def arrived(lab: Lab, address: str, size: int, *, back: bool = False) -> int:
    """Send datagrams through the tunnel; return how many of them came whole.

    back: from the receiver to the client.
    """
    source, target = (lab.receiver, lab.client) if back else (lab.client, lab.receiver)
    sink = target.popen(
        [sys.executable, "-c", SINK, address, "7000", str(size)], stdout=subprocess.PIPE
    )
    assert sink.stdout is not None
    with sink.stdout as stdout:
        assert stdout.readline() == "ready\n"
        source.run([sys.executable, "-c", SEND, address, "7000", str(DATAGRAMS), str(size)])
        time.sleep(0.1)  # for forwarders
        sink.terminate()
        count = int(stdout.readline())
    assert sink.wait() == 0
    return count


def pings(node: Node, address: str) -> bool:
    return node.run(["ping", "-c1", "-W1", address], check=False).returncode == 0


def connects(lab: Lab) -> bool:
    """Whether a TCP connection through the tunnel is possible (refused is good enough)."""
    code = (
        "import socket, sys\n"
        "s = socket.socket(); s.settimeout(0.4)\n"
        "try: s.connect((sys.argv[1], 9))\n"
        "except ConnectionRefusedError: sys.exit(0)\n"
        "except TimeoutError: sys.exit(1)\n"
    )
    argv = [sys.executable, "-c", code, lab.pod_ip]
    return lab.client.run(argv, check=False).returncode == 0


def pid_namespaces() -> dict[int, str]:
    """Return the pid namespace of every process we may look at."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = os.readlink(entry / "ns/pid")  # noqa: PTH115 - no path
            except OSError:
                continue
    return found


def members(namespace: str) -> list[int]:
    return [pid for pid, one in pid_namespaces().items() if one == namespace]


def await_members(namespace: str, enough: Callable[[int], bool]) -> bool:
    """Wait up to five seconds until a pid namespace has as many processes as wanted."""
    deadline = time.monotonic() + 5
    while not enough(len(members(namespace))) and time.monotonic() < deadline:
        time.sleep(0.002)
    return enough(len(members(namespace)))


# --- causes -------------------------------------------------------------------------------------


@FAMILIES
def test_none_is_healthy(ipv6: bool) -> None:
    with Lab("none", ipv6=ipv6) as lab:
        lab.start_dns()
        for address in (lab.pod_ip, lab.pod_ip6):
            assert lab.query(address) == lab.pod_ip
            assert lab.query(address, tcp=True) == lab.pod_ip
            assert pings(lab.client, address)
            assert arrived(lab, address, 64) == DATAGRAMS
        assert lab.query(lab.pod_ip, "no.such.name") != lab.pod_ip
        drops = lab.receiver.counters()
        assert (drops.udp_drops, drops.tcp_in_csum_errors) == (0, 0)


@FAMILIES
@pytest.mark.parametrize("mtu", [1500, 9000])
def test_none_carries_packets_up_to_its_mtu(ipv6: bool, mtu: int) -> None:
    with Lab("none", ipv6=ipv6, mtu=mtu, port=4789) as lab:
        size = mtu - (70 if ipv6 else 50) - 28
        assert arrived(lab, lab.pod_ip, size) == DATAGRAMS
        ping = ["ping", "-c1", "-W1", "-Mdo", "-s"]
        assert lab.client.run([*ping, str(size), lab.pod_ip]).returncode == 0
        assert lab.client.run([*ping, str(size + 1), lab.pod_ip], check=False).returncode == 1


def outer_is_wrong(cause: str, ipv6: bool) -> bool:
    """Whether the outer checksum is what the receiver drops packets for, not the inner one."""
    return cause != "relay" and (ipv6 or cause != "nic")


@FAMILIES
@pytest.mark.parametrize(
    "cause", ["snat", "dnat", "stateless", "nic", "nic-udpcsum", "relay", "forwarded"]
)
def test_bug_shows(cause: str, ipv6: bool) -> None:
    """Every datagram is lost, inner IPv4 and IPv6, and the receiver counts each as corrupt."""
    with Lab(cause, ipv6=ipv6) as lab:
        lab.start_dns()
        lost = 0
        for address, size in ((lab.pod_ip, 64), (lab.pod_ip6, 64), (lab.pod_ip, 1400)):
            assert arrived(lab, address, size) == 0
            lost += DATAGRAMS
        drops = lab.receiver.counters()
        assert drops.udp_drops == lost
        by_family = (drops.in_csum_errors, drops.in_csum_errors6)
        if outer_is_wrong(cause, ipv6):
            assert by_family == ((0, lost) if ipv6 else (lost, 0))
        else:
            assert by_family == (2 * DATAGRAMS, DATAGRAMS)
        assert lab.query(lab.pod_ip) is None
        assert not connects(lab)
        errors = lab.receiver.counters().tcp_in_csum_errors
        assert (errors == 0) is outer_is_wrong(cause, ipv6)


@FAMILIES
@pytest.mark.parametrize("cause", ["kube-proxy", "cni"])
def test_kube_proxy_breaks_only_the_service_ip(cause: str, ipv6: bool) -> None:
    with Lab(cause, ipv6=ipv6) as lab:
        lab.start_dns()
        assert lab.query(lab.pod_ip) == lab.pod_ip
        assert arrived(lab, lab.pod_ip, 1400) == DATAGRAMS
        assert lab.receiver.counters().udp_drops == 0
        assert lab.query(lab.service_ip) is None
        drops = lab.receiver.counters()
        assert (drops.in_csum_errors, drops.in_csum_errors6) == ((0, 1) if ipv6 else (1, 0))


def test_it_is_the_cni_that_keeps_the_mark() -> None:
    """By itself, a later kube-proxy clears it."""
    with Lab("cni") as lab:
        lab.start_dns()
        lab.sender.run(["iptables", "-t", "nat", "-D", "POSTROUTING", "-j", "CNI-POSTROUTING"])
        assert lab.query(lab.service_ip) == lab.pod_ip
        assert lab.receiver.counters().udp_drops == 0


def test_stateless_rewriting_is_not_tracked() -> None:
    """Otherwise it would be the cause dnat by another name."""
    with Lab("stateless") as lab:
        lab.sender.run(["iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW"])
        assert arrived(lab, lab.pod_ip, 64) == 0
        tracked = lab.sender.run(["conntrack", "-L"]).stdout
        assert "dport=7000" in tracked  # the inner packets are
        assert "dport=8472" not in tracked


@FAMILIES
@pytest.mark.parametrize("cause", ["nic", "relay", "forwarded"])
def test_only_the_senders_packets_suffer(cause: str, ipv6: bool) -> None:
    with Lab(cause, ipv6=ipv6) as lab:
        for address in (CLIENT_POD_IP, CLIENT_POD_IP6):
            assert arrived(lab, address, 64, back=True) == DATAGRAMS
            assert arrived(lab, address, 1300, back=True) == DATAGRAMS
        assert lab.client.counters().udp_drops == 0


@FAMILIES
@pytest.mark.parametrize(
    "cause", ["none", "kube-proxy", "cni", "snat", "dnat", "stateless", "relay"]
)
def test_pings_pass_under_nat(cause: str, ipv6: bool) -> None:
    """The kernel finishes ICMP checksums early, which is why pings mislead operators."""
    with Lab(cause, ipv6=ipv6) as lab:
        assert pings(lab.client, lab.pod_ip)
        assert pings(lab.client, lab.pod_ip6)
        assert pings(lab.receiver, "10.244.0.10")


def test_pings_pass_a_lying_nic_only_without_outer_checksum() -> None:
    """The inner checksum of a ping is complete, but the outer one is left to the NIC."""
    with Lab("nic") as lab:
        assert pings(lab.client, lab.pod_ip)
    with Lab("nic-udpcsum") as lab:
        assert not pings(lab.client, lab.pod_ip)
        assert lab.receiver.counters().in_csum_errors == 1


@FAMILIES
def test_forwarded_packet_is_wrong_outside_and_right_inside(ipv6: bool) -> None:
    """Capture where the sender takes it over, and let scapy recompute the checksums."""
    from scapy.layers.inet import IP, UDP  # noqa: PLC0415 - slow to import
    from scapy.layers.l2 import Ether  # noqa: PLC0415
    from scapy.layers.vxlan import VXLAN  # noqa: PLC0415

    with Lab("forwarded", ipv6=ipv6, port=4789) as lab:
        capture = lab.sender.popen(
            [sys.executable, "-c", "import socket\n"
             "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))\n"
             "s.bind(('eth1', 3))\n"
             "print('ready', flush=True)\n"
             "while True:\n"
             "    data = s.recv(9999)\n"
             "    if b'csumfix' in data: print(data.hex()); break\n"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert capture.stdout is not None
        with capture.stdout as stdout:
            assert stdout.readline() == "ready\n"
            send = "import socket\ns = socket.socket(2, 2)\n" + (
                f"s.sendto(b'csumfix', ({lab.pod_ip!r}, 7000))"
            )
            lab.client.run([sys.executable, "-c", send])
            frame = bytes.fromhex(stdout.readline())
    outer = Ether(frame)
    inner = outer[VXLAN].payload
    right = inner[UDP].chksum
    del inner[UDP].chksum
    assert Ether(bytes(inner))[IP][UDP].chksum == right
    wrong = outer[UDP].chksum
    outer = Ether(frame)
    del outer[UDP].chksum
    assert Ether(bytes(outer))[UDP].chksum not in (wrong, 0)


def test_nic_forwarder_carries_a_tcp_transfer() -> None:
    """With the tunnel's offload off the lying NIC has nothing to lie about (IPv4 only)."""
    with Lab("nic") as lab:
        lab.sender.run(["ethtool", "-K", lab.device, "tx-checksum-ip-generic", "off"])
        server = lab.receiver.popen(["iperf3", "-s", "-1", "--forceflush"], stdout=subprocess.PIPE)
        assert server.stdout is not None
        with server.stdout as stdout:
            while "listening" not in stdout.readline():
                pass
            lab.client.run(["iperf3", "-c", lab.pod_ip, "-n", "20M"], timeout=20)
            stdout.read()
        assert server.wait(5) == 0
        assert lab.receiver.counters().tcp_in_csum_errors == 0


@pytest.mark.skipif(Path("/proc/net/ip_vs").exists(), reason="this kernel has IPVS")
def test_without_ipvs_the_error_says_so() -> None:
    with pytest.raises(
        CsumfixError, match=r"Can't initialize ipvs.* IPVS\): load its module"
    ) as caught:
        Lab("ipvs").__enter__()
    assert caught.value.code == Exit.KERNEL


@pytest.mark.parametrize("cause", [cause for cause in CAUSES if cause != "ipvs"])
def test_node_keeps_its_offload_settings(cause: str) -> None:
    with Lab(cause) as lab:
        for device in ("eth0", *((lab.device,) if lab.client.name == "sender" else ())):
            assert lab.sender.offloads(device)["tx-checksumming"] == "on"


@FAMILIES
@pytest.mark.parametrize("cause", CAUSES)
def test_drawing_names_the_addresses(cause: str, ipv6: bool) -> None:
    lab = Lab(cause, ipv6=ipv6)  # no need to build it
    text = lab.describe()
    assert {lab.pod_ip, lab.device} <= set(text.split())
    assert ("2001:db8::2" if ipv6 else "192.0.2.2") in text
    assert max(map(len, text.splitlines())) <= (110 if cause == "forwarded" else 80)  # 3 hosts


# --- commands and signals -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def healthy() -> Iterator[Lab]:
    with Lab("none") as lab:
        yield lab


def test_run(healthy: Lab) -> None:
    node = healthy.sender
    assert node.run(["cat"], input="text").stdout == "text"
    assert node.run(["sh", "-c", "exit 3"], check=False).returncode == 3
    assert node.run(["pwd"]).stdout.strip() == str(Path.cwd())
    assert node.run(["sh", "-c", 'echo "$WORD"'], env={"WORD": "spoken"}).stdout == "spoken\n"
    assert "flannel.1" in node.run(["ip", "-br", "link"]).stdout
    with pytest.raises(subprocess.CalledProcessError):
        node.run(["false"])
    missing = node.run(["no-such-command"], check=False)
    assert (missing.returncode, missing.stderr) == (
        127,
        "no-such-command: No such file or directory\n",
    )
    with pytest.raises(subprocess.TimeoutExpired):
        node.run(["sleep", "9"], timeout=0.1)
    assert node.run([sys.executable, "-c", "import csumfix_lab"], check=False).returncode == 0


REPORT = """
import signal, sys, time
def stop(number, frame):
    print("stopping", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    time.sleep(0.002)
"""


def test_signals_reach_the_command(healthy: Lab) -> None:
    process = healthy.sender.popen([sys.executable, "-c", REPORT], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as stdout:
        assert stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        process.terminate()  # stays pending while it is stopped
        time.sleep(0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGCONT)
        assert stdout.readline() == "stopping\n"
        assert process.wait(5) == 5


@pytest.mark.parametrize("stopped", [False, True])
def test_kill(healthy: Lab, stopped: bool) -> None:
    process = healthy.sender.popen(["sleep", "99"])
    pid = process.command_pid()
    assert pid is not None
    if stopped:
        process.send_signal(signal.SIGSTOP)
    process.kill()
    assert process.wait(5) == -signal.SIGKILL
    assert not Path(f"/proc/{pid}").exists()
    process.kill()  # of no effect


def test_stop_and_continue_again_and_again(healthy: Lab) -> None:
    process = healthy.sender.popen(["sleep", "99"])
    for _ in range(50):
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)
    process.terminate()
    assert process.wait(5) == -signal.SIGTERM


# --- cleanup ------------------------------------------------------------------------------------


def test_nothing_is_left_after_the_block() -> None:
    with Lab("nic") as lab:
        lab.start_dns()
        server = lab.receiver.popen(["sh", "-c", "sleep 99 & exec sleep 99"])
        stopped = lab.receiver.popen(["sleep", "99"])
        stopped.send_signal(signal.SIGSTOP)
        namespace = lab.sender.run(["readlink", "/proc/self/ns/pid"]).stdout.strip()
        # cat, the forwarder, dnsmasq and three times sleep
        assert await_members(namespace, lambda count: count == 6)
    assert not members(namespace)
    assert {server.wait(1), stopped.wait(1)} == {-signal.SIGKILL}
    assert not any(Path("/run/netns").glob("receiver"))


HOLD = """
import signal, sys, time
from csumfix_lab import Lab
lab = Lab(sys.argv[1])
lab.__enter__()
lab.start_dns()
lab.receiver.popen(["sh", "-c", "sleep 99 & exec sleep 99"])
lab.receiver.popen(["sleep", "99"]).send_signal(signal.SIGSTOP)
print(lab.receiver.run(["readlink", "/proc/self/ns/pid"]).stdout, end="", flush=True)
time.sleep(99)
"""


def test_nothing_is_left_after_kill_9() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, "forwarded"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as holder:
        assert holder.stdout is not None
        namespace = holder.stdout.readline().strip()
        # cat, the forwarder, dnsmasq and three times sleep
        assert await_members(namespace, lambda count: count == 6)
        holder.kill()
    assert await_members(namespace, lambda count: count == 0)


# --- users and errors ---------------------------------------------------------------------------

ASK = """
import sys
from csumfix.errors import CsumfixError
from csumfix_lab import Lab
try:
    with Lab(sys.argv[1]) as lab:
        lab.start_dns()
        address = lab.service_ip if lab.cause.service else lab.pod_ip
        print(lab.query(address), lab.receiver.counters().udp_drops)
except CsumfixError as error:
    print(f"{error.code.name}: {error}")
"""


def as_nobody(cause: str) -> str:
    return subprocess.run(
        [*AS_NOBODY, SYSTEM_PYTHON, "-B", "-c", ASK, cause],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
    ).stdout.strip()


@pytest.mark.parametrize("cause", ["kube-proxy", "cni", "dnat", "stateless", "relay", "forwarded"])
def test_an_ordinary_user_sees_the_bug(cause: str) -> None:
    assert as_nobody(cause) == "None 1"


def test_an_ordinary_user_without_tun_is_told() -> None:
    if Path("/dev/net/tun").stat().st_mode & 0o006 == 0o006:
        assert as_nobody("nic") == "None 1"
    else:
        assert as_nobody("nic").startswith("PERMISSION: cause nic needs /dev/net/tun")


@pytest.mark.parametrize("bad", [{"cause": "gremlins"}, {"mtu": 9001}, {"mtu": 576}, {"port": 0}])
def test_a_lab_that_cannot_be_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(CsumfixError) as error:
        Lab(**bad)  # type: ignore[arg-type]
    assert error.value.code is Exit.USAGE
    assert "\n" not in str(error.value)


def test_refused_namespaces_are_explained() -> None:
    """As root, with the capability dropped: what a container looks like."""
    result = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", "--", sys.executable, "-c", ASK, "none"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.stdout.startswith("PERMISSION: cannot create namespaces (unshare:")
    assert "CAP_SYS_ADMIN" in result.stdout
    assert result.stdout.count("\n") == 1


# A root directory that is not a mount point, with all of the machine below it.
CHROOT = """
mount -t tmpfs tmpfs "$1"
mkdir "$1/root"
for entry in /*; do
    if [ -L "$entry" ]; then cp -P "$entry" "$1/root$entry"
    elif [ -d "$entry" ]; then mkdir "$1/root$entry"; mount --rbind "$entry" "$1/root$entry"; fi
done
cd "$1/root"
shift
exec chroot . "$@"
"""


def test_a_root_that_is_not_a_mount_point_is_explained(tmp_path: Path) -> None:
    """In a chroot nothing lacks CAP_SYS_ADMIN."""
    chroot = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-euc", CHROOT, "sh"]
    result = subprocess.run(
        [*chroot, str(tmp_path), sys.executable, "-c", ASK, "none"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.stdout.startswith("KERNEL: cannot create namespaces (unshare:")
    assert "Invalid argument" in result.stdout
    assert "not a mount point" in result.stdout
    assert "CAP_SYS_ADMIN" not in result.stdout
    assert result.stdout.count("\n") == 1


def lab_command(*command: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "csumfix", "lab", "--cause", "none", "--", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PATH": path},
    )


def test_the_lab_finds_the_csumfix_that_started_it() -> None:
    result = lab_command("sh", "-c", "command -v csumfix", path="/usr/bin:/bin")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{Path(sys.executable).parent}/csumfix\n"


def test_a_missing_tool_is_named_with_its_package() -> None:
    result = lab_command("true", path="/nonexistent")
    assert result.returncode == Exit.MISSING
    assert "ping" in result.stderr
    assert "apt install iputils-ping" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# --- session ------------------------------------------------------------------------------------


def test_session_runs_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_session("dnat", False, 1500, 8472, ["sh", "-c", "ip -br address; exit 7"]) == 7
    out, err = capfd.readouterr()
    assert "flannel.1" in out
    assert "cause dnat" in err
    assert "db.lab.test" in err


SESSION = """
import sys
from csumfix_lab.demo import main as demo
from csumfix_lab.session import run_session
sys.exit(run_session("none", False, 1500, 8472, sys.argv[1:]))
"""


def converse(fd: int, until: bytes, timeout: float = 10) -> bytes:
    """Read from a terminal until a text appears."""
    seen = b""
    deadline = time.monotonic() + timeout
    while until not in seen:
        ready, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"no {until!r} in {seen!r}"
        seen += os.read(fd, 4096)
    return seen


def test_session_gives_a_shell_with_job_control() -> None:
    pid, fd = pty.fork()
    if pid == 0:
        os.environ |= {"SHELL": "/bin/bash", "PYTHONPATH": str(ROOT)}
        os.execv(sys.executable, [sys.executable, "-c", SESSION])
    converse(fd, b"[lab none: sender] # ")
    os.write(fd, b"sleep 99\n")
    time.sleep(0.3)
    os.write(fd, b"\x03")  # Ctrl-C ends the command, not the session
    seen = converse(fd, b"[lab none: sender] # ")
    os.write(fd, b"exit 4\n")
    _, status = os.waitpid(pid, 0)
    os.close(fd)
    assert b"no job control" not in seen
    assert os.waitstatus_to_exitcode(status) == 4


def test_session_leaves_ctrl_c_to_its_command() -> None:
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", SESSION, "ping", "10.244.1.10"])
    converse(fd, b"icmp_seq=1")
    os.write(fd, b"\x03")
    converse(fd, b"packets transmitted")
    _, status = os.waitpid(pid, 0)
    os.close(fd)
    assert os.waitstatus_to_exitcode(status) == 0


# --- demo ---------------------------------------------------------------------------------------


def test_demo(capfd: pytest.CaptureFixture[str]) -> None:
    """The whole story, with the real service."""
    assert demo([]) == 0
    out, _ = capfd.readouterr()
    assert "FAILED" not in out
    assert out.count("[bad udp cksum 0x") == 2
    assert out.count("lost (expected)") == 2
    assert "\x1b" not in out  # colours are for terminals
    assert len(out.splitlines()) <= 2 * 60


def test_demo_fails_where_there_is_no_bug_to_show(capfd: pytest.CaptureFixture[str]) -> None:
    assert demo(["none"]) == 1
    out, _ = capfd.readouterr()
    assert "FAILED  query db.lab.test by pod IP 10.244.1.10" in out
    assert "FAILED  the receiver's drop counter" in out
