# SPDX-License-Identifier: GPL-2.0-only
"""Install the files that callers of the classic zfw expect, and remove exactly those.

A manifest has the SHA-256 of each installed file. It is written before the first file changes,
with old and new hashes: after a run that was killed, the next one and a removal still recognize
the files of zfw.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from stat import S_IMODE
from typing import TYPE_CHECKING, Any, NamedTuple

from zfw_py.compat import contents, places
from zfw_py.compat.tree import Tree, changeable_by_others
from zfw_py.errors import Conflict, NotFound, UsageError, ZfwError
from zfw_py.kernel import subprocesses
from zfw_py.version import __version__

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
    """The hashes of our files by path, of links those of the target; directories in order."""

    hashes: dict[str, list[str]]
    directories: list[str]

    def encode(self) -> bytes:
        """The bytes of the file."""
        document = {
            "version": _VERSION,
            "zfw": __version__,
            "files": self.hashes,
            "directories": self.directories,
        }
        return (json.dumps(document, indent=1) + "\n").encode()


class Outcome(NamedTuple):
    """Paths that changed, that were up to date, and that were left because they were edited."""

    done: list[str]
    unchanged: list[str]
    kept: list[str]
    warnings: list[str]


def install(prefix: str) -> Outcome:
    """Install everything below a prefix, which is made if it is missing, or update it.

    Raises Conflict, with nothing changed, if another file is in the way. An installed file
    that was edited since is left unchanged.
    """
    wanted = contents.entries()
    _probe()
    try:
        Path(prefix).mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--prefix: {prefix}: {error.strerror}") from None
    tree = Tree(prefix)
    # Check without the lock first: its file would be a change already.
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
    """Remove the files of ``install``, except those edited since. Raises NotFound."""
    tree = Tree(prefix)
    # An install that was killed before it wrote the manifest left only the lock file.
    if _read_manifest(tree) is None and not tree.exists(_LOCK):
        raise NotFound(f"{tree.absolute(MANIFEST)}: nothing is installed here")
    done, kept = [], []
    with tree.locked(_LOCK):
        old = _read_manifest(tree) or Manifest({}, [])
        # The command last: until then, programs that call it find it.
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
        f"{tree.absolute(drop_in)} stays: a boot program created it,"
        " and only its revert program removes it"
        for drop_in in (places.ROUTER_DROP_IN, places.CONTROLLER_DROP_IN)
        if tree.exists(drop_in)
    ]
    return Outcome(done, [], kept, warnings)


def _check(tree: Tree, wanted: Iterable[Entry], old: Manifest | None) -> list[str]:
    """Return installed files that were edited since. Raises Conflict for any other file."""
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
            f"files that zfw did not install are in the way: {', '.join(foreign)}",
            hint="remove the package that they belong to, or move them away",
        )
    return kept


def _hashes(manifest: Manifest | None, path: str) -> list[str]:
    return manifest.hashes.get(path, []) if manifest else []


def _merged(old: Manifest | None, wanted: list[Entry], kept: list[str]) -> dict[str, list[str]]:
    """The hashes of our files while they are being replaced: old and new."""
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
    """A file's hash, a link's target, or "other"; None if the path does not exist."""
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
    """The directories above a path, the outermost first."""
    parts = path.strip("/").split("/")[:-1]
    return ["/" + "/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _make_directories(tree: Tree, paths: Iterable[str]) -> list[str]:
    """Make the missing directories above these paths, and return them."""
    wanted = dict.fromkeys(directory for path in paths for directory in _above(path))
    return [directory for directory in wanted if tree.make_directory(directory)]


def _write_manifest(tree: Tree, hashes: dict[str, list[str]], directories: list[str]) -> None:
    content = Manifest(hashes, directories).encode()
    tree.write(MANIFEST, content, 0o600, is_new=False)


def _read_manifest(tree: Tree) -> Manifest | None:
    """Read the manifest, strictly: a removal deletes the paths in it."""
    content = tree.read(MANIFEST, _MAX_MANIFEST_BYTES)
    if content is None:
        return None
    name = tree.absolute(MANIFEST)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Conflict(f"{name}: not a manifest of zfw: {error}") from None
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
    """Check that the interpreter, isolated as in the programs, finds this package."""
    import zfw_py

    path = contents.interpreter()
    code = (
        "import sys, importlib.util; found = importlib.util.find_spec('zfw_py');"
        " sys.exit(found is None or found.origin != sys.argv[1])"
    )
    if subprocesses.run(path, "-I", "-c", code, str(zfw_py.__file__), timeout=_PROBE_TIMEOUT):
        raise ZfwError(
            f"{path} -I does not run this zfw",
            hint="install zfw with pip: the programs cannot run from a source tree",
        )


def _warnings() -> list[str]:
    import zfw_py

    found = {changeable_by_others(path) for path in (contents.interpreter(), zfw_py.__file__ or "")}
    return [
        f"users other than root can change {path}, which root's programs will run"
        for path in sorted(filter(None, found))
    ]
