/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps of the firewall. zfw_py pins each by its name under
 * <bpffs>/zfw/<network namespace cookie>/.
 *
 * Inner maps give sizes, not types: clang leaves only a forward declaration of
 * a type that a nested map definition points to.
 */
#ifndef ZFW_MAPS_H
#define ZFW_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "firewall/abi.h"

/* What writers agree on; not read here. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct zfw_state);
} state SEC(".maps");

/* The lengths that a packet is looked up with, by table. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ZFW_TABLES);
	__type(key, __u32);
	__type(value, struct zfw_lengths);
} lengths SEC(".maps");

/* How many prefixes have each pair of lengths; not read here. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ZFW_TABLES * ZFW_MAX_LENGTHS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct zfw_length_key);
	__type(value, __u32);
} length_counts SEC(".maps");

/* The prefixes. One inner map, replaced by a larger one when it fills up:
 * buckets for a million cost 16 MB, which an empty firewall should not. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(max_entries, 16384);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__uint(key_size, sizeof(struct zfw_prefix_key));
		__uint(value_size, sizeof(struct zfw_prefix));
	});
} prefixes SEC(".maps");

/* Port indexes that do not fit into their prefix's element. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct zfw_prefix_key);
	__type(value, struct zfw_ports_medium);
} ports_medium SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct zfw_prefix_key);
	__type(value, struct zfw_ports_large);
} ports_large SEC(".maps");

/* By rule slot: record (not read here) and counter. Arrays behind a pointer
 * cost a packet less than a hash and grow by a segment. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, ZFW_SEGMENTS);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(max_entries, ZFW_SEGMENT_SLOTS);
		__uint(key_size, sizeof(__u32));
		__uint(value_size, sizeof(struct zfw_rule_record));
	});
} rule_records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, ZFW_SEGMENTS);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
		__uint(max_entries, ZFW_SEGMENT_SLOTS);
		__uint(key_size, sizeof(__u32));
		__uint(value_size, sizeof(struct zfw_counter));
	});
} rule_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ZFW_REASONS);
	__type(key, __u32);
	__type(value, struct zfw_counter);
} reasons SEC(".maps");

/* Interfaces by index, the key being its remainder: a hash map would cost every
 * packet 25 ns. By name, and the sets of names that rules are limited to. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ZFW_INTERFACE_ROWS);
	__type(key, __u32);
	__type(value, struct zfw_interface);
} interfaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ZFW_MAX_INTERFACE_NAMES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct zfw_name);
	__type(value, struct zfw_interface_name);
} interface_names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ZFW_MAX_INTERFACE_SETS);
	__type(key, __u32);
	__type(value, struct zfw_interface_set);
} interface_sets SEC(".maps");

/* The addresses of attached interfaces, for the SSH and DHCP exceptions. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct zfw_address);
	__type(value, __u32);
} addresses SEC(".maps");

/* Prefixes made local for rules and for bind; not read here. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct zfw_route_key);
	__type(value, struct zfw_route);
} routes SEC(".maps");

/* What became of a datagram's first fragment. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct zfw_fragment_key);
	__type(value, struct zfw_fragment);
} fragments SEC(".maps");

/* Tracked flows, by enum zfw_flow_table. There are none until a program is
 * attached to egress: they take 60 MB. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, ZFW_FLOW_TABLES);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_LRU_HASH);
		__uint(max_entries, 1024);
		__uint(key_size, sizeof(struct zfw_flow_key));
		__uint(value_size, sizeof(struct zfw_flow));
	});
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct zfw_flow_limits);
} flow_limits SEC(".maps");

#endif
