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
#include <bpf/bpf_helpers.h>

#include "common/packet.h"
#include "firewall/abi.h"
#include "firewall/decide.h"
#include "firewall/listeners.h"
#include "firewall/rules.h"
#include "firewall/sockets.h"

/* One in so many intercepted datagrams is checked with fw_is_not_local(). */
#define FW_LOCAL_CHECK_INTERVAL 32

/*
 * Whether the kernel would forward this packet instead of delivering it to an assigned
 * socket. bpf_fib_lookup() knows only where the interface forwards and a route leads
 * elsewhere (87f5fc7e48dd); a missing route looks like a local one. A global function, so
 * that the caller's other calls do not pay for its frame.
 */
__noinline int fw_is_not_local(struct __sk_buff *skb, struct packet *packet)
{
	struct bpf_fib_lookup route = {};
	long result;

	if (!packet)
		return 0;
	route.ifindex = skb->ifindex;
	route.l4_protocol = packet->protocol;
	if (packet->family == AF_INET) {
		route.family = AF_INET;
		route.ipv4_src = packet->source[3];
		route.ipv4_dst = packet->destination[3];
	} else {
		route.family = AF_INET6;
		__builtin_memcpy(route.ipv6_src, packet->source, 16);
		__builtin_memcpy(route.ipv6_dst, packet->destination, 16);
	}
	result = bpf_fib_lookup(skb, &route, sizeof(route), 0);
	return result >= 0 && result != BPF_FIB_LKUP_RET_NOT_FWDED &&
	       result != BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/* The port of a listener that is not mirrored yet, or 0. */
struct fw_new_listener {
	__u16 port;
};

/* Returns the socket to assign the packet to, referenced, or NULL. */
static __always_inline struct bpf_sock *
fw_decide_ingress_rules(struct __sk_buff *skb, struct packet *packet,
			const struct fw_interface *interface, struct fw_decision *decision,
			struct fw_new_listener *new)
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
		if (interface->link_flags & FW_LINK_LOOPBACK)
			fw_decide(decision, FW_VERDICT_PASS, FW_REASON_LOOPBACK);
		else
			fw_decide(decision, FW_VERDICT_DROP, FW_REASON_NO_RULE);
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
	/* Reassembly forgets the assigned socket. The kernel would deliver the whole datagram
	 * to any other socket that is bound to its address. */
	if (packet->fragment != PKT_FRAGMENT_NONE) {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_FRAGMENT_INTERCEPT);
		return NULL;
	}
	/* The check takes 100 ns: every connection can afford it, but not every datagram. */
	if ((packet->protocol == IPPROTO_TCP ?
		     fw_is_only_syn(packet) :
		     bpf_get_prandom_u32() % FW_LOCAL_CHECK_INTERVAL == 0) &&
	    fw_is_not_local(skb, packet)) {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_NOT_LOCAL);
		return NULL;
	}
	sk = fw_find_listener(skb, packet, rule.tproxy_port, &state);
	if (!sk) {
		fw_decide(decision, FW_VERDICT_DROP,
			  state == FW_LISTENER_REFUSED ? FW_REASON_LISTENER_NOT_TRANSPARENT :
							 FW_REASON_NO_LISTENER);
		return NULL;
	}
	if (state == FW_LISTENER_NEW)
		new->port = rule.tproxy_port;
	fw_decide(decision, FW_VERDICT_ASSIGN, FW_REASON_RULE_INTERCEPT);
	decision->track = track;
	return sk;
}

/*
 * Fills packet, decision and new; the caller zeroes them. With FW_VERDICT_ASSIGN it returns the
 * socket to assign the packet to, referenced, else NULL.
 */
static __always_inline struct bpf_sock *fw_decide_ingress(struct __sk_buff *skb,
							  struct packet *packet,
							  struct fw_decision *decision,
							  struct fw_new_listener *new)
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
	parsed = parse_packet(skb, !(interface.link_flags & FW_LINK_NO_ETHERNET), packet);
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
	return fw_decide_ingress_rules(skb, packet, &interface, decision, new);
}

#endif
