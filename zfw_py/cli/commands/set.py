# SPDX-License-Identifier: GPL-2.0-only
"""zfw set."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.interfaces import check, complete
from zfw_py.errors import UsageError
from zfw_py.firewall.firewall import Firewall

OnOff = Literal["on", "off"] | None


def command(
    interface: Annotated[
        str, typer.Argument(metavar="IFACE|all", autocompletion=lambda: [*complete(), "all"])
    ],
    icmp_echo: Annotated[OnOff, typer.Option(help="Answer pings.")] = None,
    ssh: Annotated[
        OnOff, typer.Option(help="Let SSH to the interface's own addresses through.")
    ] = None,
    ipv6: Annotated[OnOff, typer.Option(help="Let IPv6 through the rules; off drops it.")] = None,
    per_interface_rules: Annotated[
        OnOff, typer.Option(help="Only rules with -N of this interface apply.")
    ] = None,
    pass_non_tuple: Annotated[
        OnOff, typer.Option(help="Pass all that is neither TCP nor UDP.")
    ] = None,
    verbose: Annotated[OnOff, typer.Option(help="Trace packets.")] = None,
) -> None:
    """Turn settings of an interface on or off, or of all but lo.

    They belong to the interface's name: they outlive the interface, and detach.
    """
    asked = {
        "icmp_echo": icmp_echo,
        "ssh": ssh,
        "ipv6": ipv6,
        "per_interface_rules": per_interface_rules,
        "pass_non_tuple": pass_non_tuple,
        "verbose": verbose,
    }
    settings = {setting: value == "on" for setting, value in asked.items() if value}
    if not settings:
        raise UsageError("no setting given", hint="zfw set --help lists them")
    check([interface])
    names = [name for name in complete() if name != "lo"] if interface == "all" else [interface]
    firewall = Firewall()
    for setting, on in settings.items():
        firewall.set(names, setting, on)
        for name in names:
            output.line(f"{name}: {setting.replace('_', '-')} {'on' if on else 'off'}")
