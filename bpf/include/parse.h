/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From a frame to addresses, protocol and ports.
 *
 * Everything read here comes from the wire and is hostile: each read is bounded
 * by the frame, and what the transport header says is only believed where the
 * IP length covers it.
 */
#ifndef ZFW_PARSE_H
#define ZFW_PARSE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ZFW_AF_INET 2
#define ZFW_AF_INET6 10

/* Offsets that direct access goes up to: Ethernet, two VLAN tags, the longest
 * IPv4 header or a chain of IPv6 extension headers. The verifier needs a bound. */
#define ZFW_MAX_OFFSET 1024
#define ZFW_MAX_VLAN_TAGS 2
#define ZFW_MAX_EXTENSION_HEADERS 8

#define ZFW_IPV4_FRAGMENT_OFFSET 0x1fff
#define ZFW_IPV4_MORE_FRAGMENTS 0x2000
#define ZFW_IPV6_FRAGMENT_OFFSET 0xfff8
#define ZFW_IPV6_MORE_FRAGMENTS 0x0001

/* IPv6 next header values, RFC 8200 and RFC 4302. */
#define ZFW_NEXT_HOP_BY_HOP 0
#define ZFW_NEXT_ROUTING 43
#define ZFW_NEXT_FRAGMENT 44
#define ZFW_NEXT_AUTHENTICATION 51
#define ZFW_NEXT_ICMPV6 58
#define ZFW_NEXT_DESTINATION_OPTIONS 60

enum zfw_parsed {
	ZFW_PARSED_IP,
	ZFW_PARSED_ARP,
	ZFW_PARSED_EAPOL,
	ZFW_PARSED_NON_IP,
	ZFW_PARSED_MALFORMED,
	ZFW_PARSED_HEADER_CHAIN,
};

enum zfw_fragment_part {
	ZFW_FRAGMENT_NONE,
	ZFW_FRAGMENT_FIRST,
	ZFW_FRAGMENT_LATER,
};

struct zfw_packet {
	__be32 source[4]; /* IPv4 as ::ffff:a.b.c.d */
	__be32 destination[4];
	__be16 source_port; /* of TCP and UDP; of an ICMP echo its identifier; else 0 */
	__be16 destination_port;
	__be32 identification; /* of a fragment */
	__u16 transport_offset; /* from the start of the frame */
	__u8 family; /* ZFW_AF_INET or ZFW_AF_INET6 */
	__u8 protocol;
	__u8 fragment; /* enum zfw_fragment_part */
	__u8 hop_limit;
	__u8 tcp_flags; /* enum tcp_flag */
	__u8 is_echo_request; /* ICMP, either version */
	__u32 transport_length; /* bytes, as the IP header has it */
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

/* Direct access where the linear part reaches, bpf_skb_load_bytes() where the
 * header lies in a page fragment. */
static __always_inline bool read_bytes(struct __sk_buff *skb, __u32 offset, void *to,
				       const __u32 length)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	/* clang 19 and later would compare one register and use another. */
	asm volatile("" : "+r"(offset));
	if (offset > ZFW_MAX_OFFSET)
		return false;
	if (data + offset + length <= end) {
		__builtin_memcpy(to, data + offset, length);
		return true;
	}
	return bpf_skb_load_bytes(skb, offset, to, length) == 0;
}

static __always_inline void map_ipv4(__be32 to[4], __be32 address)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = address;
}

static __always_inline enum zfw_parsed parse_ipv4(struct __sk_buff *skb, __u32 offset,
						  struct zfw_packet *packet)
{
	struct iphdr ip;
	__u32 header, total;
	__u16 fragment;

	if (!read_bytes(skb, offset, &ip, sizeof(ip)))
		return ZFW_PARSED_MALFORMED;
	header = ip.ihl * 4;
	total = bpf_ntohs(ip.tot_len);
	/* BIG TCP: GRO makes packets that tot_len cannot hold (b1a78b9b9886). */
	if (total == 0 && skb->gso_segs)
		total = skb->len - offset;
	if (ip.version != 4 || header < sizeof(ip) || total < header || offset + total > skb->len)
		return ZFW_PARSED_MALFORMED;

	packet->family = ZFW_AF_INET;
	packet->protocol = ip.protocol;
	packet->hop_limit = ip.ttl;
	map_ipv4(packet->source, ip.saddr);
	map_ipv4(packet->destination, ip.daddr);
	packet->transport_offset = offset + header;
	packet->transport_length = total - header;

	fragment = bpf_ntohs(ip.frag_off);
	if (fragment & (ZFW_IPV4_FRAGMENT_OFFSET | ZFW_IPV4_MORE_FRAGMENTS)) {
		packet->fragment = fragment & ZFW_IPV4_FRAGMENT_OFFSET ? ZFW_FRAGMENT_LATER :
									 ZFW_FRAGMENT_FIRST;
		packet->identification = ip.id;
	}
	return ZFW_PARSED_IP;
}

static __always_inline bool is_extension_header(__u8 next)
{
	return next == ZFW_NEXT_HOP_BY_HOP || next == ZFW_NEXT_ROUTING ||
	       next == ZFW_NEXT_DESTINATION_OPTIONS || next == ZFW_NEXT_AUTHENTICATION ||
	       next == ZFW_NEXT_FRAGMENT;
}

/* A chain of IPv6 extension headers, before and after walk_headers(). */
struct zfw_header_chain {
	__u32 offset; /* of what comes next, from the start of the frame */
	__u32 end; /* of the packet */
	__be32 identification; /* of the datagram that this is a fragment of */
	__u16 fragment; /* offset and more flag, host order; 0: whole */
	__u8 next;
	__u8 pad;
};

/*
 * Goes on to the transport header, or to the payload of a later fragment, whose
 * fragment header names what the datagram carries. An enum zfw_parsed.
 */
__noinline int walk_headers(struct __sk_buff *skb, struct zfw_header_chain *chain)
{
	bool has_fragment_header = false;
	__u32 i;

	if (!chain)
		return ZFW_PARSED_MALFORMED;
	for (i = 0; i < ZFW_MAX_EXTENSION_HEADERS; i++) {
		__u8 header[8], next = chain->next;
		__u32 offset = chain->offset;

		if (!is_extension_header(next))
			break;
		if (offset + sizeof(header) > chain->end)
			return ZFW_PARSED_MALFORMED;
		if (offset > ZFW_MAX_OFFSET)
			return ZFW_PARSED_HEADER_CHAIN;
		if (!read_bytes(skb, offset, header, sizeof(header)))
			return ZFW_PARSED_MALFORMED;
		chain->next = header[0];
		if (next == ZFW_NEXT_AUTHENTICATION) {
			chain->offset = offset + ((__u32)header[1] + 2) * 4;
		} else if (next != ZFW_NEXT_FRAGMENT) {
			chain->offset = offset + ((__u32)header[1] + 1) * 8;
		} else {
			/* Once at most (RFC 8200, section 4.1): the stack
			 * takes no fragment out of a fragment. */
			if (has_fragment_header)
				return ZFW_PARSED_MALFORMED;
			has_fragment_header = true;
			chain->offset = offset + 8;
			/* Neither offset nor more: an atomic fragment, which
			 * is a whole packet (RFC 6946). */
			chain->fragment = ((__u16)header[2] << 8 | header[3]) &
					  (ZFW_IPV6_FRAGMENT_OFFSET | ZFW_IPV6_MORE_FRAGMENTS);
			__builtin_memcpy(&chain->identification, header + 4, 4);
			if (chain->fragment & ZFW_IPV6_FRAGMENT_OFFSET)
				return ZFW_PARSED_IP;
		}
	}
	if (is_extension_header(chain->next))
		return ZFW_PARSED_HEADER_CHAIN;
	if (chain->offset > chain->end)
		return ZFW_PARSED_MALFORMED;
	return chain->offset > ZFW_MAX_OFFSET ? ZFW_PARSED_HEADER_CHAIN : ZFW_PARSED_IP;
}

static __always_inline enum zfw_parsed parse_ipv6(struct __sk_buff *skb, __u32 offset,
						  struct zfw_packet *packet)
{
	struct zfw_header_chain chain = {};
	enum zfw_parsed parsed;
	struct ipv6hdr ip;

	if (!read_bytes(skb, offset, &ip, sizeof(ip)))
		return ZFW_PARSED_MALFORMED;
	chain.offset = offset + sizeof(ip);
	chain.end = chain.offset + bpf_ntohs(ip.payload_len);
	chain.next = ip.nexthdr;
	/* BIG TCP, as above. */
	if (ip.payload_len == 0 && skb->gso_segs)
		chain.end = skb->len;
	if (ip.version != 6 || chain.end > skb->len)
		return ZFW_PARSED_MALFORMED;

	packet->family = ZFW_AF_INET6;
	packet->hop_limit = ip.hop_limit;
	__builtin_memcpy(packet->source, &ip.saddr, 16);
	__builtin_memcpy(packet->destination, &ip.daddr, 16);

	if (is_extension_header(chain.next)) {
		parsed = walk_headers(skb, &chain);
		if (parsed != ZFW_PARSED_IP)
			return parsed;
		if (chain.fragment) {
			packet->fragment = chain.fragment & ZFW_IPV6_FRAGMENT_OFFSET ?
						   ZFW_FRAGMENT_LATER :
						   ZFW_FRAGMENT_FIRST;
			packet->identification = chain.identification;
		}
	}
	packet->protocol = chain.next;
	packet->transport_offset = chain.offset;
	packet->transport_length = chain.end - chain.offset;
	return ZFW_PARSED_IP;
}

/* Ports of TCP and UDP, and what TCP numbers. The whole fixed header has to be
 * there, so that a first fragment cannot leave flags or length to a later one
 * (RFC 1858). */
static __always_inline bool parse_transport(struct __sk_buff *skb, struct zfw_packet *packet)
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
 * Fills packet, which must be zeroed, and returns an enum zfw_parsed. Ports are
 * set for TCP and UDP unless the packet is a later fragment. A global function,
 * so that the verifier goes through it once (see match_prefix()).
 */
__noinline int parse_packet(struct __sk_buff *skb, int has_ethernet, struct zfw_packet *packet)
{
	enum zfw_parsed parsed;
	__u32 offset = 0, i;
	__be16 protocol;

	if (!packet)
		return ZFW_PARSED_MALFORMED;
	if (has_ethernet) {
		struct ethhdr ethernet;

		if (!read_bytes(skb, 0, &ethernet, sizeof(ethernet)))
			return ZFW_PARSED_MALFORMED;
		protocol = ethernet.h_proto;
		offset = sizeof(ethernet);
		/* The outer tag is usually in skb metadata by now; what is left
		 * in the frame is QinQ, or a device that does not strip. */
		for (i = 0; i < ZFW_MAX_VLAN_TAGS; i++) {
			__be16 tag[2];

			if (protocol != bpf_htons(ETH_P_8021Q) &&
			    protocol != bpf_htons(ETH_P_8021AD))
				break;
			if (!read_bytes(skb, offset, tag, sizeof(tag)))
				return ZFW_PARSED_MALFORMED;
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
		return protocol == bpf_htons(ETH_P_ARP) ? ZFW_PARSED_ARP :
		       protocol == bpf_htons(ETH_P_PAE) ? ZFW_PARSED_EAPOL :
							  ZFW_PARSED_NON_IP;

	if (parsed == ZFW_PARSED_IP && packet->fragment != ZFW_FRAGMENT_LATER &&
	    (packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP) &&
	    !parse_transport(skb, packet))
		return ZFW_PARSED_MALFORMED;
	return parsed;
}

#endif
