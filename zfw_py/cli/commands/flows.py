# SPDX-License-Identifier: GPL-2.0-only
"""zfw flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zfw_py.cli import tables
from zfw_py.cli.options import Wide
from zfw_py.firewall.service import Firewall
from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from zfw_py.firewall.flows import Flow

COLUMNS = (
    tables.Column("PROTOCOL"),
    tables.Column("INITIATOR"),
    tables.Column("RESPONDER"),
    tables.Column("STATE"),
    tables.Column("LET"),
    tables.Column("IDLE", is_number=True),
)


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print an array of objects.")] = False,
    wide: Wide = False,
) -> None:
    """List the tracked flows.

    LET shows in which directions packets of the initiator were passed: in, out or
    both. Flows are tracked while a program is attached to egress.
    """
    flows = sorted(Firewall().flows())
    tables.listing(flows, as_object, COLUMNS, _cells, as_json=as_json, none="no flows", wide=wide)


def as_object(flow: Flow) -> dict[str, object]:
    """A flow as JSON has it."""
    return flow._asdict()


def _cells(flow: Flow) -> tuple[str, ...]:
    let = [
        word
        for word, is_let in (("in", flow.is_admitted_in), ("out", flow.is_admitted_out))
        if is_let
    ]
    return (
        flow.protocol,
        str(Endpoint(flow.initiator, flow.initiator_port)),
        str(Endpoint(flow.responder, flow.responder_port)),
        flow.state,
        ",".join(let),
        f"{flow.idle:.0f} s",
    )
