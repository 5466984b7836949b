/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Looking up sockets. A look-up takes the network namespace of the packet's device
 * (f71c6143c203). The socket that it returns is referenced, and the caller releases it.
 */
#ifndef COMMON_SOCKETS_H
#define COMMON_SOCKETS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/packet.h"

/* Sets the ends of a packet. The caller zeroes the tuple, because the helper reads all of it. */
static __always_inline void set_tuple(const struct packet *packet, struct bpf_sock_tuple *tuple)
{
	if (packet->family == AF_INET) {
		tuple->ipv4.saddr = packet->source[3];
		tuple->ipv4.daddr = packet->destination[3];
		tuple->ipv4.sport = packet->source_port;
		tuple->ipv4.dport = packet->destination_port;
		return;
	}
	__builtin_memcpy(tuple->ipv6.saddr, packet->source, 16);
	__builtin_memcpy(tuple->ipv6.daddr, packet->destination, 16);
	tuple->ipv6.sport = packet->source_port;
	tuple->ipv6.dport = packet->destination_port;
}

/*
 * The length of a tuple says its family. Each call has a constant length: with a length in a
 * register, the verifier would demand that all bytes up to the greatest one are readable.
 */

/* Also finds request sockets and connections in TIME_WAIT. */
static __always_inline struct bpf_sock *look_up_tcp(struct __sk_buff *skb,
						    struct bpf_sock_tuple *tuple, __u8 family)
{
	return family == AF_INET ?
		       bpf_skc_lookup_tcp(skb, tuple, sizeof(tuple->ipv4), BPF_F_CURRENT_NETNS, 0) :
		       bpf_skc_lookup_tcp(skb, tuple, sizeof(tuple->ipv6), BPF_F_CURRENT_NETNS, 0);
}

/* The same type of pointer as look_up_udp(): the verifier takes both in one instruction. */
static __always_inline struct bpf_sock *
look_up_tcp_listener(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u8 family)
{
	return family == AF_INET ?
		       bpf_sk_lookup_tcp(skb, tuple, sizeof(tuple->ipv4), BPF_F_CURRENT_NETNS, 0) :
		       bpf_sk_lookup_tcp(skb, tuple, sizeof(tuple->ipv6), BPF_F_CURRENT_NETNS, 0);
}

static __always_inline struct bpf_sock *look_up_udp(struct __sk_buff *skb,
						    struct bpf_sock_tuple *tuple, __u8 family)
{
	return family == AF_INET ?
		       bpf_sk_lookup_udp(skb, tuple, sizeof(tuple->ipv4), BPF_F_CURRENT_NETNS, 0) :
		       bpf_sk_lookup_udp(skb, tuple, sizeof(tuple->ipv6), BPF_F_CURRENT_NETNS, 0);
}

#endif
