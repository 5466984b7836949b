/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What becomes of a packet that comes in, and why. Nothing here has an effect.
 */
#ifndef ZFW_INGRESS_H
#define ZFW_INGRESS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#include "firewall/decide.h"
#include "firewall/exceptions.h"
#include "firewall/flows.h"
#include "firewall/icmp.h"
#include "firewall/sockets.h"

#define PACKET_LOOPBACK 5 /* <linux/if_packet.h> */

/* Of so many intercepted datagrams one is looked at for whether it would arrive. */
#define DATAGRAMS_A_LOOK 32

/* A packet of a flow that left before, in answer to it. */
static __always_inline bool decide_ingress_flow(struct zfw_packet *packet,
						struct zfw_decision *decision)
{
	struct flow_match match = {};

	/* No answer begins with a bare SYN. */
	if ((packet->protocol == IPPROTO_TCP && is_only_syn(packet)) ||
	    !find_flow(packet, &match) || match.is_initiator ||
	    !(match.flags & ZFW_FLOW_ADMITTED_OUT))
		return false;
	if (is_plausible(packet, &match)) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_FLOW);
		decision->track = ZFW_TRACK_RENEW;
	} else {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_FLOW_INVALID);
	}
	return true;
}

static __always_inline void decide_ingress_icmp(struct __sk_buff *skb, struct zfw_packet *packet,
						__u32 settings, struct zfw_decision *decision)
{
	enum zfw_reason reason = judge_icmp(skb, packet);
	bool passes =
		reason == ZFW_REASON_NEIGHBOUR_DISCOVERY || reason == ZFW_REASON_MULTICAST_LISTENER;

	if (reason == ZFW_REASON_ICMP_ERROR) {
		passes = quotes_known_flow(skb, packet);
		if (!passes)
			reason = ZFW_REASON_ICMP_ERROR_UNRELATED;
	}
	if (reason == ZFW_REASON_ICMP_ECHO) {
		if (!packet->is_echo_request && decide_ingress_flow(packet, decision))
			return;
		passes = settings & ZFW_SETTING_ICMP_ECHO;
		if (!passes)
			reason = ZFW_REASON_ICMP_ECHO_OFF;
	}
	/* All that does not carry TCP or UDP passes where that is asked for. */
	if (!passes && settings & ZFW_SETTING_PASS_NON_TUPLE)
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_NON_TUPLE);
	else
		decided(decision, passes ? ZFW_VERDICT_PASS : ZFW_VERDICT_DROP, reason);
}

/*
 * Would the stack forward this packet instead of delivering it to an assigned
 * socket? The helper only tells where the interface forwards and a route leads
 * elsewhere (87f5fc7e48dd); no route at all looks like a local one. A global
 * function, for its stack.
 */
__noinline int is_not_local(struct __sk_buff *skb, struct zfw_packet *packet)
{
	struct bpf_fib_lookup route = {};
	long result;

	if (!packet)
		return 0;
	route.ifindex = skb->ifindex;
	route.l4_protocol = packet->protocol;
	if (packet->family == ZFW_AF_INET) {
		route.family = ZFW_AF_INET;
		route.ipv4_src = packet->source[3];
		route.ipv4_dst = packet->destination[3];
	} else {
		route.family = ZFW_AF_INET6;
		__builtin_memcpy(route.ipv6_src, packet->source, 16);
		__builtin_memcpy(route.ipv6_dst, packet->destination, 16);
	}
	result = bpf_fib_lookup(skb, &route, sizeof(route), 0);
	return result >= 0 && result != BPF_FIB_LKUP_RET_NOT_FWDED &&
	       result != BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/* A socket to assign to, referenced, or NULL. */
static __always_inline struct bpf_sock *decide_ingress_rules(struct __sk_buff *skb,
							     struct zfw_packet *packet,
							     const struct zfw_interface *interface,
							     struct zfw_decision *decision)
{
	/* UDP does not tell who began. A proxy's answer would begin a flow of this host's,
	 * and what the client sends next would be an answer, not for the proxy any more. */
	enum zfw_track track =
		interface->link_flags & ZFW_LINK_TRACK ||
				(packet->protocol == IPPROTO_UDP && has_flow_tables()) ?
			ZFW_TRACK_ADOPT :
			ZFW_TRACK_NONE;
	struct zfw_port_rule rule = {};
	struct bpf_sock *sk;
	int match = find_rule(packet, interface, ZFW_TABLE_INGRESS, &rule);

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

	decision->slot = rule.slot;
	if (rule.action == ZFW_ACTION_DENY) {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_RULE_DENY);
		return NULL;
	}
	if (rule.action == ZFW_ACTION_PASS) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_RULE_PASS);
		decision->track = track;
		return NULL;
	}
	/* An assigned socket does not survive reassembly: without it the whole
	 * datagram would go to whoever else listens there. */
	if (packet->fragment != ZFW_FRAGMENT_NONE) {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_FRAGMENT_INTERCEPT);
		return NULL;
	}
	/* 100 ns: each connection can afford that, a datagram only now and then. */
	if ((packet->protocol == IPPROTO_TCP ? is_only_syn(packet) :
					       bpf_get_prandom_u32() % DATAGRAMS_A_LOOK == 0) &&
	    is_not_local(skb, packet)) {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_NOT_LOCAL);
		return NULL;
	}
	sk = find_listener(skb, packet, rule.tproxy_port);
	if (!sk) {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_NO_LISTENER);
		return NULL;
	}
	decided(decision, ZFW_VERDICT_ASSIGN, ZFW_REASON_RULE_INTERCEPT);
	decision->track = track;
	return sk;
}

/*
 * What becomes of this packet, and why. Sets packet and decision, which come
 * zeroed; returns the socket to assign to, referenced, with
 * ZFW_VERDICT_ASSIGN, else NULL.
 */
static __always_inline struct bpf_sock *
decide_ingress(struct __sk_buff *skb, struct zfw_packet *packet, struct zfw_decision *decision)
{
	struct zfw_interface interface = {};
	enum flow_socket socket;
	enum zfw_parsed parsed;

	decision->slot = ZFW_NO_SLOT;
	read_interface(skb, &interface);

	/* What this host sent to a group or to all comes back in by the interface
	 * it left through, and starts with its IP header (dev_loopback_xmit()). */
	if (skb->pkt_type == PACKET_LOOPBACK) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_LOOPBACK);
		return NULL;
	}
	parsed = parse_packet(skb, !(interface.link_flags & ZFW_LINK_NO_ETHERNET), packet);
	if (parsed != ZFW_PARSED_IP) {
		decide_frame(parsed, interface.settings, decision);
		return NULL;
	}
	if (packet->family == ZFW_AF_INET6 && !(interface.settings & ZFW_SETTING_IPV6)) {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_IPV6_OFF);
		return NULL;
	}
	if (packet->fragment == ZFW_FRAGMENT_LATER) {
		decide_later_fragment(skb, packet, false, decision);
		return NULL;
	}
	if (packet->protocol == (packet->family == ZFW_AF_INET ? IPPROTO_ICMP : ZFW_NEXT_ICMPV6)) {
		decide_ingress_icmp(skb, packet, interface.settings, decision);
		return NULL;
	}
	if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP) {
		decide_protocol(packet, interface.settings, decision);
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
	/* A socket of this very flow: the packet's own addresses lead there, to assign
	 * it would cost more and say the same. Only a connected one of UDP, or an
	 * unrelated one on 0.0.0.0:53 would take what a rule intercepts. */
	socket = find_socket(skb, packet);
	if (socket == FLOW_SOCKET_UNSETTLED || socket == FLOW_SOCKET_SETTLED) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_ESTABLISHED);
		if (interface.link_flags & ZFW_LINK_TRACK)
			decision->track =
				socket == FLOW_SOCKET_SETTLED ? ZFW_TRACK_ADOPT : ZFW_TRACK_RENEW;
		return NULL;
	}
	if (decide_ingress_flow(packet, decision))
		return NULL;
	return decide_ingress_rules(skb, packet, &interface, decision);
}

#endif
