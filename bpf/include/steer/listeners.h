/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which sockets listen on which addresses, kept by the kernel itself.
 *
 * A socket is counted once, whoever sees it first: the hooks or a scan. The socket's
 * element in listening decides; who makes it counts, who removes it counts down.
 */
#ifndef STEER_LISTENERS_H
#define STEER_LISTENERS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "steer/abi.h"
#include "steer/address.h"
#include "steer/maps.h"

/* How often somebody else may be about to remove the element that we would count in. */
#define STEER_PATIENCE 128
#define STEER_EEXIST 17

/*
 * The high half of an address's count. The memory of an element that was removed may
 * serve another at once (fba1a1c6c912, Linux 6.1): its count has another tag.
 */
static __always_inline __u64 tag_of(const struct steer_address *at)
{
	const __u64 odd = 0x9e3779b97f4a7c15ULL;
	__u64 hash = ((__u64)at->address[0] << 32 | at->address[1]) * odd;

	hash = (hash ^ hash >> 29 ^ ((__u64)at->address[2] << 32 | at->address[3])) * odd;
	hash = (hash ^ hash >> 29 ^
		((__u64)at->ifindex << 32 | (__u32)at->port << 16 | at->protocol)) *
	       odd;
	return hash & 0xffffffff00000000ULL;
}

/* Of another element, if the tag differs; about to be removed, if it is 0. */
static __always_inline __u32 count_in(__u64 word, __u64 tag)
{
	return (word ^ tag) >> 32 ? 0 : (__u32)word;
}

/*
 * One more on an address. An element whose count is 0 is nobody's but of who removes it,
 * so there is nothing to do but wait.
 */
static __always_inline bool count_up(const struct steer_address *at)
{
	__u64 tag = tag_of(at), first = tag | 1, *word, was;

	for (int i = 0; i < STEER_PATIENCE; i++) {
		word = bpf_map_lookup_elem(&listeners, at);
		if (!word) {
			if (!bpf_map_update_elem(&listeners, at, &first, BPF_NOEXIST))
				return true;
			continue;
		}
		was = *(volatile __u64 *)word;
		if (count_in(was, tag) && __sync_val_compare_and_swap(word, was, was + 1) == was)
			return true;
	}
	return false;
}

/* One less: as long as we are counted, the element stays. */
static __always_inline void count_down(const struct steer_address *at)
{
	__u64 *word = bpf_map_lookup_elem(&listeners, at);

	if (word && (__u32)__sync_fetch_and_add(word, -1) == 1)
		bpf_map_delete_elem(&listeners, at);
}

static __always_inline void count_device(__s64 difference)
{
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&device_listeners, &zero);

	if (count)
		__sync_fetch_and_add(count, difference);
}

static __always_inline bool is_listened_at(const struct steer_address *at)
{
	__u64 *word = bpf_map_lookup_elem(&listeners, at);

	return word && count_in(*(volatile __u64 *)word, tag_of(at));
}

static __always_inline __u32 target_of(const struct steer_address *at)
{
	struct steer_address anywhere = *at;
	__u32 *target;

	anywhere.ifindex = 0;
	target = bpf_map_lookup_elem(&target_ids, &anywhere);
	return target ? *target : STEER_NO_TARGET;
}

static __always_inline const struct steer_config *config_of(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

static __always_inline void tell(enum steer_kind kind, __u64 cookie,
				 const struct steer_listener *listener, __u32 target,
				 bool is_adopted)
{
	const struct steer_config *found = config_of();
	struct steer_event *event;

	if (target == STEER_NO_TARGET && !(found && found->flags & STEER_TELL_ALL))
		return;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		note_trouble(STEER_TROUBLE_EVENTS);
		return;
	}
	event->time = bpf_ktime_get_ns();
	event->cookie = cookie;
	event->listener = *listener;
	event->target = target;
	event->kind = kind;
	event->is_adopted = is_adopted;
	event->pad = 0;
	bpf_ringbuf_submit(event, 0);
}

/* Takes note of a socket that listens; false if it was known, or is of no interest. */
static __always_inline bool note_listener(__u64 cookie, struct steer_listener *listener)
{
	const struct steer_config *found = config_of();
	int error; /* all that Linux 6.1 returns: the upper half is 0 there */

	listener->is_exact = !is_wildcard(listener->at.address);
	if (!listener->is_exact && target_of(&listener->at) == STEER_NO_TARGET &&
	    !(found && found->flags & STEER_TELL_ALL))
		return false;
	error = bpf_map_update_elem(&listening, &cookie, listener, BPF_NOEXIST);
	if (error) {
		if (error != -STEER_EEXIST)
			note_trouble(STEER_TROUBLE_LISTENERS);
		return false;
	}
	if (!listener->is_exact)
		return true;
	if (!count_up(&listener->at)) {
		/* The next scan tries again. */
		bpf_map_delete_elem(&listening, &cookie);
		note_trouble(STEER_TROUBLE_LISTENERS);
		return false;
	}
	if (listener->at.ifindex)
		count_device(1);
	return true;
}

/* A socket listens no more. */
static __always_inline void forget_listener(__u64 cookie)
{
	struct steer_listener *found = bpf_map_lookup_elem(&listening, &cookie);
	struct steer_listener listener;

	if (!found)
		return;
	listener = *found;
	if (bpf_map_delete_elem(&listening, &cookie))
		return;
	if (listener.is_exact) {
		count_down(&listener.at);
		if (listener.at.ifindex)
			count_device(-1);
	}
	tell(STEER_KIND_LEFT, cookie, &listener, target_of(&listener.at), false);
}

/* Whose process this is; in process context only. */
static __always_inline void note_process(struct steer_listener *listener)
{
	listener->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(listener->command, sizeof(listener->command));
}

#endif
