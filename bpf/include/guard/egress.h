/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A packet that leaves a socket of the guarded cgroup -> verdict.
 *
 * The program may have written each byte of it (IP_HDRINCL): nothing is believed but
 * what routers and receivers go by. The socket's family says nothing, an IPv6 socket
 * sends IPv4 as well; parse_packet() goes by skb->protocol.
 */
#ifndef GUARD_EGRESS_H
#define GUARD_EGRESS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "guard/abi.h"
#include "guard/judge.h"
#include "guard/redirect.h"
#include "parse.h"

/* IPv4 options, RFC 791, section 3.1. */
#define GUARD_OPTION_END 0
#define GUARD_OPTION_NONE 1
#define GUARD_OPTION_LOOSE_SOURCE_ROUTE 131
#define GUARD_OPTION_STRICT_SOURCE_ROUTE 137
#define GUARD_MAX_OPTION_BYTES 40
#define GUARD_MAX_HEADER_MASK 63

/* socket(2); not in the kernel's headers for user space. */
#define GUARD_SOCK_RAW 3

/* A route in the options: routers send the packet on from its destination. */
__noinline int has_ipv4_route(struct __sk_buff *skb, __u32 header)
{
	__u32 offset = sizeof(struct iphdr), i;

	for (i = 0; i < GUARD_MAX_OPTION_BYTES; i++) {
		__u8 option[2] = {};

		if (offset >= header || bpf_skb_load_bytes(skb, offset, option, 1) ||
		    option[0] == GUARD_OPTION_END)
			return false;
		if (option[0] == GUARD_OPTION_LOOSE_SOURCE_ROUTE ||
		    option[0] == GUARD_OPTION_STRICT_SOURCE_ROUTE)
			return true;
		if (option[0] == GUARD_OPTION_NONE) {
			offset++;
		} else {
			/* What cannot be stepped over may hide a route: no option ends
			 * behind the header. */
			if (bpf_skb_load_bytes(skb, offset, option, 2) || option[1] < 2 ||
			    offset + option[1] > header)
				return true;
			offset += option[1];
		}
		if (offset >= header)
			return false;
		/* True anyhow: no header is longer. The verifier then meets the same
		 * state again, instead of following each length. */
		asm volatile("" : "+r"(offset));
		offset &= GUARD_MAX_HEADER_MASK;
	}
	return false;
}

/* A routing header with segments left (RFC 8200, section 4.4), of whatever type. */
__noinline int has_ipv6_route(struct __sk_buff *skb)
{
	__u32 offset = sizeof(struct ipv6hdr), i;
	struct ipv6hdr ip;
	__u8 next;

	if (!read_bytes(skb, 0, &ip, sizeof(ip)))
		return true;
	next = ip.nexthdr;
	for (i = 0; i < ZFW_MAX_EXTENSION_HEADERS; i++) {
		__u8 header[4];

		if (!is_extension_header(next))
			return false;
		if (!read_bytes(skb, offset, header, sizeof(header)))
			return true;
		if (next == ZFW_NEXT_ROUTING && header[3] != 0)
			return true;
		/* What follows in a later fragment is no header. */
		if (next == ZFW_NEXT_FRAGMENT && (header[2] || header[3] & 0xf8))
			return false;
		offset += next == ZFW_NEXT_AUTHENTICATION ? ((__u32)header[1] + 2) * 4 :
			  next == ZFW_NEXT_FRAGMENT	  ? 8 :
							    ((__u32)header[1] + 1) * 8;
		next = header[0];
	}
	return false;
}

/* Two programs may send by one socket at once. */
static __always_inline void note_admitted(struct guard_socket *socket, const struct guard_end *to)
{
	bpf_spin_lock(&socket->lock);
	copy_address(socket->admitted, to->address);
	socket->admitted_port = to->port;
	socket->is_admitted = true;
	bpf_spin_unlock(&socket->lock);
}

static __always_inline bool is_admitted(struct guard_socket *socket, const struct guard_end *to)
{
	bool is_so;

	bpf_spin_lock(&socket->lock);
	is_so = socket->is_admitted && socket->admitted_port == to->port &&
		is_same_address(socket->admitted, to->address);
	bpf_spin_unlock(&socket->lock);
	return is_so;
}

static __always_inline bool is_dns(const struct zfw_packet *packet, const struct guard_end *to)
{
	return to->port == GUARD_DNS_PORT &&
	       (packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP);
}

/*
 * Whether this host would answer it to who may not be reached. What leaves by loopback
 * is answered, quoted and echoed by the kernel and by other programs, to its source.
 * That is ours if the kernel has seen to it: for IPv4 always but with raw sockets (see
 * __ip_route_output_key(); a transparent socket takes a capability as well), for IPv6
 * unless the socket is older than the guard, which refuses it what it takes.
 */
static __always_inline bool is_reflected(struct __sk_buff *skb, const struct zfw_packet *packet,
					 struct bpf_sock *sk, const struct guard_socket *socket,
					 __u32 flags)
{
	struct guard_end source = {};

	if (skb->ifindex != GUARD_LOOPBACK_IFINDEX || is_loopback(packet->source) ||
	    is_same_address(packet->source, packet->destination))
		return false;
	if (sk && sk->type != GUARD_SOCK_RAW &&
	    (packet->family == ZFW_AF_INET || (socket && socket->is_made_guarded)))
		return false;
	copy_address(source.address, packet->source);
	return verdict_of(judge(&source, flags)) == GUARD_VERDICT_DENY;
}

/*
 * Fills packet and to, which must be zeroed, as far as the headers go. A later
 * fragment has no port, and passes by a rule for all ports only.
 */
static __always_inline enum guard_reason decide_egress(struct __sk_buff *skb,
						       struct zfw_packet *packet,
						       struct guard_end *to, struct bpf_sock *sk,
						       struct guard_socket *socket, __u32 flags)
{
	struct guard_proxy *proxy;

	if (parse_packet(skb, false, packet) != ZFW_PARSED_IP)
		return GUARD_REASON_MALFORMED;
	/* In an IPv6 header such an address is not the IPv4 address that it stands for
	 * here (RFC 4942, section 2.2), and no socket but a raw one sends it. */
	if (packet->family == ZFW_AF_INET6 &&
	    (is_mapped(packet->source) || is_mapped(packet->destination)))
		return GUARD_REASON_MALFORMED;
	copy_address(to->address, packet->destination);
	to->port = bpf_ntohs(packet->destination_port);
	if (packet->family == ZFW_AF_INET ?
		    packet->transport_offset > sizeof(struct iphdr) &&
			    has_ipv4_route(skb, packet->transport_offset) :
		    packet->transport_offset > sizeof(struct ipv6hdr) && has_ipv6_route(skb))
		return GUARD_REASON_SOURCE_ROUTE;
	if (is_reflected(skb, packet, sk, socket, flags))
		return GUARD_REASON_FOREIGN_SOURCE;
	if (is_loopback(to->address)) {
		if (skb->ifindex != GUARD_LOOPBACK_IFINDEX)
			return GUARD_REASON_MARTIAN;
		proxy = socket ? proxy_of(socket->netns_cookie) : NULL;
		if (proxy && is_at_proxy(proxy, to, packet->protocol))
			return GUARD_REASON_PROXY;
	}
	/* Before anything allows it: what gets here went round the hooks. */
	if (is_dns(packet, to))
		return GUARD_REASON_DNS_DIRECT;
	/* A name's address may be forgotten while a connection to it lasts. */
	if (socket && packet->fragment != ZFW_FRAGMENT_LATER && is_admitted(socket, to))
		return GUARD_REASON_SOCKET;
	return judge(to, flags);
}

#endif
