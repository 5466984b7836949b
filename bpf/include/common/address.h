/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Addresses of both families in one form: four words in network order, IPv4 as
 * ::ffff:a.b.c.d (RFC 4291, section 2.5.5.2).
 */
#ifndef COMMON_ADDRESS_H
#define COMMON_ADDRESS_H

#include <stdbool.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/verifier.h"

/* socket(7); not in the kernel's headers for user space. */
#define AF_INET 2
#define AF_INET6 10

static __always_inline void map_ipv4(__be32 to[4], __be32 address)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = address;
}

static __always_inline void copy_address(__be32 to[4], const __be32 from[4])
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

/*
 * Copy an address from and to a field of a context or of a socket. They are macros, because the
 * verifier accepts only accesses at a constant offset from such a pointer (READ_ONCE()).
 */
#define READ_ADDRESS(to, field)                                                                    \
	do {                                                                                       \
		(to)[0] = READ_ONCE((field)[0]);                                                   \
		(to)[1] = READ_ONCE((field)[1]);                                                   \
		(to)[2] = READ_ONCE((field)[2]);                                                   \
		(to)[3] = READ_ONCE((field)[3]);                                                   \
	} while (0)

#define WRITE_ADDRESS(field, from)                                                                 \
	do {                                                                                       \
		(field)[0] = (from)[0];                                                            \
		(field)[1] = (from)[1];                                                            \
		(field)[2] = (from)[2];                                                            \
		(field)[3] = (from)[3];                                                            \
	} while (0)

/* Without a branch: in a loop the verifier would follow both outcomes of each comparison. */
static __always_inline bool is_same_address(const __be32 a[4], const __be32 b[4])
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]));
}

static __always_inline bool is_mapped(const __be32 address[4])
{
	return address[0] == 0 && address[1] == 0 && address[2] == bpf_htonl(0xffff);
}

/* 127.0.0.0/8 (RFC 1122, section 3.2.1.3) or ::1 (RFC 4291, section 2.5.3). */
static __always_inline bool is_loopback(const __be32 address[4])
{
	if (is_mapped(address))
		return (address[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return address[0] == 0 && address[1] == 0 && address[2] == 0 && address[3] == bpf_htonl(1);
}

/* fe80::/10 (RFC 4291, section 2.5.6). */
static __always_inline bool is_link_local(const __be32 address[4])
{
	return (address[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* 224.0.0.0/4 (RFC 5771) or ff00::/8 (RFC 4291, section 2.7). */
static __always_inline bool is_multicast(const __be32 address[4])
{
	if (is_mapped(address))
		return (address[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000);
	return (address[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* 0.0.0.0 or ::, to which a socket is bound that receives on all addresses. */
static __always_inline bool is_wildcard(const __be32 address[4])
{
	return !(address[0] | address[1] | address[3]) &&
	       (!address[2] || address[2] == bpf_htonl(0xffff));
}

#endif
