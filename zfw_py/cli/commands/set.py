# SPDX-License-Identifier: GPL-2.0-only
"""zfw set."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.interfaces import check, complete
from zfw_py.errors import UsageError
from zfw_py.firewall.flow_limits import FlowLimits
from zfw_py.firewall.interfaces import names_of
from zfw_py.firewall.service import Firewall

OnOff = Literal["on", "off"] | None


def command(
    interface: Annotated[
        str | None,
        typer.Argument(metavar="[IFACE|all]", autocompletion=lambda: [*complete(), "all"]),
    ] = None,
    icmp_echo: Annotated[OnOff, typer.Option(help="Answer pings.")] = None,
    ssh: Annotated[
        OnOff, typer.Option(help="Let SSH to the interface's own addresses through.")
    ] = None,
    ipv6: Annotated[OnOff, typer.Option(help="Let IPv6 through the rules; off drops it.")] = None,
    per_interface_rules: Annotated[
        OnOff, typer.Option(help="Only rules with -N of this interface apply.")
    ] = None,
    outbound_filter: Annotated[
        OnOff,
        typer.Option(help="What leaves needs an egress rule, unless it answers what came in."),
    ] = None,
    vrrp: Annotated[OnOff, typer.Option(help="Pass VRRP.")] = None,
    eapol: Annotated[OnOff, typer.Option(help="Pass EAPOL frames (802.1X).")] = None,
    pass_non_tuple: Annotated[
        OnOff, typer.Option(help="Pass all that is neither TCP nor UDP.")
    ] = None,
    verbose: Annotated[OnOff, typer.Option(help="Trace packets.")] = None,
    udp_idle: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", help="Forget a UDP flow after so long without a packet."),
    ] = None,
    tcp_idle: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", help="Forget a TCP flow after so long without a packet."),
    ] = None,
    max_flows: Annotated[
        int | None, typer.Option(metavar="COUNT", help="How many open flows are kept.")
    ] = None,
) -> None:
    """Turn settings of an interface on or off, or of all but lo; limit tracked flows.

    Settings belong to the interface's name: they outlive the interface, and detach.
    The limits go for the whole firewall, and are given without an interface.
    """
    asked = {
        "icmp_echo": icmp_echo,
        "ssh": ssh,
        "ipv6": ipv6,
        "per_interface_rules": per_interface_rules,
        "outbound_filter": outbound_filter,
        "vrrp": vrrp,
        "eapol": eapol,
        "pass_non_tuple": pass_non_tuple,
        "verbose": verbose,
    }
    settings = {setting: value == "on" for setting, value in asked.items() if value}
    has_limits = (udp_idle, tcp_idle, max_flows) != (None, None, None)
    if interface is None and settings:
        raise UsageError("IFACE: missing; a setting belongs to an interface")
    if interface is not None and not settings:
        raise UsageError("no setting given", hint="zfw set --help lists them")
    if not settings and not has_limits:
        raise UsageError("nothing given to set", hint="zfw set --help lists what there is")
    if interface is not None:
        check([interface])
    firewall = Firewall()
    if has_limits:
        limits = firewall.set_flow_limits(udp_idle=udp_idle, tcp_idle=tcp_idle, max_flows=max_flows)
        output.line(limits_text(limits))
    if interface is None:
        return
    names = names_of(interface)
    for setting, on in settings.items():
        firewall.set(names, setting, on)
        for name in names:
            output.line(f"{name}: {setting.replace('_', '-')} {'on' if on else 'off'}")


def limits_text(limits: FlowLimits) -> str:
    """The limits of tracked flows in a line."""
    return (
        f"flows: udp idle {limits.udp_idle} s, tcp idle {limits.tcp_idle} s,"
        f" at most {limits.max_flows}"
    )
