/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The layouts that steer's BPF programs and zfw_py share; scripts/gen-layout writes the system's
 * layout.py from them, as firewall/abi.h explains.
 *
 * Byte order: addresses (__be32) are in network order, IPv4 as ::ffff:a.b.c.d; all else is in host
 * order. Times are CLOCK_MONOTONIC, in nanoseconds.
 *
 * How a packet is looked up:
 * 1. The most specific mapping of its protocol: an exact port before a range before any port, then
 *    the longest prefix of its destination. Without a mapping the kernel chooses the socket.
 * 2. A socket that listens on exactly the packet's address and port keeps it, unless the mapping
 *    says STEER_OVERRIDE.
 * 3. Else the target's newest socket that accepts the packet gets it.
 * 4. Without such a socket the packet is refused, unless the mapping says STEER_FALLTHROUGH.
 *
 * A target is exactly the address and port that a daemon is bound to: a daemon on 0.0.0.0 is the
 * target 0.0.0.0 and not 127.0.0.5; one on ::ffff:127.0.0.5 is 127.0.0.5; one on :: is ::, whether
 * or not it accepts IPv4 too. A target may also be a socket that user space put there.
 */
#ifndef STEER_ABI_H
#define STEER_ABI_H

#include <linux/bpf.h>
#include <linux/types.h>

/* Raised with every release that changes a layout below. */
#define STEER_ABI_VERSION 1

enum steer_limit {
	/* One table is active, the other one is being filled. */
	STEER_TABLES = 2,
	STEER_TARGETS = 4096,
	/* Sockets of a target, a power of two. The older ones stand in for the newest. */
	STEER_TARGET_SOCKETS = 8,
	/* Ports in one element of "segments". */
	STEER_SEGMENT_PORTS = 64,
	/* Elements for one protocol of one table. */
	STEER_SEGMENT_ELEMENTS = 1024,
	/* Mappings that have counters. */
	STEER_COUNTED = 262144,
	/* Elements of "listeners" (addresses) and of "listening" (sockets). */
	STEER_LISTENERS = 131072,
	/* Elements of "charges": of the sockets above, those of all users but root. The rest is
	 * root's alone. */
	STEER_CHARGES = 114688,
	/* Of these, the sockets of one user. */
	STEER_SHARE = 16384,
	/* Elements of "shares". */
	STEER_USERS = 16384,
	/* The map "unrecorded", in words of 64 bits. */
	STEER_UNRECORDED_WORDS = 4096,
	/* The map "connected": its elements, and the slots of each. */
	STEER_CONNECTED_SETS = 8192,
	STEER_CONNECTED_SLOTS = 8,
	/* Steered clients of UDP daemons, those that were answered and those that were not; the
	 * least recent ones are evicted. */
	STEER_FLOWS = 65536,
	/* Seconds. A client of a daemon that is bound to all addresses counts as steered for so
	 * long after its last query: it may have asked the daemon directly since. */
	STEER_FLOW_LIFETIME = 180,
	STEER_EVENT_BYTES = 262144,
	STEER_COMMAND_LENGTH = 16,
	STEER_NO_TARGET = 0x7fffffff,
};

/* The ports of a mapping, the most specific first. */
enum steer_class {
	STEER_CLASS_PORT,
	STEER_CLASS_RANGE,
	STEER_CLASS_ANY,
	STEER_CLASSES,
};

enum steer_config_flag {
	STEER_TELL_ALL = 1, /* for every listener, not only for targets */
};

enum steer_mapping_flag {
	STEER_OVERRIDE = 1, /* also packets that an exact listener would keep */
	STEER_FALLTHROUGH = 2, /* without a socket, the kernel chooses one */
};

/* Errors, each with a counter. */
enum steer_trouble {
	/* a listener was not recorded: a map is full, or two CPUs met */
	STEER_TROUBLE_LISTENERS,
	STEER_TROUBLE_ADOPTION, /* a listener was not added to its target */
	STEER_TROUBLE_EVENTS, /* the event ring was full */
	STEER_TROUBLE_COUNTERS, /* a look-up was not counted */
	STEER_TROUBLE_FLOWS, /* a client may not get its answers */
	STEER_TROUBLES,
};

enum steer_kind {
	STEER_KIND_CAME, /* a listener, or a bound UDP socket */
	STEER_KIND_LEFT,
	STEER_KINDS,
};

struct steer_config {
	__u64 netns_cookie; /* the steered network namespace */
	__u32 abi_version;
	__u32 flags; /* enum steer_config_flag */
};

/*
 * Key of a table, which is an LPM trie. The length counts from protocol on: 64, and the bits of the
 * address. An IPv4 prefix has 96 bits more than its own, so that 0.0.0.0/0 has the length 160.
 */
struct steer_mapping_key {
	__u32 length;
	__u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 family; /* 4 or 6, of the packet */
	__u16 port; /* by class: the port, its segment, or 0 */
	__u32 mapping_class; /* enum steer_class */
	__be32 address[4];
};

struct steer_mapping {
	__u32 id; /* key of its counters */
	__u32 target;
	__u32 flags; /* enum steer_mapping_flag */
	__u32 pad;
};

/*
 * The segment of each port, or 0. The segments are the disjoint ranges into which all port ranges
 * of the mappings are cut. A port's element has the index (table * 2 + (protocol == IPPROTO_UDP)) *
 * STEER_SEGMENT_ELEMENTS + port / STEER_SEGMENT_PORTS.
 */
struct steer_segments {
	__u16 segment[STEER_SEGMENT_PORTS];
};

/* The address that a socket is bound to. */
struct steer_address {
	__be32 address[4];
	__u32 ifindex; /* of the device that it is bound to, or 0; 0 for a target */
	__u16 port;
	__u8 protocol;
	__u8 pad;
};

struct steer_target {
	/* How many slots were handed out. The n-th socket, from 0, has the slot n modulo
	 * STEER_TARGET_SOCKETS. */
	__u32 taken;
};

/* Key of a target's socket. */
struct steer_socket_key {
	__u32 target;
	__u32 slot;
};

/* A listening socket: TCP in LISTEN, or a bound UDP socket. */
struct steer_listener {
	struct steer_address at;
	__u32 pid; /* of the process that made it listen; 0: unknown */
	__u8 family; /* 4 or 6, of the socket */
	__u8 is_exact; /* it is counted in "listeners"; never again once it was connected */
	__u8 is_mptcp; /* the TCP half of an MPTCP listener; no map takes it */
	__u8 pad;
	char command[STEER_COMMAND_LENGTH];
};

/* A bit for each hash of an address. */
struct steer_unrecorded {
	__u64 words[STEER_UNRECORDED_WORDS];
};

/*
 * A UDP socket that was connected since its bind, and may have been disconnected since.
 */
struct steer_connected {
	__u64 cookie; /* 0: a free slot, as all behind it; all ones: it is being written */
	__u64 sk; /* the kernel's struct sock, or what is in its memory by now */
};

/* Those of all addresses of one hash. */
struct steer_connected_set {
	struct steer_connected each[STEER_CONNECTED_SLOTS];
};

/*
 * A steered client of a UDP daemon, with the address that it asked: the daemon answers from there.
 */
struct steer_flow_key {
	__be32 remote[4];
	__be32 bound[4]; /* of the daemon's socket */
	__u16 remote_port;
	__u16 bound_port;
};

struct steer_flow {
	__be32 local[4];
	__u64 seen; /* when it asked last */
};

/* Argument and result of take_slot. */
struct steer_slot {
	__u32 target;
	__u32 slot;
};

struct steer_counter {
	__u64 lookups; /* this was the best match */
	__u64 kept; /* of these: an exact listener kept the packet */
	__u64 no_socket; /* of these: no socket, refused or fallen through */
};

struct steer_event {
	__u64 time;
	__u64 cookie; /* of the socket */
	struct steer_listener listener;
	__u32 target; /* or STEER_NO_TARGET */
	__u8 kind; /* enum steer_kind */
	__u8 is_adopted; /* it already is its target's newest socket */
	__u16 pad;
};

#endif
