/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps of one steered network namespace. zfw_py pins each by its name under
 * <bpffs>/zfw/steer/<netns cookie>/.
 *
 * Who writes, and in which order, so that no packet is misled in between:
 * - config first; set_state, the cgroup's hooks, then a scan; lookup is attached last. A
 *   scan may meet a UDP socket that is just being closed: the sockets of listening that
 *   a dump of all sockets, begun afterwards, does not have are to be forgotten.
 * - A target: its slots in sockets have to be empty. target_ids is set, from when on its
 *   daemon is adopted as it comes; then what listens already and is in no slot is put into
 *   sockets, in the slot that take_slot says.
 * - All mappings at once: the idle table and the idle half of segments are filled, then
 *   active is switched, then the old table is taken out of tables, which waits until
 *   nobody reads it or the old half of segments. Only then targets may be taken away.
 * - One mapping of an exact or of any port: its elements, then its bits of active; the
 *   other way round to take it away. One of a range cuts segments anew: all at once.
 */
#ifndef STEER_MAPS_H
#define STEER_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "steer/abi.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct steer_config);
} config SEC(".maps");

/*
 * One word, so that a packet meets the mappings of before or of after a change: the low
 * 32 bits are the table in use, the high ones say which look-ups can find anything in
 * it, bit mapping_class + STEER_CLASSES * ((family == 6) + 2 * (protocol == IPPROTO_UDP)).
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} active SEC(".maps");

/* The mappings. How large a table is, is its maker's affair. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, STEER_TABLES);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);
		__uint(max_entries, 1);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__uint(key_size, sizeof(struct steer_mapping_key));
		__uint(value_size, sizeof(struct steer_mapping));
	});
} tables SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STEER_TABLES * 2 * STEER_SEGMENT_ELEMENTS);
	__type(key, __u32);
	__type(value, struct steer_segments);
} segments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STEER_TARGETS);
	__type(key, __u32);
	__type(value, struct steer_target);
} targets SEC(".maps");

/* The targets that are known by an address. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, STEER_TARGETS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct steer_address);
	__type(value, __u32);
} target_ids SEC(".maps");

/*
 * A look-up from user space gives a socket's cookie, an update takes its descriptor. A
 * socket leaves when it is closed: one that was shut down is there still, and passed over.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, STEER_TARGETS * STEER_TARGET_SOCKETS);
	__type(key, struct steer_socket_key);
	__type(value, __u64);
} sockets SEC(".maps");

/*
 * How many sockets listen on an address, 0.0.0.0 and :: excepted: in the low 32 bits. One
 * of UDP that is connected after it was bound still counts, for nobody is told when it is
 * disconnected; and the device is that of when it was bound.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, STEER_LISTENERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct steer_address);
	__type(value, __u64);
} listeners SEC(".maps");

/* Which sockets listen: those in listeners, and those on a target's address. By cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, STEER_LISTENERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct steer_listener);
} listening SEC(".maps");

/* Of a socket of UDP that is about to be bound: the device that it is bound to. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} devices SEC(".maps");

/* How many sockets of listeners are bound to a device. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} device_listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, STEER_FLOWS);
	__type(key, struct steer_flow_key);
	__type(value, struct steer_flow);
} flows SEC(".maps");

/* By the id of a mapping; made by its first look-up. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, STEER_COUNTED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct steer_counter);
} counters SEC(".maps");

/* By enum steer_trouble. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, STEER_TROUBLES);
	__type(key, __u32);
	__type(value, __u64);
} troubles SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, STEER_EVENT_BYTES);
} events SEC(".maps");

#endif
