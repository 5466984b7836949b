# SPDX-License-Identifier: GPL-2.0-only
"""zfw set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.interfaces import check, complete
from zfw_py.cli.options import Option, takes
from zfw_py.errors import NotInstalled, UsageError
from zfw_py.firewall.flow_limits import LIMITS, FlowLimits
from zfw_py.firewall.interfaces import names_of
from zfw_py.firewall.service import Firewall
from zfw_py.firewall.settings import SETTINGS

_OnOff = Literal["on", "off"] | None

_OPTIONS = {
    name: Option(f"--{setting.words}", kind=_OnOff, help=setting.help)
    for name, setting in SETTINGS.items()
} | {
    name: Option(
        f"--{name.replace('_', '-')}", kind=int | None, metavar=limit.metavar, help=limit.help
    )
    for name, limit in LIMITS.items()
}


@takes(_OPTIONS)
def command(
    interface: Annotated[
        str | None,
        typer.Argument(
            metavar="[IFACE|all]",
            help="An interface, or all except lo.",
            autocompletion=lambda: [*complete(), "all"],
        ),
    ] = None,
    **values: Any,
) -> None:
    """Change the settings of an interface, or the limits of flows.

    Settings belong to the interface's name: they stay when the interface
    disappears or is detached. Limits belong to the whole firewall; give them
    without an interface. The outbound filter needs an egress program: without one
    it is refused.
    """
    settings = {name: values[name] == "on" for name in SETTINGS if values[name]}
    limits = {name: values[name] for name in LIMITS if values[name] is not None}
    if interface is None and settings:
        raise UsageError("IFACE: missing; a setting belongs to an interface")
    if interface is not None and not settings:
        raise UsageError("no setting given", hint="zfw set --help lists them")
    if not settings and not limits:
        raise UsageError("no setting and no limit given", hint="zfw set --help lists them")
    if interface is not None:
        check([interface])
    firewall = Firewall()
    names = names_of(interface) if interface is not None else []
    if settings.get("outbound_filter"):
        _check_egress(firewall, names)
    if limits:
        output.line(limits_text(firewall.set_flow_limits(**limits)))
    for setting, on in settings.items():
        firewall.set(names, setting, on)
        for name in names:
            output.line(f"{name}: {SETTINGS[setting].words} {'on' if on else 'off'}")


def _check_egress(firewall: Firewall, names: list[str]) -> None:
    """Refuse the outbound filter where it would have no effect. Raises NotInstalled."""
    if lacking := firewall.without_egress(names):
        if lacking == ["lo"]:
            raise UsageError("outbound-filter: lo is never filtered")
        raise NotInstalled(
            f"outbound-filter: no egress program is attached to {', '.join(lacking)}",
            hint=f"zfw attach {' '.join(lacking)}, then this command",
        )


def limits_text(limits: FlowLimits) -> str:
    """The limits of tracked flows in a line."""
    return (
        f"flows: udp idle {limits.udp_idle} s, tcp idle {limits.tcp_idle} s,"
        f" at most {limits.max_flows}"
    )
