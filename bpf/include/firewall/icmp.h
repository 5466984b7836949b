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

#include "firewall/abi.h"
#include "firewall/flows.h"
#include "firewall/sockets.h"
#include "parse.h"

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

static __always_inline bool is_echo(__u8 family, __u8 type)
{
	if (family == ZFW_AF_INET)
		return type == ICMP_ECHO_REQUEST || type == ICMP_ECHO_REPLY;
	return type == ICMPV6_ECHO_REQUEST || type == ICMPV6_ECHO_REPLY;
}

/*
 * The packet that an error quotes, turned round: addresses, ports and protocol of
 * its answer-> 1, or 0 if it quotes none of TCP, UDP or echo. A global function: the
 * stack of those that are not takes room from all that their caller calls.
 */
__noinline int read_quote(struct __sk_buff *skb, struct zfw_packet *packet,
			  struct zfw_packet *answer)
{
	__u32 offset, end;
	/* One for all: the verifier counts each on the stack. */
	union {
		struct iphdr ipv4;
		struct ipv6hdr ipv6;
		__u8 transport[8];
	} quoted;

	if (!packet || !answer)
		return 0;
	offset = packet->transport_offset + 8;
	end = packet->transport_offset + packet->transport_length;
	answer->family = packet->family;
	if (packet->family == ZFW_AF_INET) {
		if (offset + sizeof(quoted.ipv4) > end ||
		    !read_bytes(skb, offset, &quoted.ipv4, sizeof(quoted.ipv4)))
			return 0;
		if (quoted.ipv4.version != 4 || quoted.ipv4.ihl < 5 ||
		    quoted.ipv4.frag_off & bpf_htons(ZFW_IPV4_FRAGMENT_OFFSET))
			return 0;
		offset += quoted.ipv4.ihl * 4;
		answer->protocol = quoted.ipv4.protocol;
		map_ipv4(answer->destination, quoted.ipv4.saddr);
		map_ipv4(answer->source, quoted.ipv4.daddr);
	} else {
		struct zfw_header_chain chain = {};

		if (offset + sizeof(quoted.ipv6) > end ||
		    !read_bytes(skb, offset, &quoted.ipv6, sizeof(quoted.ipv6)))
			return 0;
		if (quoted.ipv6.version != 6)
			return 0;
		/* Headers that we sent come back in the quote. */
		chain.offset = offset + sizeof(quoted.ipv6);
		chain.end = end;
		chain.next = quoted.ipv6.nexthdr;
		if (walk_headers(skb, &chain) != ZFW_PARSED_IP ||
		    chain.fragment & ZFW_IPV6_FRAGMENT_OFFSET)
			return 0;
		offset = chain.offset;
		answer->protocol = chain.next;
		__builtin_memcpy(answer->destination, &quoted.ipv6.saddr, 16);
		__builtin_memcpy(answer->source, &quoted.ipv6.daddr, 16);
	}
	/* RFC 792: at least eight bytes of the quoted packet's payload. */
	if (offset + sizeof(quoted.transport) > end ||
	    !read_bytes(skb, offset, quoted.transport, sizeof(quoted.transport)))
		return 0;
	if (answer->protocol == IPPROTO_TCP || answer->protocol == IPPROTO_UDP) {
		__builtin_memcpy(&answer->destination_port, quoted.transport, 2);
		__builtin_memcpy(&answer->source_port, quoted.transport + 2, 2);
	} else if (answer->protocol == packet->protocol) {
		if (!is_echo(packet->family, quoted.transport[0]))
			return 0;
		__builtin_memcpy(&answer->source_port, quoted.transport + 4, 2);
		answer->destination_port = answer->source_port;
	} else {
		return 0;
	}
	return 1;
}

/* Is the packet that an error quotes ours, or of a flow that goes through us?
 * RFC 5927 asks for the tuple to match before an error is believed. */
static __always_inline bool quotes_known_flow(struct __sk_buff *skb, struct zfw_packet *packet)
{
	struct zfw_packet answer = {};
	struct flow_match match = {};

	if (!read_quote(skb, packet, &answer))
		return false;
	/* For UDP any socket will do: one that is not connected sends too. */
	if ((answer.protocol == IPPROTO_TCP || answer.protocol == IPPROTO_UDP) &&
	    find_socket(skb, &answer) != FLOW_SOCKET_NONE)
		return true;
	return find_flow(&answer, &match);
}

/* The identifier of an echo stands for its ports. */
static __always_inline void note_echo(struct zfw_packet *packet, const __u8 header[8],
				      bool is_request)
{
	__builtin_memcpy(&packet->source_port, header + 4, 2);
	packet->destination_port = packet->source_port;
	packet->is_echo_request = is_request;
}

static __always_inline enum zfw_reason judge_icmpv4(struct __sk_buff *skb,
						    struct zfw_packet *packet)
{
	__u8 header[8];

	if (packet->transport_length < sizeof(header) ||
	    !read_bytes(skb, packet->transport_offset, header, sizeof(header)))
		return ZFW_REASON_MALFORMED;
	switch (header[0]) {
	case ICMP_ECHO_REQUEST:
	case ICMP_ECHO_REPLY:
		note_echo(packet, header, header[0] == ICMP_ECHO_REQUEST);
		return ZFW_REASON_ICMP_ECHO;
	case ICMP_DESTINATION_UNREACHABLE:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETER_PROBLEM:
		return ZFW_REASON_ICMP_ERROR;
	default:
		return ZFW_REASON_ICMP_OTHER;
	}
}

static __always_inline enum zfw_reason judge_icmpv6(struct __sk_buff *skb,
						    struct zfw_packet *packet)
{
	__u8 header[8];

	if (packet->transport_length < sizeof(header) ||
	    !read_bytes(skb, packet->transport_offset, header, sizeof(header)))
		return ZFW_REASON_MALFORMED;
	switch (header[0]) {
	case ICMPV6_ECHO_REQUEST:
	case ICMPV6_ECHO_REPLY:
		note_echo(packet, header, header[0] == ICMPV6_ECHO_REQUEST);
		return ZFW_REASON_ICMP_ECHO;
	case ICMPV6_DESTINATION_UNREACHABLE:
	case ICMPV6_PACKET_TOO_BIG:
	case ICMPV6_TIME_EXCEEDED:
	case ICMPV6_PARAMETER_PROBLEM:
		return ZFW_REASON_ICMP_ERROR;
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

/* An enum zfw_reason, as if echo were on and every error believed. A global function, so that the
 * verifier goes through it once (see match_lengths()). */
__noinline int judge_icmp(struct __sk_buff *skb, struct zfw_packet *packet)
{
	if (!packet)
		return ZFW_REASON_MALFORMED;
	return packet->family == ZFW_AF_INET ? judge_icmpv4(skb, packet) :
					       judge_icmpv6(skb, packet);
}

#endif
