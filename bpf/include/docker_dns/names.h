/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reads the name that a query asks for. The program in the container wrote it and may have written
 * anything. A query without a readable name stays with the built-in resolver.
 */
#ifndef DOCKER_DNS_NAMES_H
#define DOCKER_DNS_NAMES_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/maps.h"
#include "common/packet.h"
#include "common/verifier.h"
#include "docker_dns/maps.h"

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
 * Walks from label to label. Returns the length of the name without the root label, or -1. The
 * position is read back from memory, so that the loop converges (READ_ONCE()).
 */
__noinline int dns_measure_name(struct dns_name *name, __u32 available)
{
	__u32 i;

	if (!name)
		return -1;
	name->length = 0;
	for (i = 0; i <= DNS_MAX_LABELS; i++) {
		__u32 position = name->length;
		__u8 label;

		if (position >= available || position >= DNS_NAME_BYTES)
			return -1;
		label = name->wire[position & (DNS_KEY_BYTES - 1)];
		if (label == 0)
			return position;
		/* Compression. The first name has nothing before it to point to. */
		if (label > DNS_MAX_LABEL_BYTES)
			return -1;
		name->length = position + 1 + label;
	}
	return -1;
}

/*
 * Writes the name in reverse order and lower case. A dot within a label becomes 0, so that no
 * suffix begins there.
 */
__noinline int dns_reverse_name(struct dns_name *name, __u32 length)
{
	__u32 i;

	if (!name)
		return false;
	name->left = 0;
	for (i = 0; i < DNS_NAME_BYTES; i++) {
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
		name->backwards.name[(length - 1 - i) & (DNS_KEY_BYTES - 1)] = c;
	}
	name->backwards.bits = length * 8;
	return true;
}

/*
 * Reads the id of a DNS message over UDP, and the name of its first question. NULL if it is no
 * query, or its name is not complete.
 */
static __always_inline struct dns_name *dns_read_name(struct __sk_buff *skb,
						      const struct packet *packet)
{
	__u32 offset = packet->transport_offset + sizeof(struct udphdr);
	__u32 length, available, last;
	struct dns_name *name;
	struct dns_header header;
	struct udphdr udp;
	int measured;

	/* The length of UDP counts: a server reads no further. */
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
	name = only_element(&names);
	if (!name)
		return NULL;
	name->id = bpf_ntohs(header.id);
	available = length - sizeof(header);
	if (available > DNS_NAME_BYTES)
		available = DNS_NAME_BYTES;
	last = available - 1;
	/* See barrier_var(). Minus 1, because Linux 6.1 learns no bound from a comparison with 0.
	 */
	barrier_var(last);
	if (last >= DNS_NAME_BYTES ||
	    bpf_skb_load_bytes(skb, offset + sizeof(header), name->wire, last + 1))
		return NULL;
	measured = dns_measure_name(name, available);
	if (measured < 0)
		return NULL;
	name->length = measured;
	return name;
}

/* Whether a configured suffix covers the name. */
static __always_inline bool dns_is_covered(struct dns_name *name)
{
	return dns_reverse_name(name, name->length) &&
	       bpf_map_lookup_elem(&domains, &name->backwards);
}

#endif
