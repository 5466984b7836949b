/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The layouts that the guard's BPF programs and zfw_py share; scripts/gen-layout writes the
 * system's layout.py from them, as firewall/abi.h explains.
 *
 * Byte order: addresses (__be32) are in network order, IPv4 as ::ffff:a.b.c.d; all else is in host
 * order. Times are CLOCK_MONOTONIC, in nanoseconds.
 */
#ifndef GUARD_ABI_H
#define GUARD_ABI_H

#include <linux/bpf.h>
#include <linux/types.h>

/* Raised with every release that changes a layout below. */
#define GUARD_ABI_VERSION 1

enum guard_limit {
	/* DNS servers that one socket may ask at once: as many as a C library asks, and one more.
	 * The proxy has a port for each, so that their answers can be told apart. */
	GUARD_SERVERS = 4,
	/* Ports of one prefix. */
	GUARD_PREFIX_PORTS = 62,
	/* (address, port) pairs that allowed names resolved to. */
	GUARD_LEARNT = 131072,
	/* Network namespaces in which one guard has a proxy. */
	GUARD_NAMESPACES = 256,
	/* Clients that asked the proxy last. */
	GUARD_ASKERS = 4096,
	/* Flows without a connection to addresses of names. */
	GUARD_FLOWS = 8192,
	GUARD_EVENT_BYTES = 262144,
	GUARD_COMMAND_LENGTH = 16,
	/* The same decision about the same destination is emitted once in this time, in ns. */
	GUARD_TELL_AGAIN = 1000000000,
	/* Hooks and reasons that the first release has: the size of the map "decisions". Decisions
	 * with others are in "added_decisions", which has room for more of both. */
	GUARD_FIRST_HOOKS = 6,
	GUARD_FIRST_REASONS = 14,
	GUARD_MOST_HOOKS = 16,
	GUARD_MOST_REASONS = 64,
};

enum guard_hook {
	GUARD_HOOK_CONNECT4,
	GUARD_HOOK_CONNECT6,
	GUARD_HOOK_SENDMSG4,
	GUARD_HOOK_SENDMSG6,
	GUARD_HOOK_EGRESS,
	GUARD_HOOK_SETSOCKOPT,
	GUARD_HOOK_DNS, /* the DNS proxy, which counts its denials itself */
	GUARD_HOOKS,
};

enum guard_verdict {
	GUARD_VERDICT_ALLOW,
	GUARD_VERDICT_DENY,
	GUARD_VERDICT_REDIRECT,
};

/* Why. Each reason has one verdict. */
enum guard_reason {
	GUARD_REASON_DNS, /* redirect: port 53 */
	GUARD_REASON_PROXY, /* allow: the proxy, where DNS was redirected to */
	GUARD_REASON_PREFIX, /* allow: an allowed prefix */
	GUARD_REASON_NAME, /* allow: an address of an allowed name */
	GUARD_REASON_SOCKET, /* allow: this socket was allowed there before */
	GUARD_REASON_DEFAULT, /* allow: the policy's default */
	GUARD_REASON_NOT_ALLOWED, /* deny: no rule allows it */
	GUARD_REASON_BLOCKED, /* deny: a blocked prefix */
	GUARD_REASON_NO_PROXY, /* deny: DNS in a namespace without a proxy */
	GUARD_REASON_DNS_DIRECT, /* deny: a packet to port 53 that no hook redirected */
	GUARD_REASON_SOURCE_ROUTE, /* deny: a source route leads it elsewhere */
	GUARD_REASON_MARTIAN, /* deny: a loopback address on another interface */
	GUARD_REASON_MALFORMED, /* deny: no complete IP header */
	GUARD_REASON_FOREIGN_SOURCE, /* deny: answers would go to a forbidden address */
	GUARD_REASON_EXPIRED, /* deny: an address of an allowed name, for too long */
	GUARD_REASON_CHAIN_BLOCKED, /* deny: DNS: an answer leads to a blocked name */
	GUARD_REASON_UNSUPPORTED, /* deny: DNS: a zone transfer, another class or EDNS version */
	GUARD_REASON_INTERNAL_ERROR, /* deny: DNS: an error in zfw */
	GUARD_REASONS,
};

enum guard_flag {
	GUARD_LOG_ONLY = 1, /* deny nothing, only emit events */
	GUARD_DEFAULT_ALLOW = 2,
	GUARD_REDIRECT_ONLY = 4, /* evaluate nothing but DNS */
	GUARD_TELL_ALL = 8, /* emit allowed decisions too */
};

/* What a prefix decides on ports that it does not list. */
enum guard_otherwise {
	GUARD_OTHERWISE_NONE, /* nothing: resolved names decide, then the default */
	GUARD_OTHERWISE_ALLOW,
	GUARD_OTHERWISE_BLOCK,
};

struct guard_config {
	__u32 abi_version;
	__u32 flags; /* enum guard_flag */
};

/* The guard's DNS proxy process, which also reads the events. */
struct guard_keeper {
	__u64 start_time; /* in clock ticks since boot, as /proc/PID/stat has it */
	__u32 pid; /* 0: none */
	__u32 pad;
};

/* Key of the LPM trie "prefixes". */
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

/*
 * An address that an allowed name resolved to. The value is the time when it expires. For a while
 * after that time it stays, so that a denial can have the reason.
 */
struct guard_learnt_key {
	__be32 address[4];
	__u16 port; /* 0: any */
	__u16 pad;
};

/*
 * The proxy's addresses in a network namespace, by family. A port of 0 ends the list; no port means
 * no proxy for this family. TCP uses the first port.
 */
struct guard_proxy {
	__be32 ipv4[4];
	__be32 ipv6[4];
	__u16 ipv4_ports[GUARD_SERVERS];
	__u16 ipv6_ports[GUARD_SERVERS];
};

/* A DNS server that a socket asked; port 0: none. */
struct guard_server {
	__be32 address[4];
	__u16 port;
	__u16 pad;
};

/* State of a socket, which the kernel frees together with the socket. */
struct guard_socket {
	__u64 netns_cookie; /* 0: older than the guard, and not used since */
	__u32 pid; /* of the last user; 0 as above */
	__u32 next_server; /* a counter; modulo GUARD_SERVERS it is the next place */
	char command[GUARD_COMMAND_LENGTH];
	struct guard_server servers[GUARD_SERVERS]; /* by index of the proxy's port */
	/* Protects the last allowed destination: halves of two would be a third one. */
	struct bpf_spin_lock lock;
	/* Port 0 is valid, so a flag says whether there is one. */
	__be32 admitted[4];
	__u16 admitted_port;
	__u8 is_admitted;
	/* The last event that was emitted for this socket. */
	__u8 told_reason;
	__u16 told_port;
	__u8 is_made_guarded; /* younger than the guard */
	__u8 is_dns_process; /* the guard's DNS process listens on it; user space sets it */
	__u8 pad[4];
	__be32 told[4];
	__u64 told_at;
};

/* A flow without a connection. The value is the time when it began. */
struct guard_flow_key {
	__u64 socket_cookie;
	__be32 address[4];
	__u16 port;
	__u16 pad[3];
};

/* Identifies a client of the proxy. */
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
	__u16 redirected_port; /* 0: not redirected */
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
