#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Steer, shown on real connections: any port, a restart, and what meets no mapping."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from steps import IP, NSENTER, ZFW, check_machine, enter, inside, join, remove_namespaces, say

INSIDE, OUTSIDE = "zfw-demo-inside", "zfw-demo-outside"
HERE, HERE6 = "10.9.0.1", "fd09::1"
DAEMON, DAEMON6 = "127.0.0.7", "fd00::7"
PREFIX, ADDRESS = "203.0.113.0/24", "203.0.113.77"
PATIENCE = 5.0


def serve(name: str, *addresses: str) -> None:
    """A daemon on port 2222 of these addresses, that says its name and what was asked for."""
    import select

    enter(INSIDE)
    listeners = [
        socket.create_server(
            (each, 2222), family=socket.AF_INET6 if ":" in each else socket.AF_INET
        )
        for each in addresses
    ]
    print("ready", flush=True)
    while True:
        for ready in select.select(listeners, [], [])[0]:
            connection, _ = ready.accept()
            with connection:
                asked, client = connection.getsockname()[:2], connection.getpeername()[:2]
                connection.sendall(f"{name}: {client} asked for {asked}\n".encode())


class Daemon:
    """That daemon, in a process of its own, for the length of a with block."""

    def __init__(self, name: str, *addresses: str) -> None:
        self._command = [sys.executable, __file__, "serve", name, *addresses]

    def __enter__(self) -> Daemon:
        seen, output = os.pipe()
        self._process = subprocess.Popen(self._command, stdout=output)
        os.close(output)
        with os.fdopen(seen, "rb") as pipe:
            if pipe.readline() != b"ready\n":
                raise SystemExit("demo: a daemon did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def ask(address: str, port: int, expected: str) -> None:
    """Connect from outside, and say what came."""
    script = (
        "import socket, sys\n"
        "try:\n"
        "    made = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)\n"
        "    print(made.recv(200).decode().strip())\n"
        "except OSError as error:\n"
        "    print(error.strerror or error)\n"
    )
    print(f"  $ [outside] connect to {address} port {port}", flush=True)
    done = subprocess.run(
        [NSENTER, f"--net=/run/netns/{OUTSIDE}", sys.executable, "-c", script, address, str(port)],
        check=True,
        capture_output=True,
        text=True,
    )
    print(f"    {done.stdout.strip()}", flush=True)
    if expected not in done.stdout:
        raise SystemExit("demo: that is not what should have happened")


def steer(*arguments: str) -> None:
    """Run zfw steer where the daemons are."""
    inside(INSIDE, ZFW, "steer", *arguments, shown=f"zfw steer {' '.join(arguments)}")


def take_over() -> None:
    """Restart the daemon, say how long it took until a client had it, and list all."""
    enter(OUTSIDE)
    stop = time.monotonic() + PATIENCE
    with Daemon("the new daemon", DAEMON, DAEMON6):
        started = time.monotonic()
        while True:
            try:
                with socket.create_connection((HERE, 5555), timeout=PATIENCE) as made:
                    print(f"    {made.recv(200).decode().strip()}")
                    break
            except OSError:
                if time.monotonic() > stop:
                    raise SystemExit("demo: the new daemon had no connection") from None
        print(f"    {1000 * (time.monotonic() - started):.1f} ms after it was ready", flush=True)
        steer("list")


def show() -> None:
    """Steer, and connect."""
    inside(INSIDE, IP, "-6", "address", "add", f"{DAEMON6}/128", "dev", "lo")
    inside(INSIDE, IP, "route", "add", "local", PREFIX, "dev", "lo")
    say("2. A daemon on private addresses: nobody outside gets there")
    with Daemon("the daemon", DAEMON, DAEMON6):
        ask(HERE, 5555, "refused")
        say("3. Port 5555 of any address belongs to the daemon; so does every port of a prefix")
        steer("add", "tcp", "any", "5555", "--to", f"{DAEMON}:2222")
        steer("add", "tcp", "any", "5555", "--to", f"[{DAEMON6}]:2222")
        steer("add", "tcp", PREFIX, "any", "--to", f"{DAEMON}:2222", "--label", "web")
        ask(HERE, 5555, "the daemon: ('10.9.0.2'")
        ask(HERE6, 5555, "the daemon: ('fd09::2'")
        ask(ADDRESS, 40000, f"('{ADDRESS}', 40000)")

        say("4. A socket on exactly an address and port keeps it")
        with Daemon("somebody else", ADDRESS):
            ask(ADDRESS, 2222, "somebody else")
        ask(ADDRESS, 2222, "the daemon")

    say("5. The daemon is gone: refused, and not handed to anybody else")
    ask(HERE, 5555, "refused")

    say("6. It starts again, and has its connections; nothing of zfw runs meanwhile")
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(SystemExit):
            take_over()
            code = 0
        os._exit(code)
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit("demo: that is not what should have happened")


def main() -> None:
    """Build, show, remove."""
    say("1. A network of our own: a host with daemons, and a client outside")
    try:
        join(
            INSIDE,
            OUTSIDE,
            {
                INSIDE: ("gw0", (f"{HERE}/24", f"{HERE6}/64")),
                OUTSIDE: ("eth0", ("10.9.0.2/24", "fd09::2/64")),
            },
        )
        inside(OUTSIDE, IP, "route", "add", PREFIX, "via", HERE)
        show()
    finally:
        say("7. All of it is removed again")
        if Path(f"/run/netns/{INSIDE}").exists():
            with contextlib.suppress(SystemExit):
                steer("detach")
        remove_namespaces(INSIDE, OUTSIDE)
    say("Done: one daemon, any address and port, and its restart.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:])
    else:
        check_machine()
        main()
