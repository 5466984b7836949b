/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The layouts that the firewall's BPF programs and zfw_py share.
 *
 * Every field has a fixed width, and padding is explicit. There are no bitfields.
 * scripts/gen-layout reads these definitions from the BTF of the compiled types and writes the
 * system's layout.py, so nothing is written twice.
 *
 * Byte order: addresses (__be32) and ports of type __be16 are in network order; all other numbers
 * are in host order. An IPv4 address is written ::ffff:a.b.c.d.
 */
#ifndef FIREWALL_ABI_H
#define FIREWALL_ABI_H

#include <linux/types.h>

/*
 * Raised with every release that changes a layout below. zfw refuses a pinned map of another
 * version instead of misreading it.
 */
#define FW_ABI_VERSION 1

enum fw_limit {
	/* Rules of one prefix that its own element holds. A packet tries them in order. */
	FW_INLINE_RULES = 4,
	/* Rules of one prefix in a medium and a large port index. A medium element stays below a
	 * page, a large one below 64 KiB, because the kernel allocates a hash element in one piece
	 * and in atomic context. */
	FW_MEDIUM_RULES = 122,
	FW_LARGE_RULES = 2040,
	/* Disjoint intervals: N overlapping ranges make at most 2N - 1, and one more for each
	 * further candidate where the rules' interfaces differ. */
	FW_MEDIUM_INTERVALS = 244,
	FW_LARGE_INTERVALS = 4080,
	/* Rules for the same port of one prefix that differ in their interfaces. */
	FW_MAX_CANDIDATES = 256,
	/* Different pairs (destination length, source length) in one table: every combination that
	 * IPv4 has, 33 * 33. */
	FW_MAX_LENGTHS = 1089,
	/* Destination length of the prefix that stands for this host's own addresses, the rows of
	 * "addresses" with ifindex 0. A packet tries it behind single addresses. */
	FW_OWN_LENGTH = 255,
	/* Interface names in rules and settings, and different sets of such names in rules. */
	FW_MAX_INTERFACE_NAMES = 1024,
	FW_MAX_INTERFACE_SETS = 1024,
	/* An interface has the row (ifindex % FW_INTERFACE_ROWS). If two share a row, the later one
	 * gets it, and the other one has the strictest settings. */
	FW_INTERFACE_ROWS = 16384,
	/* Rule slots: FW_SEGMENTS maps of FW_SEGMENT_SLOTS records each. zfw creates a segment when
	 * its first slot is needed. */
	FW_SEGMENT_SLOTS = 4096,
	FW_SEGMENTS = 512,
	FW_NAME_LENGTH = 16,
	FW_SERVICE_ID_LENGTH = 64,
	/* Timeouts of tracked TCP flows, in seconds: until both ends have proved that they see each
	 * other, after both have sent FIN, after a RST. For others see fw_flow_limits. */
	FW_TCP_OPENING_IDLE = 120,
	FW_TCP_CLOSING_IDLE = 120,
	FW_TCP_RESET_IDLE = 10,
	/* Of flows that are neither TCP, UDP nor ICMP echo, in seconds: GRE, ESP and others. */
	FW_OTHER_IDLE = 600,
	/* Entries in the table of opening flows. */
	FW_OPENING_FLOWS = 32768,
	/* Seconds after the end of a flow in which the responder's packets are late answers. */
	FW_LATE_ANSWER = 600,
	/* The map "reasons" of running hosts counts so many reasons. "added_reasons" counts those
	 * behind them, and has room for more. */
	FW_FIRST_REASONS = 36,
	FW_ADDED_REASONS = 64,
	/* Listeners that the programs know: by protocol, family and port. */
	FW_LISTENERS = 16384,
	/* tc_index of a packet that belongs to a socket of this host. The kernel copies it to
	 * clones, and the socket not. */
	FW_OWN_PACKET = 0x7a66,
};

/*
 * A table is one of the eight rule sets: direction x family x protocol. Its number is the sum of
 * one value of each.
 */
enum fw_table {
	FW_TABLE_INGRESS = 0,
	FW_TABLE_EGRESS = 4,
	FW_TABLE_IPV4 = 0,
	FW_TABLE_IPV6 = 2,
	FW_TABLE_TCP = 0,
	FW_TABLE_UDP = 1,
	FW_TABLES = 8,
};

enum fw_action {
	FW_ACTION_INTERCEPT = 0,
	FW_ACTION_PASS = 1,
	FW_ACTION_DENY = 2,
};

enum fw_size_class {
	FW_SIZE_INLINE = 0,
	FW_SIZE_MEDIUM = 1,
	FW_SIZE_LARGE = 2,
};

enum fw_verdict {
	FW_VERDICT_PASS = 0,
	FW_VERDICT_DROP = 1,
	/* Assign the packet to the socket that fw_decide_ingress() found. */
	FW_VERDICT_ASSIGN = 2,
};

/*
 * Why a packet passed or was dropped: one reason for each exit of fw_decide_ingress() and
 * fw_decide_egress(). The per-CPU maps "reasons" and "added_reasons" count them.
 */
enum fw_reason {
	FW_REASON_NO_RULE = 0,
	FW_REASON_LOOPBACK,
	FW_REASON_ARP,
	FW_REASON_NON_IP,
	FW_REASON_NON_TUPLE,
	FW_REASON_PROTOCOL,
	FW_REASON_MALFORMED,
	FW_REASON_HEADER_CHAIN,
	FW_REASON_IPV6_OFF,
	FW_REASON_FRAGMENT_PASSED,
	FW_REASON_FRAGMENT_DROPPED,
	FW_REASON_FRAGMENT_ORPHAN,
	FW_REASON_FRAGMENT_INTERCEPT,
	FW_REASON_ICMP_ECHO,
	FW_REASON_ICMP_ECHO_OFF,
	FW_REASON_ICMP_ERROR,
	FW_REASON_ICMP_ERROR_UNRELATED,
	FW_REASON_ICMP_OTHER,
	FW_REASON_NEIGHBOUR_DISCOVERY,
	FW_REASON_MULTICAST_LISTENER,
	FW_REASON_DHCP,
	FW_REASON_SSH,
	FW_REASON_ESTABLISHED,
	FW_REASON_RULE_DENY,
	FW_REASON_RULE_PASS,
	FW_REASON_RULE_INTERCEPT,
	FW_REASON_NO_LISTENER,
	FW_REASON_ASSIGN_FAILED,
	/* No longer counted: the kernel drops an intercepted packet that it would forward. */
	FW_REASON_NOT_LOCAL,
	FW_REASON_RULES_CHANGING,
	FW_REASON_FLOW,
	FW_REASON_FLOW_INVALID,
	FW_REASON_VRRP,
	FW_REASON_EAPOL,
	/* The interface has no outbound filter. */
	FW_REASON_EGRESS,
	FW_REASON_EGRESS_NO_RULE,
	/* A socket listens on the rule's port, but an unprivileged user may have opened it. */
	FW_REASON_LISTENER_NOT_TRANSPARENT,
	/* A packet that a rule intercepts came to the kernel's own look-up, since it had lost its
	 * socket: "deliver" gave it back, or had none to give. "ingress" has counted it before, as
	 * FW_REASON_RULE_INTERCEPT, or a SYN for TIME_WAIT as FW_REASON_ESTABLISHED. */
	FW_REASON_DELIVER_INTERCEPT,
	FW_REASON_DELIVER_NO_LISTENER,
	FW_REASON_SOURCE_ROUTE,
	/* The kernel forwards a packet that belongs to a socket of this host. */
	FW_REASON_MISROUTED,
	/* A rule intercepts the frame, but another host takes it, or a device above the interface
	 * that hands it to no stack of this network namespace. */
	FW_REASON_OTHER_HOST,
	FW_REASONS,
};

/* Settings of an interface; bits of fw_interface.settings. */
enum fw_setting {
	FW_SETTING_ICMP_ECHO = 1,
	FW_SETTING_SSH_OFF = 2,
	FW_SETTING_IPV6 = 4,
	FW_SETTING_PER_INTERFACE_RULES = 8,
	FW_SETTING_PASS_NON_TUPLE = 16,
	FW_SETTING_VERBOSE = 32,
	FW_SETTING_OUTBOUND_FILTER = 64,
	FW_SETTING_VRRP = 128,
	FW_SETTING_EAPOL = 256,
	/* An edit changes which rules apply to the interface: none does, and packets that need one
	 * are dropped. Only while it is written. */
	FW_SETTING_CHANGING = 32768,
};

/* Properties of an interface; bits of fw_interface.link_flags. */
enum fw_link_flag {
	/* Frames start with the IP header (tun, wireguard, ppp). */
	FW_LINK_NO_ETHERNET = 1,
	FW_LINK_LOOPBACK = 2,
	/* Some interface has an outbound filter: incoming packets are tracked, so that their
	 * answers may leave. */
	FW_LINK_TRACK = 4,
	/* "ingress" has seen a packet of this interface: it is attached. */
	FW_LINK_ATTACHED = 8,
};

/* How a program shall be attached: 0 where none shall be. Auto: TCX where the kernel has it. */
enum fw_wanted {
	FW_WANTED_AUTO = 1,
	FW_WANTED_TCX = 2,
	FW_WANTED_CLSACT = 3,
};

/* Bits of fw_port_rule.flags. */
enum fw_rule_flag {
	/* The rule holds a reference on a local route that zfw added. */
	FW_RULE_ROUTED = 1,
	/* While an edit of several prefixes is written: the rule is new; the rule goes. The
	 * programs do not read these. */
	FW_RULE_COMING = 2,
	FW_RULE_LEAVING = 4,
	/* The rule counts on the interfaces of its set alone. Without it the set counts where
	 * FW_SETTING_PER_INTERFACE_RULES is on. */
	FW_RULE_NAMED = 8,
};

/*
 * A prefix as a key. An IPv4 address is written ::ffff:a.b.c.d and its lengths count from bit 96
 * on, so that both families share one map; the table says which family it is. Host bits are always
 * zero.
 */
struct fw_prefix_key {
	__be32 destination[4];
	__be32 source[4];
	__u8 destination_length; /* 0..128 or FW_OWN_LENGTH, with a destination of zeros */
	__u8 source_length; /* 0..128 */
	__u8 table; /* enum fw_table */
	__u8 pad;
};

/* One rule of a prefix. */
struct fw_port_rule {
	__u16 low_port;
	__u16 high_port; /* inclusive */
	__u16 tproxy_port; /* 0 unless action is intercept */
	__u16 interface_set; /* 0: the rule names none */
	__u32 slot; /* of rule_records and rule_counters */
	__u8 action; /* enum fw_action */
	__u8 flags; /* enum fw_rule_flag */
	/* While an edit of several prefixes is written: the rule's place before it, from 1; else
	 * 0. The programs do not read it. */
	__u16 old_place;
};

/*
 * All rules of one prefix. A change replaces the whole element, so that a packet sees either all of
 * the old rules or all of the new ones.
 *
 * Since Linux 6.1 (fba1a1c6c912, "bpf: Convert hash map to bpf_mem_alloc") the memory of a replaced
 * element may be given to another insert while a program on another CPU still reads it. So the
 * element begins with its key and a stamp that every write renews. A reader compares both after it
 * has read the rest.
 */
struct fw_prefix {
	struct fw_prefix_key key;
	__u32 stamp;
	__u16 rule_count;
	__u8 size_class; /* enum fw_size_class: the map that holds the rules */
	__u8 pad[5];
	struct fw_port_rule rules[FW_INLINE_RULES]; /* in order of insertion */
};

/*
 * Disjoint port ranges, sorted. Where the rule depends on the interface, the range is repeated for
 * each candidate, in order of insertion.
 */
struct fw_interval {
	__u16 low_port;
	__u16 high_port;
	__u16 rule; /* index into rules */
	__u16 pad;
};

struct fw_ports_medium {
	struct fw_prefix_key key;
	__u32 stamp;
	__u16 rule_count;
	__u16 interval_count;
	__u32 pad;
	struct fw_port_rule rules[FW_MEDIUM_RULES]; /* in order of insertion */
	struct fw_interval intervals[FW_MEDIUM_INTERVALS];
};

struct fw_ports_large {
	struct fw_prefix_key key;
	__u32 stamp;
	__u16 rule_count;
	__u16 interval_count;
	__u32 pad;
	struct fw_port_rule rules[FW_LARGE_RULES];
	struct fw_interval intervals[FW_LARGE_INTERVALS];
};

/* A pair of prefix lengths that at least one rule of the table has. */
struct fw_length_pair {
	__u8 destination_length;
	__u8 source_length;
};

struct fw_length_list {
	__u32 count;
	struct fw_length_pair pairs[FW_MAX_LENGTHS + 1]; /* in the order of look-ups */
};

/*
 * The pairs of one table. A writer fills the inactive list, then flips "active" and increments
 * "changes". If "changes" grew by two or more while a program read a list, that list may have been
 * rewritten.
 */
struct fw_lengths {
	__u32 active;
	__u32 changes;
	struct fw_length_list lists[2];
};

/* Key of length_counts: how many prefixes of a table have these lengths. */
struct fw_length_key {
	__u8 table;
	__u8 destination_length;
	__u8 source_length;
	__u8 pad;
};

/* An interface, looked up by its index. */
struct fw_interface {
	__u32 ifindex; /* whose row this is; 0: the row is empty */
	__u32 settings; /* enum fw_setting */
	__u32 name_id; /* bit number in fw_interface_set.members */
	__u32 link_flags; /* enum fw_link_flag */
};

struct fw_name {
	char name[FW_NAME_LENGTH]; /* padded with NUL */
};

/* An interface, looked up by its name: it keeps its settings when its index changes. */
struct fw_interface_name {
	__u32 name_id;
	__u32 settings;
	__u32 ifindex; /* 0: no such interface, or not attached */
	/* By direction, ingress first: how the program shall be attached, 0 where it shall not. It
	 * outlives the interface. Programs do not read it. */
	__u8 wanted[2]; /* enum fw_wanted */
	/* While an edit of rules and settings is written: the settings after it, and
	 * FW_SETTING_CHANGING; else 0. */
	__u16 next_settings;
};

struct fw_interface_set {
	__u64 members[FW_MAX_INTERFACE_NAMES / 64];
};

/* An address of an interface that the firewall knows; or of any, while rules are for own ones. */
struct fw_address {
	__u32 ifindex; /* 0: an own address, whichever interface has it */
	__be32 address[4];
};

/* The parts of a rule that matching does not need. */
struct fw_rule_record {
	char service_id[FW_SERVICE_ID_LENGTH]; /* padded with NUL */
	__u32 next_free; /* next slot of the free list, ~0 at its end */
	__u32 pad;
};

struct fw_counter {
	__u64 packets;
	__u64 bytes;
};

/* A prefix that zfw made local, for rules with --route or for `zfw bind`. */
struct fw_route_key {
	__be32 address[4];
	__u8 length; /* as in fw_prefix_key */
	__u8 pad[3];
};

enum fw_route_owner {
	FW_OWNER_OTHER, /* was local before, and stays so */
	FW_OWNER_ZFW,
	FW_OWNER_PENDING, /* being added; remains if the writer is killed */
};

struct fw_route {
	__u32 rules; /* how many need it */
	__u32 binds;
	__u32 owner; /* enum fw_route_owner */
};

/* What a CPU's programs share. */
struct fw_cpu {
	__u64 socket; /* address of a socket whose fields are about to be read */
	__u64 looked_up; /* ns, bpf_ktime_get_coarse_ns(): when a UDP listener was looked up */
	__u32 listener; /* which one: its port and family */
	__u32 is_looking_up; /* a look-up of a socket by a program: "deliver" passes */
	__u32 new_port; /* of a listener that is not mirrored yet, or 0 */
	__u32 pad;
};

/* A listener that intercepted packets go to. */
struct fw_listener_key {
	__u8 protocol;
	__u8 family; /* of the packets: a dual-stack socket has two entries */
	__u16 port;
};

/* Where "ingress" saw a packet that a device above the interface takes. Its key is a fw_flow_key
 * with the sender as the first end. */
struct fw_promise {
	__u64 made; /* ns, bpf_ktime_get_coarse_ns() */
	__u32 ifindex;
	__u32 pad;
};

/* Identifies a datagram by its fragments. */
struct fw_fragment_key {
	__be32 source[4];
	__be32 destination[4];
	__be32 identification;
	__u32 ifindex;
	__u8 protocol;
	__u8 is_leaving;
	__u8 pad[2];
};

struct fw_fragment {
	__u64 expires; /* ns, bpf_ktime_get_ns() */
	__u32 verdict; /* enum fw_verdict */
	__u32 pad;
};

/*
 * Two hosts, between which datagrams pass. A first fragment that passed holds for its interface and
 * direction; a flow holds for its answers, by every interface in both directions: ifindex and
 * is_leaving are 0.
 */
struct fw_pair_key {
	__be32 source[4];
	__be32 destination[4];
	__u32 ifindex;
	__u8 protocol; /* of the IPv4 header; IPv6: 0 */
	__u8 is_leaving;
	__u8 pad[2];
};

struct fw_pair {
	__u64 expires; /* ns, bpf_ktime_get_coarse_ns() */
};

/*
 * Identifies a tracked flow in both directions: the end with the lower address and port comes
 * first.
 */
struct fw_flow_key {
	__be32 address[2][4];
	__be16 port[2]; /* ICMP echo: the identifier, twice; other protocols: 0 */
	__u8 protocol;
	__u8 pad[3];
};

/* Bits of fw_flow.flags. */
enum fw_flow_flag {
	/* The initiator's packets were let in; were let out. */
	FW_FLOW_ADMITTED_IN = 1,
	FW_FLOW_ADMITTED_OUT = 2,
	/* The first packet of the flow was not seen. */
	FW_FLOW_ADOPTED = 4,
	/* TCP: FIN of the first end, FIN of the second end, an exact RST of either. */
	FW_FLOW_FIN_0 = 8,
	FW_FLOW_FIN_1 = 16,
	FW_FLOW_RESET = 32,
	/* TCP: the responder has sent a SYN of its own before it answered. */
	FW_FLOW_CROSSED = 64,
};

enum fw_flow_stage {
	FW_FLOW_STARTED = 1,
	FW_FLOW_ANSWERED = 2,
	/* The initiator has answered the answer. */
	FW_FLOW_CONFIRMED = 3,
};

struct fw_flow {
	__u64 seen; /* ns, bpf_ktime_get_coarse_ns(): time of the last packet */
	/* TCP, for each end: the sequence number after the highest sent, and the highest
	 * acknowledgment number sent. Before the initiator acknowledges anything, the latter is the
	 * number after its SYN. */
	__u32 next[2];
	__u32 acknowledged[2];
	__u8 initiator; /* index of the end that began, 0 or 1 */
	__u8 flags; /* enum fw_flow_flag */
	__u8 stage; /* enum fw_flow_stage */
	__u8 pad;
	/* TCP: the number after a SYN that the initiator sent after the answer, or 0. If the
	 * responder answers this SYN, a new connection begins. */
	__u32 syn;
};

/*
 * Index into the map "flows". There is a table for each kind, so that a flood of first packets
 * cannot evict confirmed flows, and a flood of datagrams, which a sender can confirm by guessing,
 * cannot evict connections.
 */
enum fw_flow_table {
	FW_FLOWS_OPENING = 0,
	FW_FLOWS_OPEN = 1, /* TCP */
	FW_FLOWS_OPEN_DATAGRAMS = 2, /* all but TCP */
	FW_FLOW_TABLES = 3,
};

/* The only element of flow_limits. */
struct fw_flow_limits {
	__u64 udp_idle; /* ns; also for ICMP echo */
	__u64 tcp_idle;
	__u32 max_flows; /* in each table of open flows; the programs do not read it */
	__u32 pad;
};

/*
 * A datagram that was let in, to a group or to all. It is answered from another address than it
 * went to: to its source, or to the group.
 */
struct fw_question_key {
	__be32 address[4]; /* that may be answered */
	__u32 ifindex;
	__be16 port; /* that may be answered */
	__be16 asked_port; /* which the answer comes from */
	__u8 family;
	__u8 pad[3];
};

struct fw_question {
	__u64 expires; /* ns, bpf_ktime_get_coarse_ns() */
};

/* Values of fw_state.in_progress: what becomes of an edit if its writer is killed. */
enum fw_progress {
	FW_PROGRESS_NONE = 0,
	/* Prefixes whose rules are marked get their old rules. */
	FW_PROGRESS_BACK = 1,
	/* They get their new rules. */
	FW_PROGRESS_FORWARD = 2,
};

/* The only element of the map "state", for writers. The programs do not read it. */
struct fw_state {
	__u32 abi_version;
	/* enum fw_progress. A writer that finds it set completes or undoes the edit, and
	 * rebuilds all derived data: the writer before it was killed. */
	__u32 in_progress;
	__u32 stamp;
	__u32 next_slot; /* slots from here on were never used */
	__u32 free_slot; /* first of the free list, ~0 if empty */
	__u32 pad;
	__u8 object_digest[32]; /* SHA-256 of the object file that the programs come from */
};

/* How a packet that passes is tracked. */
enum fw_track {
	FW_TRACK_NONE = 0,
	/* It renews an entry. */
	FW_TRACK_RENEW = 1,
	/* It renews an entry, or makes one if it is the first packet of its flow. */
	FW_TRACK_OPEN = 2,
	/* It renews an entry, or makes one wherever in its flow it is. */
	FW_TRACK_ADOPT = 3,
	/* As ADOPT, but it makes an entry only if an ingress rule lets it in. */
	FW_TRACK_IF_RULED = 4,
	/* As ADOPT, but it makes an entry only if no ingress rule lets its answer in: by this rule
	 * the other end may have begun the flow, and stays subject to it. */
	FW_TRACK_UNLESS_RULED = 5,
};

/* A decision. The explain programs return it in __sk_buff.cb[0..3]. */
struct fw_decision {
	__u32 verdict; /* enum fw_verdict */
	__u32 reason; /* enum fw_reason */
	__u32 slot; /* of the rule that decided, or FW_NO_SLOT */
	__u32 track; /* enum fw_track */
};

#define FW_NO_SLOT 0xffffffffU

_Static_assert(FW_REASONS <= FW_FIRST_REASONS + FW_ADDED_REASONS, "no room for the reasons");
_Static_assert(sizeof(struct fw_prefix_key) == 36, "padding in fw_prefix_key");
_Static_assert(sizeof(struct fw_port_rule) == 16, "padding in fw_port_rule");
_Static_assert(sizeof(struct fw_prefix) == 48 + 16 * FW_INLINE_RULES, "padding in fw_prefix");
_Static_assert(sizeof(struct fw_interval) == 8, "padding in fw_interval");
_Static_assert(sizeof(struct fw_ports_medium) + 96 <= 4096, "a medium index outgrows a page");
_Static_assert(sizeof(struct fw_ports_large) + 96 <= 65536, "a large index outgrows 64 KiB");
_Static_assert(sizeof(struct fw_lengths) == 8 + 2 * 2184, "padding in fw_lengths");
_Static_assert(sizeof(struct fw_fragment_key) == 44, "padding in fw_fragment_key");
_Static_assert(sizeof(struct fw_pair_key) == 40, "padding in fw_pair_key");
_Static_assert(sizeof(struct fw_question_key) == 28, "padding in fw_question_key");
_Static_assert(sizeof(struct fw_flow_key) == 40, "padding in fw_flow_key");
_Static_assert(sizeof(struct fw_flow) == 32, "padding in fw_flow");
_Static_assert(sizeof(struct fw_state) == 56, "padding in fw_state");

#endif
