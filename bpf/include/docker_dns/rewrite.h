/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Rewrites a packet's addresses and ports, and corrects its checksums. Checksums that the device
 * will complete stay partial, and a UDP checksum of 0 (none) stays 0.
 */
#ifndef DOCKER_DNS_REWRITE_H
#define DOCKER_DNS_REWRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/packet.h"

/* Both ends, in network order. */
struct dns_ends {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
};

static __always_inline bool dns_has_checksum(struct __sk_buff *skb, const struct packet *packet,
					     __u32 offset)
{
	__sum16 checksum;

	return packet->protocol == IPPROTO_TCP ||
	       (read_bytes(skb, offset, &checksum, sizeof(checksum)) && checksum);
}

/* offset is the IP header's. A later fragment has no ports. */
static __always_inline bool dns_rewrite(struct __sk_buff *skb, __u32 offset,
					const struct packet *packet, const struct dns_ends *to)
{
	__be32 before[2] = { packet->source[3], packet->destination[3] };
	__be32 after[2] = { to->source, to->destination };
	__be16 ports_before[2] = { packet->source_port, packet->destination_port };
	__be16 ports_after[2] = { to->source_port, to->destination_port };
	bool has_ports = packet->fragment != PKT_FRAGMENT_LATER;
	__u32 transport = packet->transport_offset, checksum, old_ports, new_ports;
	__u64 recompute, mangled = packet->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__s64 difference = bpf_csum_diff(before, sizeof(before), after, sizeof(after), 0);

	checksum = transport + (packet->protocol == IPPROTO_TCP ? offsetof(struct tcphdr, check) :
								  offsetof(struct udphdr, check));
	if (has_ports) {
		/* A checksum by the device over the whole packet (CHECKSUM_COMPLETE): without a
		 * checksum in the packet, nothing makes up for the changed ports. */
		recompute = dns_has_checksum(skb, packet, checksum) ? 0 : BPF_F_RECOMPUTE_CSUM;
		__builtin_memcpy(&old_ports, ports_before, sizeof(old_ports));
		__builtin_memcpy(&new_ports, ports_after, sizeof(new_ports));
		if (bpf_l4_csum_replace(skb, checksum, 0, difference, mangled | BPF_F_PSEUDO_HDR) ||
		    bpf_l4_csum_replace(skb, checksum, old_ports, new_ports,
					mangled | sizeof(new_ports)) ||
		    bpf_skb_store_bytes(skb, transport, ports_after, sizeof(ports_after),
					recompute))
			return false;
	}
	return !bpf_l3_csum_replace(skb, offset + offsetof(struct iphdr, check), 0, difference,
				    0) &&
	       !bpf_skb_store_bytes(skb, offset + offsetof(struct iphdr, saddr), after,
				    sizeof(after), 0);
}

#endif
