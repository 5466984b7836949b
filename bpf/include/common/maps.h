/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading maps.
 */
#ifndef COMMON_MAPS_H
#define COMMON_MAPS_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* The element of an array that has only one. The caller checks for NULL: the verifier demands it.
 */
static __always_inline void *only_element(void *map)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(map, &zero);
}

/*
 * Whether an element, found before, is still the key's. An element that is evicted or deleted is
 * reused for another key at once, while a program still reads it: those of an LRU map, which are
 * all allocated beforehand, and since Linux 6.1 all others (fba1a1c6c912). So what is read from an
 * element is believed only if a second look-up finds it again.
 */
#define is_still(map, key, element) (bpf_map_lookup_elem((map), (key)) == (element))

#endif
