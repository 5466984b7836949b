/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fragments: only the first one has ports, so its verdict is remembered and holds for those
 * that follow. fw_decide_later_fragment() looks it up, fw_remember_fragment() writes it.
 *
 * Bonds and equal-cost routes let a later fragment overtake the first one. To an own address it
 * passes: the stack delivers nothing before the first one has passed as well. So it does to another
 * host, which reassembles it; but there it passes only between hosts that have exchanged something
 * lately, so that nothing reaches a host, or leaves, that no rule and no flow ever let through.
 */
#ifndef FIREWALL_FRAGMENTS_H
#define FIREWALL_FRAGMENTS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/maps.h"
#include "common/packet.h"
#include "common/time.h"
#include "common/verifier.h"
#include "firewall/abi.h"
#include "firewall/exceptions.h"
#include "firewall/maps.h"
#include "firewall/verdict.h"

/* Seconds; as long as the kernel waits for the rest of a datagram (net.ipv4.ipfrag_time). */
#define FW_FRAGMENT_LIFETIME 30
/* Seconds; of a pair. Its flows may end earlier, and a first fragment renews it. */
#define FW_PAIR_LIFETIME 600

static __always_inline void fw_set_fragment_key(const struct __sk_buff *skb,
						const struct packet *packet, bool is_leaving,
						struct fw_fragment_key *key)
{
	__builtin_memcpy(key->source, packet->source, sizeof(key->source));
	__builtin_memcpy(key->destination, packet->destination, sizeof(key->destination));
	key->identification = packet->identification;
	key->ifindex = skb->ifindex;
	key->is_leaving = is_leaving;
	/* An IPv6 datagram is identified by source, destination and identification (RFC 8200,
	 * section 4.5), an IPv4 datagram by the protocol as well (RFC 791, section 3.2). */
	key->protocol = packet->family == AF_INET ? packet->header_protocol : 0;
}

/* An IPv4 datagram of AH is named by AH, as its later fragments are. */
static __always_inline __u8 fw_pair_protocol(const struct packet *packet)
{
	return packet->family == AF_INET ? packet->header_protocol : 0;
}

/*
 * Whether a later fragment goes from one host to another between which datagrams pass. A global
 * function, as the next one: its frame is no part of every packet's.
 */
__noinline int fw_is_of_known_pair(struct __sk_buff *skb, struct packet *packet, int is_leaving)
{
	struct fw_pair_key key = {};
	struct fw_pair *pair;
	__u64 now;

	if (!packet)
		return 0;
	now = bpf_ktime_get_coarse_ns();
	__builtin_memcpy(key.source, packet->source, sizeof(key.source));
	__builtin_memcpy(key.destination, packet->destination, sizeof(key.destination));
	key.protocol = fw_pair_protocol(packet);
	pair = bpf_map_lookup_elem(&pairs, &key);
	if (pair && pair->expires >= now)
		return 1;
	key.ifindex = skb->ifindex;
	key.is_leaving = is_leaving;
	pair = bpf_map_lookup_elem(&pairs, &key);
	return pair && pair->expires >= now;
}

/* Notes the pair of a first fragment that passes; or, if it begins a flow, that of its answers. */
__noinline int fw_remember_pair(struct __sk_buff *skb, struct packet *packet, int is_leaving,
				int is_answered)
{
	struct fw_pair_key key = {};
	struct fw_pair pair = {};

	if (!packet)
		return 0;
	pair.expires = bpf_ktime_get_coarse_ns() + FW_PAIR_LIFETIME * NSEC_PER_SEC;
	key.protocol = fw_pair_protocol(packet);
	if (is_answered) {
		__builtin_memcpy(key.source, packet->destination, sizeof(key.source));
		__builtin_memcpy(key.destination, packet->source, sizeof(key.destination));
	} else {
		__builtin_memcpy(key.source, packet->source, sizeof(key.source));
		__builtin_memcpy(key.destination, packet->destination, sizeof(key.destination));
		key.ifindex = skb->ifindex;
		key.is_leaving = is_leaving;
	}
	bpf_map_update_elem(&pairs, &key, &pair, BPF_ANY);
	return 0;
}

static __always_inline void fw_decide_later_fragment(struct __sk_buff *skb, struct packet *packet,
						     bool is_leaving, struct fw_decision *decision)
{
	struct fw_fragment_key key = {};
	struct fw_fragment *first;
	__u64 expires = 0;
	__u32 verdict = FW_VERDICT_DROP;

	fw_set_fragment_key(skb, packet, is_leaving, &key);
	first = bpf_map_lookup_elem(&fragments, &key);
	if (first) {
		expires = READ_ONCE(first->expires);
		verdict = READ_ONCE(first->verdict);
		if (!is_still(&fragments, &key, first))
			expires = 0;
	}
	if (expires < bpf_ktime_get_ns()) {
		if ((!is_leaving &&
		     fw_is_own_address(skb->ifindex, packet->family, packet->destination)) ||
		    fw_is_of_known_pair(skb, packet, is_leaving))
			fw_decide(decision, FW_VERDICT_PASS, FW_REASON_FRAGMENT_PASSED);
		else
			fw_decide(decision, FW_VERDICT_DROP, FW_REASON_FRAGMENT_ORPHAN);
	} else if (verdict == FW_VERDICT_PASS) {
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_FRAGMENT_PASSED);
	} else if (verdict == FW_VERDICT_ASSIGN) {
		/* "deliver" has the whole datagram. */
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_RULE_INTERCEPT);
	} else {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_FRAGMENT_DROPPED);
	}
}

static __always_inline void fw_remember_fragment(struct __sk_buff *skb, struct packet *packet,
						 bool is_leaving,
						 const struct fw_decision *decision)
{
	struct fw_fragment_key key = {};
	struct fw_fragment fragment = {
		.expires = bpf_ktime_get_ns() + FW_FRAGMENT_LIFETIME * NSEC_PER_SEC,
		.verdict = decision->verdict,
	};

	fw_set_fragment_key(skb, packet, is_leaving, &key);
	bpf_map_update_elem(&fragments, &key, &fragment, BPF_ANY);
	if (fragment.verdict != FW_VERDICT_DROP)
		fw_remember_pair(skb, packet, is_leaving, false);
}

#endif
