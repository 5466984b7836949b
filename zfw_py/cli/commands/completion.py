# SPDX-License-Identifier: GPL-2.0-only
"""zfw completion."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from typer._completion_shared import get_completion_script

from zfw_py.cli import output


def command(
    shell: Annotated[
        Literal["bash", "zsh", "fish"], typer.Argument(metavar="bash|zsh|fish", help="The shell.")
    ],
) -> None:
    """Print a shell completion script.

    To use it: eval "$(zfw completion bash)"
    """
    script = get_completion_script(prog_name="zfw", complete_var="_ZFW_COMPLETE", shell=shell)
    for text in script.splitlines():
        output.line(text)
