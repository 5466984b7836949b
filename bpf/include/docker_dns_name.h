/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The name that a query asks for. What it holds is the program's own, and may be
 * anything: what cannot be read is left to the resolver that it was meant for.
 */
#ifndef DOCKER_DNS_NAME_H
#define DOCKER_DNS_NAME_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "docker_dns_maps.h"

#define DNS_HEADER_BYTES 12
#define DNS_MAX_LABEL_BYTES 63
#define DNS_MAX_LABELS 127
#define DNS_FLAG_RESPONSE 0x8000
#define DNS_OPCODE 0x7800

struct dns_header {
	__be16 id;
	__be16 flags;
	__be16 questions;
	__be16 answers;
	__be16 authorities;
	__be16 additionals;
};

/*
 * Steps from label to label; the length of the name without the root's byte, or -1.
 * The position is read back from memory, where the verifier knows no more of it
 * than its type: it meets the same state at each label.
 */
__noinline int measure_name(struct docker_dns_name *name, __u32 available)
{
	__u32 i;

	if (!name)
		return -1;
	name->length = 0;
	for (i = 0; i <= DNS_MAX_LABELS; i++) {
		__u32 position = name->length;
		__u8 label;

		if (position >= available || position >= DOCKER_DNS_NAME_BYTES)
			return -1;
		label = name->wire[position & (DOCKER_DNS_KEY_BYTES - 1)];
		if (label == 0)
			return position;
		/* A pointer has nothing before it to point to. */
		if (label > DNS_MAX_LABEL_BYTES)
			return -1;
		name->length = position + 1 + label;
	}
	return -1;
}

/* Writes the name backwards, in lower case; false if a label has a dot in it, which no
 * suffix that people write has. */
__noinline int reverse_name(struct docker_dns_name *name, __u32 length)
{
	__u32 i;

	if (!name)
		return false;
	name->left = 0;
	for (i = 0; i < DOCKER_DNS_NAME_BYTES; i++) {
		__u32 left = name->left;
		__u8 c = name->wire[i];

		if (i >= length)
			break;
		if (left == 0) {
			name->left = c;
			c = '.';
		} else {
			name->left = left - 1;
			if (c == '.')
				return false;
			if (c >= 'A' && c <= 'Z')
				c += 'a' - 'A';
		}
		name->backwards.name[(length - 1 - i) & (DOCKER_DNS_KEY_BYTES - 1)] = c;
	}
	name->backwards.bits = length * 8;
	return true;
}

/*
 * Reads the message at an offset: its id, and the name of its first question. NULL if
 * there is no query, or no name that is whole.
 */
static __always_inline struct docker_dns_name *read_name(struct __sk_buff *skb, __u32 offset,
							 __u32 length)
{
	struct docker_dns_name *name;
	struct dns_header header;
	__u32 zero = 0, available;
	int measured;

	if (length <= sizeof(header) || bpf_skb_load_bytes(skb, offset, &header, sizeof(header)))
		return NULL;
	if (header.flags & bpf_htons(DNS_FLAG_RESPONSE | DNS_OPCODE) || header.questions == 0)
		return NULL;
	name = bpf_map_lookup_elem(&names, &zero);
	if (!name)
		return NULL;
	name->id = bpf_ntohs(header.id);
	available = length - sizeof(header);
	if (available > DOCKER_DNS_NAME_BYTES)
		available = DOCKER_DNS_NAME_BYTES;
	/* clang would compare one register and use another. */
	asm volatile("" : "+r"(available));
	if (available == 0 || available > DOCKER_DNS_NAME_BYTES ||
	    bpf_skb_load_bytes(skb, offset + sizeof(header), name->wire, available))
		return NULL;
	measured = measure_name(name, available);
	if (measured < 0)
		return NULL;
	name->length = measured;
	return name;
}

/* Whether a suffix covers the name. */
static __always_inline bool is_covered(struct docker_dns_name *name)
{
	return reverse_name(name, name->length) && bpf_map_lookup_elem(&domains, &name->backwards);
}

#endif
