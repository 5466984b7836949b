# SPDX-License-Identifier: GPL-2.0-only
"""``DnsRedirect``: create, upgrade, read and remove the redirect of a network namespace."""

from __future__ import annotations

import errno
import os
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Literal, NamedTuple

from zfw_py import containers
from zfw_py.docker_dns import layout, listing, namespace_info, programs
from zfw_py.docker_dns.codec import Config
from zfw_py.docker_dns.maps import STORE, Manifest, Maps, NoRedirects, Watcher
from zfw_py.errors import (
    Conflict,
    KernelError,
    LayoutMismatch,
    NotFound,
    NotInstalled,
    PermissionDenied,
    UsageError,
)
from zfw_py.kernel import bpf_links
from zfw_py.kernel.namespaces import call_in, hold, path_of
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.kernel.process import Process, descriptor_path
from zfw_py.lifecycle.programs import clear, collect, locked, make_root
from zfw_py.lifecycle.programs import remove as remove_instance
from zfw_py.lifecycle.programs import upgrade as upgrade_instance

if TYPE_CHECKING:
    from zfw_py.containers import Container
    from zfw_py.docker_dns.codec import DaemonPorts
    from zfw_py.docker_dns.listing import RedirectStatus
    from zfw_py.docker_dns.model import Redirect

Mode = Literal["auto", "tcx", "clsact"]


class RedirectOptions(NamedTuple):
    """How a redirect is created.

    ``mode``: how the programs are attached; "auto" is TCX if the kernel has it, else clsact.
    ``daemon``: the ports of Docker's DNS daemon; None: look for them. ``is_probed``: first ask
    the server one question. ``is_watched``: this process reads the redirect's events and
    removes the redirect at its end.
    """

    mode: Mode = "auto"
    daemon: DaemonPorts | None = None
    is_probed: bool = True
    is_watched: bool = False


class DnsRedirect:
    """The redirect of the DNS queries of one network namespace; there is at most one.

        from zfw_py import DnsRedirect, Redirect

        redirect = DnsRedirect.of_container("web")
        redirect.create(Redirect.parse("192.0.2.53", domains=["corp.example"]))
        print(redirect.status().outcomes["query"])  # (packets, bytes) sent to the server
        redirect.remove()

    The object holds the network namespace open, and nothing else between two calls. ``cookie``
    is the namespace's; its decimal text is the redirect's id. All methods need root.
    """

    def __init__(self, netns: str | None = None, container: Container | None = None) -> None:
        """``netns``: a path, such as /run/netns/NAME or /proc/PID/ns/net; None: the caller's own.

        ``container``: the running container whose namespace it is, stored for listings. Raises
        NotFound, UsageError if the path is no network namespace, PermissionDenied.
        """
        self.path = os.path.abspath(netns or path_of(os.getpid()))
        self._container = container
        self._fd = hold(self.path if netns else None)
        # This path stays the same namespace's if the process at ``path`` ends.
        self._held = descriptor_path(self._fd)
        try:
            self.cookie = call_in(self._held, netns_cookie) if netns else netns_cookie()
        except UsageError:
            raise UsageError(f"{netns}: not a network namespace") from None
        except PermissionDenied:
            raise PermissionDenied(f"enter the network namespace {netns}: needs root") from None

    def __del__(self) -> None:
        if (fd := getattr(self, "_fd", -1)) >= 0:
            os.close(fd)
            self._fd = -1

    @classmethod
    def of_container(cls, container: Container | str) -> DnsRedirect:
        """Of a running container, by name or id. Raises as ``containers.find``."""
        found = containers.find(container) if isinstance(container, str) else container
        return cls(path_of(found.pid), found)

    @classmethod
    def of_process(cls, pid: int) -> DnsRedirect:
        """Of the network namespace of a process. Raises UsageError, NotFound."""
        if pid <= 0:
            raise UsageError(f"--pid: not a process id: {pid}")
        path = path_of(pid)
        if not os.path.lexists(path):
            raise NotFound(f"no such process: {pid}")
        return cls(path)

    def create(
        self,
        asked: Redirect,
        options: RedirectOptions = RedirectOptions(),  # noqa: B008
    ) -> Manifest:
        """Send the queries of the namespace to ``asked.server``; no process has to stay.

        If the same redirect exists already, its programs are upgraded if they are of another
        build. Raises Conflict if there is a redirect, NotFound, UsageError, PermissionDenied,
        KernelError, VerifierError, ZfwError; then nothing is changed.
        """
        if (older := self._same(asked)) is not None and self._upgrade():
            return older
        container = self._container
        if container is not None and self.cookie == netns_cookie():
            raise UsageError(
                f"container {container.name} shares this network namespace, whose DNS is not the"
                " engine's"
            )
        make_root(STORE)
        self._check_free(options)
        info = call_in(self._held, lambda: namespace_info.inspect(asked, options.daemon))
        if options.is_probed:
            call_in(self._held, lambda: namespace_info.probe(asked, info.source))
        with locked(STORE, is_exclusive=True):
            collect(programs.SYSTEM)
            self._check_free(options)
            # Of a watcher that was killed.
            remove_instance(programs.SYSTEM, self.cookie)
            # After the removal: a clsact qdisc that is there now is not ours.
            manifest = self._manifest(asked, options, info)
            config = _config(asked, options, info)
            return programs.install(manifest, config, info.daemon, asked.domains, self._held)

    def upgrade(self) -> bool:
        """Exchange the programs of another build for this one's: both, or on an error neither.

        False if they are this build's. Flows and counters stay. Raises NotInstalled if the
        namespace has no redirect, LayoutMismatch, KernelError, VerifierError.
        """
        if not STORE.exists(self.cookie):
            raise NotInstalled("no redirect of this network namespace")
        return self._upgrade()

    def status(self) -> RedirectStatus:
        """The state of the redirect. Raises NotFound, LayoutMismatch."""
        return listing.status(self.cookie)

    def remove(self) -> None:
        """Remove the redirect: the built-in resolver answers again. Raises NotFound."""
        self.remove_id(str(self.cookie))

    @staticmethod
    def all() -> list[RedirectStatus]:
        """All redirects of the machine, the oldest first."""
        return listing.redirects()

    @staticmethod
    def remove_id(identifier: str) -> None:
        """Remove a redirect by its id, also if its namespace is gone. Raises NotFound."""
        directory = STORE.directory(identifier)
        missing = NotFound(f"no such redirect: {identifier}")
        try:
            with locked(STORE, is_exclusive=True):
                clear(programs.SYSTEM)
                if not os.path.isdir(directory):
                    raise missing
                remove_instance(programs.SYSTEM, identifier)
                collect(programs.SYSTEM)
        except NoRedirects:
            raise missing from None

    @staticmethod
    def remove_all() -> list[str]:
        """Remove all redirects of the machine; their ids."""
        try:
            with locked(STORE, is_exclusive=True):
                clear(programs.SYSTEM)
                return [
                    each
                    for each in sorted(STORE.identifiers(), key=int)
                    if remove_instance(programs.SYSTEM, each)
                ]
        except NoRedirects:
            return []

    def _same(self, asked: Redirect) -> Manifest | None:
        """The redirect of the namespace, if it works, does what is asked and has no watcher."""
        try:
            manifest = Maps(STORE.directory(self.cookie)).manifest()
        except (NotFound, LayoutMismatch):
            return None
        is_same = (
            manifest.server == str(asked.server)
            and manifest.resolver == str(asked.resolver)
            and manifest.domains == list(asked.domains)
            and (manifest.tcp, manifest.interface) == (asked.tcp, asked.interface)
        )
        is_free = manifest.watcher is None and not programs.detached(manifest)
        return manifest if is_same and is_free else None

    def _upgrade(self) -> bool:
        with locked(STORE, is_exclusive=True):
            clear(programs.SYSTEM)
            Maps(STORE.directory(self.cookie)).config()
            return upgrade_instance(programs.SYSTEM, self.cookie)

    def _check_free(self, options: RedirectOptions) -> None:
        """Raise Conflict if the namespace has a redirect that works.

        A watcher takes over the redirect of a watcher that was killed.
        """
        if not STORE.exists(self.cookie):
            return
        manifest = Maps(STORE.directory(self.cookie)).manifest()
        watcher = manifest.watcher
        if options.is_watched and watcher is not None and not watcher.process.is_alive():
            return
        if programs.detached(manifest):
            return
        raise Conflict(
            f"its queries are redirected already, to {manifest.server}",
            hint=f"zfw docker-dns remove {manifest.id}",
        )

    def _manifest(
        self, asked: Redirect, options: RedirectOptions, info: namespace_info.NamespaceInfo
    ) -> Manifest:
        mode = self._mode(options.mode)
        made_clsact = []
        if mode == "clsact":
            made_clsact = call_in(self._held, lambda: namespace_info.without_clsact(info.ifindex))
        return Manifest(
            id=str(info.cookie),
            container=self._container.name if self._container else "",
            container_id=self._container.id if self._container else "",
            path=self.path,
            interface=asked.interface,
            ifindex=info.ifindex,
            source=info.source,
            server=str(asked.server),
            resolver=str(asked.resolver),
            domains=list(asked.domains),
            tcp=asked.tcp,
            mode=mode,
            made_clsact=made_clsact,
            created=time.time(),
            watcher=Watcher(*Process.current()) if options.is_watched else None,
        )

    def _mode(self, wanted: Mode) -> str:
        has_tcx = call_in(
            self._held, lambda: bpf_links.supports_tcx(namespace_info.LOOPBACK_IFINDEX)
        )
        if wanted == "auto":
            return "tcx" if has_tcx else "clsact"
        if wanted == "tcx" and not has_tcx:
            raise KernelError(
                "attach by TCX",
                errno.EOPNOTSUPP,
                hint="the kernel has none (6.6 does); --mode clsact works",
            )
        return wanted


def _config(
    asked: Redirect, options: RedirectOptions, info: namespace_info.NamespaceInfo
) -> Config:
    return Config(
        abi_version=layout.ABI_VERSION,
        resolver=asked.resolver.address,
        server=asked.server.address,
        source=ip_address(info.source).packed,
        uplink_ifindex=info.ifindex,
        resolver_port=asked.resolver.port,
        server_port=asked.server.port,
        first_port=info.first_port,
        port_count=info.port_count,
        has_ethernet=info.has_ethernet,
        has_domains=bool(asked.domains),
        redirects_tcp=asked.tcp == "redirect",
        is_watched=options.is_watched,
    )
