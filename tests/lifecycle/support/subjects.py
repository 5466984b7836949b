# SPDX-License-Identifier: GPL-2.0-only
"""The four systems as the tests of their life cycle drive them: install, change, upgrade, remove.

Each is made in a world of its own, with a probe: what traffic does while nothing is installed,
and while something is.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from bpf.build import compile_bpf
from tests.docker_dns.support.world import ANY_ANSWER, BUILTIN_ANSWER, docker_world
from tests.guard.support.world import UNNAMED as NOT_ALLOWED
from tests.guard.support.world import UPSTREAM
from tests.guard.support.world import world as guard_world
from tests.steer.support.gateway import connected, listen, mapping
from tests.support.cgroups import enter
from tests.support.netns import Network
from zfw_py import Firewall, NotInstalled, Prefix, Rule, RuleKey
from zfw_py.docker_dns import programs as dns_programs
from zfw_py.docker_dns.service import DnsRedirect
from zfw_py.errors import Conflict, NotFound
from zfw_py.firewall import programs as firewall_programs
from zfw_py.guard import listing, takeover
from zfw_py.guard import programs as guard_programs
from zfw_py.guard import service as guard
from zfw_py.guard.model import Policy, parse_entry
from zfw_py.guard.target import GuardTarget
from zfw_py.lifecycle import programs as lifecycle
from zfw_py.lifecycle.store import UNNAMED
from zfw_py.steer import programs as steer_programs
from zfw_py.steer.service import Steering
from zfw_py.values.endpoint import parse_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zfw_py.lifecycle.attachment import Attachment
    from zfw_py.lifecycle.programs import System

IPV4 = Network.gateway_ipv4


class Subject:
    """One system in its world. ``enter`` goes, in a child, to where its commands are run."""

    system: System

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._build = 0

    def enter(self) -> None:
        """Nothing: the child is where the test is."""

    def install(self) -> None:
        raise NotImplementedError

    def heal(self) -> None:
        """The next command: install, where what was killed has not done so."""
        with suppress(Conflict):
            self.install()

    def upgrade(self) -> None:
        """As this build's command, to which the installed programs are another build's."""
        with self.another_build():
            self._upgrade()

    def _upgrade(self) -> None:
        raise NotImplementedError

    def remove(self) -> None:
        raise NotImplementedError

    def change(self) -> None:
        raise NotImplementedError

    def undo_change(self) -> None:
        """Back to what ``install`` makes."""

    def probe(self, *, is_whole: bool = True) -> str:
        """What traffic does now: "before", "installed" or "changed".

        Without ``is_whole``: of an instance whose maker was killed, some may not work; nothing
        may pass that an installed one stops.
        """
        raise NotImplementedError

    @property
    def identifiers(self) -> list[str]:
        return self.system.store.identifiers()

    def directory(self) -> str:
        (identifier,) = self.identifiers
        return self.system.store.directory(identifier)

    def pins(self, identifier: str) -> list[str]:
        return [path.name for path in Path(self.system.store.directory(identifier)).iterdir()]

    def new_pins(self) -> list[str]:
        """Pins that are part of no instance: a killed upgrade left them."""
        (identifier,) = self.identifiers
        return [name for name in self.pins(identifier) if name.startswith(UNNAMED)]

    def attachments(self) -> list[Attachment]:
        return list(self.system.attachments(self.directory()))

    def running(self) -> list[int | None]:
        """The ids of the programs that the kernel runs, in the order of the declaration."""
        return [each.program_id() for each in self.attachments()]

    def next_build(self) -> None:
        """From now on ``another_build`` is one that has never been installed."""
        self._build += 1

    @contextmanager
    def another_build(self) -> Iterator[None]:
        """The same object, said to be another build's: its programs are loaded anew."""
        with ExitStack() as patched:
            for module in (lifecycle, takeover, guard):
                digest = f"{self._build:064x}"
                patched.enter_context(patch.object(module, "digest_of", lambda _, d=digest: d))
            yield


# The firewall's maps with small programs: the verifier takes seconds for the real ones.
SMALL_FIREWALL = """
#include <linux/pkt_cls.h>
#include "firewall/maps.h"
#define PACKET_HOST 0 /* linux/if_packet.h */
#define PROGRAM(name) SEC("tc") int name(struct __sk_buff *skb)
PROGRAM(ingress) { return skb->pkt_type == PACKET_HOST ? TC_ACT_SHOT : TC_ACT_UNSPEC; }
PROGRAM(egress) { (void)skb; return TC_ACT_UNSPEC; }
PROGRAM(explain_ingress) { (void)skb; return 0; }
PROGRAM(explain_egress) { (void)skb; return 0; }
SEC("sk_lookup") int deliver(void *ctx) { return ctx != 0; }
char LICENSE[] SEC("license") = "GPL";
"""


class FirewallSubject(Subject):
    """On both directions of an interface; its programs drop all that comes in."""

    mode = "tcx"

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        source, small = folder / "small.bpf.c", folder / "small.bpf.o"
        source.write_text(SMALL_FIREWALL)
        compile_bpf(source, small)
        self.system = firewall_programs.SYSTEM._replace(object=small)
        stack.enter_context(patch.object(firewall_programs, "SYSTEM", self.system))
        self._network = Network()
        stack.callback(self._network.close)
        stack.enter_context(self._network.gateway.entered())
        self._rule = Rule(RuleKey(Prefix.parse("192.0.2.1"), "tcp", 7777))

    def install(self) -> None:
        Firewall().attach(self._network.interface, "both", self.mode)

    def change(self) -> None:
        Firewall().insert(self._rule)

    def undo_change(self) -> None:
        Firewall().flush()

    def _upgrade(self) -> None:
        Firewall().upgrade()

    def remove(self) -> None:
        Firewall().detach_all()

    def probe(self, *, is_whole: bool = True) -> str:
        try:
            with self._network.client.entered():
                socket.create_connection((IPV4, 7777), timeout=0.2).close()
        except ConnectionRefusedError:
            return "before"
        except TimeoutError:
            return "changed" if self._has_rule() else "installed"
        raise AssertionError("somebody listens on port 7777")

    def _has_rule(self) -> bool:
        try:
            return bool(Firewall().rules())
        except NotInstalled:
            return False


class FirewallByClsact(FirewallSubject):
    mode = "clsact"


class GuardSubject(Subject):
    """On a cgroup: one name is allowed, and everything else denied."""

    system = guard_programs.SYSTEM

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        self.world = stack.enter_context(guard_world(folder))
        stack.callback(guard.Guard.detach_all)
        stack.enter_context(self.world.inside.entered())
        self.policy = Policy(
            allow=(parse_entry("both.example", ""),), dns_upstreams=(parse_server(UPSTREAM, ""),)
        )

    def enter(self) -> None:
        enter(self.world.cgroup)

    def install(self) -> None:
        guard.Guard.attach(GuardTarget.of_cgroup(str(self.world.cgroup)), self.policy)

    def _upgrade(self) -> None:
        for identifier in self.identifiers:
            guard.Guard(identifier).upgrade()

    def remove(self) -> None:
        guard.Guard.detach_all()

    def probe(self, *, is_whole: bool = True) -> str:
        """By a process within: does it reach an address that is not allowed; does a name work."""
        code = (
            "import json, socket\n"
            "def attempt(call):\n"
            "    try:\n"
            "        call().close()\n"
            "        return None\n"
            "    except OSError as error:\n"
            "        return error.errno\n"
            "print(json.dumps([\n"
            f"    attempt(lambda: socket.create_connection((name, 443), timeout=3))\n"
            f"    for name in ({NOT_ALLOWED[0]!r}, 'both.example')]))\n"
        )
        done = self.world.run(sys.executable, "-c", code)
        assert done.returncode == 0, done.stderr
        address, name = json.loads(done.stdout)
        if address is None:
            return "before"
        assert address == errno.EPERM
        if not is_whole:
            return "installed"
        assert name is None, f"a name that is allowed: error {name}"
        found, foreign = listing.guards()
        assert foreign == []
        assert [each.problem for each in found] == [""]
        return "installed"


class RedirectSubject(Subject):
    """The queries of a container's network namespace."""

    system = dns_programs.SYSTEM
    mode = "tcx"

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        self.world = stack.enter_context(docker_world(folder))

    def install(self) -> None:
        self.world.redirect(mode=self.mode)

    def _upgrade(self) -> None:
        with self.world.container.entered():
            try:
                DnsRedirect().upgrade()
            except NotInstalled:
                raise NotFound("no redirect") from None

    def remove(self) -> None:
        DnsRedirect.remove_all()

    def probe(self, *, is_whole: bool = True) -> str:
        answers = {ANY_ANSWER: "installed", BUILTIN_ANSWER: "before"}
        (answer,) = self.world.addresses("www.example")
        return answers[answer]


class RedirectByClsact(RedirectSubject):
    mode = "clsact"


class SteeringSubject(Subject):
    """A port of every address; a change adds another port."""

    system = steer_programs.SYSTEM

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        self._network = Network()
        stack.callback(self._network.close)
        stack.enter_context(self._network.gateway.entered())
        self._daemon = stack.enter_context(listen("127.0.0.1", 2222))
        stack.callback(self._detach)
        self._one, self._two = (
            mapping("tcp", "any", port, "127.0.0.1:2222") for port in ("5555", "6666")
        )

    def _detach(self) -> None:
        try:
            Steering().detach()
        except NotInstalled:
            pass

    def install(self) -> None:
        Steering().apply([self._one])

    def change(self) -> None:
        Steering().apply([self._one, self._two])

    def undo_change(self) -> None:
        Steering().apply([self._one])

    def _upgrade(self) -> None:
        Steering().upgrade()

    def remove(self) -> None:
        Steering().detach()

    def probe(self, *, is_whole: bool = True) -> str:
        landed = [self._lands(port) for port in (5555, 6666)]
        return {(False, False): "before", (True, False): "installed", (True, True): "changed"}[
            landed[0], landed[1]
        ]

    def _lands(self, port: int) -> bool:
        try:
            with connected(self._network.client, IPV4, port):
                self._daemon.accept()[0].close()
        except ConnectionRefusedError:
            return False
        return True


SUBJECTS: dict[str, type[Subject]] = {
    "firewall": FirewallSubject,
    "firewall by clsact": FirewallByClsact,
    "guard": GuardSubject,
    "redirect": RedirectSubject,
    "redirect by clsact": RedirectByClsact,
    "steering": SteeringSubject,
}


@contextmanager
def subject(name: str, folder: Path) -> Iterator[Any]:
    """One of them, with nothing installed."""
    with ExitStack() as stack:
        yield SUBJECTS[name](stack, folder)
