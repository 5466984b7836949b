/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Truncated answers. A client that gets one asks again by TCP (RFC 7766, section 5), and a
 * connection begins without a name. So the next connection of such a client goes to the server that
 * has truncated the answer.
 */
#ifndef DOCKER_DNS_TRUNCATED_H
#define DOCKER_DNS_TRUNCATED_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/packet.h"
#include "common/verifier.h"
#include "docker_dns/abi.h"
#include "docker_dns/flows.h"
#include "docker_dns/maps.h"
#include "docker_dns/names.h"

#define DNS_FLAG_TRUNCATED 0x0200
/* How often to retry while other CPUs take an answer of the same client. */
#define DNS_TRUNCATED_ATTEMPTS 4

/* Whether a packet of the server, with ports, is a truncated answer over UDP. */
static __always_inline bool dns_is_truncated(struct __sk_buff *skb, const struct packet *packet)
{
	struct dns_header header;

	return packet->protocol == IPPROTO_UDP && packet->fragment != PKT_FRAGMENT_LATER &&
	       packet->transport_length >= sizeof(struct udphdr) + sizeof(header) &&
	       read_bytes(skb, packet->transport_offset + sizeof(struct udphdr), &header,
			  sizeof(header)) &&
	       header.flags & bpf_htons(DNS_FLAG_TRUNCATED);
}

static __always_inline void dns_note_truncated(__be32 client)
{
	struct dns_truncated *found = bpf_map_lookup_elem(&truncated, &client);
	struct dns_truncated first = { .last = bpf_ktime_get_coarse_ns(), .count = 1 };

	if (!found || dns_is_older(found->last, first.last, DNS_TRUNCATED_IDLE)) {
		bpf_map_update_elem(&truncated, &client, &first, BPF_ANY);
		return;
	}
	found->last = first.last;
	__sync_fetch_and_add(&found->count, 1);
}

/* Whether a client asks again: each truncated answer counts for one connection. */
static __always_inline bool dns_take_truncated(__be32 client)
{
	struct dns_truncated *found = bpf_map_lookup_elem(&truncated, &client);

	if (!found || dns_is_older(found->last, bpf_ktime_get_coarse_ns(), DNS_TRUNCATED_IDLE))
		return false;
	for (int i = 0; i < DNS_TRUNCATED_ATTEMPTS; i++) {
		__u64 count = READ_ONCE(found->count);

		if (!count)
			return false;
		if (__sync_val_compare_and_swap(&found->count, count, count - 1) == count)
			return true;
	}
	return false;
}

#endif
