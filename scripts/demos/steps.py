#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""What the demonstrations share: they say each step, show each command, and clean up."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ZFW = str(ROOT / ".venv" / "bin" / "zfw")
IP, NSENTER = "/usr/sbin/ip", "/usr/bin/nsenter"


def say(text: str) -> None:
    """What is done next, and why."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(*command: str, shown: str | None = None) -> None:
    """Show a command, and run it."""
    print(f"  $ {shown or ' '.join(command)}", flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(f"demo: that failed with exit code {done.returncode}")


def inside(namespace: str, *command: str, shown: str | None = None) -> None:
    """Run a command in a namespace. Not by ``ip netns exec``, which hides bpffs."""
    run(
        NSENTER,
        f"--net=/run/netns/{namespace}",
        *command,
        shown=f"[{namespace.removeprefix('zfw-demo-')}] {shown or ' '.join(command)}",
    )


def enter(namespace: str) -> None:
    """Move this process into a namespace (setns(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{namespace}").open() as file:
        if libc.setns(file.fileno(), 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), f"enter namespace {namespace}")


def join(left: str, right: str, pairs: dict[str, tuple[str, tuple[str, ...]]]) -> None:
    """Make two namespaces and a veth pair; ``pairs`` has interface and addresses of each."""
    for namespace in (left, right):
        run(IP, "netns", "add", namespace)
    run(IP, "link", "add", pairs[right][0], "netns", right, "type", "veth",
        "peer", "name", pairs[left][0], "netns", left)  # fmt: skip
    for namespace, (interface, addresses) in pairs.items():
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            run(IP, "-n", namespace, "address", "add", address, "dev", interface, *nodad)
        run(IP, "-n", namespace, "link", "set", "lo", "up")
        run(IP, "-n", namespace, "link", "set", interface, "up")


def remove_namespaces(*namespaces: str) -> None:
    """Take away what was made; a veth pair goes with its namespaces."""
    for namespace in namespaces:
        if Path(f"/run/netns/{namespace}").exists():
            run(IP, "netns", "delete", namespace)


def check_machine() -> None:
    """Say exactly what is missing where BPF programs cannot be loaded, or namespaces be made."""
    # proc(5), mountinfo: the fifth field is the mount point, relative to this process's root.
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if not any(line.split()[4] == "/" for line in mounts):
        raise SystemExit(
            "demo: / is not a mount point, as in a chroot into a plain directory: `ip netns`"
            " cannot make namespaces here.\n"
            "Outside, before chroot: mount --bind DIR DIR"
        )
    probe = subprocess.run(
        ["/usr/sbin/bpftool", "prog", "show"], check=False, capture_output=True, text=True
    )
    if probe.returncode:
        raise SystemExit(
            "demo: this machine cannot load BPF programs: bpf(2) answers: "
            f"{(probe.stderr or probe.stdout).strip()}\n"
            "The kernel needs CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT, CONFIG_NET_CLS_BPF and"
            " CONFIG_NET_SCH_INGRESS, and this process CAP_BPF and CAP_NET_ADMIN."
        )
