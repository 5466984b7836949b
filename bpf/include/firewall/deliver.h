/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The net below "ingress": a packet that a rule intercepts goes to the rule's listener or nowhere.
 *
 * "ingress" assigns the listener to the packet. The kernel forgets it wherever it clones the packet
 * on its way up, as skb_share_check() in ip_rcv() does where a packet socket on ETH_P_IP has the
 * packet too. Then it looks a socket up by the packet's own addresses, and runs this program before
 * it takes the host's own service on that port. So it does for a SYN that ends a TIME_WAIT. Packets
 * that keep their socket never come here.
 */
#ifndef FIREWALL_DELIVER_H
#define FIREWALL_DELIVER_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/maps.h"
#include "common/packet.h"
#include "common/verifier.h"
#include "firewall/abi.h"
#include "firewall/decide.h"
#include "firewall/devices.h"
#include "firewall/listeners.h"
#include "firewall/rules.h"
#include "firewall/verdict.h"

/* The packet as far as the look-up knows it: addresses, ports and protocol. */
static __always_inline void fw_read_lookup(const struct bpf_sk_lookup *ctx, struct packet *packet)
{
	packet->family = ctx->family;
	packet->protocol = ctx->protocol;
	packet->source_port = ctx->remote_port;
	packet->destination_port = bpf_htons(ctx->local_port);
	if (ctx->family == AF_INET) {
		__be32 remote = READ_ONCE(ctx->remote_ip4), local = READ_ONCE(ctx->local_ip4);

		/* The compiler would otherwise merge this read with that of the other branch. */
		barrier_var(local);
		map_ipv4(packet->source, remote);
		map_ipv4(packet->destination, local);
	} else {
		READ_ADDRESS(packet->source, ctx->remote_ip6);
		READ_ADDRESS(packet->destination, ctx->local_ip6);
	}
}

/* Whether "ingress" passed this packet before it came to the rules. */
static __always_inline bool fw_is_exempt(struct packet *packet,
					 const struct fw_interface *interface)
{
	struct fw_flow_match match = {};

	if (fw_is_dhcp_reply(interface->ifindex, packet))
		return true;
	if (!(interface->settings & FW_SETTING_SSH_OFF) && fw_is_ssh(interface->ifindex, packet))
		return true;
	/* An answer to an unconnected socket of this host. TCP's answers have a socket of their
	 * own, which the kernel finds before it comes here. */
	return packet->protocol == IPPROTO_UDP && fw_find_flow(packet, &match) &&
	       !match.is_initiator && match.flags & FW_FLOW_ADMITTED_OUT;
}

/* Whether "ingress" is attached to an interface. */
static __always_inline bool fw_is_attached(__u32 ifindex)
{
	__u32 row = ifindex % FW_INTERFACE_ROWS;
	struct fw_interface *known = bpf_map_lookup_elem(&interfaces, &row);

	return known && known->ifindex == ifindex && known->link_flags & FW_LINK_ATTACHED;
}

/* Whether this look-up may be of a packet that "ingress" has seen. Most are its own, of every
 * packet. */
static __always_inline bool fw_may_have_been_seen(const struct bpf_sk_lookup *ctx)
{
	struct fw_cpu *cpu = only_element(&cpus);

	return cpu && !cpu->is_looking_up &&
	       (fw_is_attached(READ_ONCE(ctx->ingress_ifindex)) || fw_has_promises());
}

/*
 * Returns SK_PASS, perhaps with a socket selected, or SK_DROP, and the reason if there is one in
 * *decision. A function of its own: its frame is set up only where fw_may_have_been_seen().
 */
static __noinline int fw_deliver(struct bpf_sk_lookup *ctx, struct fw_decision *decision)
{
	struct fw_interface interface = {};
	struct fw_listener_key key = {};
	struct fw_port_rule rule = {};
	struct packet packet = {};
	struct bpf_sock *sk;
	__u32 ifindex;
	long error;
	int match;

	ifindex = ctx->ingress_ifindex;
	fw_read_lookup(ctx, &packet);
	if (!fw_is_attached(ifindex))
		ifindex = fw_promised_interface(&packet);
	if (!ifindex)
		return SK_PASS;
	fw_read_interface(ifindex, &interface);
	if (fw_is_exempt(&packet, &interface))
		return SK_PASS;
	match = fw_find_rule(&packet, &interface, FW_TABLE_INGRESS, &rule);
	if (match == FW_MATCH_CHANGING) {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_RULES_CHANGING);
		return SK_DROP;
	}
	if (match != FW_MATCH_FOUND || rule.action != FW_ACTION_INTERCEPT)
		return SK_PASS;
	fw_set_listener_key(packet.family, packet.protocol, rule.tproxy_port, &key);
	sk = bpf_map_lookup_elem(&listeners, &key);
	if (!sk) {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_DELIVER_NO_LISTENER);
		return SK_DROP;
	}
	/* In the place of a socket that another program of sk_lookup chose. */
	error = bpf_sk_assign(ctx, sk, BPF_SK_LOOKUP_F_REPLACE);
	bpf_sk_release(sk);
	if (error) {
		fw_decide(decision, FW_VERDICT_DROP, FW_REASON_DELIVER_NO_LISTENER);
		return SK_DROP;
	}
	fw_decide(decision, FW_VERDICT_ASSIGN, FW_REASON_DELIVER_INTERCEPT);
	return SK_PASS;
}

#endif
