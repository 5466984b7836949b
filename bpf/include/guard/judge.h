/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Destination -> verdict: the policy, with no effect.
 */
#ifndef GUARD_JUDGE_H
#define GUARD_JUDGE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "guard/abi.h"
#include "guard/maps.h"

#define GUARD_DNS_PORT 53
#define GUARD_LOOPBACK_IFINDEX 1

/* An end of a flow. A global function takes no more than one pointer for it. */
struct guard_end {
	__be32 address[4];
	__u16 port; /* host order; 0: none, which only a rule for all ports covers */
	__u16 pad;
};

static __always_inline bool is_mapped(const __be32 address[4])
{
	return address[0] == 0 && address[1] == 0 && address[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_same_address(const __be32 a[4], const __be32 b[4])
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

static __always_inline void copy_address(__be32 to[4], const __be32 from[4])
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

/* 127.0.0.0/8 (RFC 1122, section 3.2.1.3) or ::1 (RFC 4291, section 2.5.3). */
static __always_inline bool is_loopback(const __be32 address[4])
{
	if (is_mapped(address))
		return (address[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return address[0] == 0 && address[1] == 0 && address[2] == 0 && address[3] == bpf_htonl(1);
}

static __always_inline enum guard_verdict verdict_of(enum guard_reason reason)
{
	if (reason == GUARD_REASON_DNS)
		return GUARD_VERDICT_REDIRECT;
	return reason < GUARD_REASON_NOT_ALLOWED ? GUARD_VERDICT_ALLOW : GUARD_VERDICT_DENY;
}

static __always_inline bool is_learnt(const __be32 address[4], __u16 port, __u64 now)
{
	struct guard_learnt_key key = { .port = port };
	__u64 *until;

	copy_address(key.address, address);
	until = bpf_map_lookup_elem(&learnt, &key);
	return until && *until > now;
}

/*
 * What the rules say of a destination: an enum guard_reason. A global function, so
 * that the verifier goes through its loop once.
 */
__noinline int judge(const struct guard_end *to, __u32 flags)
{
	struct guard_prefix_key key = { .length = 128 };
	struct guard_prefix *found;
	__u64 now;
	__u32 i;

	if (!to)
		return GUARD_REASON_NOT_ALLOWED;
	copy_address(key.address, to->address);
	found = bpf_map_lookup_elem(&prefixes, &key);
	if (found) {
		for (i = 0; i < GUARD_PREFIX_PORTS; i++) {
			if (i >= found->port_count)
				break;
			if (to->port && found->ports[i] == to->port)
				return GUARD_REASON_PREFIX;
		}
		if (found->otherwise == GUARD_OTHERWISE_ALLOW)
			return GUARD_REASON_PREFIX;
		if (found->otherwise == GUARD_OTHERWISE_BLOCK)
			return GUARD_REASON_BLOCKED;
	}
	now = bpf_ktime_get_coarse_ns();
	if (is_learnt(to->address, 0, now) || (to->port && is_learnt(to->address, to->port, now)))
		return GUARD_REASON_NAME;
	return flags & GUARD_DEFAULT_ALLOW ? GUARD_REASON_DEFAULT : GUARD_REASON_NOT_ALLOWED;
}

#endif
