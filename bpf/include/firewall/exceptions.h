/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What is let through without a rule, and no more than its purpose needs: DHCP and
 * SSH to this host, in both directions.
 */
#ifndef ZFW_EXCEPTIONS_H
#define ZFW_EXCEPTIONS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "firewall/abi.h"
#include "firewall/maps.h"
#include "parse.h"

#define DHCP_SERVER_PORT 67
#define DHCP_CLIENT_PORT 68
#define DHCPV6_SERVER_PORT 547
#define DHCPV6_CLIENT_PORT 546
#define SSH_PORT 22

static __always_inline bool is_own_address(const struct __sk_buff *skb, __u8 family,
					   const __be32 candidate[4])
{
	struct zfw_address address = { .ifindex = skb->ifindex };

	/* The table has IPv4 addresses as ::ffff:a.b.c.d. An IPv6 packet to
	 * such an address is not for the IPv4 one. */
	if (family == ZFW_AF_INET6 && !candidate[0] && !candidate[1] &&
	    candidate[2] == bpf_htonl(0xffff))
		return false;

	__builtin_memcpy(address.address, candidate, sizeof(address.address));
	return bpf_map_lookup_elem(&addresses, &address);
}

static __always_inline bool is_link_local(const __be32 address[4])
{
	return (address[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* A DHCP server's answer: RFC 2131, section 4.1; RFC 8415, section 7.2. */
static __always_inline bool is_dhcp_reply(const struct __sk_buff *skb,
					  const struct zfw_packet *packet)
{
	if (packet->protocol != IPPROTO_UDP)
		return false;
	if (packet->family == ZFW_AF_INET)
		return packet->source_port == bpf_htons(DHCP_SERVER_PORT) &&
		       packet->destination_port == bpf_htons(DHCP_CLIENT_PORT) &&
		       (packet->destination[3] == bpf_htonl(INADDR_BROADCAST) ||
			is_own_address(skb, packet->family, packet->destination));
	return packet->source_port == bpf_htons(DHCPV6_SERVER_PORT) &&
	       packet->destination_port == bpf_htons(DHCPV6_CLIENT_PORT) &&
	       is_link_local(packet->destination);
}

/* This host's question to one: from no address yet or from its own; IPv6 from a
 * link-local one to All_DHCP_Relay_Agents_and_Servers (RFC 8415, section 7.1). */
static __always_inline bool is_dhcp_request(const struct __sk_buff *skb,
					    const struct zfw_packet *packet)
{
	if (packet->protocol != IPPROTO_UDP)
		return false;
	if (packet->family == ZFW_AF_INET)
		return packet->source_port == bpf_htons(DHCP_CLIENT_PORT) &&
		       packet->destination_port == bpf_htons(DHCP_SERVER_PORT) &&
		       (!packet->source[3] || is_own_address(skb, packet->family, packet->source));
	return packet->source_port == bpf_htons(DHCPV6_CLIENT_PORT) &&
	       packet->destination_port == bpf_htons(DHCPV6_SERVER_PORT) &&
	       is_link_local(packet->source) && packet->destination[0] == bpf_htonl(0xff020000) &&
	       !packet->destination[1] && !(packet->destination[2]) &&
	       packet->destination[3] == bpf_htonl(0x00010002);
}

static __always_inline bool is_ssh(const struct __sk_buff *skb, const struct zfw_packet *packet)
{
	return packet->protocol == IPPROTO_TCP && packet->destination_port == bpf_htons(SSH_PORT) &&
	       is_own_address(skb, packet->family, packet->destination);
}

/* What this host's SSH server answers: it never begins a connection. */
static __always_inline bool is_ssh_answer(const struct __sk_buff *skb,
					  const struct zfw_packet *packet)
{
	return packet->protocol == IPPROTO_TCP && packet->source_port == bpf_htons(SSH_PORT) &&
	       packet->tcp_flags & (TCP_ACK | TCP_RST) &&
	       is_own_address(skb, packet->family, packet->source);
}

#endif
