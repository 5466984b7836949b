/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Parses a frame: addresses, protocol, ports.
 *
 * Every byte may be forged. Each read is bounded by the frame, and transport headers are believed
 * only as far as the IP length covers them.
 */
#ifndef COMMON_PACKET_H
#define COMMON_PACKET_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/verifier.h"

/*
 * The greatest offset that is read: Ethernet, two VLAN tags, then the longest IPv4 header or a
 * chain of IPv6 extension headers. The verifier needs a constant bound.
 */
#define PKT_MAX_OFFSET 1024
#define PKT_MAX_VLAN_TAGS 2
#define PKT_MAX_EXTENSION_HEADERS 8

/* include/net/net_namespace.h */
#define LOOPBACK_IFINDEX 1

#define PKT_IPV4_FRAGMENT_OFFSET 0x1fff
#define PKT_IPV4_MORE_FRAGMENTS 0x2000
#define PKT_IPV6_FRAGMENT_OFFSET 0xfff8
#define PKT_IPV6_MORE_FRAGMENTS 0x0001
/* The bytes of a TCP header without options. */
#define PKT_TCP_HEADER 20

enum pkt_parsed {
	PKT_PARSED_IP,
	PKT_PARSED_ARP,
	PKT_PARSED_EAPOL,
	PKT_PARSED_NON_IP,
	PKT_PARSED_MALFORMED,
	PKT_PARSED_HEADER_CHAIN,
};

enum pkt_fragment_part {
	PKT_FRAGMENT_NONE,
	PKT_FRAGMENT_FIRST,
	PKT_FRAGMENT_LATER,
};

struct packet {
	__be32 source[4]; /* IPv4 as ::ffff:a.b.c.d */
	__be32 destination[4];
	__be16 source_port; /* of TCP and UDP; the firewall sets an echo's id */
	__be16 destination_port;
	__be32 identification; /* of a fragment's datagram */
	__u16 transport_offset; /* from the start of the frame */
	__u8 family; /* AF_INET or AF_INET6 */
	__u8 protocol;
	__u8 fragment; /* enum pkt_fragment_part */
	__u8 hop_limit;
	__u8 tcp_flags; /* enum tcp_flag */
	__u8 is_echo_request; /* ICMP, either version */
	__u8 is_source_routed; /* an option or a routing header sends it on from its destination */
	__u8 header_protocol; /* of the IPv4 header: AH may stand before the protocol's */
	__u16 fragment_offset; /* bytes */
	__u32 transport_length; /* bytes, according to the IP header */
	__u32 sequence; /* TCP, host order */
	__u32 acknowledgment;
	__u32 tcp_header; /* bytes */
};

/* RFC 9293, section 3.1 */
enum tcp_flag {
	TCP_FIN = 1,
	TCP_SYN = 2,
	TCP_RST = 4,
	TCP_ACK = 16,
};

static __always_inline bool is_icmp(const struct packet *packet)
{
	return packet->protocol == (packet->family == AF_INET ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

/* Reads from the linear part of the packet directly, and from its page fragments with a helper. */
static __always_inline bool read_bytes(struct __sk_buff *skb, __u32 offset, void *to,
				       const __u32 length)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	barrier_var(offset);
	if (offset > PKT_MAX_OFFSET)
		return false;
	if (data + offset + length <= end) {
		__builtin_memcpy(to, data + offset, length);
		return true;
	}
	return bpf_skb_load_bytes(skb, offset, to, length) == 0;
}

/* IPv4 options, RFC 791, section 3.1. */
#define PKT_OPTION_END 0
#define PKT_OPTION_NONE 1
#define PKT_OPTION_LOOSE_SOURCE_ROUTE 131
#define PKT_OPTION_STRICT_SOURCE_ROUTE 137
#define PKT_MAX_OPTION_BYTES 40
#define PKT_OPTION_MASK 63

/* Whether an IPv4 option routes the packet on. The header begins at start and has so many bytes. */
__noinline int has_ipv4_source_route(struct __sk_buff *skb, __u32 start, __u32 header)
{
	__u32 offset = sizeof(struct iphdr), i;

	for (i = 0; i < PKT_MAX_OPTION_BYTES; i++) {
		__u8 option[2] = {};

		if (offset >= header || bpf_skb_load_bytes(skb, start + offset, option, 1) ||
		    option[0] == PKT_OPTION_END)
			return false;
		if (option[0] == PKT_OPTION_LOOSE_SOURCE_ROUTE ||
		    option[0] == PKT_OPTION_STRICT_SOURCE_ROUTE)
			return true;
		if (option[0] == PKT_OPTION_NONE) {
			offset++;
		} else {
			/* An option that cannot be skipped, or reaches beyond the header, may hide
			 * a route. */
			if (bpf_skb_load_bytes(skb, start + offset, option, 2) || option[1] < 2 ||
			    offset + option[1] > header)
				return true;
			offset += option[1];
		}
		if (offset >= header)
			return false;
		/* No header is longer. The mask lets the loop converge. */
		offset = masked(offset, PKT_OPTION_MASK);
	}
	return false;
}

static __always_inline bool is_extension_header(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_AH || next == IPPROTO_FRAGMENT;
}

/* The bytes of an extension header: RFC 8200, section 4; RFC 4302, section 2.2. */
static __always_inline __u32 extension_header_bytes(__u8 type, __u8 length)
{
	if (type == IPPROTO_FRAGMENT)
		return 8;
	return type == IPPROTO_AH ? ((__u32)length + 2) * 4 : ((__u32)length + 1) * 8;
}

/* Of the extension headers IPv4 has AH alone, at most once. */
static __always_inline enum pkt_parsed step_over_ah(struct __sk_buff *skb, struct packet *packet)
{
	__u8 header[8];
	__u32 bytes;

	if (packet->transport_length < sizeof(header) ||
	    !read_bytes(skb, packet->transport_offset, header, sizeof(header)))
		return PKT_PARSED_MALFORMED;
	bytes = extension_header_bytes(IPPROTO_AH, header[1]);
	if (packet->transport_length < bytes)
		return PKT_PARSED_MALFORMED;
	packet->protocol = header[0];
	packet->transport_offset += bytes;
	packet->transport_length -= bytes;
	return packet->transport_offset > PKT_MAX_OFFSET ? PKT_PARSED_HEADER_CHAIN : PKT_PARSED_IP;
}

static __always_inline enum pkt_parsed parse_ipv4(struct __sk_buff *skb, __u32 offset,
						  struct packet *packet)
{
	struct iphdr ip;
	__u32 header, total;
	__u16 fragment;

	if (!read_bytes(skb, offset, &ip, sizeof(ip)))
		return PKT_PARSED_MALFORMED;
	header = ip.ihl * 4;
	total = bpf_ntohs(ip.tot_len);
	/* BIG TCP: GRO makes packets whose length does not fit into tot_len (b1a78b9b9886). */
	if (total == 0 && skb->gso_segs)
		total = skb->len - offset;
	if (ip.version != 4 || header < sizeof(ip) || total < header || offset + total > skb->len)
		return PKT_PARSED_MALFORMED;

	packet->family = AF_INET;
	packet->protocol = packet->header_protocol = ip.protocol;
	packet->hop_limit = ip.ttl;
	map_ipv4(packet->source, ip.saddr);
	map_ipv4(packet->destination, ip.daddr);
	packet->transport_offset = offset + header;
	packet->transport_length = total - header;

	fragment = bpf_ntohs(ip.frag_off);
	if (fragment & (PKT_IPV4_FRAGMENT_OFFSET | PKT_IPV4_MORE_FRAGMENTS)) {
		packet->fragment = fragment & PKT_IPV4_FRAGMENT_OFFSET ? PKT_FRAGMENT_LATER :
									 PKT_FRAGMENT_FIRST;
		packet->identification = ip.id;
		packet->fragment_offset = (fragment & PKT_IPV4_FRAGMENT_OFFSET) * 8;
	}
	if (header > sizeof(ip))
		packet->is_source_routed = has_ipv4_source_route(skb, offset, header);
	if (ip.protocol == IPPROTO_AH && packet->fragment != PKT_FRAGMENT_LATER)
		return step_over_ah(skb, packet);
	return PKT_PARSED_IP;
}

/* A position in a chain of IPv6 extension headers, before and after walk_headers(). */
struct pkt_header_chain {
	__u32 offset; /* of the next header, from the start of the frame */
	__u32 end; /* of the packet */
	__be32 identification; /* of the datagram, if this is a fragment */
	__u16 fragment; /* offset and more flag, host order; 0: whole */
	__u8 next;
	__u8 is_source_routed;
};

/*
 * Moves the chain to the transport header, or to the payload of a later fragment: the fragment
 * header names the protocol of the datagram. Returns an enum pkt_parsed.
 */
__noinline int walk_headers(struct __sk_buff *skb, struct pkt_header_chain *chain)
{
	bool has_fragment_header = false;
	__u32 i;

	if (!chain)
		return PKT_PARSED_MALFORMED;
	for (i = 0; i < PKT_MAX_EXTENSION_HEADERS; i++) {
		__u8 header[8], next = chain->next;
		__u32 offset = chain->offset;

		if (!is_extension_header(next))
			break;
		if (offset + sizeof(header) > chain->end)
			return PKT_PARSED_MALFORMED;
		if (offset > PKT_MAX_OFFSET)
			return PKT_PARSED_HEADER_CHAIN;
		if (!read_bytes(skb, offset, header, sizeof(header)))
			return PKT_PARSED_MALFORMED;
		/* Of any type, with segments left (RFC 8200, section 4.4). */
		if (next == IPPROTO_ROUTING && header[3] != 0)
			chain->is_source_routed = true;
		chain->next = header[0];
		chain->offset = offset + extension_header_bytes(next, header[1]);
		if (next == IPPROTO_FRAGMENT) {
			/* At most once (RFC 8200, section 4.1): the kernel does not reassemble a
			 * fragment of a fragment. */
			if (has_fragment_header)
				return PKT_PARSED_MALFORMED;
			has_fragment_header = true;
			/* Neither an offset nor "more": an atomic fragment, which is a whole packet
			 * (RFC 6946). */
			chain->fragment = ((__u16)header[2] << 8 | header[3]) &
					  (PKT_IPV6_FRAGMENT_OFFSET | PKT_IPV6_MORE_FRAGMENTS);
			__builtin_memcpy(&chain->identification, header + 4, 4);
			if (chain->fragment & PKT_IPV6_FRAGMENT_OFFSET)
				return PKT_PARSED_IP;
		}
	}
	if (is_extension_header(chain->next))
		return PKT_PARSED_HEADER_CHAIN;
	if (chain->offset > chain->end)
		return PKT_PARSED_MALFORMED;
	return chain->offset > PKT_MAX_OFFSET ? PKT_PARSED_HEADER_CHAIN : PKT_PARSED_IP;
}

static __always_inline enum pkt_parsed parse_ipv6(struct __sk_buff *skb, __u32 offset,
						  struct packet *packet)
{
	struct pkt_header_chain chain = {};
	enum pkt_parsed parsed;
	struct ipv6hdr ip;

	if (!read_bytes(skb, offset, &ip, sizeof(ip)))
		return PKT_PARSED_MALFORMED;
	chain.offset = offset + sizeof(ip);
	chain.end = chain.offset + bpf_ntohs(ip.payload_len);
	chain.next = ip.nexthdr;
	/* BIG TCP, as above. */
	if (ip.payload_len == 0 && skb->gso_segs)
		chain.end = skb->len;
	if (ip.version != 6 || chain.end > skb->len)
		return PKT_PARSED_MALFORMED;

	packet->family = AF_INET6;
	packet->hop_limit = ip.hop_limit;
	__builtin_memcpy(packet->source, &ip.saddr, 16);
	__builtin_memcpy(packet->destination, &ip.daddr, 16);

	if (is_extension_header(chain.next)) {
		parsed = walk_headers(skb, &chain);
		if (parsed != PKT_PARSED_IP)
			return parsed;
		packet->is_source_routed = chain.is_source_routed;
		if (chain.fragment) {
			packet->fragment = chain.fragment & PKT_IPV6_FRAGMENT_OFFSET ?
						   PKT_FRAGMENT_LATER :
						   PKT_FRAGMENT_FIRST;
			packet->identification = chain.identification;
			packet->fragment_offset = chain.fragment & PKT_IPV6_FRAGMENT_OFFSET;
		}
	}
	packet->protocol = chain.next;
	packet->transport_offset = chain.offset;
	packet->transport_length = chain.end - chain.offset;
	return PKT_PARSED_IP;
}

/*
 * Reads the ports of TCP and UDP, and the numbers of TCP. The whole fixed header has to be there:
 * otherwise a first fragment could leave flags or length to a later one (RFC 1858).
 */
static __always_inline bool parse_transport(struct __sk_buff *skb, struct packet *packet)
{
	struct {
		__be16 source_port, destination_port;
		__be32 sequence, acknowledgment;
		__u8 data_offset, flags;
		__be16 window;
	} tcp;

	if (packet->protocol == IPPROTO_UDP) {
		if (packet->transport_length < 8 ||
		    !read_bytes(skb, packet->transport_offset, &tcp, 4))
			return false;
	} else {
		if (packet->transport_length < 20 ||
		    !read_bytes(skb, packet->transport_offset, &tcp, sizeof(tcp)))
			return false;
		packet->tcp_flags = tcp.flags;
		packet->sequence = bpf_ntohl(tcp.sequence);
		packet->acknowledgment = bpf_ntohl(tcp.acknowledgment);
		packet->tcp_header = (tcp.data_offset >> 4) * 4;
	}
	packet->source_port = tcp.source_port;
	packet->destination_port = tcp.destination_port;
	return true;
}

/*
 * Fills packet, which the caller zeroes, and returns an enum pkt_parsed. A later fragment has no
 * ports. A global function, so that the verifier goes through it once.
 */
__noinline int parse_packet(struct __sk_buff *skb, int has_ethernet, struct packet *packet)
{
	enum pkt_parsed parsed;
	__u32 offset = 0, i;
	__be16 protocol;

	if (!packet)
		return PKT_PARSED_MALFORMED;
	if (has_ethernet) {
		struct ethhdr ethernet;

		if (!read_bytes(skb, 0, &ethernet, sizeof(ethernet)))
			return PKT_PARSED_MALFORMED;
		protocol = ethernet.h_proto;
		offset = sizeof(ethernet);
		/* The kernel usually keeps the outer tag beside the frame. Tags in the frame are
		 * QinQ, or the device does not strip them. */
		for (i = 0; i < PKT_MAX_VLAN_TAGS; i++) {
			__be16 tag[2];

			if (protocol != bpf_htons(ETH_P_8021Q) &&
			    protocol != bpf_htons(ETH_P_8021AD))
				break;
			if (!read_bytes(skb, offset, tag, sizeof(tag)))
				return PKT_PARSED_MALFORMED;
			protocol = tag[1];
			offset += sizeof(tag);
		}
	} else {
		protocol = skb->protocol;
	}

	if (protocol == bpf_htons(ETH_P_IP))
		parsed = parse_ipv4(skb, offset, packet);
	else if (protocol == bpf_htons(ETH_P_IPV6))
		parsed = parse_ipv6(skb, offset, packet);
	else
		return protocol == bpf_htons(ETH_P_ARP) ? PKT_PARSED_ARP :
		       protocol == bpf_htons(ETH_P_PAE) ? PKT_PARSED_EAPOL :
							  PKT_PARSED_NON_IP;

	/* No link has so small an MTU that a TCP header is cut. Such a fragment would overwrite the
	 * flags of the first one at a host that lets it (RFC 3128). */
	if (parsed == PKT_PARSED_IP && packet->fragment == PKT_FRAGMENT_LATER &&
	    packet->protocol == IPPROTO_TCP && packet->fragment_offset < PKT_TCP_HEADER)
		return PKT_PARSED_MALFORMED;
	if (parsed == PKT_PARSED_IP && packet->fragment != PKT_FRAGMENT_LATER &&
	    (packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP) &&
	    !parse_transport(skb, packet))
		return PKT_PARSED_MALFORMED;
	return parsed;
}

#endif
