# SPDX-License-Identifier: GPL-2.0-only
"""The files and links that ``zfw classic install`` installs."""

from __future__ import annotations

import sys
from importlib.resources import files
from typing import NamedTuple

from zfw_py.compat import places
from zfw_py.compat.boot import KINDS
from zfw_py.errors import ZfwError
from zfw_py.systemd import firewall as units

_BIN = "/opt/openziti/bin"
_UNITS = "/etc/systemd/system"

# The kernel reads 256 bytes of a first line, and no quotes in it.
_MAX_INTERPRETER = 200


class Entry(NamedTuple):
    """A file with its content, or with a ``target`` a symbolic link."""

    path: str
    content: bytes
    mode: int
    target: str | None = None


def entries() -> list[Entry]:
    """All files, the command first, and then the links. Raises ZfwError."""
    head = f"#!{interpreter()} -I\n".encode()
    program = _file("boot_program")
    made = [
        Entry(places.ZFW, head + _file("zfw"), 0o755),
        Entry(places.MONITOR, head + _file("zfw_monitor"), 0o755),
    ]
    for verb in ("start", "revert"):
        for kind in KINDS:
            text = program.replace(b"@VERB@", verb.encode()).replace(b"@KIND@", kind.encode())
            # Only root can run them.
            made.append(Entry(f"{_BIN}/{verb}_ebpf_{kind}.py", head + text, 0o744))
    firewall = (files("zfw_py") / "objects" / "firewall.bpf.o").read_bytes()
    # Callers check that they exist; zfw attaches the programs of its package.
    made += [
        Entry(f"{_BIN}/zfw_tc_ingress.o", firewall, 0o644),
        Entry(f"{_BIN}/zfw_tc_outbound_track.o", firewall, 0o644),
        Entry(f"{places.INTERFACES}.sample", _file("ebpf_config.json.sample"), 0o644),
        Entry(f"{places.USER_RULES}.sample", _file("user_rules.sh.sample"), 0o744),
        Entry(f"{_UNITS}/fw-init.service", _file("fw-init.service"), 0o644),
        Entry(f"{_UNITS}/ziti-fw-init.service", _file("ziti-fw-init.service"), 0o644),
        # As in any package, they are not enabled. The units of the boot programs want the second.
        Entry(f"{_UNITS}/{units.UNIT}", _unit(units.text(places.ZFW, units.FILE)), 0o644),
        Entry(f"{_UNITS}/{units.FOLLOW_UNIT}", _unit(units.follow_text(places.ZFW)), 0o644),
        Entry("/etc/logrotate.d/zfwlogs", _file("zfwlogs"), 0o644),
        Entry("/etc/cron.d/zfw_refresh", _file("zfw_refresh"), 0o644),
        # Relative: right below any prefix, and in a root file system that was made with one.
        Entry(places.ZFW_LINK, b"", 0o777, "../.." + places.ZFW),
        Entry(places.MONITOR_LINK, b"", 0o777, "../.." + places.MONITOR),
    ]
    return made


def interpreter() -> str:
    """The interpreter of this installation, as the first line of a program can name it."""
    path = sys.executable
    if not path.startswith("/") or len(path) > _MAX_INTERPRETER or len(path.split()) != 1:
        raise ZfwError(
            f"this Python cannot run the programs: {path!r}",
            hint="install zfw below a short path without blanks, such as /opt/zfw",
        )
    return path


def _unit(text: str) -> bytes:
    return f"# SPDX-License-Identifier: GPL-2.0-only\n{text}".encode()


def _file(name: str) -> bytes:
    return (files("zfw_py.compat") / "files" / name).read_bytes()
