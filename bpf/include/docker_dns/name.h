/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The name that a query asks for. What it holds is the program's own, and may be
 * anything: what cannot be read is left to the resolver that it was meant for.
 */
#ifndef DOCKER_DNS_NAME_H
#define DOCKER_DNS_NAME_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "docker_dns/maps.h"
#include "parse.h"

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
	__be16 additional;
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

/* Writes the name backwards, in lower case. A dot within a label becomes 0, so that no
 * suffix begins there. */
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
				c = 0;
			if (c >= 'A' && c <= 'Z')
				c += 'a' - 'A';
		}
		name->backwards.name[(length - 1 - i) & (DOCKER_DNS_KEY_BYTES - 1)] = c;
	}
	name->backwards.bits = length * 8;
	return true;
}

/*
 * Reads the message of a UDP packet: its id, and the name of its first question. NULL if
 * there is no query, or no name that is whole.
 */
static __always_inline struct docker_dns_name *read_name(struct __sk_buff *skb,
							 const struct zfw_packet *packet)
{
	__u32 offset = packet->transport_offset + sizeof(struct udphdr);
	__u32 zero = 0, length, available, last;
	struct docker_dns_name *name;
	struct dns_header header;
	struct udphdr udp;
	int measured;

	/* As long as UDP has it: a server reads no further. */
	if (!read_bytes(skb, packet->transport_offset, &udp, sizeof(udp)))
		return NULL;
	length = bpf_ntohs(udp.len);
	if (length <= sizeof(udp) + sizeof(header) || length > packet->transport_length)
		return NULL;
	length -= sizeof(udp);
	if (bpf_skb_load_bytes(skb, offset, &header, sizeof(header)))
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
	last = available - 1;
	/* clang would compare one register and use another; and Linux 6.1 learns nothing from
	 * a comparison with 0. */
	asm volatile("" : "+r"(last));
	if (last >= DOCKER_DNS_NAME_BYTES ||
	    bpf_skb_load_bytes(skb, offset + sizeof(header), name->wire, last + 1))
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
