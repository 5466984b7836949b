/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Redirects DNS to the proxy, and maps the proxy's answers back to the server that was asked.
 *
 * A socket may ask several servers at once, and has to tell their answers apart. So each server is
 * asked at another port of the proxy. "place" is the index of such a port.
 */
#ifndef GUARD_REDIRECT_H
#define GUARD_REDIRECT_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/packet.h"
#include "common/verifier.h"
#include "guard/abi.h"
#include "guard/policy.h"
#include "guard/maps.h"

_Static_assert((GUARD_SERVERS & (GUARD_SERVERS - 1)) == 0, "places are masked");

/*
 * Where queries of a network namespace go. *is_process: to the guard's DNS process, whose sockets
 * are marked. The servers of a redirect, which has an entry for all namespaces, are not.
 */
static __always_inline struct guard_proxy *guard_proxy_of(__u64 netns_cookie, bool *is_process)
{
	struct guard_proxy *found = bpf_map_lookup_elem(&proxies, &netns_cookie);

	*is_process = found && netns_cookie != 0;
	if (found)
		return found;
	netns_cookie = 0;
	return bpf_map_lookup_elem(&proxies, &netns_cookie);
}

/*
 * Whether a query to this end reaches a socket of the guard's DNS process. After the end of that
 * process, any user may bind its ports. The look-up has no source, so that it finds what is bound
 * and not an old connection. ctx: a struct bpf_sock_addr, or a packet that leaves by loopback.
 */
static __always_inline bool guard_is_answered(void *ctx, const struct guard_end *end,
					      __u16 protocol)
{
	struct bpf_sock_tuple tuple = {};
	struct guard_socket *socket;
	struct bpf_sock *found;
	bool is_marked;

	if (is_mapped(end->address)) {
		tuple.ipv4.daddr = end->address[3];
		tuple.ipv4.dport = bpf_htons(end->port);
		found = protocol == IPPROTO_TCP ? bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4),
								    BPF_F_CURRENT_NETNS, 0) :
						  bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv4),
								    BPF_F_CURRENT_NETNS, 0);
	} else {
		copy_address(tuple.ipv6.daddr, end->address);
		tuple.ipv6.dport = bpf_htons(end->port);
		found = protocol == IPPROTO_TCP ? bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6),
								    BPF_F_CURRENT_NETNS, 0) :
						  bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv6),
								    BPF_F_CURRENT_NETNS, 0);
	}
	if (!found)
		return false;
	socket = bpf_sk_storage_get(&sockets, found, NULL, 0);
	is_marked = socket && socket->is_dns_process;
	bpf_sk_release(found);
	return is_marked;
}

/* The place of the proxy's port that is this end, or GUARD_SERVERS. */
static __always_inline __u32 guard_place_at(const struct guard_proxy *proxy,
					    const struct guard_end *end)
{
	bool is_ipv4 = is_mapped(end->address);
	__u32 i;

	if (end->port == 0 || !is_same_address(end->address, is_ipv4 ? proxy->ipv4 : proxy->ipv6))
		return GUARD_SERVERS;
	for (i = 0; i < GUARD_SERVERS; i++) {
		if (end->port == (is_ipv4 ? proxy->ipv4_ports[i] : proxy->ipv6_ports[i]))
			return i;
	}
	return GUARD_SERVERS;
}

/* Whether the proxy takes queries at this end. It takes those of TCP at its first port only. */
static __always_inline bool guard_is_at_proxy(const struct guard_proxy *proxy,
					      const struct guard_end *end, __u16 protocol)
{
	return guard_place_at(proxy, end) < (protocol == IPPROTO_TCP ? 1 : GUARD_SERVERS);
}

/* How many servers the proxy can stand for. */
static __always_inline __u32 guard_places(const struct guard_proxy *proxy, bool is_ipv4)
{
	__u32 i;

	for (i = 0; i < GUARD_SERVERS; i++) {
		if ((is_ipv4 ? proxy->ipv4_ports[i] : proxy->ipv6_ports[i]) == 0)
			break;
	}
	return i;
}

/*
 * The place of a server for this socket: the one that it has, or the next one, whose server is
 * forgotten. The counter is atomic, because two threads may send by one socket.
 */
static __always_inline __u32 guard_place_of(struct guard_socket *socket,
					    const struct guard_end *server, __u32 count,
					    bool is_first_only)
{
	struct guard_server *entry;
	__u32 i, place = 0;

	if (!is_first_only) {
		for (i = 0; i < GUARD_SERVERS; i++) {
			entry = &socket->servers[i];
			if (i < count && entry->port == server->port &&
			    is_same_address(entry->address, server->address))
				return i;
		}
		place = __sync_fetch_and_add(&socket->next_server, 1) % count;
	}
	place = masked(place, GUARD_SERVERS - 1);
	entry = &socket->servers[place];
	copy_address(entry->address, server->address);
	entry->port = server->port;
	return place;
}

/*
 * Sets *to to the end of the proxy that stands for a server. False if there is none, if another
 * program listens there, or if the socket is bound to an interface from which a loopback address
 * cannot be reached.
 */
static __always_inline bool guard_redirect(struct bpf_sock_addr *ctx, struct guard_socket *socket,
					   const struct guard_end *server, __u16 protocol,
					   __u32 bound_ifindex, struct guard_end *to)
{
	bool is_process, is_ipv4 = is_mapped(server->address);
	struct guard_proxy *proxy = guard_proxy_of(socket->netns_cookie, &is_process);
	__u32 count, place;

	if (!proxy)
		return false;
	count = guard_places(proxy, is_ipv4);
	if (count == 0)
		return false;
	if (bound_ifindex != 0 && bound_ifindex != LOOPBACK_IFINDEX &&
	    is_loopback(is_ipv4 ? proxy->ipv4 : proxy->ipv6))
		return false;
	place = guard_place_of(socket, server, count, protocol == IPPROTO_TCP);
	place = masked(place, GUARD_SERVERS - 1);
	copy_address(to->address, is_ipv4 ? proxy->ipv4 : proxy->ipv6);
	to->port = is_ipv4 ? proxy->ipv4_ports[place] : proxy->ipv6_ports[place];
	return !is_process || guard_is_answered(ctx, to, protocol);
}

/*
 * The server that an end of the proxy stands for, if this socket asked one there. With is_answer,
 * end has sent a datagram: a program that took the port of the guard's DNS process is shown as it
 * is, and resolvers ignore it.
 */
static __always_inline bool guard_find_server(struct bpf_sock_addr *ctx,
					      struct guard_socket *socket,
					      const struct guard_end *end, bool is_answer,
					      struct guard_end *server)
{
	bool is_process;
	struct guard_proxy *proxy = guard_proxy_of(socket->netns_cookie, &is_process);
	__u32 place;

	if (!proxy)
		return false;
	place = guard_place_at(proxy, end);
	if (place >= GUARD_SERVERS || socket->servers[place].port == 0)
		return false;
	if (is_answer && is_process && !guard_is_answered(ctx, end, IPPROTO_UDP))
		return false;
	copy_address(server->address, socket->servers[place].address);
	server->port = socket->servers[place].port;
	return true;
}

#endif
