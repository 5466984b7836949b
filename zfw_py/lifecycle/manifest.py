# SPDX-License-Identifier: GPL-2.0-only
"""What an instance says of itself: a document, pinned as JSON in a map of its size.

It is pinned before what it names is made, and unpinned last, so that a process that finds
an unfinished instance knows what to remove. A change is a new map in the old one's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from zfw_py.kernel import bpf_maps
from zfw_py.lifecycle.store import MANIFEST, replace_pin

if TYPE_CHECKING:
    from zfw_py.lifecycle.store import Pins

_ARRAY = 2  # BPF_MAP_TYPE_ARRAY
_ZERO = bytes(4)

_Manifest = TypeVar("_Manifest", bound=msgspec.Struct)


def write(directory: str, manifest: msgspec.Struct) -> None:
    """Pin a manifest, in the place of an earlier one. Raises OSError."""
    data = msgspec.json.encode(manifest)
    made = bpf_maps.create_map((_ARRAY, len(_ZERO), len(data), 1, 0), MANIFEST)
    made.update(_ZERO, data)
    replace_pin(made.fd, f"{directory}/{MANIFEST}")


def read(pins: Pins, kind: type[_Manifest]) -> _Manifest:
    """The manifest of an instance. Raises NotFound, LayoutMismatch, PermissionDenied."""
    opened = pins.open(MANIFEST)
    if (opened.type, opened.key_size) != (_ARRAY, len(_ZERO)):
        raise pins.mismatch(MANIFEST, f"{opened.spec}")
    try:
        return msgspec.json.decode(opened.lookup(_ZERO) or b"", type=kind)
    except msgspec.DecodeError as error:
        raise pins.mismatch(MANIFEST, str(error)) from None
