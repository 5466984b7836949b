/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fields of the kernel's own structures that steer reads. libbpf replaces their offsets by
 * those of the running kernel.
 */
#ifndef STEER_KERNEL_H
#define STEER_KERNEL_H

#include <stdbool.h>
#include <linux/types.h>
#include <bpf/bpf_core_read.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net {
	__u64 net_cookie;
};

typedef struct {
	struct net *net;
} possible_net_t;

typedef struct {
	__s64 counter;
} atomic64_t;

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct sock_common {
	__be32 skc_rcv_saddr;
	__u16 skc_num;
	unsigned short skc_family;
	/* enum BPF_TCP_*; a UDP socket is in ESTABLISHED if it is connected, else in CLOSE. */
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
};

typedef struct {
	__u32 val;
} kuid_t;

struct sock {
	struct sock_common __sk_common;
	__u8 sk_userlocks : 4;
	__u16 sk_protocol;
	kuid_t sk_uid;
};

/* SOCK_BINDADDR_LOCK, in sk_userlocks */
#define STEER_BINDADDR_LOCK 4

struct inet_sock {
	struct sock sk;
};

struct udp_sock {
	struct inet_sock inet;
};

/* Since Linux 5.6, in kernels with MPTCP. */
struct tcp_sock {
	bool is_mptcp;
};

struct bpf_iter__tcp {
	struct sock_common *sk_common;
};

struct bpf_iter__udp {
	struct udp_sock *udp_sk;
};

#pragma clang attribute pop

#endif
