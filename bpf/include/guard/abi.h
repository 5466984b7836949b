/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The layouts that the guard's BPF programs and the zfw_py package share; as in
 * firewall/abi.h, and read back by scripts/gen-layout into zfw_py/guard/layout.py.
 *
 * Byte order: addresses (__be32) are in network order, IPv4 as ::ffff:a.b.c.d;
 * all else is in host order. Times are CLOCK_MONOTONIC, in nanoseconds.
 */
#ifndef GUARD_ABI_H
#define GUARD_ABI_H

#include <linux/bpf.h>
#include <linux/types.h>

/* Raised with every release that changes a layout below. */
#define GUARD_ABI_VERSION 1

enum guard_limit {
	/* Servers that one socket may ask at once and still be told apart: as many as a
	 * C library asks, and one. Each is a port of the proxy. */
	GUARD_SERVERS = 4,
	/* Ports of one prefix. */
	GUARD_PREFIX_PORTS = 62,
	/* (address, port) pairs of names that were asked for. */
	GUARD_LEARNT = 131072,
	/* Network namespaces that one guard has a proxy in. */
	GUARD_NAMESPACES = 256,
	/* Processes that asked the proxy last. */
	GUARD_ASKERS = 4096,
	GUARD_EVENT_BYTES = 262144,
	GUARD_COMMAND_LENGTH = 16,
	/* The same decision about the same destination is told once in so long. */
	GUARD_TELL_AGAIN = 1000000000,
};

enum guard_hook {
	GUARD_HOOK_CONNECT4,
	GUARD_HOOK_CONNECT6,
	GUARD_HOOK_SENDMSG4,
	GUARD_HOOK_SENDMSG6,
	GUARD_HOOK_EGRESS,
	GUARD_HOOK_SETSOCKOPT,
	GUARD_HOOKS,
};

enum guard_verdict {
	GUARD_VERDICT_ALLOW,
	GUARD_VERDICT_DENY,
	GUARD_VERDICT_REDIRECT,
};

/* Why. Each is one verdict's. */
enum guard_reason {
	GUARD_REASON_DNS, /* redirect: port 53 */
	GUARD_REASON_PROXY, /* allow: that is where it was redirected to */
	GUARD_REASON_PREFIX, /* allow: an allowed prefix */
	GUARD_REASON_NAME, /* allow: an address of an allowed name */
	GUARD_REASON_SOCKET, /* allow: this socket was let there before */
	GUARD_REASON_DEFAULT, /* allow: nothing says otherwise */
	GUARD_REASON_NOT_ALLOWED, /* deny: nothing allows it */
	GUARD_REASON_BLOCKED, /* deny: a blocked prefix */
	GUARD_REASON_NO_PROXY, /* deny: DNS where there is no proxy for it */
	GUARD_REASON_DNS_DIRECT, /* deny: a packet to port 53 that no hook redirected */
	GUARD_REASON_SOURCE_ROUTE, /* deny: its destination is not where it ends */
	GUARD_REASON_MARTIAN, /* deny: a loopback address by another interface */
	GUARD_REASON_MALFORMED, /* deny: no whole IP header */
	GUARD_REASON_FOREIGN_SOURCE, /* deny: answers to it would go to who may not be reached */
	GUARD_REASONS,
};

enum guard_flag {
	GUARD_LOG_ONLY = 1, /* decide, tell, and let pass */
	GUARD_DEFAULT_ALLOW = 2,
	GUARD_REDIRECT_ONLY = 4, /* judge nothing but DNS */
	GUARD_TELL_ALL = 8, /* else denials alone */
};

/* What a prefix says of the ports that it does not list. */
enum guard_otherwise {
	GUARD_OTHERWISE_NONE, /* nothing: addresses of names, then the default */
	GUARD_OTHERWISE_ALLOW,
	GUARD_OTHERWISE_BLOCK,
};

struct guard_config {
	__u32 abi_version;
	__u32 flags; /* enum guard_flag */
};

/* The process that keeps a guard: runs its proxy, tells its events. */
struct guard_keeper {
	__u64 start_time; /* in clock ticks since boot, as /proc/PID/stat has it */
	__u32 pid; /* 0: none */
	__u32 pad;
};

/* Key of the trie. */
struct guard_prefix_key {
	__u32 length;
	__be32 address[4];
};

struct guard_prefix {
	__u8 otherwise; /* enum guard_otherwise */
	__u8 pad;
	__u16 port_count;
	__u16 ports[GUARD_PREFIX_PORTS];
};

/* An address of a name that was asked for; its value is until when. */
struct guard_learnt_key {
	__be32 address[4];
	__u16 port; /* 0: any */
	__u16 pad;
};

/*
 * Where DNS goes in a network namespace. The first port that is 0 ends a list:
 * without any, there is no proxy for this family. TCP goes to the first.
 */
struct guard_proxy {
	__be32 ipv4[4];
	__be32 ipv6[4];
	__u16 ipv4_ports[GUARD_SERVERS];
	__u16 ipv6_ports[GUARD_SERVERS];
};

/* A server that a socket asked; port 0: none. */
struct guard_server {
	__be32 address[4];
	__u16 port;
	__u16 pad;
};

/* What is known of a socket; gone with it. */
struct guard_socket {
	__u64 netns_cookie; /* 0: made before the guard was attached, and not used since */
	__u32 pid; /* of who used it last, 0 likewise */
	__u32 next_server; /* counts; its remainder is the place of the next one */
	char command[GUARD_COMMAND_LENGTH];
	struct guard_server servers[GUARD_SERVERS]; /* the one at N is asked at port N */
	/* Of where it was let to: half of one and half of another is where it was not. */
	struct bpf_spin_lock lock;
	/* Port 0 is one as well, so a flag says if there is any. */
	__be32 admitted[4];
	__u16 admitted_port;
	__u8 is_admitted;
	/* What was told of it last. */
	__u8 told_reason;
	__u16 told_port;
	__u8 is_made_guarded; /* not before the guard was attached */
	__u8 pad[5];
	__be32 told[4];
	__u64 told_at;
};

/* Who asked the proxy. */
struct guard_asker_key {
	__u64 netns_cookie;
	__u16 port; /* source */
	__u8 protocol;
	__u8 is_ipv6;
	__u32 pad;
};

struct guard_asker {
	__u64 cgroup;
	__u32 pid;
	__u32 pad;
	char command[GUARD_COMMAND_LENGTH];
};

struct guard_event {
	__u64 time;
	__u64 cgroup;
	__u64 netns_cookie;
	__be32 destination[4];
	__be32 redirected[4];
	__u16 port;
	__u16 redirected_port; /* 0: it was not */
	__u32 pid;
	__u16 protocol;
	__u8 hook; /* enum guard_hook */
	__u8 verdict; /* enum guard_verdict */
	__u8 reason; /* enum guard_reason */
	__u8 is_log_only;
	__u16 pad;
	char command[GUARD_COMMAND_LENGTH];
};

#endif
