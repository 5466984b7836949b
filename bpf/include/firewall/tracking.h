/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Carries out how a packet that passes is tracked. Two kinds of tracking depend on the ingress
 * rules, which are looked up only where the flow has no entry.
 */
#ifndef FIREWALL_TRACKING_H
#define FIREWALL_TRACKING_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/packet.h"
#include "firewall/abi.h"
#include "firewall/decide.h"
#include "firewall/exceptions.h"
#include "firewall/flows.h"
#include "firewall/fragments.h"
#include "firewall/questions.h"
#include "firewall/rules.h"

/* Whether a packet without an entry makes one. */
static __always_inline bool fw_makes_entry(struct __sk_buff *skb, struct packet *packet,
					   __u32 track)
{
	struct fw_interface interface = {};
	struct fw_rule_query query = {};
	int match;

	fw_read_interface(skb->ifindex, &interface);
	if (track == FW_TRACK_IF_RULED) {
		__builtin_memcpy(query.source, packet->source, sizeof(query.source));
		__builtin_memcpy(query.destination, packet->destination, sizeof(query.source));
		query.port = bpf_ntohs(packet->destination_port);
		match = fw_search_rules(&query, packet, &interface, FW_TABLE_INGRESS);
		return match == FW_MATCH_FOUND && query.rule.action != FW_ACTION_DENY;
	}
	/* This host asks from the interface's address, unless it answers a question to a group.
	 * Whether a datagram from another one is a proxy's answer depends on the rules. */
	if (packet->protocol == IPPROTO_UDP &&
	    fw_is_own_address(skb->ifindex, packet->family, packet->source))
		return !fw_answers_question(skb, packet);
	__builtin_memcpy(query.source, packet->destination, sizeof(query.source));
	__builtin_memcpy(query.destination, packet->source, sizeof(query.destination));
	query.port = bpf_ntohs(packet->source_port);
	match = fw_search_rules(&query, packet, &interface, FW_TABLE_INGRESS);
	if (match != FW_MATCH_FOUND)
		return match == FW_MATCH_NONE;
	/* What a rule denies did not begin, and what a rule intercepts is not forwarded. */
	return query.rule.action == FW_ACTION_DENY ||
	       (query.rule.action == FW_ACTION_INTERCEPT && packet->protocol == IPPROTO_TCP);
}

/*
 * admitted is FW_FLOW_ADMITTED_IN or FW_FLOW_ADMITTED_OUT. The answer to a datagram may come in
 * fragments of any order. What is intercepted has no answer of its destination.
 */
static __always_inline void fw_track(struct __sk_buff *skb, struct packet *packet,
				     const struct fw_decision *decision, __u32 admitted)
{
	__u32 track = decision->track;
	bool is_ruled = track == FW_TRACK_IF_RULED || track == FW_TRACK_UNLESS_RULED;
	int tracked;

	if (track == FW_TRACK_NONE || decision->verdict == FW_VERDICT_DROP)
		return;
	tracked = fw_track_flow(packet, is_ruled ? FW_TRACK_RENEW : track, admitted);
	if (is_ruled && tracked == FW_TRACKED_NOT && fw_makes_entry(skb, packet, track))
		tracked = fw_track_flow(packet, FW_TRACK_ADOPT, admitted);
	if (admitted == FW_FLOW_ADMITTED_IN && track == FW_TRACK_ADOPT &&
	    fw_is_to_group(skb, packet))
		fw_note_question(skb, packet);
	if (tracked == FW_TRACKED_BEGINNING && decision->verdict == FW_VERDICT_PASS &&
	    packet->protocol != IPPROTO_TCP)
		fw_remember_pair(skb, packet, false, true);
}

#endif
