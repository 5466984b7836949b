# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel has to be able to do for the guard: take its programs, and call each of them.

scripts/test-kernels runs this in each kernel that it boots.
"""

from __future__ import annotations

import json
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from bpf import build
from tests.guard.support.installed import installed
from tests.guard.support.world import NAMES, UNNAMED
from tests.older_kernels.test_smoke import COMPILERS
from zfw_py.guard import programs
from zfw_py.guard.model import Policy

if TYPE_CHECKING:
    from pathlib import Path

    from tests.guard.support.world import World

pytestmark = pytest.mark.kernel

# Nobody is there: who answers from it is the proxy, under its name.
SERVER = ("192.0.2.53", "2001:db8::53")
NAMED, _ = NAMES["both.example"]
FORBIDDEN = "other.example"

# Tells on one line of JSON what a guarded program sees.
CLIENT = f"""
import json, struct, sys
from socket import *

def question(name):
    labels = b"".join(bytes((len(one),)) + one.encode() for one in name.split("."))
    return b"\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0" + labels + b"\\0\\0\\1\\0\\1"

def told(answer):
    code = answer[3] & 15
    return "absent" if code == 3 else inet_ntoa(answer[-4:]) if code == 0 else code

def opened(family, kind):
    made = socket(family, kind)
    made.settimeout(60)
    return made

def unconnected(family, server):
    with opened(family, SOCK_DGRAM) as asking:
        asking.sendto(question("both.example"), (server, 53))
        answer, source = asking.recvfrom(512)
        return [source[0], source[1], told(answer)]

def connected(family, server):
    with opened(family, SOCK_DGRAM) as asking:
        asking.connect((server, 53))
        peer = asking.getpeername()
        asking.send(question("both.example"))
        return [peer[0], peer[1], told(asking.recv(512))]

def stream(family, server):
    with opened(family, SOCK_STREAM) as asking:
        asking.connect((server, 53))
        peer = asking.getpeername()
        asked = question("both.example")
        asking.sendall(struct.pack("!H", len(asked)) + asked)
        with asking.makefile("rb") as answers:
            (length,) = struct.unpack("!H", answers.read(2))
            return [peer[0], peer[1], told(answers.read(length))]

def denied_name():
    with opened(AF_INET, SOCK_DGRAM) as asking:
        asking.sendto(question("{FORBIDDEN}"), ("{SERVER[0]}", 53))
        return told(asking.recv(512))

def attempt(family, kind, protocol, act):
    with socket(family, kind, protocol) as trying:
        trying.settimeout(60)
        try:
            act(trying)
        except PermissionError:
            return "denied"
        return "passed"

def connects(address, port):
    return lambda trying: trying.connect((address, port))

def sends(address, port):
    return lambda trying: trying.sendto(b"x" * 8, (address, port))

mapped = "::ffff:{SERVER[0]}"
print(json.dumps(dict(
    unconnected=[unconnected(AF_INET, "{SERVER[0]}"), unconnected(AF_INET6, mapped),
                 unconnected(AF_INET6, "{SERVER[1]}")],
    connected=[connected(AF_INET, "{SERVER[0]}"), connected(AF_INET6, mapped),
               connected(AF_INET6, "{SERVER[1]}")],
    stream=[stream(AF_INET, "{SERVER[0]}"), stream(AF_INET6, mapped),
            stream(AF_INET6, "{SERVER[1]}")],
    name=denied_name(),
    tcp=[attempt(AF_INET, SOCK_STREAM, 0, connects("{NAMED}", 80)),
         attempt(AF_INET6, SOCK_STREAM, 0, connects("::ffff:{NAMED}", 80)),
         attempt(AF_INET6, SOCK_STREAM, 0, connects("{UNNAMED[1]}", 443)),
         attempt(AF_INET, SOCK_STREAM, 0, connects("{UNNAMED[0]}", 80)),
         attempt(AF_INET6, SOCK_STREAM, 0, connects("::ffff:{UNNAMED[0]}", 80)),
         attempt(AF_INET6, SOCK_STREAM, 0, connects("{UNNAMED[1]}", 80))],
    udp=[attempt(AF_INET, SOCK_DGRAM, 0, sends("{NAMED}", 80)),
         attempt(AF_INET, SOCK_DGRAM, 0, sends("{UNNAMED[0]}", 80)),
         attempt(AF_INET6, SOCK_DGRAM, 0, sends("{UNNAMED[1]}", 80))],
    # These meet no hook that could refuse them: the packet is judged.
    raw=[attempt(AF_INET, SOCK_RAW, 253, sends("{NAMED}", 0)),
         attempt(AF_INET, SOCK_RAW, 253, sends("{UNNAMED[0]}", 0)),
         attempt(AF_INET6, SOCK_RAW, 253, sends("{UNNAMED[1]}", 0))],
    # IPV6_FREEBIND, and one that is nobody's business.
    option=[attempt(AF_INET6, SOCK_DGRAM, 0, lambda trying: trying.setsockopt(41, 78, 1)),
            attempt(AF_INET6, SOCK_DGRAM, 0, lambda trying: trying.setsockopt(41, 49, 1))],
)))
"""


@pytest.mark.usefixtures("_private_bpffs")
@pytest.mark.parametrize("compiler", COMPILERS, ids=lambda path: path.parts[-3] + path.name)
def test_the_verifier_takes_what_each_compiler_of_this_machine_makes(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "find_clang", lambda: compiler)
    built = tmp_path / "guard.bpf.o"
    build.compile_bpf(build.ROOT / "bpf" / "guard.bpf.c", built)
    monkeypatch.setattr(programs, "SYSTEM", programs.SYSTEM._replace(object=built))
    with installed(Policy(), {}) as (_, maps):
        assert maps.decisions() == {}


def test_a_guarded_program_asks_our_proxy_and_reaches_what_it_may(
    world: World, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    done = world.guarded(
        ["--allow", "both.example", "--allow", f"[{UNNAMED[1]}]:443", "--log", str(log)],
        *(sys.executable, "-c", CLIENT),
    )
    assert done.returncode == 0, done.stderr
    servers = (SERVER[0], f"::ffff:{SERVER[0]}", SERVER[1])
    answers = [[server, 53, NAMED] for server in servers]
    assert json.loads(done.stdout) == {
        "unconnected": answers,
        "connected": answers,
        "stream": answers,
        "name": "absent",
        "tcp": ["passed"] * 3 + ["denied"] * 3,
        "udp": ["passed", "denied", "denied"],
        "raw": ["passed", "denied", "denied"],
        "option": ["denied", "passed"],
    }

    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert {one["verdict"] for one in records} == {"redirect", "allow", "deny"}
    assert all(one["pid"] and one["command"].startswith("python") for one in records)
    assert all(one["cgroup"].startswith(str(world.cgroup)) for one in records)
    # Where a mapped send or a mapped connection arrives is the kernel's affair.
    redirected = {
        (one["hook"][:-1], one["protocol"], _plain(one["original"]))
        for one in records
        if one["reason"] == "dns" and one["hook"] != "dns"
    }
    assert redirected == {
        (*what, server)
        for what in (("sendmsg", "udp"), ("connect", "udp"), ("connect", "tcp"))
        for server in SERVER
    }
    assert {
        (one["hook"], one["name"], one["verdict"]) for one in records if one["hook"] == "dns"
    } == {("dns", "both.example", "allow"), ("dns", FORBIDDEN, "deny")}
    denied = {
        (one["hook"], one["protocol"], _plain(one["original"]), one["reason"])
        for one in records
        if one["verdict"] == "deny" and one["hook"] != "dns"
    }
    assert denied == {
        ("connect4", "tcp", UNNAMED[0], "not_allowed"),
        ("connect6", "tcp", UNNAMED[0], "not_allowed"),
        ("connect6", "tcp", UNNAMED[1], "not_allowed"),
        ("sendmsg4", "udp", UNNAMED[0], "not_allowed"),
        ("sendmsg6", "udp", UNNAMED[1], "not_allowed"),
        ("egress", "253", UNNAMED[0], "not_allowed"),
        ("egress", "253", UNNAMED[1], "not_allowed"),
        ("setsockopt", "udp", None, "foreign_source"),
    }
    assert {one["name"] for one in records if _plain(one["original"]) == NAMED} == {"both.example"}


def _plain(end: dict[str, str] | None) -> str | None:
    """Its address, IPv4 without what stands around it."""
    if end is None:
        return None
    address = ip_address(end["address"])
    return str(getattr(address, "ipv4_mapped", None) or address)
