/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ICMP and ICMPv6: what is an error about a flow of ours, what IPv6 cannot do
 * without, what is an echo.
 */
#ifndef ZFW_ICMP_H
#define ZFW_ICMP_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"
#include "sockets.h"
#include "zfw_abi.h"

/* RFC 792. <linux/icmp.h> pulls in the C library's headers. */
#define ICMP_ECHO_REPLY 0
#define ICMP_DESTINATION_UNREACHABLE 3
#define ICMP_ECHO_REQUEST 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12

/* RFC 4443, RFC 4861, RFC 2710, RFC 3810 */
#define ICMPV6_DESTINATION_UNREACHABLE 1
#define ICMPV6_PACKET_TOO_BIG 2
#define ICMPV6_TIME_EXCEEDED 3
#define ICMPV6_PARAMETER_PROBLEM 4
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129
#define ICMPV6_MLD_QUERY 130
#define ICMPV6_MLD_REPORT 131
#define ICMPV6_MLD_DONE 132
#define ICMPV6_ROUTER_SOLICITATION 133
#define ICMPV6_ROUTER_ADVERTISEMENT 134
#define ICMPV6_NEIGHBOUR_SOLICITATION 135
#define ICMPV6_NEIGHBOUR_ADVERTISEMENT 136
#define ICMPV6_MLD2_REPORT 143
/* RFC 4861, section 6.1: a router has not forwarded it. */
#define ICMPV6_ND_HOP_LIMIT 255
#define ICMPV6_MLD_HOP_LIMIT 1

/*
 * The packet that an error quotes was sent by us: its source is our end. A
 * socket is looked up the way an answer to it would be (RFC 5927 asks for the
 * tuple to match before an error is believed).
 */
static __always_inline bool quotes_local_flow(struct __sk_buff *skb,
					      const struct zfw_packet *packet)
{
	struct bpf_sock_tuple tuple = {};
	__u32 offset = packet->transport_offset + 8;
	__u32 end = packet->transport_offset + packet->transport_length;
	__be16 ports[2];
	__u32 length;
	__u8 protocol;

	if (packet->family == ZFW_AF_INET) {
		struct iphdr quoted;

		if (offset + sizeof(quoted) > end ||
		    !read_bytes(skb, offset, &quoted, sizeof(quoted)))
			return false;
		if (quoted.version != 4 || quoted.ihl < 5 ||
		    quoted.frag_off & bpf_htons(ZFW_IPV4_FRAGMENT_OFFSET))
			return false;
		offset += quoted.ihl * 4;
		protocol = quoted.protocol;
		tuple.ipv4.saddr = quoted.daddr;
		tuple.ipv4.daddr = quoted.saddr;
		length = sizeof(tuple.ipv4);
	} else {
		struct zfw_header_chain chain = {};
		struct ipv6hdr quoted;

		if (offset + sizeof(quoted) > end ||
		    !read_bytes(skb, offset, &quoted, sizeof(quoted)))
			return false;
		if (quoted.version != 6)
			return false;
		/* Headers that we sent come back in the quote. */
		chain.offset = offset + sizeof(quoted);
		chain.end = end;
		chain.next = quoted.nexthdr;
		if (walk_headers(skb, &chain) != ZFW_PARSED_IP ||
		    chain.fragment & ZFW_IPV6_FRAGMENT_OFFSET)
			return false;
		offset = chain.offset;
		protocol = chain.next;
		__builtin_memcpy(tuple.ipv6.saddr, &quoted.daddr, 16);
		__builtin_memcpy(tuple.ipv6.daddr, &quoted.saddr, 16);
		length = sizeof(tuple.ipv6);
	}
	/* RFC 792: at least eight bytes of the quoted packet's payload. */
	if (offset + 8 > end || !read_bytes(skb, offset, ports, sizeof(ports)))
		return false;
	if (packet->family == ZFW_AF_INET) {
		tuple.ipv4.sport = ports[1];
		tuple.ipv4.dport = ports[0];
	} else {
		tuple.ipv6.sport = ports[1];
		tuple.ipv6.dport = ports[0];
	}
	return has_local_socket(skb, &tuple, length, protocol);
}

static __always_inline enum zfw_reason judge_icmpv4(struct __sk_buff *skb,
						    const struct zfw_packet *packet, __u32 settings)
{
	__u8 header[8];

	if (packet->transport_length < sizeof(header) ||
	    !read_bytes(skb, packet->transport_offset, header, sizeof(header)))
		return ZFW_REASON_MALFORMED;
	switch (header[0]) {
	case ICMP_ECHO_REQUEST:
	case ICMP_ECHO_REPLY:
		return settings & ZFW_SETTING_ICMP_ECHO ? ZFW_REASON_ICMP_ECHO :
							  ZFW_REASON_ICMP_ECHO_OFF;
	case ICMP_DESTINATION_UNREACHABLE:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETER_PROBLEM:
		return quotes_local_flow(skb, packet) ? ZFW_REASON_ICMP_ERROR :
							ZFW_REASON_ICMP_ERROR_UNRELATED;
	default:
		return ZFW_REASON_ICMP_OTHER;
	}
}

static __always_inline enum zfw_reason judge_icmpv6(struct __sk_buff *skb,
						    const struct zfw_packet *packet, __u32 settings)
{
	__u8 header[8];

	if (packet->transport_length < sizeof(header) ||
	    !read_bytes(skb, packet->transport_offset, header, sizeof(header)))
		return ZFW_REASON_MALFORMED;
	switch (header[0]) {
	case ICMPV6_ECHO_REQUEST:
	case ICMPV6_ECHO_REPLY:
		return settings & ZFW_SETTING_ICMP_ECHO ? ZFW_REASON_ICMP_ECHO :
							  ZFW_REASON_ICMP_ECHO_OFF;
	case ICMPV6_DESTINATION_UNREACHABLE:
	case ICMPV6_PACKET_TOO_BIG:
	case ICMPV6_TIME_EXCEEDED:
	case ICMPV6_PARAMETER_PROBLEM:
		return quotes_local_flow(skb, packet) ? ZFW_REASON_ICMP_ERROR :
							ZFW_REASON_ICMP_ERROR_UNRELATED;
	case ICMPV6_ROUTER_SOLICITATION:
	case ICMPV6_ROUTER_ADVERTISEMENT:
	case ICMPV6_NEIGHBOUR_SOLICITATION:
	case ICMPV6_NEIGHBOUR_ADVERTISEMENT:
		return packet->hop_limit == ICMPV6_ND_HOP_LIMIT && header[1] == 0 ?
			       ZFW_REASON_NEIGHBOUR_DISCOVERY :
			       ZFW_REASON_ICMP_OTHER;
	case ICMPV6_MLD_QUERY:
	case ICMPV6_MLD_REPORT:
	case ICMPV6_MLD_DONE:
	case ICMPV6_MLD2_REPORT:
		return packet->hop_limit == ICMPV6_MLD_HOP_LIMIT ? ZFW_REASON_MULTICAST_LISTENER :
								   ZFW_REASON_ICMP_OTHER;
	default:
		return ZFW_REASON_ICMP_OTHER;
	}
}

/* An enum zfw_reason. A global function, so that the verifier goes through it
 * once (see match_prefix()). */
__noinline int judge_icmp(struct __sk_buff *skb, struct zfw_packet *packet, __u32 settings)
{
	if (!packet)
		return ZFW_REASON_MALFORMED;
	return packet->family == ZFW_AF_INET ? judge_icmpv4(skb, packet, settings) :
					       judge_icmpv6(skb, packet, settings);
}

#endif
