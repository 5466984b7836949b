/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The rule for a packet: longest destination prefix first, then longest source prefix, then order
 * of insertion. If no rule of a prefix matches, the next shorter prefix is tried. This host's own
 * addresses are a prefix between the single addresses and all others.
 */
#ifndef FIREWALL_RULES_H
#define FIREWALL_RULES_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/maps.h"
#include "common/packet.h"
#include "common/verifier.h"
#include "firewall/abi.h"
#include "firewall/exceptions.h"
#include "firewall/maps.h"

/* Pairs of lengths that one call of fw_match_lengths() tries. */
#define FW_LENGTHS_BATCH 8

enum fw_match {
	FW_MATCH_NONE,
	FW_MATCH_FOUND,
	/* None in this prefix; a shorter one may have it. */
	FW_MATCH_NEXT,
	/* The prefix's rules are in ports_medium or ports_large. */
	FW_MATCH_IN_MEDIUM,
	FW_MATCH_IN_LARGE,
	/* A prefix of own addresses comes next: fw_match_own(). */
	FW_MATCH_IN_OWN,
	/* The element was replaced while it was read. */
	FW_MATCH_CHANGING,
};

struct fw_rule_query {
	__be32 source[4];
	__be32 destination[4];
	struct fw_prefix_key key; /* the prefix at hand */
	__u16 port;
	__u8 is_per_interface;
	__u8 is_last; /* no pair of lengths is left */
	__u32 name_id;
	__u32 position; /* of the next pair of lengths */
	__u32 changes; /* fw_lengths.changes before the first pair */
	__u32 active; /* the list that position counts in */
	__u32 cursor;
	struct fw_port_rule rule; /* the result */
};

static __always_inline bool fw_rule_applies(const struct fw_port_rule *rule,
					    const struct fw_rule_query *query)
{
	struct fw_interface_set *set;
	__u32 index, name = query->name_id;

	if (!query->is_per_interface && !(rule->flags & FW_RULE_NAMED))
		return true;
	index = rule->interface_set;
	set = bpf_map_lookup_elem(&interface_sets, &index);
	return index && set && name < FW_MAX_INTERFACE_NAMES &&
	       set->members[name / 64] >> (name % 64) & 1;
}

/* fw_is_key() reads words of 8 bytes: both keys have to be aligned to 8. Keys in map values are. */
#define FW_KEY_ON_STACK struct fw_prefix_key __attribute__((aligned(8)))

static __always_inline bool fw_is_key(const struct fw_prefix_key *a, const struct fw_prefix_key *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return !((READ_ONCE(x[0]) ^ y[0]) | (READ_ONCE(x[1]) ^ y[1]) | (READ_ONCE(x[2]) ^ y[2]) |
		 (READ_ONCE(x[3]) ^ y[3]) |
		 (READ_ONCE(*(const __u32 *)&x[4]) ^ *(const __u32 *)&y[4]));
}

/* The beginning that medium and large port indexes share. Their rules follow it. */
struct fw_ports_head {
	struct fw_prefix_key key;
	__u32 stamp;
	__u16 rule_count;
	__u16 interval_count;
	__u32 pad;
};

_Static_assert(offsetof(struct fw_ports_medium, rules) == sizeof(struct fw_ports_head) &&
		       offsetof(struct fw_ports_large, rules) == sizeof(struct fw_ports_head),
	       "the port indexes begin alike");

/*
 * Finds the first rule of a port index that covers the port and applies to the interface, and
 * copies it to query->rule. A binary search counts the intervals that end below the port; then the
 * candidates that follow are tried. query->cursor is read back from memory at each turn, so that
 * the loops converge (READ_ONCE()).
 */
static __always_inline int
fw_search_intervals(struct fw_rule_query *query, const struct fw_prefix_key *key,
		    const struct fw_ports_head *ports, const struct fw_port_rule *rules,
		    const __u32 max_rules, const struct fw_interval *intervals,
		    const __u32 max_intervals, const __u32 first_step)
{
	__u32 stamp = READ_ONCE(ports->stamp), step;
	__u32 count = READ_ONCE(ports->interval_count);
	int match = FW_MATCH_NEXT;

	query->cursor = 0;
	for (step = first_step; step; step /= 2) {
		__u32 last = READ_ONCE(query->cursor) + step - 1;

		if (is_below(&last, count, max_intervals) &&
		    intervals[last].high_port < query->port)
			query->cursor = last + 1;
	}
	for (step = 0; step < FW_MAX_CANDIDATES; step++) {
		__u32 position = READ_ONCE(query->cursor), rule;

		if (!is_below(&position, count, max_intervals) ||
		    intervals[position].low_port > query->port)
			break;
		rule = intervals[position].rule;
		if (rule >= max_rules)
			break;
		if (fw_rule_applies(&rules[rule], query)) {
			query->rule = rules[rule];
			match = FW_MATCH_FOUND;
			break;
		}
		query->cursor = position + 1;
	}
	if (!fw_is_key(&ports->key, key) || READ_ONCE(ports->stamp) != stamp)
		return FW_MATCH_CHANGING;
	return match;
}

__noinline int fw_search_medium(struct fw_rule_query *query)
{
	struct fw_ports_medium *ports;
	FW_KEY_ON_STACK key;

	if (!query)
		return FW_MATCH_NONE;
	key = query->key;
	ports = bpf_map_lookup_elem(&ports_medium, &key);
	if (!ports)
		return FW_MATCH_CHANGING;
	return fw_search_intervals(query, &key, (struct fw_ports_head *)ports, ports->rules,
				   FW_MEDIUM_RULES, ports->intervals, FW_MEDIUM_INTERVALS, 128);
}

__noinline int fw_search_large(struct fw_rule_query *query)
{
	struct fw_ports_large *ports;
	FW_KEY_ON_STACK key;

	if (!query)
		return FW_MATCH_NONE;
	key = query->key;
	ports = bpf_map_lookup_elem(&ports_large, &key);
	if (!ports)
		return FW_MATCH_CHANGING;
	return fw_search_intervals(query, &key, (struct fw_ports_head *)ports, ports->rules,
				   FW_LARGE_RULES, ports->intervals, FW_LARGE_INTERVALS, 2048);
}

/*
 * value, or 0 if it is below 0. There is no branch, because the verifier would follow every
 * combination of them. The barrier keeps the sign apart: clang would otherwise see what this
 * computes, and write a branch.
 */
static __always_inline __u32 fw_at_least_0(__s32 value)
{
	__s32 sign = value >> 31;

	barrier_var(sign);
	return value & ~sign;
}

/* Ones, and zeros in the last bits: 0 to 64 of them. One shift would take 63 at most. */
static __always_inline __u64 fw_mask(__u32 zeros)
{
	return ~0ULL << (zeros / 2) << ((zeros + 1) / 2);
}

/* Sets a half of an address, two words, to what is left of it. */
static __always_inline void fw_cut_half(__be32 *half, const __be32 *address, __u64 mask)
{
	half[0] = address[0] & bpf_htonl((__u32)(mask >> 32));
	half[1] = address[1] & bpf_htonl((__u32)mask);
}

/* Sets *key to the packet's prefixes of these lengths. */
static __always_inline void fw_cut_to_prefix(const struct fw_rule_query *query,
					     struct fw_length_pair lengths,
					     struct fw_prefix_key *key)
{
	__u8 to = lengths.destination_length, from = lengths.source_length;
	__u64 to_mask = fw_mask(64 - fw_at_least_0(to - 64));
	__u64 from_mask = fw_mask(64 - fw_at_least_0(from - 64));

	key->destination_length = to;
	key->source_length = from;
	if (key->table & FW_TABLE_IPV6) {
		fw_cut_half(key->destination, query->destination, fw_mask(fw_at_least_0(64 - to)));
		fw_cut_half(key->destination + 2, query->destination + 2, to_mask);
		fw_cut_half(key->source, query->source, fw_mask(fw_at_least_0(64 - from)));
		fw_cut_half(key->source + 2, query->source + 2, from_mask);
	} else {
		key->destination[3] = query->destination[3] & bpf_htonl((__u32)to_mask);
		key->source[3] = query->source[3] & bpf_htonl((__u32)from_mask);
	}
}

static __always_inline int fw_match_prefix(struct fw_rule_query *query, struct fw_prefix *prefix,
					   const struct fw_prefix_key *key)
{
	__u32 stamp = READ_ONCE(prefix->stamp), size_class = prefix->size_class, i;
	int match = FW_MATCH_NEXT;

	if (size_class == FW_SIZE_INLINE) {
		for (i = 0; i < FW_INLINE_RULES; i++) {
			if (i >= prefix->rule_count)
				break;
			if (prefix->rules[i].low_port <= query->port &&
			    query->port <= prefix->rules[i].high_port &&
			    fw_rule_applies(&prefix->rules[i], query)) {
				query->rule = prefix->rules[i];
				match = FW_MATCH_FOUND;
				break;
			}
		}
	} else {
		query->key = *key;
		match = size_class == FW_SIZE_MEDIUM ? FW_MATCH_IN_MEDIUM : FW_MATCH_IN_LARGE;
	}
	if (!fw_is_key(&prefix->key, key) || READ_ONCE(prefix->stamp) != stamp)
		return FW_MATCH_CHANGING;
	return match;
}

/*
 * Tries the next pairs of lengths, up to a batch. Returns FW_MATCH_NEXT if more are left.
 *
 * This function and the next are global, so that the verifier goes through their loops once.
 * Inlined, they would take more than the million instructions that it allows. A batch, because a
 * call for each pair would cost a packet more than the look-up itself.
 */
__noinline int fw_match_lengths(struct fw_rule_query *query)
{
	FW_KEY_ON_STACK key = {};
	struct fw_lengths *table;
	struct fw_length_list *list;
	__u32 number, i;
	void *inner;
	int match = FW_MATCH_NEXT;

	if (!query)
		return FW_MATCH_NONE;
	number = key.table = query->key.table;
	table = bpf_map_lookup_elem(&lengths, &number);
	inner = only_element(&prefixes);
	if (!table || !inner)
		return FW_MATCH_NONE;
	if (query->position == 0) {
		query->changes = READ_ONCE(table->changes);
		query->active = READ_ONCE(table->active);
	}
	list = &table->lists[query->active & 1];

	key.destination[2] = key.source[2] = bpf_htonl(0xffff);
	for (i = 0; i < FW_LENGTHS_BATCH; i++) {
		__u32 position = query->position;
		struct fw_length_pair pair;
		struct fw_prefix *prefix;

		if (position >= list->count || position >= FW_MAX_LENGTHS) {
			match = FW_MATCH_NONE;
			break;
		}
		query->position = position + 1;
		pair = list->pairs[position];
		if (pair.destination_length == FW_OWN_LENGTH) {
			query->key.source_length = pair.source_length;
			match = FW_MATCH_IN_OWN;
			break;
		}
		fw_cut_to_prefix(query, pair, &key);
		prefix = bpf_map_lookup_elem(inner, &key);
		if (!prefix)
			continue;
		match = fw_match_prefix(query, prefix, &key);
		if (match != FW_MATCH_NEXT)
			break;
	}
	/* Saves a call that would only find the end of the list. */
	query->is_last = query->position >= list->count;
	if (match == FW_MATCH_NEXT && query->is_last)
		match = FW_MATCH_NONE;
	/* One flip leaves this list alone, a second one may rewrite it. */
	if (READ_ONCE(table->changes) - query->changes > 1)
		return FW_MATCH_CHANGING;
	return match;
}

/*
 * Tries the prefix of own addresses with the source length of query->key. A function of its own:
 * its look-up of an address would not fit into the frame of fw_match_lengths().
 */
__noinline int fw_match_own(struct fw_rule_query *query)
{
	FW_KEY_ON_STACK key = {};
	struct fw_length_pair lengths = {};
	struct fw_prefix *prefix;
	void *inner;

	if (!query)
		return FW_MATCH_NONE;
	key.table = query->key.table;
	if (!fw_is_own_address(0, key.table & FW_TABLE_IPV6 ? AF_INET6 : AF_INET,
			       query->destination))
		return FW_MATCH_NEXT;
	inner = only_element(&prefixes);
	if (!inner)
		return FW_MATCH_NONE;
	/* All own addresses have one prefix: its destination has none of their bits. */
	lengths.source_length = query->key.source_length;
	key.destination[2] = key.source[2] = bpf_htonl(0xffff);
	fw_cut_to_prefix(query, lengths, &key);
	key.destination_length = FW_OWN_LENGTH;
	prefix = bpf_map_lookup_elem(inner, &key);
	return prefix ? fw_match_prefix(query, prefix, &key) : FW_MATCH_NEXT;
}

/* The rest of a search that one call of fw_match_lengths() did not end. */
__noinline int fw_match_further(struct fw_rule_query *query, int match)
{
	struct fw_lengths *table;
	__u32 number, i;

	if (!query)
		return FW_MATCH_NONE;
	number = query->key.table;
	table = bpf_map_lookup_elem(&lengths, &number);
	if (!table)
		return FW_MATCH_NONE;
	/* The verifier goes through all turns: each takes the steps for a prefix one after the
	 * other, and then tries the next pairs of lengths, one at least. */
	for (i = 0; i < FW_MAX_LENGTHS + 1; i++) {
		if (match == FW_MATCH_IN_OWN)
			match = fw_match_own(query);
		if (match == FW_MATCH_IN_MEDIUM)
			match = fw_search_medium(query);
		else if (match == FW_MATCH_IN_LARGE)
			match = fw_search_large(query);
		if (match != FW_MATCH_NEXT || query->is_last)
			break;
		match = fw_match_lengths(query);
	}
	/* A port index was read after fw_match_lengths() compared this. */
	if (READ_ONCE(table->changes) - query->changes > 1)
		return FW_MATCH_CHANGING;
	return match == FW_MATCH_FOUND || match == FW_MATCH_CHANGING ? match : FW_MATCH_NONE;
}

/*
 * Finds the rule of a query whose addresses and port are set, see fw_find_rule(); it is
 * query->rule then.
 */
static __always_inline int fw_search_rules(struct fw_rule_query *query, const struct packet *packet,
					   const struct fw_interface *interface, __u8 direction)
{
	int match;

	query->key.table = direction + (packet->family == AF_INET ? FW_TABLE_IPV4 : FW_TABLE_IPV6) +
			   (packet->protocol == IPPROTO_TCP ? FW_TABLE_TCP : FW_TABLE_UDP);
	query->is_per_interface = !!(interface->settings & FW_SETTING_PER_INTERFACE_RULES);
	query->name_id = interface->name_id;
	match = fw_match_lengths(query);
	if (match == FW_MATCH_NEXT || match == FW_MATCH_IN_OWN || match == FW_MATCH_IN_MEDIUM ||
	    match == FW_MATCH_IN_LARGE)
		match = fw_match_further(query, match);
	return match;
}

/*
 * Copies the rule for a packet to *rule. direction is FW_TABLE_INGRESS or FW_TABLE_EGRESS. Returns
 * FW_MATCH_FOUND, FW_MATCH_NONE or FW_MATCH_CHANGING.
 */
static __always_inline int fw_find_rule(const struct packet *packet,
					const struct fw_interface *interface, __u8 direction,
					struct fw_port_rule *rule)
{
	struct fw_rule_query query = {};
	int match;

	if (interface->settings & FW_SETTING_CHANGING)
		return FW_MATCH_CHANGING;
	__builtin_memcpy(query.source, packet->source, sizeof(query.source));
	__builtin_memcpy(query.destination, packet->destination, sizeof(query.destination));
	query.port = bpf_ntohs(packet->destination_port);
	match = fw_search_rules(&query, packet, interface, direction);
	*rule = query.rule;
	return match;
}

#endif
