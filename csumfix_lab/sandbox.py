"""The sandbox: private network, mount and pid namespaces that end with this process.

Theory of operation
-------------------
``unshare`` starts a *holder* process, which is process 1 of a new pid namespace. It only runs
``cat`` on its standard input, a pipe whose only other end is ours. When we end, for any reason,
the kernel closes the pipe, and ``cat`` reads end-of-file and exits. Because it is process 1, the
kernel then kills every process of the pid namespace. With the last process go the mount namespace,
the tmpfs on its /run, and the named network namespaces in /run/netns. No clean-up depends on code
that might not run.

The private /run also gives iptables a lock file that an ordinary user can write.

An ordinary user gets a user namespace as well, and is root in it. Network namespaces are entered
by their path below /proc/HOLDER/root, because nsenter opens all files before it joins.

/sys is the machine's own, so it shows the machine's network devices and not the node's. (A new
mount, as by ``ip netns exec``, fails for ordinary users inside containers.)
"""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from csumfix import installation
from csumfix.errors import CsumfixError, Exit
from csumfix_lab import waiter
from csumfix_lab.process import Process, only_child

_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # ordinary users may lack these in PATH
_SETUP = """
mount -t tmpfs tmpfs /run
mkdir /run/netns
for name; do ip netns add "$name"; done
echo ready
exec cat >/dev/null
"""
_GRACE = 10.0  # seconds for the kernel to remove the namespaces

# How distributions forbid unprivileged user namespaces: setting, forbidding value, permitting one.
_USERNS_LOCKS = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "10000"),
)

_PACKAGES = {
    "bridge": "iproute2",
    "dig": "bind9-dnsutils",
    "dnsmasq": "dnsmasq-base",
    "ethtool": "ethtool",
    "ip": "iproute2",
    "ip6tables-restore": "iptables",
    "iptables-restore": "iptables",
    "ipvsadm": "ipvsadm",
    "mount": "mount",
    "nft": "nftables",
    "nsenter": "util-linux",
    "ping": "iputils-ping",
    "tcpdump": "tcpdump",
    "unshare": "util-linux",
}


def search_path() -> str:
    """Return PATH with our own programs first and the directories for administration last."""
    path = [str(installation.scripts()), *os.environ.get("PATH", os.defpath).split(os.pathsep)]
    return os.pathsep.join(path + [entry for entry in _SBIN if entry not in path])


def require(*tools: str) -> None:
    """Raise CsumfixError unless all of `tools` are installed."""
    missing = [tool for tool in tools if shutil.which(tool, path=search_path()) is None]
    if missing:
        packages = sorted({_PACKAGES.get(tool, tool) for tool in missing})
        raise CsumfixError(
            f"the lab needs {', '.join(missing)}: not found; "
            f"install it (Debian: apt install {' '.join(packages)})",
            Exit.MISSING,
        )


def _refusal(stderr: str) -> CsumfixError:
    """Return the error for a failed unshare, with a remedy."""
    what = f"cannot create namespaces ({stderr.strip() or 'unshare gave no reason'})"
    # unshare makes / private in the new mount namespace; mount(2) fails with EINVAL if / is not
    # one.
    if "propagation" in stderr and stderr.endswith(os.strerror(errno.EINVAL)):
        return CsumfixError(
            f"{what}: the root directory is not a mount point, probably in a chroot; "
            "run outside it, or bind-mount its directory on itself before the chroot",
            Exit.KERNEL,
        )
    if os.geteuid() == 0:
        if not stderr.endswith(os.strerror(errno.EPERM)):
            return CsumfixError(f"{what}: the kernel refused; run on another host", Exit.KERNEL)
        return CsumfixError(
            f"{what}: root here lacks CAP_SYS_ADMIN, probably in a container; "
            "run on the host or in a privileged container",
            Exit.PERMISSION,
        )
    for name, forbidding, remedy in _USERNS_LOCKS:
        setting = Path("/proc/sys") / name
        if setting.exists() and setting.read_text(encoding="ascii").strip() == forbidding:
            key = name.replace("/", ".")
            return CsumfixError(
                f"{what}: {key}={forbidding} forbids user namespaces to ordinary users; "
                f"run as root, or: sysctl -w {key}={remedy}",
                Exit.PERMISSION,
            )
    return CsumfixError(
        f"{what}: user namespaces seem forbidden to ordinary users here (container or "
        "security module); run as root",
        Exit.PERMISSION,
    )


class Sandbox:
    """The namespaces and how to enter them; `names` are the names of the network namespaces."""

    def __init__(self, *names: str) -> None:
        require("unshare", "nsenter", "mount", "ip")
        self._user = os.geteuid() != 0
        self._processes: list[Process] = []
        flags = ["--user", "--map-root-user"] if self._user else []
        # Our ends of the pipes are close-on-exec, so no other child keeps the sandbox alive.
        self._holder = subprocess.Popen(
            ["unshare", *flags, "--net", "--mount", "--pid", "--fork", "--kill-child",
             "--mount-proc", "sh", "-euc", _SETUP, "sh", *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment({"LC_ALL": "C"}),  # _refusal() reads its messages
            start_new_session=True,  # keeps a Ctrl-C at the terminal from the holder
        )  # fmt: skip
        ready = self._pipe(self._holder.stdout).readline() == "ready\n"
        init = only_child(self._holder.pid)
        if not ready or init is None:
            messages = self.close()
            if ready:
                raise CsumfixError(
                    "cannot find the sandbox's first process: this kernel lacks "
                    "/proc/PID/task/TID/children; use one built with CONFIG_PROC_CHILDREN",
                    Exit.KERNEL,
                )
            raise _refusal("; ".join(messages.splitlines()))
        self.init = init  # process 1 of the pid namespace, as numbered outside

    @staticmethod
    def _pipe(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream

    @staticmethod
    def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
        return {**os.environ, **(extra or {}), "PATH": search_path()}

    def enter(self, netns: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` in a network namespace.

        It runs in our working directory: setns(CLONE_NEWNS) changes to /, the waiter changes back.
        """
        where = f"--net=/proc/{self.init}/root/run/netns/{netns}"
        user = ["--user", "--preserve-credentials"] if self._user else []
        script = str(Path(waiter.__file__).resolve())
        return ["nsenter", f"--target={self.init}", *user, "--mount", "--pid", where, "--no-fork",
                "--", sys.executable, "-I", "-S", script, str(Path.cwd()), *argv]  # fmt: skip

    def popen(
        self,
        netns: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Process:
        """Start `argv` inside; `env` is added to our environment, other options go to Popen."""
        options.setdefault("text", True)
        command = self.enter(netns, argv)
        process = Process(command, env=self._environment(env), **options)
        self._processes = [one for one in self._processes if one.poll() is None]
        self._processes.append(process)
        return process

    def close(self) -> str:
        """End every process inside and all namespaces; return when they are gone.

        Returns the holder's error messages.
        """
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait(_GRACE)
        # Only the holder's streams; those of other processes belong to their users.
        self._pipe(self._holder.stdin).close()
        try:
            self._holder.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._holder.kill()  # --kill-child passes SIGKILL on to process 1
            self._holder.wait(_GRACE)
        self._pipe(self._holder.stdout).close()
        with self._pipe(self._holder.stderr) as stderr:
            return stderr.read()
