/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Flows: which query an answer belongs to. All queries leave from one address, so only the source
 * port on the uplink tells them apart. The programs choose it.
 */
#ifndef DOCKER_DNS_FLOWS_H
#define DOCKER_DNS_FLOWS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/maps.h"
#include "common/time.h"
#include "common/verifier.h"
#include "docker_dns/abi.h"
#include "docker_dns/maps.h"
#include "docker_dns/sockets.h"

/* Another CPU may have written a later time than "now": the difference is signed. */
static __always_inline bool dns_is_older(__u64 last, __u64 now, __u32 seconds)
{
	return (__s64)(now - last) > (__s64)(seconds * NSEC_PER_SEC);
}

static __always_inline bool dns_is_idle(__u8 protocol, __u64 last, __u64 now)
{
	return dns_is_older(last, now, protocol == IPPROTO_TCP ? DNS_TCP_IDLE : DNS_UDP_IDLE);
}

static __always_inline bool dns_is_same_query(const struct dns_query_key *a,
					      const struct dns_query_key *b)
{
	return a->source == b->source && a->destination == b->destination &&
	       a->source_port == b->source_port && a->destination_port == b->destination_port &&
	       a->protocol == b->protocol;
}

static __always_inline void dns_set_answer_key(const struct dns_query_key *query,
					       const struct dns_query *flow,
					       struct dns_answer_key *key)
{
	key->server = flow->server;
	key->server_port = flow->server_port;
	key->port = flow->port;
	key->protocol = query->protocol;
}

/* The flow of a query, if it is not idle. */
static __always_inline bool dns_find_flow(const struct dns_config *set,
					  const struct dns_query_key *query, __u64 now,
					  struct dns_query *flow)
{
	struct dns_query *found = bpf_map_lookup_elem(&queries, query);
	struct dns_answer_key key = {};
	struct dns_answer *answer;

	if (!found || dns_is_idle(query->protocol, found->last, now) ||
	    found->server != set->server || found->server_port != set->server_port)
		return false;
	*flow = *found;
	dns_set_answer_key(query, flow, &key);
	answer = bpf_map_lookup_elem(&answers, &key);
	/* Each map evicts on its own: the port may belong to another query by now. */
	if (!answer || !dns_is_same_query(&answer->query, query))
		return false;
	found->last = now;
	answer->last = now;
	return true;
}

/* Takes over the port of an idle flow. Of several CPUs only one succeeds. */
static __always_inline bool dns_seize(struct dns_answer *answer, __u8 protocol, __u64 now)
{
	__u64 last = READ_ONCE(answer->last);

	return dns_is_idle(protocol, last, now) &&
	       __sync_val_compare_and_swap(&answer->last, last, now) == last;
}

/*
 * Makes a flow with a port that no other flow or socket has. Keys and values lie in this frame:
 * before Linux 6.2 no map takes them from the caller's.
 */
__noinline int dns_make_flow(struct __sk_buff *skb, const struct dns_query_key *query,
			     struct dns_query *flow)
{
	struct dns_answer_key key = {};
	struct dns_answer answer = {};
	struct dns_query made = {};
	struct dns_config *set;
	__u32 i;

	set = only_element(&config);
	if (!set || !query || !flow || set->port_count == 0)
		return false;
	answer.query = *query;
	made.last = answer.last = bpf_ktime_get_coarse_ns();
	made.server = set->server;
	made.server_port = set->server_port;
	for (i = 0; i < DNS_PORT_ATTEMPTS; i++) {
		struct dns_answer *taken;

		/* A new random port each time, because ports in use come in runs. */
		made.port = set->first_port + bpf_get_prandom_u32() % set->port_count;
		dns_set_answer_key(query, &made, &key);
		taken = bpf_map_lookup_elem(&answers, &key);
		if (taken) {
			if (!dns_seize(taken, query->protocol, made.last))
				continue;
			bpf_map_delete_elem(&answers, &key);
		}
		if (dns_has_socket(skb, set, query->protocol, made.port))
			continue;
		/* Another CPU may have taken the port in the meantime. */
		if (bpf_map_update_elem(&answers, &key, &answer, BPF_NOEXIST))
			continue;
		*flow = made;
		return bpf_map_update_elem(&queries, &answer.query, &made, BPF_ANY) == 0;
	}
	return false;
}

#endif
