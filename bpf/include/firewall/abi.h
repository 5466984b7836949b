/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The layouts that the firewall's BPF programs and the zfw_py package share.
 *
 * Everything here is fixed width, explicitly padded and free of bitfields.
 * scripts/gen-layout reads these definitions back from the BTF of the compiled
 * object and writes zfw_py/firewall/layout.py, so nothing is typed twice.
 *
 * Byte order: addresses (__be32) are in network order; ports, lengths and
 * counters are in host order.
 */
#ifndef ZFW_ABI_H
#define ZFW_ABI_H

#include <linux/types.h>

/* Raised with every release that changes a layout below. A pinned map of another
 * layout is refused, never misread. */
#define ZFW_ABI_VERSION 1

/*
 * Limits.
 */
enum zfw_limit {
	/* Rules of one prefix kept inside its own element, scanned in order. */
	ZFW_INLINE_RULES = 4,
	/* Rules of one prefix in the medium and large port indexes. A medium
	 * element stays below one page, a large one below 64 KiB: a hash
	 * element is one allocation in atomic context. */
	ZFW_MEDIUM_RULES = 122,
	ZFW_LARGE_RULES = 2040,
	/* Disjoint intervals that N overlapping ranges can make: 2N - 1, and
	 * one for each further candidate where interface lists differ. */
	ZFW_MEDIUM_INTERVALS = 244,
	ZFW_LARGE_INTERVALS = 4080,
	/* Rules for one port of one prefix that differ in their interfaces. */
	ZFW_MAX_CANDIDATES = 256,
	/* Distinct (destination length, source length) pairs of one table:
	 * every combination that IPv4 has, 33 * 33. */
	ZFW_MAX_LENGTHS = 1089,
	/* Interface names that rules and settings may mention; distinct sets
	 * of them that rules may be limited to. */
	ZFW_MAX_INTERFACE_NAMES = 1024,
	ZFW_MAX_INTERFACE_SETS = 1024,
	/* Rows of interfaces: an index takes the row of its remainder, whoever comes
	 * last; the other one then has the strictest settings. */
	ZFW_INTERFACE_ROWS = 16384,
	/* Rule slots: ZFW_SEGMENTS maps of ZFW_SEGMENT_SLOTS records each,
	 * made when the first slot of a segment is needed. */
	ZFW_SEGMENT_SLOTS = 4096,
	ZFW_SEGMENTS = 512,
	ZFW_NAME_LENGTH = 16,
	ZFW_SERVICE_ID_LENGTH = 64,
	/* Tracked flows, in seconds without a packet: TCP before both ends have been
	 * heard, after both have sent FIN, after a RST. For others see zfw_flow_limits. */
	ZFW_TCP_OPENING_IDLE = 120,
	ZFW_TCP_CLOSING_IDLE = 120,
	ZFW_TCP_RESET_IDLE = 10,
	/* Entries of flows that are opening. */
	ZFW_OPENING_FLOWS = 32768,
};

/*
 * A table is one of the eight rule sets that a packet can be looked up in:
 * direction, family and protocol. Its number is the sum of one of each.
 */
enum zfw_table {
	ZFW_TABLE_INGRESS = 0,
	ZFW_TABLE_EGRESS = 4,
	ZFW_TABLE_IPV4 = 0,
	ZFW_TABLE_IPV6 = 2,
	ZFW_TABLE_TCP = 0,
	ZFW_TABLE_UDP = 1,
	ZFW_TABLES = 8,
};

enum zfw_action {
	ZFW_ACTION_INTERCEPT = 0,
	ZFW_ACTION_PASS = 1,
	ZFW_ACTION_DENY = 2,
};

enum zfw_size_class {
	ZFW_SIZE_INLINE = 0,
	ZFW_SIZE_MEDIUM = 1,
	ZFW_SIZE_LARGE = 2,
};

enum zfw_verdict {
	ZFW_VERDICT_PASS = 0,
	ZFW_VERDICT_DROP = 1,
	/* Hand the packet to the socket that decide() found. */
	ZFW_VERDICT_ASSIGN = 2,
};

/*
 * Why a packet was let through or dropped. Each way out of decide() has its
 * own, counted by CPU in the map "reasons".
 */
enum zfw_reason {
	ZFW_REASON_NO_RULE = 0,
	ZFW_REASON_LOOPBACK,
	ZFW_REASON_ARP,
	ZFW_REASON_NON_IP,
	ZFW_REASON_NON_TUPLE,
	ZFW_REASON_PROTOCOL,
	ZFW_REASON_MALFORMED,
	ZFW_REASON_HEADER_CHAIN,
	ZFW_REASON_IPV6_OFF,
	ZFW_REASON_FRAGMENT_PASSED,
	ZFW_REASON_FRAGMENT_DROPPED,
	ZFW_REASON_FRAGMENT_ORPHAN,
	ZFW_REASON_FRAGMENT_INTERCEPT,
	ZFW_REASON_ICMP_ECHO,
	ZFW_REASON_ICMP_ECHO_OFF,
	ZFW_REASON_ICMP_ERROR,
	ZFW_REASON_ICMP_ERROR_UNRELATED,
	ZFW_REASON_ICMP_OTHER,
	ZFW_REASON_NEIGHBOUR_DISCOVERY,
	ZFW_REASON_MULTICAST_LISTENER,
	ZFW_REASON_DHCP,
	ZFW_REASON_SSH,
	ZFW_REASON_ESTABLISHED,
	ZFW_REASON_RULE_DENY,
	ZFW_REASON_RULE_PASS,
	ZFW_REASON_RULE_INTERCEPT,
	ZFW_REASON_NO_LISTENER,
	ZFW_REASON_ASSIGN_FAILED,
	/* A rule intercepts, but the address is not this host's. */
	ZFW_REASON_NOT_LOCAL,
	ZFW_REASON_RULES_CHANGING,
	ZFW_REASON_FLOW,
	ZFW_REASON_FLOW_INVALID,
	ZFW_REASON_VRRP,
	ZFW_REASON_EAPOL,
	/* Left by an interface that does not filter what leaves. */
	ZFW_REASON_EGRESS,
	ZFW_REASON_EGRESS_NO_RULE,
	ZFW_REASONS,
};

/* Settings of an interface; bits of zfw_interface.settings. */
enum zfw_setting {
	ZFW_SETTING_ICMP_ECHO = 1,
	ZFW_SETTING_SSH_OFF = 2,
	ZFW_SETTING_IPV6 = 4,
	ZFW_SETTING_PER_INTERFACE_RULES = 8,
	ZFW_SETTING_PASS_NON_TUPLE = 16,
	ZFW_SETTING_VERBOSE = 32,
	ZFW_SETTING_OUTBOUND_FILTER = 64,
	ZFW_SETTING_VRRP = 128,
	ZFW_SETTING_EAPOL = 256,
};

/* What an interface is; bits of zfw_interface.link_flags. */
enum zfw_link_flag {
	/* Frames start with the IP header (tun, wireguard, ppp). */
	ZFW_LINK_NO_ETHERNET = 1,
	ZFW_LINK_LOOPBACK = 2,
	/* Some interface filters what leaves: what comes in has to be remembered,
	 * so that its answers may. */
	ZFW_LINK_TRACK = 4,
};

/* Bits of zfw_port_rule.flags. */
enum zfw_rule_flag {
	/* Holds a reference on a local route that zfw made. */
	ZFW_RULE_ROUTED = 1,
};

/*
 * A prefix as a key. IPv4 stands as ::ffff:a.b.c.d, its lengths counted from
 * bit 96, so that both families share one map and one look-up; the table says
 * which family is meant. Host bits are always zero.
 */
struct zfw_prefix_key {
	__be32 destination[4];
	__be32 source[4];
	__u8 destination_length; /* 0..128 */
	__u8 source_length; /* 0..128 */
	__u8 table; /* enum zfw_table */
	__u8 pad;
};

/* One rule of a prefix. */
struct zfw_port_rule {
	__u16 low_port;
	__u16 high_port; /* inclusive */
	__u16 tproxy_port; /* 0 unless action is intercept */
	__u16 interface_set; /* 0: no interface is named */
	__u32 slot; /* of rule_records and rule_counters */
	__u8 action; /* enum zfw_action */
	__u8 flags; /* enum zfw_rule_flag */
	__u16 pad;
};

/*
 * What one prefix says, replaced as a whole by every change: a packet sees all
 * of the old rules or all of the new ones.
 *
 * Since 6.1 (fba1a1c6c912, "bpf: Convert hash map to bpf_mem_alloc") a replaced
 * element's memory may serve another insert while a program on another CPU
 * still reads it. key and stamp lead the element, the stamp is new with every
 * write, and a reader compares both after it has read the rest.
 */
struct zfw_prefix {
	struct zfw_prefix_key key;
	__u32 stamp;
	__u16 rule_count;
	__u8 size_class; /* enum zfw_size_class: where the rules are */
	__u8 pad[5];
	struct zfw_port_rule rules[ZFW_INLINE_RULES]; /* in order of entry */
};

/*
 * Disjoint port ranges, sorted; where the winner depends on the interface, a
 * range is repeated, once for each candidate in order of entry.
 */
struct zfw_interval {
	__u16 low_port;
	__u16 high_port;
	__u16 rule; /* index into rules */
	__u16 pad;
};

struct zfw_ports_medium {
	struct zfw_prefix_key key;
	__u32 stamp;
	__u16 rule_count;
	__u16 interval_count;
	__u32 pad;
	struct zfw_port_rule rules[ZFW_MEDIUM_RULES]; /* in order of entry */
	struct zfw_interval intervals[ZFW_MEDIUM_INTERVALS];
};

struct zfw_ports_large {
	struct zfw_prefix_key key;
	__u32 stamp;
	__u16 rule_count;
	__u16 interval_count;
	__u32 pad;
	struct zfw_port_rule rules[ZFW_LARGE_RULES];
	struct zfw_interval intervals[ZFW_LARGE_INTERVALS];
};

/* A pair of prefix lengths that some rule of a table has. */
struct zfw_length_pair {
	__u8 destination_length;
	__u8 source_length;
};

struct zfw_length_list {
	__u32 count;
	struct zfw_length_pair pairs[ZFW_MAX_LENGTHS + 1]; /* longest first */
};

/*
 * The pairs of one table. A writer fills the list that is not active, then
 * flips; changes counts the flips. A reader whose list was flipped away and
 * back while it read sees that changes went on by two or more.
 */
struct zfw_lengths {
	__u32 active;
	__u32 changes;
	struct zfw_length_list lists[2];
};

/* Key of length_counts: how many prefixes of a table have these lengths. */
struct zfw_length_key {
	__u8 table;
	__u8 destination_length;
	__u8 source_length;
	__u8 pad;
};

/* An interface by index, as the programs see it. */
struct zfw_interface {
	__u32 ifindex; /* whose row this is; 0: nobody's */
	__u32 settings; /* enum zfw_setting */
	__u32 name_id; /* bit number in zfw_interface_set.members */
	__u32 link_flags; /* enum zfw_link_flag */
};

struct zfw_name {
	char name[ZFW_NAME_LENGTH]; /* padded with NUL */
};

/* An interface by name: what outlives its index. */
struct zfw_interface_name {
	__u32 name_id;
	__u32 settings;
	__u32 ifindex; /* 0: there is none of this name, or not attached */
	__u32 pad;
};

struct zfw_interface_set {
	__u64 members[ZFW_MAX_INTERFACE_NAMES / 64];
};

/* An address of an attached interface. IPv4 as ::ffff:a.b.c.d. */
struct zfw_address {
	__u32 ifindex;
	__be32 address[4];
};

/* What is known of a rule beyond its match. */
struct zfw_rule_record {
	char service_id[ZFW_SERVICE_ID_LENGTH]; /* padded with NUL */
	__u32 next_free; /* next slot of the free list, ~0 at its end */
	__u32 pad;
};

struct zfw_counter {
	__u64 packets;
	__u64 bytes;
};

/* A prefix that is local because rules with --route need it, or because it is bound. */
struct zfw_route_key {
	__be32 address[4];
	__u8 length; /* as in zfw_prefix_key */
	__u8 pad[3];
};

enum zfw_route_owner {
	ZFW_OWNER_OTHER, /* it was local before, and stays so */
	ZFW_OWNER_ZFW,
	ZFW_OWNER_PENDING, /* being made local; what a writer that died leaves */
};

struct zfw_route {
	__u32 rules; /* that need it */
	__u32 binds;
	__u32 owner; /* enum zfw_route_owner */
};

/* Fragments of one datagram. */
struct zfw_fragment_key {
	__be32 source[4];
	__be32 destination[4];
	__be32 identification;
	__u32 ifindex;
	__u8 protocol;
	__u8 is_leaving;
	__u8 pad[2];
};

struct zfw_fragment {
	__u64 expires; /* ns, bpf_ktime_get_ns() */
	__u32 verdict; /* enum zfw_verdict: pass or drop */
	__u32 pad;
};

/* A tracked flow, whichever way its packets go: of the two ends, the one with the
 * lower address and port comes first. IPv4 as ::ffff:a.b.c.d. */
struct zfw_flow_key {
	__be32 address[2][4];
	__be16 port[2]; /* ICMP echo: its identifier, both times */
	__u8 protocol;
	__u8 pad[3];
};

/* Bits of zfw_flow.flags. */
enum zfw_flow_flag {
	/* Packets of the initiator were let in; they were let out. */
	ZFW_FLOW_ADMITTED_IN = 1,
	ZFW_FLOW_ADMITTED_OUT = 2,
	/* Its beginning was not seen. */
	ZFW_FLOW_ADOPTED = 4,
	/* TCP: the first end has sent FIN, the second one has, one has sent RST. */
	ZFW_FLOW_FIN_0 = 8,
	ZFW_FLOW_FIN_1 = 16,
	ZFW_FLOW_RESET = 32,
};

enum zfw_flow_stage {
	ZFW_FLOW_STARTED = 1,
	ZFW_FLOW_ANSWERED = 2,
	/* The initiator has answered the answer. */
	ZFW_FLOW_CONFIRMED = 3,
};

struct zfw_flow {
	__u64 seen; /* ns, bpf_ktime_get_coarse_ns(): its last packet */
	/* TCP, by end: the sequence number after the highest sent, and the highest
	 * acknowledgment number sent. Of an initiator that has not acknowledged
	 * anything yet, that after its SYN. */
	__u32 next[2];
	__u32 acknowledged[2];
	__u8 initiator; /* 0 or 1: which end */
	__u8 flags; /* enum zfw_flow_flag */
	__u8 stage; /* enum zfw_flow_stage */
	__u8 pad;
	/* TCP: the number after a SYN that the initiator has sent since it was answered,
	 * 0 if none. If the responder answers that, a new connection begins. */
	__u32 syn;
};

/* Index into the map "flows". A flood of beginnings must not push out flows that
 * both ends have confirmed, nor datagrams, which anybody can confirm that guesses
 * well, connections: each has a table. */
enum zfw_flow_table {
	ZFW_FLOWS_OPENING = 0,
	ZFW_FLOWS_OPEN = 1, /* TCP */
	ZFW_FLOWS_OPEN_DATAGRAMS = 2, /* UDP and ICMP echo */
	ZFW_FLOW_TABLES = 3,
};

/* One element: when flows are forgotten, and how many are kept. */
struct zfw_flow_limits {
	__u64 udp_idle; /* ns; also for ICMP echo */
	__u64 tcp_idle;
	__u32 max_flows; /* in each table of open ones; not read by the programs */
	__u32 pad;
};

/* One element: what writers agree on. The programs do not read it. */
struct zfw_state {
	__u32 abi_version;
	/* Not 0 while a writer is between two steps. A writer that finds it
	 * so was preceded by one that died, and rebuilds what is derived. */
	__u32 in_progress;
	__u32 stamp;
	__u32 next_slot; /* slots from here on were never used */
	__u32 free_slot; /* first of the free list, ~0 if empty */
	__u32 pad;
	__u8 object_digest[32]; /* SHA-256 of the object the programs came from */
};

/* What a packet does to its flow's entry. */
enum zfw_track {
	ZFW_TRACK_NONE = 0,
	/* It renews one that is there, */
	ZFW_TRACK_RENEW = 1,
	/* or makes one, if it is the first of its flow, */
	ZFW_TRACK_OPEN = 2,
	/* or makes one, wherever in its flow it is. */
	ZFW_TRACK_ADOPT = 3,
};

/* The answer of decide(); "explain" returns it in __sk_buff.cb[0..3]. */
struct zfw_decision {
	__u32 verdict; /* enum zfw_verdict */
	__u32 reason; /* enum zfw_reason */
	__u32 slot; /* of the rule that decided, or ZFW_NO_SLOT */
	__u32 track; /* enum zfw_track */
};

#define ZFW_NO_SLOT 0xffffffffU

_Static_assert(sizeof(struct zfw_prefix_key) == 36, "padding in zfw_prefix_key");
_Static_assert(sizeof(struct zfw_port_rule) == 16, "padding in zfw_port_rule");
_Static_assert(sizeof(struct zfw_prefix) == 48 + 16 * ZFW_INLINE_RULES, "padding in zfw_prefix");
_Static_assert(sizeof(struct zfw_interval) == 8, "padding in zfw_interval");
_Static_assert(sizeof(struct zfw_ports_medium) + 96 <= 4096, "a medium index outgrows a page");
_Static_assert(sizeof(struct zfw_ports_large) + 96 <= 65536, "a large index outgrows 64 KiB");
_Static_assert(sizeof(struct zfw_lengths) == 8 + 2 * 2184, "padding in zfw_lengths");
_Static_assert(sizeof(struct zfw_fragment_key) == 44, "padding in zfw_fragment_key");
_Static_assert(sizeof(struct zfw_flow_key) == 40, "padding in zfw_flow_key");
_Static_assert(sizeof(struct zfw_flow) == 32, "padding in zfw_flow");
_Static_assert(sizeof(struct zfw_state) == 56, "padding in zfw_state");

#endif
