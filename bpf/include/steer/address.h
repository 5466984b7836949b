/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Addresses of both families in one form, and counting what did not work.
 */
#ifndef STEER_ADDRESS_H
#define STEER_ADDRESS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "steer/abi.h"
#include "steer/maps.h"

/* socket(7); not in the kernel's headers for user space. */
#define STEER_AF_INET 2
#define STEER_AF_INET6 10

/* A field of a context or of a socket, there and then. What is read on either branch, a
 * compiler reads once, from an address that it chooses before: the verifier refuses that.
 * So both are read, and then one is chosen. */
#define read_field(field) (*(const volatile __typeof__(field) *)&(field))

#define read_ipv6(to, field)                                                                       \
	do {                                                                                       \
		(to)[0] = read_field((field)[0]);                                                  \
		(to)[1] = read_field((field)[1]);                                                  \
		(to)[2] = read_field((field)[2]);                                                  \
		(to)[3] = read_field((field)[3]);                                                  \
	} while (0)

static __always_inline void set_ipv4(__be32 to[4], __be32 address)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = address;
}

static __always_inline void set_ipv6(__be32 to[4], const __be32 address[4])
{
	to[0] = address[0];
	to[1] = address[1];
	to[2] = address[2];
	to[3] = address[3];
}

static __always_inline bool is_same(const __be32 one[4], const __be32 other[4])
{
	return !((one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]) |
		 (one[3] ^ other[3]));
}

/* 0.0.0.0 or ::, whoever asks for whatever address is of it. */
static __always_inline bool is_wildcard(const __be32 address[4])
{
	return !(address[0] | address[1] | address[3]) &&
	       (!address[2] || address[2] == bpf_htonl(0xffff));
}

static __always_inline void note_trouble(__u32 trouble)
{
	__u64 *counter = bpf_map_lookup_elem(&troubles, &trouble);

	if (counter)
		(*counter)++;
}

#endif
