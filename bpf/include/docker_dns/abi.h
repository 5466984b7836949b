/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The layouts that docker-dns's BPF programs and zfw_py share; scripts/gen-layout writes the
 * system's layout.py from them, as firewall/abi.h explains.
 *
 * Byte order: addresses (__be32) are IPv4 in network order; all else is in host order. Times are
 * CLOCK_MONOTONIC, in nanoseconds.
 */
#ifndef DOCKER_DNS_ABI_H
#define DOCKER_DNS_ABI_H

#include <linux/types.h>

/* Raised with every release that changes a layout below. */
#define DNS_ABI_VERSION 1

enum dns_limit {
	/* Flows: a UDP source, or a TCP connection. Fewer if there are fewer ports for them. */
	DNS_FLOWS = 16384,
	/* Datagrams that arrived in fragments. */
	DNS_FRAGMENTS = 1024,
	/* Suffixes of names. */
	DNS_DOMAINS = 4096,
	/* A name on the wire (RFC 1035, section 3.1). */
	DNS_NAME_BYTES = 255,
	DNS_KEY_BYTES = 256,
	/* Ports that are tried before a query is dropped. */
	DNS_PORT_ATTEMPTS = 16,
	/* Timeouts, in seconds without a packet. */
	DNS_UDP_IDLE = 30,
	DNS_TCP_IDLE = 300,
	DNS_FRAGMENT_IDLE = 30,
	/* Clients whose answers were truncated, and for how many seconds such a client's next
	 * connection counts as asking for the same name. */
	DNS_TRUNCATED_CLIENTS = 1024,
	DNS_TRUNCATED_IDLE = 5,
	DNS_EVENT_BYTES = 262144,
};

/* The outcome for a packet. Packets that are not DNS to the resolver are not counted. */
enum dns_outcome {
	DNS_OUTCOME_QUERY, /* sent to the server */
	DNS_OUTCOME_ANSWER, /* handed back */
	DNS_OUTCOME_BUILTIN_NAME, /* not redirected: no suffix matches the name */
	DNS_OUTCOME_BUILTIN_UNREADABLE, /* not redirected: the query has no readable name */
	DNS_OUTCOME_BUILTIN_TCP, /* not redirected: TCP is off, or began before */
	DNS_OUTCOME_BUILTIN_UPLINK, /* not redirected: uplink gone, or MTU too small */
	DNS_OUTCOME_ORPHAN, /* not redirected: a fragment of an unknown datagram */
	DNS_OUTCOME_NO_PORT, /* dropped: no port was free */
	DNS_OUTCOME_UNCHANGED, /* dropped: rewriting it failed */
	DNS_OUTCOMES,
};

/* The settings of a redirect. */
struct dns_config {
	__u32 abi_version;
	__be32 resolver; /* 127.0.0.11 */
	__be32 server;
	__be32 source; /* the uplink's address */
	__u32 uplink_ifindex;
	__u16 resolver_port; /* 53 */
	__u16 server_port;
	__u16 first_port; /* of the ports for queries on the uplink */
	__u16 port_count;
	__u8 has_ethernet; /* whether the uplink's frames have it */
	__u8 has_domains;
	__u8 redirects_tcp;
	__u8 is_watched; /* a process reads the events */
};

/* The daemon's ports, to which NAT sends queries before "query" sees them; 0: unknown. */
struct dns_daemon {
	__u16 udp_port;
	__u16 tcp_port;
};

/* A query, before it is rewritten. */
struct dns_query_key {
	__be32 source;
	__be32 destination;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 pad[3];
};

struct dns_query {
	__u64 last; /* time of its last use */
	__be32 server;
	__u16 server_port;
	__u16 port; /* its source port on the uplink */
};

/* An answer, before it is rewritten. */
struct dns_answer_key {
	__be32 server;
	__u16 server_port;
	__u16 port;
	__u8 protocol;
	__u8 pad[3];
};

struct dns_answer {
	__u64 last;
	struct dns_query_key query;
};

/* A later fragment of an answer. It has no ports. */
struct dns_fragment_key {
	__be32 server;
	__be32 identification;
	__u8 protocol;
	__u8 pad[3];
};

struct dns_fragment {
	__u64 last;
	__be32 source; /* of the first fragment, rewritten */
	__be32 destination;
};

/* A client whose answers were truncated: it asks again by TCP. */
struct dns_truncated {
	__u64 last; /* time of the last one */
	__u64 count; /* of answers for which no connection has come yet */
};

/* A suffix of names in reverse order: its characters from the last one on, then a dot. */
struct dns_domain_key {
	__u32 bits;
	char name[DNS_KEY_BYTES];
};

struct dns_counter {
	__u64 packets;
	__u64 bytes;
};

struct dns_event {
	__u64 time;
	struct dns_query_key query;
	__be32 server;
	__u16 server_port;
	__u8 outcome; /* enum dns_outcome */
	__u8 has_name; /* name and id are set; UDP only */
	__u16 port;
	__u16 name_length; /* on the wire, without the root label */
	__u32 id; /* of the DNS message */
	char name[DNS_KEY_BYTES]; /* in wire format */
};

#endif
