/* SPDX-License-Identifier: GPL-2.0-only */
/* The sockets of a target, and the clients of UDP targets. */
#ifndef STEER_SOCKETS_H
#define STEER_SOCKETS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/maps.h"
#include "common/time.h"
#include "common/verifier.h"
#include "steer/abi.h"
#include "steer/events.h"
#include "steer/mappings.h"
#include "steer/maps.h"

/* The slot for a target's next socket. False if there is no such target. */
static __always_inline bool steer_take_place(__u32 target, __u32 *slot)
{
	struct steer_target *found = bpf_map_lookup_elem(&targets, &target);

	if (!found)
		return false;
	*slot = __sync_fetch_and_add(&found->taken, 1) % STEER_TARGET_SOCKETS;
	return true;
}

static __always_inline void steer_bound_address(__be32 to[4], const struct bpf_sock *sk)
{
	__be32 ipv4 = READ_ONCE(sk->src_ip4);

	READ_ADDRESS(to, sk->src_ip6);
	if (sk->family == AF_INET)
		map_ipv4(to, ipv4);
}

/*
 * Records the address that a client asked, if the daemon would answer from another one. A flood of
 * clients evicts others: their answers then come from the daemon's own address, or not at all.
 */
static __always_inline void steer_note_client(const struct steer_wanted *wanted,
					      const __be32 remote[4], __u16 remote_port,
					      const struct bpf_sock *sk)
{
	struct steer_flow_key key = { .remote_port = remote_port, .bound_port = sk->src_port };
	struct steer_flow flow, *found;

	steer_bound_address(key.bound, sk);
	copy_address(key.remote, remote);
	flow.seen = bpf_ktime_get_coarse_ns();
	found = bpf_map_lookup_elem(&flows, &key);
	if (found && is_same_address(found->local, wanted->address)) {
		if (flow.seen - found->seen > NSEC_PER_SEC)
			found->seen = flow.seen;
		return;
	}
	if (!found && is_same_address(key.bound, wanted->address))
		return;
	copy_address(flow.local, wanted->address);
	if (bpf_map_update_elem(&flows, &key, &flow, BPF_ANY))
		steer_note_trouble(STEER_TROUBLE_FLOWS);
}

/* The client asks the daemon at its own address: the answer has to come from there. */
static __always_inline void steer_forget_client(const struct steer_wanted *wanted,
						const __be32 remote[4], __u16 remote_port)
{
	struct steer_flow_key key = { .remote_port = remote_port, .bound_port = wanted->port };

	copy_address(key.bound, wanted->address);
	copy_address(key.remote, remote);
	if (bpf_map_lookup_elem(&flows, &key))
		bpf_map_delete_elem(&flows, &key);
}

/* The entry of a daemon's client, or NULL if the client was not steered. */
static __always_inline const struct steer_flow *
steer_find_client(const struct bpf_sock *sk, const __be32 remote[4], __u16 remote_port)
{
	struct steer_flow_key key = { .remote_port = remote_port, .bound_port = sk->src_port };
	const struct steer_flow *flow;

	steer_bound_address(key.bound, sk);
	copy_address(key.remote, remote);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && is_wildcard(key.bound) &&
	    bpf_ktime_get_coarse_ns() - flow->seen > STEER_FLOW_LIFETIME * NSEC_PER_SEC)
		return NULL;
	return flow;
}

#endif
