# SPDX-License-Identifier: GPL-2.0-only
"""Install, upgrade, collect and remove a system's instances. The caller holds the lock.

install, killed after      leaves                               what the next command does
1 new directory            an unnamed directory                 ``clear``: detach, undo, remove
2 manifest                 the same, and what it names          the same
3 maps, programs pinned    the same                             the same
4 prepared and attached    the same, with programs attached     the same
5 published                the instance

upgrade, killed after      leaves                               what the next command does
1 loaded                   nothing
2 added maps pinned        maps that no program reads           ``upgrade``: uses them
3 new programs pinned      pins ``new_...``                     ``upgrade``: removes them
4 some are exchanged       old and new programs on one state    ``upgrade``: exchanges all
5 some are attached        the same                             ``upgrade``: exchanges all
6 pins renamed             the same, all new                    the same
7 digest written           the upgraded instance

remove, killed after       leaves                               what the next command does
1 name taken away          an unnamed directory                 ``clear``: detach, undo, remove
2 detached, undone         the same
3 pins removed             the same; the manifest goes last
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, closing, contextmanager, suppress
from os.path import lexists
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import KernelError, ZfwError, raise_expected
from zfw_py.kernel import bpf_maps
from zfw_py.kernel.libbpf import BpfObject
from zfw_py.lifecycle.attachment import PIN, Tracing, opened
from zfw_py.lifecycle.store import MANIFEST, UNNAMED, Pins, names, remove_directory, unlink

if TYPE_CHECKING:
    from collections.abc import (
        Callable,
        Collection,
        Generator,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from pathlib import Path

    from msgspec import Struct

    from zfw_py.kernel.lock import Lock
    from zfw_py.lifecycle.attachment import Attachment
    from zfw_py.lifecycle.store import Store

_ALONE = (
    "needs root; or a program that allows no other beside it is attached"
    " (bpftool cgroup tree, bpftool net)"
)


class System(NamedTuple):
    """What a system declares.

    ``object`` is the compiled object. ``attachments`` finds what is attached of an instance,
    given its directory, in the order in which it was attached. ``digest`` and ``record`` read
    and write the SHA-256 of the object that its programs are from, in hexadecimal.
    ``abandoned`` lists instances that are of no use any more. ``undo`` removes what an
    instance has made beside its pins, once its programs are detached. ``pinned`` are the
    programs that stay pinned, under their names after ``prefix``; those in ``added`` came with
    a later version, as the maps in ``store.added`` did. ``additions`` finds the attachments
    that an upgrade of an earlier version's instance makes anew.
    """

    store: Store
    object: Path
    attachments: Callable[[str], Sequence[Attachment]]
    digest: Callable[[str], str]
    record: Callable[[str, str], None]
    abandoned: Callable[[], Iterable[str]]
    undo: Callable[[str], None] = lambda directory: None
    pinned: Collection[str] = ()
    prefix: str = "program_"
    added: Collection[str] = ()
    additions: Callable[[str], Iterable[Attachment]] = lambda directory: ()


@contextmanager
def locked(store: Store, *, is_exclusive: bool) -> Iterator[Lock]:
    """Hold the lock on a system; an OSError from within becomes one of ours.

    Raises ``store.absent()`` where no instance was ever made, PermissionDenied, Busy.
    """
    with ExitStack() as held:
        try:
            lock = held.enter_context(store.lock(is_exclusive=is_exclusive))
        except FileNotFoundError:
            raise store.absent() from None
        except OSError as error:
            raise_expected(error)
        try:
            yield lock
        except OSError as error:
            raise_expected(error)


def make_root(store: Store) -> None:
    """Make the root of a system's directories. Raises PermissionDenied or KernelError."""
    try:
        store.make_root()
    except OSError as error:
        raise_expected(error)


def digest_of(system: System) -> str:
    """The SHA-256 of the compiled object. Raises ZfwError where it is missing."""
    try:
        from hashlib import sha256  # OpenSSL takes 3 ms

        return sha256(system.object.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise ZfwError(
            f"{system.object.name} is missing", hint="build it: pip install . in the source tree"
        ) from None


# Installing


def install(
    system: System,
    identifier: str | int,
    prepare: Callable[[str], Generator[Attachment]],
    about: Struct | None = None,
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Load, pin, prepare, attach and publish an instance; on any error nothing is left.

    ``prepare`` is a generator, called with the directory once maps and programs are pinned
    there: it fills the maps and yields each attachment when it is to be attached, the one that
    takes effect last. Where something fails it is closed. ``sizes`` are ``max_entries`` of
    maps. Raises KernelError, VerifierError, and what ``prepare`` raises.
    """
    built = system.store.new_directory()
    try:
        if about is not None:
            from zfw_py.lifecycle import manifest

            manifest.write(built, about)
        with BpfObject(system.object) as loaded:
            for name, size in (sizes or {}).items():
                loaded.size_map(name, size)
            loaded.load()
            for name, fd in loaded.maps().items():
                bpf_maps.pin(fd, f"{built}/{name}")
            programs = loaded.programs()
            for name in system.pinned:
                bpf_maps.pin(programs[name], f"{built}/{system.prefix}{name}")
            with closing(prepare(built)) as steps:
                for attachment in steps:
                    attach(attachment, programs[attachment.program])
        system.store.publish(built, identifier)
    except BaseException as error:
        dismantle(system, built)
        if isinstance(error, OSError):
            raise_expected(error)
        raise


def attach(attachment: Attachment, program: int, what: str | None = None) -> None:
    """Attach a program, by its descriptor. Raises KernelError that names ``what``, Conflict."""
    try:
        attachment.attach(program)
    except ZfwError:
        raise
    except OSError as error:
        hint = _ALONE if error.errno == errno.EPERM else None
        raise KernelError(f"attach {what or attachment}", error.errno or 0, hint=hint) from error


# Upgrading


def upgrade(system: System, identifier: str | int) -> bool:
    """Exchange the programs of an instance for this version's: all, or on an error none.

    False if they are this version's already. The maps stay, and with them policy and counters;
    maps, programs and attachments that this version has in addition are made.
    Raises LayoutMismatch if the maps are of another layout, KernelError, VerifierError.
    """
    directory = system.store.directory(identifier)
    digest = digest_of(system)
    _settle(system, directory)
    if system.digest(directory) == digest:
        return False
    pins = Pins(system.store, directory)
    missing = pins.missing()
    with BpfObject(system.object) as loaded:
        kept = [name for name in system.store.maps if name not in missing]
        loaded.reuse_maps({name: pins.map(name).fd for name in kept})
        loaded.load()
        programs = loaded.programs()
        try:
            _pin_maps(loaded, directory, missing)
            # Filters are found by the pins of their programs: so these come first.
            for name in system.pinned:
                bpf_maps.pin(programs[name], f"{directory}/{UNNAMED}{system.prefix}{name}")
            _exchange(system, directory, programs)
        except BaseException:
            _remove_new(directory)
            for name in missing:
                unlink(f"{directory}/{name}")
            raise
    for name in system.pinned:
        os.rename(
            f"{directory}/{UNNAMED}{system.prefix}{name}", f"{directory}/{system.prefix}{name}"
        )
    system.record(directory, digest)
    return True


def _pin_maps(loaded: BpfObject, directory: str, names: Iterable[str]) -> None:
    maps = loaded.maps()
    for name in names:
        bpf_maps.pin(maps[name], f"{directory}/{name}")


def _exchange(system: System, directory: str, programs: Mapping[str, int]) -> None:
    with ExitStack() as held:
        exchanged: list[tuple[Attachment, int]] = []
        added: list[Attachment] = []
        try:
            for attachment in system.attachments(directory):
                old = attachment.program_id()
                if old is None:
                    continue  # its interface is gone, or it was detached by hand
                fd = bpf_maps.open_program(old)
                held.callback(os.close, fd)
                _replace(attachment, programs[attachment.program])
                exchanged.append((attachment, fd))
            for attachment in system.additions(directory):
                added.append(attachment)
                attach(attachment, programs[attachment.program])
        except BaseException:
            for attachment in reversed(added):
                attachment.detach()
            for attachment, fd in reversed(exchanged):
                _replace(attachment, fd)
            raise


def _replace(attachment: Attachment, program: int) -> None:
    try:
        attachment.replace(program)
    except ZfwError:
        raise
    except OSError as error:
        raise KernelError(f"exchange program {attachment.program}", error.errno or 0) from error


def _settle(system: System, directory: str) -> None:
    """Remove what a killed process was about to rename; go back to the pinned programs.

    An upgrade pins its new programs under other names. A filter that has one of them is known
    as ours by that pin alone, so it gets the old program before the pin goes. Where there is no
    old one, since the upgrade added the program, it is detached.
    """
    if not names(directory, UNNAMED):
        return
    for attachment in system.attachments(directory):
        if attachment.program in system.added and not lexists(
            f"{directory}/{system.prefix}{attachment.program}"
        ):
            attachment.detach()
        elif attachment.program in system.pinned and not isinstance(attachment, Tracing):
            with opened(f"{directory}/{system.prefix}{attachment.program}") as program:
                if attachment.program_id() not in (None, bpf_maps.object_id(program)):
                    _replace(attachment, program)
    _remove_new(directory)


def _remove_new(directory: str) -> None:
    for name in names(directory, UNNAMED):
        unlink(f"{directory}/{UNNAMED}{name}")


def program_ids(system: System, directory: str, name: str) -> set[int]:
    """The ids of an instance's pinned program, and of the one that an upgrade has pinned."""
    found = set()
    for prefix in ("", UNNAMED):
        with (
            suppress(FileNotFoundError),
            opened(f"{directory}/{prefix}{system.prefix}{name}") as program,
        ):
            found.add(bpf_maps.object_id(program))
    return found


# Removing


def remove(system: System, identifier: str | int) -> bool:
    """Detach the programs of an instance and forget it. False: there is none.

    Raises what finding its attachments raises; then nothing is changed.
    """
    directory = system.store.directory(identifier)
    if not os.path.isdir(directory):
        return False
    system.attachments(directory)
    doomed = system.store.withdraw(identifier)
    if doomed is None:
        return False
    dismantle(system, doomed)
    return True


def dismantle(system: System, directory: str) -> None:
    """Detach and remove what is in a directory without a name, and what its instance made."""
    for attachment in reversed(system.attachments(directory)):
        attachment.detach()
    system.undo(directory)
    # A process that finds the directory half removed reads in the manifest what to remove.
    remove_directory(directory, last=MANIFEST)


def clear(system: System) -> None:
    """Remove what a killed process was building or removing."""
    for leftover in system.store.unfinished():
        dismantle(system, leftover)


def collect(system: System) -> None:
    """The same, and instances that are of no use any more."""
    clear(system)
    for identifier in system.abandoned():
        remove(system, identifier)


def link_pins(directory: str) -> list[str]:
    """The names of the links that are pinned in a directory, without their prefix."""
    return names(directory, PIN)
