/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Decides on a packet that leaves a socket of the guarded cgroup.
 *
 * The program may have written every byte of the packet (IP_HDRINCL). Only those fields are
 * believed that routers and receivers act on. The family comes from skb->protocol, because an IPv6
 * socket sends IPv4 as well.
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

#include "common/address.h"
#include "common/packet.h"
#include "common/verifier.h"
#include "guard/abi.h"
#include "guard/flows.h"
#include "guard/policy.h"
#include "guard/redirect.h"

/* socket(2); not in the kernel's headers for user space. */
#define GUARD_SOCK_RAW 3

/* Under the lock, because two programs may send by one socket at once. */
static __always_inline void guard_note_admitted(struct guard_socket *socket,
						const struct guard_end *to)
{
	bpf_spin_lock(&socket->lock);
	copy_address(socket->admitted, to->address);
	socket->admitted_port = to->port;
	socket->is_admitted = true;
	bpf_spin_unlock(&socket->lock);
}

static __always_inline bool guard_is_admitted(struct guard_socket *socket,
					      const struct guard_end *to)
{
	bool is_so;

	bpf_spin_lock(&socket->lock);
	is_so = socket->is_admitted && socket->admitted_port == to->port &&
		is_same_address(socket->admitted, to->address);
	bpf_spin_unlock(&socket->lock);
	return is_so;
}

static __always_inline bool guard_is_dns(const struct packet *packet, const struct guard_end *to)
{
	return to->port == GUARD_DNS_PORT &&
	       (packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP);
}

/*
 * Whether this host would answer the packet to an address that the policy forbids.
 *
 * The kernel and other programs answer packets on loopback to their source address. The source is
 * this host's if the kernel has checked it. For IPv4 it always has, except for raw sockets
 * (__ip_route_output_key(); a transparent socket needs a capability too). For IPv6 it has unless
 * the socket is older than the guard: on younger sockets the guard refuses the options that would
 * allow it.
 */
static __always_inline bool guard_is_reflected(struct __sk_buff *skb, const struct packet *packet,
					       struct bpf_sock *sk,
					       const struct guard_socket *socket, __u32 flags)
{
	struct guard_end source = {};

	if (skb->ifindex != LOOPBACK_IFINDEX || is_loopback(packet->source) ||
	    is_same_address(packet->source, packet->destination))
		return false;
	if (sk && sk->type != GUARD_SOCK_RAW &&
	    (packet->family == AF_INET || (socket && socket->is_made_guarded)))
		return false;
	copy_address(source.address, packet->source);
	return guard_verdict_of(guard_evaluate(&source, flags)) == GUARD_VERDICT_DENY;
}

/*
 * Fills packet and *to as far as the headers go; the caller zeroes both. A later fragment has no
 * port: only a rule for all ports allows it.
 */
static __always_inline enum guard_reason
guard_decide_egress(struct __sk_buff *skb, struct packet *packet, struct guard_end *to,
		    struct bpf_sock *sk, struct guard_socket *socket, __u32 flags)
{
	struct guard_proxy *proxy = NULL;
	enum guard_reason reason;
	bool is_process = false;

	if (parse_packet(skb, false, packet) != PKT_PARSED_IP)
		return GUARD_REASON_MALFORMED;
	/* In an IPv6 header this is not the IPv4 address that it stands for here (RFC 4942, section
	 * 2.2). Only a raw socket sends it. */
	if (packet->family == AF_INET6 &&
	    (is_mapped(packet->source) || is_mapped(packet->destination)))
		return GUARD_REASON_MALFORMED;
	copy_address(to->address, packet->destination);
	to->port = bpf_ntohs(packet->destination_port);
	if (packet->is_source_routed)
		return GUARD_REASON_SOURCE_ROUTE;
	if (guard_is_reflected(skb, packet, sk, socket, flags))
		return GUARD_REASON_FOREIGN_SOURCE;
	if (is_loopback(to->address)) {
		if (skb->ifindex != LOOPBACK_IFINDEX)
			return GUARD_REASON_MARTIAN;
		if (socket)
			proxy = guard_proxy_of(socket->netns_cookie, &is_process);
		if (proxy && guard_is_at_proxy(proxy, to, packet->protocol)) {
			/* Segments of a connection go to the socket that accepted it. */
			if (is_process &&
			    (packet->protocol != IPPROTO_TCP || packet->tcp_flags & TCP_SYN) &&
			    !guard_is_answered(skb, to, packet->protocol))
				return GUARD_REASON_NO_PROXY;
			return GUARD_REASON_PROXY;
		}
	}
	/* Before any rule allows it: DNS that gets here has bypassed the hooks. */
	if (guard_is_dns(packet, to))
		return GUARD_REASON_DNS_DIRECT;
	/* A connection may outlast the time for which its name is resolved. */
	if (socket && packet->fragment != PKT_FRAGMENT_LATER && guard_is_admitted(socket, to))
		return GUARD_REASON_SOCKET;
	reason = guard_evaluate(to, flags);
	if (packet->protocol == IPPROTO_TCP || packet->fragment == PKT_FRAGMENT_LATER || !sk)
		return reason;
	if (reason == GUARD_REASON_NAME)
		guard_note_flow(to, bpf_get_socket_cookie(skb));
	else if (guard_may_go_on(reason) && guard_has_flow(to, bpf_get_socket_cookie(skb)))
		return GUARD_REASON_SOCKET;
	return reason;
}

#endif
