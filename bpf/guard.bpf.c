// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guard: a cgroup's DNS goes to a proxy, and it reaches nothing but what it may.
 *
 * What names a destination meets a hook: "connect" and "sendmsg" redirect port 53 and
 * refuse early, so that nobody waits for a connection that cannot come; "recvmsg" and
 * "getpeername" show the server that was asked. "egress" judges each packet, and is
 * what holds: raw sockets, and sockets older than the guard, meet no hook. What a packet
 * says of where it comes from is judged where answers to it would be this host's.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "guard/abi.h"
#include "guard/egress.h"
#include "guard/judge.h"
#include "guard/maps.h"
#include "guard/redirect.h"
#include "guard/tell.h"

/* What a cgroup hook answers. */
#define GUARD_REFUSE 0
#define GUARD_PROCEED 1

/* socket(7), ip(7), ipv6(7); not in the kernel's headers for user space. */
#define GUARD_SOL_IP 0
#define GUARD_SOL_IPV6 41
/* What a setsockopt() hook sees of a longer value: a page, on most machines. */
#define GUARD_SHOWN_BYTES 4096

/* Options by which a socket may have a source address that is not this host's. */
static __always_inline bool is_source_option(__s32 level, __s32 name)
{
	if (level == GUARD_SOL_IP)
		return name == IP_FREEBIND || name == IP_TRANSPARENT;
	return level == GUARD_SOL_IPV6 && (name == IPV6_FREEBIND || name == IPV6_TRANSPARENT);
}

/* Who uses a socket now; in process context only. */
static __always_inline void note_user(struct guard_socket *socket, __u64 netns_cookie)
{
	socket->netns_cookie = netns_cookie;
	socket->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(socket->command, sizeof(socket->command));
}

SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *sk)
{
	struct guard_socket *socket =
		bpf_sk_storage_get(&sockets, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (socket) {
		note_user(socket, bpf_get_netns_cookie(sk));
		socket->is_made_guarded = true;
	}
	return GUARD_PROCEED;
}

/*
 * Nobody becomes able to send from addresses of others, which for IPv6 takes no
 * capability: whoever was asked, this host itself included, would answer to them.
 */
SEC("cgroup/setsockopt")
int setsockopt(struct bpf_sockopt *ctx)
{
	const __u32 *value = ctx->optval;
	struct guard_socket *socket;
	struct guard_end none = {};
	__u32 flags = flags_of();

	if (!is_source_option(ctx->level, ctx->optname)) {
		/* The kernel has shown us a page of it at most. */
		if (ctx->optlen > GUARD_SHOWN_BYTES)
			ctx->optlen = 0;
		return GUARD_PROCEED;
	}
	if ((const void *)(value + 1) <= ctx->optval_end && *value == 0)
		return GUARD_PROCEED;
	count(GUARD_HOOK_SETSOCKOPT, GUARD_REASON_FOREIGN_SOURCE);
	socket = bpf_sk_storage_get(&sockets, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	tell(socket, bpf_get_current_cgroup_id(), GUARD_HOOK_SETSOCKOPT,
	     GUARD_REASON_FOREIGN_SOURCE, ctx->sk->protocol, &none, NULL);
	return flags & GUARD_LOG_ONLY ? GUARD_PROCEED : GUARD_REFUSE;
}

/*
 * A destination that a program named, in to; true if it is to be exchanged for what
 * is in to then. The hook's answer is in *answer.
 */
static __always_inline bool decide_named(struct bpf_sock_addr *ctx, enum guard_hook hook,
					 struct guard_end *to, int *answer)
{
	bool is_connect = hook == GUARD_HOOK_CONNECT4 || hook == GUARD_HOOK_CONNECT6;
	__u64 netns_cookie = bpf_get_netns_cookie(ctx);
	__u16 protocol = ctx->protocol;
	struct guard_end server = *to;
	enum guard_reason reason;
	struct guard_socket *socket;
	struct guard_proxy *proxy;
	__u32 flags = flags_of();

	*answer = GUARD_PROCEED;
	if (!ctx->sk)
		return false;
	socket = bpf_sk_storage_get(&sockets, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	/* Out of memory: the packet will be judged, and no port 53 passes there. */
	if (!socket)
		return false;
	note_user(socket, netns_cookie);

	/* No address means this host (RFC 1122, section 3.2.1.3), and the kernel says so
	 * only after this hook. */
	if (is_mapped(server.address) && server.address[3] == 0)
		server.address[3] = bpf_htonl(INADDR_LOOPBACK);
	else if (!(server.address[0] | server.address[1] | server.address[2] | server.address[3]))
		server.address[3] = bpf_htonl(1);

	proxy = proxy_of(netns_cookie);
	if (proxy && is_at_proxy(proxy, &server, protocol)) {
		/* A socket that was redirected names the proxy when it sends again. */
		count(hook, GUARD_REASON_PROXY);
		return false;
	}
	if (server.port == GUARD_DNS_PORT && (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP)) {
		if (redirect(socket, &server, protocol, ctx->sk->bound_dev_if, to)) {
			count(hook, GUARD_REASON_DNS);
			tell(socket, bpf_get_current_cgroup_id(), hook, GUARD_REASON_DNS, protocol,
			     &server, to);
			return true;
		}
		reason = GUARD_REASON_NO_PROXY;
	} else if (flags & GUARD_REDIRECT_ONLY || (is_connect && protocol != IPPROTO_TCP)) {
		/* Without TCP a connection is but a default destination, which programs set
		 * just to learn their own address: its packets are judged. */
		return false;
	} else {
		reason = judge(&server, flags);
	}
	count(hook, reason);
	if (verdict_of(reason) == GUARD_VERDICT_DENY) {
		tell(socket, bpf_get_current_cgroup_id(), hook, reason, protocol, &server, NULL);
		if (!(flags & GUARD_LOG_ONLY))
			*answer = GUARD_REFUSE;
	} else if (is_connect) {
		tell(socket, bpf_get_current_cgroup_id(), hook, reason, protocol, &server, NULL);
	}
	return false;
}

static __always_inline int on_ipv4(struct bpf_sock_addr *ctx, enum guard_hook hook)
{
	struct guard_end to = { .port = bpf_ntohs(ctx->user_port) };
	int answer;

	map_ipv4(to.address, ctx->user_ip4);
	if (decide_named(ctx, hook, &to, &answer)) {
		ctx->user_ip4 = to.address[3];
		ctx->user_port = bpf_htons(to.port);
	}
	return answer;
}

static __always_inline int on_ipv6(struct bpf_sock_addr *ctx, enum guard_hook hook)
{
	struct guard_end to = { .port = bpf_ntohs(ctx->user_port) };
	int answer;

	to.address[0] = ctx->user_ip6[0];
	to.address[1] = ctx->user_ip6[1];
	to.address[2] = ctx->user_ip6[2];
	to.address[3] = ctx->user_ip6[3];
	if (decide_named(ctx, hook, &to, &answer)) {
		ctx->user_ip6[0] = to.address[0];
		ctx->user_ip6[1] = to.address[1];
		ctx->user_ip6[2] = to.address[2];
		ctx->user_ip6[3] = to.address[3];
		ctx->user_port = bpf_htons(to.port);
	}
	return answer;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return on_ipv4(ctx, GUARD_HOOK_CONNECT4);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return on_ipv6(ctx, GUARD_HOOK_CONNECT6);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return on_ipv4(ctx, GUARD_HOOK_SENDMSG4);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return on_ipv6(ctx, GUARD_HOOK_SENDMSG6);
}

/* Shows the server in the proxy's place. */
static __always_inline int show_ipv4(struct bpf_sock_addr *ctx)
{
	struct guard_end end = {}, server = {};
	struct guard_socket *socket;

	if (!ctx->sk)
		return GUARD_PROCEED;
	socket = bpf_sk_storage_get(&sockets, ctx->sk, NULL, 0);
	if (!socket)
		return GUARD_PROCEED;
	end.port = bpf_ntohs(ctx->user_port);
	map_ipv4(end.address, ctx->user_ip4);
	if (find_server(socket, &end, &server) && is_mapped(server.address)) {
		ctx->user_ip4 = server.address[3];
		ctx->user_port = bpf_htons(server.port);
	}
	return GUARD_PROCEED;
}

static __always_inline int show_ipv6(struct bpf_sock_addr *ctx)
{
	struct guard_end end = {}, server = {};
	struct guard_socket *socket;

	if (!ctx->sk)
		return GUARD_PROCEED;
	socket = bpf_sk_storage_get(&sockets, ctx->sk, NULL, 0);
	if (!socket)
		return GUARD_PROCEED;
	end.port = bpf_ntohs(ctx->user_port);
	end.address[0] = ctx->user_ip6[0];
	end.address[1] = ctx->user_ip6[1];
	end.address[2] = ctx->user_ip6[2];
	end.address[3] = ctx->user_ip6[3];
	if (find_server(socket, &end, &server)) {
		ctx->user_ip6[0] = server.address[0];
		ctx->user_ip6[1] = server.address[1];
		ctx->user_ip6[2] = server.address[2];
		ctx->user_ip6[3] = server.address[3];
		ctx->user_port = bpf_htons(server.port);
	}
	return GUARD_PROCEED;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return show_ipv4(ctx);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return show_ipv6(ctx);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return show_ipv4(ctx);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return show_ipv6(ctx);
}

/* The proxy sees a port; whose it is, it finds here. */
static __always_inline void note_asker(const struct zfw_packet *packet,
				       const struct guard_socket *socket, __u64 cgroup)
{
	struct guard_asker_key key = {
		.netns_cookie = socket->netns_cookie,
		.port = bpf_ntohs(packet->source_port),
		.protocol = packet->protocol,
		.is_ipv6 = packet->family == ZFW_AF_INET6,
	};
	struct guard_asker asker = { .cgroup = cgroup, .pid = socket->pid };

	__builtin_memcpy(asker.command, socket->command, sizeof(asker.command));
	bpf_map_update_elem(&askers, &key, &asker, BPF_ANY);
}

SEC("cgroup_skb/egress")
int egress(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct guard_socket *socket = NULL;
	struct zfw_packet packet = {};
	struct guard_end to = {};
	enum guard_reason reason;
	__u32 flags = flags_of();
	__u64 cgroup = 0;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (sk)
		socket = bpf_sk_storage_get(&sockets, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	reason = decide_egress(skb, &packet, &to, sk, socket, flags);
	count(GUARD_HOOK_EGRESS, reason);
	if (reason == GUARD_REASON_SOCKET)
		return GUARD_PROCEED;
	if (sk)
		cgroup = bpf_sk_cgroup_id(sk);
	if (reason == GUARD_REASON_PROXY) {
		if (socket)
			note_asker(&packet, socket, cgroup);
		return GUARD_PROCEED;
	}
	if (verdict_of(reason) == GUARD_VERDICT_DENY) {
		tell(socket, cgroup, GUARD_HOOK_EGRESS, reason, packet.protocol, &to, NULL);
		return flags & GUARD_LOG_ONLY ? GUARD_PROCEED : GUARD_REFUSE;
	}
	if (socket && packet.fragment != ZFW_FRAGMENT_LATER)
		note_admitted(socket, &to);
	/* A connection was told when it was begun. */
	if (packet.protocol != IPPROTO_TCP)
		tell(socket, cgroup, GUARD_HOOK_EGRESS, reason, packet.protocol, &to, NULL);
	return GUARD_PROCEED;
}

char LICENSE[] SEC("license") = "GPL";
