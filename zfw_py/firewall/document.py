# SPDX-License-Identifier: GPL-2.0-only
"""A firewall as a document: its types, and reading and writing it. Pure.

The published schema (docs/schema) is made of the types. A Document checks itself for what a
schema cannot express, such as two rules with the same key.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli_w
from msgspec import UNSET, Meta, Struct, UnsetType, defstruct, to_builtins
from msgspec.structs import fields

from zfw_py.errors import UsageError
from zfw_py.firewall.flow_limits import LIMITS, FlowLimits
from zfw_py.firewall.model import (
    FIELDS,
    Rule,
    RuleKey,
    check_interface_name,
    parse_destination,
)
from zfw_py.firewall.settings import SETTINGS
from zfw_py.values.prefix import Prefix
from zfw_py.values.structured import ContentError, bounded, make, parse
from zfw_py.values.structured import DocumentError as DocumentError
from zfw_py.values.structured import Format as Format

VERSION = 1
# As many as the tables hold at most.
MAX_RULES = 2_097_152
MAX_BYTES = 256 * 1024 * 1024
MAX_INTERFACES = 1024

_TOML_HEAD = (
    f"# A firewall, as zfw save writes it (document version {VERSION}).\n"
    "# zfw restore makes the firewall equal to it; docs/PERSISTENCE.md says what each field is.\n"
    "# Of rules with the same prefixes and protocol the first that matches wins.\n"
)

Port = Annotated[int, Meta(ge=0, le=65535)]
Direction = Literal["ingress", "egress"]

# As the keywords of the classes below.
_STRICT: dict[str, Any] = {
    "frozen": True,
    "forbid_unknown_fields": True,
    "omit_defaults": True,
    "kw_only": True,
}

if TYPE_CHECKING:

    class FlowEntry(Struct):
        """One field a limit."""

        def __init__(self, **limits: int) -> None: ...

    class Settings(Struct):
        """One field a setting."""

        def __init__(self, **settings: bool) -> None: ...

else:
    FlowEntry = defstruct(
        "FlowEntry",
        [
            (name, Annotated[int, Meta(ge=limit.least, le=limit.most)], default)
            for (name, limit), default in zip(LIMITS.items(), FlowLimits(), strict=True)
        ],
        namespace={
            "__doc__": "The limits of tracked flows: idle times in seconds, and their number."
        },
        **_STRICT,
    )
    Settings = defstruct(
        "Settings",
        [(setting.name, bool, setting.default) for setting in SETTINGS.values()],
        namespace={"__doc__": "The settings of an interface, with their defaults."},
        **_STRICT,
    )


class AttachmentEntry(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
    """A program on an interface; mode "auto" is TCX where the kernel has it."""

    interface: str
    direction: Direction = "ingress"
    mode: Literal["auto", "tcx", "clsact"] = "auto"


class RuleEntry(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A rule. The source defaults to any address, the high port to the low port."""

    destination: str
    source: str | UnsetType = UNSET
    direction: Direction = "ingress"
    protocol: Literal["tcp", "udp"]
    low_port: Port
    high_port: Port | UnsetType = UNSET
    action: Literal["intercept", "pass", "deny"]
    tproxy_port: Port = 0
    service_id: str = ""
    interfaces: Annotated[tuple[str, ...], Meta(max_length=MAX_INTERFACES)] = ()
    limited: bool = False
    route: bool = False

    @classmethod
    def of(cls, rule: Rule) -> RuleEntry:
        """The entry of a rule, without its counters."""
        key = rule.key
        return cls(
            destination=str(key.destination),
            source=str(key.source) if key.source.length else UNSET,
            direction=key.direction,  # type: ignore[arg-type]
            protocol=key.protocol,  # type: ignore[arg-type]
            low_port=key.low_port,
            high_port=rule.high_port if rule.high_port != key.low_port else UNSET,
            action=rule.action,  # type: ignore[arg-type]
            tproxy_port=rule.tproxy_port,
            service_id=rule.service_id,
            interfaces=rule.interfaces,
            limited=rule.is_limited,
            route=rule.is_routed,
        )


class Document(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, dict=True
):
    """The configuration of a firewall: flow limits, settings, attachments, rules.

    Raises ValueError if fields contradict each other. The order of rules with the same
    prefixes and protocol matters: the first that matches a packet decides.
    """

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    flows: FlowEntry = FlowEntry()
    settings: Annotated[dict[str, Settings], Meta(max_length=MAX_INTERFACES)] = {}
    attachments: tuple[AttachmentEntry, ...] = ()
    rules: Annotated[tuple[RuleEntry, ...], Meta(max_length=MAX_RULES)] = ()

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        for name in self.settings:
            _check_interface(name, f"settings.{name}")
        seen: dict[tuple[str, str], int] = {}
        for index, entry in enumerate(self.attachments):
            _check_interface(entry.interface, f"attachments[{index}].interface")
            first = seen.setdefault((entry.interface, entry.direction), index)
            if first != index:
                raise ContentError(
                    f"attachments[{index}]",
                    f"same interface and direction as attachments[{first}]",
                )
        _ = self.parsed_rules

    def warnings(self) -> list[str]:
        """What of the document has no effect, a line each."""
        filtered = {
            name
            for name, settings in self.settings.items()
            if settings.outbound_filter  # type: ignore[attr-defined]
        }
        programs = {each.interface for each in self.attachments if each.direction == "egress"}
        found = [
            f"settings.{name}: outbound_filter has no effect without an egress attachment"
            for name in sorted(filtered - programs)
        ]
        if not filtered & programs and any(rule.direction == "egress" for rule in self.rules):
            found.append(
                "rules: egress rules have no effect: no interface has outbound_filter and an"
                " egress attachment"
            )
        unaware = {each.interface for each in self.attachments} - {
            name
            for name, settings in self.settings.items()
            if settings.per_interface_rules  # type: ignore[attr-defined]
        }
        elsewhere = [
            (index, unaware.difference(rule.interfaces))
            for index, rule in enumerate(self.rules)
            if rule.interfaces and not rule.limited and unaware.difference(rule.interfaces)
        ]
        if elsewhere:
            index, others = elsewhere[0]
            more = f" (and {len(elsewhere) - 1} more)" if len(elsewhere) > 1 else ""
            found.append(
                f"rules[{index}]{more}: counts on {', '.join(sorted(others))} too, without"
                " limited = true"
            )
        return found

    @cached_property
    def parsed_rules(self) -> tuple[Rule, ...]:
        """The rules of the entries; with ``is_routed`` they need a local route."""
        seen: dict[RuleKey, int] = {}
        parsed = []
        for index, entry in enumerate(self.rules):
            rule = _parse_rule(entry, f"rules[{index}]")
            first = seen.setdefault(rule.key, index)
            if first != index:
                raise ContentError(f"rules[{index}]", f"same key as rules[{first}]")
            parsed.append(rule)
        return tuple(parsed)


def _check_interface(name: str, path: str) -> None:
    try:
        check_interface_name(name, "")
    except UsageError:
        raise ContentError(path, f"not an interface name: {name!r}") from None


# In errors, each field has its own name.
_NAMES = {field: field for field in FIELDS}


def _parse_rule(entry: RuleEntry, path: str) -> Rule:
    for index, name in enumerate(entry.interfaces):
        _check_interface(name, f"{path}.interfaces[{index}]")
    try:
        if (entry.action == "intercept") != (entry.tproxy_port != 0):
            wanted = "1 to 65535" if entry.action == "intercept" else "0"
            raise UsageError(
                f"tproxy_port: has to be {wanted} for {entry.action}: {entry.tproxy_port}"
            )
        if entry.limited and not entry.interfaces:
            raise UsageError("limited: a rule without interfaces counts on all of them")
        source = None if entry.source is UNSET else Prefix.parse(entry.source, option="source")
        rule = Rule(
            RuleKey(
                parse_destination(entry.destination, None, "destination", ""),
                entry.protocol,
                entry.low_port,
                source=source,
                direction=entry.direction,
                names=_NAMES,
            ),
            None if entry.high_port is UNSET else entry.high_port,
            tproxy_port=entry.tproxy_port,
            deny=entry.action == "deny",
            service_id=entry.service_id,
            interfaces=entry.interfaces,
            limited=entry.limited,
            names=_NAMES,
        )
    except UsageError as error:
        field, _, message = error.message.partition(": ")
        raise ContentError(f"{path}.{field}", message) from None
    rule.is_routed = entry.route
    return rule


# Reading


def decode(data: bytes, form: Format) -> Document:
    """Read a document. Raises DocumentError, naming the line or the path of the first fault."""
    raw = parse(data, form, MAX_BYTES)
    if isinstance(raw, dict):
        _check_version(raw)
    return make(raw, Document, {"settings": Settings})


def _check_version(raw: dict[str, Any]) -> None:
    """Check the version first: the rest may have another version's format."""
    version = raw.get("version")
    if type(version) is int and version != VERSION:
        raise DocumentError(
            f"{bounded(repr(version))} is unknown; this zfw reads documents of version {VERSION}",
            path="version",
        )


# Writing


def encode(document: Document, form: Format) -> bytes:
    """Write a document: a rule is a table or a line, and equal documents give equal bytes.

    Raises DocumentError for values that the format cannot hold.
    """
    data = _to_toml(document) if form == "toml" else _to_json(document)
    if len(data) > MAX_BYTES:
        raise DocumentError(f"larger than {MAX_BYTES} bytes")
    return data


def _to_builtins(document: Document) -> dict[str, Any]:
    """The document as dicts and lists, without default values.

    msgspec's omit_defaults compares by identity, so that it keeps some default strings.
    """
    raw: dict[str, Any] = to_builtins(document)
    flows = {
        field.name: value
        for field in fields(FlowEntry)
        if (value := getattr(document.flows, field.name)) != field.default
    }
    if flows:
        raw["flows"] = flows
    else:
        raw.pop("flows", None)
    for name, kind in (("attachments", AttachmentEntry), ("rules", RuleEntry)):
        if name in raw:
            defaults = {field.name: field.default for field in fields(kind)}
            raw[name] = [
                {key: value for key, value in item.items() if value != defaults[key]}
                for item in raw[name]
            ]
    return raw


def _to_toml(document: Document) -> bytes:
    raw = _to_builtins(document)
    parts = [_TOML_HEAD, tomli_w.dumps({"version": raw.pop("version")})]
    for name in ("flows", "settings"):
        if name in raw:
            parts.append(f"\n{tomli_w.dumps({name: raw.pop(name)})}")
    for name, items in raw.items():
        # One by one: in a list, tomli_w uses lines or tables depending on the longest item.
        parts += [f"\n[[{name}]]\n{tomli_w.dumps(item)}" for item in items]
    try:
        return "".join(parts).encode()
    except UnicodeEncodeError:
        raise DocumentError(
            f"{_first_not_utf8(document)}: not UTF-8, which TOML cannot hold; JSON can"
        ) from None


def _first_not_utf8(document: Document) -> str:
    for index, entry in enumerate(document.rules):
        for field, texts in (("service_id", (entry.service_id,)), ("interfaces", entry.interfaces)):
            if any(_is_not_utf8(text) for text in texts):
                return f"rules[{index}].{field}"
    for index, attachment in enumerate(document.attachments):
        if _is_not_utf8(attachment.interface):
            return f"attachments[{index}].interface"
    return "settings"


def _is_not_utf8(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _to_json(document: Document) -> bytes:
    raw = _to_builtins(document)
    encoder = json.JSONEncoder(ensure_ascii=False, check_circular=False)
    parts = []
    for name, value in raw.items():
        if isinstance(value, list):
            items = ",\n".join([f"    {encoder.encode(item)}" for item in value])
            parts.append(f'  "{name}": [\n{items}\n  ]')
        elif name == "settings":
            items = ",\n".join(
                [
                    f"    {encoder.encode(key)}: {encoder.encode(item)}"
                    for key, item in value.items()
                ]
            )
            parts.append(f'  "{name}": {{\n{items}\n  }}')
        else:
            parts.append(f'  "{name}": {encoder.encode(value)}')
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    # A byte of a name that is not UTF-8 is a lone surrogate in Python, and \udc80 in JSON.
    return text.encode("utf-8", "backslashreplace")
