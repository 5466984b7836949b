# SPDX-License-Identifier: GPL-2.0-only
"""scripts/stack-frames, with programs whose frames are known."""

from __future__ import annotations

import subprocess
from pathlib import Path

TOOL = Path(__file__).parents[2] / "scripts" / "stack-frames"

# use() writes every byte and hides it from the compiler, so that a frame is what it says.
SOURCE = """\
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define use(buffer) asm volatile("" : : "r"(buffer) : "memory")

__noinline int leaf(struct __sk_buff *skb)
{
	char bytes[33];

	use(bytes);
	return skb->len;
}

static __noinline __attribute__((unused)) int middle(struct __sk_buff *skb)
{
	char bytes[64];

	use(bytes);
	return leaf(skb) + 1;
}

__noinline int empty(struct __sk_buff *skb)
{
	return leaf(skb);
}

SEC("tc")
int alone(struct __sk_buff *skb)
{
	char bytes[480];

	use(bytes);
	return skb->len;
}

SEC("tc")
int deep(struct __sk_buff *skb)
{
	char bytes[BYTES];

	use(bytes);
	return leaf(skb) + middle(skb) + empty(skb);
}
"""


def report(tmp_path: Path, deep: int) -> tuple[int, str, str]:
    source = tmp_path / "tiny.bpf.c"
    source.write_text(SOURCE.replace("BYTES", str(deep)))
    done = subprocess.run([TOOL, source], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_deepest_chain_of_each_program_is_summed_in_units_of_32(tmp_path: Path) -> None:
    code, out, error = report(tmp_path, 376)
    assert (code, error) == (0, "")
    assert out == (
        "object      program          stack  spare  deepest calls\n"
        "tiny        alone              480     32  alone 480\n"
        "tiny        deep               512      0  deep 376 > middle 64 > leaf 33\n"
    )


def test_a_chain_that_older_kernels_refuse_fails(tmp_path: Path) -> None:
    code, out, error = report(tmp_path, 392)
    assert (code, error) == (1, "stack-frames: deep of tiny needs 544 of 512 bytes\n")
    assert "tiny        deep               544      0  deep 392 > middle 64 > leaf 33\n" in out


def test_a_function_without_variables_counts_one_unit(tmp_path: Path) -> None:
    source = tmp_path / "tiny.bpf.c"
    source.write_text(SOURCE.replace("BYTES", "8").replace("+ middle(skb) ", ""))
    done = subprocess.run([TOOL, source], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(
        "tiny        deep               128    408  deep 8 > empty 0 > leaf 33\n"
    )


def test_what_cannot_be_compiled_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "tiny.bpf.c"
    source.write_text("no C\n")
    done = subprocess.run([TOOL, source], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"cannot compile {source}" in done.stderr
