/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The layouts that the docker_dns BPF programs and the zfw_py package share; as in
 * firewall/abi.h, and read back by scripts/gen-layout into zfw_py/docker_dns/layout.py.
 *
 * Byte order: addresses (__be32) are IPv4 in network order; all else is in host
 * order. Times are CLOCK_MONOTONIC, in nanoseconds.
 */
#ifndef DOCKER_DNS_ABI_H
#define DOCKER_DNS_ABI_H

#include <linux/types.h>

/* Raised with every release that changes a layout below. */
#define DOCKER_DNS_ABI_VERSION 1

enum docker_dns_limit {
	/* Sources of queries, and connections; fewer where there are few ports for them. */
	DOCKER_DNS_FLOWS = 16384,
	/* Datagrams that came in fragments. */
	DOCKER_DNS_FRAGMENTS = 1024,
	/* Suffixes of names. */
	DOCKER_DNS_DOMAINS = 4096,
	/* A name on the wire (RFC 1035, section 3.1). */
	DOCKER_DNS_NAME_BYTES = 255,
	DOCKER_DNS_KEY_BYTES = 256,
	/* Ports that are tried before a query is dropped. */
	DOCKER_DNS_PORT_ATTEMPTS = 16,
	/* Seconds without a packet. */
	DOCKER_DNS_UDP_IDLE = 30,
	DOCKER_DNS_TCP_IDLE = 300,
	DOCKER_DNS_FRAGMENT_IDLE = 30,
	DOCKER_DNS_EVENT_BYTES = 262144,
};

/* What became of a packet; packets that are not DNS to the resolver are not counted. */
enum docker_dns_outcome {
	DOCKER_DNS_OUTCOME_QUERY, /* sent to the server */
	DOCKER_DNS_OUTCOME_ANSWER, /* handed back */
	DOCKER_DNS_OUTCOME_BUILTIN_NAME, /* left alone: no suffix matches its name */
	DOCKER_DNS_OUTCOME_BUILTIN_UNREADABLE, /* left alone: it has no name to read */
	DOCKER_DNS_OUTCOME_BUILTIN_TCP, /* left alone: TCP is not redirected, or began before */
	DOCKER_DNS_OUTCOME_BUILTIN_UPLINK, /* left alone: the uplink is gone, or too narrow */
	DOCKER_DNS_OUTCOME_ORPHAN, /* left alone: a later fragment, whose first is not known */
	DOCKER_DNS_OUTCOME_NO_PORT, /* dropped: no port was free */
	DOCKER_DNS_OUTCOME_UNCHANGED, /* dropped: it could not be rewritten */
	DOCKER_DNS_OUTCOMES,
};

/* How it is set. */
struct docker_dns_config {
	__u32 abi_version;
	__be32 resolver; /* 127.0.0.11 */
	__be32 server;
	__be32 source; /* the uplink's address */
	__u32 uplink_ifindex;
	__u16 resolver_port; /* 53 */
	__u16 server_port;
	__u16 first_port; /* of those that sources get */
	__u16 port_count;
	__u8 has_ethernet; /* the uplink's frames */
	__u8 has_domains;
	__u8 redirects_tcp;
	__u8 is_watched; /* somebody reads the events */
};

/* Where NAT sends queries to, before we see them; 0: nowhere. */
struct docker_dns_daemon {
	__u16 udp_port;
	__u16 tcp_port;
};

/* A query as it leaves the program. */
struct docker_dns_query_key {
	__be32 source;
	__be32 destination;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 pad[3];
};

struct docker_dns_query {
	__u64 last; /* when it was used */
	__be32 server;
	__u16 server_port;
	__u16 port; /* its source's, outside */
};

/* An answer as it comes back. */
struct docker_dns_answer_key {
	__be32 server;
	__u16 server_port;
	__u16 port;
	__u8 protocol;
	__u8 pad[3];
};

struct docker_dns_answer {
	__u64 last;
	struct docker_dns_query_key query;
};

/* A later fragment of an answer has no ports. */
struct docker_dns_fragment_key {
	__be32 server;
	__be32 identification;
	__u8 protocol;
	__u8 pad[3];
};

struct docker_dns_fragment {
	__u64 last;
	__be32 source; /* what the first one got */
	__be32 destination;
};

/* A suffix of names, backwards: its characters from the last one, and a dot. */
struct docker_dns_domain_key {
	__u32 bits;
	char name[DOCKER_DNS_KEY_BYTES];
};

struct docker_dns_counter {
	__u64 packets;
	__u64 bytes;
};

struct docker_dns_event {
	__u64 time;
	struct docker_dns_query_key query;
	__be32 server;
	__u16 server_port;
	__u8 outcome; /* enum docker_dns_outcome */
	__u8 has_name; /* and id; UDP only */
	__u16 port;
	__u16 name_length; /* on the wire, without the root's byte */
	__u32 id; /* of the DNS message */
	char name[DOCKER_DNS_KEY_BYTES]; /* as on the wire */
};

#endif
