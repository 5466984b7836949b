/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Lowers the maximum segment size that both ends of a TCP connection offer. On lo it is 65,495, and
 * no end knows the uplink between them. Segments that are too long for the uplink would be lost,
 * and the connection would hang.
 */
#ifndef DOCKER_DNS_MSS_H
#define DOCKER_DNS_MSS_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/packet.h"

/* RFC 9293, section 3.2 */
struct tcp_mss {
	__u8 kind;
	__u8 length;
	__be16 size;
};

#define TCP_OPTION_MSS 2
/* The headers of IPv4 and TCP: options count as data (RFC 6691). */
#define MSS_HEADERS 40

/*
 * Lowers the size in a SYN to what the uplink carries. False if it cannot be written. Only the
 * first option is looked at: all systems put the size there.
 */
static __always_inline bool dns_lower_mss(struct __sk_buff *skb, const struct packet *packet,
					  __u32 mtu)
{
	__u32 transport = packet->transport_offset;
	__u32 place = transport + sizeof(struct tcphdr);
	struct tcp_mss offered;
	__be16 lower;

	if (!(packet->tcp_flags & TCP_SYN) || mtu <= MSS_HEADERS || mtu > 0xffff ||
	    packet->tcp_header < sizeof(struct tcphdr) + sizeof(offered) ||
	    packet->transport_length < sizeof(struct tcphdr) + sizeof(offered) ||
	    !read_bytes(skb, place, &offered, sizeof(offered)) || offered.kind != TCP_OPTION_MSS ||
	    offered.length != sizeof(offered) || bpf_ntohs(offered.size) <= mtu - MSS_HEADERS)
		return true;
	lower = bpf_htons(mtu - MSS_HEADERS);
	return !bpf_l4_csum_replace(skb, transport + offsetof(struct tcphdr, check), offered.size,
				    lower, sizeof(lower)) &&
	       !bpf_skb_store_bytes(skb, place + offsetof(struct tcp_mss, size), &lower,
				    sizeof(lower), 0);
}

#endif
