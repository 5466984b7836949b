/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the decisions of both directions have in common: the interface, fragments,
 * and a look at the rules.
 */
#ifndef ZFW_DECIDE_H
#define ZFW_DECIDE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "firewall/abi.h"
#include "firewall/maps.h"
#include "firewall/rules.h"
#include "parse.h"

/* IANA, protocol numbers; RFC 9568 */
#define ZFW_PROTOCOL_VRRP 112

/* As long as the stack waits for the rest of a datagram (net.ipv4.ipfrag_time). */
#define FRAGMENT_LIFETIME_NS (30ULL * 1000 * 1000 * 1000)

/* What holds on loopback whatever is set. */
#define LOOPBACK_SETTINGS (ZFW_SETTING_ICMP_ECHO | ZFW_SETTING_IPV6 | ZFW_SETTING_PASS_NON_TUPLE)

static __always_inline void decided(struct zfw_decision *decision, enum zfw_verdict verdict,
				    enum zfw_reason reason)
{
	decision->verdict = verdict;
	decision->reason = reason;
}

/* The interface of a packet. One that is not known has the strictest settings. */
static __always_inline void read_interface(const struct __sk_buff *skb,
					   struct zfw_interface *interface)
{
	__u32 row = skb->ifindex % ZFW_INTERFACE_ROWS;
	struct zfw_interface *known = bpf_map_lookup_elem(&interfaces, &row);

	if (known && known->ifindex == skb->ifindex)
		*interface = *known;
	else
		interface->settings = ZFW_SETTING_OUTBOUND_FILTER;
	if (interface->link_flags & ZFW_LINK_LOOPBACK) {
		interface->settings |= LOOPBACK_SETTINGS;
		/* Nothing that leaves is filtered, so nothing has to be remembered. */
		interface->link_flags &= ~ZFW_LINK_TRACK;
	}
}

static __always_inline void fragment_key(const struct __sk_buff *skb,
					 const struct zfw_packet *packet, bool is_leaving,
					 struct zfw_fragment_key *key)
{
	__builtin_memcpy(key->source, packet->source, sizeof(key->source));
	__builtin_memcpy(key->destination, packet->destination, sizeof(key->destination));
	key->identification = packet->identification;
	key->ifindex = skb->ifindex;
	key->is_leaving = is_leaving;
	/* RFC 8200, section 4.5: source, destination and identification name
	 * an IPv6 datagram; RFC 791 counts the protocol in. */
	key->protocol = packet->family == ZFW_AF_INET ? packet->protocol : 0;
}

static __always_inline void decide_later_fragment(const struct __sk_buff *skb,
						  const struct zfw_packet *packet, bool is_leaving,
						  struct zfw_decision *decision)
{
	struct zfw_fragment_key key = {};
	struct zfw_fragment *first;

	fragment_key(skb, packet, is_leaving, &key);
	first = bpf_map_lookup_elem(&fragments, &key);
	if (!first || first->expires < bpf_ktime_get_ns())
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_FRAGMENT_ORPHAN);
	else if (first->verdict == ZFW_VERDICT_PASS)
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_FRAGMENT_PASSED);
	else
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_FRAGMENT_DROPPED);
}

/* What is decided for a first fragment holds for those that follow. */
static __always_inline void remember_fragment(const struct __sk_buff *skb,
					      const struct zfw_packet *packet, bool is_leaving,
					      const struct zfw_decision *decision)
{
	struct zfw_fragment_key key = {};
	struct zfw_fragment fragment = {
		.expires = bpf_ktime_get_ns() + FRAGMENT_LIFETIME_NS,
		.verdict =
			decision->verdict == ZFW_VERDICT_DROP ? ZFW_VERDICT_DROP : ZFW_VERDICT_PASS,
	};

	fragment_key(skb, packet, is_leaving, &key);
	bpf_map_update_elem(&fragments, &key, &fragment, BPF_ANY);
}

/* What carries neither TCP, UDP nor ICMP. */
static __always_inline void decide_protocol(const struct zfw_packet *packet, __u32 settings,
					    struct zfw_decision *decision)
{
	if (settings & ZFW_SETTING_VRRP && packet->protocol == ZFW_PROTOCOL_VRRP)
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_VRRP);
	else if (settings & ZFW_SETTING_PASS_NON_TUPLE)
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_NON_TUPLE);
	else
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_PROTOCOL);
}

/* What is not whole IP. */
static __always_inline void decide_frame(enum zfw_parsed parsed, __u32 settings,
					 struct zfw_decision *decision)
{
	if (parsed == ZFW_PARSED_ARP)
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_ARP);
	else if (parsed == ZFW_PARSED_EAPOL && settings & ZFW_SETTING_EAPOL)
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_EAPOL);
	else if (parsed == ZFW_PARSED_EAPOL || parsed == ZFW_PARSED_NON_IP)
		if (settings & ZFW_SETTING_PASS_NON_TUPLE)
			decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_NON_TUPLE);
		else
			decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_NON_IP);
	else if (parsed == ZFW_PARSED_HEADER_CHAIN)
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_HEADER_CHAIN);
	else
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_MALFORMED);
}

/* RULE_FOUND with the rule, RULE_NONE, or RULE_CHANGING. */
static __always_inline int find_rule(const struct zfw_packet *packet,
				     const struct zfw_interface *interface, __u8 direction,
				     struct zfw_port_rule *rule)
{
	struct rule_query query = {};
	int match;

	__builtin_memcpy(query.source, packet->source, sizeof(query.source));
	__builtin_memcpy(query.destination, packet->destination, sizeof(query.destination));
	query.port = bpf_ntohs(packet->destination_port);
	query.key.table = direction +
			  (packet->family == ZFW_AF_INET ? ZFW_TABLE_IPV4 : ZFW_TABLE_IPV6) +
			  (packet->protocol == IPPROTO_TCP ? ZFW_TABLE_TCP : ZFW_TABLE_UDP);
	query.is_per_interface = !!(interface->settings & ZFW_SETTING_PER_INTERFACE_RULES);
	query.name_id = interface->name_id;
	match = match_rules(&query);
	*rule = query.rule;
	return match;
}

#endif
