/* SPDX-License-Identifier: GPL-2.0-only */
/* Whether the kernel forwards a packet: it does so with what has lost its socket before that. */
#ifndef FIREWALL_ROUTING_H
#define FIREWALL_ROUTING_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "common/packet.h"

/*
 * 1 if the routes forward a packet that this interface receives, else 0: it is local, or the
 * interface does not forward. A mark that nftables will set is not known here.
 */
__noinline int fw_is_forwarded(struct __sk_buff *skb, struct packet *packet, __u32 ifindex)
{
	struct bpf_fib_lookup route = {};
	long found;

	if (!packet)
		return 1;
	route.family = packet->family;
	route.l4_protocol = packet->protocol;
	route.sport = packet->source_port;
	route.dport = packet->destination_port;
	route.ifindex = ifindex;
	if (packet->family == AF_INET) {
		route.ipv4_src = packet->source[3];
		route.ipv4_dst = packet->destination[3];
	} else {
		__builtin_memcpy(route.ipv6_src, packet->source, sizeof(route.ipv6_src));
		__builtin_memcpy(route.ipv6_dst, packet->destination, sizeof(route.ipv6_dst));
	}
	found = bpf_fib_lookup(skb, &route, sizeof(route), 0);
	return found != BPF_FIB_LKUP_RET_NOT_FWDED && found != BPF_FIB_LKUP_RET_FWD_DISABLED;
}

#endif
