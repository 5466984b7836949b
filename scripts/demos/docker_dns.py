#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""A container's DNS, redirected: what dig inside is told before, meanwhile and after."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys

from steps import (
    IP,
    NSENTER,
    ZFW,
    check_machine,
    enter,
    inside,
    join,
    remove_namespaces,
    run,
    say,
)

CONTAINER, OUTSIDE = "zfw-demo-container", "zfw-demo-outside"
RESOLVER, SERVER = "127.0.0.11", "10.9.0.53"
BUILTIN_ANSWER, SERVER_ANSWER = "192.0.2.11", "198.51.100.53"
DIG, NFT, TC = "/usr/bin/dig", "/usr/sbin/nft", "/usr/sbin/tc"

# As Docker writes them into each container of a network of its own.
DOCKER_RULES = """
table ip docker-dns {{
  chain output {{
    type nat hook output priority -100;
    ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:{udp}
    ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:{tcp}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr 127.0.0.11 udp sport {udp} snat to :53
    ip saddr 127.0.0.11 tcp sport {tcp} snat to :53
  }}
}}"""


class Resolver:
    """A DNS server in this network namespace, which has one answer to everything."""

    def __init__(self, name: str, address: str, port: int, answer: str) -> None:
        self._name, self._answer = name, answer
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((address, port))
        self.tcp = socket.create_server((address, port))

    def serve(self, ready: socket.socket) -> None:
        """Answer who is waiting at one of the two."""
        if ready is self.udp:
            wire, client = self.udp.recvfrom(65535)
            if answer := self._answer_to(wire, "UDP"):
                self.udp.sendto(answer, client)
            return
        connection, _ = self.tcp.accept()
        with connection, connection.makefile("rb") as stream:
            wire = stream.read(int.from_bytes(stream.read(2), "big"))
            if answer := self._answer_to(wire, "TCP"):
                connection.sendall(len(answer).to_bytes(2, "big") + answer)

    def _answer_to(self, wire: bytes, protocol: str) -> bytes:
        import dns.message
        import dns.rrset

        if not wire:
            return b""  # zfw looks where its packets go
        query = dns.message.from_wire(wire)
        (question,) = query.question
        answer = dns.message.make_response(query)
        if question.rdtype.name == "A":
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", self._answer))
            name = question.name.to_text(omit_final_dot=True)
            print(f"  {self._name}: asked for {name} by {protocol}", flush=True)
        return answer.to_wire()


def serve(told: int) -> None:
    """Both servers; as the engine's daemon, this process is in the container with sockets only."""
    enter(CONTAINER)
    builtin = Resolver("built-in resolver", RESOLVER, 0, BUILTIN_ANSWER)
    enter(OUTSIDE)
    chosen = Resolver(f"server {SERVER}", SERVER, 53, SERVER_ANSWER)
    with os.fdopen(told, "w") as ports:
        print(builtin.udp.getsockname()[1], builtin.tcp.getsockname()[1], file=ports)
    asked = {sock: each for each in (builtin, chosen) for sock in (each.udp, each.tcp)}
    while True:
        for ready in select.select(list(asked), [], [])[0]:
            asked[ready].serve(ready)


def output_of(*command: str) -> str:
    """What a command in the container says."""
    whole = (NSENTER, f"--net=/run/netns/{CONTAINER}", *command)
    return subprocess.run(whole, check=False, capture_output=True, text=True).stdout


def dig(name: str, *options: str, expected: str) -> None:
    """Ask 127.0.0.11 in the container."""
    question = (f"@{RESOLVER}", "+short", "+identify", *options, name)
    print(f"  $ [container] dig {' '.join(question)}", flush=True)
    answer = output_of(DIG, *question).strip()
    print(f"  {answer or 'no answer'}\n", flush=True)
    if not answer.startswith(f"{expected} from server {RESOLVER} "):
        raise SystemExit("demo: that is not what should have happened")


def redirect(*options: str) -> str:
    """Redirect the container's queries; the redirect's id."""
    place = ("--netns", f"/run/netns/{CONTAINER}", "--to", SERVER)
    command = ("docker-dns", "redirect", *place, *options)
    print(f"  $ zfw {' '.join(command)}", flush=True)
    done = subprocess.run([ZFW, *command], check=False, stdout=subprocess.PIPE, text=True)
    print(f"  {done.stdout.strip()}", flush=True)
    if done.returncode:
        raise SystemExit(f"demo: that failed with exit code {done.returncode}")
    return done.stdout.strip()


def zfw(*arguments: str) -> None:
    """Run zfw docker-dns."""
    run(ZFW, "docker-dns", *arguments, shown=f"zfw docker-dns {' '.join(arguments)}")


def settings() -> str:
    """The container's rules and queueing disciplines."""
    return output_of(NFT, "-s", "list", "ruleset") + output_of(TC, "qdisc")


def show(udp: str, tcp: str) -> None:
    """Ask before, meanwhile and after."""
    say("2. Docker's layout: its rules turn port 53 of 127.0.0.11 into the ports of its resolver")
    rules = DOCKER_RULES.format(udp=udp, tcp=tcp)
    inside(CONTAINER, NFT, rules, shown=f"nft '{rules}'")
    before = settings()
    dig("wiki.example", expected=BUILTIN_ANSWER)

    say(f"3. Redirected to {SERVER}: dig still talks to 127.0.0.11, by UDP and by TCP")
    made = redirect()
    try:
        dig("wiki.example", expected=SERVER_ANSWER)
        dig("wiki.example", "+tcp", expected=SERVER_ANSWER)
        zfw("list")
    finally:
        zfw("remove", made)

    say("4. Only names of one domain: all others are the built-in resolver's, as before")
    made = redirect("--only-domain", "corp.example")
    try:
        dig("wiki.corp.example", expected=SERVER_ANSWER)
        dig("wiki.example", expected=BUILTIN_ANSWER)
    finally:
        zfw("remove", made)

    say("5. Removed: the built-in resolver answers again, and rules and qdiscs are as they were")
    dig("wiki.corp.example", expected=BUILTIN_ANSWER)
    if settings() != before:
        raise SystemExit("demo: something in the container is not as it was")


def main() -> None:
    """Build, show, remove."""
    say("1. A network of our own: a namespace as a container has it, and the world outside")
    try:
        join(
            CONTAINER,
            OUTSIDE,
            {
                OUTSIDE: ("gw0", ("10.9.0.1/24", f"{SERVER}/24")),
                CONTAINER: ("eth0", ("10.9.0.2/24",)),
            },
        )
        run(IP, "-n", CONTAINER, "route", "add", "default", "via", "10.9.0.1")
        seen, told = os.pipe()
        server = subprocess.Popen([sys.executable, __file__, "server", str(told)], pass_fds=(told,))
        os.close(told)
        try:
            with os.fdopen(seen) as file:
                ports = file.read().split()
            if len(ports) != 2:
                raise SystemExit("demo: the servers did not start")
            show(*ports)
        finally:
            server.kill()
            server.wait()
    finally:
        say("6. All of it is removed again; no redirect is left")
        remove_namespaces(CONTAINER, OUTSIDE)
    say("Done: one container, another resolver, and nothing in it changed.")


if __name__ == "__main__":
    if os.environ.get("TERM") == "dumb":
        os.environ["NO_COLOR"] = "1"
    if sys.argv[1:2] == ["server"]:
        serve(int(sys.argv[2]))
    else:
        check_machine()
        main()
