/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tracked flows: answers to what was let out may come in, and answers to what was let in may
 * go out. fw_find_flow() only reads an entry, fw_track_flow() writes it. The states and what
 * leads from one to the next are in flow_states.h.
 *
 * Packets may be forged. So a flow stays in the table of opening flows until both ends have
 * proved that they receive each other's packets: the responder by its answer, the initiator
 * by a packet that answers the answer. TCP proves it with acknowledgment numbers that only
 * the ends can know. A RST closes a flow only with exactly the expected sequence number
 * (RFC 5961, section 3), and begins none.
 */
#ifndef FIREWALL_FLOWS_H
#define FIREWALL_FLOWS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#include "common/maps.h"
#include "common/packet.h"
#include "common/verifier.h"
#include "firewall/abi.h"
#include "firewall/flow_states.h"
#include "firewall/maps.h"

/* The greatest distance at which a number is believed to be of the same connection. The
 * largest window that Linux offers by itself (net.ipv4.tcp_rmem) is 6 MB. */
#define FW_TCP_NEAR (8U << 20)

/* An entry as seen from a packet: "own" is the end that sent the packet. */
struct fw_flow_match {
	__u32 own_next;
	__u32 own_acknowledged;
	__u32 other_next;
	__u32 other_acknowledged;
	__u8 is_initiator; /* the packet's sender */
	__u8 flags; /* enum fw_flow_flag */
	__u8 stage; /* enum fw_flow_stage, or FW_FLOW_NO_ENTRY */
	__u8 pad;
	__u32 syn; /* fw_flow.syn */
};

/* The tables of flows are made when a program is attached to egress. */
static __always_inline bool fw_has_flow_tables(void)
{
	__u32 table = FW_FLOWS_OPENING;

	return bpf_map_lookup_elem(&flows, &table);
}

/* a - b, of sequence numbers; RFC 9293, section 3.4. */
static __always_inline __s32 fw_sequence_distance(__u32 a, __u32 b)
{
	return (__s32)(a - b);
}

static __always_inline bool fw_is_near(__u32 a, __u32 b)
{
	return a - b + FW_TCP_NEAR <= 2 * FW_TCP_NEAR;
}

static __always_inline bool fw_is_only_syn(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

static __always_inline bool fw_is_only_ack(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_ACK;
}

/* Sets the key of a packet's flow, which is zeroed. Returns the end that sent the packet. */
static __always_inline __u32 fw_set_flow_key(const struct packet *packet, struct fw_flow_key *key)
{
	bool is_swapped;
	__u32 end;

	if (packet->source[3] != packet->destination[3])
		is_swapped = packet->source[3] > packet->destination[3];
	else if (packet->source[2] != packet->destination[2])
		is_swapped = packet->source[2] > packet->destination[2];
	else if (packet->source[1] != packet->destination[1])
		is_swapped = packet->source[1] > packet->destination[1];
	else if (packet->source[0] != packet->destination[0])
		is_swapped = packet->source[0] > packet->destination[0];
	else
		is_swapped = packet->source_port > packet->destination_port;
	end = is_swapped;

	if (is_swapped) {
		__builtin_memcpy(key->address[0], packet->destination, 16);
		__builtin_memcpy(key->address[1], packet->source, 16);
		key->port[0] = packet->destination_port;
		key->port[1] = packet->source_port;
	} else {
		__builtin_memcpy(key->address[0], packet->source, 16);
		__builtin_memcpy(key->address[1], packet->destination, 16);
		key->port[0] = packet->source_port;
		key->port[1] = packet->destination_port;
	}
	key->protocol = packet->protocol;
	return end;
}

static __always_inline __u32 fw_open_table_of(__u8 protocol)
{
	return protocol == IPPROTO_TCP ? FW_FLOWS_OPEN : FW_FLOWS_OPEN_DATAGRAMS;
}

static __always_inline bool fw_is_expired(const struct fw_flow *flow, __u8 protocol, __u32 table)
{
	struct fw_flow_limits *limits = only_element(&flow_limits);

	return !limits || flow->seen + fw_flow_timeout(flow, protocol, table, limits) <
				  bpf_ktime_get_coarse_ns();
}

static __always_inline void fw_match_flow(const struct fw_flow *flow, __u32 end,
					  struct fw_flow_match *match)
{
	match->own_next = end ? flow->next[1] : flow->next[0];
	match->own_acknowledged = end ? flow->acknowledged[1] : flow->acknowledged[0];
	match->other_next = end ? flow->next[0] : flow->next[1];
	match->other_acknowledged = end ? flow->acknowledged[0] : flow->acknowledged[1];
	match->is_initiator = end == flow->initiator;
	match->flags = flow->flags;
	match->stage = flow->stage;
	match->syn = flow->syn;
}

/*
 * Whether the packet leaves after the end of a flow that its receiver began and that was let in.
 * A late answer begins no flow: the other end would then answer it, and pass without a rule.
 */
static __always_inline bool fw_is_late_answer(const struct packet *packet,
					      const struct fw_flow *flow, __u32 end, __u32 table,
					      __u32 admitted)
{
	struct fw_flow_limits *limits = only_element(&flow_limits);

	if (!limits || !(admitted & FW_FLOW_ADMITTED_OUT) || flow->initiator == end ||
	    !(flow->flags & FW_FLOW_ADMITTED_IN))
		return false;
	if (packet->protocol == IPPROTO_TCP ? fw_is_only_syn(packet) : is_icmp(packet))
		return false;
	return flow->seen + fw_flow_timeout(flow, packet->protocol, table, limits) +
		       FW_LATE_ANSWER * NSEC_PER_SEC >=
	       bpf_ktime_get_coarse_ns();
}

/*
 * Looks up the flow of a packet, which is no other ICMP than an echo: 1 with *match filled, or 0 if
 * there is none. A global function, so that the verifier goes through it once.
 */
__noinline int fw_find_flow(struct packet *packet, struct fw_flow_match *match)
{
	struct fw_flow_key key = {};
	struct fw_flow *flow = NULL;
	__u32 end, table;
	void *inner;

	if (!packet || !match)
		return 0;
	table = fw_open_table_of(packet->protocol);
	inner = bpf_map_lookup_elem(&flows, &table);
	if (!inner)
		return 0;
	end = fw_set_flow_key(packet, &key);
	flow = bpf_map_lookup_elem(inner, &key);
	if (!flow) {
		table = FW_FLOWS_OPENING;
		inner = bpf_map_lookup_elem(&flows, &table);
		if (inner)
			flow = bpf_map_lookup_elem(inner, &key);
	}
	if (!flow || fw_is_expired(flow, packet->protocol, table))
		return 0;
	fw_match_flow(flow, end, match);
	return 1;
}

/* Whether it acknowledges the SYN that began the flow, with or without the data that came with
 * the SYN (RFC 7413). */
static __always_inline bool fw_acknowledges_syn(const struct packet *packet,
						const struct fw_flow_match *match)
{
	return packet->tcp_flags & TCP_ACK && packet->acknowledgment - match->other_acknowledged <=
						      match->other_next - match->other_acknowledged;
}

/*
 * Whether a RST has exactly the expected number. The one after data that is not acknowledged
 * yet has to acknowledge everything that the other end sent as well: otherwise a forged
 * segment could first move own_next to the number that the forged RST then has.
 */
static __always_inline bool fw_is_exact_reset(const struct packet *packet,
					      const struct fw_flow_match *match)
{
	if (match->stage != FW_FLOW_STARTED)
		return packet->sequence == match->other_acknowledged ||
		       (packet->sequence == match->own_next && packet->tcp_flags & TCP_ACK &&
			packet->acknowledgment == match->other_next);
	if (match->is_initiator)
		return packet->sequence == match->own_next;
	return match->flags & FW_FLOW_ADOPTED ? packet->sequence == match->other_acknowledged :
						fw_acknowledges_syn(packet, match);
}

/* Whether the packet's numbers fit the flow. */
static __always_inline bool fw_is_plausible(const struct packet *packet,
					    const struct fw_flow_match *match)
{
	if (packet->protocol != IPPROTO_TCP)
		return !is_icmp(packet) || match->is_initiator == packet->is_echo_request;
	/* Its RST may end an older connection that the other end still has, see below. */
	if (match->is_initiator && match->stage == FW_FLOW_STARTED)
		return true;
	if (packet->tcp_flags & TCP_RST)
		return fw_is_exact_reset(packet, match) ||
		       (match->stage != FW_FLOW_STARTED &&
			fw_is_near(packet->sequence, match->other_acknowledged));
	if (match->stage != FW_FLOW_STARTED)
		return true;
	if (match->flags & FW_FLOW_ADOPTED)
		return packet->tcp_flags & TCP_ACK &&
		       fw_is_near(packet->acknowledgment, match->other_next);
	if (packet->tcp_flags & TCP_SYN)
		return fw_acknowledges_syn(packet, match);
	if (match->flags & FW_FLOW_CROSSED && fw_acknowledges_syn(packet, match))
		return true;
	/* The other end may still have an older connection. It answers the SYN with a bare
	 * ACK, and the initiator ends that connection with a RST (RFC 5961, section 4). */
	return fw_is_only_ack(packet) && packet->transport_length == packet->tcp_header;
}

/* Whether a bare SYN meets that of a flow that was let out: RFC 9293, section 3.5. */
static __always_inline bool fw_crosses(struct packet *packet)
{
	struct fw_flow_match match = {};

	return fw_is_only_syn(packet) && fw_find_flow(packet, &match) && !match.is_initiator &&
	       match.stage == FW_FLOW_STARTED && match.flags & FW_FLOW_ADMITTED_OUT &&
	       !(match.flags & FW_FLOW_ADOPTED) && !fw_is_closed(match.flags);
}

/* Whether the packet proves that its sender has received what the other end sent. */
static __always_inline bool fw_is_proof(const struct packet *packet,
					const struct fw_flow_match *match)
{
	/* Both ends may ping each other with one identifier. */
	if (packet->protocol != IPPROTO_TCP)
		return !is_icmp(packet) || match->is_initiator == packet->is_echo_request;
	if (!(packet->tcp_flags & TCP_ACK) || packet->tcp_flags & TCP_RST)
		return false;
	if (match->flags & FW_FLOW_ADOPTED || match->stage != FW_FLOW_STARTED)
		return fw_is_near(packet->acknowledgment, match->other_next);
	return (packet->tcp_flags & TCP_SYN || match->flags & FW_FLOW_CROSSED) &&
	       fw_acknowledges_syn(packet, match);
}

/*
 * TCP: updates the numbers and marks of the entry. is_believed: this host sent the packet, so
 * its numbers need no proof.
 */
static __always_inline void fw_note_numbers(const struct packet *packet, struct fw_flow *flow,
					    const struct fw_flow_match *match, __u32 end,
					    bool is_believed)
{
	__u32 data = packet->transport_length - packet->tcp_header;
	__u32 next = packet->sequence + data + !!(packet->tcp_flags & TCP_SYN) +
		     !!(packet->tcp_flags & TCP_FIN);
	/* The responder has no numbers before its first packet. */
	bool is_new = !match->is_initiator && match->stage == FW_FLOW_STARTED;
	/* Until the answer, the number after its SYN is what the initiator has acknowledged. */
	bool is_early = match->is_initiator && match->stage == FW_FLOW_STARTED &&
			!(match->flags & FW_FLOW_ADOPTED);

	if (packet->tcp_flags & TCP_RST) {
		if (fw_is_exact_reset(packet, match))
			flow->flags |= FW_FLOW_RESET;
		return;
	}
	if (packet->tcp_flags & TCP_FIN && fw_is_near(packet->sequence, match->other_acknowledged))
		flow->flags |= end ? FW_FLOW_FIN_1 : FW_FLOW_FIN_0;
	if (is_new ||
	    (fw_sequence_distance(next, match->own_next) > 0 && fw_is_near(next, match->own_next)))
		flow->next[end] = next;
	if (packet->tcp_flags & TCP_ACK && !is_early &&
	    (is_new || (fw_sequence_distance(packet->acknowledgment, match->own_acknowledged) > 0 &&
			fw_is_near(packet->acknowledgment, match->own_acknowledged))))
		flow->acknowledged[end] = packet->acknowledgment;

	/* Before the answer the initiator's is the number after its own SYN. */
	if (is_new && !(match->flags & FW_FLOW_ADOPTED)) {
		flow->acknowledged[!end] = packet->sequence + 1;
	} else if (is_believed && match->is_initiator && match->stage == FW_FLOW_STARTED &&
		   packet->tcp_flags & TCP_ACK) {
		/* This host has received an answer that did not pass here. */
		flow->acknowledged[end] = packet->acknowledgment;
		flow->next[!end] = packet->acknowledgment;
		flow->acknowledged[!end] = packet->sequence;
	}
}

/* Whether a packet without an entry begins a flow. */
static __always_inline bool fw_may_begin(const struct packet *packet, __u32 track)
{
	if (packet->protocol != IPPROTO_TCP)
		return !is_icmp(packet) || packet->is_echo_request;
	return fw_is_only_syn(packet) || (track == FW_TRACK_ADOPT && fw_is_only_ack(packet));
}

/* Fills a zeroed entry. */
static __always_inline void fw_begin_flow(const struct packet *packet, __u32 end, __u8 admitted,
					  struct fw_flow *flow)
{
	flow->seen = bpf_ktime_get_coarse_ns();
	flow->initiator = end;
	flow->flags = admitted;
	flow->stage = FW_FLOW_STARTED;
	if (packet->protocol == IPPROTO_TCP) {
		__u32 data = packet->transport_length - packet->tcp_header;
		bool is_syn = packet->tcp_flags & TCP_SYN;
		__u32 next = packet->sequence + data + is_syn;
		__u32 acknowledged = is_syn ? packet->sequence + 1 : packet->acknowledgment;

		if (!is_syn)
			flow->flags |= FW_FLOW_ADOPTED;
		/* Not flow->next[end]: a write to the stack at a variable offset makes the
		 * verifier forget the whole array. */
		flow->next[0] = end ? 0 : next;
		flow->next[1] = end ? next : 0;
		flow->acknowledged[0] = end ? 0 : acknowledged;
		flow->acknowledged[1] = end ? acknowledged : 0;
	}
}

/* Fills a zeroed entry after the responder has answered a new SYN of the initiator. */
static __always_inline void fw_begin_anew(const struct packet *packet, __u32 end,
					  const struct fw_flow_match *match, __u8 initiator,
					  struct fw_flow *flow)
{
	__u32 next = packet->sequence + packet->transport_length - packet->tcp_header + 1;

	flow->seen = bpf_ktime_get_coarse_ns();
	flow->initiator = initiator;
	flow->flags = match->flags & FW_FLOW_ADMITTED;
	flow->stage = FW_FLOW_ANSWERED;
	flow->next[0] = end ? match->syn : next;
	flow->next[1] = end ? next : match->syn;
	flow->acknowledged[0] = end ? packet->sequence + 1 : match->syn;
	flow->acknowledged[1] = end ? match->syn : packet->sequence + 1;
}

/* The event that a packet is; match->stage is FW_FLOW_NO_ENTRY if it has no entry. */
static __always_inline enum fw_flow_event fw_event_of(const struct packet *packet, __u32 track,
						      const struct fw_flow_match *match)
{
	bool is_tcp = packet->protocol == IPPROTO_TCP, is_proof;

	if (match->stage == FW_FLOW_NO_ENTRY)
		return track != FW_TRACK_RENEW && fw_may_begin(packet, track) ? FW_EVENT_BEGINNING :
										FW_EVENT_OTHER;
	if (is_tcp && fw_is_only_syn(packet))
		return match->is_initiator ? FW_EVENT_BEGINNING : FW_EVENT_RESPONDER_SYN;
	if (is_tcp && !match->is_initiator && match->stage != FW_FLOW_STARTED && match->syn &&
	    (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == (TCP_SYN | TCP_ACK) &&
	    packet->acknowledgment == match->syn)
		return FW_EVENT_NEW_ANSWER;
	is_proof = fw_is_proof(packet, match);
	if (!match->is_initiator) {
		if (is_proof)
			return FW_EVENT_ANSWER;
		return is_tcp && !(packet->tcp_flags & TCP_RST) ? FW_EVENT_UNPROVEN :
								  FW_EVENT_OTHER;
	}
	if (is_tcp && track == FW_TRACK_OPEN &&
	    (packet->tcp_flags & (TCP_ACK | TCP_RST)) == TCP_ACK)
		return FW_EVENT_OWN_ACK;
	return is_proof ? FW_EVENT_CONFIRMATION : FW_EVENT_OTHER;
}

enum fw_tracked {
	FW_TRACKED_NOT,
	/* It has an entry, or must not have one. */
	FW_TRACKED,
	/* It has made one. */
	FW_TRACKED_BEGINNING,
};

/*
 * Writes the effect of a packet that passes on its flow. admitted is FW_FLOW_ADMITTED_IN or
 * FW_FLOW_ADMITTED_OUT, track is FW_TRACK_RENEW, OPEN or ADOPT. Returns an enum fw_tracked.
 */
__noinline int fw_track_flow(struct packet *packet, __u32 track, __u32 admitted)
{
	struct fw_flow_key key = {};
	struct fw_flow_match match = {};
	struct fw_flow *flow, written = {};
	__u32 end, table, opening_table = FW_FLOWS_OPENING;
	enum fw_flow_step step;
	void *open, *opening, *inner;

	if (!packet)
		return FW_TRACKED;
	table = fw_open_table_of(packet->protocol);
	open = bpf_map_lookup_elem(&flows, &table);
	opening = bpf_map_lookup_elem(&flows, &opening_table);
	if (!open || !opening)
		return FW_TRACKED;
	end = fw_set_flow_key(packet, &key) & 1;
	inner = open;
	flow = bpf_map_lookup_elem(open, &key);
	if (!flow) {
		table = FW_FLOWS_OPENING;
		inner = opening;
		flow = bpf_map_lookup_elem(opening, &key);
	}
	if (flow && fw_is_expired(flow, packet->protocol, table)) {
		if (fw_is_late_answer(packet, flow, end, table, admitted))
			return FW_TRACKED;
	} else if (flow && !(packet->protocol == IPPROTO_TCP && fw_is_only_syn(packet) &&
			     fw_is_closed(flow->flags))) {
		fw_match_flow(flow, end, &match);
	}
	keep_together(match);

	step = fw_step(fw_event_of(packet, track, &match), match.stage);
	if (step == FW_STEP_BEGIN) {
		if (flow && table != FW_FLOWS_OPENING)
			bpf_map_delete_elem(open, &key);
		fw_begin_flow(packet, end, (match.flags & FW_FLOW_ADMITTED) | admitted, &written);
		bpf_map_update_elem(opening, &key, &written, BPF_ANY);
		return FW_TRACKED_BEGINNING;
	}
	if (step == FW_STEP_IGNORE || !flow)
		return match.stage == FW_FLOW_NO_ENTRY ? FW_TRACKED_NOT : FW_TRACKED;
	if (step == FW_STEP_REMEMBER) {
		flow->syn = packet->sequence + packet->transport_length - packet->tcp_header + 1;
		return FW_TRACKED;
	}
	if (step == FW_STEP_CROSS) {
		flow->flags |= FW_FLOW_CROSSED;
		return FW_TRACKED;
	}
	if (step == FW_STEP_BEGIN_ANEW) {
		fw_begin_anew(packet, end, &match, flow->initiator, &written);
		/* Otherwise it may be another flow's initiator, and what was let in of that. */
		if (is_still(inner, &key, flow) &&
		    bpf_map_update_elem(opening, &key, &written, BPF_ANY) == 0 &&
		    table != FW_FLOWS_OPENING)
			bpf_map_delete_elem(open, &key);
		return FW_TRACKED;
	}

	if (packet->protocol == IPPROTO_TCP)
		fw_note_numbers(packet, flow, &match, end, track == FW_TRACK_OPEN);
	flow->seen = bpf_ktime_get_coarse_ns();
	if (match.is_initiator)
		flow->flags |= admitted;
	if (step == FW_STEP_ANSWER)
		flow->stage = FW_FLOW_ANSWERED;
	if (step == FW_STEP_CONFIRM)
		flow->stage = FW_FLOW_CONFIRMED;
	if (table == FW_FLOWS_OPENING && flow->stage == FW_FLOW_CONFIRMED) {
		written = *flow;
		if (is_still(opening, &key, flow) &&
		    bpf_map_update_elem(open, &key, &written, BPF_ANY) == 0)
			bpf_map_delete_elem(opening, &key);
	}
	return FW_TRACKED;
}

#endif
