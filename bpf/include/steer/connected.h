/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * UDP sockets that are bound to an address of their own and were connected since. Connected, such a
 * socket takes nothing from other clients and is no listener; disconnected, it is one again. No
 * hook sees the disconnect (connect(2) to AF_UNSPEC), and none sees whether a connect succeeded. So
 * these sockets are not counted in "listeners": a look-up reads their state in the kernel.
 *
 * A set has the sockets of all addresses of one hash. A slot is never deleted. It has the cookie of
 * its socket, and counts only while the memory behind its pointer has the same cookie, which the
 * kernel gives once: another object there does not count.
 */
#ifndef STEER_CONNECTED_H
#define STEER_CONNECTED_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/verifier.h"
#include "steer/abi.h"
#include "steer/kernel.h"
#include "steer/listeners.h"
#include "steer/maps.h"

static __always_inline struct steer_connected_set *
steer_connected_at(const struct steer_address *at)
{
	__u32 number = (steer_tag_of(at) >> 32) % STEER_CONNECTED_SETS;

	return bpf_map_lookup_elem(&connected, &number);
}

/* The cookie of what is in the memory of a slot's socket. */
static __always_inline __u64 steer_cookie_in(const struct steer_connected *slot)
{
	const struct sock *sk = (const struct sock *)slot->sk;

	return BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
}

/* Whether a UDP socket listens on this address that was connected and is so no more. */
static __always_inline bool steer_is_disconnected_at(const struct steer_address *at, __u32 ifindex)
{
	struct steer_connected_set *set = steer_connected_at(at);

	if (!set)
		return false;
	for (int i = 0; i < STEER_CONNECTED_SLOTS; i++) {
		struct steer_connected *slot = &set->each[i];
		const struct sock *sk = (const struct sock *)slot->sk;
		__u32 device;
		__be32 own[4];

		/* They are taken in this order. */
		if (!READ_ONCE(slot->cookie))
			return false;
		/* A socket that is closing has the port 0. */
		if (BPF_CORE_READ(sk, __sk_common.skc_num) != at->port ||
		    BPF_CORE_READ(sk, __sk_common.skc_state) == BPF_TCP_ESTABLISHED)
			continue;
		device = BPF_CORE_READ(sk, __sk_common.skc_bound_dev_if);
		if (device && device != ifindex)
			continue;
		if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET)
			map_ipv4(own, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		else
			BPF_CORE_READ_INTO(&own, sk, __sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32);
		if (is_same_address(own, at->address) && steer_cookie_in(slot) == slot->cookie)
			return true;
	}
	return false;
}

/*
 * Takes a slot for a socket, unless it has one. Without a free slot its disconnect goes unseen, and
 * it is no listener until a scan.
 */
static __always_inline void steer_take_slot(__u64 cookie, __u64 sk, const struct steer_address *at)
{
	struct steer_connected_set *set = steer_connected_at(at);

	if (!set)
		return;
	for (int i = 0; i < STEER_CONNECTED_SLOTS; i++) {
		struct steer_connected *slot = &set->each[i];
		const struct sock *other = (const struct sock *)slot->sk;
		__u64 was = READ_ONCE(slot->cookie);

		if (was == cookie)
			return;
		if (was == STEER_CONNECTED_BUSY || (was && steer_cookie_in(slot) == was &&
						    BPF_CORE_READ(other, __sk_common.skc_num)))
			continue;
		/* Two words are written: no other CPU takes the slot in between. */
		if (__sync_val_compare_and_swap(&slot->cookie, was, STEER_CONNECTED_BUSY) != was)
			continue;
		slot->sk = sk;
		__sync_lock_test_and_set(&slot->cookie, cookie);
		return;
	}
}

/*
 * Records a socket that bind(2) has given its address, and that is connected or is about to be. sk
 * is the kernel's struct sock.
 */
static __always_inline void steer_note_connected(__u64 cookie, __u64 sk,
						 struct steer_listener *listener, __u32 uid)
{
	if (is_wildcard(listener->at.address))
		return;
	listener->is_exact = false;
	steer_take_slot(cookie, sk, &listener->at);
	steer_record(cookie, listener, uid);
}

/*
 * Stops counting a socket that is about to be connected. The caller holds the socket's lock: no
 * bind, connect or close changes its element meanwhile. A scan may be about to create it: that
 * fails, or is seen here.
 */
static __always_inline void steer_stop_counting(__u64 cookie, __u64 sk,
						struct steer_listener *listener, __u32 uid)
{
	struct steer_listener *found = bpf_map_lookup_elem(&listening, &cookie);
	struct steer_address at;

	if (!found) {
		steer_note_connected(cookie, sk, listener, uid);
		found = bpf_map_lookup_elem(&listening, &cookie);
	}
	if (!found || !found->is_exact)
		return;
	at = found->at;
	/* Before the count changes: at each moment a look-up finds the one or the other. */
	steer_take_slot(cookie, sk, &at);
	found->is_exact = false;
	steer_uncount(&at);
}

#endif
