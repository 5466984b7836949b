/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that pass without a rule, as narrow as their purpose allows: DHCP and SSH of this host,
 * in both directions.
 */
#ifndef FIREWALL_EXCEPTIONS_H
#define FIREWALL_EXCEPTIONS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/packet.h"
#include "firewall/abi.h"
#include "firewall/maps.h"

#define DHCP_SERVER_PORT 67
#define DHCP_CLIENT_PORT 68
#define DHCPV6_SERVER_PORT 547
#define DHCPV6_CLIENT_PORT 546
#define SSH_PORT 22

static __always_inline bool fw_is_own_address(__u32 ifindex, __u8 family, const __be32 candidate[4])
{
	struct fw_address address = { .ifindex = ifindex };

	/* The map has IPv4 addresses in this form. An IPv6 packet to one is not for IPv4. */
	if (family == AF_INET6 && is_mapped(candidate))
		return false;

	__builtin_memcpy(address.address, candidate, sizeof(address.address));
	return bpf_map_lookup_elem(&addresses, &address);
}

/* A DHCP server's answer: RFC 2131, section 4.1; RFC 8415, section 7.2. */
static __always_inline bool fw_is_dhcp_reply(__u32 ifindex, const struct packet *packet)
{
	if (packet->protocol != IPPROTO_UDP)
		return false;
	if (packet->family == AF_INET)
		return packet->source_port == bpf_htons(DHCP_SERVER_PORT) &&
		       packet->destination_port == bpf_htons(DHCP_CLIENT_PORT) &&
		       (packet->destination[3] == bpf_htonl(INADDR_BROADCAST) ||
			fw_is_own_address(ifindex, packet->family, packet->destination));
	return packet->source_port == bpf_htons(DHCPV6_SERVER_PORT) &&
	       packet->destination_port == bpf_htons(DHCPV6_CLIENT_PORT) &&
	       is_link_local(packet->destination);
}

/*
 * A DHCP client's request from this host. IPv4: from 0.0.0.0 or an own address. IPv6: from a
 * link-local address to All_DHCP_Relay_Agents_and_Servers (RFC 8415, section 7.1).
 */
static __always_inline bool fw_is_dhcp_request(__u32 ifindex, const struct packet *packet)
{
	if (packet->protocol != IPPROTO_UDP)
		return false;
	if (packet->family == AF_INET)
		return packet->source_port == bpf_htons(DHCP_CLIENT_PORT) &&
		       packet->destination_port == bpf_htons(DHCP_SERVER_PORT) &&
		       (!packet->source[3] ||
			fw_is_own_address(ifindex, packet->family, packet->source));
	return packet->source_port == bpf_htons(DHCPV6_CLIENT_PORT) &&
	       packet->destination_port == bpf_htons(DHCPV6_SERVER_PORT) &&
	       is_link_local(packet->source) && packet->destination[0] == bpf_htonl(0xff020000) &&
	       !packet->destination[1] && !(packet->destination[2]) &&
	       packet->destination[3] == bpf_htonl(0x00010002);
}

/*
 * A DHCP server's answer from this host: to a client that has no address yet, or to all, so that it
 * belongs to no flow. Ports below 1024 are those of privileged processes. IPv4: from an own address
 * (RFC 2131, section 4.1). IPv6: from a link-local address, as the client's (RFC 8415,
 * section 18.3).
 */
static __always_inline bool fw_is_dhcp_answer(__u32 ifindex, const struct packet *packet)
{
	if (packet->protocol != IPPROTO_UDP)
		return false;
	if (packet->family == AF_INET)
		return packet->source_port == bpf_htons(DHCP_SERVER_PORT) &&
		       packet->destination_port == bpf_htons(DHCP_CLIENT_PORT) &&
		       fw_is_own_address(ifindex, packet->family, packet->source);
	return packet->source_port == bpf_htons(DHCPV6_SERVER_PORT) &&
	       packet->destination_port == bpf_htons(DHCPV6_CLIENT_PORT) &&
	       is_link_local(packet->source);
}

static __always_inline bool fw_is_ssh(__u32 ifindex, const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP && packet->destination_port == bpf_htons(SSH_PORT) &&
	       fw_is_own_address(ifindex, packet->family, packet->destination);
}

/* A packet of this host's SSH server. A server never sends a bare SYN. */
static __always_inline bool fw_is_ssh_answer(__u32 ifindex, const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP && packet->source_port == bpf_htons(SSH_PORT) &&
	       packet->tcp_flags & (TCP_ACK | TCP_RST) &&
	       fw_is_own_address(ifindex, packet->family, packet->source);
}

#endif
