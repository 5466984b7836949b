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

#endif
