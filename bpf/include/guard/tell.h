/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What was decided: counted, and told through the ring buffer.
 */
#ifndef GUARD_TELL_H
#define GUARD_TELL_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "guard/abi.h"
#include "guard/judge.h"
#include "guard/maps.h"

static __always_inline __u32 flags_of(void)
{
	__u32 zero = 0;
	struct guard_config *found = bpf_map_lookup_elem(&config, &zero);

	return found ? found->flags : 0;
}

static __always_inline void count(enum guard_hook hook, enum guard_reason reason)
{
	__u32 place = hook * GUARD_REASONS + reason;
	__u64 *counter = bpf_map_lookup_elem(&decisions, &place);

	if (counter)
		(*counter)++;
}

/* Whether this was told of the socket less than a second ago; if not, it is now. */
static __always_inline bool is_told(struct guard_socket *socket, const struct guard_end *to,
				    enum guard_hook hook, enum guard_reason reason)
{
	/* A setsockopt() hook has no coarse clock. */
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

/* Who it was is what the socket says; to may have been redirected, or be NULL. */
static __always_inline void tell(struct guard_socket *socket, __u64 cgroup, enum guard_hook hook,
				 enum guard_reason reason, __u16 protocol,
				 const struct guard_end *to, const struct guard_end *redirected)
{
	bool is_denied = verdict_of(reason) == GUARD_VERDICT_DENY;
	struct guard_event *event;
	__u32 flags = flags_of();
	__u32 zero = 0;
	__u64 *missed;

	if (!is_denied && !(flags & GUARD_TELL_ALL))
		return;
	if (socket && is_told(socket, to, hook, reason))
		return;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		missed = bpf_map_lookup_elem(&lost, &zero);
		if (missed)
			(*missed)++;
		return;
	}
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
	event->verdict = verdict_of(reason);
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
