/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Events about listeners, and counters of what did not work.
 */
#ifndef STEER_EVENTS_H
#define STEER_EVENTS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "common/counters.h"
#include "common/events.h"
#include "common/maps.h"
#include "steer/abi.h"
#include "steer/maps.h"

static __always_inline const struct steer_config *steer_config_of(void)
{
	return only_element(&config);
}

static __always_inline void steer_note_trouble(enum steer_trouble trouble)
{
	count_one(&troubles, trouble);
}

static __always_inline void steer_emit(enum steer_kind kind, __u64 cookie,
				       const struct steer_listener *listener, __u32 target,
				       bool is_adopted)
{
	const struct steer_config *found = steer_config_of();
	struct steer_event *event;

	if (target == STEER_NO_TARGET && !(found && found->flags & STEER_TELL_ALL))
		return;
	event = reserve_event(&events, sizeof(*event), &troubles, STEER_TROUBLE_EVENTS);
	if (!event)
		return;
	event->time = bpf_ktime_get_ns();
	event->cookie = cookie;
	event->listener = *listener;
	event->target = target;
	event->kind = kind;
	event->is_adopted = is_adopted;
	event->pad = 0;
	bpf_ringbuf_submit(event, 0);
}

#endif
