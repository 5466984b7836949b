# SPDX-License-Identifier: GPL-2.0-only
"""The pinned maps of steering in one network namespace."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import msgspec

from zfw_py.errors import MapFull, NotInstalled
from zfw_py.kernel import bpf_maps, bpf_run
from zfw_py.lifecycle.pins import Pins, replace_pin, unlink
from zfw_py.lifecycle.store import ROOT, Store
from zfw_py.steer import codec, layout
from zfw_py.steer.model import AddressTarget
from zfw_py.steer.sockets import PROTOCOL_NUMBERS
from zfw_py.steer.state import State
from zfw_py.values.prefix import mapped_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from socket import socket

    from zfw_py.steer.model import Mapping
    from zfw_py.steer.segments import Class, Table
    from zfw_py.steer.state import Place, Steered

STORE = Store(
    f"{ROOT}/steer",
    layout.MAPS,
    noun="steering",
    remedy="zfw steer detach removes it",
    absent=lambda: NotInstalled("nothing is steered in this network namespace"),
    sized=("events",),
)
_STATE = "state_"
_ARRAY = 2  # BPF_MAP_TYPE_ARRAY
# A value that every kernel lets user space read at once; KMALLOC_MAX_SIZE is a limit of some.
_CHUNK = 1 << 16
_CLASSES: dict[Class, int] = {
    "port": layout.CLASS_PORT,
    "range": layout.CLASS_RANGE,
    "any": layout.CLASS_ANY,
}


class Tables(Pins):
    """The maps of one network namespace."""

    def __init__(self, directory: str) -> None:
        """``directory`` has the pins; see ``STORE.directory``."""
        super().__init__(STORE, directory, is_read_only=os.geteuid() != 0)
        self._read: tuple[int, State] | None = None

    # What is steered

    def active(self) -> codec.Active:
        """Which of the two tables is in use, and which look-ups can find anything."""
        return codec.Active.decode(self.map("active").lookup(codec.ZERO) or b"")

    def state(self) -> State:
        """What is in force. Raises LayoutMismatch if another version wrote it."""
        name = f"{_STATE}{self.active().table}"
        stored = self.open(name)
        number = bpf_maps.object_id(stored.fd)
        if self._read is None or self._read[0] != number:
            self._read = number, self._decoded(name, stored)
        return self._read[1]

    def _decoded(self, name: str, stored: bpf_maps.Map) -> State:
        chunks = sorted(stored.items(16), key=lambda each: codec.number_of(each[0]))
        data = b"".join(value for _, value in chunks)
        length = int.from_bytes(data[:8], "little")
        try:
            return State.decode(data[8 : 8 + length])
        except (msgspec.DecodeError, LookupError, ValueError) as error:
            raise self.mismatch(name, str(error)) from None

    def fill(self, state: State, table: Table) -> codec.Active:
        """Write mappings into the table that is not in use; what ``switch`` is to be given.

        Raises MapFull, OSError.
        """
        number = 1 - self.active().table
        try:
            self._write_table(number, state.steered, table)
            self._write_state(number, state)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.E2BIG):
                raise MapFull(
                    f"{len(state.steered)} mappings: {os.strerror(error.errno)}"
                ) from None
            raise
        classes = 0
        for each in table.elements:
            protocol = PROTOCOL_NUMBERS[each.protocol]
            classes |= codec.class_bit(_CLASSES[each.port_class], each.prefix.family, protocol)
        return codec.Active(number, classes)

    def switch(self, active: codec.Active) -> None:
        """Put in force what was filled, with one word; what they lead to has to be there.

        The room of the mappings of before is free then, and nothing that is removed from
        now on is still looked for.
        """
        self.map("active").update(codec.ZERO, active.encode())
        old = 1 - active.table
        self.empty_table(old)
        unlink(f"{self.directory}/{_STATE}{old}")

    def empty_table(self, number: int, size: int = 1) -> bpf_maps.Map:
        """An empty one, once no packet reads the one before (maybe_wait_bpf_programs())."""
        spec = layout.INNER_MAPS["tables"]
        inner = bpf_maps.create_map((*spec[:3], size, spec[4]), "mappings")
        self.map("tables").update(codec.number_key(number), codec.number_key(inner.fd))
        return inner

    def _write_table(self, number: int, steered: Sequence[Steered], table: Table) -> None:
        inner = self.empty_table(number, max(1, len(table.elements)))
        of_mapping = [
            codec.Mapping(each.id, each.target, _flags(each.mapping)).encode() for each in steered
        ]
        keys = [
            codec.MappingKey(
                PROTOCOL_NUMBERS[each.protocol],
                each.prefix.family,
                _CLASSES[each.port_class],
                each.port,
                mapped_address(each.prefix.family, each.prefix.address),
                each.prefix.length,
            ).encode()
            for each in table.elements
        ]
        inner.update_many(keys, [of_mapping[each.number] for each in table.elements])
        for name, protocol in PROTOCOL_NUMBERS.items():
            ports = [0] * (1 << 16)
            for segment in table.segments:
                if segment.protocol == name:
                    count = segment.high - segment.low + 1
                    ports[segment.low : segment.high + 1] = [segment.number] * count
            self.map("segments").update_many(*codec.segment_elements(number, protocol, ports))

    def begin(self) -> None:
        """Steer nothing, in a directory that has no state yet."""
        for number in range(layout.TABLES):
            self.empty_table(number)
        self._write_state(self.active().table, State())

    def _write_state(self, number: int, state: State) -> None:
        encoded = state.encode()
        data = len(encoded).to_bytes(8, "little") + encoded
        count = -(-len(data) // _CHUNK)
        stored = bpf_maps.create_map((_ARRAY, 4, _CHUNK, count, 0), "state")
        for index in range(count):
            chunk = data[index * _CHUNK : (index + 1) * _CHUNK]
            stored.update(codec.number_key(index), chunk.ljust(_CHUNK, b"\0"))
        replace_pin(stored.fd, f"{self.directory}/{_STATE}{number}")

    # Targets

    def make_target(self, place: Place, number: int) -> None:
        """From now on what begins to listen on a target's address is taken. Raises MapFull."""
        self.clear_target(number)
        if isinstance(place.target, AddressTarget):
            try:
                self.map("target_ids").update(_address_of(place), codec.number_key(number))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.E2BIG):
                    raise MapFull(f"{place}: the table of targets is full") from None
                raise

    def remove_target(self, place: Place, number: int) -> None:
        """The opposite; its sockets are let go."""
        if isinstance(place.target, AddressTarget):
            self.map("target_ids").delete(_address_of(place))
        self.clear_target(number)

    def clear_target(self, number: int) -> None:
        """Let a target's sockets go."""
        self.map("targets").update(codec.number_key(number), codec.number_key(0))
        for slot in range(layout.TARGET_SOCKETS):
            self.map("sockets").delete(codec.socket_key(number, slot))

    def addressed(self) -> dict[bytes, int]:
        """The targets that are known by an address, as the map has it."""
        return {key: codec.number_of(value) for key, value in self.map("target_ids").items()}

    def forget_strangers(self, state: State) -> None:
        """Remove targets by address that are not of this state: a writer was killed."""
        own = {
            _address_of(place): number
            for place, number in state.places.items()
            if isinstance(place.target, AddressTarget)
        }
        for key, number in self.addressed().items():
            if own.get(key) != number:
                self.map("target_ids").delete(key)
                if number not in own.values():
                    self.clear_target(number)

    def sockets_of(self, target: int) -> list[int]:
        """The cookies of a target's sockets, the newest first."""
        taken = codec.number_of(self.map("targets").lookup(codec.number_key(target)) or bytes(4))
        values = (
            self.map("sockets").lookup(codec.socket_key(target, slot))
            for slot in codec.slots_newest_first(taken)
        )
        # Of one that was put in twice the newer place counts.
        return list(dict.fromkeys(codec.cookie_of(value) for value in values if value is not None))

    def take_slot(self, target: int) -> int:
        """A slot for a target's newest socket; the oldest one's, if it has all. Raises OSError."""
        result, answer = self._call("take_slot", codec.slot_request(target))
        assert result == 0, f"no target {target}"  # noqa: S101 - all of the array are there
        return codec.slot_of(answer)

    def _call(self, name: str, argument: bytes) -> tuple[int, bytes]:
        program = bpf_maps.open_pin(f"{self.directory}/program_{name}")
        try:
            return bpf_run.call(program, argument)
        finally:
            os.close(program)

    def put_socket(self, target: int, slot: int, held: socket) -> None:
        """Make a socket the one in a slot that was taken for it. Raises OSError."""
        self.map("sockets").update(codec.socket_key(target, slot), codec.cookie_key(held.fileno()))

    def listening(self, cookie: int) -> codec.Listener | None:
        """What is known of a socket that listens."""
        value = self.map("listening").lookup(codec.cookie_key(cookie))
        return None if value is None else codec.Listener.decode(value)

    def noted(self) -> set[int]:
        """The cookies of all sockets of which the kernel knows that they listen."""
        return {codec.cookie_of(key) for key, _ in self.map("listening").items()}

    def forget_listener(self, cookie: int) -> None:
        """A socket is gone, though nobody saw it go."""
        self._call("forget", codec.cookie_key(cookie))

    # Counters

    def counters(self) -> dict[int, codec.Counter]:
        """By the id of a mapping; one that was never looked up has none."""
        return {
            codec.number_of(key): codec.Counter.total(value)
            for key, value in self.map("counters").items()
        }

    def forget_counters(self, ids: Iterable[int]) -> None:
        """Remove those of mappings that are gone."""
        for each in ids:
            self.map("counters").delete(codec.number_key(each))

    def troubles(self) -> dict[str, int]:
        """What did not work, and how often."""
        return codec.trouble_counts([value for _, value in sorted(self.map("troubles").items())])


def _flags(mapping: Mapping) -> int:
    override = layout.OVERRIDE if mapping.is_override else 0
    return override | (layout.FALLTHROUGH if mapping.is_fallthrough else 0)


def _address_of(place: Place) -> bytes:
    assert isinstance(place.target, AddressTarget)  # noqa: S101 - the caller asked
    target = place.target
    return codec.Address(target.address, 0, target.port, PROTOCOL_NUMBERS[place.protocol]).encode()
