/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps of one guard. zfw_py pins each one by its name under <bpffs>/zfw/guard/<id>/. Prefixes,
 * learnt and proxies are written by user space.
 */
#ifndef GUARD_MAPS_H
#define GUARD_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "guard/abi.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct guard_config);
} config SEC(".maps");

/* The guard's DNS proxy process. User space only. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct guard_keeper);
} keeper SEC(".maps");

/* By cookie of the network namespace; 0: namespaces that have no entry. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, GUARD_NAMESPACES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct guard_proxy);
} proxies SEC(".maps");

/* The policy's prefixes, each with its complete answer (guard_prefix). zfw_py sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct guard_prefix_key);
	__type(value, struct guard_prefix);
} prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, GUARD_LEARNT);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct guard_learnt_key);
	__type(value, __u64);
} learnt SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct guard_socket);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, GUARD_ASKERS);
	__type(key, struct guard_asker_key);
	__type(value, struct guard_asker);
} askers SEC(".maps");

/* The flows used last. A running guard gets this map by an upgrade. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, GUARD_FLOWS);
	__type(key, struct guard_flow_key);
	__type(value, __u64);
} flows SEC(".maps");

/* Decisions, by hook and reason. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, GUARD_FIRST_HOOKS * GUARD_FIRST_REASONS);
	__type(key, __u32);
	__type(value, __u64);
} decisions SEC(".maps");

/* Those with a later hook or reason. A running guard gets this map by an upgrade. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, GUARD_MOST_HOOKS * GUARD_MOST_REASONS);
	__type(key, __u32);
	__type(value, __u64);
} added_decisions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, GUARD_EVENT_BYTES);
} events SEC(".maps");

/* How many events found no room in the ring. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

#endif
