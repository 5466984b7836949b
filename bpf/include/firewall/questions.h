/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Questions to a group or to all: mDNS, SSDP, NetBIOS, a client without an address.
 *
 * This host answers them from an address of its own, so question and answer have no flow's key in
 * common. "ingress" notes a question that a rule lets in. From the port that was asked this host
 * then answers its source, or the group, at the source's port and by the same interface, for as
 * long as a flow of UDP lives without a packet. Answers do not prolong that, make no flow, and let
 * nothing in. A forged question leads answers to the host that it names, as one to this host's
 * address does.
 */
#ifndef FIREWALL_QUESTIONS_H
#define FIREWALL_QUESTIONS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#include "common/address.h"
#include "common/maps.h"
#include "common/packet.h"
#include "firewall/abi.h"
#include "firewall/maps.h"

/* A subnet's broadcast address shows in the frame alone. */
static __always_inline bool fw_is_to_group(const struct __sk_buff *skb, const struct packet *packet)
{
	return packet->protocol == IPPROTO_UDP &&
	       (is_multicast(packet->destination) || skb->pkt_type == PACKET_BROADCAST ||
		(packet->family == AF_INET && packet->destination[3] == 0xffffffff));
}

/* Notes a datagram for which fw_is_to_group(). Global functions, for their frames' sake. */
__noinline int fw_note_question(struct __sk_buff *skb, struct packet *packet)
{
	struct fw_question_key key = {};
	struct fw_question question = {};
	struct fw_flow_limits *limits = only_element(&flow_limits);

	if (!packet || !limits)
		return 0;
	question.expires = bpf_ktime_get_coarse_ns() + limits->udp_idle;
	key.ifindex = skb->ifindex;
	key.family = packet->family;
	key.port = packet->source_port;
	key.asked_port = packet->destination_port;
	__builtin_memcpy(key.address, packet->source, sizeof(key.address));
	bpf_map_update_elem(&questions, &key, &question, BPF_ANY);
	__builtin_memcpy(key.address, packet->destination, sizeof(key.address));
	bpf_map_update_elem(&questions, &key, &question, BPF_ANY);
	return 0;
}

/* Whether a datagram of this host answers a question. */
__noinline int fw_answers_question(struct __sk_buff *skb, struct packet *packet)
{
	struct fw_question_key key = {};
	struct fw_question *question;

	if (!packet || packet->protocol != IPPROTO_UDP || skb->ingress_ifindex)
		return 0;
	key.ifindex = skb->ifindex;
	key.family = packet->family;
	key.port = packet->destination_port;
	key.asked_port = packet->source_port;
	__builtin_memcpy(key.address, packet->destination, sizeof(key.address));
	question = bpf_map_lookup_elem(&questions, &key);
	return question && question->expires >= bpf_ktime_get_coarse_ns();
}

#endif
