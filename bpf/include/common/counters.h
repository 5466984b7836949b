/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Counters in per-CPU arrays. No other CPU writes an element, so no atomic instruction is needed.
 * User space adds up the CPUs.
 */
#ifndef COMMON_COUNTERS_H
#define COMMON_COUNTERS_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* The layout of a packet counter in each system's abi.h. */
struct packet_counter {
	__u64 packets;
	__u64 bytes;
};

/* Counts one event in an array of __u64. */
static __always_inline void count_one(void *map, __u32 index)
{
	__u64 *counter = bpf_map_lookup_elem(map, &index);

	if (counter)
		(*counter)++;
}

/* Counts a packet in an array of struct packet_counter. */
static __always_inline void count_packet(void *map, __u32 index, __u32 bytes)
{
	struct packet_counter *counter = bpf_map_lookup_elem(map, &index);

	if (!counter)
		return;
	counter->packets++;
	counter->bytes += bytes;
}

#endif
