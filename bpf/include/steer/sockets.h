/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A target's sockets, and the clients of those of UDP.
 */
#ifndef STEER_SOCKETS_H
#define STEER_SOCKETS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#include "steer/abi.h"
#include "steer/address.h"
#include "steer/mappings.h"
#include "steer/maps.h"

#define STEER_SECOND 1000000000ULL /* ns */

/* The place of a target's next socket; false if there is no such target. */
static __always_inline bool take_place(__u32 target, __u32 *slot)
{
	struct steer_target *found = bpf_map_lookup_elem(&targets, &target);

	if (!found)
		return false;
	*slot = __sync_fetch_and_add(&found->taken, 1) % STEER_TARGET_SOCKETS;
	return true;
}

static __always_inline void bound_address(__be32 to[4], const struct bpf_sock *sk)
{
	__be32 ipv4 = read_field(sk->src_ip4);

	read_ipv6(to, sk->src_ip6);
	if (sk->family == STEER_AF_INET)
		set_ipv4(to, ipv4);
}

/*
 * Remembers whom a client asked, if its answer would come from elsewhere. Who floods
 * this with clients pushes out others, whose answers then come from the daemon's own
 * address or not at all.
 */
static __always_inline void note_client(const struct steer_wanted *wanted, const __be32 remote[4],
					__u16 remote_port, const struct bpf_sock *sk)
{
	struct steer_flow_key key = { .remote_port = remote_port, .bound_port = sk->src_port };
	struct steer_flow flow, *found;

	bound_address(key.bound, sk);
	set_ipv6(key.remote, remote);
	flow.seen = bpf_ktime_get_coarse_ns();
	found = bpf_map_lookup_elem(&flows, &key);
	if (found && is_same(found->local, wanted->address)) {
		if (flow.seen - found->seen > STEER_SECOND)
			found->seen = flow.seen;
		return;
	}
	if (!found && is_same(key.bound, wanted->address))
		return;
	set_ipv6(flow.local, wanted->address);
	if (bpf_map_update_elem(&flows, &key, &flow, BPF_ANY))
		note_trouble(STEER_TROUBLE_FLOWS);
}

/* A client asks a daemon at the daemon's own address: its answer comes from there. */
static __always_inline void forget_client(const struct steer_wanted *wanted, const __be32 remote[4],
					  __u16 remote_port)
{
	struct steer_flow_key key = { .remote_port = remote_port, .bound_port = wanted->port };

	set_ipv6(key.bound, wanted->address);
	set_ipv6(key.remote, remote);
	if (bpf_map_lookup_elem(&flows, &key))
		bpf_map_delete_elem(&flows, &key);
}

/* Whom a daemon's client asked; NULL if it was not steered. */
static __always_inline const struct steer_flow *
find_client(const struct bpf_sock *sk, const __be32 remote[4], __u16 remote_port)
{
	struct steer_flow_key key = { .remote_port = remote_port, .bound_port = sk->src_port };
	const struct steer_flow *flow;

	bound_address(key.bound, sk);
	set_ipv6(key.remote, remote);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && is_wildcard(key.bound) &&
	    bpf_ktime_get_coarse_ns() - flow->seen > STEER_FLOW_LIFETIME * STEER_SECOND)
		return NULL;
	return flow;
}

#endif
