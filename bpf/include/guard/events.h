/* SPDX-License-Identifier: GPL-2.0-only */
/* Counters of the guard's decisions, and events about them. */
#ifndef GUARD_EVENTS_H
#define GUARD_EVENTS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/counters.h"
#include "common/events.h"
#include "common/maps.h"
#include "guard/abi.h"
#include "guard/policy.h"
#include "guard/maps.h"

static __always_inline __u32 guard_flags(void)
{
	const struct guard_config *found = only_element(&config);

	return found ? found->flags : 0;
}

static __always_inline void guard_count(enum guard_hook hook, enum guard_reason reason)
{
	if (hook < GUARD_FIRST_HOOKS && reason < GUARD_FIRST_REASONS)
		count_one(&decisions, hook * GUARD_FIRST_REASONS + reason);
	else
		count_one(&added_decisions, hook * GUARD_MOST_REASONS + reason);
}

/* Whether the same event was emitted for this socket less than a second ago. If not, records it. */
static __always_inline bool guard_is_repeated(struct guard_socket *socket,
					      const struct guard_end *to, enum guard_hook hook,
					      enum guard_reason reason)
{
	/* setsockopt() hooks have no coarse clock. */
	__u64 now = hook == GUARD_HOOK_SETSOCKOPT ? bpf_ktime_get_ns() : bpf_ktime_get_coarse_ns();

	if (socket->told_reason == reason && socket->told_port == to->port &&
	    is_same_address(socket->told, to->address) && now - socket->told_at < GUARD_TELL_AGAIN)
		return true;
	socket->told_reason = reason;
	socket->told_port = to->port;
	copy_address(socket->told, to->address);
	socket->told_at = now;
	return false;
}

/*
 * Emits an event. socket identifies the process, and may be NULL; redirected is the destination
 * after a redirection, or NULL.
 */
static __always_inline void guard_emit(struct guard_socket *socket, __u64 cgroup,
				       enum guard_hook hook, enum guard_reason reason,
				       __u16 protocol, const struct guard_end *to,
				       const struct guard_end *redirected)
{
	bool is_denied = guard_verdict_of(reason) == GUARD_VERDICT_DENY;
	struct guard_event *event;
	__u32 flags = guard_flags();

	if (!is_denied && !(flags & GUARD_TELL_ALL))
		return;
	if (socket && guard_is_repeated(socket, to, hook, reason))
		return;
	event = reserve_event(&events, sizeof(*event), &lost, 0);
	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	event->cgroup = cgroup;
	copy_address(event->destination, to->address);
	event->port = to->port;
	if (redirected) {
		copy_address(event->redirected, redirected->address);
		event->redirected_port = redirected->port;
	}
	event->protocol = protocol;
	event->hook = hook;
	event->verdict = guard_verdict_of(reason);
	event->reason = reason;
	event->is_log_only = (flags & GUARD_LOG_ONLY) != 0;
	if (socket) {
		event->netns_cookie = socket->netns_cookie;
		event->pid = socket->pid;
		__builtin_memcpy(event->command, socket->command, sizeof(event->command));
	}
	bpf_ringbuf_submit(event, 0);
}

#endif
