/* SPDX-License-Identifier: GPL-2.0-only */
/* The local sockets that decisions depend on. */
#ifndef FIREWALL_SOCKETS_H
#define FIREWALL_SOCKETS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#include "common/maps.h"
#include "common/packet.h"
#include "common/sockets.h"
#include "common/verifier.h"
#include "firewall/abi.h"
#include "firewall/maps.h"

/* State of the local socket that a flow belongs to. */
enum fw_flow_socket {
	FW_SOCKET_NONE,
	/* UDP, not connected: takes datagrams from every sender. The first of them is bound to no
	 * address, and its look-up succeeds for each destination, also of other hosts. */
	FW_SOCKET_WILDCARD,
	FW_SOCKET_UNCONNECTED,
	/* TCP during its handshake, closed before its end, or in TIME_WAIT. */
	FW_SOCKET_UNSETTLED,
	FW_SOCKET_SETTLED,
};

/*
 * Surround a look-up of a socket: it runs "deliver", which has nothing to do with a packet that is
 * not decided yet, or is only explained. Programs of TC are not preempted on their CPU.
 */
static __always_inline struct fw_cpu *fw_begin_look_up(void)
{
	struct fw_cpu *cpu = only_element(&cpus);

	if (cpu)
		WRITE_ONCE(cpu->is_looking_up, 1);
	return cpu;
}

static __always_inline void fw_end_look_up(struct fw_cpu *cpu)
{
	if (cpu)
		WRITE_ONCE(cpu->is_looking_up, 0);
}

/*
 * Whether the other end has acknowledged something of a TCP socket. One that is closed after SYNs
 * have crossed sends its FIN before that.
 */
static __always_inline bool fw_was_heard(struct bpf_sock *sk)
{
	struct bpf_tcp_sock *tcp = bpf_tcp_sock(sk);

	return tcp && tcp->delivered;
}

/*
 * The state of the packet's own socket. TCP: any socket but a listener, also request sockets and
 * TIME_WAIT. The kernel turns a SYN on a connection in TIME_WAIT into a new connection only if the
 * packet reaches that socket.
 */
static __always_inline enum fw_flow_socket fw_find_socket(struct __sk_buff *skb,
							  const struct packet *packet)
{
	struct bpf_sock_tuple tuple = {};
	struct fw_cpu *cpu;
	struct bpf_sock *sk;
	__u32 state, is_bound;

	set_tuple(packet, &tuple);
	cpu = fw_begin_look_up();
	if (packet->protocol == IPPROTO_TCP) {
		sk = look_up_tcp(skb, &tuple, packet->family);
		fw_end_look_up(cpu);
		if (!sk)
			return FW_SOCKET_NONE;
		state = sk->state;
		if (state == BPF_TCP_FIN_WAIT1 && !fw_was_heard(sk))
			state = BPF_TCP_SYN_RECV;
		bpf_sk_release(sk);
		if (state == BPF_TCP_LISTEN)
			return FW_SOCKET_NONE;
		return state == BPF_TCP_SYN_SENT || state == BPF_TCP_SYN_RECV ||
				       state == BPF_TCP_NEW_SYN_RECV || state == BPF_TCP_TIME_WAIT ?
			       FW_SOCKET_UNSETTLED :
			       FW_SOCKET_SETTLED;
	}
	sk = look_up_udp(skb, &tuple, packet->family);
	fw_end_look_up(cpu);
	if (!sk)
		return FW_SOCKET_NONE;
	state = sk->state;
	is_bound = packet->family == AF_INET ?
			   sk->src_ip4 :
			   sk->src_ip6[0] | sk->src_ip6[1] | sk->src_ip6[2] | sk->src_ip6[3];
	bpf_sk_release(sk);
	if (state == BPF_TCP_ESTABLISHED)
		return FW_SOCKET_SETTLED;
	return is_bound ? FW_SOCKET_UNCONNECTED : FW_SOCKET_WILDCARD;
}

#endif
