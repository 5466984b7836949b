# SPDX-License-Identifier: GPL-2.0-only
"""The attachments that are wanted: recorded by name, compared with the kernel, made anew.

A record is written before its program is attached, and removed before its program is detached.
So what a killed writer leaves is a difference, which ``differences`` reports: wanted and not
attached (the follower attaches it), or attached and not wanted (it goes on filtering).
"""

from __future__ import annotations

import os
from socket import if_indextoname
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import MapFull, NotFound, ZfwError
from zfw_py.firewall import programs
from zfw_py.firewall.interfaces import Interfaces, index_of
from zfw_py.firewall.lost_routes import lost, make_again
from zfw_py.firewall.maps import STORE
from zfw_py.kernel.lock import hold_number, is_number_held, open_numbers
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.lifecycle.programs import make_root

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from zfw_py.firewall.maps import Maps
    from zfw_py.firewall.programs import Attachment
    from zfw_py.values.prefix import Prefix


class Followed(NamedTuple):
    """What ``follow`` attached, as (interface, direction, mode), and what it could not do.

    ``made_local`` are the prefixes of rules and binds that it made local again.
    ``object_digest`` is that of the build that the programs are from.
    """

    attached: list[tuple[str, str, str]]
    made_local: list[Prefix]
    errors: list[str]
    object_digest: bytes


class Difference(NamedTuple):
    """What is not as it was asked for on an interface, and the command that mends it."""

    interface: str
    what: str
    command: str

    def __str__(self) -> str:
        return f"{self.interface}: {self.what}: {self.command}"


def attach(
    maps: Maps, interfaces: Interfaces, name: str, directions: Iterable[str], mode: str
) -> list[Attachment]:
    """Record and attach: all of these directions, or on an error none anew."""
    interfaces.check_room(name)
    interfaces.add(name)
    interfaces.refresh()
    ifindex = index_of(name)
    modes = interfaces.wanted().get(name, {})
    more = {
        direction: programs.resolved(maps, ifindex, direction, mode) for direction in directions
    }
    before = interfaces.want(name, modes | more)
    try:
        return programs.attach_all(maps, ifindex, name, more, mode)
    except BaseException:
        interfaces.want(name, before)
        raise


def detach(
    maps: Maps, interfaces: Interfaces, name: str, direction: str | None
) -> list[Attachment]:
    """Remove the record, and detach. Raises NotFound if there is neither.

    Firewalls of other network namespaces are detached too, from an interface that was moved here.
    """
    modes = interfaces.wanted().get(name, {})
    stay = {d: mode for d, mode in modes.items() if direction not in (None, d)}
    if stay != modes:
        interfaces.want(name, stay)
    try:
        ifindex = index_of(name)
        taken = programs.detach(maps, ifindex, direction)
        taken += programs.detach_moved_here(ifindex, direction)
    except NotFound:
        recorded = interfaces.indexes().get(name, 0)
        taken = programs.detach_away(maps, recorded, direction) if recorded else []
        if not taken and stay == modes:
            raise
        interfaces.refresh()
        return taken
    if not taken and stay == modes:
        raise NotFound(f"nothing is attached to {name}")
    return taken


def detach_moved_here(name: str, direction: str | None) -> list[Attachment]:
    """As ``detach``, of the firewalls of other network namespaces alone: there is none here.

    For a caller without the lock.
    """
    try:
        ifindex = index_of(name)
    except NotFound:
        return []
    if not STORE.identifiers():
        return []
    with STORE.lock(is_exclusive=True):
        return programs.detach_moved_here(ifindex, direction)


def has_egress(maps: Maps, interfaces: Interfaces, name: str) -> bool:
    """Whether an egress program is wanted on an interface, or attached to it."""
    if "egress" in interfaces.wanted().get(name, {}):
        return True
    ifindex = interfaces.present().get(name)
    return ifindex is not None and any(
        each.direction == "egress" for each in programs.attachments(maps, ifindex)
    )


def detach_unwanted_away(maps: Maps, interfaces: Interfaces) -> None:
    """Detach from interfaces that were moved to another network namespace and are not wanted."""
    indexes = interfaces.indexes()
    wanted = {
        (indexes[name], direction)
        for name, modes in interfaces.wanted().items()
        for direction in modes
    }
    for link in programs.links_away(maps):
        if (programs.index_before(link), link.direction) not in wanted:
            link.detach()


def follow(maps: Maps, interfaces: Interfaces) -> Followed:
    """Bring rows and addresses up to date; attach what is wanted and not attached.

    Then make local what another program made no longer so.
    """
    attached = []
    errors = []
    try:
        interfaces.refresh()
    except MapFull as error:
        errors.append(error.message)
    for ifindex, name, direction, mode in programs.missing(maps, interfaces):
        try:
            mode = programs.resolved(maps, ifindex, direction, mode)
            programs.attach_anew(maps, ifindex, name, direction, mode)
        except (ZfwError, OSError) as error:
            errors.append(str(error))
            continue
        interfaces.want(name, interfaces.wanted()[name] | {direction: mode})
        attached.append((name, direction, mode))
    if attached:
        programs.remove_dead_links(maps)
    made_local = []
    for prefix in lost(maps):
        try:
            make_again(prefix)
        except ZfwError as error:
            errors.append(error.message)
        else:
            made_local.append(prefix)
    return Followed(attached, made_local, errors, maps.state().object_digest)


def following() -> int:
    """Show that the caller follows its network namespace: until the descriptor is closed."""
    make_root(STORE)
    fd = open_numbers(STORE.root)
    hold_number(fd, netns_cookie())
    return fd


def is_followed() -> bool:
    """Whether a process follows the caller's network namespace. Under the lock."""
    fd = open_numbers(STORE.root)
    try:
        return is_number_held(fd, netns_cookie())
    finally:
        os.close(fd)


def upgrade(maps: Maps) -> bool:
    """As ``programs.upgrade``; a version that recorded nothing attached what is attached."""
    is_done = programs.upgrade(maps)
    if is_done:
        interfaces = Interfaces(maps)
        names = {ifindex: name for name, ifindex in interfaces.present().items()}
        for attachment in programs.attachments(maps):
            name = names.get(attachment.ifindex, "")
            modes = interfaces.wanted().get(name, {})
            if name and attachment.direction not in modes:
                interfaces.want(name, {attachment.direction: attachment.mode} | modes)
    return is_done


def absent(maps: Maps, interfaces: Interfaces) -> list[str]:
    """The names with wanted attachments that no interface has, sorted.

    An interface that was moved to another network namespace, and is still filtered there, is not
    among them.
    """
    present, indexes = interfaces.present(), interfaces.indexes()
    return sorted(
        name
        for name in interfaces.wanted()
        if name not in present and not _is_away(maps, indexes[name])
    )


def differences(maps: Maps, interfaces: Interfaces, attached: list[Attachment]) -> list[Difference]:
    """Where the kernel, or what the programs read, is not what is wanted. Changes nothing.

    ``attached`` is what the kernel says, as ``programs.attachments``.
    """
    return sorted(
        [
            *unlike_wanted(maps, interfaces, attached),
            *ahead(attached),
            *idle_filters(interfaces, attached),
            *out_of_date(interfaces, attached),
            *not_local(maps),
        ]
    )


def unlike_wanted(
    maps: Maps, interfaces: Interfaces, attached: list[Attachment]
) -> Iterator[Difference]:
    """Attachments that are wanted and are not there, or the other way round.

    That an interface does not exist is no difference while a follower runs, which attaches it
    when it appears.
    """
    if not is_followed():
        what = (
            "there is no such interface, and no zfw follow runs that attaches it later;"
            " if it shall not be attached"
        )
        for name in absent(maps, interfaces):
            yield Difference(name, what, f"zfw detach {name}")
    present = interfaces.present()
    actual = {(each.ifindex, each.direction): each.mode for each in attached}
    for name, modes in interfaces.wanted().items():
        ifindex = present.get(name, 0)
        if not ifindex:
            if _is_away(maps, interfaces.indexes()[name]):
                what = (
                    "it is in another network namespace, and is still filtered by this firewall;"
                    " if it shall not be attached"
                )
                yield Difference(name, what, f"zfw detach {name}")
            continue
        lacking: dict[str, list[str]] = {}
        for direction, mode in modes.items():
            mode_there = actual.pop((ifindex, direction), None)
            if mode_there is None:
                lacking.setdefault(mode, []).append(direction)
            elif mode not in ("auto", mode_there):
                what = f"{direction} is attached by {mode_there}, not by {mode}"
                yield Difference(name, what, _attach(name, [direction], mode))
        for mode, directions in lacking.items():
            verb = "is" if len(directions) == 1 else "are"
            what = f"{' and '.join(directions)} {verb} not attached"
            yield Difference(name, what, _attach(name, directions, mode))
    for ifindex, direction in actual:
        name = _name_of(ifindex)
        what = (
            f"{direction} is attached, and not recorded as wanted; zfw detach {name} detaches it,"
            " and this records it"
        )
        yield Difference(name, what, _attach(name, [direction], "auto"))
    yield from _moved_here()


def ahead(attached: list[Attachment]) -> Iterator[Difference]:
    """Programs that run before the firewall's."""
    for each in attached:
        if others := programs.in_front(each):
            what = (
                f"{each.direction}: TCX program {', '.join(map(str, others))} runs before the"
                " firewall's, and may pass packets past it"
            )
            name = _name_of(each.ifindex)
            # Detaching takes both directions.
            directions = [other.direction for other in attached if other.ifindex == each.ifindex]
            command = f"zfw detach {name} && {_attach(name, directions, each.mode)}"
            if each.mode == "clsact":
                command = f"zfw attach {name} --direction {each.direction} --mode tcx"
            yield Difference(name, what, command)


def idle_filters(interfaces: Interfaces, attached: list[Attachment]) -> Iterator[Difference]:
    """Outbound filters without an egress program."""
    present = interfaces.present()
    has_program = {each.ifindex for each in attached if each.direction == "egress"}
    for name, settings in interfaces.settings().items():
        is_wanted = "egress" in interfaces.wanted().get(name, {})
        if not settings["outbound_filter"] or is_wanted or present.get(name) in has_program:
            continue
        what = "outbound-filter is on, and has no effect without an egress program"
        yield Difference(name, what, _attach(name, ["egress"], "auto"))


def out_of_date(interfaces: Interfaces, attached: list[Attachment]) -> Iterator[Difference]:
    """Addresses, indexes and settings that the programs read and that have changed."""
    for name, what in interfaces.stale({each.ifindex for each in attached}).items():
        yield Difference(name, what, "zfw follow --once")


def not_local(maps: Maps) -> Iterator[Difference]:
    """Prefixes that --route or -B made local, and that are local no more."""
    for prefix in lost(maps):
        yield Difference("lo", f"{prefix} is not local any more", "zfw follow --once")


def read_moved_here() -> list[Difference]:
    """The interfaces that carry the firewall of the network namespace that they were moved from.

    For a caller without the lock: there may be no firewall here.
    """
    if not STORE.identifiers():
        return []
    with STORE.lock(is_exclusive=False):
        return _moved_here()


def _moved_here() -> list[Difference]:
    directions: dict[tuple[str, str], list[str]] = {}
    for link in programs.links_moved_here():
        cookie = link.pin.split("/")[-2]
        directions.setdefault((_name_of(link.ifindex), cookie), []).append(link.direction)
    return [
        Difference(
            name,
            f"{' and '.join(sorted(some, reverse=True))} {'is' if len(some) == 1 else 'are'}"
            f" attached by the firewall of another network namespace (cookie {cookie}), from where"
            " it was moved",
            f"zfw detach {name}",
        )
        for (name, cookie), some in directions.items()
    ]


def _is_away(maps: Maps, recorded: int) -> bool:
    """Whether the interface that had this index is in another network namespace."""
    return bool(recorded and programs.index_away(maps, recorded))


def _attach(name: str, directions: Sequence[str], mode: str) -> str:
    return (
        f"zfw attach {name}"
        + (f" --direction {directions[0]}" if len(directions) == 1 else "")
        + (" --mode clsact" if mode == "clsact" else "")
    )


def _name_of(ifindex: int) -> str:
    try:
        return if_indextoname(ifindex)
    except OSError:
        return f"interface {ifindex}"
