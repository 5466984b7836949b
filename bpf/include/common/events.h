/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Events that the programs log to user space through a ring buffer.
 */
#ifndef COMMON_EVENTS_H
#define COMMON_EVENTS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "common/counters.h"

/*
 * Reserves an event of this many bytes, not zeroed. Returns NULL if the ring is full: the event is
 * lost then, and counted in the per-CPU array "lost" at this index. The caller has to submit the
 * event on every path, or the verifier refuses the program.
 */
static __always_inline void *reserve_event(void *ring, const __u64 size, void *lost, __u32 index)
{
	void *event = bpf_ringbuf_reserve(ring, size, 0);

	if (!event)
		count_one(lost, index);
	return event;
}

#endif
