# SPDX-License-Identifier: GPL-2.0-only
"""Interfaces by name: settings, wanted attachments, the sets that rules name, addresses. Hot.

Rules, settings and wanted attachments belong to names and outlive the interface. The programs
read tables by interface index; these follow from the names, and every writer and the follower
bring them up to date.
"""

from __future__ import annotations

from _socket import if_indextoname, if_nameindex, if_nametoindex

from zfw_py.errors import MapFull, NotFound
from zfw_py.firewall import codec, layout
from zfw_py.firewall.model import OWN4, OWN6, OwnAddresses
from zfw_py.kernel.own_netns import ETHERNET_TYPES, interface_addresses, link_type
from zfw_py.values.prefix import IPV4_MAPPED, Prefix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Mapping

    from zfw_py.firewall.maps import Maps
    from zfw_py.firewall.model import Rule

_EMPTY_ROW = bytes(layout.INTERFACE_SIZE)

_MOST_ADDRESSES = layout.MAPS["addresses"][3]

_LOOPBACK_IFINDEX = 1  # lo comes first in every network namespace
_ANY_INTERFACE = 0  # of an own address in the table of addresses


def index_of(name: str) -> int:
    """An interface's index by its name or an alternative name. Raises NotFound."""
    try:
        return if_nametoindex(name)
    except OSError:
        raise NotFound(f"Interface not found: {name}") from None


def primary_name(name: str) -> str:
    """An interface's own name, given that or an alternative one. Raises NotFound."""
    return if_indextoname(index_of(name))


def own_name(name: str) -> str:
    """As ``primary_name``; a name that no interface has stays as it is."""
    try:
        return primary_name(name)
    except NotFound:
        return name


def names_of(name: str) -> list[str]:
    """The interfaces that a name stands for: for "all" every one but lo, else that one."""
    if name != "all":
        return [name]
    return [found for ifindex, found in if_nameindex() if ifindex != _LOOPBACK_IFINDEX]


def _link_flags(name: str, ifindex: int) -> int:
    if ifindex == _LOOPBACK_IFINDEX:
        return layout.LINK_LOOPBACK
    return 0 if link_type(name) in ETHERNET_TYPES else layout.LINK_NO_ETHERNET


class Interfaces:
    """The names that rules and settings mention. Each change is written at once."""

    def __init__(self, maps: Maps) -> None:
        """Read the names; the sets are read when a rule needs them."""
        self._maps = maps
        # Sets and names that this edit uses: perhaps no rule in the maps refers to them yet.
        self._sets_given: set[int] = set()
        self._names_given: set[str] = set()
        self._names: dict[str, tuple[int, int, int, bytes]] = {}
        # By name: the settings after an edit that is being written, or was when its writer died.
        self._next: dict[str, int] = {}
        for key, value in maps.map("interface_names").items():
            *known, next_bits = codec.decode_interface_name(value)
            name = codec.decode_text(key)
            self._names[name] = tuple(known)  # type: ignore[assignment]
            if next_bits:
                self._next[name] = next_bits & ~layout.SETTING_CHANGING
        self._sets: list[int] | None = None
        # By interface index: its addresses, once they were read.
        self._own: dict[int, list[bytes]] | None = None
        self._shown_names: dict[str, str] | None = None

    # Names

    def indexes(self) -> dict[str, int]:
        """Each known name with its interface's index, 0 if there is none."""
        shown = self._shown()
        return {
            shown.get(name, name): ifindex
            for name, (_, _, ifindex, _) in sorted(self._names.items())
        }

    def settings(self) -> dict[str, dict[str, bool]]:
        """Each known name with its settings, whether it has an interface or not."""
        shown = self._shown()
        return {
            shown.get(name, name): settings_of(bits)
            for name, (_, bits, _, _) in sorted(self._names.items())
        }

    def wanted(self) -> dict[str, dict[str, str]]:
        """The modes ("auto", "tcx", "clsact") by direction of each name that shall be attached."""
        shown = self._shown()
        return {
            shown.get(name, name): codec.decode_wanted(wanted)
            for name, (_, _, _, wanted) in sorted(self._names.items())
            if wanted != codec.NOT_WANTED
        }

    def _shown(self) -> dict[str, str]:
        """The present name of each interface that was renamed, by the name that is known.

        Such an interface keeps what its old name has until an edit gives the new name, or
        another interface has the old one.
        """
        if self._shown_names is None:
            current = dict(if_nameindex())
            present = set(current.values())
            self._shown_names = {
                name: current[ifindex]
                for name, (_, _, ifindex, wanted) in self._names.items()
                if wanted != codec.NOT_WANTED
                and ifindex in current
                and name not in present
                and current[ifindex] not in self._names
                and not self._alternative_index(name)
            }
        return self._shown_names

    def add(self, name: str) -> int:
        """Give a name an id if it has none; the id. Raises MapFull."""
        self._names_given.add(name)
        if name not in self._names:
            self._take_over(name)
        if name in self._names:
            return self._names[name][0]
        self.check_room(name)
        free = self._free_name_id()
        if free is None:
            self._collect()
            free = self._free_name_id()
        if free is None:
            raise MapFull(f"interface {name}: {layout.MAX_INTERFACE_NAMES} names are known already")
        self._write(name, free, 0, 0, codec.NOT_WANTED)
        return free

    def check_room(self, *more: str) -> None:
        """Before anything is written: whether the addresses fit, also those of ``more`` names.

        Raises MapFull.
        """
        found = interface_addresses()
        # Each twice, if all are known and there are rules for own addresses.
        if 2 * sum(map(len, found.values())) <= _MOST_ADDRESSES:
            return
        names = dict(if_nameindex())
        known = {names.get(ifindex) for ifindex, _, _ in self._places(names).values()}
        count = sum(len(found.get(name, ())) for name in {*known, *more} if name)
        own = self._own_addresses(found)
        if count + len(own) > _MOST_ADDRESSES:
            raise _too_many(count, len(own))

    def _take_over(self, name: str) -> None:
        """Give a renamed interface's new name what the old name has."""
        for old, new in self._shown().items():
            if new == name and self._is_attached(self._names[old][2]):
                self._write(new, *self._names[old])
                self._maps.map("interface_names").delete(codec.encode_name(old))
                del self._names[old]
                self._shown_names = None
                return

    def _free_name_id(self) -> int | None:
        used = {name_id for name_id, _, _, _ in self._names.values()}
        return next((n for n in range(layout.MAX_INTERFACE_NAMES) if n not in used), None)

    def _collect(self) -> None:
        """Drop sets that no rule refers to, and names that nothing mentions any more."""
        from zfw_py.firewall.rules.find import port_rules

        in_use = {rule.interface_set for _, _, rules in port_rules(self._maps) for rule in rules}
        in_use |= self._sets_given
        mentioned = 0
        for number, members in enumerate(self._loaded_sets()):
            if members and number not in in_use:
                self._write_set(number, 0)
            else:
                mentioned |= members
        for name, (name_id, bits, ifindex, wanted) in list(self._names.items()):
            is_in_use = bits or ifindex or wanted != codec.NOT_WANTED
            if not (is_in_use or name in self._names_given or mentioned >> name_id & 1):
                self._maps.map("interface_names").delete(codec.encode_name(name))
                del self._names[name]

    def set(self, name: str, setting: str, on: bool) -> None:
        """Turn a setting on or off."""
        from zfw_py.firewall.settings import SETTINGS

        self.add(name)
        name_id, bits, ifindex, wanted = self._names[name]
        self._write(name, name_id, SETTINGS[setting].applied(bits, on), ifindex, wanted)

    def has_filtered(self) -> bool:
        """Whether some interface shall have the outbound filter and its program.

        An interface that a version without such records attached counts as having the program.
        """
        return any(
            bits & layout.SETTING_OUTBOUND_FILTER
            and (wanted == codec.NOT_WANTED or "egress" in codec.decode_wanted(wanted))
            for _, bits, _, wanted in self._names.values()
        )

    def with_ssh_to(self, destination: Prefix) -> list[str]:
        """The interfaces with programs that pass SSH to an own address within a prefix."""
        if isinstance(destination, OwnAddresses):
            destination = Prefix.any(destination.family)
        network, length = destination.mapped
        if self._own is None:
            self._own = addresses_by_index(self._maps)
        own = self._own
        shift = 128 - length
        wanted = int.from_bytes(network, "big") >> shift
        return sorted(
            name
            for name, (_, bits, ifindex, wanted_modes) in self._names.items()
            if wanted_modes != codec.NOT_WANTED
            and not bits & layout.SETTING_SSH_OFF
            and any(int.from_bytes(a, "big") >> shift == wanted for a in own.get(ifindex, ()))
        )

    def without_lists(self, names: Container[str]) -> list[str]:
        """Other interfaces with programs, on which rules count whatever interfaces they name."""
        return sorted(
            name
            for name, (_, bits, ifindex, wanted) in self._names.items()
            if ifindex
            and name not in names
            and wanted != codec.NOT_WANTED
            and not bits & layout.SETTING_PER_INTERFACE_RULES
        )

    def want(self, name: str, modes: dict[str, str]) -> dict[str, str]:
        """Record how programs shall be attached, by direction; what was recorded before."""
        self.add(name)
        name_id, bits, ifindex, wanted = self._names[name]
        if codec.encode_wanted(modes) != wanted:
            self._write(name, name_id, bits, ifindex, codec.encode_wanted(modes))
        return codec.decode_wanted(wanted)

    def _write(self, name: str, name_id: int, settings: int, ifindex: int, wanted: bytes) -> None:
        next_settings = 0
        if name in self._next:
            next_settings = self._next[name] | layout.SETTING_CHANGING
        self._maps.map("interface_names").update(
            codec.encode_name(name),
            codec.encode_interface_name(name_id, settings, ifindex, wanted, next_settings),
        )
        self._names[name] = (name_id, settings, ifindex, wanted)

    # Settings that change together with rules

    def is_changing(self) -> bool:
        """Whether an edit of settings was begun and not ended."""
        return bool(self._next)

    def bits_of(self, name: str) -> int:
        """The settings of a name; those of one that is not known are the defaults."""
        return self._names[name][1] if name in self._names else 0

    def begin(self, old: dict[str, int], new: dict[str, int]) -> None:
        """Before rules change: give each interface settings that allow no more than either.

        Packets whose rules the change of settings selects are dropped until the end.
        """
        for name, bits in new.items():
            self.add(name)
            self._next[name] = bits
            name_id, _, ifindex, wanted = self._names[name]
            self._write(name, name_id, old[name], ifindex, wanted)
        if new:
            self.refresh()

    def end(self, *, is_forward: bool) -> None:
        """After that: the new settings are in force, or the old ones again. ``refresh`` follows."""
        for name, bits in list(self._next.items()):
            name_id, old, ifindex, wanted = self._names[name]
            del self._next[name]
            self._write(name, name_id, bits if is_forward else old, ifindex, wanted)

    def _bits_now(self, name: str) -> int:
        _, old, _, _ = self._names[name]
        if name not in self._next:
            return old
        new = self._next[name]
        # SSH passes before the rules, as a rule of a more specific prefix would; IPv6 that is
        # off is dropped before them. The other settings do not depend on the rules.
        bits = old & ~(layout.SETTING_SSH_OFF | layout.SETTING_IPV6)
        bits |= old & new & (layout.SETTING_SSH_OFF | layout.SETTING_IPV6)
        if (old ^ new) & layout.SETTING_PER_INTERFACE_RULES:
            bits |= layout.SETTING_CHANGING
        return bits

    # Sets

    def _loaded_sets(self) -> list[int]:
        if self._sets is None:
            self._sets = [
                codec.decode_interface_set(value)
                for _, value in self._maps.map("interface_sets").items()
            ]
        return self._sets

    def members_of(self, number: int) -> int:
        """The bitmap of the names in a set; set 0 is the empty one."""
        return self._loaded_sets()[number] if number else 0

    def names_of(self, number: int) -> tuple[str, ...]:
        """The names in a set, sorted."""
        members = self.members_of(number)
        if not members:
            return ()
        shown = self._shown()
        return tuple(
            sorted(
                shown.get(name, name)
                for name, (name_id, _, _, _) in self._names.items()
                if members >> name_id & 1
            )
        )

    def number_of(self, names: Iterable[str]) -> int:
        """The number of the set of these names, of a new one if need be. Raises MapFull."""
        members = 0
        for name in names:
            members |= 1 << self.add(name)
        return self.number_with(members)

    def number_with(self, members: int) -> int:
        """As ``number_of``, given a bitmap of names; 0 for the empty one.

        A set is never changed once it has a number: rules may refer to it. Raises MapFull.
        """
        if not members:
            return 0
        sets = self._loaded_sets()
        if members in sets:
            self._sets_given.add(sets.index(members))
            return sets.index(members)
        free = next((n for n, m in enumerate(sets) if n and not m), None)
        if free is None:
            self._collect()
            free = next((n for n, m in enumerate(sets) if n and not m), None)
        if free is None:
            raise MapFull(f"{layout.MAX_INTERFACE_SETS - 1} sets of interfaces are in use already")
        self._write_set(free, members)
        self._sets_given.add(free)
        return free

    def _write_set(self, number: int, members: int) -> None:
        self._maps.map("interface_sets").update(
            codec.u32(number), codec.encode_interface_set(members)
        )
        self._loaded_sets()[number] = members

    # What the programs read

    def refresh(self) -> None:
        """Bring indexes, settings by index, and addresses up to date with the system."""
        known: dict[str, int] = {}
        away: list[int] = []
        names = dict(if_nameindex())
        self._shown_names = None
        for name, (ifindex, carries, is_away) in self._places(names).items():
            name_id, bits, recorded, wanted = self._names[name]
            if is_away:
                away.append(recorded)
                self._keep_row_away(recorded)
                continue
            if ifindex:
                known[name] = ifindex
            if ifindex != recorded:
                # Remove all old rows before writing new ones: names may have been swapped. An
                # interface that still carries our program would be shut without its row.
                self._write(name, name_id, bits, ifindex, wanted)
                if recorded and not carries and _row_of(self._maps, recorded):
                    self._maps.map("interfaces").update(_row_key(recorded), _EMPTY_ROW)
        flags = self._common_flags()
        for name, ifindex in known.items():
            row = self._row(name, ifindex, names.get(ifindex, name), flags)
            if _row_of(self._maps, ifindex) != row:
                self._maps.map("interfaces").update(_row_key(ifindex), codec.encode_interface(*row))
        self._refresh_addresses(names, known.values(), away)

    def present(self) -> dict[str, int]:
        """Each known name that an interface of this namespace has, with the index."""
        names = dict(if_nameindex())
        shown = self._shown()
        return {
            shown.get(name, name): ifindex
            for name, (ifindex, _, _) in self._places(names).items()
            if ifindex
        }

    def _places(self, names: dict[int, str]) -> dict[str, tuple[int, bool, bool]]:
        """Where the interface of each known name is, given the present names by index.

        Its index, or 0; whether an interface with the recorded index carries our program under
        another name or elsewhere; and whether it is in another network namespace, with our
        program.
        """
        indexes = {name: index for index, name in names.items()}
        found: dict[str, tuple[int, bool, bool]] = {}
        for name, (_, _, recorded, wanted) in self._names.items():
            ifindex = indexes.get(name) or self._alternative_index(name)
            carries = is_away = False
            if recorded not in (0, ifindex) and wanted != codec.NOT_WANTED:
                is_here = recorded in names
                # A new name that is known itself has settings of its own.
                if names.get(recorded) not in self._names:
                    carries = bool(
                        self._is_attached(recorded) if is_here else self._index_away(recorded)
                    )
                if carries and not ifindex:
                    is_away = not is_here
                    # Renamed: it keeps what its old name has.
                    ifindex = recorded if is_here else 0
            found[name] = (ifindex, carries, is_away)
        return found

    def stale(self, indexes: Container[int]) -> dict[str, str]:
        """What the programs read and is out of date, by name, of interfaces of these indexes.

        With rules for own addresses, also by their names as destinations.
        """
        names = dict(if_nameindex())
        shown = self._shown()
        known = _addresses(self._maps)
        addresses = interface_addresses()
        found = {}
        for address in self._own_addresses(addresses).symmetric_difference(
            known.get(_ANY_INTERFACE, ())
        ):
            own = OWN4 if address.startswith(IPV4_MAPPED) else OWN6
            found[str(own)] = "its addresses are out of date"
        flags = self._common_flags()
        for name, (ifindex, _, _) in self._places(names).items():
            if ifindex not in indexes:
                continue
            device = names.get(ifindex, name)
            row = self._row(name, ifindex, device, flags)
            # Of two interfaces that share a row, the second has the strictest settings.
            owner = _owner_of_row(self._maps, ifindex)
            if _row_of(self._maps, ifindex) != row and owner in (0, ifindex):
                found[shown.get(name, name)] = "its index or its settings are out of date"
            elif set(known.get(ifindex, ())) != addresses.get(device, set()):
                found[shown.get(name, name)] = "its addresses are out of date"
        return found

    def _common_flags(self) -> int:
        """The link flags that every interface has."""
        is_tracked = any(
            bits & layout.SETTING_OUTBOUND_FILTER for _, bits, _, _ in self._names.values()
        )
        return layout.LINK_TRACK if is_tracked else 0

    def _row(self, name: str, ifindex: int, device: str, flags: int) -> tuple[int, int, int, int]:
        """The row that an interface shall have, given its present name."""
        name_id, _, _, _ = self._names[name]
        old = _row_of(self._maps, ifindex)
        if old:
            flags |= old[3] & layout.LINK_ATTACHED  # the program has set it
        return (ifindex, self._bits_now(name), name_id, _link_flags(device, ifindex) | flags)

    def _is_attached(self, ifindex: int) -> bool:
        """Whether an interface of this namespace carries our program."""
        from zfw_py.firewall.programs import is_attached

        return is_attached(self._maps, ifindex)

    def _index_away(self, ifindex: int) -> int:
        """The present index of an interface that was moved to another namespace, or 0."""
        from zfw_py.firewall.programs import index_away

        return index_away(self._maps, ifindex)

    def _keep_row_away(self, recorded: int) -> None:
        """Give an interface that got another index in another namespace the row that it had."""
        row, ifindex = _row_of(self._maps, recorded), self._index_away(recorded)
        if row and _owner_of_row(self._maps, ifindex) == 0:
            new = codec.encode_interface(ifindex, *row[1:])
            self._maps.map("interfaces").update(_row_key(ifindex), new)

    def _alternative_index(self, name: str) -> int:
        try:
            return if_nametoindex(name)
        except OSError:
            return 0

    def _refresh_addresses(
        self, names: dict[int, str], known: Iterable[int], away: Container[int]
    ) -> None:
        found = interface_addresses()
        wanted = {
            codec.encode_address(ifindex, address)
            for ifindex in known
            for address in found.get(names.get(ifindex, ""), ())
        }
        own = self._own_addresses(found)
        wanted |= {codec.encode_address(_ANY_INTERFACE, address) for address in own}
        table = self._maps.map("addresses")
        present = {key for key, _ in table.items()}
        if away:
            wanted |= {key for key in present if codec.decode_address(key)[0] in away}
        if len(wanted) > _MOST_ADDRESSES:
            raise _too_many(len(wanted) - len(own), len(own))
        # First those that are no addresses any more: the table may be full.
        for key in present - wanted:
            table.delete(key)
        for key in wanted - present:
            table.update(key, codec.u32(1))

    def _own_addresses(self, found: Mapping[str, Collection[bytes]]) -> frozenset[bytes]:
        """The own addresses of rules for these, among those of all interfaces; none without one.

        What zfw made local is an address of lo, but no own one.
        """
        lengths = self._maps.map("lengths")
        if not any(
            codec.has_own_length(lengths.lookup(codec.u32(table)) or b"")
            for table in range(layout.TABLE_EGRESS)
        ):
            return frozenset()
        lo = if_indextoname(_LOOPBACK_IFINDEX)
        made = {
            address
            for address, owner in map(codec.decode_made_local, self._maps.map("routes").items())
            if owner != layout.OWNER_OTHER
        }
        return frozenset(
            address
            for name, addresses in found.items()
            for address in addresses
            if name != lo or address not in made
        )


def note_detached(maps: Maps, attached: Iterable[int]) -> None:
    """Tell the program ``deliver`` that ``ingress`` is on these interfaces at most."""
    table = maps.map("interfaces")
    for ifindex in set(Interfaces(maps).indexes().values()) - {0, *attached}:
        row = _row_of(maps, ifindex)
        if row and row[3] & layout.LINK_ATTACHED:
            cleared = (*row[:3], row[3] & ~layout.LINK_ATTACHED)
            table.update(_row_key(ifindex), codec.encode_interface(*cleared))


def _too_many(known: int, own: int) -> MapFull:
    rules = f", rules for own addresses need {own} more" if own else ""
    return MapFull(
        f"the interfaces that the firewall knows have {known} addresses{rules}, and"
        f" {_MOST_ADDRESSES} fit into its table"
    )


def warnings_of(interfaces: Interfaces, rule: Rule, names: tuple[str, ...]) -> list[str]:
    """What keeps a rule from acting as its text says, with what to type; a line each.

    ``names`` are the own names of its interfaces.
    """
    found = []
    if (
        rule.action == "deny"
        and (rule.key.direction, rule.key.protocol) == ("ingress", "tcp")
        and rule.key.low_port <= 22 <= rule.high_port
    ):
        for name in interfaces.with_ssh_to(rule.key.destination):
            found.append(
                f"TCP port 22 of {name}'s own addresses passes before all rules:"
                f" zfw set {name} --ssh off"
            )
    if names and not rule.is_limited:
        for name in interfaces.without_lists(names):
            found.append(
                f"rule {rule} counts on {name} too, which does not look at the interfaces of"
                f" rules: zfw set {name} --per-interface-rules on"
            )
    return found


def settings_of(bits: int) -> dict[str, bool]:
    """Each setting by name."""
    from zfw_py.firewall.settings import SETTINGS

    return {name: setting.is_on(bits) for name, setting in SETTINGS.items()}


def addresses_by_index(maps: Maps) -> dict[int, list[bytes]]:
    """The addresses that the programs know, by interface index: 16 bytes each."""
    found = _addresses(maps)
    found.pop(_ANY_INTERFACE, None)
    return found


def is_own_address(maps: Maps, family: int, address: bytes) -> bool:
    """Whether rules for own addresses count for this one, 16 bytes; False without such rules."""
    if family == 6 and address.startswith(IPV4_MAPPED):
        return False
    key = codec.encode_address(_ANY_INTERFACE, address)
    return maps.map("addresses").lookup(key) is not None


def _addresses(maps: Maps) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for key, _ in maps.map("addresses").items():
        ifindex, address = codec.decode_address(key)
        found.setdefault(ifindex, []).append(address)
    return found


def settings_by_index(maps: Maps, ifindex: int) -> int:
    """The bits of an interface's settings, as the programs read them."""
    row = _row_of(maps, ifindex)
    if row is None:
        return 0
    _, settings, _, _ = row
    return settings


def _row_key(ifindex: int) -> bytes:
    return codec.u32(ifindex % layout.INTERFACE_ROWS)


def _row_of(maps: Maps, ifindex: int) -> tuple[int, int, int, int] | None:
    """The row of an index; None if it is empty or belongs to another index."""
    row = _decoded_row(maps, ifindex)
    return row if row[0] == ifindex else None


def _owner_of_row(maps: Maps, ifindex: int) -> int:
    """The index that the row of an index belongs to; 0 if it is empty."""
    return _decoded_row(maps, ifindex)[0]


def _decoded_row(maps: Maps, ifindex: int) -> tuple[int, int, int, int]:
    return codec.decode_interface(maps.map("interfaces").lookup(_row_key(ifindex)) or _EMPTY_ROW)
