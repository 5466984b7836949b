# SPDX-License-Identifier: GPL-2.0-only
"""ebpf_config.json: the interfaces that the boot programs attach the firewall to."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from zfw_py.errors import UsageError
from zfw_py.firewall.model import check_interface_name

MAX_BYTES = 64 * 1024

_TRACK = "OutboundPassThroughTrack"
_PER_INTERFACE = "PerInterfaceRules"
_KEYS = {"Name", _TRACK, _PER_INTERFACE}


class BootInterface(NamedTuple):
    """An interface: whether its egress is tracked, and its setting per_interface_rules."""

    name: str
    tracks_egress: bool
    per_interface_rules: bool


class InterfacesConfig(NamedTuple):
    """The interfaces in order, each once, and the unknown keys of the file."""

    interfaces: list[BootInterface]
    unknown: list[str]


def read(content: bytes, name: str, *, tracks_internal: bool = True) -> InterfacesConfig:
    """Read the file; ``name`` is its name in errors.

    ``tracks_internal`` is the default of OutboundPassThroughTrack for internal interfaces.
    Raises UsageError, with line or path.
    """
    try:
        document = json.loads(content)
    except json.JSONDecodeError as error:
        raise UsageError(f"{name}:{error.lineno}: {error.msg} (column {error.colno})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name}: not UTF-8") from None
    except (RecursionError, ValueError):
        raise UsageError(f"{name}: nested too deeply, or a number too long") from None
    if not isinstance(document, dict):
        raise UsageError(f"{name}: not an object")
    if "InternalInterfaces" not in document:
        raise UsageError(f"{name}: InternalInterfaces is missing; write [] if there are none")
    found: dict[str, BootInterface] = {}
    unknown = sorted(document.keys() - {"InternalInterfaces", "ExternalInterfaces"})
    for kind, tracks, per_interface in (
        ("InternalInterfaces", tracks_internal, False),
        ("ExternalInterfaces", True, True),
    ):
        entries = document.get(kind, [])
        if not isinstance(entries, list):
            raise UsageError(f"{name}: {kind}: not a list")
        for number, entry in enumerate(entries):
            where = f"{kind}[{number}]"
            if not isinstance(entry, dict):
                raise UsageError(f"{name}: {where}: not an object")
            unknown += [f"{where}.{key}" for key in sorted(entry.keys() - _KEYS)]
            settings = (
                _flag(entry, _TRACK, tracks, f"{name}: {where}"),
                _flag(entry, _PER_INTERFACE, per_interface, f"{name}: {where}"),
            )
            for interface in _names(entry, f"{name}: {where}"):
                # The last entry of an interface counts.
                found[interface] = BootInterface(interface, *settings)
    if not found:
        raise UsageError(f"{name}: names no interface")
    return InterfacesConfig(list(found.values()), unknown)


def _names(entry: dict[str, Any], where: str) -> list[str]:
    """The names: Name is a list where a router's lanIf was one."""
    value = entry.get("Name")
    names: list[Any] = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"{where}.Name: missing, or not an interface's name")
    return [check_interface_name(name, f"{where}.Name") for name in names]


def _flag(entry: dict[str, Any], key: str, default: bool, where: str) -> bool:
    value = entry.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"{where}.{key}: not true or false: {value!r}")
    return value


def text(names: list[str]) -> bytes:
    """The text of a file with these internal interfaces."""
    internal = [{"Name": name, _TRACK: True, _PER_INTERFACE: False} for name in names]
    document = {"InternalInterfaces": internal, "ExternalInterfaces": []}
    return (json.dumps(document, indent=2) + "\n").encode()
