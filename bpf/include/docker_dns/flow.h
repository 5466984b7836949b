/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which query an answer is to. The source's port is the only thing that tells, outside:
 * it is ours to choose, because all sources become one address there.
 */
#ifndef DOCKER_DNS_FLOW_H
#define DOCKER_DNS_FLOW_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "docker_dns/maps.h"

#define SECOND 1000000000ull

/* The clock may have ticked on another CPU since it was read here: last is later then. */
static __always_inline bool is_older(__u64 last, __u64 now, __u32 seconds)
{
	return (__s64)(now - last) > (__s64)(seconds * SECOND);
}

static __always_inline bool is_idle(__u8 protocol, __u64 last, __u64 now)
{
	return is_older(last, now,
			protocol == IPPROTO_TCP ? DOCKER_DNS_TCP_IDLE : DOCKER_DNS_UDP_IDLE);
}

static __always_inline bool is_same_query(const struct docker_dns_query_key *a,
					  const struct docker_dns_query_key *b)
{
	return a->source == b->source && a->destination == b->destination &&
	       a->source_port == b->source_port && a->destination_port == b->destination_port &&
	       a->protocol == b->protocol;
}

static __always_inline void name_answer(const struct docker_dns_query_key *query,
					const struct docker_dns_query *flow,
					struct docker_dns_answer_key *key)
{
	key->server = flow->server;
	key->server_port = flow->server_port;
	key->port = flow->port;
	key->protocol = query->protocol;
}

/*
 * Whether a socket of the container's own would take what comes for the port. One that is
 * bound to the uplink by name is not seen from lo, nor is TCP that neither listens nor
 * connects yet.
 */
static __always_inline bool has_socket(struct __sk_buff *skb, const struct docker_dns_config *set,
				       __u8 protocol, __u16 port)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;

	tuple.ipv4.saddr = set->server;
	tuple.ipv4.daddr = set->source;
	tuple.ipv4.sport = bpf_htons(set->server_port);
	tuple.ipv4.dport = bpf_htons(port);
	sk = protocol == IPPROTO_TCP ?
		     bpf_sk_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0) :
		     bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* The flow that a query belongs to, if it has been used lately. */
static __always_inline bool find_flow(const struct docker_dns_config *set,
				      const struct docker_dns_query_key *query, __u64 now,
				      struct docker_dns_query *flow)
{
	struct docker_dns_query *found = bpf_map_lookup_elem(&queries, query);
	struct docker_dns_answer_key key = {};
	struct docker_dns_answer *answer;

	if (!found || is_idle(query->protocol, found->last, now) || found->server != set->server ||
	    found->server_port != set->server_port)
		return false;
	*flow = *found;
	name_answer(query, flow, &key);
	answer = bpf_map_lookup_elem(&answers, &key);
	/* The two tables forget by themselves: the port may be another's by now. */
	if (!answer || !is_same_query(&answer->query, query))
		return false;
	found->last = now;
	answer->last = now;
	return true;
}

/* Takes a flow that is idle from whoever had it: of several CPUs one, and nobody else then. */
static __always_inline bool seize(struct docker_dns_answer *answer, __u8 protocol, __u64 now)
{
	__u64 last = *(volatile __u64 *)&answer->last;

	return is_idle(protocol, last, now) &&
	       __sync_val_compare_and_swap(&answer->last, last, now) == last;
}

/*
 * A new flow, with a port that nothing else has: an answer to it can only be meant for it.
 * Keys and values are of this frame: before 6.2 no map takes them from another one.
 */
__noinline int make_flow(struct __sk_buff *skb, const struct docker_dns_query_key *query,
			 struct docker_dns_query *flow)
{
	struct docker_dns_answer_key key = {};
	struct docker_dns_answer answer = {};
	struct docker_dns_query made = {};
	struct docker_dns_config *set;
	__u32 zero = 0, i;

	set = bpf_map_lookup_elem(&config, &zero);
	if (!set || !query || !flow || set->port_count == 0)
		return false;
	answer.query = *query;
	made.last = answer.last = bpf_ktime_get_coarse_ns();
	made.server = set->server;
	made.server_port = set->server_port;
	for (i = 0; i < DOCKER_DNS_PORT_ATTEMPTS; i++) {
		struct docker_dns_answer *taken;

		/* Anew each time: ports that are taken come in runs. */
		made.port = set->first_port + bpf_get_prandom_u32() % set->port_count;
		name_answer(query, &made, &key);
		taken = bpf_map_lookup_elem(&answers, &key);
		if (taken) {
			if (!seize(taken, query->protocol, made.last))
				continue;
			bpf_map_delete_elem(&answers, &key);
		}
		if (has_socket(skb, set, query->protocol, made.port))
			continue;
		/* Another CPU may have taken it just now. */
		if (bpf_map_update_elem(&answers, &key, &answer, BPF_NOEXIST))
			continue;
		*flow = made;
		return bpf_map_update_elem(&queries, &answer.query, &made, BPF_ANY) == 0;
	}
	return false;
}

#endif
