/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The layouts that the programs of steer and the zfw_py package share; as in
 * firewall/abi.h, and read back by scripts/gen-layout into zfw_py/steer/layout.py.
 *
 * Byte order: addresses (__be32) are in network order, IPv4 as ::ffff:a.b.c.d;
 * all else is in host order. Times are CLOCK_MONOTONIC, in nanoseconds.
 *
 * A packet is looked up so: the most specific mapping of its protocol, an exact port
 * before a range before any port, within that the longest prefix of its destination.
 * None: the kernel's look-up. A socket that listens on exactly that address and port
 * keeps it, unless the mapping overrides. Else it goes to the target's newest socket
 * that takes it; without one it is refused, unless the mapping lets it fall through.
 *
 * A target is the address and port that a daemon is bound to, exactly: one on 0.0.0.0
 * is the target 0.0.0.0 and not 127.0.0.5, one on ::ffff:127.0.0.5 is 127.0.0.5, one
 * on :: is :: whether or not it takes IPv4 too. Or it is a socket that was put there.
 */
#ifndef STEER_ABI_H
#define STEER_ABI_H

#include <linux/bpf.h>
#include <linux/types.h>

/* Raised with every release that changes a layout below. */
#define STEER_ABI_VERSION 1

enum steer_limit {
	/* One is in use, the other is being filled. */
	STEER_TABLES = 2,
	STEER_TARGETS = 4096,
	/* Sockets that a target has at once: those before the newest stand in for it. A
	 * power of two. */
	STEER_TARGET_SOCKETS = 8,
	/* Ports whose segments are one element. */
	STEER_SEGMENT_PORTS = 64,
	/* Elements of one protocol in one table. */
	STEER_SEGMENT_ELEMENTS = 1024,
	/* Mappings that count. */
	STEER_COUNTED = 262144,
	/* Addresses and ports that are listened on, and sockets that do. */
	STEER_LISTENERS = 131072,
	/* Clients of UDP daemons that were steered to last. */
	STEER_FLOWS = 65536,
	/* Seconds after its last question until a client of a daemon that is bound to all
	 * addresses is none: it may have asked another one since, past the mappings. */
	STEER_FLOW_LIFETIME = 180,
	STEER_EVENT_BYTES = 262144,
	STEER_COMMAND_LENGTH = 16,
	STEER_NO_TARGET = 0x7fffffff,
};

/* What a mapping says of ports, the most specific first. */
enum steer_class {
	STEER_CLASS_PORT,
	STEER_CLASS_RANGE,
	STEER_CLASS_ANY,
	STEER_CLASSES,
};

enum steer_config_flag {
	STEER_TELL_ALL = 1, /* of every listener, not only of those that are targets */
};

enum steer_mapping_flag {
	STEER_OVERRIDE = 1, /* also what somebody listens on exactly */
	STEER_FALLTHROUGH = 2, /* without a socket, the kernel's look-up */
};

/* What did not work; each is counted. */
enum steer_trouble {
	STEER_TROUBLE_LISTENERS, /* a listener that is not known: a table is full */
	STEER_TROUBLE_ADOPTION, /* a listener that could not be made its target's socket */
	STEER_TROUBLE_EVENTS, /* an event that found no room */
	STEER_TROUBLE_COUNTERS, /* a look-up that was not counted */
	STEER_TROUBLE_FLOWS, /* a client whose answers may not reach it */
	STEER_TROUBLES,
};

enum steer_kind {
	STEER_KIND_CAME, /* a listener, or a bound socket of UDP */
	STEER_KIND_LEFT,
	STEER_KINDS,
};

struct steer_config {
	__u64 netns_cookie; /* the network namespace that is steered */
	__u32 abi_version;
	__u32 flags; /* enum steer_config_flag */
};

/*
 * Key of a table, an LPM trie. The length counts from protocol on: 64 and the bits of
 * the address, of which IPv4 has 96 more. All of an IPv4 prefix's length 0 is 160.
 */
struct steer_mapping_key {
	__u32 length;
	__u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 family; /* 4 or 6: of the packet */
	__u16 port; /* by class: the port, the segment that it is in, 0 */
	__u32 mapping_class; /* enum steer_class */
	__be32 address[4];
};

struct steer_mapping {
	__u32 id; /* key of its counter */
	__u32 target;
	__u32 flags; /* enum steer_mapping_flag */
	__u32 pad;
};

/*
 * Which segment each port is in, of the disjoint ones that all ranges of ports are cut
 * into; 0: none. The element of a port is at
 * (table * 2 + (protocol == IPPROTO_UDP)) * STEER_SEGMENT_ELEMENTS + port / STEER_SEGMENT_PORTS.
 */
struct steer_segments {
	__u16 segment[STEER_SEGMENT_PORTS];
};

/* What a socket is bound to. */
struct steer_address {
	__be32 address[4];
	__u32 ifindex; /* of the device that it is bound to, or 0; always 0 in a target's */
	__u16 port;
	__u8 protocol;
	__u8 pad;
};

struct steer_target {
	/* Places that were taken. The n-th socket, from 0, is in slot n modulo
	 * STEER_TARGET_SOCKETS. */
	__u32 taken;
};

/* Key of a target's socket. */
struct steer_socket_key {
	__u32 target;
	__u32 slot;
};

/* A socket that listens; a bound one of UDP does. */
struct steer_listener {
	struct steer_address at;
	__u32 pid; /* of whoever made it listen; 0: before we looked */
	__u8 family; /* 4 or 6: of the socket */
	__u8 is_exact; /* it is counted in listeners */
	__u8 is_mptcp; /* the TCP half of one: no map of sockets takes it */
	__u8 pad;
	char command[STEER_COMMAND_LENGTH];
};

/* A client of a UDP daemon: whom it asked, so that the daemon answers from there. */
struct steer_flow_key {
	__be32 remote[4];
	__be32 bound[4]; /* of the daemon's socket */
	__u16 remote_port;
	__u16 bound_port;
};

struct steer_flow {
	__be32 local[4];
	__u64 seen; /* when it asked last, to a second */
};

/* What take_slot is asked, and answers. */
struct steer_slot {
	__u32 target;
	__u32 slot;
};

struct steer_counter {
	__u64 lookups; /* in which this was the mapping */
	__u64 kept; /* of these, that a listener on exactly that address kept */
	__u64 no_socket; /* of these, that met no socket: refused, or fallen through */
};

struct steer_event {
	__u64 time;
	__u64 cookie; /* of the socket */
	struct steer_listener listener;
	__u32 target; /* STEER_NO_TARGET: of none */
	__u8 kind; /* enum steer_kind */
	__u8 is_adopted; /* it is its target's newest socket already */
	__u16 pad;
};

#endif
