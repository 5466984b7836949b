/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps of one steered network namespace. zfw_py pins each one by its name under
 * <bpffs>/zfw/steer/<netns cookie>/.
 *
 * Write order (user space must follow it):
 *
 * Attach
 * 1. Write config: the programs check the namespace against it.
 * 2. Attach set_state and the cgroup hooks, so that no new listener is missed.
 * 3. Scan: read both iterators, for the listeners that are older.
 * 4. Remove closed sockets: an iterator can return a UDP socket that is just closing. Dump all
 *    sockets afterwards, and run the program "forget" on each cookie of "listening" that the dump
 *    lacks.
 * 5. Attach lookup last: it needs all of the above.
 *
 * Add a target
 * 1. Empty its slots in sockets: they may have sockets of an earlier target.
 * 2. Write target_ids. From now on a daemon that begins to listen there is added by the hooks.
 * 3. Add the sockets that listen there already and have no slot, each in a slot from take_slot: the
 *    hooks may add others at the same time.
 *
 * Replace all mappings
 * 1. Fill the inactive table and the inactive half of segments.
 * 2. Write active: one word, so that every packet sees either the old or the new mappings.
 * 3. Delete the old table from tables. The kernel then waits until no program reads the old table
 *    or the old half of segments.
 * 4. Remove targets that no mapping names any more: before step 3 a program could still look one
 *    up.
 *
 * Every change of mappings replaces all of them: a range of ports cuts the segments of other
 * ranges, and one way of writing is enough to get right.
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
 * One word, so that a packet sees either all old or all new mappings. The low 32 bits are the
 * active table. The high 32 bits say which look-ups can find anything in it: bit mapping_class +
 * STEER_CLASSES * ((family == 6) + 2 * (protocol == IPPROTO_UDP)).
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} active SEC(".maps");

/* The mappings. User space chooses the size of each table. */
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

/* The targets that are an address. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, STEER_TARGETS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct steer_address);
	__type(value, __u32);
} target_ids SEC(".maps");

/*
 * User space reads a socket's cookie and writes a file descriptor. The kernel removes a socket when
 * it is closed. One that was shut down stays, and lookup skips it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, STEER_TARGETS * STEER_TARGET_SOCKETS);
	__type(key, struct steer_socket_key);
	__type(value, __u64);
} sockets SEC(".maps");

/*
 * How many sockets listen on an address other than 0.0.0.0 and ::, in the low 32 bits, without UDP
 * sockets that were connected since their bind: these are in "connected". The device of a UDP
 * socket is the one at the time of the bind.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, STEER_LISTENERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct steer_address);
	__type(value, __u64);
} listeners SEC(".maps");

/*
 * Listening sockets by cookie: those counted in "listeners", those in "connected", and those on a
 * target's address.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, STEER_LISTENERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct steer_listener);
} listening SEC(".maps");

/* Whose the sockets in "listening" are, by cookie: the id of a user, without root's. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, STEER_CHARGES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
} charges SEC(".maps");

/* How many sockets in "charges" each user has. Elements stay. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, STEER_USERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u64);
} shares SEC(".maps");

/*
 * The addresses of listeners that found no room. A look-up there leaves the packet to the kernel. A
 * bit stays until a scan has found room for all.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct steer_unrecorded);
} unrecorded SEC(".maps");

/* By a hash of the address. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STEER_CONNECTED_SETS);
	__type(key, __u32);
	__type(value, struct steer_connected_set);
} connected SEC(".maps");

/* The device of a UDP socket, between the hooks before and after its bind. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} devices SEC(".maps");

/* How many sockets in "listeners" are bound to a device. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} device_listeners SEC(".maps");

/* Steered clients of UDP daemons, from their question on until the answer. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, STEER_FLOWS);
	__type(key, struct steer_flow_key);
	__type(value, struct steer_flow);
} flows SEC(".maps");

/* Those that the daemon has answered. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, STEER_FLOWS);
	__type(key, struct steer_flow_key);
	__type(value, struct steer_flow);
} answered SEC(".maps");

/* By the id of a mapping. The first look-up creates an element. */
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
