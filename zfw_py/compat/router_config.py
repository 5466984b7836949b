# SPDX-License-Identifier: GPL-2.0-only
"""A router's or controller's YAML: the values that boot programs read, and an edit of ``mode``.

The only importer of PyYAML. Every scalar is read as its text: by YAML's own rules an interface
called ``no`` would be false, and 22:22 a number of seconds. Merge keys (<<) are not followed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import yaml

from zfw_py.errors import UsageError
from zfw_py.firewall.model import check_interface_name, parse_port
from zfw_py.values.prefix import Prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 256 * 1024

MODE = "tproxy:/opt/openziti/bin/zfw"
PLAIN_MODE = "tproxy"

_NOTHING = ("", "~", "null", "Null", "NULL")


class Resolver(NamedTuple):
    """A name server that the router runs: its address, as a prefix, and its port."""

    address: Prefix
    port: int


class Document:
    """A parsed file. Errors name it and the line."""

    def __init__(self, content: bytes, name: str) -> None:
        """``name`` is the file's name in errors. Raises UsageError."""
        self.name = name
        if len(content) > MAX_BYTES:
            raise UsageError(f"{name}: larger than {MAX_BYTES} bytes")
        try:
            self.text = content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UsageError(f"{name}:{line}: not UTF-8") from None
        try:
            self.root: yaml.Node | None = yaml.compose(self.text, Loader=yaml.BaseLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise UsageError(f"{name}:{line}: {error.problem or error.context}") from None
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            raise UsageError(f"{name}:{line}: {error.reason}") from None
        except RecursionError:
            raise UsageError(f"{name}: nested too deeply") from None
        if self.root is not None and not isinstance(self.root, yaml.MappingNode):
            if not _is_nothing(self.root):
                raise self.error(self.root, "not a mapping")
            self.root = None

    def error(self, node: yaml.Node, text: str) -> UsageError:
        """An error at the line where this node begins."""
        return UsageError(f"{self.name}:{node.start_mark.line + 1}: {text}")

    def get(self, node: yaml.Node | None, *keys: str) -> yaml.Node | None:
        """The value under nested keys; None if one of them is missing."""
        for key in keys:
            if node is None or _is_nothing(node):
                return None
            if not isinstance(node, yaml.MappingNode):
                raise self.error(node, f"not a mapping, so it has no {key}")
            found = [v for k, v in node.value if isinstance(k, yaml.ScalarNode) and k.value == key]
            node = found[-1] if found else None
        return None if node is None or _is_nothing(node) else node

    def items(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        """The members of a sequence; [] for None."""
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, f"{what}: not a list")
        return list(node.value)

    def scalar(self, node: yaml.Node, what: str) -> str:
        """A single value's text."""
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, f"{what}: not a single value")
        return str(node.value).strip()

    def texts(self, node: yaml.Node | None, what: str) -> Iterator[tuple[yaml.Node, str]]:
        """The values of a node that is one value or a list of values."""
        if node is None:
            return
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for one in nodes:
            text = self.scalar(one, what)
            if text not in _NOTHING:
                yield one, text

    def port(self, node: yaml.Node, text: str, what: str) -> int:
        """The port at the end of an address; 0 for none."""
        before, colon, port = text.rpartition(":")
        if not colon or (before.startswith("[") and not before.endswith("]")):
            raise self.error(node, f"{what}: no port in {text!r}")
        try:
            return parse_port(port, what)
        except UsageError as error:
            raise self.error(node, error.message) from None


def _is_nothing(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NOTHING


class RouterConfig:
    """A router's ``config.yml``."""

    def __init__(self, content: bytes, name: str) -> None:
        """Raises UsageError, with file and line, if the file cannot be read."""
        self._document = Document(content, name)
        # Warnings with file and line about skipped values, in order, each once.
        self.notes: dict[str, None] = {}

    def _listeners(self, binding: str) -> Iterator[yaml.Node]:
        document = self._document
        for listener in document.items(document.get(document.root, "listeners"), "listeners"):
            found = document.get(listener, "binding")
            if found is not None and document.scalar(found, "binding") == binding:
                yield listener

    def _tunnel_options(self) -> Iterator[yaml.Node]:
        for listener in self._listeners("tunnel"):
            options = self._document.get(listener, "options")
            if options is not None:
                yield options

    def interfaces(self) -> list[str]:
        """``lanIf`` of the tunnel listener, which may be one name or a list."""
        document = self._document
        names = []
        for options in self._tunnel_options():
            for node, text in document.texts(document.get(options, "lanIf"), "lanIf"):
                try:
                    names.append(check_interface_name(text, "lanIf"))
                except UsageError as error:
                    raise document.error(node, error.message) from None
        return list(dict.fromkeys(names))

    def resolvers(self) -> list[Resolver]:
        """``resolver`` of the tunnel listener: one or a list, of those with an IP address."""
        document = self._document
        found = []
        for options in self._tunnel_options():
            for node, text in document.texts(document.get(options, "resolver"), "resolver"):
                scheme, separator, rest = text.partition("://")
                if not separator or scheme.lower() not in ("udp", "tcp"):
                    continue  # none, or a file: it has no address
                port = document.port(node, rest, "resolver")
                host = rest.rpartition(":")[0].removeprefix("[").removesuffix("]")
                try:
                    address = Prefix.parse(host, None, "resolver")
                except UsageError as error:
                    note = document.error(node, f"{error.message}: no rule for it")
                    self.notes[note.message] = None
                    continue
                if port:
                    found.append(Resolver(address, port))
        return found

    def listener_ports(self) -> list[int]:
        """TCP ports that the router itself serves: edge and link by TLS, and health checks."""
        return sorted({*self._edge_ports(), *self.link_ports(), *self._health_ports()} - {0})

    def _edge_ports(self) -> Iterator[int]:
        for listener in self._listeners("edge"):
            yield from self._tls_port(self._document.get(listener, "address"), "address")

    def link_ports(self) -> list[int]:
        """TCP ports for other routers' links."""
        document = self._document
        listeners = document.get(document.root, "link", "listeners")
        ports: set[int] = set()
        for listener in document.items(listeners, "link.listeners"):
            binding = document.get(listener, "binding")
            if binding is not None and document.scalar(binding, "binding") == "transport":
                ports.update(self._tls_port(document.get(listener, "bind"), "bind"))
        return sorted(ports - {0})

    def _tls_port(self, node: yaml.Node | None, what: str) -> Iterator[int]:
        if node is not None:
            text = self._document.scalar(node, what)
            if text.startswith("tls:"):
                yield self._document.port(node, text.removeprefix("tls:"), what)

    def _health_ports(self) -> Iterator[int]:
        document = self._document
        for site in document.items(document.get(document.root, "web"), "web"):
            name = document.get(site, "name")
            if name is None or document.scalar(name, "name") != "health-check":
                continue
            for point in document.items(document.get(site, "bindPoints"), "bindPoints"):
                yield from _bind_point_ports(document, point, ("address", "interface"))

    def mode(self) -> str | None:
        """``mode`` of the tunnel listener."""
        for options in self._tunnel_options():
            node = self._document.get(options, "mode")
            if node is not None:
                return self._document.scalar(node, "mode")
        return None

    def with_mode(self, mode: str) -> bytes | None:
        """The file with another mode and no other change.

        None if the file has this mode already, or no tunnel listener.
        """
        text = self._document.text
        for options in self._tunnel_options():
            if not isinstance(options, yaml.MappingNode) or not options.value:
                raise self._document.error(options, "options: has nothing in it")
            node = self._document.get(options, "mode")
            value = f'"{mode}"' if options.flow_style else mode
            if node is not None:
                if self._document.scalar(node, "mode") == mode:
                    return None
                start, end = node.start_mark.index, node.end_mark.index
                key = next(k for k, v in options.value if v is node)
                # An alias refers to a value that other keys may use as well.
                if start < key.end_mark.index or node.start_mark.line != node.end_mark.line:
                    raise self._document.error(key, "mode: not a plain value: do it by hand")
            else:
                first = options.value[0][0].start_mark
                start = end = first.index
                newline = "\r\n" if "\r\n" in text else "\n"
                between = ", " if options.flow_style else newline + " " * first.column
                value = f"mode: {value}{between}"
            changed = (text[:start] + value + text[end:]).encode()
            if RouterConfig(changed, self._document.name).mode() != mode:
                raise self._document.error(options, f"cannot set mode to {mode}: do it by hand")
            return changed
        return None


def controller_ports(content: bytes, name: str) -> list[int]:
    """TCP ports that a controller serves: the edge API and the web listeners."""
    document = Document(content, name)
    ports: set[int] = set()
    node = document.get(document.root, "edge", "api", "address")
    if node is not None:
        ports.add(document.port(node, document.scalar(node, "address"), "address"))
    for site in document.items(document.get(document.root, "web"), "web"):
        for point in document.items(document.get(site, "bindPoints"), "bindPoints"):
            ports.update(_bind_point_ports(document, point, ("interface",)))
    return sorted(ports - {0})


def salt_ports(content: bytes, name: str) -> list[int]:
    """The TCP port of a Salt master's API."""
    document = Document(content, name)
    node = document.get(document.root, "rest_cherrypy", "port")
    if node is None:
        return []
    port = document.port(node, ":" + document.scalar(node, "port"), "port")
    return [port] if port else []


def _bind_point_ports(document: Document, point: yaml.Node, keys: tuple[str, ...]) -> Iterator[int]:
    for key in keys:
        node = document.get(point, key)
        if node is not None:
            yield document.port(node, document.scalar(node, key), key)
            return
