/* SPDX-License-Identifier: GPL-2.0-only */
/* Finds the mapping for a packet. */
#ifndef STEER_MAPPINGS_H
#define STEER_MAPPINGS_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/maps.h"
#include "common/verifier.h"
#include "steer/abi.h"
#include "steer/events.h"
#include "steer/maps.h"

/* The packet's destination, as mappings and listeners are looked up with it. */
struct steer_wanted {
	__be32 address[4];
	__u32 ifindex;
	__u16 port;
	__u8 protocol;
	__u8 family; /* 4 or 6 */
};

static __always_inline __u16 steer_segment_of(const struct steer_wanted *wanted, __u32 table)
{
	__u32 place = (table * 2 + (wanted->protocol == IPPROTO_UDP)) * STEER_SEGMENT_ELEMENTS +
		      wanted->port / STEER_SEGMENT_PORTS;
	struct steer_segments *found = bpf_map_lookup_elem(&segments, &place);

	return found ? found->segment[wanted->port % STEER_SEGMENT_PORTS] : 0;
}

/* Returns the most specific mapping, or NULL. */
static __always_inline const struct steer_mapping *
steer_find_mapping(const struct steer_wanted *wanted)
{
	struct steer_mapping_key key = {
		.length = 8 * (sizeof(key) - sizeof(key.length)),
		.protocol = wanted->protocol,
		.family = wanted->family,
	};
	__u32 first =
		STEER_CLASSES * ((wanted->family == 6) + 2 * (wanted->protocol == IPPROTO_UDP));
	const struct steer_mapping *mapping;
	__u32 classes, number;
	__u64 *word;
	void *table;

	word = only_element(&active);
	if (!word)
		return NULL;
	/* One read: its two halves belong together. */
	__u64 both = READ_ONCE(*word);

	classes = (both >> 32) >> first;
	if (!(classes & ((1 << STEER_CLASSES) - 1)))
		return NULL;
	number = both;
	table = bpf_map_lookup_elem(&tables, &number);
	if (!table)
		return NULL;
	copy_address(key.address, wanted->address);
	if (classes & (1 << STEER_CLASS_PORT)) {
		key.mapping_class = STEER_CLASS_PORT;
		key.port = wanted->port;
		mapping = bpf_map_lookup_elem(table, &key);
		if (mapping)
			return mapping;
	}
	if (classes & (1 << STEER_CLASS_RANGE)) {
		key.mapping_class = STEER_CLASS_RANGE;
		key.port = steer_segment_of(wanted, number);
		mapping = key.port ? bpf_map_lookup_elem(table, &key) : NULL;
		if (mapping)
			return mapping;
	}
	if (!(classes & (1 << STEER_CLASS_ANY)))
		return NULL;
	key.mapping_class = STEER_CLASS_ANY;
	key.port = 0;
	return bpf_map_lookup_elem(table, &key);
}

/*
 * The counters of a mapping on this CPU. The first look-up creates them; NULL if the map is full.
 */
static __always_inline struct steer_counter *steer_counter_of(__u32 id)
{
	struct steer_counter *counter = bpf_map_lookup_elem(&counters, &id);
	struct steer_counter none = {};

	if (counter)
		return counter;
	bpf_map_update_elem(&counters, &id, &none, BPF_NOEXIST);
	counter = bpf_map_lookup_elem(&counters, &id);
	if (!counter)
		steer_note_trouble(STEER_TROUBLE_COUNTERS);
	return counter;
}

#endif
