/* SPDX-License-Identifier: GPL-2.0-only */
/* Evaluates a destination against the policy, without an effect. */
#ifndef GUARD_POLICY_H
#define GUARD_POLICY_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/verifier.h"
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

/* How often a look-up is repeated while user space writes the element. */
#define GUARD_LOOK_UPS 4

/*
 * When a resolved address expires; 0: it was not resolved. The kernel may give the memory of an
 * element that was removed to another address at once. So the time counts only if a second look-up
 * finds the same element with the same time.
 */
static __always_inline __u64 guard_expiry_of(const __be32 address[4], __u16 port)
{
	struct guard_learnt_key key = { .port = port };
	__u64 *found, *again, until;
	__u32 i;

	copy_address(key.address, address);
	for (i = 0; i < GUARD_LOOK_UPS; i++) {
		found = bpf_map_lookup_elem(&learnt, &key);
		if (!found)
			return 0;
		until = READ_ONCE(*found);
		again = bpf_map_lookup_elem(&learnt, &key);
		if (again == found && READ_ONCE(*found) == until)
			return until;
	}
	return 0;
}

/*
 * Returns an enum guard_reason for a destination. A global function, so that the verifier goes
 * through its loop once.
 */
__noinline int guard_evaluate(const struct guard_end *to, __u32 flags)
{
	struct guard_prefix_key key = { .length = 128 };
	struct guard_prefix *found;
	__u64 now, any, here;
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
	any = guard_expiry_of(to->address, 0);
	if (any > now)
		return GUARD_REASON_NAME;
	here = to->port ? guard_expiry_of(to->address, to->port) : 0;
	if (here > now)
		return GUARD_REASON_NAME;
	if (flags & GUARD_DEFAULT_ALLOW)
		return GUARD_REASON_DEFAULT;
	return any || here ? GUARD_REASON_EXPIRED : GUARD_REASON_NOT_ALLOWED;
}

#endif
