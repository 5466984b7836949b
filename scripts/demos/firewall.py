#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""The main job of zfw, shown on real traffic between two network namespaces."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import time

from steps import IP, ZFW, check_machine, enter, inside, join, remove_namespaces, run, say

CLIENT, GATEWAY = "zfw-demo-client", "zfw-demo-gateway"

# The transparent listener's port, as a router would have chosen it.
TPROXY_PORT = 43321
SERVICES = {4: "100.72.0.4", 6: "fd72::4"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PREFIX_LENGTHS = {4: 32, 6: 128}

# include/uapi/linux/in.h, in6.h: by family the options' level, TRANSPARENT, RECVORIGDSTADDR.
TRANSPARENT = {4: (socket.SOL_IP, 19, 20), 6: (socket.IPPROTO_IPV6, 75, 74)}
ANSWER_SECONDS = 5.0
SILENCE_SECONDS = 1.0


def zfw(*arguments: str) -> None:
    """Run zfw in the gateway."""
    inside(GATEWAY, ZFW, *arguments, shown=f"zfw {' '.join(arguments)}")


def build_network() -> None:
    """The gateway is the client's default route."""
    join(
        CLIENT,
        GATEWAY,
        {
            GATEWAY: ("gw0", ("10.9.0.1/24", "fd09::1/64")),
            CLIENT: ("eth0", ("10.9.0.2/24", "fd09::2/64")),
        },
    )
    run(IP, "-n", CLIENT, "route", "add", "default", "via", "10.9.0.1")
    run(IP, "-n", CLIENT, "-6", "route", "add", "default", "via", "fd09::1")


def listen() -> None:
    """The transparent listener: answers every connection and datagram with where it was meant for.

    Runs in the gateway, in a process of its own, until it is ended.
    """
    enter(GATEWAY)
    listeners: dict[socket.socket, tuple[int, socket.SocketKind]] = {}
    for family in FAMILIES:
        level, transparent, receive_original = TRANSPARENT[family]
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            listener = socket.socket(FAMILIES[family], kind)
            listener.setsockopt(level, transparent, 1)
            listener.setsockopt(level, receive_original, 1)
            listener.bind((LOOPBACK[family], TPROXY_PORT))
            if kind == socket.SOCK_STREAM:
                listener.listen()
            listeners[listener] = (family, kind)
    print("  listener: ready", flush=True)
    while True:
        for ready in select.select(list(listeners), [], [])[0]:
            family, kind = listeners[ready]
            if kind == socket.SOCK_STREAM:
                connection, source = ready.accept()
                address, port = connection.getsockname()[:2]
                answer = describe("TCP", source, address, port)
                with connection:
                    connection.sendall(answer)
            else:
                answer_datagram(ready, family)


def answer_datagram(listener: socket.socket, family: int) -> None:
    """Answer from the address that the datagram was sent to, as a router does."""
    _, ancillary, _, source = listener.recvmsg(2048, 256)
    form = "!2xH4s" if family == 4 else "!2xH4x16s"
    port, raw = struct.unpack_from(form, ancillary[0][2])
    address = socket.inet_ntop(FAMILIES[family], raw)
    level, transparent, _ = TRANSPARENT[family]
    with socket.socket(FAMILIES[family], socket.SOCK_DGRAM) as reply:
        reply.setsockopt(level, transparent, 1)
        reply.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reply.bind((address, port))
        reply.sendto(describe("UDP", source, address, port), source)


def describe(protocol: str, source: tuple[str, int], address: str, port: int) -> bytes:
    """Tell what arrived; the same text is the answer."""
    text = f"{protocol} from {source[0]}, meant for {address} port {port}"
    print(f"  listener: {text}", flush=True)
    return text.encode()


def ask(protocol: str, family: int, port: int) -> str | None:
    """What a client is answered, or None: nothing came."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    is_allowed = port == 22
    with socket.socket(FAMILIES[family], kind) as client:
        client.settimeout(ANSWER_SECONDS if is_allowed else SILENCE_SECONDS)
        try:
            client.connect((SERVICES[family], port))
            if protocol == "udp":
                client.send(b"hello")
            return client.recv(2048).decode()
        except TimeoutError:
            return None


def client() -> None:
    """The client's side: four questions that are answered, four that are not."""
    enter(CLIENT)
    for family in FAMILIES:
        for protocol in ("tcp", "udp"):
            for port, is_expected in ((22, True), (23, False)):
                print(f"  client: {protocol.upper()} to {SERVICES[family]} port {port}", flush=True)
                answer = ask(protocol, family, port)
                print(f"  client: {'answered: ' + answer if answer else 'no answer: dropped'}\n",
                      flush=True)  # fmt: skip
                if (answer is not None) != is_expected:
                    raise SystemExit("demo: that is not what should have happened")


def main() -> None:
    """Build, show, remove."""
    say("1. A network of our own: two namespaces, joined by a veth pair")
    try:
        build_network()
        show()
    finally:
        say("7. All of it is removed again")
        with contextlib.suppress(SystemExit):
            zfw("detach", "--all")
        remove_namespaces(CLIENT, GATEWAY)
    say("Done: four services answered, four probes dropped.")


def show() -> None:
    """Intercept, in the network that stands."""
    say("2. A transparent listener in the gateway, on 127.0.0.1 and ::1, as a router opens it")
    sys.stdout.flush()
    seen, output = os.pipe()
    listener = subprocess.Popen([sys.executable, __file__, "listener"], stdout=output)
    os.close(output)
    lines = os.fdopen(seen)
    try:
        print(lines.readline(), end="", flush=True)

        say("3. The firewall onto the gateway's interface: from here on nothing gets in unasked")
        zfw("attach", "gw0")
        zfw("set", "gw0", "--ipv6", "on")

        say(
            "4. Rules: port 22 of the service belongs to the listener."
            " --route makes the address local, which a router does by itself"
        )
        for family, address in SERVICES.items():
            for protocol in ("tcp", "udp"):
                zfw(
                    "insert", "-c", address, "-m", str(PREFIX_LENGTHS[family]), "-p", protocol,
                    "-l", "22", "-h", "22", "-t", str(TPROXY_PORT), "--route",
                )  # fmt: skip

        say("5. A client tries port 22, which has a rule, and port 23, which has none")
        subprocess.run([sys.executable, __file__, "client"], check=True)
        say("   What the listener saw: the original destinations, no NAT in between")
        time.sleep(0.1)
        listener.terminate()
        print(lines.read(), end="", flush=True)

        say("6. The rules, with what they counted")
        zfw("list")
    finally:
        listener.kill()
        listener.wait()


if __name__ == "__main__":
    if os.environ.get("TERM") == "dumb":
        os.environ["NO_COLOR"] = "1"
    if sys.argv[1:] == ["listener"]:
        listen()
    elif sys.argv[1:] == ["client"]:
        client()
    else:
        check_machine()
        main()
