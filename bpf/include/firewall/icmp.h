/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Classifies ICMP and ICMPv6: errors about known flows, messages that IPv6 cannot work without,
 * echo.
 */
#ifndef FIREWALL_ICMP_H
#define FIREWALL_ICMP_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/packet.h"
#include "firewall/abi.h"
#include "firewall/exceptions.h"
#include "firewall/flows.h"
#include "firewall/sockets.h"

/* RFC 792. <linux/icmp.h> includes the C library's headers. */
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
/* RFC 3376, section 4 */
#define IGMP_QUERY 0x11
#define IGMP_REPORT 0x12
#define IGMP2_REPORT 0x16
#define IGMP2_LEAVE 0x17
#define IGMP3_REPORT 0x22
/* RFC 4861, section 6.1: proves that no router has forwarded the packet. */
#define ICMPV6_ND_HOP_LIMIT 255
#define GROUP_MESSAGE_HOP_LIMIT 1

static __always_inline bool fw_is_echo(__u8 family, __u8 type)
{
	if (family == AF_INET)
		return type == ICMP_ECHO_REQUEST || type == ICMP_ECHO_REPLY;
	return type == ICMPV6_ECHO_REQUEST || type == ICMPV6_ECHO_REPLY;
}

/*
 * Reads the packet that an ICMP error quotes, and sets *answer to a packet of the other direction:
 * addresses, ports, protocol. Returns 1, or 0 if no packet of a flow is quoted. A global
 * function, so that only this chain of calls pays for its frame.
 */
__noinline int fw_read_quote(struct __sk_buff *skb, struct packet *packet, struct packet *answer)
{
	__u32 offset, end;
	/* A union: the verifier counts each variable on the stack. */
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
	if (packet->family == AF_INET) {
		if (offset + sizeof(quoted.ipv4) > end ||
		    !read_bytes(skb, offset, &quoted.ipv4, sizeof(quoted.ipv4)))
			return 0;
		if (quoted.ipv4.version != 4 || quoted.ipv4.ihl < 5 ||
		    quoted.ipv4.frag_off & bpf_htons(PKT_IPV4_FRAGMENT_OFFSET))
			return 0;
		offset += quoted.ipv4.ihl * 4;
		answer->protocol = quoted.ipv4.protocol;
		map_ipv4(answer->destination, quoted.ipv4.saddr);
		map_ipv4(answer->source, quoted.ipv4.daddr);
		if (answer->protocol == IPPROTO_AH) {
			if (offset + sizeof(quoted.transport) > end ||
			    !read_bytes(skb, offset, quoted.transport, sizeof(quoted.transport)))
				return 0;
			answer->protocol = quoted.transport[0];
			offset += extension_header_bytes(IPPROTO_AH, quoted.transport[1]);
		}
	} else {
		struct pkt_header_chain chain = {};

		if (offset + sizeof(quoted.ipv6) > end ||
		    !read_bytes(skb, offset, &quoted.ipv6, sizeof(quoted.ipv6)))
			return 0;
		if (quoted.ipv6.version != 6)
			return 0;
		/* The quote includes the extension headers that this host sent. */
		chain.offset = offset + sizeof(quoted.ipv6);
		chain.end = end;
		chain.next = quoted.ipv6.nexthdr;
		if (walk_headers(skb, &chain) != PKT_PARSED_IP ||
		    chain.fragment & PKT_IPV6_FRAGMENT_OFFSET)
			return 0;
		offset = chain.offset;
		answer->protocol = chain.next;
		__builtin_memcpy(answer->destination, &quoted.ipv6.saddr, 16);
		__builtin_memcpy(answer->source, &quoted.ipv6.daddr, 16);
	}
	/* RFC 792: an error quotes at least eight bytes of the payload. */
	if (offset + sizeof(quoted.transport) > end ||
	    !read_bytes(skb, offset, quoted.transport, sizeof(quoted.transport)))
		return 0;
	if (answer->protocol == IPPROTO_TCP || answer->protocol == IPPROTO_UDP) {
		__builtin_memcpy(&answer->destination_port, quoted.transport, 2);
		__builtin_memcpy(&answer->source_port, quoted.transport + 2, 2);
	} else if (answer->protocol == packet->protocol) {
		if (!fw_is_echo(packet->family, quoted.transport[0]))
			return 0;
		__builtin_memcpy(&answer->source_port, quoted.transport + 4, 2);
		answer->destination_port = answer->source_port;
	}
	return 1;
}

/*
 * Whether an ICMP error goes to the sender of the packet that it quotes (RFC 1812, section
 * 4.3.2), and this is a packet of this host, or of a flow that this host forwards. RFC 5927 demands
 * that the tuple matches before an error is believed. knows_echo: each echo is of a known flow.
 * A leaving error is about no packet of this host's sockets.
 */
static __always_inline bool fw_quotes_known_flow(struct __sk_buff *skb, struct packet *packet,
						 bool is_leaving, bool knows_echo)
{
	struct packet answer = {};
	struct fw_flow_match match = {};

	if (!fw_read_quote(skb, packet, &answer) ||
	    !is_same_address(packet->destination, answer.destination))
		return false;
	if (knows_echo && is_icmp(&answer))
		return true;
	/* UDP: also a socket that is not connected may have sent the packet. */
	if (!is_leaving && (answer.protocol == IPPROTO_TCP || answer.protocol == IPPROTO_UDP)) {
		enum fw_flow_socket socket = fw_find_socket(skb, &answer);

		if (socket == FW_SOCKET_WILDCARD ?
			    fw_is_own_address(skb->ifindex, packet->family, packet->destination) :
			    socket != FW_SOCKET_NONE)
			return true;
	}
	return fw_find_flow(&answer, &match);
}

/* An echo's identifier takes the place of its ports. */
static __always_inline void fw_note_echo(struct packet *packet, const __u8 header[8],
					 bool is_request)
{
	__builtin_memcpy(&packet->source_port, header + 4, 2);
	packet->destination_port = packet->source_port;
	packet->is_echo_request = is_request;
}

/*
 * A report or query of multicast groups, which IPv4 has in a protocol of its own. TTL 1 keeps it on
 * the link (RFC 3376, section 4); the router alert option may be missing.
 */
static __always_inline bool fw_is_igmp(struct __sk_buff *skb, const struct packet *packet)
{
	__u8 header[8];

	if (packet->family != AF_INET || packet->protocol != IPPROTO_IGMP ||
	    packet->hop_limit != GROUP_MESSAGE_HOP_LIMIT || !is_multicast(packet->destination) ||
	    packet->transport_length < sizeof(header) ||
	    !read_bytes(skb, packet->transport_offset, header, sizeof(header)))
		return false;
	return header[0] == IGMP_QUERY || header[0] == IGMP_REPORT || header[0] == IGMP2_REPORT ||
	       header[0] == IGMP2_LEAVE || header[0] == IGMP3_REPORT;
}

static __always_inline enum fw_reason fw_classify_icmpv4(struct __sk_buff *skb,
							 struct packet *packet)
{
	__u8 header[8];

	if (packet->transport_length < sizeof(header) ||
	    !read_bytes(skb, packet->transport_offset, header, sizeof(header)))
		return FW_REASON_MALFORMED;
	switch (header[0]) {
	case ICMP_ECHO_REQUEST:
	case ICMP_ECHO_REPLY:
		fw_note_echo(packet, header, header[0] == ICMP_ECHO_REQUEST);
		return FW_REASON_ICMP_ECHO;
	case ICMP_DESTINATION_UNREACHABLE:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETER_PROBLEM:
		return FW_REASON_ICMP_ERROR;
	default:
		return FW_REASON_ICMP_OTHER;
	}
}

static __always_inline enum fw_reason fw_classify_icmpv6(struct __sk_buff *skb,
							 struct packet *packet)
{
	__u8 header[8];

	if (packet->transport_length < sizeof(header) ||
	    !read_bytes(skb, packet->transport_offset, header, sizeof(header)))
		return FW_REASON_MALFORMED;
	switch (header[0]) {
	case ICMPV6_ECHO_REQUEST:
	case ICMPV6_ECHO_REPLY:
		fw_note_echo(packet, header, header[0] == ICMPV6_ECHO_REQUEST);
		return FW_REASON_ICMP_ECHO;
	case ICMPV6_DESTINATION_UNREACHABLE:
	case ICMPV6_PACKET_TOO_BIG:
	case ICMPV6_TIME_EXCEEDED:
	case ICMPV6_PARAMETER_PROBLEM:
		return FW_REASON_ICMP_ERROR;
	case ICMPV6_ROUTER_SOLICITATION:
	case ICMPV6_ROUTER_ADVERTISEMENT:
	case ICMPV6_NEIGHBOUR_SOLICITATION:
	case ICMPV6_NEIGHBOUR_ADVERTISEMENT:
		return packet->hop_limit == ICMPV6_ND_HOP_LIMIT && header[1] == 0 ?
			       FW_REASON_NEIGHBOUR_DISCOVERY :
			       FW_REASON_ICMP_OTHER;
	case ICMPV6_MLD_QUERY:
	case ICMPV6_MLD_REPORT:
	case ICMPV6_MLD_DONE:
	case ICMPV6_MLD2_REPORT:
		return packet->hop_limit == GROUP_MESSAGE_HOP_LIMIT ? FW_REASON_MULTICAST_LISTENER :
								      FW_REASON_ICMP_OTHER;
	default:
		return FW_REASON_ICMP_OTHER;
	}
}

/*
 * Returns an enum fw_reason, as if echo were on and every error were about a known flow. Sets
 * packet's ports and is_echo_request for an echo. A global function, so that the verifier goes
 * through it once.
 */
__noinline int fw_classify_icmp(struct __sk_buff *skb, struct packet *packet)
{
	if (!packet)
		return FW_REASON_MALFORMED;
	return packet->family == AF_INET ? fw_classify_icmpv4(skb, packet) :
					   fw_classify_icmpv6(skb, packet);
}

#endif
