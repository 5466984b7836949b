/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What becomes of a packet that leaves, and why. Nothing here has an effect.
 *
 * Unless the interface filters what leaves, all of it does, and all that is decided
 * is whether its flow is tracked.
 */
#ifndef ZFW_EGRESS_H
#define ZFW_EGRESS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#include "firewall/decide.h"
#include "firewall/exceptions.h"
#include "firewall/flows.h"
#include "firewall/icmp.h"

/* A flow of another host may have begun before we were attached; of this host's own
 * only the first packet makes an entry: what it answers is no flow that left. */
static __always_inline enum zfw_track track_of(const struct __sk_buff *skb)
{
	return skb->ingress_ifindex ? ZFW_TRACK_ADOPT : ZFW_TRACK_OPEN;
}

static __always_inline bool is_icmp(const struct zfw_packet *packet)
{
	return packet->protocol == (packet->family == ZFW_AF_INET ? IPPROTO_ICMP : ZFW_NEXT_ICMPV6);
}

static __always_inline void decide_unfiltered(struct __sk_buff *skb, struct zfw_packet *packet,
					      enum zfw_parsed parsed, struct zfw_decision *decision)
{
	decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_EGRESS);
	if (parsed != ZFW_PARSED_IP || packet->fragment == ZFW_FRAGMENT_LATER)
		return;
	if (packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP ||
	    (is_icmp(packet) && judge_icmp(skb, packet) == ZFW_REASON_ICMP_ECHO))
		decision->track = track_of(skb);
}

/* A packet of a flow that was let out before, or an answer to one that was let in. */
static __always_inline bool decide_egress_flow(struct __sk_buff *skb, struct zfw_packet *packet,
					       struct zfw_decision *decision)
{
	struct flow_match match = {};

	/* Whoever begins a connection, or begins one again, needs a rule for it. */
	if ((packet->protocol == IPPROTO_TCP && is_only_syn(packet)) || !find_flow(packet, &match))
		return false;
	if (match.is_initiator && !(match.flags & ZFW_FLOW_ADMITTED_OUT))
		return false;
	/* The other end asks too, with the same identifier: an echo of its own. */
	if (is_icmp(packet) && !is_plausible(packet, &match))
		return false;
	if (is_plausible(packet, &match)) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_FLOW);
		/* The host's own end is believed as it is. */
		decision->track = skb->ingress_ifindex ? ZFW_TRACK_RENEW : ZFW_TRACK_OPEN;
	} else {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_FLOW_INVALID);
	}
	return true;
}

static __always_inline void decide_egress_icmp(struct __sk_buff *skb, struct zfw_packet *packet,
					       __u32 settings, struct zfw_decision *decision)
{
	enum zfw_reason reason = judge_icmp(skb, packet);
	bool passes = reason == ZFW_REASON_ICMP_ERROR || reason == ZFW_REASON_NEIGHBOUR_DISCOVERY ||
		      reason == ZFW_REASON_MULTICAST_LISTENER;

	if (reason == ZFW_REASON_ICMP_ECHO) {
		if (decide_egress_flow(skb, packet, decision))
			return;
		passes = settings & ZFW_SETTING_ICMP_ECHO;
		if (!passes)
			reason = ZFW_REASON_ICMP_ECHO_OFF;
	}
	if (!passes && settings & ZFW_SETTING_PASS_NON_TUPLE)
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_NON_TUPLE);
	else
		decided(decision, passes ? ZFW_VERDICT_PASS : ZFW_VERDICT_DROP, reason);
	/* One that leaves may be answered. */
	if (decision->verdict == ZFW_VERDICT_PASS && packet->is_echo_request)
		decision->track = track_of(skb);
}

/* Of a connection that this host has had for longer than what leaves is filtered: no
 * SYN of it was seen, and its socket could not have got so far against the rules. */
static __always_inline bool is_own_connection(struct __sk_buff *skb,
					      const struct zfw_packet *packet)
{
	struct zfw_packet answer = {};

	if (skb->ingress_ifindex || packet->protocol != IPPROTO_TCP ||
	    packet->tcp_flags & TCP_SYN || !(packet->tcp_flags & TCP_ACK))
		return false;
	answer.family = packet->family;
	answer.protocol = packet->protocol;
	__builtin_memcpy(answer.source, packet->destination, sizeof(answer.source));
	__builtin_memcpy(answer.destination, packet->source, sizeof(answer.destination));
	answer.source_port = packet->destination_port;
	answer.destination_port = packet->source_port;
	return find_socket(skb, &answer) == FLOW_SOCKET_SETTLED;
}

static __always_inline void decide_egress_rules(const struct zfw_packet *packet,
						const struct zfw_interface *interface,
						struct zfw_decision *decision)
{
	struct zfw_port_rule rule = {};
	int match = find_rule(packet, interface, ZFW_TABLE_EGRESS, &rule);

	if (match == RULE_CHANGING) {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_RULES_CHANGING);
		return;
	}
	if (match != RULE_FOUND) {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_EGRESS_NO_RULE);
		return;
	}
	decision->slot = rule.slot;
	if (rule.action == ZFW_ACTION_DENY) {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_RULE_DENY);
		return;
	}
	decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_RULE_PASS);
	decision->track = ZFW_TRACK_ADOPT;
}

/* What becomes of this packet, and why. Sets packet and decision, which come zeroed. */
static __always_inline void decide_egress(struct __sk_buff *skb, struct zfw_packet *packet,
					  struct zfw_decision *decision)
{
	struct zfw_interface interface = {};
	enum zfw_parsed parsed;

	decision->slot = ZFW_NO_SLOT;
	read_interface(skb, &interface);
	if (interface.link_flags & ZFW_LINK_LOOPBACK) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_LOOPBACK);
		return;
	}
	parsed = parse_packet(skb, !(interface.link_flags & ZFW_LINK_NO_ETHERNET), packet);
	if (!(interface.settings & ZFW_SETTING_OUTBOUND_FILTER)) {
		decide_unfiltered(skb, packet, parsed, decision);
		return;
	}
	if (parsed != ZFW_PARSED_IP) {
		decide_frame(parsed, interface.settings, decision);
		return;
	}
	if (packet->family == ZFW_AF_INET6 && !(interface.settings & ZFW_SETTING_IPV6)) {
		decided(decision, ZFW_VERDICT_DROP, ZFW_REASON_IPV6_OFF);
		return;
	}
	if (packet->fragment == ZFW_FRAGMENT_LATER) {
		decide_later_fragment(skb, packet, true, decision);
		return;
	}
	if (is_icmp(packet)) {
		decide_egress_icmp(skb, packet, interface.settings, decision);
		return;
	}
	if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP) {
		decide_protocol(packet, interface.settings, decision);
		return;
	}
	if (is_dhcp_request(skb, packet)) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_DHCP);
		return;
	}
	if (!(interface.settings & ZFW_SETTING_SSH_OFF) && is_ssh_answer(skb, packet)) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_SSH);
		return;
	}
	if (decide_egress_flow(skb, packet, decision))
		return;
	decide_egress_rules(packet, &interface, decision);
	if (decision->reason == ZFW_REASON_EGRESS_NO_RULE && is_own_connection(skb, packet)) {
		decided(decision, ZFW_VERDICT_PASS, ZFW_REASON_ESTABLISHED);
		decision->track = ZFW_TRACK_ADOPT;
	}
}

#endif
