# SPDX-License-Identifier: GPL-2.0-only
"""The boot programs: read the configuration, make a plan of it, and carry the plan out.

Configuration that cannot be read stops a program before it changes anything. Afterwards a step
that fails is reported, and the other steps are still taken.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING

from zfw_py.compat import boot, drop_ins, interfaces_config, places, router_config
from zfw_py.errors import NotFound, NotInstalled, PermissionDenied, UsageError, ZfwError
from zfw_py.firewall.rules import Inserted
from zfw_py.firewall.service import Firewall
from zfw_py.kernel import subprocesses
from zfw_py.kernel.own_netns import interface_addresses
from zfw_py.values.prefix import IPV4_MAPPED, Prefix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfw_py.compat.report import Report
    from zfw_py.compat.tree import Tree

_MAX_UFW_BYTES = 256 * 1024
_UFW_TIMEOUT = 60.0  # seconds


class _Router:
    """A router's configuration and its file."""

    def __init__(self, tree: Tree, path: str, content: bytes, status: os.stat_result) -> None:
        self.path = path
        self.status = status
        self.config = router_config.RouterConfig(content, tree.absolute(path))


def read_router(tree: Tree) -> _Router | None:
    """The router's configuration; None if there is no router here."""
    for path in places.ROUTER_CONFIGS:
        found = tree.read_with_status(path, router_config.MAX_BYTES)
        if found is not None:
            return _Router(tree, path, *found)
    return None


def require_root() -> None:
    """Raise PermissionDenied unless the process is root's."""
    if os.geteuid() != 0:
        raise PermissionDenied("this needs root")


def start(kind: str, tree: Tree, report: Report, lan_interface: str | None = None) -> None:
    """Run the boot program of ``kind``, one of ``boot.KINDS``.

    ``lan_interface`` is the controller's. Raises ZfwError, with nothing
    changed, for configuration that cannot be used.
    """
    require_root()
    router = read_router(tree) if kind in ("router", "controller") else None
    lan = [lan_interface] if lan_interface else []
    hooked = False
    mode = None
    if router is not None and kind == "router":
        lan = router.config.interfaces()
        hooked = drop_ins.is_router_hooked(tree)
        mode = _converted(router, report)
    plan = _plan(kind, tree, report, router, lan)
    if kind == "router" and router is None:
        report.say("no router is configured here: only the interfaces are set up")

    if not tree.exists(places.INTERFACES):
        tree.write(places.INTERFACES, interfaces_config.text(lan), 0o644, is_new=True)
        report.say(f"created {tree.absolute(places.INTERFACES)}")
    if router is not None and mode is not None:
        tree.write(router.path, mode, 0o600, is_new=False, like=router.status)
        report.say(f"{tree.absolute(router.path)}: mode is now {router_config.MODE}")

    _carry_out(plan, tree, report)
    for feature in plan.missing:
        report.missing(feature)
    try:
        if kind == "router" and router is not None and not hooked:
            _hook_router(tree, report)
        elif kind == "controller" and lan_interface:
            _hook_controller(tree, report, lan_interface)
    except ZfwError as error:
        report.failed(error)


def _converted(router: _Router, report: Report) -> bytes | None:
    """The router's configuration with zfw as its diverter; None if it needs no change."""
    mode = router.config.mode()
    if mode is not None and mode.partition(":")[0] != router_config.PLAIN_MODE:
        report.say(f"the router's mode is {mode}: left unchanged")
        return None
    return router.config.with_mode(router_config.MODE)


def _plan(
    kind: str, tree: Tree, report: Report, router: _Router | None, lan: list[str]
) -> boot.Plan:
    content = tree.read(places.INTERFACES, interfaces_config.MAX_BYTES)
    if content is None:
        if not lan:
            raise UsageError(
                f"{tree.absolute(places.INTERFACES)}: no such file",
                hint=f"copy {places.INTERFACES}.sample and name your interfaces in it",
            )
        content = interfaces_config.text(lan)
    config = interfaces_config.read(
        content, tree.absolute(places.INTERFACES), tracks_internal=kind != "tunnel"
    )
    for key in config.unknown:
        report.warn(f"{tree.absolute(places.INTERFACES)}: unknown key {key}")
    own_addresses = _ipv4_addresses(lan)
    if kind == "tunnel":
        return boot.plan(kind, config.interfaces)
    if kind == "router":
        if router is None:
            return boot.plan(kind, config.interfaces)
        ports, resolvers = router.config.listener_ports(), router.config.resolvers()
        for note in router.config.notes:
            report.warn(note)
        return boot.plan(
            kind,
            config.interfaces,
            own_addresses=own_addresses,
            ports=ports,
            resolvers=resolvers,
        )
    guarded = _controller_ports(tree) + (router.config.link_ports() if router else [])
    return boot.plan(
        kind,
        config.interfaces,
        own_addresses=own_addresses,
        ports=guarded + _salt_ports(tree),
        guarded_ports=guarded,
    )


def _ipv4_addresses(names: Iterable[str]) -> list[Prefix]:
    found = interface_addresses()
    addresses = {a[12:] for name in names for a in found.get(name, ()) if a.startswith(IPV4_MAPPED)}
    return [Prefix(4, address, 32) for address in sorted(addresses)]


def _controller_ports(tree: Tree) -> list[int]:
    ports: list[int] = []
    for path in places.CONTROLLER_CONFIGS:
        content = tree.read(path, router_config.MAX_BYTES)
        if content is not None:
            ports += router_config.controller_ports(content, tree.absolute(path))
            break
    # ufw redirects port 80 to the controller after zfw has seen the packet.
    rules = tree.read(places.UFW_RULES, _MAX_UFW_BYTES) or b""
    for line in rules.split(b"\n"):
        words = line.split()
        if words[:2] == [b"-A", b"PREROUTING"] and b"REDIRECT" in words:
            pairs = list(pairwise(words))
            if (b"--dport", b"80") in pairs and (b"-p", b"tcp") in pairs:
                ports.append(80)
    return ports


def _salt_ports(tree: Tree) -> list[int]:
    content = tree.read(places.SALT_CONFIG, router_config.MAX_BYTES)
    if content is None:
        return []
    return router_config.salt_ports(content, tree.absolute(places.SALT_CONFIG))


def _carry_out(plan: boot.Plan, tree: Tree, report: Report) -> None:
    firewall = Firewall()
    try:
        if firewall.is_installed():
            count = firewall.flush("ingress", routes=plan.flushes_routes)
            report.say(f"running already: removed {count} ingress rules")
    except ZfwError as error:
        report.failed(error)
    for interface in plan.interfaces:
        try:
            # By clsact: scripts read the output of `tc filter show`.
            direction = "both" if interface.tracks_egress else "ingress"
            firewall.attach(interface.name, direction, mode="clsact")
            firewall.set([interface.name], "per_interface_rules", interface.per_interface_rules)
        except ZfwError as error:
            report.failed(error)
            continue
        report.say(f"attached {interface.name} {direction}")
        allow_in_ufw(tree, report, interface.name)
    if plan.rules:
        try:
            results = firewall.apply(plan.rules)
        except NotInstalled:
            report.failed(NotFound("no interface is attached: no rules were added"))
        except ZfwError as error:
            report.failed(error)
        else:
            for insert, result in zip(plan.rules, results, strict=True):
                report.say(f"rule {insert.rule}")
                for warning in result.warnings() if isinstance(result, Inserted) else ():
                    report.warn(warning)
    _run_user_rules(tree, report)


def allow_in_ufw(tree: Tree, report: Report, name: str, *, delete: bool = False) -> None:
    """Make ufw, if it is installed, allow all packets of an interface; ``delete`` undoes that."""
    if not tree.exists(places.UFW) or name == "lo":
        return
    rule = ["allow", "in", "on", name, "to", "any"]
    words = ["--force", "delete", *rule] if delete else rule
    try:
        code = subprocesses.run(tree.absolute(places.UFW), *words, timeout=_UFW_TIMEOUT)
    except ZfwError as error:
        report.failed(error)
        return
    if code:
        report.failed(ZfwError(f"ufw {' '.join(words)}: exit code {code}"))


def _run_user_rules(tree: Tree, report: Report) -> None:
    """Run the user's own rules, last, so that they may change those before."""
    if tree.status(places.USER_RULES) is None:
        return
    path = tree.absolute(places.USER_RULES)
    try:
        subprocesses.run_own(path, timeout=places.USER_RULES_TIMEOUT)
    except ZfwError as error:
        report.failed(error)
        return
    report.say(f"ran {path}")


def _hook_router(tree: Tree, report: Report) -> None:
    """Make the router's unit run the boot program first."""
    if not drop_ins.has_unit(tree, "ziti-router.service"):
        return
    if drop_ins.hook(tree, places.ROUTER_DROP_IN, drop_ins.ROUTER_HOOK):
        report.say(f"created {tree.absolute(places.ROUTER_DROP_IN)}")
    drop_ins.systemctl(tree, report, "daemon-reload")
    drop_ins.systemctl(tree, report, "restart", "ziti-router.service")


def _hook_controller(tree: Tree, report: Report, lan_interface: str) -> None:
    """Make fw-init.service run the controller's boot program."""
    if not drop_ins.has_unit(tree, "fw-init.service"):
        return
    text = drop_ins.controller_hook(lan_interface)
    if drop_ins.hook(tree, places.CONTROLLER_DROP_IN, text):
        report.say(f"created {tree.absolute(places.CONTROLLER_DROP_IN)}")
        drop_ins.systemctl(tree, report, "daemon-reload")
        drop_ins.systemctl(tree, report, "enable", "fw-init.service")
