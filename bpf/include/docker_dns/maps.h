/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps of one redirect. zfw_py pins each by its name under
 * <bpffs>/zfw/docker_dns/<network namespace cookie>/.
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
	__type(value, struct docker_dns_config);
} config SEC(".maps");

/* Written by both sides: the daemon may come back at other ports. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct docker_dns_daemon);
} daemon SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, DOCKER_DNS_FLOWS);
	__type(key, struct docker_dns_query_key);
	__type(value, struct docker_dns_query);
} queries SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, DOCKER_DNS_FLOWS);
	__type(key, struct docker_dns_answer_key);
	__type(value, struct docker_dns_answer);
} answers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, DOCKER_DNS_FRAGMENTS);
	__type(key, struct docker_dns_fragment_key);
	__type(value, struct docker_dns_fragment);
} fragments SEC(".maps");

/* Only names below these are redirected, if there are any. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, DOCKER_DNS_DOMAINS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct docker_dns_domain_key);
	__type(value, __u8);
} domains SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DOCKER_DNS_OUTCOMES);
	__type(key, __u32);
	__type(value, struct docker_dns_counter);
} outcomes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, DOCKER_DNS_EVENT_BYTES);
} events SEC(".maps");

/* Events that found no room. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/* A name, which is too large for the stack: see read_name(). */
struct docker_dns_name {
	char wire[DOCKER_DNS_KEY_BYTES];
	__u32 id; /* of the message */
	__u32 length; /* of wire, without the root's 0; 0: the root, or not read */
	__u32 left; /* of the label at hand */
	struct docker_dns_domain_key backwards;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct docker_dns_name);
} names SEC(".maps");

#endif
