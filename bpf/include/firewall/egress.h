/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Decides on an outgoing packet, without an effect.
 *
 * Unless the interface has an outbound filter, every packet passes, and the only question is
 * whether its flow is tracked.
 */
#ifndef FIREWALL_EGRESS_H
#define FIREWALL_EGRESS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#include "common/packet.h"
#include "firewall/abi.h"
#include "firewall/decide.h"
#include "firewall/questions.h"
#include "firewall/rules.h"
#include "firewall/sockets.h"

static __always_inline void fw_decide_unfiltered(struct __sk_buff *skb, struct packet *packet,
						 enum pkt_parsed parsed,
						 struct fw_decision *decision)
{
	fw_decide(decision, FW_VERDICT_PASS, FW_REASON_EGRESS);
	if (parsed != PKT_PARSED_IP || packet->fragment == PKT_FRAGMENT_LATER)
		return;
	if (packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP ||
	    (is_icmp(packet) ? fw_classify_icmp(skb, packet) == FW_REASON_ICMP_ECHO :
			       !is_multicast(packet->destination)))
		decision->track = fw_track_of(skb, packet);
}

/*
 * Whether the packet is of a connection that this host opened before the outbound filter was
 * on. Its SYN was not seen. Its socket is settled, which a connection that the rules forbid
 * could not have reached.
 */
static __always_inline bool fw_is_own_connection(struct __sk_buff *skb, const struct packet *packet)
{
	struct packet answer = {};

	if (skb->ingress_ifindex || packet->protocol != IPPROTO_TCP ||
	    packet->tcp_flags & TCP_SYN || !(packet->tcp_flags & TCP_ACK))
		return false;
	answer.family = packet->family;
	answer.protocol = packet->protocol;
	__builtin_memcpy(answer.source, packet->destination, sizeof(answer.source));
	__builtin_memcpy(answer.destination, packet->source, sizeof(answer.destination));
	answer.source_port = packet->destination_port;
	answer.destination_port = packet->source_port;
	return fw_find_socket(skb, &answer) == FW_SOCKET_SETTLED;
}

static __always_inline void fw_decide_egress_rules(const struct __sk_buff *skb,
						   const struct packet *packet,
						   const struct fw_interface *interface,
						   struct fw_decision *decision)
{
	struct fw_port_rule rule = {};
	int match = fw_find_rule(packet, interface, FW_TABLE_EGRESS, &rule);

	if (match == FW_MATCH_CHANGING) {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_RULES_CHANGING);
		return;
	}
	if (match != FW_MATCH_FOUND) {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_EGRESS_NO_RULE);
		return;
	}
	decision->slot = rule.slot;
	if (rule.action == FW_ACTION_DENY) {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_RULE_DENY);
		return;
	}
	fw_decide(decision, FW_VERDICT_PASS, FW_REASON_RULE_PASS);
	decision->track = fw_track_of(skb, packet);
	if (decision->track == FW_TRACK_OPEN)
		decision->track = FW_TRACK_ADOPT;
}

/* Fills packet and decision; the caller zeroes both. is_test: as of fw_decide_ingress(). */
static __always_inline void fw_decide_egress(struct __sk_buff *skb, struct packet *packet,
					     struct fw_decision *decision, const bool is_test)
{
	struct fw_interface interface = {};
	enum pkt_parsed parsed;

	decision->slot = FW_NO_SLOT;
	fw_read_interface(skb->ifindex, &interface);
	if (interface.link_flags & FW_LINK_LOOPBACK) {
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_LOOPBACK);
		return;
	}
	parsed =
		parse_packet(skb, is_test || !(interface.link_flags & FW_LINK_NO_ETHERNET), packet);
	/* "ingress" has marked it, so it was forwarded. */
	if (skb->tc_index == FW_OWN_PACKET && skb->ingress_ifindex) {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_MISROUTED);
		return;
	}
	if (!(interface.settings & FW_SETTING_OUTBOUND_FILTER)) {
		fw_decide_unfiltered(skb, packet, parsed, decision);
		return;
	}
	if (fw_decide_early(skb, packet, parsed, interface.settings, true, decision) ||
	    fw_decide_flow(skb, packet, true, decision))
		return;
	fw_decide_egress_rules(skb, packet, &interface, decision);
	/* As an answer of a flow, it leaves whatever the rules say. */
	if ((decision->reason == FW_REASON_EGRESS_NO_RULE ||
	     decision->reason == FW_REASON_RULE_DENY) &&
	    fw_answers_question(skb, packet)) {
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_FLOW);
		decision->slot = FW_NO_SLOT;
		return;
	}
	if (decision->reason == FW_REASON_EGRESS_NO_RULE && fw_is_own_connection(skb, packet)) {
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_ESTABLISHED);
		decision->track = FW_TRACK_ADOPT;
	}
}

#endif
