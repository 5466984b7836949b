/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which rule says what becomes of a packet: longest destination prefix, then
 * longest source prefix, then the order of entry; a prefix without a matching
 * rule hands on to the next shorter one.
 */
#ifndef ZFW_RULES_H
#define ZFW_RULES_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "firewall/abi.h"
#include "firewall/maps.h"
#include "parse.h"

/* Pairs of lengths that one call looks at. */
#define LENGTHS_BATCH 8

enum rule_match {
	RULE_NONE,
	RULE_FOUND,
	/* Not here; shorter prefixes may have one. */
	RULE_NEXT,
	/* The prefix's rules are in ports_medium or ports_large. */
	RULE_IN_MEDIUM,
	RULE_IN_LARGE,
	/* The element was replaced while it was read. */
	RULE_CHANGING,
};

struct rule_query {
	__be32 source[4];
	__be32 destination[4];
	struct zfw_prefix_key key; /* the prefix that is being looked at */
	__u16 port;
	__u8 is_per_interface;
	__u8 is_last; /* no pairs of lengths are left */
	__u32 name_id;
	__u32 position; /* of the next pair of lengths */
	__u32 changes; /* of the lengths, when the first was read */
	__u32 active; /* the list of lengths that position counts in */
	__u32 cursor;
	struct zfw_port_rule rule; /* the answer */
};

/* Reads that must happen here, once, in this order. */
#define READ_ONCE_U16(x) (*(const volatile __u16 *)&(x))
#define READ_ONCE_U32(x) (*(const volatile __u32 *)&(x))

/*
 * The first bits of a word; length may be below 0 or above 32. Without a branch:
 * with eight of these in a loop, the verifier would go through each way of
 * combining them.
 */
static __always_inline __be32 mask_word(__be32 word, __s32 length)
{
	__s32 cut;

	length &= ~(length >> 31);
	cut = 32 - length;
	cut &= ~(cut >> 31);
	return word & bpf_htonl((__u32)(0xffffffffULL << (cut & 63)));
}

static __always_inline bool rule_applies(const struct zfw_port_rule *rule,
					 const struct rule_query *query)
{
	struct zfw_interface_set *set;
	__u32 index;

	/* Interface lists count only where the interface asks for them. */
	if (!query->is_per_interface)
		return true;
	index = rule->interface_set;
	set = bpf_map_lookup_elem(&interface_sets, &index);
	return index && set &&
	       set->members[(query->name_id / 64) % (ZFW_MAX_INTERFACE_NAMES / 64)] >>
			       (query->name_id % 64) &
		       1;
}

/* Both keys start at a multiple of eight: a value does, and KEY_ON_STACK. */
#define KEY_ON_STACK struct zfw_prefix_key __attribute__((aligned(8)))

static __always_inline bool is_key(const struct zfw_prefix_key *a, const struct zfw_prefix_key *b)
{
	const volatile __u64 *x = (const volatile __u64 *)a;
	const __u64 *y = (const __u64 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]) |
		 (*(const volatile __u32 *)&x[4] ^ *(const __u32 *)&y[4]));
}

/*
 * clang 19 and later would make one comparison, with the smaller of the two.
 * Before Linux 6.8 the verifier learns a bound only from a constant (67420501e868).
 */
static __always_inline bool is_below(__u32 *index, __u32 count, const __u32 limit)
{
	if (*index >= count)
		return false;
	asm volatile("" : "+r"(*index));
	return *index < limit;
}

/*
 * How many intervals end below the port, by halving steps; then the candidates
 * that follow. The position lives in query->cursor: what the verifier reads
 * back from there is any number, so that it meets the same state again and
 * does not follow each path of the search through each turn of the loops.
 */
#define SEARCH_INTERVALS(ports, MAX_INTERVALS, MAX_RULES, FIRST_STEP)                              \
	do {                                                                                       \
		__u32 stamp = READ_ONCE_U32((ports)->stamp), step;                                 \
		__u32 count = READ_ONCE_U16((ports)->interval_count);                              \
                                                                                                   \
		query->cursor = 0;                                                                 \
		for (step = (FIRST_STEP); step; step /= 2) {                                       \
			__u32 last = READ_ONCE_U32(query->cursor) + step - 1;                      \
                                                                                                   \
			if (is_below(&last, count, (MAX_INTERVALS)) &&                             \
			    (ports)->intervals[last].high_port < query->port)                      \
				query->cursor = last + 1;                                          \
		}                                                                                  \
		for (step = 0; step < ZFW_MAX_CANDIDATES; step++) {                                \
			__u32 position = READ_ONCE_U32(query->cursor), rule;                       \
                                                                                                   \
			if (!is_below(&position, count, (MAX_INTERVALS)) ||                        \
			    (ports)->intervals[position].low_port > query->port)                   \
				break;                                                             \
			rule = (ports)->intervals[position].rule;                                  \
			if (rule >= (MAX_RULES))                                                   \
				break;                                                             \
			if (rule_applies(&(ports)->rules[rule], query)) {                          \
				query->rule = (ports)->rules[rule];                                \
				match = RULE_FOUND;                                                \
				break;                                                             \
			}                                                                          \
			query->cursor = position + 1;                                              \
		}                                                                                  \
		if (!is_key(&(ports)->key, &key) || READ_ONCE_U32((ports)->stamp) != stamp)        \
			return RULE_CHANGING;                                                      \
	} while (0)

__noinline int search_medium(struct rule_query *query)
{
	struct zfw_ports_medium *ports;
	KEY_ON_STACK key;
	int match = RULE_NEXT;

	if (!query)
		return RULE_NONE;
	key = query->key;
	ports = bpf_map_lookup_elem(&ports_medium, &key);
	if (!ports)
		return RULE_CHANGING;
	SEARCH_INTERVALS(ports, ZFW_MEDIUM_INTERVALS, ZFW_MEDIUM_RULES, 128);
	return match;
}

__noinline int search_large(struct rule_query *query)
{
	struct zfw_ports_large *ports;
	KEY_ON_STACK key;
	int match = RULE_NEXT;

	if (!query)
		return RULE_NONE;
	key = query->key;
	ports = bpf_map_lookup_elem(&ports_large, &key);
	if (!ports)
		return RULE_CHANGING;
	SEARCH_INTERVALS(ports, ZFW_LARGE_INTERVALS, ZFW_LARGE_RULES, 2048);
	return match;
}

/* The prefix that a packet's addresses have at these lengths. */
static __always_inline void cut_to_prefix(const struct rule_query *query,
					  struct zfw_length_pair lengths,
					  struct zfw_prefix_key *key)
{
	int i;

	key->destination_length = lengths.destination_length;
	key->source_length = lengths.source_length;
	if (key->table & ZFW_TABLE_IPV6) {
#pragma unroll
		for (i = 0; i < 4; i++) {
			key->destination[i] = mask_word(query->destination[i],
							lengths.destination_length - 32 * i);
			key->source[i] =
				mask_word(query->source[i], lengths.source_length - 32 * i);
		}
	} else {
		key->destination[3] =
			mask_word(query->destination[3], lengths.destination_length - 96);
		key->source[3] = mask_word(query->source[3], lengths.source_length - 96);
	}
}

static __always_inline int match_prefix(struct rule_query *query, struct zfw_prefix *prefix,
					const struct zfw_prefix_key *key)
{
	__u32 stamp = READ_ONCE_U32(prefix->stamp), size_class = prefix->size_class, i;
	int match = RULE_NEXT;

	if (size_class == ZFW_SIZE_INLINE) {
		for (i = 0; i < ZFW_INLINE_RULES; i++) {
			if (i >= prefix->rule_count)
				break;
			if (prefix->rules[i].low_port <= query->port &&
			    query->port <= prefix->rules[i].high_port &&
			    rule_applies(&prefix->rules[i], query)) {
				query->rule = prefix->rules[i];
				match = RULE_FOUND;
				break;
			}
		}
	} else {
		query->key = *key;
		match = size_class == ZFW_SIZE_MEDIUM ? RULE_IN_MEDIUM : RULE_IN_LARGE;
	}
	if (!is_key(&prefix->key, key) || READ_ONCE_U32(prefix->stamp) != stamp)
		return RULE_CHANGING;
	return match;
}

/*
 * The next pairs of lengths, up to a batch of them: RULE_NEXT where there are
 * more. This and those below are global functions: the verifier goes through
 * each once, not once for every path that leads to it (51c39bb1d5d1, "bpf:
 * Introduce function-by-function verification"). A batch, because a call for
 * each pair would cost a packet more than the look-up.
 */
__noinline int match_lengths(struct rule_query *query)
{
	KEY_ON_STACK key = {};
	struct zfw_lengths *table;
	struct zfw_length_list *list;
	__u32 number, zero = 0, i;
	void *inner;
	int match = RULE_NEXT;

	if (!query)
		return RULE_NONE;
	number = key.table = query->key.table;
	table = bpf_map_lookup_elem(&lengths, &number);
	inner = bpf_map_lookup_elem(&prefixes, &zero);
	if (!table || !inner)
		return RULE_NONE;
	if (query->position == 0) {
		query->changes = READ_ONCE_U32(table->changes);
		query->active = READ_ONCE_U32(table->active);
	}
	list = &table->lists[query->active & 1];

	key.destination[2] = key.source[2] = bpf_htonl(0xffff);
	for (i = 0; i < LENGTHS_BATCH; i++) {
		__u32 position = query->position;
		struct zfw_prefix *prefix;

		if (position >= list->count || position >= ZFW_MAX_LENGTHS) {
			match = RULE_NONE;
			break;
		}
		query->position = position + 1;
		cut_to_prefix(query, list->pairs[position], &key);
		prefix = bpf_map_lookup_elem(inner, &key);
		if (!prefix)
			continue;
		match = match_prefix(query, prefix, &key);
		if (match != RULE_NEXT)
			break;
	}
	/* This pair was the last one: no further call to learn that. */
	query->is_last = query->position >= list->count;
	if (match == RULE_NEXT && query->is_last)
		match = RULE_NONE;
	/* One flip leaves the list that we read alone; two may not. */
	if (READ_ONCE_U32(table->changes) - query->changes > 1)
		return RULE_CHANGING;
	return match;
}

/* What match_lengths() did not settle at its first go. */
__noinline int match_further(struct rule_query *query, int match)
{
	__u32 i;

	if (!query)
		return RULE_NONE;
	/* Each pair may lead to a port index and back. */
	for (i = 0; i < 2 * ZFW_MAX_LENGTHS + 2; i++) {
		if (match == RULE_IN_MEDIUM)
			match = search_medium(query);
		else if (match == RULE_IN_LARGE)
			match = search_large(query);
		else if (match == RULE_NEXT && !query->is_last)
			match = match_lengths(query);
		else
			break;
	}
	return match == RULE_FOUND || match == RULE_CHANGING ? match : RULE_NONE;
}

/*
 * The rule for a packet goes to query->rule. Addresses, port, key.table and the
 * interface are set, position is zero. RULE_FOUND, RULE_NONE or RULE_CHANGING.
 */
static __always_inline int match_rules(struct rule_query *query)
{
	int match = match_lengths(query);

	if (match == RULE_NEXT || match == RULE_IN_MEDIUM || match == RULE_IN_LARGE)
		match = match_further(query, match);
	return match;
}

#endif
