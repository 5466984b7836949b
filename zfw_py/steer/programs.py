# SPDX-License-Identifier: GPL-2.0-only
"""Steer's programs onto a network namespace and the cgroups of the machine, and off them.

All is built in a directory without a name: maps, then the hooks that see listeners, then
a scan for those that listened before, and the program that steers last; one rename gives it
its name. Whoever finds a directory without a name under the lock knows that its maker was
killed, and removes it. Only our own links are ever removed.
"""

from __future__ import annotations

import errno
import grp
import os
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from zfw_py.errors import KernelError, ZfwError, raise_expected
from zfw_py.kernel import bpf, bpffs, cgroup, pins
from zfw_py.kernel.libbpf import BpfObject
from zfw_py.steer import codec, layout
from zfw_py.steer.maps import ROOT, Tables, cookies, directory_of
from zfw_py.steer.sockets import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OBJECT = Path(__file__).resolve().parent.parent / "objects" / "steer.bpf.o"
# Its members may read what is steered, with all counters. Made by whoever wants that.
GROUP = "zfw"

_LINK_PIN, _PROGRAM_PIN, _NEW_PIN = "link_", "program_", "new_program_"
_ABOUT, _NEW_ABOUT = "about", "new_about"
# struct bpf_link_info: type, id, prog_id, padding, and of a network namespace's its inode.
_link_info = Struct("=IIIxxxxI")

# In the order in which they are attached; then comes what steers.
_CGROUP_HOOKS = {
    "sock_release": bpf.CGROUP_INET_SOCK_RELEASE,
    "adopt": bpf.CGROUP_SOCK_OPS,
    "bind4": bpf.CGROUP_INET4_BIND,
    "bind6": bpf.CGROUP_INET6_BIND,
    "post_bind4": bpf.CGROUP_INET4_POST_BIND,
    "post_bind6": bpf.CGROUP_INET6_POST_BIND,
    "sendmsg4": bpf.CGROUP_UDP4_SENDMSG,
    "sendmsg6": bpf.CGROUP_UDP6_SENDMSG,
}
_TRACING = "set_state"
_LOOKUP = "lookup"
_SCANS = ("scan_tcp", "scan_udp")
_CALLED = ("take_slot", "forget")
_LINKED = (_TRACING, *_CGROUP_HOOKS, _LOOKUP)
_PROGRAMS = (*_LINKED, *_SCANS, *_CALLED)
# What others than root may read.
_READABLE = (
    "active", "config", "counters", "listening", "sockets", "target_ids", "targets", "troubles",
    _ABOUT,
)  # fmt: skip


class About(msgspec.Struct, frozen=True):
    """What was attached: the digest of its programs, and on which cgroup they are.

    ``is_whole`` is false where the cgroup is not all of the machine, but what can be seen.
    """

    digest: str
    cgroup: str
    is_whole: bool


class Namespace(NamedTuple):
    """A network namespace: its cookie, a descriptor of it, and what calls from within it."""

    cookie: int
    fd: int
    call: Callable[[Callable[[], object]], object]


def install(namespace: Namespace) -> Tables:
    """Attach what there is, with no mapping yet; the caller holds the lock.

    Raises KernelError, VerifierError, PermissionDenied; then nothing is changed.
    """
    _check_kernel(namespace.fd)
    collect()
    about = _about()
    built = bpffs.new_directory(ROOT)
    try:
        with BpfObject(OBJECT) as loaded:
            loaded.load()
            for name, fd in loaded.maps().items():
                bpf.pin(fd, f"{built}/{name}")
            programs = loaded.programs()
            for name in _PROGRAMS:
                bpf.pin(programs[name], f"{built}/{_PROGRAM_PIN}{name}")
            tables = Tables(built)
            _start(tables, namespace.cookie)
            _attach(tables, programs, about, namespace)
        tables.write_document(_ABOUT, about)
        share(built)
        bpffs.publish(built, directory_of(namespace.cookie))
    except BaseException as error:
        _take_off(built)
        if isinstance(error, OSError):
            raise_expected(error)
        raise
    return Tables(directory_of(namespace.cookie))


def _about() -> About:
    place = cgroup.mount_point()
    return About(_digest(), place, cgroup.is_root(place))


def _digest() -> str:
    try:
        return sha256(OBJECT.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise ZfwError(
            f"{OBJECT.name} is missing", hint="build it: pip install . in the source"
        ) from None


def _check_kernel(netns: int) -> None:
    try:
        bpf.attached_to_netns(netns, bpf.SK_LOOKUP)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise KernelError(
                "steer: the kernel has no sk_lookup programs",
                errno.EOPNOTSUPP,
                hint=f"Linux 5.9 has, and what else it takes came until 5.15; this is"
                f" {os.uname().release}",
            ) from None
        raise_expected(error)


def _start(tables: Tables, cookie: int) -> None:
    config = codec.Config(cookie, layout.ABI_VERSION, 0)
    tables.map("config").update(codec.ZERO, config.encode())
    tables.begin()


def _attach(tables: Tables, programs: dict[str, int], about: About, namespace: Namespace) -> None:
    directory = tables.directory
    place = cgroup.open_directory(about.cgroup)
    try:
        _attach_tracing(directory, programs[_TRACING])
        for name, attach_type in _CGROUP_HOOKS.items():
            _link(directory, name, programs[name], place, attach_type)
    finally:
        os.close(place)
    namespace.call(lambda: scan(tables))
    _link(directory, _LOOKUP, programs[_LOOKUP], namespace.fd, bpf.SK_LOOKUP)


def _link(directory: str, name: str, program: int, target: int, attach_type: int) -> None:
    try:
        link = bpf.create_link(program, target, attach_type)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise KernelError(
                f"attach {name}",
                errno.EPERM,
                hint="needs root; or a program that allows no other beside it is attached"
                " (bpftool cgroup tree, bpftool net)",
            ) from error
        raise KernelError(f"attach {name}", error.errno or 0) from error
    try:
        # Unpinned, the link and with it the program would go with this process.
        bpf.pin(link, f"{directory}/{_LINK_PIN}{name}")
    finally:
        os.close(link)


def _attach_tracing(directory: str, program: int) -> None:
    try:
        link = bpf.attach_tracing(program)
    except OSError as error:
        raise KernelError(f"attach {_TRACING}", error.errno or 0) from error
    new = f"{directory}/new_{_LINK_PIN}{_TRACING}"
    try:
        with suppress(FileNotFoundError):
            os.unlink(new)
        bpf.pin(link, new)
        # In the place of one that is there: both have run meanwhile, and count a socket once.
        os.rename(new, f"{directory}/{_LINK_PIN}{_TRACING}")
    finally:
        os.close(link)


def scan(tables: Tables) -> Surroundings:
    """Take note of what listens in the caller's network namespace; what that is.

    Of a socket that is closed just as it is met nobody tells that it goes: what is noted
    before a look at all sockets, and is none of these, is forgotten.
    """
    for name in _SCANS:
        with _pinned(f"{tables.directory}/{_PROGRAM_PIN}{name}") as program:
            bpf.run_iterator(program)
    noted = tables.noted()
    around = Surroundings()
    for cookie in noted - around.cookies:
        tables.forget_listener(cookie)
    return around


# Programs of another build


def upgrade(tables: Tables, namespace: Namespace) -> bool:
    """Exchange programs that another build of zfw has attached, if they are; on the same maps.

    No look-up is without a program. On an error those of before are back. Raises
    LayoutMismatch if the maps are of another layout, KernelError.
    """
    check_version(tables)
    about = _about()
    if tables.document(_ABOUT, About).digest == about.digest:
        return False
    directory = tables.directory
    with BpfObject(OBJECT) as loaded:
        # All are compared with the layout as they are opened.
        loaded.reuse_maps({name: tables.map(name).fd for name in layout.MAPS})
        loaded.load()
        programs = loaded.programs()
        _exchange(directory, programs)
        for name in _PROGRAMS:
            new = f"{directory}/{_NEW_PIN}{name}"
            with suppress(FileNotFoundError):
                os.unlink(new)
            bpf.pin(programs[name], new)
            os.rename(new, f"{directory}/{_PROGRAM_PIN}{name}")
    namespace.call(lambda: scan(tables))
    with suppress(FileNotFoundError):
        os.unlink(f"{directory}/{_NEW_ABOUT}")
    tables.write_document(_NEW_ABOUT, about)
    os.rename(f"{directory}/{_NEW_ABOUT}", f"{directory}/{_ABOUT}")
    share(directory)
    return True


def _exchange(directory: str, programs: dict[str, int]) -> None:
    """All of them, or none."""
    exchanged = []
    try:
        for name in (*_CGROUP_HOOKS, _LOOKUP):
            _update_link(directory, name, programs[name])
            exchanged.append(name)
        _attach_tracing(directory, programs[_TRACING])
    except BaseException:
        for name in reversed(exchanged):
            with _pinned(f"{directory}/{_PROGRAM_PIN}{name}") as old:
                _update_link(directory, name, old)
        raise


def _update_link(directory: str, name: str, program: int) -> None:
    with _pinned(f"{directory}/{_LINK_PIN}{name}") as link:
        try:
            bpf.update_link(link, program)
        except OSError as error:
            raise KernelError(f"exchange program {name}", error.errno or 0) from error


def check_version(tables: Tables) -> codec.Config:
    """What the programs go by. Raises LayoutMismatch if another version wrote it."""
    config = codec.Config.decode(tables.map("config").lookup(codec.ZERO) or b"")
    if config.abi_version != layout.ABI_VERSION:
        raise tables.mismatch("config", f"version {config.abi_version}")
    return config


# Off it


def remove(cookie: int) -> None:
    """Take all programs of a network namespace off, and forget what was steered.

    The caller holds the lock. Raises FileNotFoundError if there are none.
    """
    clear()
    doomed = bpffs.new_directory(ROOT)
    os.rename(directory_of(cookie), doomed)
    _take_off(doomed)


def _take_off(directory: str) -> None:
    for name in reversed(_LINKED):
        if name != _TRACING:  # which goes with its pin
            pins.detach(f"{directory}/{_LINK_PIN}{name}")
    bpffs.remove_directory(directory)


def clear() -> None:
    """Remove what a process that was killed was building or removing; the caller has the lock."""
    for leftover in bpffs.unfinished(ROOT):
        _take_off(leftover)


def collect() -> None:
    """The same, and that of namespaces that are gone."""
    clear()
    for cookie in cookies():
        if _is_gone(cookie):
            remove(cookie)


def _is_gone(cookie: int) -> bool:
    """Whether the network namespace is: its link is taken off as it goes."""
    try:
        return _link_info_of(cookie)[3] == 0
    except FileNotFoundError:
        return True


def _link_info_of(cookie: int) -> tuple[int, int, int, int]:
    with _pinned(f"{directory_of(cookie)}/{_LINK_PIN}{_LOOKUP}") as link:
        kind, number, program, inode = _link_info.unpack(bpf.object_info(link, _link_info.size))
    return kind, number, program, inode


# How it is


def program_id(cookie: int) -> int:
    """The id of the program that steers."""
    return _link_info_of(cookie)[2]


def attached(cookie: int) -> list[str]:
    """The names of the programs that are attached; a link may have been taken off by hand."""
    directory = directory_of(cookie)
    return [name for name in _LINKED if os.path.lexists(f"{directory}/{_LINK_PIN}{name}")]


@contextmanager
def _pinned(path: str) -> Iterator[int]:
    """A descriptor of what is pinned. Raises FileNotFoundError."""
    fd = bpf.open_pin(path)
    try:
        yield fd
    finally:
        os.close(fd)


def share(directory: str) -> None:
    """Let the group read what may be read, if there is such a group; nobody else."""
    try:
        number = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return
    # Whoever may go through it can neither list it nor hold its lock.
    os.chmod(bpffs.ROOT, 0o711)  # noqa: S103
    for path, mode in ((ROOT, 0o710), (directory, 0o710)):
        os.chown(path, 0, number)
        os.chmod(path, mode)
    for name in (*_READABLE, *(each for each in os.listdir(directory) if "state_" in each)):
        with suppress(FileNotFoundError):
            os.chown(f"{directory}/{name}", 0, number)
            os.chmod(f"{directory}/{name}", 0o640)
