/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Decides on an incoming packet, without an effect.
 */
#ifndef FIREWALL_INGRESS_H
#define FIREWALL_INGRESS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "common/packet.h"
#include "firewall/abi.h"
#include "firewall/decide.h"
#include "firewall/listeners.h"
#include "firewall/routing.h"
#include "firewall/rules.h"
#include "firewall/sockets.h"

/* Returns the socket to assign the packet to, referenced, or NULL. */
static __always_inline struct bpf_sock *
fw_decide_ingress_rules(struct __sk_buff *skb, struct packet *packet,
			const struct fw_interface *interface, struct fw_decision *decision)
{
	struct fw_port_rule rule = {};
	enum fw_track track;
	enum fw_listener_state state;
	struct bpf_sock *sk;
	int match = fw_find_rule(packet, interface, FW_TABLE_INGRESS, &rule);

	if (match == FW_MATCH_CHANGING) {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_RULES_CHANGING);
		return NULL;
	}
	if (match != FW_MATCH_FOUND) {
		if (interface->link_flags & FW_LINK_LOOPBACK) {
			fw_decide(decision, FW_VERDICT_PASS, FW_REASON_LOOPBACK);
		} else if (packet->protocol == IPPROTO_TCP && fw_crosses(packet)) {
			fw_decide(decision, FW_VERDICT_PASS, FW_REASON_FLOW);
			decision->track = FW_TRACK_RENEW;
		} else {
			fw_decide(decision, FW_VERDICT_DROP, FW_REASON_NO_RULE);
		}
		return NULL;
	}

	decision->slot = rule.slot;
	if (rule.action == FW_ACTION_DENY) {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_RULE_DENY);
		return NULL;
	}
	/* The answer of a proxy, or of a server behind this host, does not show which end began.
	 * Unless the client's flow has an entry, the answer would open one, and the client's next
	 * packets would pass as answers, whatever the rules say. A proxy's TCP answers come from
	 * its socket, which begins no flow by them. */
	track = interface->link_flags & FW_LINK_TRACK || ((packet->protocol == IPPROTO_UDP ||
							   rule.action == FW_ACTION_PASS) &&
							  fw_has_flow_tables()) ?
			FW_TRACK_ADOPT :
			FW_TRACK_NONE;
	if (rule.action == FW_ACTION_PASS) {
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_RULE_PASS);
		decision->track = track;
		return NULL;
	}
	/* Reassembly forgets the assigned socket, and "deliver" gives it back, if the kernel
	 * delivers the whole datagram and the look-up shows the interface. */
	if (packet->fragment != PKT_FRAGMENT_NONE &&
	    (!bpf_core_field_exists(((struct bpf_sk_lookup *)0)->ingress_ifindex) ||
	     fw_is_forwarded(skb, packet, skb->ifindex))) {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_FRAGMENT_INTERCEPT);
		return NULL;
	}
	sk = fw_find_listener(skb, packet, rule.tproxy_port, &state);
	if (!sk) {
		fw_decide(decision, FW_VERDICT_DROP,
			  state == FW_LISTENER_REFUSED ? FW_REASON_LISTENER_NOT_TRANSPARENT :
							 FW_REASON_NO_LISTENER);
		return NULL;
	}
	fw_decide(decision, FW_VERDICT_ASSIGN, FW_REASON_RULE_INTERCEPT);
	decision->track = track;
	return sk;
}

/*
 * Fills packet and decision; the caller zeroes both. With FW_VERDICT_ASSIGN it returns the
 * socket to assign the packet to, referenced, else NULL. is_test is a constant: a test run's
 * packet has an Ethernet header on every interface.
 */
static __always_inline struct bpf_sock *fw_decide_ingress(struct __sk_buff *skb,
							  struct packet *packet,
							  struct fw_decision *decision,
							  const bool is_test)
{
	struct fw_interface interface = {};
	enum fw_flow_socket socket;
	enum pkt_parsed parsed;

	decision->slot = FW_NO_SLOT;
	fw_read_interface(skb->ifindex, &interface);

	/* The kernel hands this host's own multicast and broadcast packets back to the
	 * interface that they left by, without a link-layer header (dev_loopback_xmit()). */
	if (skb->pkt_type == PACKET_LOOPBACK) {
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_LOOPBACK);
		return NULL;
	}
	parsed =
		parse_packet(skb, is_test || !(interface.link_flags & FW_LINK_NO_ETHERNET), packet);
	if (fw_decide_early(skb, packet, parsed, interface.settings, false, decision))
		return NULL;
	/* A socket of exactly this flow: the kernel delivers the packet there by its own
	 * addresses, so that an assignment would only cost time. Of UDP a connected socket
	 * alone, or an unrelated one on 0.0.0.0:53 would take what a rule intercepts. */
	socket = fw_find_socket(skb, packet);
	if (socket == FW_SOCKET_UNSETTLED || socket == FW_SOCKET_SETTLED) {
		fw_decide(decision, FW_VERDICT_PASS, FW_REASON_ESTABLISHED);
		if (interface.link_flags & FW_LINK_TRACK)
			/* Both ends of a settled TCP connection have answered. A datagram to a
			 * connected socket needs no consent: without a rule it opens no way out. */
			decision->track = socket != FW_SOCKET_SETTLED	  ? FW_TRACK_RENEW :
					  packet->protocol == IPPROTO_TCP ? FW_TRACK_ADOPT :
									    FW_TRACK_IF_RULED;
		return NULL;
	}
	if (fw_decide_flow(skb, packet, false, decision))
		return NULL;
	return fw_decide_ingress_rules(skb, packet, &interface, decision);
}

#endif
