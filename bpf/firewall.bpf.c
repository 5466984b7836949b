// SPDX-License-Identifier: GPL-2.0-only
/*
 * The interception firewall: decide, then act.
 *
 * decide() says what becomes of a packet and has no effect. "ingress" carries
 * its answer out; "explain" writes it down for BPF_PROG_TEST_RUN, so that tests
 * and people ask the very code that runs on the wire.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "icmp.h"
#include "maps.h"
#include "parse.h"
#include "rules.h"
#include "sockets.h"
#include "zfw_abi.h"

#define DHCP_SERVER_PORT 67
#define DHCP_CLIENT_PORT 68
#define DHCPV6_SERVER_PORT 547
#define DHCPV6_CLIENT_PORT 546
#define SSH_PORT 22
#define PACKET_LOOPBACK 5 /* <linux/if_packet.h> */

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

static __always_inline void fragment_key(const struct __sk_buff *skb,
					 const struct zfw_packet *packet,
					 struct zfw_fragment_key *key)
{
	__builtin_memcpy(key->source, packet->source, sizeof(key->source));
	__builtin_memcpy(key->destination, packet->destination, sizeof(key->destination));
	key->identification = packet->identification;
	key->ifindex = skb->ifindex;
	/* RFC 8200, section 4.5: source, destination and identification name
	 * an IPv6 datagram; RFC 791 counts the protocol in. */
	key->protocol = packet->family == ZFW_AF_INET ? packet->protocol : 0;
}

static __always_inline void decide_later_fragment(const struct __sk_buff *skb,
						  const struct zfw_packet *packet,
						  struct zfw_decision *decision)
{
	struct zfw_fragment_key key = {};
	struct zfw_fragment *first;

	fragment_key(skb, packet, &key);
	first = bpf_map_lookup_elem(&fragments, &key);
	if (!first || first->expires < bpf_ktime_get_ns())
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_FRAGMENT_ORPHAN);
	else if (first->verdict == ZFW_VERDICT_PASS)
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_FRAGMENT_PASSED);
	else
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_FRAGMENT_DROPPED);
}

static __always_inline void decide_icmp(struct __sk_buff *skb, struct zfw_packet *packet,
					__u32 settings, struct zfw_decision *decision)
{
	enum zfw_reason reason = judge_icmp(skb, packet, settings);
	bool passes = reason == ZFW_REASON_ICMP_ECHO || reason == ZFW_REASON_ICMP_ERROR ||
		      reason == ZFW_REASON_NEIGHBOUR_DISCOVERY ||
		      reason == ZFW_REASON_MULTICAST_LISTENER;

	/* All that does not carry TCP or UDP passes where that is asked for. */
	if (!passes && settings & ZFW_SETTING_PASS_NON_TUPLE)
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_NON_TUPLE);
	else
		decided(decision, passes ? ZFW_VERDICT_PASS : ZFW_VERDICT_DROP, reason);
}

static __always_inline bool is_own_address(const struct __sk_buff *skb,
					   const struct zfw_packet *packet)
{
	struct zfw_address address = { .ifindex = skb->ifindex };

	/* The table has IPv4 addresses as ::ffff:a.b.c.d. An IPv6 packet to
	 * such an address is not for the IPv4 one. */
	if (packet->family == ZFW_AF_INET6 && !packet->destination[0] && !packet->destination[1] &&
	    packet->destination[2] == bpf_htonl(0xffff))
		return false;

	__builtin_memcpy(address.address, packet->destination, sizeof(address.address));
	return bpf_map_lookup_elem(&addresses, &address);
}

/* A DHCP server's answer: RFC 2131, section 4.1; RFC 8415, section 7.2. */
static __always_inline bool is_dhcp_reply(const struct __sk_buff *skb,
					  const struct zfw_packet *packet)
{
	if (packet->protocol != IPPROTO_UDP)
		return false;
	if (packet->family == ZFW_AF_INET)
		return packet->source_port == bpf_htons(DHCP_SERVER_PORT) &&
		       packet->destination_port == bpf_htons(DHCP_CLIENT_PORT) &&
		       (packet->destination[3] == bpf_htonl(INADDR_BROADCAST) ||
			is_own_address(skb, packet));
	return packet->source_port == bpf_htons(DHCPV6_SERVER_PORT) &&
	       packet->destination_port == bpf_htons(DHCPV6_CLIENT_PORT) &&
	       (packet->destination[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline bool is_ssh(const struct __sk_buff *skb, const struct zfw_packet *packet)
{
	return packet->protocol == IPPROTO_TCP && packet->destination_port == bpf_htons(SSH_PORT) &&
	       is_own_address(skb, packet);
}

/* A socket to assign to, referenced, or NULL. */
static __always_inline struct bpf_sock *decide_rules(struct __sk_buff *skb,
						     const struct zfw_packet *packet,
						     const struct zfw_interface *interface,
						     struct zfw_decision *decision)
{
	struct rule_query query = {};
	struct bpf_sock *sk;
	int match;

	__builtin_memcpy(query.source, packet->source, sizeof(query.source));
	__builtin_memcpy(query.destination, packet->destination, sizeof(query.destination));
	query.port = bpf_ntohs(packet->destination_port);
	query.key.table = ZFW_TABLE_INGRESS +
			  (packet->family == ZFW_AF_INET ? ZFW_TABLE_IPV4 : ZFW_TABLE_IPV6) +
			  (packet->protocol == IPPROTO_TCP ? ZFW_TABLE_TCP : ZFW_TABLE_UDP);
	query.is_per_interface = !!(interface->settings & ZFW_SETTING_PER_INTERFACE_RULES);
	query.name_id = interface->name_id;

	match = match_rules(&query);
	if (match == RULE_CHANGING) {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_RULES_CHANGING);
		return NULL;
	}
	if (match != RULE_FOUND) {
		if (interface->link_flags & ZFW_LINK_LOOPBACK)
			decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_LOOPBACK);
		else
			decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_NO_RULE);
		return NULL;
	}

	decision->slot = query.rule.slot;
	if (query.rule.action == ZFW_ACTION_DENY) {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_RULE_DENY);
		return NULL;
	}
	if (query.rule.action == ZFW_ACTION_PASS) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_RULE_PASS);
		return NULL;
	}
	/* An assigned socket does not survive reassembly: without it the whole
	 * datagram would go to whoever else listens there. */
	if (packet->fragment != ZFW_FRAGMENT_NONE) {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_FRAGMENT_INTERCEPT);
		return NULL;
	}
	sk = find_listener(skb, packet, query.rule.tproxy_port);
	if (sk)
		decided(decision, ZFW_VERDICT_ASSIGN, ZFW_REASON_RULE_INTERCEPT);
	else
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_NO_LISTENER);
	return sk;
}

/*
 * What becomes of this packet, and why. Sets packet and decision, which come
 * zeroed; returns the socket to assign to, referenced, with
 * ZFW_VERDICT_ASSIGN, else NULL.
 */
static __always_inline struct bpf_sock *decide(struct __sk_buff *skb, struct zfw_packet *packet,
					       struct zfw_decision *decision)
{
	struct zfw_interface interface = {};
	struct zfw_interface *known;
	__u32 row = skb->ifindex % ZFW_INTERFACE_ROWS;

	decision->slot = ZFW_NO_SLOT;
	known = bpf_map_lookup_elem(&interfaces, &row);
	/* An interface that is not known has the strictest settings. */
	if (known && known->ifindex == skb->ifindex)
		interface = *known;
	if (interface.link_flags & ZFW_LINK_LOOPBACK)
		interface.settings |= LOOPBACK_SETTINGS;

	/* What this host sent to a group or to all comes back in by the interface
	 * it left through, and starts with its IP header (dev_loopback_xmit()). */
	if (skb->pkt_type == PACKET_LOOPBACK) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_LOOPBACK);
		return NULL;
	}
	switch (parse_packet(skb, !(interface.link_flags & ZFW_LINK_NO_ETHERNET), packet)) {
	case ZFW_PARSED_IP:
		break;
	case ZFW_PARSED_ARP:
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_ARP);
		return NULL;
	case ZFW_PARSED_NON_IP:
		if (interface.settings & ZFW_SETTING_PASS_NON_TUPLE)
			decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_NON_TUPLE);
		else
			decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_NON_IP);
		return NULL;
	case ZFW_PARSED_HEADER_CHAIN:
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_HEADER_CHAIN);
		return NULL;
	default:
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_MALFORMED);
		return NULL;
	}

	if (packet->family == ZFW_AF_INET6 && !(interface.settings & ZFW_SETTING_IPV6)) {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_IPV6_OFF);
		return NULL;
	}
	if (packet->fragment == ZFW_FRAGMENT_LATER) {
		decide_later_fragment(skb, packet, decision);
		return NULL;
	}
	if (packet->protocol == (packet->family == ZFW_AF_INET ? IPPROTO_ICMP : ZFW_NEXT_ICMPV6)) {
		decide_icmp(skb, packet, interface.settings, decision);
		return NULL;
	}
	if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP) {
		if (interface.settings & ZFW_SETTING_PASS_NON_TUPLE)
			decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_NON_TUPLE);
		else
			decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_PROTOCOL);
		return NULL;
	}
	if (is_dhcp_reply(skb, packet)) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_DHCP);
		return NULL;
	}
	if (!(interface.settings & ZFW_SETTING_SSH_OFF) && is_ssh(skb, packet)) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_SSH);
		return NULL;
	}
	/* Its own addresses lead the packet to the socket: to assign it would cost
	 * more and say the same. */
	if (is_established(skb, packet)) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_ESTABLISHED);
		return NULL;
	}
	return decide_rules(skb, packet, &interface, decision);
}

static __always_inline void add(struct zfw_counter *counter, __u32 bytes)
{
	counter->packets++;
	counter->bytes += bytes;
}

static __always_inline void count(const struct __sk_buff *skb, const struct zfw_decision *decision)
{
	__u32 reason = decision->reason;
	struct zfw_counter *counter = bpf_map_lookup_elem(&reasons, &reason);
	__u32 segment, slot;
	void *counters;

	if (counter)
		add(counter, skb->len);
	if (decision->slot == ZFW_NO_SLOT)
		return;
	segment = decision->slot / ZFW_SEGMENT_SLOTS;
	slot = decision->slot % ZFW_SEGMENT_SLOTS;
	counters = bpf_map_lookup_elem(&rule_counters, &segment);
	if (!counters)
		return;
	counter = bpf_map_lookup_elem(counters, &slot);
	if (counter)
		add(counter, skb->len);
}

/* What is decided for a first fragment holds for those that follow. */
static __always_inline void remember_fragment(const struct __sk_buff *skb,
					      const struct zfw_packet *packet,
					      const struct zfw_decision *decision)
{
	struct zfw_fragment_key key = {};
	struct zfw_fragment fragment = {
		.expires = bpf_ktime_get_ns() + FRAGMENT_LIFETIME_NS,
		.verdict =
			decision->verdict == ZFW_VERDICT_DROP ? ZFW_VERDICT_DROP : ZFW_VERDICT_PASS,
	};

	fragment_key(skb, packet, &key);
	bpf_map_update_elem(&fragments, &key, &fragment, BPF_ANY);
}

/*
 * TC_ACT_UNSPEC lets filters behind ours see the packet, with clsact as with
 * TCX (where the same number is called TCX_NEXT).
 */
SEC("tc")
int ingress(struct __sk_buff *skb)
{
	struct zfw_packet packet = {};
	struct zfw_decision decision = {};
	struct bpf_sock *sk = decide(skb, &packet, &decision);

	if (sk) {
		long error = bpf_sk_assign(skb, sk, 0);

		bpf_sk_release(sk);
		/* It must not go to whoever else listens. */
		if (error)
			decided(&decision, ZFW_VERDICT_DROP, ZFW_REASON_ASSIGN_FAILED);
	}
	if (packet.fragment == ZFW_FRAGMENT_FIRST)
		remember_fragment(skb, &packet, &decision);
	count(skb, &decision);
	return decision.verdict == ZFW_VERDICT_DROP ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("tc")
int egress(struct __sk_buff *skb)
{
	struct zfw_decision decision = { ZFW_VERDICT_PASS, ZFW_REASON_EGRESS, ZFW_NO_SLOT };

	count(skb, &decision);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int explain(struct __sk_buff *skb)
{
	struct zfw_packet packet = {};
	struct zfw_decision decision = {};
	struct bpf_sock *sk = decide(skb, &packet, &decision);

	if (sk)
		bpf_sk_release(sk);
	skb->cb[0] = decision.verdict;
	skb->cb[1] = decision.reason;
	skb->cb[2] = decision.slot;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
