/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps of one redirect. zfw_py pins each one by its name under <bpffs>/zfw/docker_dns/<network
 * namespace cookie>/.
 */
#ifndef DOCKER_DNS_MAPS_H
#define DOCKER_DNS_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "docker_dns/abi.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dns_config);
} config SEC(".maps");

/* User space and the programs write it: a restarted daemon has other ports. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dns_daemon);
} daemon SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, DNS_FLOWS);
	__type(key, struct dns_query_key);
	__type(value, struct dns_query);
} queries SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, DNS_FLOWS);
	__type(key, struct dns_answer_key);
	__type(value, struct dns_answer);
} answers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, DNS_FRAGMENTS);
	__type(key, struct dns_fragment_key);
	__type(value, struct dns_fragment);
} fragments SEC(".maps");

/* By the client's address. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, DNS_TRUNCATED_CLIENTS);
	__type(key, __be32);
	__type(value, struct dns_truncated);
} truncated SEC(".maps");

/* If there are any, only names with such a suffix are redirected. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, DNS_DOMAINS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct dns_domain_key);
	__type(value, __u8);
} domains SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DNS_OUTCOMES);
	__type(key, __u32);
	__type(value, struct dns_counter);
} outcomes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, DNS_EVENT_BYTES);
} events SEC(".maps");

/* How many events found no room in the ring. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/* A name. It lies in a map, because it is too large for the stack. */
struct dns_name {
	char wire[DNS_KEY_BYTES];
	__u32 id; /* of the message */
	__u32 length; /* of wire without the root label; 0: the root, or not read */
	__u32 left; /* bytes left of the current label */
	struct dns_domain_key backwards;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dns_name);
} names SEC(".maps");

#endif
