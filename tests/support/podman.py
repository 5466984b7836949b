# SPDX-License-Identifier: GPL-2.0-only
"""A real container engine: Debian's podman, with an image of the machine's own files.

All its state is in a directory of the test run; it downloads nothing.
A container has the machine's ``/usr``, read-only, so that every program of the
machine can run in it: ``/usr/bin/python3``, ``dig``, ``curl``.

The configuration, and why:

- runc: where cgroups of both versions are mounted, crun 1.8 refuses ("cgroups in hybrid mode
  not supported"). runc puts the container into the same place in each hierarchy, and does not
  raise the limit of locked memory, as crun does.
- limits below those of the test run: podman asks for a million descriptors by default, and to
  raise a limit takes CAP_SYS_RESOURCE, which root in a container does not have.
- the cgroupfs manager, since systemd may not run; vfs, since the directory may be on an overlay;
  lock files, since podman's locks in shared memory belong to the whole machine.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tarfile
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.support.cgroups import cgroup_of, enter, private_cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "machine"
# Seconds; the machine may be busy.
PATIENCE = 60.0

CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
pids_limit = 0
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[network]
network_config_dir = "{directory}/networks"
"""
# The state of CNI's plugins, which podman 4 may use.
_CNI_STATE = Path("/var/lib/cni")

_numbers = itertools.count(1)


def missing() -> str | None:
    """Why podman cannot be used here, or None."""
    absent = [name for name in ("podman", "runc", "conmon") if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (scripts/setup test installs what there is)"
    return None


class Running(NamedTuple):
    """A running container."""

    name: str
    id: str
    pid: int
    cgroup: Path  # its directory in cgroup2


class Podman:
    """An engine, and its Docker API at ``socket``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = _socket(directory)
        self.cgroup_parent = _cgroup_parent(directory)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run podman(1) and return its output as text."""
        return _podman(self.directory, *arguments, check=check)

    @contextmanager
    def container(
        self,
        *command: str,
        name: str = "",
        network: str = "none",
        options: tuple[str, ...] = (),
    ) -> Iterator[Running]:
        """A running container, for the length of a with block.

        ``network`` is ``none``: a new network namespace with only ``lo``; ``ns:PATH``: an existing
        one; ``host``: the caller's; or a name that ``network()`` yields.
        ``options`` are more of ``podman run``: ``("-v", f"{file}:/etc/resolv.conf:ro")``.
        """
        name = name or f"test{next(_numbers)}"
        started = (
            *("run", "--detach", "--name", name, "--network", network),
            *("--volume", "/usr:/usr:ro", "--cgroup-parent", self.cgroup_parent),
            *(*options, IMAGE, *command),
        )
        try:
            identifier = self.run(*started).stdout.strip()
            shown = self.run("inspect", "--format", "{{.State.Pid}}", identifier).stdout
            pid = int(shown)
            assert pid > 0, self.run("logs", identifier, check=False)
            yield Running(name, identifier, pid, cgroup_of(pid))
        finally:
            # Also if the container was created only in part.
            self.run("rm", "--force", "--ignore", "--time", "0", name)

    @contextmanager
    def network(self) -> Iterator[str]:
        """A bridge of the engine in the caller's network namespace; yields its name."""
        name = f"zfw-test-{os.getpid()}-{next(_numbers)}"
        try:
            self.run("network", "create", "--disable-dns", name)
            yield name
        finally:
            self.run("network", "rm", "--force", name, check=False)
            shutil.rmtree(_CNI_STATE / "networks" / name, ignore_errors=True)
            for place in (_CNI_STATE / "networks", _CNI_STATE / "results", _CNI_STATE):
                with suppress(OSError):
                    place.rmdir()  # unless it has other files


@contextmanager
def podman(directory: Path) -> Iterator[Podman]:
    """An engine with its state in an empty directory, for the length of a with block."""
    (directory / "containers.conf").write_text(CONFIGURATION.format(directory=directory))
    image = directory / "image.tar"
    _write_image(image)
    _podman(directory, "import", "--quiet", str(image), IMAGE)
    command = _command(directory, "system", "service", "--time=0", f"unix://{_socket(directory)}")
    # In a new cgroup: podman in the root cgroup moves all processes out of that.
    with private_cgroup() as cgroup, (directory / "service.log").open("w") as log:
        service = subprocess.Popen(
            command,
            env=_environment(directory),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=partial(enter, cgroup),
        )
        try:
            _wait_for(_socket(directory), service)
            yield Podman(directory)
        finally:
            service.terminate()
            service.wait()
            _podman(directory, "rm", "--all", "--force", "--time", "0")
            _remove_cgroups(_cgroup_parent(directory))


def _socket(directory: Path) -> Path:
    return directory / "engine.sock"


def _cgroup_parent(directory: Path) -> str:
    return f"/zfw-test-podman-{os.getpid()}-{directory.name}"


def _environment(directory: Path) -> dict[str, str]:
    ours = {"CONTAINERS_CONF": str(directory / "containers.conf"), "HOME": str(directory)}
    others = ("CONTAINER", "DOCKER", "XDG_", "NOTIFY_SOCKET", "LISTEN_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return kept | ours


def _command(directory: Path, *arguments: str) -> list[str]:
    state = {"--root": "storage", "--runroot": "run", "--tmpdir": "tmp"}
    options = [word for option, name in state.items() for word in (option, str(directory / name))]
    return ["podman", *options, "--storage-driver", "vfs", *arguments]


def _podman(
    directory: Path, *arguments: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    # Not pipes: conmon inherits them, and outlives the command.
    with (
        (directory / "output").open("w+") as output,
        (directory / "errors").open("w+") as errors,
    ):
        done = subprocess.run(
            _command(directory, *arguments),
            env=_environment(directory),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        for file in (output, errors):
            file.seek(0)
        done.stdout, done.stderr = output.read(), errors.read()
    if check and done.returncode != 0:
        raise AssertionError(f"podman {' '.join(arguments)}: {done.returncode}: {done.stderr}")
    return done


def _write_image(path: Path) -> None:
    """Write the directories of a system whose files are all in /usr, and the links to /usr."""
    with tarfile.open(path, "w") as image:
        for name in ("usr", "etc", "proc", "sys", "dev", "run", "root", "tmp", "var", "var/tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            image.addfile(entry)
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if Path("/", name).is_symlink():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
                image.addfile(entry)


def _wait_for(path: Path, service: subprocess.Popen[bytes]) -> None:
    """Wait until the engine listens on its socket."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
                return
            except (FileNotFoundError, ConnectionRefusedError):
                log = path.with_name("service.log").read_text()
                assert service.poll() is None, log
                assert time.monotonic() < deadline, log
        time.sleep(0.01)


def _remove_cgroups(parent: str) -> None:
    """Remove the parent of the containers' cgroups, which podman leaves in each hierarchy."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    tops = [Path(fields[1] + parent) for fields in mounts if fields[2].startswith("cgroup")]
    deadline = time.monotonic() + PATIENCE
    for top in tops:
        while top.exists():
            try:
                for place, _, _ in os.walk(top, topdown=False):
                    Path(place).rmdir()
            except OSError:
                # conmon ends after its container.
                assert time.monotonic() < deadline, f"still in use: {top}"
                time.sleep(0.01)
