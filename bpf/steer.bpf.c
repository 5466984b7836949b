// SPDX-License-Identifier: GPL-2.0-only
/*
 * Steer: connections to any address and port land on the daemon of one's choice.
 *
 * "lookup" picks the socket of a network namespace's packets. The others see, in all
 * of the machine, who listens where: a socket on exactly a packet's address keeps it,
 * and a daemon that comes back to its target's address is taken at once. No process
 * is needed for either, but for UDP, whose sockets no hook may put into a map.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "steer/abi.h"
#include "steer/address.h"
#include "steer/kernel.h"
#include "steer/listeners.h"
#include "steer/mappings.h"
#include "steer/maps.h"
#include "steer/sockets.h"

/* What a cgroup hook answers. */
#define STEER_PROCEED 1

/* Does a listener of exactly this address take the packet? */
static __always_inline bool is_kept(const struct steer_wanted *wanted)
{
	struct steer_address at = { .port = wanted->port, .protocol = wanted->protocol };
	__u32 zero = 0;
	__u64 *count;

	set_ipv6(at.address, wanted->address);
	if (is_listened_at(&at))
		return true;
	count = bpf_map_lookup_elem(&device_listeners, &zero);
	if (!count || !*count || !wanted->ifindex)
		return false;
	at.ifindex = wanted->ifindex;
	return is_listened_at(&at);
}

/* Could a socket that may be bound to a device answer what came in there? */
static __always_inline bool takes_from(const struct bpf_sock *sk, __u32 ifindex)
{
	return !sk->bound_dev_if || sk->bound_dev_if == ifindex;
}

/* Chooses the newest socket of a target that takes the packet. */
static __always_inline bool choose(struct bpf_sk_lookup *ctx, const struct steer_wanted *wanted,
				   const __be32 remote[4], __u32 target)
{
	struct steer_target *found = bpf_map_lookup_elem(&targets, &target);
	struct steer_socket_key key = { .target = target };
	bool is_chosen = false;
	struct bpf_sock *sk;
	__u32 taken;

	if (!found)
		return false;
	taken = *(volatile __u32 *)&found->taken;
	for (__u32 i = 1; i <= STEER_TARGET_SOCKETS && i <= taken; i++) {
		key.slot = (taken - i) % STEER_TARGET_SOCKETS;
		sk = bpf_map_lookup_elem(&sockets, &key);
		if (!sk)
			continue;
		/* The kernel refuses one of the other family, a connected one of UDP, and one
		 * of TCP that was shut down: the one before it may do. */
		if (takes_from(sk, wanted->ifindex) && !bpf_sk_assign(ctx, sk, 0)) {
			if (wanted->protocol == IPPROTO_UDP)
				note_client(wanted, remote, bpf_ntohs(ctx->remote_port), sk);
			is_chosen = true;
		}
		bpf_sk_release(sk);
		if (is_chosen)
			return true;
	}
	return false;
}

SEC("sk_lookup")
int lookup(struct bpf_sk_lookup *ctx)
{
	const struct steer_mapping *mapping;
	struct steer_wanted wanted = {
		.port = ctx->local_port,
		.protocol = ctx->protocol,
		.family = 6,
	};
	__be32 local_ipv4, remote_ipv4, remote[4];
	struct steer_counter *counter;

	/* Another program was first. */
	if (ctx->sk)
		return SK_PASS;
	/* Those of the other family are 0. */
	local_ipv4 = read_field(ctx->local_ip4);
	remote_ipv4 = read_field(ctx->remote_ip4);
	read_ipv6(wanted.address, ctx->local_ip6);
	read_ipv6(remote, ctx->remote_ip6);
	if (ctx->family == STEER_AF_INET) {
		wanted.family = 4;
		set_ipv4(wanted.address, local_ipv4);
		set_ipv4(remote, remote_ipv4);
	}
	/* Since Linux 5.17 (f89315650ba3). */
	if (bpf_core_field_exists(ctx->ingress_ifindex))
		wanted.ifindex = ctx->ingress_ifindex;

	mapping = find_mapping(&wanted);
	if (!mapping)
		return SK_PASS;
	counter = counter_of(mapping->id);
	if (counter)
		counter->lookups++;
	if (!(mapping->flags & STEER_OVERRIDE) && is_kept(&wanted)) {
		if (counter)
			counter->kept++;
		if (wanted.protocol == IPPROTO_UDP)
			forget_client(&wanted, remote, bpf_ntohs(ctx->remote_port));
		return SK_PASS;
	}
	if (choose(ctx, &wanted, remote, mapping->target))
		return SK_PASS;
	if (counter)
		counter->no_socket++;
	return mapping->flags & STEER_FALLTHROUGH ? SK_PASS : SK_DROP;
}

static __always_inline void read_address(struct steer_listener *listener,
					 const struct sock_common *sk)
{
	listener->at.port = sk->skc_num;
	listener->at.ifindex = sk->skc_bound_dev_if;
	if (sk->skc_family == STEER_AF_INET) {
		listener->family = 4;
		set_ipv4(listener->at.address, sk->skc_rcv_saddr);
		return;
	}
	listener->family = 6;
	set_ipv6(listener->at.address, sk->skc_v6_rcv_saddr.in6_u.u6_addr32);
}

static __always_inline bool is_mptcp(void *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	return tcp && bpf_core_field_exists(tcp->is_mptcp) && tcp->is_mptcp;
}

static __always_inline bool is_steered(__u64 netns_cookie)
{
	const struct steer_config *found = config_of();

	return found && found->netns_cookie == netns_cookie;
}

/* Every change of state of every connection passes here: those of listeners are few. */
SEC("tp_btf/inet_sock_set_state")
int set_state(__u64 *ctx)
{
	struct steer_listener listener = { .at.protocol = IPPROTO_TCP };
	struct sock *sk = (struct sock *)ctx[0];
	int before = ctx[1], after = ctx[2];

	/* A connection begins as a copy of its listener and never was one. */
	if (after != STEER_TCP_LISTEN && !(before == STEER_TCP_LISTEN && after == STEER_TCP_CLOSE))
		return 0;
	/* A listener of MPTCP is two, of which that of TCP has the port. */
	if (sk->sk_protocol != IPPROTO_TCP || !is_steered(sk->__sk_common.skc_net.net->net_cookie))
		return 0;
	if (after != STEER_TCP_LISTEN) {
		forget_listener(bpf_get_socket_cookie(sk));
		return 0;
	}
	read_address(&listener, &sk->__sk_common);
	listener.is_mptcp = is_mptcp(sk);
	note_process(&listener);
	note_listener(bpf_get_socket_cookie(sk), &listener);
	return 0;
}

/* A listener is in place; set_state has seen it, and knows whether it is of our namespace. */
SEC("sockops")
int adopt(struct bpf_sock_ops *ctx)
{
	struct steer_listener *listener;
	struct steer_socket_key key;
	bool is_adopted = false;
	__u64 cookie;

	if (ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB)
		return STEER_PROCEED;
	cookie = bpf_get_socket_cookie(ctx);
	listener = bpf_map_lookup_elem(&listening, &cookie);
	if (!listener)
		return STEER_PROCEED;
	key.target = target_of(&listener->at);
	/* Linux 6.18 refuses to take that into a map; earlier it may not, and does no good. */
	if (key.target != STEER_NO_TARGET && !listener->is_mptcp) {
		is_adopted = take_place(key.target, &key.slot) &&
			     !bpf_sock_hash_update(ctx, &sockets, &key, BPF_ANY);
		if (!is_adopted)
			note_trouble(STEER_TROUBLE_ADOPTION);
	}
	tell(STEER_KIND_CAME, cookie, listener, key.target, is_adopted);
	return STEER_PROCEED;
}

/* After a socket was bound its device cannot be read, only before. */
static __always_inline int on_bind(struct bpf_sock_addr *ctx)
{
	__u32 ifindex, *device;

	if (!ctx->sk || ctx->protocol != IPPROTO_UDP)
		return STEER_PROCEED;
	ifindex = ctx->sk->bound_dev_if;
	if (!ifindex)
		return STEER_PROCEED;
	device = bpf_sk_storage_get(&devices, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (device)
		*device = ifindex;
	return STEER_PROCEED;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	return on_bind(ctx);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	return on_bind(ctx);
}

static __always_inline void on_bound(struct bpf_sock *sk, struct steer_listener *listener)
{
	__u32 *device = bpf_sk_storage_get(&devices, sk, NULL, 0);
	__u64 cookie = bpf_get_socket_cookie(sk);

	listener->at.protocol = IPPROTO_UDP;
	listener->at.port = sk->src_port;
	listener->at.ifindex = device ? *device : 0;
	note_process(listener);
	if (note_listener(cookie, listener))
		tell(STEER_KIND_CAME, cookie, listener, target_of(&listener->at), false);
}

SEC("cgroup/post_bind4")
int post_bind4(struct bpf_sock *sk)
{
	struct steer_listener listener = { .family = 4 };

	if (sk->protocol == IPPROTO_UDP && is_steered(bpf_get_netns_cookie(sk))) {
		set_ipv4(listener.at.address, sk->src_ip4);
		on_bound(sk, &listener);
	}
	return STEER_PROCEED;
}

SEC("cgroup/post_bind6")
int post_bind6(struct bpf_sock *sk)
{
	struct steer_listener listener = { .family = 6 };

	if (sk->protocol == IPPROTO_UDP && is_steered(bpf_get_netns_cookie(sk))) {
		read_ipv6(listener.at.address, sk->src_ip6);
		on_bound(sk, &listener);
	}
	return STEER_PROCEED;
}

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *sk)
{
	if (sk->protocol == IPPROTO_UDP)
		forget_listener(bpf_get_socket_cookie(sk));
	return STEER_PROCEED;
}

/*
 * A daemon answers a client that was steered to it: from the address that the client
 * asked, unless the daemon itself says from which (IP_PKTINFO).
 */
SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	const struct steer_flow *flow;
	__be32 remote[4];

	if (!sk || ctx->protocol != IPPROTO_UDP || !is_steered(bpf_get_netns_cookie(ctx)))
		return STEER_PROCEED;
	if (ctx->msg_src_ip4 && ctx->msg_src_ip4 != sk->src_ip4)
		return STEER_PROCEED;
	set_ipv4(remote, ctx->user_ip4);
	flow = find_client(sk, remote, bpf_ntohs(ctx->user_port));
	if (flow)
		ctx->msg_src_ip4 = flow->local[3];
	return STEER_PROCEED;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__be32 remote[4], source[4], own[4];
	const struct steer_flow *flow;

	if (!sk || ctx->protocol != IPPROTO_UDP || !is_steered(bpf_get_netns_cookie(ctx)))
		return STEER_PROCEED;
	read_ipv6(source, ctx->msg_src_ip6);
	bound_address(own, sk);
	if (!is_wildcard(source) && !is_same(source, own))
		return STEER_PROCEED;
	read_ipv6(remote, ctx->user_ip6);
	flow = find_client(sk, remote, bpf_ntohs(ctx->user_port));
	if (flow) {
		ctx->msg_src_ip6[0] = flow->local[0];
		ctx->msg_src_ip6[1] = flow->local[1];
		ctx->msg_src_ip6[2] = flow->local[2];
		ctx->msg_src_ip6[3] = flow->local[3];
	}
	return STEER_PROCEED;
}

/* Those that listened before the hooks were there; reading one is a scan. */
SEC("iter/tcp")
int scan_tcp(struct bpf_iter__tcp *ctx)
{
	struct steer_listener listener = { .at.protocol = IPPROTO_TCP };
	struct sock_common *sk = ctx->sk_common;

	if (!sk || sk->skc_state != STEER_TCP_LISTEN || !is_steered(sk->skc_net.net->net_cookie))
		return 0;
	read_address(&listener, sk);
	listener.is_mptcp = is_mptcp(sk);
	note_listener(bpf_get_socket_cookie(sk), &listener);
	return 0;
}

SEC("iter/udp")
int scan_udp(struct bpf_iter__udp *ctx)
{
	struct steer_listener listener = { .at.protocol = IPPROTO_UDP };
	struct udp_sock *udp = ctx->udp_sk;
	struct sock_common *sk;

	if (!udp)
		return 0;
	sk = &udp->inet.sk.__sk_common;
	/* One that is connected meets its packets before any look-up of ours. */
	if (sk->skc_state == STEER_TCP_ESTABLISHED || !sk->skc_num ||
	    !is_steered(sk->skc_net.net->net_cookie))
		return 0;
	read_address(&listener, sk);
	note_listener(bpf_get_socket_cookie(udp), &listener);
	return 0;
}

/* What user space cannot do alone without losing what happens meanwhile. */

/* Before a socket is put into sockets: its slot. 0, or a negative error. */
SEC("syscall")
int take_slot(struct steer_slot *slot)
{
	return take_place(slot->target, &slot->slot) ? 0 : -1;
}

/* A socket that is not there any more, though nobody saw it go. */
SEC("syscall")
int forget(__u64 *cookie)
{
	forget_listener(*cookie);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
