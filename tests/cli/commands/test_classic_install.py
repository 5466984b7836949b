# SPDX-License-Identifier: GPL-2.0-only
"""zfw classic install and remove, below a prefix: all of it laid out, and exactly that removed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import ZFW, captured
from zfw_py import Busy, Conflict, UsageError, __version__
from zfw_py.compat import contents, install, places
from zfw_py.compat.tree import Tree, changeable_by_others
from zfw_py.firewall.programs import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Zfw

MODES = {
    "opt/openziti/bin/zfw": 0o755,
    "opt/openziti/bin/zfw_monitor": 0o755,
    "opt/openziti/bin/zfw_tc_ingress.o": 0o644,
    "opt/openziti/bin/zfw_tc_outbound_track.o": 0o644,
    "opt/openziti/bin/start_ebpf_router.py": 0o744,
    "opt/openziti/bin/start_ebpf_tunnel.py": 0o744,
    "opt/openziti/bin/start_ebpf_controller.py": 0o744,
    "opt/openziti/bin/revert_ebpf_router.py": 0o744,
    "opt/openziti/bin/revert_ebpf_tunnel.py": 0o744,
    "opt/openziti/bin/revert_ebpf_controller.py": 0o744,
    "opt/openziti/bin/user/user_rules.sh.sample": 0o744,
    "opt/openziti/etc/ebpf_config.json.sample": 0o644,
    "opt/openziti/etc/zfw-classic.json": 0o600,
    "opt/openziti/etc/.zfw-classic.lock": 0o600,
    "etc/systemd/system/fw-init.service": 0o644,
    "etc/systemd/system/ziti-fw-init.service": 0o644,
    "etc/systemd/system/zfw-follow.service": 0o644,
    "etc/systemd/system/zfw-restore.service": 0o644,
    "etc/logrotate.d/zfwlogs": 0o644,
    "etc/cron.d/zfw_refresh": 0o644,
}
COUNT = len(MODES) - 2 + 2  # without manifest and lock, with the links


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.fixture
def laid_out(zfw: Zfw, root: Path) -> Path:
    assert zfw("classic", "install", "--prefix", str(root)).code == 0
    return root


def everything(root: Path) -> dict[str, bytes | str | None]:
    """Every path below a directory, with a file's content or a link's target."""
    return {
        str(path.relative_to(root)): (
            str(path.readlink())
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
        )
        for path in sorted(root.rglob("*"))
    }


def test_all_is_laid_out_with_its_modes(zfw: Zfw, root: Path) -> None:
    old_mask = os.umask(0o077)
    try:
        result = zfw("classic", "install", "--prefix", str(root))
    finally:
        os.umask(old_mask)
    assert (result.code, result.out) == (0, f"{COUNT} files installed, 0 up to date\n")
    paths = [path for path in root.rglob("*") if not path.is_symlink()]
    assert {
        str(path.relative_to(root)): path.stat().st_mode & 0o7777
        for path in paths
        if path.is_file()
    } == MODES
    assert {path.stat().st_mode & 0o7777 for path in paths if path.is_dir()} == {0o755}


def test_the_link_leads_to_the_command_wherever_the_tree_is(laid_out: Path) -> None:
    moved = laid_out.rename(laid_out.with_name("moved"))
    assert (moved / "usr/sbin/zfw").resolve() == moved / "opt/openziti/bin/zfw"


@pytest.mark.parametrize("path", ["usr/sbin/zfw", "opt/openziti/bin/zfw"])
def test_case_01_the_command_depends_on_nothing_around_it(laid_out: Path, path: str) -> None:
    stray = laid_out / "stray"
    stray.mkdir(mode=0o755)
    (stray / "zfw_py.py").write_text("raise SystemExit('a stranger was imported')\n")
    (stray / "sitecustomize.py").write_text("raise SystemExit('a stranger was imported')\n")
    environment = {"PYTHONPATH": str(stray), "PYTHONHOME": "/nonexistent", "VIRTUAL_ENV": "/x"}
    for env, cwd in (({}, "/"), (environment, stray)):
        done = captured(laid_out / path, "-V", env=env, cwd=cwd)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")
    assert captured(laid_out / path, "-Z", env={}).returncode == 64


def test_the_command_loads_no_more_than_the_environments_own(laid_out: Path) -> None:
    def modules(command: Path) -> set[str]:
        program = (
            "import posix, runpy, sys\n"
            "end = posix._exit\n"
            "posix._exit = lambda code: (print(*sys.modules, file=sys.stderr), end(code))\n"
            "sys.argv[1:] = ['-V']\n"
            f"runpy.run_path({str(command)!r}, run_name='__main__')\n"
        )
        interpreter = Path(contents.interpreter())
        return set(captured(interpreter, "-I", "-c", program).stderr.split())

    assert "zfw_py.entry" in modules(ZFW)
    assert modules(laid_out / "opt/openziti/bin/zfw") <= modules(ZFW)


def test_case_38_the_objects_that_callers_look_for_are_there(laid_out: Path) -> None:
    for name in ("zfw_tc_ingress.o", "zfw_tc_outbound_track.o"):
        assert (laid_out / "opt/openziti/bin" / name).read_bytes() == SYSTEM.object.read_bytes()
    assert not (laid_out / "opt/openziti/bin/zfw_xdp_tun_ingress.o").exists()


def test_case_46_the_sample_is_what_the_boot_programs_read(laid_out: Path) -> None:
    sample = json.loads((laid_out / "opt/openziti/etc/ebpf_config.json.sample").read_text())
    assert sample == {
        "InternalInterfaces": [
            {"Name": "eth0", "OutboundPassThroughTrack": True, "PerInterfaceRules": False}
        ],
        "ExternalInterfaces": [],
    }
    done = captured(Path("/bin/sh"), "-n", laid_out / "opt/openziti/bin/user/user_rules.sh.sample")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("unit", "program"), [("fw-init", "router"), ("ziti-fw-init", "tunnel")])
def test_case_50_units_start_programs_that_are_there(
    laid_out: Path, unit: str, program: str
) -> None:
    lines = (laid_out / f"etc/systemd/system/{unit}.service").read_text().splitlines()
    (start,) = [line for line in lines if line.startswith("ExecStart=")]
    path = start.removeprefix("ExecStart=")
    assert path == f"/opt/openziti/bin/start_ebpf_{program}.py"
    assert os.access(f"{laid_out}{path}", os.X_OK)
    assert {"Restart=on-failure", "TimeoutStartSec=60"} <= set(lines)
    assert not any(line.startswith("Type=") for line in lines)


def test_case_52_and_53_cron_refreshes_every_minute(laid_out: Path) -> None:
    jobs = [
        line
        for line in (laid_out / "etc/cron.d/zfw_refresh").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert jobs == [
        "* * * * * root /opt/openziti/bin/zfw -L -E >/dev/null 2>&1",
        "* * * * * root /opt/openziti/bin/zfw -L -G >/dev/null 2>&1",
    ]


@pytest.mark.parametrize("kind", ["router", "tunnel", "controller"])
@pytest.mark.parametrize("verb", ["start", "revert"])
def test_the_programs_explain_themselves(laid_out: Path, verb: str, kind: str) -> None:
    program = laid_out / f"opt/openziti/bin/{verb}_ebpf_{kind}.py"
    done = captured(program, "--help", env={})
    assert done.returncode == 0
    assert "Exit codes: 0 done;" in " ".join(done.stdout.split())
    done = captured(program, "--bad", env={})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("zfw: ")
    assert len(done.stderr.splitlines()) == 1


# Again, and away


def test_again_changes_nothing(zfw: Zfw, laid_out: Path) -> None:
    before = everything(laid_out)
    times = {path: path.lstat().st_mtime_ns for path in laid_out.rglob("zfw*.o")}
    result = zfw("classic", "install", "--prefix", str(laid_out))
    assert (result.code, result.out) == (0, f"0 files installed, {COUNT} up to date\n")
    assert everything(laid_out) == before
    assert {path: path.lstat().st_mtime_ns for path in laid_out.rglob("zfw*.o")} == times


def test_remove_takes_away_exactly_that(zfw: Zfw, root: Path) -> None:
    (root / "etc/cron.d").mkdir(parents=True)
    (root / "opt/openziti/etc").mkdir(parents=True)
    (root / "opt/openziti/etc/mine").write_text("mine\n")
    before = everything(root)
    assert zfw("classic", "install", "--prefix", str(root)).code == 0
    assert zfw("classic", "remove", "--prefix", str(root)) == (0, f"{COUNT} files removed\n", "")
    assert everything(root) == before
    result = zfw("classic", "remove", "--prefix", str(root))
    assert (result.code, result.out) == (5, "")
    assert "nothing is installed here" in result.err


def test_what_the_user_added_keeps_its_directory(zfw: Zfw, laid_out: Path) -> None:
    (laid_out / "opt/openziti/bin/user/user_rules.sh").write_text("#!/bin/sh\n")
    assert zfw("classic", "remove", "--prefix", str(laid_out)).code == 0
    assert list(everything(laid_out)) == [
        "opt",
        "opt/openziti",
        "opt/openziti/bin",
        "opt/openziti/bin/user",
        "opt/openziti/bin/user/user_rules.sh",
    ]


def test_what_the_user_changed_stays_and_is_told(
    zfw: Zfw, laid_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This checkout may belong to another user than root, of which install also warns.
    monkeypatch.setattr(install, "_warnings", list)
    changed = laid_out / "etc/cron.d/zfw_refresh"
    changed.write_text("# not every minute\n")
    warning = f"zfw: warning: {changed} was changed after it was installed; left unchanged\n"
    result = zfw("classic", "install", "--prefix", str(laid_out))
    assert result == (0, f"0 files installed, {COUNT - 1} up to date\n", warning)
    result = zfw("classic", "remove", "--prefix", str(laid_out))
    assert result == (0, f"{COUNT - 1} files removed\n", warning)
    assert [path for path, what in everything(laid_out).items() if what is not None] == [
        "etc/cron.d/zfw_refresh"
    ]
    assert changed.read_text() == "# not every minute\n"


def newer() -> list[contents.Entry]:
    """What a newer zfw lays out: one file has another text, one is new, one is gone."""
    first, *rest = [e for e in OLDER() if e.path != "/etc/logrotate.d/zfwlogs"]
    return [
        first._replace(content=first.content + b"# newer\n"),
        contents.Entry("/opt/openziti/share/new", b"new\n", 0o644),
        *rest,
    ]


OLDER = contents.entries


def test_an_upgrade_in_place(zfw: Zfw, laid_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = laid_out / "opt/openziti/bin/zfw"
    with command.open("rb") as running:
        before = running.read()
        monkeypatch.setattr(contents, "entries", newer)
        result = zfw("classic", "install", "--prefix", str(laid_out))
        assert result.code == 0
        assert result.out == f"2 files installed, {COUNT - 2} up to date\n"
        running.seek(0)
        assert running.read() == before, "one that runs is not written to"
    assert command.read_bytes() == before + b"# newer\n"
    assert (laid_out / "opt/openziti/share/new").read_text() == "new\n"
    assert not (laid_out / "etc/logrotate.d/zfwlogs").exists()
    assert zfw("classic", "remove", "--prefix", str(laid_out)).code == 0
    assert everything(laid_out) == {}


@pytest.mark.slow
@pytest.mark.parametrize("is_upgrade", [False, True], ids=["new", "upgrade"])
def test_killed_at_any_step_it_can_be_run_again_or_removed(
    tmp_path: Path, is_upgrade: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "_probe", lambda: None)
    # Not the machine goes down here but the process, a hundred times.
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    killed = 0
    while True:
        root = tmp_path / str(killed)
        root.mkdir()
        if is_upgrade:
            install.install(str(root))
            monkeypatch.setattr(contents, "entries", newer)
        was_killed = kill_after(killed, lambda root=root: install.install(str(root)))
        if killed % 2:
            install.install(str(root))
        if any(what is not None for what in everything(root).values()):
            install.remove(str(root))
        left = {path: what for path, what in everything(root).items() if what is not None}
        assert left == {}, f"killed at step {killed}"
        monkeypatch.setattr(contents, "entries", OLDER)
        if not was_killed:
            break
        killed += 1
    assert killed > (5 if is_upgrade else 40)


def kill_after(steps: int, act: Callable[[], object]) -> bool:
    """Do it in a process that is killed before its step of this number; whether it was."""
    child = os.fork()
    if child == 0:
        left = steps

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def step(*arguments: object, **options: object) -> object:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return call(*arguments, **options)

            return step

        try:
            for name in ("mkdir", "rename", "link", "symlink", "unlink", "rmdir", "fchmod"):
                setattr(os, name, counted(getattr(os, name)))
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


# What is in the way


def test_a_file_of_others_is_never_replaced(zfw: Zfw, root: Path) -> None:
    (root / "usr/sbin").mkdir(parents=True)
    (root / "usr/sbin/zfw").write_text("another zfw\n")
    (root / "etc/systemd/system/fw-init.service").mkdir(parents=True)
    before = everything(root)
    result = zfw("classic", "install", "--prefix", str(root))
    assert (result.code, result.out) == (6, "")
    assert result.err == (
        "zfw: files that zfw did not install are in the way:"
        f" {root}/etc/systemd/system/fw-init.service, {root}/usr/sbin/zfw\n"
        "hint: remove the package that they belong to, or move them away\n"
    )
    assert everything(root) == before


def test_a_file_of_others_that_comes_at_the_last_moment_is_not_replaced(root: Path) -> None:
    tree = Tree(str(root))
    (root / "file").write_text("theirs\n")
    with pytest.raises(Conflict):
        tree.write("/file", b"ours\n", 0o644, is_new=True)
    with pytest.raises(Conflict):
        tree.link("/file", "elsewhere", is_new=True)
    assert everything(root) == {"file": b"theirs\n"}


@pytest.mark.parametrize("place", ["opt", "opt/openziti", "opt/openziti/bin", "usr/sbin", "etc"])
def test_a_link_on_the_way_is_not_followed(zfw: Zfw, root: Path, place: str) -> None:
    victim = root.with_name("victim")
    victim.mkdir()
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).symlink_to(victim)
    before = everything(root)
    result = zfw("classic", "install", "--prefix", str(root))
    assert (result.code, result.out) == (6, "")
    assert result.err == f"zfw: {root}/{place}: is a symbolic link, which zfw does not follow\n"
    assert everything(victim) == {}
    assert everything(root) == before


@pytest.mark.parametrize("is_dangling", [False, True])
@pytest.mark.parametrize(
    "name", ["opt/openziti/bin/zfw", "opt/openziti/etc/zfw-classic.json", "usr/sbin/zfw"]
)
def test_a_link_in_place_of_a_file_is_not_followed(
    zfw: Zfw, root: Path, name: str, is_dangling: bool
) -> None:
    victim = root.with_name("victim")
    if not is_dangling:
        victim.write_text("theirs\n")
    (root / name).parent.mkdir(parents=True)
    (root / name).symlink_to(victim)
    before = everything(root)
    assert zfw("classic", "install", "--prefix", str(root)).code == 6
    assert everything(root) == before
    assert victim.exists() != is_dangling
    assert is_dangling or victim.read_text() == "theirs\n"


def test_the_machines_own_links_are_followed_if_only_root_can_change_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, whose links they are")
    monkeypatch.setattr(Tree, "is_machine", True)
    tree = Tree(str(root))
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    tree.write("/link/file", b"x\n", 0o644, is_new=True)
    assert (root / "real/file").read_text() == "x\n"
    os.chown(root / "link", 65534, 65534, follow_symlinks=False)
    with pytest.raises(Conflict, match="is a symbolic link, which zfw does not follow"):
        tree.read("/link/file", 10)
    os.chown(root / "link", 0, 0, follow_symlinks=False)
    root.chmod(0o1777)
    with pytest.raises(Conflict, match="is a symbolic link, which zfw does not follow"):
        tree.read("/link/file", 10)


def test_a_pipe_or_a_large_file_does_not_hold_us_up(root: Path) -> None:
    tree = Tree(str(root))
    os.mkfifo(root / "pipe")
    with pytest.raises(Conflict, match="is not a regular file"):
        tree.read("/pipe", 10)
    (root / "large").write_bytes(b"x" * 11)
    with pytest.raises(UsageError, match="larger than 10 bytes"):
        tree.read("/large", 10)


def test_a_link_in_place_of_a_temporary_file_is_not_followed(zfw: Zfw, root: Path) -> None:
    victim = root.with_name("victim")
    victim.write_text("theirs\n")
    (root / "opt/openziti/bin").mkdir(parents=True)
    (root / "opt/openziti/bin/.zfw.zfw-new").symlink_to(victim)
    assert zfw("classic", "install", "--prefix", str(root)).code == 0
    assert victim.read_text() == "theirs\n"
    assert victim.stat().st_mode & 0o111 == 0
    assert not (root / "opt/openziti/bin/zfw").is_symlink()


def test_a_link_put_in_place_of_what_was_laid_out_is_not_followed(zfw: Zfw, laid_out: Path) -> None:
    victim = laid_out.with_name("victim")
    victim.mkdir()
    (victim / "zfw_refresh").write_bytes((laid_out / "etc/cron.d/zfw_refresh").read_bytes())
    (laid_out / "etc/cron.d").rename(laid_out / "etc/moved")
    (laid_out / "etc/cron.d").symlink_to(victim)
    before = everything(laid_out)
    for action in ("install", "remove"):
        result = zfw("classic", action, "--prefix", str(laid_out))
        assert result.code == 6
        assert "is a symbolic link, which zfw does not follow" in result.err
        assert (victim / "zfw_refresh").exists()
        if action == "install":
            assert everything(laid_out) == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": 2}',
        '{"version": 1, "files": {"/../etc/passwd": ["x"]}, "directories": []}',
        '{"version": 1, "files": {"etc/passwd": ["x"]}, "directories": []}',
        '{"version": 1, "files": {"/etc/passwd": "x"}, "directories": []}',
        '{"version": 1, "files": {}, "directories": ["/a/./b"]}',
        "[" * 100_000,
    ],
)
def test_a_manifest_that_is_damaged_is_not_believed(zfw: Zfw, laid_out: Path, text: str) -> None:
    (laid_out / "opt/openziti/etc/zfw-classic.json").write_text(text)
    before = everything(laid_out)
    for action in ("install", "remove"):
        result = zfw("classic", action, "--prefix", str(laid_out))
        assert (result.code, result.out) == (6, "")
        assert result.err.startswith(f"zfw: {laid_out}/opt/openziti/etc/zfw-classic.json: ")
        assert everything(laid_out) == before


def test_only_one_at_a_time(zfw: Zfw, laid_out: Path) -> None:
    tree = Tree(str(laid_out))
    before = everything(laid_out)
    with tree.locked(install._LOCK):
        for action in ("install", "remove"):
            result = zfw("classic", action, "--prefix", str(laid_out))
            assert (result.code, result.out) == (Busy.exit_code, "")
            assert result.err.endswith(": another zfw process holds the lock\n")
    assert everything(laid_out) == before


def test_a_prefix_is_made_if_it_is_missing(zfw: Zfw, tmp_path: Path) -> None:
    missing = tmp_path / "image" / "root"
    assert zfw("classic", "install", "--prefix", str(missing)).code == 0
    assert missing.stat().st_mode & 0o777 == 0o755
    assert any(path.is_file() for path in missing.rglob("zfw"))


def test_a_prefix_that_is_no_directory(zfw: Zfw, tmp_path: Path) -> None:
    missing, file = tmp_path / "missing", tmp_path / "file"
    file.touch()
    result = zfw("classic", "remove", "--prefix", str(missing))
    assert result == (5, "", f"zfw: --prefix: no such directory: {missing}\n")
    result = zfw("classic", "install", "--prefix", str(file))
    assert result == (2, "", f"zfw: --prefix: {file}: File exists\n")
    result = zfw("classic", "remove", "--prefix", str(file))
    assert result == (2, "", f"zfw: --prefix: {file}: Not a directory\n")
    assert zfw("classic", "upgrade").code == 2
    assert not missing.exists()


@pytest.mark.kernel
def test_without_the_right_to_write_nothing_is_laid_out(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    for directory in (*root.parents, root):
        if str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    assert os.access(ZFW, os.X_OK), "scripts/setup installs it"
    done = captured(ZFW, "classic", "install", "--prefix", str(root), user=65534, group=65534)
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr == f"zfw: change {root}/opt: Permission denied\n"


def test_an_interpreter_that_no_first_line_can_name_is_refused(
    zfw: Zfw, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/opt/my python/bin/python")
    result = zfw("classic", "install", "--prefix", str(root))
    assert (result.code, result.out) == (1, "")
    assert "'/opt/my python/bin/python'" in result.err
    assert everything(root) == {}


def test_an_interpreter_without_this_package_is_refused(
    zfw: Zfw, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/usr/bin/python3")
    result = zfw("classic", "install", "--prefix", str(root))
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("zfw: /usr/bin/python3 -I does not run this zfw\n")
    assert everything(root) == {}


def test_what_others_can_change_is_found(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, whose files they are")
    for directory in (*tmp_path.parents, tmp_path):
        if directory.stat().st_mode & 0o022 and not directory.stat().st_mode & 0o1000:
            pytest.skip(f"others can change {directory}")
    file = tmp_path / "file"
    file.touch(mode=0o644)
    assert changeable_by_others(str(file)) is None
    os.chown(tmp_path, 65534, 0)
    assert changeable_by_others(str(file)) == str(tmp_path)
    os.chown(tmp_path, 0, 0)
    file.chmod(0o646)
    assert changeable_by_others(str(file)) == str(file)


def test_removal_tells_of_what_a_boot_program_left(zfw: Zfw, laid_out: Path) -> None:
    drop_in = Path(f"{laid_out}{places.ROUTER_DROP_IN}")
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\n")
    result = zfw("classic", "remove", "--prefix", str(laid_out))
    assert result.code == 0
    assert result.err == (
        f"zfw: warning: {drop_in} stays: a boot program created it,"
        " and only its revert program removes it\n"
    )


def test_there_is_no_monitor_yet_and_it_says_so(laid_out: Path) -> None:
    monitor = laid_out / "usr/sbin/zfw_monitor"
    done = captured(monitor, "-i", "all", "-W", "/var/log/zfw.log")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "zfw: -M, --monitor: not in this version of zfw\n"


@pytest.mark.parametrize(
    ("program", "code", "out"),
    [
        (
            "from zfw_py.cli.boot import main; main('start', 'router')",
            0,
            "usage: start_ebpf_router",
        ),
        ("from zfw_py.cli.classic_run import run; import sys; sys.exit(run(['-V']))", 0, "0.1.0"),
    ],
)
def test_programs_that_an_older_zfw_installed_still_run(program: str, code: int, out: str) -> None:
    """They import zfw by these names; a new package is there before zfw classic install."""
    done = captured(contents.interpreter(), "-c", program, "--help")
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith(out)


def test_the_unit_that_restores_is_there_and_not_enabled(laid_out: Path) -> None:
    unit = (laid_out / "etc/systemd/system/zfw-restore.service").read_text()
    restore = "zfw restore --wait 10 --allow-absent /etc/zfw/zfw.toml"
    assert f"ExecStart=/opt/openziti/bin/{restore}\n" in unit
    assert "ConditionPathExists=/etc/zfw/zfw.toml\n" in unit
    assert "Before=network-pre.target" in unit
    assert not (laid_out / "etc/systemd/system/sysinit.target.wants").exists()


def test_the_units_of_the_boot_programs_start_the_follower(laid_out: Path) -> None:
    units = laid_out / "etc/systemd/system"
    follow = (units / "zfw-follow.service").read_text()
    assert "ExecStart=/opt/openziti/bin/zfw follow\n" in follow
    for name in ("fw-init", "ziti-fw-init"):
        lines = (units / f"{name}.service").read_text().splitlines()
        assert "Wants=network.target zfw-follow.service" in lines
