/* SPDX-License-Identifier: GPL-2.0-only */
/* Evaluates a destination against the policy, without an effect. */
#ifndef GUARD_POLICY_H
#define GUARD_POLICY_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "guard/abi.h"
#include "guard/maps.h"

#define GUARD_DNS_PORT 53

/* An end of a flow, as one struct: a global function takes pointers to whole objects. */
struct guard_end {
	__be32 address[4];
	__u16 port; /* host order; 0: none, only a rule for all ports covers it */
	__u16 pad;
};

static __always_inline enum guard_verdict guard_verdict_of(enum guard_reason reason)
{
	if (reason == GUARD_REASON_DNS)
		return GUARD_VERDICT_REDIRECT;
	return reason < GUARD_REASON_NOT_ALLOWED ? GUARD_VERDICT_ALLOW : GUARD_VERDICT_DENY;
}

static __always_inline bool guard_is_learnt(const __be32 address[4], __u16 port, __u64 now)
{
	struct guard_learnt_key key = { .port = port };
	__u64 *until;

	copy_address(key.address, address);
	until = bpf_map_lookup_elem(&learnt, &key);
	return until && *until > now;
}

/*
 * Returns an enum guard_reason for a destination. A global function, so that the verifier goes
 * through its loop once.
 */
__noinline int guard_evaluate(const struct guard_end *to, __u32 flags)
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
	if (guard_is_learnt(to->address, 0, now) ||
	    (to->port && guard_is_learnt(to->address, to->port, now)))
		return GUARD_REASON_NAME;
	return flags & GUARD_DEFAULT_ALLOW ? GUARD_REASON_DEFAULT : GUARD_REASON_NOT_ALLOWED;
}

#endif
