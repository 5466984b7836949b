/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The listeners that intercepted packets go to: which socket is one, and the map that mirrors them.
 */
#ifndef FIREWALL_LISTENERS_H
#define FIREWALL_LISTENERS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/maps.h"
#include "common/packet.h"
#include "common/sockets.h"
#include "common/verifier.h"
#include "firewall/abi.h"
#include "firewall/maps.h"
#include "firewall/sockets.h"

/* include/net/inet_sock.h, since Linux 6.6 (c274af224269) */
#define INET_FLAGS_TRANSPARENT 15

/* The fields of the kernel's own structures. libbpf replaces the offsets by the running kernel's.
 */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	__u32 val;
} kuid_t;

struct sock {
	kuid_t sk_uid; /* of the process that opened the socket */
};

struct inet_sock {
	unsigned long inet_flags;
};

/* Before Linux 6.6. */
struct inet_sock___bits {
	__u8 transparent : 1;
};

#pragma clang attribute pop

/* What fw_find_listener() found. */
enum fw_listener_state {
	FW_LISTENER_NONE,
	/* A socket that an unprivileged user may have opened. */
	FW_LISTENER_REFUSED,
	FW_LISTENER_FOUND,
};

static __always_inline void fw_set_listener_key(__u8 family, __u8 protocol, __u16 port,
						struct fw_listener_key *key)
{
	key->protocol = protocol;
	key->family = family;
	key->port = port;
}

/* Whether a socket is bound to 127.0.0.1 or ::1; an AF_INET6 one perhaps to ::ffff:127.0.0.1. */
static __always_inline bool fw_is_on_loopback(const struct bpf_sock *sk, __u8 family)
{
	__be32 bound[4], ipv4 = READ_ONCE(sk->src_ip4);

	READ_ADDRESS(bound, sk->src_ip6);
	if (sk->family == AF_INET)
		map_ipv4(bound, ipv4);
	if (family == AF_INET)
		return is_mapped(bound) && bound[3] == bpf_htonl(INADDR_LOOPBACK);
	return !(bound[0] | bound[1] | bound[2]) && bound[3] == bpf_htonl(1);
}

/*
 * Whether only a process with privilege can have opened this socket: it has IP_TRANSPARENT, which
 * takes CAP_NET_ADMIN or CAP_NET_RAW, or root opened it and bound it to loopback. Any user may open
 * a socket on a port above 1023, while the proxy starts anew.
 *
 * The verifier lets no program look into a socket of TC. So the address is written to a map, read
 * back as a number, and the fields are copied. Where the kernel forbids that (lockdown in
 * confidentiality mode), every socket is taken.
 */
static __always_inline bool fw_is_privileged(const struct bpf_sock *sk, bool is_on_loopback)
{
	struct fw_cpu *cpu = only_element(&cpus);
	const struct inet_sock *inet;
	bool is_transparent;
	__u32 uid = 0;

	if (!cpu)
		return false;
	*(volatile __u64 *)&cpu->socket = (unsigned long)sk;
	inet = (const void *)(unsigned long)READ_ONCE(cpu->socket);
	cpu->socket = 0;
	if (bpf_core_read(&uid, sizeof(uid), &((const struct sock *)inet)->sk_uid.val))
		return true;
	if (bpf_core_field_exists(inet->inet_flags))
		is_transparent = BPF_CORE_READ(inet, inet_flags) >> INET_FLAGS_TRANSPARENT & 1;
	else
		is_transparent = BPF_CORE_READ_BITFIELD_PROBED(
			(const struct inet_sock___bits *)inet, transparent);
	return is_transparent || (is_on_loopback && !uid);
}

static __always_inline bool fw_is_listening(const struct bpf_sock *sk, __u8 protocol)
{
	__u32 state = READ_ONCE(sk->state);

	return protocol == IPPROTO_TCP ? state == BPF_TCP_LISTEN : state != BPF_TCP_ESTABLISHED;
}

/* Whether this CPU has looked this UDP listener up in the same tick; notes that it is about to. */
static __always_inline bool fw_is_just_looked_up(__u8 family, __u16 port)
{
	struct fw_cpu *cpu = only_element(&cpus);
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 listener = (__u32)port << 16 | family;

	if (!cpu)
		return false;
	if (cpu->listener == listener && cpu->looked_up == now)
		return true;
	cpu->listener = listener;
	cpu->looked_up = now;
	return false;
}

/* Notes for fw_mirror_new_listener() whether the listener that was found is mirrored: port is 0. */
static __always_inline void fw_note_new_listener(__u16 port)
{
	struct fw_cpu *cpu = only_element(&cpus);

	if (cpu)
		cpu->new_port = port;
}

/*
 * The transparent proxy's socket on 127.0.0.1 or ::1 and this port, referenced, or NULL. TCP: in
 * LISTEN; UDP: not connected. Its family has to fit the packet: a dual-stack AF_INET6 socket takes
 * IPv4 too, AF_INET never takes IPv6. A socket on any address is one if it is transparent.
 *
 * The look-up has source port 0. With the packet's own source port it would find the socket of a
 * local program that happens to be connected to the proxy from that port. The members of a
 * SO_REUSEPORT group still share packets by their real ports, because the kernel chooses the member
 * when it takes the assigned socket (9c02bec95954).
 *
 * *state says what was found. A socket's owner is looked at once, before it is mirrored. A mirrored
 * one on exactly loopback need not be looked up: of TCP it alone listens there. Of UDP the newest
 * of several sockets has the datagrams, so that a CPU looks it up once in a tick of the clock.
 */
static __always_inline struct bpf_sock *fw_find_listener(struct __sk_buff *skb,
							 const struct packet *packet, __u16 port,
							 enum fw_listener_state *state)
{
	struct fw_listener_key key = {};
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk, *known;
	bool is_known = false;
	struct fw_cpu *cpu;

	*state = FW_LISTENER_NONE;
	fw_set_listener_key(packet->family, packet->protocol, port, &key);
	if (packet->protocol == IPPROTO_TCP || fw_is_just_looked_up(packet->family, port)) {
		known = bpf_map_lookup_elem(&listeners, &key);
		if (known) {
			if (fw_is_listening(known, packet->protocol) && known->src_port == port &&
			    fw_is_on_loopback(known, packet->family)) {
				*state = FW_LISTENER_FOUND;
				fw_note_new_listener(0);
				return known;
			}
			bpf_sk_release(known);
		}
	}
	set_tuple(packet, &tuple);
	if (packet->family == AF_INET) {
		tuple.ipv4.daddr = bpf_htonl(INADDR_LOOPBACK);
		tuple.ipv4.dport = bpf_htons(port);
		tuple.ipv4.sport = 0;
	} else {
		tuple.ipv6.daddr[0] = tuple.ipv6.daddr[1] = tuple.ipv6.daddr[2] = 0;
		tuple.ipv6.daddr[3] = bpf_htonl(1);
		tuple.ipv6.dport = bpf_htons(port);
		tuple.ipv6.sport = 0;
	}
	cpu = fw_begin_look_up();
	if (packet->protocol == IPPROTO_TCP)
		sk = look_up_tcp_listener(skb, &tuple, packet->family);
	else
		sk = look_up_udp(skb, &tuple, packet->family);
	fw_end_look_up(cpu);
	if (!sk)
		return NULL;
	/* A program of sk_lookup may have chosen a socket of another port. */
	if (!fw_is_listening(sk, packet->protocol) ||
	    (packet->family == AF_INET6 && sk->family != AF_INET6) || sk->src_port != port)
		goto release;
	known = bpf_map_lookup_elem(&listeners, &key);
	if (known) {
		is_known = known == sk;
		bpf_sk_release(known);
	}
	if (is_known || fw_is_privileged(sk, fw_is_on_loopback(sk, packet->family))) {
		*state = FW_LISTENER_FOUND;
		fw_note_new_listener(is_known ? 0 : port);
		return sk;
	}
	*state = FW_LISTENER_REFUSED;
release:
	bpf_sk_release(sk);
	return NULL;
}

/*
 * Mirrors the listener that fw_find_listener() found, if it is new. One that is bound to a device
 * is not the listener of every interface, and of an MPTCP one the kernel takes no reference:
 * without an entry, "deliver" drops what has lost its socket.
 */
static __always_inline void fw_mirror_new_listener(struct bpf_sock *sk, const struct packet *packet)
{
	struct fw_cpu *cpu = only_element(&cpus);
	struct fw_listener_key key = {};

	if (!cpu || !cpu->new_port)
		return;
	fw_set_listener_key(packet->family, packet->protocol, cpu->new_port, &key);
	if (!sk->bound_dev_if)
		bpf_map_update_elem(&listeners, &key, sk, BPF_ANY);
}

#endif
