/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which local socket a packet belongs to. Look-ups take the network namespace
 * of the device (f71c6143c203); a socket that is returned is referenced and has
 * to be released.
 */
#ifndef ZFW_SOCKETS_H
#define ZFW_SOCKETS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"

static __always_inline __u32 packet_tuple(const struct zfw_packet *packet,
					  struct bpf_sock_tuple *tuple)
{
	if (packet->family == ZFW_AF_INET) {
		tuple->ipv4.saddr = packet->source[3];
		tuple->ipv4.daddr = packet->destination[3];
		tuple->ipv4.sport = packet->source_port;
		tuple->ipv4.dport = packet->destination_port;
		return sizeof(tuple->ipv4);
	}
	__builtin_memcpy(tuple->ipv6.saddr, packet->source, 16);
	__builtin_memcpy(tuple->ipv6.daddr, packet->destination, 16);
	tuple->ipv6.sport = packet->source_port;
	tuple->ipv6.dport = packet->destination_port;
	return sizeof(tuple->ipv6);
}

/* How far a flow's own socket is. */
enum flow_socket {
	FLOW_SOCKET_NONE,
	/* UDP: it takes datagrams from anybody. */
	FLOW_SOCKET_UNCONNECTED,
	/* TCP: its handshake is not over, or it is in TIME_WAIT. */
	FLOW_SOCKET_UNSETTLED,
	FLOW_SOCKET_SETTLED,
};

/*
 * The socket that this packet is for. TCP: anything but a listener, so also request
 * and TIME_WAIT sockets; the stack turns a SYN on TIME_WAIT into a new connection
 * only when it meets that socket.
 */
static __always_inline enum flow_socket find_socket(struct __sk_buff *skb,
						    const struct zfw_packet *packet)
{
	struct bpf_sock_tuple tuple = {};
	__u32 length = packet_tuple(packet, &tuple), state;
	struct bpf_sock *sk;

	if (packet->protocol == IPPROTO_TCP) {
		sk = length == sizeof(tuple.ipv4) ?
			     bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4),
						BPF_F_CURRENT_NETNS, 0) :
			     bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6),
						BPF_F_CURRENT_NETNS, 0);
		if (!sk)
			return FLOW_SOCKET_NONE;
		state = sk->state;
		bpf_sk_release(sk);
		if (state == BPF_TCP_LISTEN)
			return FLOW_SOCKET_NONE;
		return state == BPF_TCP_SYN_SENT || state == BPF_TCP_SYN_RECV ||
				       state == BPF_TCP_NEW_SYN_RECV || state == BPF_TCP_TIME_WAIT ?
			       FLOW_SOCKET_UNSETTLED :
			       FLOW_SOCKET_SETTLED;
	}
	sk = length == sizeof(tuple.ipv4) ?
		     bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0) :
		     bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return FLOW_SOCKET_NONE;
	state = sk->state;
	bpf_sk_release(sk);
	return state == BPF_TCP_ESTABLISHED ? FLOW_SOCKET_SETTLED : FLOW_SOCKET_UNCONNECTED;
}

/*
 * The transparent proxy's socket on 127.0.0.1 or ::1 and this port: TCP in
 * LISTEN, UDP unconnected, and of a family that can take the packet (a
 * dual-stack AF_INET6 socket takes IPv4 too; AF_INET never takes IPv6).
 *
 * Looked up from port 0: a program on this host may be connected to the proxy
 * from the very port that the packet comes from, and its socket would be found
 * instead. Members of a SO_REUSEPORT group are chosen by the packet's own ports
 * all the same, when the stack takes the assigned socket (9c02bec95954).
 */
static __always_inline struct bpf_sock *find_listener(struct __sk_buff *skb,
						      const struct zfw_packet *packet, __u16 port)
{
	struct bpf_sock_tuple tuple = {};
	__u32 length = packet_tuple(packet, &tuple);
	struct bpf_sock *sk;

	if (length == sizeof(tuple.ipv4)) {
		tuple.ipv4.daddr = bpf_htonl(INADDR_LOOPBACK);
		tuple.ipv4.dport = bpf_htons(port);
		tuple.ipv4.sport = 0;
	} else {
		tuple.ipv6.daddr[0] = tuple.ipv6.daddr[1] = tuple.ipv6.daddr[2] = 0;
		tuple.ipv6.daddr[3] = bpf_htonl(1);
		tuple.ipv6.dport = bpf_htons(port);
		tuple.ipv6.sport = 0;
	}
	if (packet->protocol == IPPROTO_TCP) {
		sk = length == sizeof(tuple.ipv4) ?
			     bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4),
						BPF_F_CURRENT_NETNS, 0) :
			     bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6),
						BPF_F_CURRENT_NETNS, 0);
		if (!sk)
			return NULL;
		if (sk->state == BPF_TCP_LISTEN &&
		    (packet->family == ZFW_AF_INET || sk->family == ZFW_AF_INET6))
			return sk;
	} else {
		sk = length == sizeof(tuple.ipv4) ?
			     bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS,
					       0) :
			     bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS,
					       0);
		if (!sk)
			return NULL;
		if (sk->state != BPF_TCP_ESTABLISHED &&
		    (packet->family == ZFW_AF_INET || sk->family == ZFW_AF_INET6))
			return sk;
	}
	bpf_sk_release(sk);
	return NULL;
}

#endif
