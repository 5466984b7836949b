/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which sockets listen on which addresses. The kernel has no look-up for that, so the hooks and the
 * scans maintain it.
 *
 * The element of a socket in "listening" makes sure that the socket is counted once, whether a hook
 * or a scan sees it first: the program that creates the element has incremented the address's count
 * in "listeners", the one that deletes the element decrements it.
 */
#ifndef STEER_LISTENERS_H
#define STEER_LISTENERS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/errno.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/maps.h"
#include "common/verifier.h"
#include "steer/abi.h"
#include "steer/events.h"
#include "steer/maps.h"

/* How often to retry while another CPU deletes the element. */
#define STEER_PATIENCE 128
/* The cookie of a slot in "connected" that a CPU is writing. No socket has it. */
#define STEER_CONNECTED_BUSY (~0ULL)

/*
 * The high half of an address's count identifies the address. The memory of a deleted element may
 * be given to another address at once (fba1a1c6c912, Linux 6.1), whose count has another tag.
 */
static __always_inline __u64 steer_tag_of(const struct steer_address *at)
{
	const __u64 odd = 0x9e3779b97f4a7c15ULL;
	__u64 hash = ((__u64)at->address[0] << 32 | at->address[1]) * odd;

	hash = (hash ^ hash >> 29 ^ ((__u64)at->address[2] << 32 | at->address[3])) * odd;
	hash = (hash ^ hash >> 29 ^
		((__u64)at->ifindex << 32 | (__u32)at->port << 16 | at->protocol)) *
	       odd;
	return hash & 0xffffffff00000000ULL;
}

/* The count in a word: 0 if it belongs to another address, or is about to be deleted. */
static __always_inline __u32 steer_count_in(__u64 word, __u64 tag)
{
	return (word ^ tag) >> 32 ? 0 : (__u32)word;
}

/*
 * Increments the listener count of an address. The CPU that drops a count to 0 deletes the element,
 * so a count of 0 is never incremented: retry until the element is gone, at most STEER_PATIENCE
 * times. False if that was not enough.
 */
static __always_inline bool steer_count_up(const struct steer_address *at)
{
	__u64 tag = steer_tag_of(at), first = tag | 1, *word, was;

	for (int i = 0; i < STEER_PATIENCE; i++) {
		word = bpf_map_lookup_elem(&listeners, at);
		if (!word) {
			if (!bpf_map_update_elem(&listeners, at, &first, BPF_NOEXIST))
				return true;
			continue;
		}
		was = READ_ONCE(*word);
		if (steer_count_in(was, tag) &&
		    __sync_val_compare_and_swap(word, was, was + 1) == was)
			return true;
	}
	return false;
}

/* Decrements the count. Until then it is at least 1, so no other CPU deletes the element. */
static __always_inline void steer_count_down(const struct steer_address *at)
{
	__u64 *word = bpf_map_lookup_elem(&listeners, at);

	if (word && (__u32)__sync_fetch_and_add(word, -1) == 1)
		bpf_map_delete_elem(&listeners, at);
}

static __always_inline void steer_count_device(__s64 difference)
{
	__u64 *count = only_element(&device_listeners);

	if (count)
		__sync_fetch_and_add(count, difference);
}

/* Counts a listener. False if it cannot be counted. */
static __always_inline bool steer_count(const struct steer_address *at)
{
	if (!steer_count_up(at))
		return false;
	if (at->ifindex)
		steer_count_device(1);
	return true;
}

static __always_inline void steer_uncount(const struct steer_address *at)
{
	steer_count_down(at);
	if (at->ifindex)
		steer_count_device(-1);
}

static __always_inline bool steer_is_listened_at(const struct steer_address *at)
{
	__u64 *word = bpf_map_lookup_elem(&listeners, at);

	return word && steer_count_in(READ_ONCE(*word), steer_tag_of(at));
}

static __always_inline __u32 steer_target_of(const struct steer_address *at)
{
	struct steer_address anywhere = *at;
	__u32 *target;

	anywhere.ifindex = 0;
	target = bpf_map_lookup_elem(&target_ids, &anywhere);
	return target ? *target : STEER_NO_TARGET;
}

/* The word and bit of an address in "unrecorded", whatever device. */
static __always_inline __u64 *steer_unrecorded_at(const struct steer_address *at, __u64 *bit)
{
	struct steer_unrecorded *all = only_element(&unrecorded);
	struct steer_address anywhere = *at;
	__u32 hash;

	anywhere.ifindex = 0;
	hash = steer_tag_of(&anywhere) >> 32;
	*bit = 1ULL << (hash & 63);
	return all ? &all->words[hash >> 6 & (STEER_UNRECORDED_WORDS - 1)] : NULL;
}

/* A table that is full proves nothing about this address. A later scan tries again. */
static __always_inline void steer_note_unrecorded(const struct steer_listener *listener)
{
	__u64 bit, *word = steer_unrecorded_at(&listener->at, &bit);

	if (word && listener->is_exact)
		__sync_fetch_and_or(word, bit);
	/* In this order: a scan clears the bits, and looks at the counter afterwards. */
	steer_note_trouble(STEER_TROUBLE_LISTENERS);
}

static __always_inline bool steer_is_unrecorded(const struct steer_address *at)
{
	__u64 bit, *word = steer_unrecorded_at(at, &bit);

	return word && READ_ONCE(*word) & bit;
}

/*
 * Charges a socket to a user. -EEXIST if it is charged already, -EDQUOT if the user has its share,
 * another error if a map is full.
 */
static __always_inline int steer_charge(__u64 cookie, __u32 uid)
{
	__u64 none = 0, *count;
	int error;

	if (!uid)
		return 0;
	count = bpf_map_lookup_elem(&shares, &uid);
	if (!count) {
		bpf_map_update_elem(&shares, &uid, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&shares, &uid);
		if (!count)
			return -E2BIG;
	}
	if (__sync_fetch_and_add(count, 1) >= STEER_SHARE)
		error = -EDQUOT;
	else
		error = bpf_map_update_elem(&charges, &cookie, &uid, BPF_NOEXIST);
	if (error)
		__sync_fetch_and_add(count, -1);
	return error;
}

static __always_inline void steer_discharge(__u64 cookie)
{
	__u32 uid, *found = bpf_map_lookup_elem(&charges, &cookie);
	__u64 *count;

	if (!found)
		return;
	uid = *found;
	if (bpf_map_delete_elem(&charges, &cookie))
		return;
	count = bpf_map_lookup_elem(&shares, &uid);
	if (count)
		__sync_fetch_and_add(count, -1);
}

/*
 * Creates the element of a socket, which is charged to a user and counted. False if it is known
 * already or finds no room. A user's own sockets beyond its share keep nothing; that would let it
 * end the steering of addresses at will.
 */
static __always_inline bool steer_record(__u64 cookie, struct steer_listener *listener, __u32 uid)
{
	int error = steer_charge(cookie, uid); /* Linux 6.1 returns an int: the upper half is 0 */

	if (error) {
		if (error != -EEXIST && error != -EDQUOT)
			steer_note_unrecorded(listener);
		return false;
	}
	/* Counted first, so that whatever finds the element may stop counting. */
	if (listener->is_exact && !steer_count(&listener->at)) {
		steer_discharge(cookie);
		steer_note_unrecorded(listener);
		return false;
	}
	error = bpf_map_update_elem(&listening, &cookie, listener, BPF_NOEXIST);
	if (!error)
		return true;
	if (listener->is_exact)
		steer_uncount(&listener->at);
	if (error != -EEXIST) {
		steer_discharge(cookie);
		steer_note_unrecorded(listener);
	}
	return false;
}

/* Records a listening socket. False if it is known already, or irrelevant. */
static __always_inline bool steer_note_listener(__u64 cookie, struct steer_listener *listener,
						__u32 uid)
{
	const struct steer_config *found = steer_config_of();

	listener->is_exact = !is_wildcard(listener->at.address);
	if (!listener->is_exact && steer_target_of(&listener->at) == STEER_NO_TARGET &&
	    !(found && found->flags & STEER_TELL_ALL))
		return false;
	return steer_record(cookie, listener, uid);
}

/* Removes a socket that does not listen any more. */
static __always_inline void steer_forget_listener(__u64 cookie)
{
	struct steer_listener *found = bpf_map_lookup_elem(&listening, &cookie);
	struct steer_listener listener;

	if (!found)
		return;
	listener = *found;
	if (bpf_map_delete_elem(&listening, &cookie))
		return;
	steer_discharge(cookie);
	if (listener.is_exact)
		steer_uncount(&listener.at);
	steer_emit(STEER_KIND_LEFT, cookie, &listener, steer_target_of(&listener.at), false);
}

/* Records the current process; its user. In process context only. */
static __always_inline __u32 steer_note_process(struct steer_listener *listener)
{
	listener->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(listener->command, sizeof(listener->command));
	return bpf_get_current_uid_gid();
}

#endif
