// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guard: redirects a cgroup's DNS to a proxy, and lets the cgroup reach only what its policy
 * allows.
 *
 * When a program names a destination, the hooks "connect" and "sendmsg" redirect port 53, and
 * refuse a forbidden destination at once, so that the program does not wait for a time-out.
 * "recvmsg" and "getpeername" show the DNS server that the program asked in place of the proxy.
 * "egress" evaluates each packet and enforces the policy: raw sockets, and sockets older than the
 * guard, pass no other hook. It also checks the source address of packets that this host itself
 * would answer.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/cgroup.h"
#include "common/packet.h"
#include "guard/abi.h"
#include "guard/egress.h"
#include "guard/flows.h"
#include "guard/policy.h"
#include "guard/maps.h"
#include "guard/redirect.h"
#include "guard/events.h"

/* socket(7), ip(7), ipv6(7); not in the kernel's headers for user space. */
#define GUARD_SOL_IP 0
#define GUARD_SOL_IPV6 41
/* The kernel shows a setsockopt() hook a longer value only up to a page. */
#define GUARD_SHOWN_BYTES 4096

/* Options that let a socket send from a source address that is not this host's. */
static __always_inline bool guard_is_source_option(__s32 level, __s32 name)
{
	if (level == GUARD_SOL_IP)
		return name == IP_FREEBIND || name == IP_TRANSPARENT;
	return level == GUARD_SOL_IPV6 && (name == IPV6_FREEBIND || name == IPV6_TRANSPARENT);
}

/* Records the process that uses a socket. In process context only. */
static __always_inline void guard_note_user(struct guard_socket *socket, __u64 netns_cookie)
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
		guard_note_user(socket, bpf_get_netns_cookie(sk));
		socket->is_made_guarded = true;
	}
	return CGROUP_PROCEED;
}

/*
 * Refuses options that let a socket send from foreign source addresses; IPv6 asks for no
 * capability. The receiver, this host included, would answer to that address, which the policy may
 * forbid.
 */
SEC("cgroup/setsockopt")
int setsockopt(struct bpf_sockopt *ctx)
{
	const __u32 *value = ctx->optval;
	struct guard_socket *socket;
	struct guard_end none = {};
	__u32 flags = guard_flags();

	if (!guard_is_source_option(ctx->level, ctx->optname)) {
		/* The kernel has shown a page at most; 0 makes it use the original value. */
		if (ctx->optlen > GUARD_SHOWN_BYTES)
			ctx->optlen = 0;
		return CGROUP_PROCEED;
	}
	if ((const void *)(value + 1) <= ctx->optval_end && *value == 0)
		return CGROUP_PROCEED;
	guard_count(GUARD_HOOK_SETSOCKOPT, GUARD_REASON_FOREIGN_SOURCE);
	socket = bpf_sk_storage_get(&sockets, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	guard_emit(socket, bpf_get_current_cgroup_id(), GUARD_HOOK_SETSOCKOPT,
		   GUARD_REASON_FOREIGN_SOURCE, ctx->sk->protocol, &none, NULL);
	return flags & GUARD_LOG_ONLY ? CGROUP_PROCEED : CGROUP_REFUSE;
}

/*
 * Decides on a destination that a program named, *to. True if the hook has to replace it by what
 * *to is then. *answer is the hook's return value.
 */
static __always_inline bool guard_decide_named(struct bpf_sock_addr *ctx, enum guard_hook hook,
					       struct guard_end *to, int *answer)
{
	bool is_connect = hook == GUARD_HOOK_CONNECT4 || hook == GUARD_HOOK_CONNECT6;
	__u64 netns_cookie = bpf_get_netns_cookie(ctx);
	__u16 protocol = ctx->protocol;
	struct guard_end server = *to;
	enum guard_reason reason;
	struct guard_socket *socket;
	struct guard_proxy *proxy;
	__u32 flags = guard_flags();
	bool is_process, is_at_proxy;

	*answer = CGROUP_PROCEED;
	if (!ctx->sk)
		return false;
	socket = bpf_sk_storage_get(&sockets, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	/* Out of memory. Egress still evaluates the packets, and drops those to port 53. */
	if (!socket)
		return false;
	guard_note_user(socket, netns_cookie);

	/* The unspecified address means this host (RFC 1122, section 3.2.1.3). The kernel replaces
	 * it only after this hook. */
	if (is_mapped(server.address) && server.address[3] == 0)
		server.address[3] = bpf_htonl(INADDR_LOOPBACK);
	else if (!(server.address[0] | server.address[1] | server.address[2] | server.address[3]))
		server.address[3] = bpf_htonl(1);

	proxy = guard_proxy_of(netns_cookie, &is_process);
	/* A redirected socket names the proxy when it sends again. */
	is_at_proxy = proxy && guard_is_at_proxy(proxy, &server, protocol);
	if (is_at_proxy) {
		reason = GUARD_REASON_PROXY;
		if (is_process && !guard_is_answered(ctx, &server, protocol))
			reason = GUARD_REASON_NO_PROXY;
	} else if (server.port == GUARD_DNS_PORT &&
		   (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP)) {
		if (guard_redirect(ctx, socket, &server, protocol, ctx->sk->bound_dev_if, to)) {
			guard_count(hook, GUARD_REASON_DNS);
			guard_emit(socket, bpf_get_current_cgroup_id(), hook, GUARD_REASON_DNS,
				   protocol, &server, to);
			return true;
		}
		reason = GUARD_REASON_NO_PROXY;
	} else if (flags & GUARD_REDIRECT_ONLY || (is_connect && protocol != IPPROTO_TCP)) {
		/* Without TCP, connect() only sets a default destination; programs use it to find
		 * their own address. Egress evaluates the packets. */
		return false;
	} else {
		reason = guard_evaluate(&server, flags);
		if (!is_connect && guard_may_go_on(reason) &&
		    (guard_is_admitted(socket, &server) ||
		     guard_has_flow(&server, bpf_get_socket_cookie(ctx))))
			reason = GUARD_REASON_SOCKET;
	}
	guard_count(hook, reason);
	if (guard_verdict_of(reason) == GUARD_VERDICT_DENY) {
		guard_emit(socket, bpf_get_current_cgroup_id(), hook, reason, protocol, &server,
			   NULL);
		if (!(flags & GUARD_LOG_ONLY))
			*answer = CGROUP_REFUSE;
	} else if (is_connect && !is_at_proxy) {
		guard_emit(socket, bpf_get_current_cgroup_id(), hook, reason, protocol, &server,
			   NULL);
	}
	return false;
}

static __always_inline int guard_on_ipv4(struct bpf_sock_addr *ctx, enum guard_hook hook)
{
	struct guard_end to = { .port = bpf_ntohs(ctx->user_port) };
	int answer;

	map_ipv4(to.address, ctx->user_ip4);
	if (guard_decide_named(ctx, hook, &to, &answer)) {
		ctx->user_ip4 = to.address[3];
		ctx->user_port = bpf_htons(to.port);
	}
	return answer;
}

static __always_inline int guard_on_ipv6(struct bpf_sock_addr *ctx, enum guard_hook hook)
{
	struct guard_end to = { .port = bpf_ntohs(ctx->user_port) };
	int answer;

	READ_ADDRESS(to.address, ctx->user_ip6);
	if (guard_decide_named(ctx, hook, &to, &answer)) {
		WRITE_ADDRESS(ctx->user_ip6, to.address);
		ctx->user_port = bpf_htons(to.port);
	}
	return answer;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return guard_on_ipv4(ctx, GUARD_HOOK_CONNECT4);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return guard_on_ipv6(ctx, GUARD_HOOK_CONNECT6);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return guard_on_ipv4(ctx, GUARD_HOOK_SENDMSG4);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return guard_on_ipv6(ctx, GUARD_HOOK_SENDMSG6);
}

/* Shows the program the DNS server that it asked in place of the proxy. */
static __always_inline int guard_show_ipv4(struct bpf_sock_addr *ctx, bool is_answer)
{
	struct guard_end end = {}, server = {};
	struct guard_socket *socket;

	if (!ctx->sk)
		return CGROUP_PROCEED;
	socket = bpf_sk_storage_get(&sockets, ctx->sk, NULL, 0);
	if (!socket)
		return CGROUP_PROCEED;
	end.port = bpf_ntohs(ctx->user_port);
	map_ipv4(end.address, ctx->user_ip4);
	if (guard_find_server(ctx, socket, &end, is_answer, &server) && is_mapped(server.address)) {
		ctx->user_ip4 = server.address[3];
		ctx->user_port = bpf_htons(server.port);
	}
	return CGROUP_PROCEED;
}

static __always_inline int guard_show_ipv6(struct bpf_sock_addr *ctx, bool is_answer)
{
	struct guard_end end = {}, server = {};
	struct guard_socket *socket;

	if (!ctx->sk)
		return CGROUP_PROCEED;
	socket = bpf_sk_storage_get(&sockets, ctx->sk, NULL, 0);
	if (!socket)
		return CGROUP_PROCEED;
	end.port = bpf_ntohs(ctx->user_port);
	READ_ADDRESS(end.address, ctx->user_ip6);
	if (guard_find_server(ctx, socket, &end, is_answer, &server)) {
		WRITE_ADDRESS(ctx->user_ip6, server.address);
		ctx->user_port = bpf_htons(server.port);
	}
	return CGROUP_PROCEED;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return guard_show_ipv4(ctx, true);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return guard_show_ipv6(ctx, true);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return guard_show_ipv4(ctx, false);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return guard_show_ipv6(ctx, false);
}

/* The proxy knows a client's port. In this map it finds the client. */
static __always_inline void guard_note_asker(const struct packet *packet,
					     const struct guard_socket *socket, __u64 cgroup)
{
	struct guard_asker_key key = {
		.netns_cookie = socket->netns_cookie,
		.port = bpf_ntohs(packet->source_port),
		.protocol = packet->protocol,
		.is_ipv6 = packet->family == AF_INET6,
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
	struct packet packet = {};
	struct guard_end to = {};
	enum guard_reason reason;
	__u32 flags = guard_flags();
	__u64 cgroup = 0;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (sk)
		socket = bpf_sk_storage_get(&sockets, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	reason = guard_decide_egress(skb, &packet, &to, sk, socket, flags);
	guard_count(GUARD_HOOK_EGRESS, reason);
	if (reason == GUARD_REASON_SOCKET)
		return CGROUP_PROCEED;
	if (sk)
		cgroup = bpf_sk_cgroup_id(sk);
	if (reason == GUARD_REASON_PROXY) {
		if (socket)
			guard_note_asker(&packet, socket, cgroup);
		return CGROUP_PROCEED;
	}
	if (guard_verdict_of(reason) == GUARD_VERDICT_DENY) {
		guard_emit(socket, cgroup, GUARD_HOOK_EGRESS, reason, packet.protocol, &to, NULL);
		return flags & GUARD_LOG_ONLY ? CGROUP_PROCEED : CGROUP_REFUSE;
	}
	if (socket && packet.fragment != PKT_FRAGMENT_LATER)
		guard_note_admitted(socket, &to);
	/* For a connection, connect() has emitted the event. */
	if (packet.protocol != IPPROTO_TCP)
		guard_emit(socket, cgroup, GUARD_HOOK_EGRESS, reason, packet.protocol, &to, NULL);
	return CGROUP_PROCEED;
}

char LICENSE[] SEC("license") = "GPL";
