// SPDX-License-Identifier: GPL-2.0-only
/*
 * Steer: hands connections to any address and port to a daemon that listens elsewhere.
 *
 * "lookup" chooses the socket for a packet in one network namespace. The other programs follow, in
 * the whole machine, which sockets listen where: a listener on exactly the packet's address keeps
 * its packets, and a restarted daemon takes over its target at once. TCP needs no process for that.
 * UDP sockets cannot be put into a map by a hook, so steer's manager process does that.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/cgroup.h"
#include "common/maps.h"
#include "common/verifier.h"
#include "steer/abi.h"
#include "steer/connected.h"
#include "steer/events.h"
#include "steer/kernel.h"
#include "steer/listeners.h"
#include "steer/mappings.h"
#include "steer/maps.h"
#include "steer/sockets.h"

/* Whether a listener on exactly the packet's address keeps it. */
static __always_inline bool steer_is_kept(const struct steer_wanted *wanted)
{
	struct steer_address at = { .port = wanted->port, .protocol = wanted->protocol };
	__u64 *count;

	copy_address(at.address, wanted->address);
	if (steer_is_listened_at(&at))
		return true;
	if (wanted->protocol == IPPROTO_UDP && steer_is_disconnected_at(&at, wanted->ifindex))
		return true;
	if (steer_is_unrecorded(&at))
		return true;
	count = only_element(&device_listeners);
	if (!count || !*count || !wanted->ifindex)
		return false;
	at.ifindex = wanted->ifindex;
	return steer_is_listened_at(&at);
}

/* Whether a socket, which may be bound to a device, receives from this one. */
static __always_inline bool steer_takes_from(const struct bpf_sock *sk, __u32 ifindex)
{
	return !sk->bound_dev_if || sk->bound_dev_if == ifindex;
}

/* Assigns the newest of a target's sockets that takes the packet. */
static __always_inline bool steer_choose(struct bpf_sk_lookup *ctx,
					 const struct steer_wanted *wanted, const __be32 remote[4],
					 __u32 target)
{
	struct steer_target *found = bpf_map_lookup_elem(&targets, &target);
	struct steer_socket_key key = { .target = target };
	bool is_chosen = false;
	struct bpf_sock *sk;
	__u32 taken;

	if (!found)
		return false;
	taken = READ_ONCE(found->taken);
	for (__u32 i = 1; i <= STEER_TARGET_SOCKETS && i <= taken; i++) {
		key.slot = (taken - i) % STEER_TARGET_SOCKETS;
		sk = bpf_map_lookup_elem(&sockets, &key);
		if (!sk)
			continue;
		/* The kernel refuses a socket of the other family, a connected one of UDP, and one
		 * of TCP that was shut down. An older one may be accepted. */
		if (steer_takes_from(sk, wanted->ifindex) && !bpf_sk_assign(ctx, sk, 0)) {
			if (wanted->protocol == IPPROTO_UDP)
				steer_note_client(wanted, remote, bpf_ntohs(ctx->remote_port), sk);
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

	/* Another program has already chosen a socket. */
	if (ctx->sk)
		return SK_PASS;
	/* The fields of the other family are 0. */
	local_ipv4 = READ_ONCE(ctx->local_ip4);
	remote_ipv4 = READ_ONCE(ctx->remote_ip4);
	READ_ADDRESS(wanted.address, ctx->local_ip6);
	READ_ADDRESS(remote, ctx->remote_ip6);
	if (ctx->family == AF_INET) {
		wanted.family = 4;
		map_ipv4(wanted.address, local_ipv4);
		map_ipv4(remote, remote_ipv4);
	}
	/* Since Linux 5.17 (f89315650ba3). */
	if (bpf_core_field_exists(ctx->ingress_ifindex))
		wanted.ifindex = ctx->ingress_ifindex;

	mapping = steer_find_mapping(&wanted);
	if (!mapping)
		return SK_PASS;
	/* Without a source port: the firewall looks up a listener. */
	counter = ctx->remote_port ? steer_counter_of(mapping->id) : NULL;
	if (counter)
		counter->lookups++;
	if (!(mapping->flags & STEER_OVERRIDE) && steer_is_kept(&wanted)) {
		if (counter)
			counter->kept++;
		if (wanted.protocol == IPPROTO_UDP)
			steer_forget_client(&wanted, remote, bpf_ntohs(ctx->remote_port));
		return SK_PASS;
	}
	if (steer_choose(ctx, &wanted, remote, mapping->target))
		return SK_PASS;
	if (counter)
		counter->no_socket++;
	return mapping->flags & STEER_FALLTHROUGH ? SK_PASS : SK_DROP;
}

static __always_inline void steer_read_address(struct steer_listener *listener,
					       const struct sock_common *sk)
{
	listener->at.port = sk->skc_num;
	listener->at.ifindex = sk->skc_bound_dev_if;
	if (sk->skc_family == AF_INET) {
		listener->family = 4;
		map_ipv4(listener->at.address, sk->skc_rcv_saddr);
		return;
	}
	listener->family = 6;
	copy_address(listener->at.address, sk->skc_v6_rcv_saddr.in6_u.u6_addr32);
}

static __always_inline bool steer_is_mptcp(void *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	return tcp && bpf_core_field_exists(tcp->is_mptcp) && tcp->is_mptcp;
}

static __always_inline bool steer_is_steered(__u64 netns_cookie)
{
	const struct steer_config *found = steer_config_of();

	return found && found->netns_cookie == netns_cookie;
}

/* Runs for every change of state of every TCP connection. Few of them concern listeners. */
SEC("tp_btf/inet_sock_set_state")
int set_state(__u64 *ctx)
{
	struct steer_listener listener = { .at.protocol = IPPROTO_TCP };
	struct sock *sk = (struct sock *)ctx[0];
	int before = ctx[1], after = ctx[2];
	__u32 uid;

	/* A new connection starts as a copy of its listener, but it never was a listener. */
	if (after != BPF_TCP_LISTEN && !(before == BPF_TCP_LISTEN && after == BPF_TCP_CLOSE))
		return 0;
	/* An MPTCP listener consists of two sockets; the TCP one has the port. */
	if (sk->sk_protocol != IPPROTO_TCP ||
	    !steer_is_steered(sk->__sk_common.skc_net.net->net_cookie))
		return 0;
	if (after != BPF_TCP_LISTEN) {
		steer_forget_listener(bpf_get_socket_cookie(sk));
		return 0;
	}
	steer_read_address(&listener, &sk->__sk_common);
	listener.is_mptcp = steer_is_mptcp(sk);
	uid = steer_note_process(&listener);
	steer_note_listener(bpf_get_socket_cookie(sk), &listener, uid);
	return 0;
}

/*
 * Runs when a listener is ready. set_state ran before, and recorded it if it is in the steered
 * namespace.
 */
SEC("sockops")
int adopt(struct bpf_sock_ops *ctx)
{
	struct steer_listener *listener;
	struct steer_socket_key key;
	bool is_adopted = false;
	__u64 cookie;

	if (ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB)
		return CGROUP_PROCEED;
	cookie = bpf_get_socket_cookie(ctx);
	listener = bpf_map_lookup_elem(&listening, &cookie);
	if (!listener)
		return CGROUP_PROCEED;
	key.target = steer_target_of(&listener->at);
	/* Linux 6.18 refuses to put an MPTCP listener into a map. Earlier kernels may accept it,
	 * but it would not work. */
	if (key.target != STEER_NO_TARGET && !listener->is_mptcp) {
		is_adopted = steer_take_place(key.target, &key.slot) &&
			     !bpf_sock_hash_update(ctx, &sockets, &key, BPF_ANY);
		if (!is_adopted)
			steer_note_trouble(STEER_TROUBLE_ADOPTION);
	}
	steer_emit(STEER_KIND_CAME, cookie, listener, key.target, is_adopted);
	return CGROUP_PROCEED;
}

/* Runs before a bind: after it, no hook can read the socket's device. */
static __always_inline int steer_on_bind(struct bpf_sock_addr *ctx)
{
	__u32 ifindex, *device;

	if (!ctx->sk || ctx->protocol != IPPROTO_UDP)
		return CGROUP_PROCEED;
	ifindex = ctx->sk->bound_dev_if;
	if (!ifindex)
		return CGROUP_PROCEED;
	device = bpf_sk_storage_get(&devices, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (device)
		*device = ifindex;
	return CGROUP_PROCEED;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	return steer_on_bind(ctx);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	return steer_on_bind(ctx);
}

static __always_inline void steer_on_bound(struct bpf_sock *sk, struct steer_listener *listener)
{
	__u32 *device = bpf_sk_storage_get(&devices, sk, NULL, 0);
	__u64 cookie = bpf_get_socket_cookie(sk);
	__u32 uid;

	listener->at.protocol = IPPROTO_UDP;
	listener->at.port = sk->src_port;
	listener->at.ifindex = device ? *device : 0;
	uid = steer_note_process(listener);
	if (steer_note_listener(cookie, listener, uid))
		steer_emit(STEER_KIND_CAME, cookie, listener, steer_target_of(&listener->at),
			   false);
}

SEC("cgroup/post_bind4")
int post_bind4(struct bpf_sock *sk)
{
	struct steer_listener listener = { .family = 4 };

	if (sk->protocol == IPPROTO_UDP && steer_is_steered(bpf_get_netns_cookie(sk))) {
		map_ipv4(listener.at.address, sk->src_ip4);
		steer_on_bound(sk, &listener);
	}
	return CGROUP_PROCEED;
}

SEC("cgroup/post_bind6")
int post_bind6(struct bpf_sock *sk)
{
	struct steer_listener listener = { .family = 6 };

	if (sk->protocol == IPPROTO_UDP && steer_is_steered(bpf_get_netns_cookie(sk))) {
		READ_ADDRESS(listener.at.address, sk->src_ip6);
		steer_on_bound(sk, &listener);
	}
	return CGROUP_PROCEED;
}

/* Runs before connect(2) of a socket. The kernel calls none for a disconnect. */
static __always_inline int steer_on_connect(struct bpf_sock_addr *ctx)
{
	struct steer_listener listener = { .at.protocol = IPPROTO_UDP };
	struct bpf_sock *sk = ctx->sk;
	__u32 uid;

	/* The address of a connected socket may be connect's own choice, not bind's. */
	if (!sk || ctx->protocol != IPPROTO_UDP || !sk->src_port ||
	    sk->state == BPF_TCP_ESTABLISHED || !steer_is_steered(bpf_get_netns_cookie(ctx)))
		return CGROUP_PROCEED;
	listener.family = sk->family == AF_INET ? 4 : 6;
	steer_bound_address(listener.at.address, sk);
	listener.at.port = sk->src_port;
	listener.at.ifindex = sk->bound_dev_if;
	uid = steer_note_process(&listener);
	steer_stop_counting(bpf_get_socket_cookie(ctx), (__u64)sk, &listener, uid);
	return CGROUP_PROCEED;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return steer_on_connect(ctx);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return steer_on_connect(ctx);
}

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *sk)
{
	if (sk->protocol == IPPROTO_UDP)
		steer_forget_listener(bpf_get_socket_cookie(sk));
	return CGROUP_PROCEED;
}

/*
 * A daemon answers a steered client. The answer has to come from the address that the client asked,
 * unless the daemon chose a source address itself (IP_PKTINFO).
 */
SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__be32 remote[4], asked[4];

	if (!sk || ctx->protocol != IPPROTO_UDP || !steer_is_steered(bpf_get_netns_cookie(ctx)))
		return CGROUP_PROCEED;
	if (ctx->msg_src_ip4 && ctx->msg_src_ip4 != sk->src_ip4)
		return CGROUP_PROCEED;
	map_ipv4(remote, ctx->user_ip4);
	if (steer_find_client(sk, remote, bpf_ntohs(ctx->user_port), asked))
		ctx->msg_src_ip4 = asked[3];
	return CGROUP_PROCEED;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__be32 remote[4], source[4], own[4], asked[4];

	if (!sk || ctx->protocol != IPPROTO_UDP || !steer_is_steered(bpf_get_netns_cookie(ctx)))
		return CGROUP_PROCEED;
	READ_ADDRESS(source, ctx->msg_src_ip6);
	steer_bound_address(own, sk);
	if (!is_wildcard(source) && !is_same_address(source, own))
		return CGROUP_PROCEED;
	READ_ADDRESS(remote, ctx->user_ip6);
	if (steer_find_client(sk, remote, bpf_ntohs(ctx->user_port), asked)) {
		WRITE_ADDRESS(ctx->msg_src_ip6, asked);
	}
	return CGROUP_PROCEED;
}

/* The user that made a socket, by its id in the initial user namespace. */
static __always_inline __u32 steer_user_of(struct sock_common *sk)
{
	return BPF_CORE_READ((struct sock *)sk, sk_uid.val);
}

/* Listeners that are older than the hooks. User space reads this iterator to scan them. */
SEC("iter/tcp")
int scan_tcp(struct bpf_iter__tcp *ctx)
{
	struct steer_listener listener = { .at.protocol = IPPROTO_TCP };
	struct sock_common *sk = ctx->sk_common;

	if (!sk || sk->skc_state != BPF_TCP_LISTEN ||
	    !steer_is_steered(sk->skc_net.net->net_cookie))
		return 0;
	steer_read_address(&listener, sk);
	listener.is_mptcp = steer_is_mptcp(sk);
	/* A listener is no request and no connection in TIME_WAIT: it has all of struct sock. */
	steer_note_listener(bpf_get_socket_cookie(sk), &listener, steer_user_of(sk));
	return 0;
}

SEC("iter/udp")
int scan_udp(struct bpf_iter__udp *ctx)
{
	struct steer_listener listener = { .at.protocol = IPPROTO_UDP };
	struct udp_sock *udp = ctx->udp_sk;
	struct sock_common *sk;
	__u32 uid;

	if (!udp)
		return 0;
	sk = &udp->inet.sk.__sk_common;
	if (!sk->skc_num || !steer_is_steered(sk->skc_net.net->net_cookie))
		return 0;
	steer_read_address(&listener, sk);
	uid = steer_user_of(sk);
	/* A connected socket gets its packets before the kernel runs "lookup". */
	if (sk->skc_state != BPF_TCP_ESTABLISHED)
		steer_note_listener(bpf_get_socket_cookie(udp), &listener, uid);
	else if (BPF_CORE_READ_BITFIELD(&udp->inet.sk, sk_userlocks) & STEER_BINDADDR_LOCK)
		steer_note_connected(bpf_get_socket_cookie(udp), (__u64)sk, &listener, uid);
	return 0;
}

/* Two steps that user space cannot do alone without a race. User space runs these programs. */

/* Returns the slot for a target's next socket in *slot: 0, or a negative error. */
SEC("syscall")
int take_slot(struct steer_slot *slot)
{
	return steer_take_place(slot->target, &slot->slot) ? 0 : -1;
}

/* Removes a socket that is gone, though no hook saw it go. */
SEC("syscall")
int forget(__u64 *cookie)
{
	steer_forget_listener(*cookie);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
