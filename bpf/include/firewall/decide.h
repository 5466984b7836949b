/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The steps that decisions of both directions share. None has an effect.
 *
 * is_leaving is a constant wherever these functions are called: the compiler makes each
 * direction's own code from them.
 */
#ifndef FIREWALL_DECIDE_H
#define FIREWALL_DECIDE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#include "common/packet.h"
#include "firewall/abi.h"
#include "firewall/exceptions.h"
#include "firewall/flows.h"
#include "firewall/fragments.h"
#include "firewall/icmp.h"
#include "firewall/maps.h"
#include "firewall/verdict.h"

/* VRRP, RFC 9568; not in the kernel's headers. */
#define IPPROTO_VRRP 112

/* These settings hold on loopback, whatever the user has set. */
#define FW_LOOPBACK_SETTINGS (FW_SETTING_ICMP_ECHO | FW_SETTING_IPV6 | FW_SETTING_PASS_NON_TUPLE)

/* The number of an interface's name that no set of names holds. */
#define FW_NO_NAME FW_MAX_INTERFACE_NAMES

/* The interface of a packet. An unknown one gets the strictest settings. */
static __always_inline void fw_read_interface(__u32 ifindex, struct fw_interface *interface)
{
	__u32 row = ifindex % FW_INTERFACE_ROWS;
	struct fw_interface *known = bpf_map_lookup_elem(&interfaces, &row);

	if (known && known->ifindex == ifindex)
		*interface = *known;
	else {
		interface->ifindex = ifindex;
		interface->settings = FW_SETTING_OUTBOUND_FILTER;
		interface->name_id = FW_NO_NAME;
	}
	if (interface->link_flags & FW_LINK_LOOPBACK) {
		interface->settings |= FW_LOOPBACK_SETTINGS;
		/* Loopback never filters outbound packets, so its flows need no entry. */
		interface->link_flags &= ~FW_LINK_TRACK;
	}
}

/* A frame that holds no complete IP header. */
static __always_inline void fw_decide_frame(enum pkt_parsed parsed, __u32 settings,
					    struct fw_decision *decision)
{
	if (parsed == PKT_PARSED_ARP)
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_ARP);
	else if (parsed == PKT_PARSED_EAPOL && settings & FW_SETTING_EAPOL)
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_EAPOL);
	else if (parsed == PKT_PARSED_EAPOL || parsed == PKT_PARSED_NON_IP)
		if (settings & FW_SETTING_PASS_NON_TUPLE)
			fw_decide(decision, FW_VERDICT_PASS, FW_REASON_NON_TUPLE);
		else
			fw_decide(decision, FW_VERDICT_DROP, FW_REASON_NON_IP);
	else if (parsed == PKT_PARSED_HEADER_CHAIN)
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_HEADER_CHAIN);
	else
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_MALFORMED);
}

/*
 * How an outgoing packet is tracked. The beginning of a forwarded flow may date from before
 * the programs were attached. Of this host's own TCP flows only the first packet makes an entry:
 * what it sends in answer to an incoming packet belongs to no outgoing flow. A TCP packet in the
 * middle of a forwarded flow, and a datagram of this host, may answer the other end.
 */
static __always_inline enum fw_track fw_track_of(const struct __sk_buff *skb,
						 const struct packet *packet)
{
	if (packet->protocol == IPPROTO_UDP ?
		    !skb->ingress_ifindex :
		    skb->ingress_ifindex && packet->protocol == IPPROTO_TCP &&
			    !fw_is_only_syn(packet))
		return FW_TRACK_UNLESS_RULED;
	return skb->ingress_ifindex ? FW_TRACK_ADOPT : FW_TRACK_OPEN;
}

/*
 * A packet of a tracked flow. Inbound: an answer to a flow that was let out. Outbound: a
 * packet of a flow that was let out, or an answer to one that was let in. False if the flow
 * decides nothing.
 */
static __always_inline bool fw_decide_flow(struct __sk_buff *skb, struct packet *packet,
					   bool is_leaving, struct fw_decision *decision)
{
	struct fw_flow_match match = {};
	bool was_let_out, is_plausible;

	/* A bare SYN begins a connection, or begins it anew: that takes a rule. */
	if ((packet->protocol == IPPROTO_TCP && fw_is_only_syn(packet)) ||
	    !fw_find_flow(packet, &match))
		return false;
	was_let_out = match.flags & FW_FLOW_ADMITTED_OUT;
	if (is_leaving ? match.is_initiator && !was_let_out : match.is_initiator || !was_let_out)
		return false;
	is_plausible = fw_is_plausible(packet, &match);
	/* Both ends may ping each other with one identifier: this is a flow of its own. */
	if (!is_plausible && is_icmp(packet))
		return false;
	if (!is_plausible) {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_FLOW_INVALID);
		return true;
	}
	fw_decide(decision, FW_VERDICT_PASS, FW_REASON_FLOW);
	/* Numbers that this host's own TCP sends are believed (FW_TRACK_OPEN). */
	decision->track = is_leaving && !skb->ingress_ifindex ? FW_TRACK_OPEN : FW_TRACK_RENEW;
	return true;
}

/*
 * A packet of a protocol other than TCP, UDP and ICMP: GRE, ESP, SCTP. Its flow is known by the
 * addresses alone. Members of a group send to it, each by itself: these are no answers.
 */
static __always_inline void fw_decide_protocol(struct __sk_buff *skb, struct packet *packet,
					       __u32 settings, bool is_leaving,
					       struct fw_decision *decision)
{
	if (settings & FW_SETTING_VRRP && packet->protocol == IPPROTO_VRRP) {
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_VRRP);
	} else if (fw_decide_flow(skb, packet, is_leaving, decision)) {
		return;
	} else if (settings & FW_SETTING_PASS_NON_TUPLE) {
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_NON_TUPLE);
		/* What comes in begins the flow here, or its answer would begin one. */
		if (!is_multicast(packet->destination))
			decision->track = is_leaving ? fw_track_of(skb, packet) : FW_TRACK_ADOPT;
	} else {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_PROTOCOL);
	}
}

static __always_inline void fw_decide_icmp(struct __sk_buff *skb, struct packet *packet,
					   __u32 settings, bool is_leaving,
					   struct fw_decision *decision)
{
	enum fw_reason reason = fw_classify_icmp(skb, packet);
	bool passes =
		reason == FW_REASON_NEIGHBOUR_DISCOVERY || reason == FW_REASON_MULTICAST_LISTENER;

	if (reason == FW_REASON_ICMP_ERROR) {
		passes = (is_leaving && !skb->ingress_ifindex) ||
			 fw_quotes_known_flow(skb, packet, is_leaving,
					      is_leaving && settings & FW_SETTING_ICMP_ECHO);
		if (!passes)
			reason = FW_REASON_ICMP_ERROR_UNRELATED;
	}
	if (reason == FW_REASON_ICMP_ECHO) {
		if ((is_leaving || !packet->is_echo_request) &&
		    fw_decide_flow(skb, packet, is_leaving, decision))
			return;
		passes = settings & FW_SETTING_ICMP_ECHO;
		if (!passes)
			reason = FW_REASON_ICMP_ECHO_OFF;
	}
	if (!passes && settings & FW_SETTING_PASS_NON_TUPLE)
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_NON_TUPLE);
	else
		fw_decide(decision, passes ? FW_VERDICT_PASS : FW_VERDICT_DROP, reason);
	if (is_leaving && decision->verdict == FW_VERDICT_PASS && packet->is_echo_request)
		decision->track = fw_track_of(skb, packet);
}

/*
 * The steps that need no socket, no rule, and no flow of TCP or UDP. False if they decide nothing:
 * the packet is of TCP or UDP.
 */
static __always_inline bool fw_decide_early(struct __sk_buff *skb, struct packet *packet,
					    enum pkt_parsed parsed, __u32 settings, bool is_leaving,
					    struct fw_decision *decision)
{
	if (parsed != PKT_PARSED_IP)
		fw_decide_frame(parsed, settings, decision);
	else if (packet->family == AF_INET6 && !(settings & FW_SETTING_IPV6))
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_IPV6_OFF);
	else if (packet->is_source_routed)
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_SOURCE_ROUTE);
	else if (packet->fragment == PKT_FRAGMENT_LATER)
		fw_decide_later_fragment(skb, packet, is_leaving, decision);
	else if (is_icmp(packet))
		fw_decide_icmp(skb, packet, settings, is_leaving, decision);
	else if (fw_is_igmp(skb, packet))
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_MULTICAST_LISTENER);
	else if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP)
		fw_decide_protocol(skb, packet, settings, is_leaving, decision);
	else if (is_leaving ? fw_is_dhcp_request(skb->ifindex, packet) ||
				      fw_is_dhcp_answer(skb->ifindex, packet) :
			      fw_is_dhcp_reply(skb->ifindex, packet))
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_DHCP);
	else if (!(settings & FW_SETTING_SSH_OFF) &&
		 (is_leaving ? fw_is_ssh_answer(skb->ifindex, packet) :
			       fw_is_ssh(skb->ifindex, packet)))
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_SSH);
	else
		return false;
	return true;
}

#endif
