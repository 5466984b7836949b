/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Idioms that make the compiler emit code that the verifier can follow. Each one stands here
 * once, with what goes wrong without it and which compiler or kernel needs it. "Converge" means
 * below: the verifier meets a state that it has seen at this instruction, and stops following
 * the path. It gives up after a million instructions, so loops have to converge.
 *
 * Three more idioms need no code of their own:
 * - __noinline functions that are not static are global: the verifier goes through each
 *   once, with any arguments, not once for every path that leads to it (Linux 5.6,
 *   51c39bb1d5d1). So they check their pointers for NULL. A static one is followed again
 *   from every call.
 * - A frame is rounded up to 32 bytes before Linux 6.8, and all frames of a chain of calls
 *   share 512: scripts/stack-frames prints the sums. Variables that are never live together
 *   share a union.
 * - Before Linux 6.2 no map helper takes a key or a value that lies in the caller's frame:
 *   a global function copies it into its own.
 */
#ifndef COMMON_VERIFIER_H
#define COMMON_VERIFIER_H

#include <stdbool.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/*
 * barrier_var(x), of libbpf: the compiler has to hold x in a register here and may assume
 * nothing about its value. It stands before the comparison that bounds an index or offset.
 * Without it clang 19 and later compare one register and use another, a copy made before,
 * and the verifier knows a bound only of the register that was compared.
 */

/*
 * Reads a variable here, once, in program order. It has three uses:
 * - Memory that another CPU writes: the compiler may otherwise read it twice, or later.
 * - Memory that this program wrote itself: the verifier takes what is read back from a
 *   caller's frame or from a map's value as any number of this size. Loops converge that
 *   would otherwise be followed with each number.
 * - A field of a context or of a socket: where two branches read two fields, the compiler may
 *   choose the address first and read once. The verifier refuses arithmetic on such a pointer.
 */
#define READ_ONCE(x) (*(const volatile __typeof__(x) *)&(x))

/* Writes a variable here, in program order: a program that a helper calls reads it. */
#define WRITE_ONCE(x, value) (*(volatile __typeof__(x) *)&(x) = (value))

/*
 * *index < count, where count is at most limit. Before Linux 6.8 the verifier learns a bound
 * only from a comparison with a constant (67420501e868), and clang 19 and later merge the two
 * comparisons into one with the smaller of both, unless a barrier is between them.
 */
static __always_inline bool is_below(__u32 *index, __u32 count, const __u32 limit)
{
	if (*index >= count)
		return false;
	barrier_var(*index);
	return *index < limit;
}

/*
 * value & mask, where the compiler could prove that the mask changes nothing and would leave
 * it out. The verifier cannot prove that, and takes its bound from the instruction.
 */
static __always_inline __u32 masked(__u32 value, const __u32 mask)
{
	barrier_var(value);
	return value & mask;
}

/*
 * The compiler has to keep a struct on the stack as one object. It would otherwise split the
 * struct into its fields, run out of registers, and give each field, of whatever size, a
 * slot of 8 bytes in the frame.
 */
#define keep_together(object) asm volatile("" : : "r"(&(object)) : "memory")

#endif
