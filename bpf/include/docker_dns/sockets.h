/* SPDX-License-Identifier: GPL-2.0-only */
/* The sockets in a container's network namespace: Docker's daemon's, and the container's own. */
#ifndef DOCKER_DNS_SOCKETS_H
#define DOCKER_DNS_SOCKETS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/maps.h"
#include "docker_dns/abi.h"
#include "docker_dns/maps.h"

static __always_inline struct dns_config *dns_config_of(void)
{
	return only_element(&config);
}

/* The socket that would get a packet with these ends, referenced, or NULL. */
static __always_inline struct bpf_sock *dns_look_up(struct __sk_buff *skb, __u8 protocol,
						    struct bpf_sock_tuple *tuple)
{
	return protocol == IPPROTO_TCP ?
		       bpf_sk_lookup_tcp(skb, tuple, sizeof(tuple->ipv4), BPF_F_CURRENT_NETNS, 0) :
		       bpf_sk_lookup_udp(skb, tuple, sizeof(tuple->ipv4), BPF_F_CURRENT_NETNS, 0);
}

/*
 * Whether a socket of the container would get what arrives for the port. The look-up on lo misses
 * sockets that are bound to the uplink by name, and TCP sockets that neither listen nor connect
 * yet.
 */
static __always_inline bool dns_has_socket(struct __sk_buff *skb, const struct dns_config *set,
					   __u8 protocol, __u16 port)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;

	tuple.ipv4.saddr = set->server;
	tuple.ipv4.daddr = set->source;
	tuple.ipv4.sport = bpf_htons(set->server_port);
	tuple.ipv4.dport = bpf_htons(port);
	sk = dns_look_up(skb, protocol, &tuple);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/*
 * Whether the daemon has a socket on this port: one that is bound to exactly the resolver's
 * address.
 */
static __always_inline bool dns_has_daemon(struct __sk_buff *skb, const struct dns_config *set,
					   __u8 protocol, __u16 port)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	bool is_its;

	tuple.ipv4.saddr = bpf_htonl(INADDR_LOOPBACK);
	tuple.ipv4.daddr = set->resolver;
	tuple.ipv4.dport = bpf_htons(port);
	sk = dns_look_up(skb, protocol, &tuple);
	if (!sk)
		return false;
	is_its = sk->src_ip4 == set->resolver;
	bpf_sk_release(sk);
	return is_its;
}

/*
 * Whether a port of the resolver's address is the daemon's. If its port is not known, or has no
 * socket any more, the daemon was restarted: then a port with a socket is its new one.
 */
__noinline int dns_is_daemon(struct __sk_buff *skb, __u32 protocol, __u32 port)
{
	struct dns_config *set = dns_config_of();
	struct dns_daemon *known;
	__u16 *mine, before;

	known = only_element(&daemon);
	if (!set || !known)
		return false;
	if (port == set->resolver_port)
		return true;
	mine = protocol == IPPROTO_TCP ? &known->tcp_port : &known->udp_port;
	before = *mine;
	if (before && before == port)
		return true;
	if ((before && dns_has_daemon(skb, set, protocol, before)) ||
	    !dns_has_daemon(skb, set, protocol, port))
		return false;
	*mine = port;
	return true;
}

#endif
