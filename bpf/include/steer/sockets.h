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

static __always_inline void steer_make_flow_key(struct steer_flow_key *key, const __be32 bound[4],
						__u16 bound_port, const __be32 remote[4],
						__u16 remote_port)
{
	copy_address(key->bound, bound);
	copy_address(key->remote, remote);
	key->bound_port = bound_port;
	key->remote_port = remote_port;
}

/*
 * Records the address that a client asked, if the daemon would answer from another one. The packet
 * may still be dropped: a firewall looks sockets up before it decides. So a client is in "flows"
 * until the daemon answers it, and a flood of clients without an answer evicts only such clients.
 */
static __always_inline void steer_note_client(const struct steer_wanted *wanted,
					      const __be32 remote[4], __u16 remote_port,
					      const struct bpf_sock *sk)
{
	struct steer_flow_key key;
	struct steer_flow flow, *found;
	__be32 bound[4];

	/* A look-up that is no packet's, or a question that has no answer (RFC 768). */
	if (!remote_port)
		return;
	steer_bound_address(bound, sk);
	steer_make_flow_key(&key, bound, sk->src_port, remote, remote_port);
	flow.seen = bpf_ktime_get_ns();
	found = bpf_map_lookup_elem(&answered, &key);
	if (found && is_same_address(found->local, wanted->address)) {
		found->seen = flow.seen;
		return;
	}
	if (!found && is_same_address(bound, wanted->address))
		return;
	/* An update takes a lock, and another element. */
	found = bpf_map_lookup_elem(&flows, &key);
	if (found && is_same_address(found->local, wanted->address)) {
		found->seen = flow.seen;
		return;
	}
	copy_address(flow.local, wanted->address);
	if (bpf_map_update_elem(&flows, &key, &flow, BPF_ANY))
		steer_note_trouble(STEER_TROUBLE_FLOWS);
}

/* The client asks the daemon at its own address: the answer has to come from there. */
static __always_inline void steer_forget_client(const struct steer_wanted *wanted,
						const __be32 remote[4], __u16 remote_port)
{
	struct steer_flow_key key;

	steer_make_flow_key(&key, wanted->address, wanted->port, remote, remote_port);
	if (bpf_map_lookup_elem(&flows, &key))
		bpf_map_delete_elem(&flows, &key);
	if (bpf_map_lookup_elem(&answered, &key))
		bpf_map_delete_elem(&answered, &key);
}

/* Copies an element. The memory of an evicted one may be another client's by then. */
static __always_inline bool steer_read_flow(void *map, const struct steer_flow_key *key,
					    struct steer_flow *flow)
{
	struct steer_flow *found = bpf_map_lookup_elem(map, key);

	if (!found)
		return false;
	*flow = *found;
	return bpf_map_lookup_elem(map, key) == found;
}

/*
 * Finds the address that a daemon's client asked last. False if the client was not steered. A
 * client that was not answered yet, or asked another address since, moves to "answered".
 */
static __always_inline bool steer_find_client(const struct bpf_sock *sk, const __be32 remote[4],
					      __u16 remote_port, __be32 local[4])
{
	struct steer_flow asked, flow = {};
	struct steer_flow_key key;
	__be32 bound[4];
	bool is_known;

	steer_bound_address(bound, sk);
	steer_make_flow_key(&key, bound, sk->src_port, remote, remote_port);
	is_known = steer_read_flow(&answered, &key, &flow);
	if (steer_read_flow(&flows, &key, &asked)) {
		if (!is_known || asked.seen > flow.seen) {
			flow = asked;
			is_known = true;
			if (bpf_map_update_elem(&answered, &key, &flow, BPF_ANY))
				steer_note_trouble(STEER_TROUBLE_FLOWS);
		}
		bpf_map_delete_elem(&flows, &key);
	}
	if (!is_known || (is_wildcard(bound) &&
			  bpf_ktime_get_ns() - flow.seen > STEER_FLOW_LIFETIME * NSEC_PER_SEC))
		return false;
	copy_address(local, flow.local);
	return true;
}

#endif
