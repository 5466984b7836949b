# SPDX-License-Identifier: GPL-2.0-only
"""Lay out what callers of the replaced command expect, and take away exactly that.

A manifest says what is ours, by SHA-256. It is written before the first file and
has old and new hashes then: whenever a run is killed, the next one, or a removal,
still tells our files from those of others.
"""

from __future__ import annotations

import json
from hashlib import sha256
from stat import S_IMODE
from typing import TYPE_CHECKING, Any, NamedTuple

from zfw_py import __version__
from zfw_py.compat import contents, places
from zfw_py.compat.tree import Tree, changeable_by_others
from zfw_py.errors import Conflict, NotFound, ZfwError
from zfw_py.kernel import subprocesses

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfw_py.compat.contents import Entry

MANIFEST = "/opt/openziti/etc/zfw-classic.json"
_LOCK = "/opt/openziti/etc/.zfw-classic.lock"
_VERSION = 1
_MAX_MANIFEST_BYTES = 256 * 1024
_MAX_FILE_BYTES = 16 * 1024 * 1024
_PROBE_TIMEOUT = 60.0  # seconds


class Manifest(NamedTuple):
    """By path the hashes that are ours, of a link those of its target; directories in order."""

    hashes: dict[str, list[str]]
    directories: list[str]

    def encode(self) -> bytes:
        """As the file has it."""
        document = {
            "version": _VERSION,
            "zfw": __version__,
            "files": self.hashes,
            "directories": self.directories,
        }
        return (json.dumps(document, indent=1) + "\n").encode()


class Outcome(NamedTuple):
    """What was made, replaced or removed; what was found right; what somebody changed and stays."""

    done: list[str]
    unchanged: list[str]
    kept: list[str]
    warnings: list[str]


def install(prefix: str) -> Outcome:
    """Lay everything out below a prefix, or bring it up to date.

    Raises Conflict, with nothing changed, where a file that is not ours is in
    the way. One of ours that was changed since is left as it is.
    """
    tree = Tree(prefix)
    wanted = contents.entries()
    _probe()
    # Once without the lock, whose file would be a change itself.
    _check(tree, wanted, _read_manifest(tree))
    directories = _make_directories(tree, [MANIFEST])
    with tree.locked(_LOCK):
        old = _read_manifest(tree)
        kept = _check(tree, wanted, old)
        known = list(dict.fromkeys([*(old.directories if old else []), *directories]))
        known += [d for d in _directories(tree, wanted) if d not in known and not tree.exists(d)]
        _write_manifest(tree, _merged(old, wanted, kept), known)
        _make_directories(tree, [entry.path for entry in wanted])
        done, unchanged = [], []
        for entry in wanted:
            if entry.path in kept:
                continue
            found = _hash_of(tree, entry.path)
            if found == _hash(entry) and _has_mode(tree, entry):
                unchanged.append(tree.absolute(entry.path))
                continue
            if entry.target is None:
                tree.write(entry.path, entry.content, entry.mode, is_new=found is None)
            else:
                tree.link(entry.path, entry.target, is_new=found is None)
            done.append(tree.absolute(entry.path))
        gone = set(old.hashes if old else ()) - {entry.path for entry in wanted}
        for path in sorted(gone):
            found = _hash_of(tree, path)
            if found in _hashes(old, path):
                tree.remove(path)
            elif found is not None:
                kept.append(path)
        final = {e.path: _hashes(old, e.path) if e.path in kept else [_hash(e)] for e in wanted}
        _write_manifest(tree, final, known)
    return Outcome(done, unchanged, [tree.absolute(path) for path in kept], _warnings())


def remove(prefix: str) -> Outcome:
    """Take away what ``install`` laid out; what was changed since stays. Raises NotFound."""
    tree = Tree(prefix)
    # One that was killed before it wrote the manifest leaves no more than the lock.
    if _read_manifest(tree) is None and not tree.exists(_LOCK):
        raise NotFound(f"{tree.absolute(MANIFEST)}: nothing was laid out here")
    done, kept = [], []
    with tree.locked(_LOCK):
        old = _read_manifest(tree) or Manifest({}, [])
        # The command last: until then the programs that call it find it.
        for path in sorted(old.hashes, key=lambda path: path == places.ZFW):
            found = _hash_of(tree, path)
            if found is not None and found not in old.hashes[path]:
                kept.append(tree.absolute(path))
            elif tree.remove(path):
                done.append(tree.absolute(path))
        ours = sorted(old.directories, key=len, reverse=True)
        for directory in ours:
            tree.remove_directory(directory)
        tree.remove(MANIFEST)
        tree.remove(_LOCK)
    for directory in ours:
        tree.remove_directory(directory)
    warnings = [
        f"{tree.absolute(drop_in)} is still there: it was made by a boot program,"
        " and its revert program would have removed it"
        for drop_in in (places.ROUTER_DROP_IN, places.CONTROLLER_DROP_IN)
        if tree.exists(drop_in)
    ]
    return Outcome(done, [], kept, warnings)


def _check(tree: Tree, wanted: Iterable[Entry], old: Manifest | None) -> list[str]:
    """The files of ours that were changed since. Raises Conflict for files that never were ours."""
    kept, foreign = [], []
    for entry in wanted:
        found = _hash_of(tree, entry.path)
        if found is None:
            continue
        ours = _hashes(old, entry.path)
        if not ours:
            foreign.append(tree.absolute(entry.path))
        elif found not in ours:
            kept.append(entry.path)
    if foreign:
        raise Conflict(
            f"not made by zfw, and in the way: {', '.join(foreign)}",
            hint="remove the package that they belong to, or move them away",
        )
    return kept


def _hashes(manifest: Manifest | None, path: str) -> list[str]:
    return manifest.hashes.get(path, []) if manifest else []


def _merged(old: Manifest | None, wanted: list[Entry], kept: list[str]) -> dict[str, list[str]]:
    """The hashes that are ours while files are being replaced."""
    merged = {path: list(hashes) for path, hashes in (old.hashes if old else {}).items()}
    for entry in wanted:
        if entry.path not in kept:
            ours = merged.setdefault(entry.path, [])
            if _hash(entry) not in ours:
                ours.append(_hash(entry))
    return merged


def _hash(entry: Entry) -> str:
    if entry.target is not None:
        return "link:" + entry.target
    return sha256(entry.content).hexdigest()


def _hash_of(tree: Tree, path: str) -> str | None:
    """A file's hash, a link's target, "other" for what is neither; None if nothing is there."""
    target = tree.link_target(path)
    if target is not None:
        return "link:" + target
    try:
        content = tree.read(path, _MAX_FILE_BYTES)
    except ZfwError:
        if tree.exists(path):
            return "other"
        raise
    return None if content is None else sha256(content).hexdigest()


def _has_mode(tree: Tree, entry: Entry) -> bool:
    status = tree.status(entry.path)
    return entry.target is not None or (
        status is not None and S_IMODE(status.st_mode) == entry.mode
    )


def _directories(tree: Tree, wanted: Iterable[Entry]) -> list[str]:
    return list(dict.fromkeys(d for entry in wanted for d in _above(entry.path)))


def _above(path: str) -> list[str]:
    """The directories that a path is in, the outermost first."""
    parts = path.strip("/").split("/")[:-1]
    return ["/" + "/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _make_directories(tree: Tree, paths: Iterable[str]) -> list[str]:
    """Make what is missing above these paths; what was made."""
    wanted = dict.fromkeys(directory for path in paths for directory in _above(path))
    return [directory for directory in wanted if tree.make_directory(directory)]


def _write_manifest(tree: Tree, hashes: dict[str, list[str]], directories: list[str]) -> None:
    content = Manifest(hashes, directories).encode()
    tree.write(MANIFEST, content, 0o600, is_new=False)


def _read_manifest(tree: Tree) -> Manifest | None:
    """The manifest, read strictly: whatever it names may be removed."""
    content = tree.read(MANIFEST, _MAX_MANIFEST_BYTES)
    if content is None:
        return None
    name = tree.absolute(MANIFEST)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Conflict(f"{name}: no manifest of ours: {error}") from None
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise Conflict(f"{name}: not a manifest of version {_VERSION}")
    hashes, directories = document.get("files"), document.get("directories")
    if (
        not isinstance(hashes, dict)
        or not isinstance(directories, list)
        or not all(_is_path(path) for path in [*hashes, *directories])
        or not all(_is_texts(value) for value in hashes.values())
    ):
        raise Conflict(f"{name}: damaged")
    return Manifest(hashes, directories)


def _is_path(value: Any) -> bool:
    return (
        isinstance(value, str)
        and value.startswith("/")
        and "\0" not in value
        and not {"", ".", ".."} & set(value[1:].split("/"))
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _probe() -> None:
    """Whether the interpreter, isolated as the programs run it, finds this very package."""
    import zfw_py

    path = contents.interpreter()
    code = (
        "import sys, importlib.util; found = importlib.util.find_spec('zfw_py');"
        " sys.exit(found is None or found.origin != sys.argv[1])"
    )
    if subprocesses.run(path, "-I", "-c", code, str(zfw_py.__file__), timeout=_PROBE_TIMEOUT):
        raise ZfwError(
            f"{path} -I does not run this zfw",
            hint="install it with pip: what runs from a source tree cannot be laid out",
        )


def _warnings() -> list[str]:
    import zfw_py

    found = {changeable_by_others(path) for path in (contents.interpreter(), zfw_py.__file__ or "")}
    return [
        f"others than root can change {path}, from which root's programs will run"
        for path in sorted(filter(None, found))
    ]
