/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Flows without a connection to addresses of names. A socket's storage remembers one destination;
 * QUIC, WireGuard and WebRTC have several on one socket, and go on when the names have expired, as
 * connections do.
 */
#ifndef GUARD_FLOWS_H
#define GUARD_FLOWS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "guard/abi.h"
#include "guard/maps.h"
#include "guard/policy.h"

static __always_inline void guard_set_flow_key(struct guard_flow_key *key,
					       const struct guard_end *to, __u64 socket_cookie)
{
	key->socket_cookie = socket_cookie;
	copy_address(key->address, to->address);
	key->port = to->port;
}

/* Remembers that a socket was allowed to send there. */
__noinline int guard_note_flow(const struct guard_end *to, __u64 socket_cookie)
{
	struct guard_flow_key key = {};
	__u64 now;

	if (!to)
		return false;
	guard_set_flow_key(&key, to, socket_cookie);
	/* A look-up keeps the flow in the map while others are evicted. */
	if (bpf_map_lookup_elem(&flows, &key))
		return true;
	now = bpf_ktime_get_coarse_ns();
	return bpf_map_update_elem(&flows, &key, &now, BPF_ANY) == 0;
}

/* Whether a socket was allowed to send there. */
__noinline int guard_has_flow(const struct guard_end *to, __u64 socket_cookie)
{
	struct guard_flow_key key = {};

	if (!to)
		return false;
	guard_set_flow_key(&key, to, socket_cookie);
	return bpf_map_lookup_elem(&flows, &key) != NULL;
}

/* Whether a flow that was allowed goes on in spite of this reason: a block ends it. */
static __always_inline bool guard_may_go_on(enum guard_reason reason)
{
	return reason == GUARD_REASON_EXPIRED || reason == GUARD_REASON_NOT_ALLOWED;
}

#endif
