/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps of the firewall. zfw_py pins each one by its name under <bpffs>/zfw/<network namespace
 * cookie>/. "User space only" means that no program reads the map.
 *
 * Inner maps give sizes instead of types: clang emits only a forward declaration for a type that a
 * nested map definition points to.
 */
#ifndef FIREWALL_MAPS_H
#define FIREWALL_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "firewall/abi.h"

/* The state that writers share. User space only. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fw_state);
} state SEC(".maps");

/* By table: the pairs of prefix lengths to look a packet up with. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FW_TABLES);
	__type(key, __u32);
	__type(value, struct fw_lengths);
} lengths SEC(".maps");

/* How many prefixes have each pair of lengths. User space only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FW_TABLES * FW_MAX_LENGTHS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fw_length_key);
	__type(value, __u32);
} length_counts SEC(".maps");

/*
 * The prefixes, in one inner map, which a writer replaces by a larger one when it is full: the
 * buckets for a million prefixes take 16 MB, too much for an empty firewall.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(max_entries, 16384);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__uint(key_size, sizeof(struct fw_prefix_key));
		__uint(value_size, sizeof(struct fw_prefix));
	});
} prefixes SEC(".maps");

/* Port indexes that are too large for their prefix's element. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fw_prefix_key);
	__type(value, struct fw_ports_medium);
} ports_medium SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fw_prefix_key);
	__type(value, struct fw_ports_large);
} ports_large SEC(".maps");

/*
 * By rule slot: the record (user space only) and the counter. An array behind a pointer costs a
 * packet less than a hash map, and grows by whole segments.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, FW_SEGMENTS);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(max_entries, FW_SEGMENT_SLOTS);
		__uint(key_size, sizeof(__u32));
		__uint(value_size, sizeof(struct fw_rule_record));
	});
} rule_records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, FW_SEGMENTS);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
		__uint(max_entries, FW_SEGMENT_SLOTS);
		__uint(key_size, sizeof(__u32));
		__uint(value_size, sizeof(struct fw_counter));
	});
} rule_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FW_FIRST_REASONS);
	__type(key, __u32);
	__type(value, struct fw_counter);
} reasons SEC(".maps");

/* Those behind the first ones: the size of a running host's map stays as it is. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FW_ADDED_REASONS);
	__type(key, __u32);
	__type(value, struct fw_counter);
} added_reasons SEC(".maps");

/*
 * Interfaces by the remainder of their index (a hash map would cost each packet 25 ns), interfaces
 * by name, and the sets of names that rules are limited to.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FW_INTERFACE_ROWS);
	__type(key, __u32);
	__type(value, struct fw_interface);
} interfaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FW_MAX_INTERFACE_NAMES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fw_name);
	__type(value, struct fw_interface_name);
} interface_names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FW_MAX_INTERFACE_SETS);
	__type(key, __u32);
	__type(value, struct fw_interface_set);
} interface_sets SEC(".maps");

/*
 * The addresses of known interfaces, for the SSH and DHCP exceptions. While a rule is for own
 * addresses, also those of all interfaces, but for the ones that zfw made local.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fw_address);
	__type(value, __u32);
} addresses SEC(".maps");

/* Prefixes that zfw made local for rules and for `zfw bind`. User space only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fw_route_key);
	__type(value, struct fw_route);
} routes SEC(".maps");

/* The verdict on the first fragment of each datagram. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct fw_fragment_key);
	__type(value, struct fw_fragment);
} fragments SEC(".maps");

/* The hosts whose fragments may overtake the first one of their datagram. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct fw_pair_key);
	__type(value, struct fw_pair);
} pairs SEC(".maps");

/* Whether "ingress" or "egress" runs on this CPU: they look sockets up, and that runs "deliver". */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fw_cpu);
} cpus SEC(".maps");

/*
 * The listener that "ingress" found last, by protocol, family and port, for "deliver", which cannot
 * look sockets up. The kernel removes a socket that is closed.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, FW_LISTENERS);
	__type(key, struct fw_listener_key);
	__type(value, __u64);
} listeners SEC(".maps");

/* The packets that devices above the interface take, for "deliver", and when the latest was seen.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct fw_flow_key);
	__type(value, struct fw_promise);
} promises SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} latest_promise SEC(".maps");

/*
 * Tracked flows, by enum fw_flow_table. The inner maps take 40 MB: zfw creates them with the first
 * attachment to egress.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, FW_FLOW_TABLES);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_LRU_HASH);
		__uint(max_entries, 1024);
		__uint(key_size, sizeof(struct fw_flow_key));
		__uint(value_size, sizeof(struct fw_flow));
	});
} flows SEC(".maps");

/* Datagrams to a group or to all, which no flow's key can have with their answers. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fw_question_key);
	__type(value, struct fw_question);
} questions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fw_flow_limits);
} flow_limits SEC(".maps");

#endif
