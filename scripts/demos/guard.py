#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""The guard, shown on real programs: what they ask for, and what they reach."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys

from steps import ZFW, check_machine, enter, inside, join, remove_namespaces, say

INSIDE, OUTSIDE = "zfw-demo-inside", "zfw-demo-outside"
NAMES = {
    "wiki.example": ("10.9.0.10", "fd09::10"),
    "tracker.example": ("10.9.0.20", "fd09::20"),
}
ADDRESS = "10.9.0.30"
UPSTREAM = "10.9.0.1"
MAPPED = f"::ffff:{ADDRESS}"


def serve() -> None:
    """The world outside: a DNS server that knows NAMES, and a greeting on port 80 of each."""
    import dns.flags
    import dns.message
    import dns.rrset

    enter(OUTSIDE)
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind((UPSTREAM, 53))
    web = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
    os.write(1, b"ready\n")  # one write, also where stdout is not buffered
    while True:
        for ready in select.select([names, web], [], [])[0]:
            if ready is web:
                connection, _ = web.accept()
                with connection:
                    connection.recv(2048)
                    here = connection.getsockname()[0].removeprefix("::ffff:")
                    body = f"greetings from {here}\n"
                    head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                    connection.sendall(f"{head}{body}".encode())
                continue
            wire, client = names.recvfrom(2048)
            query = dns.message.from_wire(wire)
            answer = dns.message.make_response(query)
            question = query.question[0]
            name = question.name.to_text(omit_final_dot=True)
            for address in NAMES.get(name, ()):
                kind = "AAAA" if ":" in address else "A"
                if question.rdtype.name == kind:
                    answer.answer.append(
                        dns.rrset.from_text(question.name, 60, "IN", kind, address)
                    )
            names.sendto(answer.to_wire(), client)


# A program as any: it looks a name up and fetches a page.
FETCH = """
import sys, urllib.request
try:
    print("   ", urllib.request.urlopen(sys.argv[1], timeout=5).read().decode().strip())
except OSError as error:
    sys.exit(f"    {error}")
"""


def fetch(*guard: str, host: str, is_expected: bool) -> None:
    """Run that program, guarded or not."""
    command = [sys.executable, "-c", FETCH, f"http://{host}/"]
    shown = f"{' '.join(guard)} -- fetch http://{host}/" if guard else f"fetch http://{host}/"
    print(f"  $ {shown}", flush=True)
    whole = [ZFW, *guard[1:], "--", *command] if guard else command
    done = subprocess.run(
        ["/usr/bin/nsenter", f"--net=/run/netns/{INSIDE}", *whole],
        check=False,
        env=os.environ | {"no_proxy": "*"},
    )
    if (done.returncode == 0) != is_expected:
        raise SystemExit("demo: that is not what should have happened")


def show() -> None:
    """Fetch with the guard and without."""
    say("2. Without a guard a program reaches whatever it asks for")
    # The machine's own resolver is none of ours: by address.
    fetch(host=ADDRESS, is_expected=True)

    guard = ("zfw", "guard", "run", "--allow", "wiki.example", "--dns-upstream", UPSTREAM)
    say("3. Guarded: the name that is allowed works, for IPv4 and IPv6, whatever server it asks")
    fetch(*guard, host="wiki.example", is_expected=True)

    say("4. Another name is refused by the proxy; nothing leaves for it")
    fetch(*guard, host="tracker.example", is_expected=False)

    say("5. An address that no allowed name led to is denied, also as IPv4-mapped IPv6")
    fetch(*guard, host=ADDRESS, is_expected=False)
    fetch(*guard, host=f"[{MAPPED}]", is_expected=False)

    say("6. --log-only lets it pass and tells")
    fetch(*guard, "--log-only", host=ADDRESS, is_expected=True)


def main() -> None:
    """Build, show, remove."""
    say("1. A network of our own: a namespace to run programs in, and a world outside")
    served = [UPSTREAM, ADDRESS, *(address for pair in NAMES.values() for address in pair)]
    outside = tuple(f"{address}/{64 if ':' in address else 24}" for address in served)
    try:
        join(
            INSIDE,
            OUTSIDE,
            {
                OUTSIDE: ("gw0", outside),
                INSIDE: ("eth0", ("10.9.0.2/24", "fd09::2/64")),
            },
        )
        seen, output = os.pipe()
        server = subprocess.Popen([sys.executable, __file__, "server"], stdout=output)
        os.close(output)
        try:
            if os.read(seen, 16) != b"ready\n":
                raise SystemExit("demo: the server outside did not start")
            show()
        finally:
            server.kill()
            server.wait()
    finally:
        say("7. All of it is removed again; no guard is left")
        with contextlib.suppress(SystemExit):
            inside(INSIDE, ZFW, "guard", "list", shown="zfw guard list")
        remove_namespaces(INSIDE, OUTSIDE)
    say("Done: one name reached, another refused, an address denied.")


if __name__ == "__main__":
    if sys.argv[1:] == ["server"]:
        serve()
    else:
        check_machine()
        main()
