# SPDX-License-Identifier: GPL-2.0-only
"""Other programs: run by their path alone, and never for longer than allowed."""

from __future__ import annotations

from pathlib import Path
from time import sleep

import pytest

from zfw_py import KernelError, NotFound, ZfwError
from zfw_py.kernel.subprocesses import run

SHELL = "/bin/sh"


def test_the_exit_code_or_the_signal_is_told() -> None:
    assert run(SHELL, "-c", "exit 7", timeout=60) == 7
    assert run(SHELL, "-c", "kill -TERM $$", timeout=60) == -15


def test_nothing_of_the_callers_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "alive")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    told = tmp_path / "told"
    code = f'[ -z "$(cat)" ] && echo "$CANARY,$HOME,$(pwd),${{PATH##*:}}" >{told}'
    assert run(SHELL, "-c", code, timeout=60) == 0
    assert told.read_text() == ",/root,/,/bin\n"


def test_what_cannot_be_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        run(str(tmp_path / "missing"), timeout=60)
    (tmp_path / "script").write_text("#!/nonexistent/interpreter\n")
    (tmp_path / "script").chmod(0o755)
    with pytest.raises(NotFound):
        run(str(tmp_path / "script"), timeout=60)
    with pytest.raises(KernelError):
        run(str(tmp_path), timeout=60)


def test_one_that_does_not_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = f"sleep 1000 & echo $$ $! >{pids}; wait"
    with pytest.raises(ZfwError, match="not done after 2 s, killed"):
        run(SHELL, "-c", code, timeout=2)
    for pid in pids.read_text().split():
        # The kernel may need a moment more; the test's own limit ends this.
        while is_running(pid):
            sleep(0.01)


def is_running(pid: str) -> bool:
    """Whether it is there, and not one that just nobody has waited for yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
