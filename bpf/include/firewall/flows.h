/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tracked flows: what has left and may be answered, and what was let in and may
 * answer. find_flow() only looks; track_flow() writes.
 *
 * What the wire says is hostile. A flow stays in the table of those that are opening
 * until both ends have shown that they see each other's packets: answered, and the
 * answer answered; for TCP with acknowledgment numbers that only they can know. A
 * RST ends a flow only with the very sequence number that is expected (RFC 5961,
 * section 3), and begins none.
 */
#ifndef ZFW_FLOWS_H
#define ZFW_FLOWS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#include "firewall/abi.h"
#include "firewall/maps.h"
#include "parse.h"

#define SECOND_NS (1000ULL * 1000 * 1000)
/* How far from what was seen last a number is believed: the largest window that
 * Linux offers by itself (net.ipv4.tcp_rmem) is 6 MB. */
#define TCP_NEAR (8U << 20)

#define FLOW_ADMITTED (ZFW_FLOW_ADMITTED_IN | ZFW_FLOW_ADMITTED_OUT)
#define FLOW_FINS (ZFW_FLOW_FIN_0 | ZFW_FLOW_FIN_1)

/* A flow as a packet meets it: own is the end that sent the packet. */
struct flow_match {
	__u32 own_next;
	__u32 own_acknowledged;
	__u32 other_next;
	__u32 other_acknowledged;
	__u8 is_initiator; /* the packet's sender */
	__u8 flags; /* enum zfw_flow_flag */
	__u8 stage; /* enum zfw_flow_stage */
	__u8 pad;
};

/* Are there tables of flows at all? */
static __always_inline bool has_flow_tables(void)
{
	__u32 table = ZFW_FLOWS_OPENING;

	return bpf_map_lookup_elem(&flows, &table);
}

/* a - b, of sequence numbers; RFC 9293, section 3.4. */
static __always_inline __s32 sequence_distance(__u32 a, __u32 b)
{
	return (__s32)(a - b);
}

static __always_inline bool is_near(__u32 a, __u32 b)
{
	return a - b + TCP_NEAR <= 2 * TCP_NEAR;
}

static __always_inline bool is_only_syn(const struct zfw_packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

static __always_inline bool is_only_ack(const struct zfw_packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_ACK;
}

/* The key of a packet's flow; which end sent the packet. */
static __always_inline __u32 flow_key(const struct zfw_packet *packet, struct zfw_flow_key *key)
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

static __always_inline __u32 open_table_of(__u8 protocol)
{
	return protocol == IPPROTO_TCP ? ZFW_FLOWS_OPEN : ZFW_FLOWS_OPEN_DATAGRAMS;
}

static __always_inline bool is_expired(const struct zfw_flow *flow, __u8 protocol, __u32 table)
{
	__u32 zero = 0;
	struct zfw_flow_limits *limits = bpf_map_lookup_elem(&flow_limits, &zero);
	__u64 idle;

	if (!limits)
		return true;
	if (protocol != IPPROTO_TCP)
		idle = limits->udp_idle;
	else if (flow->flags & ZFW_FLOW_RESET)
		idle = ZFW_TCP_RESET_IDLE * SECOND_NS;
	else if ((flow->flags & FLOW_FINS) == FLOW_FINS)
		idle = ZFW_TCP_CLOSING_IDLE * SECOND_NS;
	else if (table == ZFW_FLOWS_OPENING)
		idle = ZFW_TCP_OPENING_IDLE * SECOND_NS;
	else
		idle = limits->tcp_idle;
	return flow->seen + idle < bpf_ktime_get_coarse_ns();
}

static __always_inline bool is_closed(__u8 flags)
{
	return flags & ZFW_FLOW_RESET || (flags & FLOW_FINS) == FLOW_FINS;
}

static __always_inline void match_flow(const struct zfw_flow *flow, __u32 end,
				       struct flow_match *match)
{
	match->own_next = end ? flow->next[1] : flow->next[0];
	match->own_acknowledged = end ? flow->acknowledged[1] : flow->acknowledged[0];
	match->other_next = end ? flow->next[0] : flow->next[1];
	match->other_acknowledged = end ? flow->acknowledged[0] : flow->acknowledged[1];
	match->is_initiator = end == flow->initiator;
	match->flags = flow->flags;
	match->stage = flow->stage;
}

/*
 * The flow that a packet of TCP, UDP or ICMP echo belongs to goes to match: 1, or
 * 0 where there is none. A global function: see match_lengths().
 */
__noinline int find_flow(struct zfw_packet *packet, struct flow_match *match)
{
	struct zfw_flow_key key = {};
	struct zfw_flow *flow = NULL;
	__u32 end, table;
	void *inner;

	if (!packet || !match)
		return 0;
	table = open_table_of(packet->protocol);
	inner = bpf_map_lookup_elem(&flows, &table);
	if (!inner)
		return 0; /* nothing is tracked */
	end = flow_key(packet, &key);
	flow = bpf_map_lookup_elem(inner, &key);
	if (!flow) {
		table = ZFW_FLOWS_OPENING;
		inner = bpf_map_lookup_elem(&flows, &table);
		if (inner)
			flow = bpf_map_lookup_elem(inner, &key);
	}
	if (!flow || is_expired(flow, packet->protocol, table))
		return 0;
	match_flow(flow, end, match);
	return 1;
}

/* Does it acknowledge the SYN that began the flow, and what came with it (RFC 7413)? */
static __always_inline bool acknowledges_syn(const struct zfw_packet *packet,
					     const struct flow_match *match)
{
	return packet->tcp_flags & TCP_ACK && packet->acknowledgment - match->other_acknowledged <=
						      match->other_next - match->other_acknowledged;
}

/* Is this RST's number the very one that is expected? What follows data that is not
 * acknowledged yet has to acknowledge all that the other end sent: without that, a blind
 * segment would move own_next to where the RST after it wants it. */
static __always_inline bool is_exact_reset(const struct zfw_packet *packet,
					   const struct flow_match *match)
{
	if (match->stage != ZFW_FLOW_STARTED)
		return packet->sequence == match->other_acknowledged ||
		       (packet->sequence == match->own_next && packet->tcp_flags & TCP_ACK &&
			packet->acknowledgment == match->other_next);
	if (match->is_initiator)
		return packet->sequence == match->own_next;
	return match->flags & ZFW_FLOW_ADOPTED ? packet->sequence == match->other_acknowledged :
						 acknowledges_syn(packet, match);
}

/* Could this packet be of this flow, as far as what it numbers goes? */
static __always_inline bool is_plausible(const struct zfw_packet *packet,
					 const struct flow_match *match)
{
	if (packet->protocol == IPPROTO_UDP)
		return true;
	if (packet->protocol != IPPROTO_TCP)
		return match->is_initiator == packet->is_echo_request;
	/* Its RST may end an older connection of the other end, see below. */
	if (match->is_initiator && match->stage == ZFW_FLOW_STARTED)
		return true;
	if (packet->tcp_flags & TCP_RST)
		return is_exact_reset(packet, match) ||
		       (match->stage != ZFW_FLOW_STARTED &&
			is_near(packet->sequence, match->other_acknowledged));
	if (match->stage != ZFW_FLOW_STARTED)
		return true;
	if (match->flags & ZFW_FLOW_ADOPTED)
		return packet->tcp_flags & TCP_ACK &&
		       is_near(packet->acknowledgment, match->other_next);
	if (packet->tcp_flags & TCP_SYN)
		return acknowledges_syn(packet, match);
	/* The other end may still have an older connection. It says so with a bare
	 * ACK, which the initiator answers with the RST that ends that one. */
	return is_only_ack(packet) && packet->transport_length == packet->tcp_header;
}

/* Does this packet show that its sender has seen what the other end sent? */
static __always_inline bool is_proof(const struct zfw_packet *packet,
				     const struct flow_match *match)
{
	if (packet->protocol == IPPROTO_UDP)
		return true;
	/* Both ends may ask, with one identifier. */
	if (packet->protocol != IPPROTO_TCP)
		return match->is_initiator == packet->is_echo_request;
	if (!(packet->tcp_flags & TCP_ACK) || packet->tcp_flags & TCP_RST)
		return false;
	if (match->flags & ZFW_FLOW_ADOPTED || match->stage != ZFW_FLOW_STARTED)
		return is_near(packet->acknowledgment, match->other_next);
	return packet->tcp_flags & TCP_SYN && acknowledges_syn(packet, match);
}

/* TCP: what the flow knows of its ends' numbers after this packet, which this host
 * sends if it is believed. */
static __always_inline void note_numbers(const struct zfw_packet *packet, struct zfw_flow *flow,
					 const struct flow_match *match, __u32 end,
					 bool is_believed)
{
	__u32 data = packet->transport_length - packet->tcp_header;
	__u32 next = packet->sequence + data + !!(packet->tcp_flags & TCP_SYN) +
		     !!(packet->tcp_flags & TCP_FIN);
	/* An end whose first packet this is has no numbers yet. */
	bool is_new = !match->is_initiator && match->stage == ZFW_FLOW_STARTED;

	if (packet->tcp_flags & TCP_RST) {
		if (is_exact_reset(packet, match))
			flow->flags |= ZFW_FLOW_RESET;
		return;
	}
	if (packet->tcp_flags & TCP_FIN && is_near(packet->sequence, match->other_acknowledged))
		flow->flags |= end ? ZFW_FLOW_FIN_1 : ZFW_FLOW_FIN_0;
	if (is_new ||
	    (sequence_distance(next, match->own_next) > 0 && is_near(next, match->own_next)))
		flow->next[end] = next;
	if (packet->tcp_flags & TCP_ACK &&
	    (is_new || (sequence_distance(packet->acknowledgment, match->own_acknowledged) > 0 &&
			is_near(packet->acknowledgment, match->own_acknowledged))))
		flow->acknowledged[end] = packet->acknowledgment;

	/* Until here the initiator's was the number after its own SYN. */
	if (is_new && !(match->flags & ZFW_FLOW_ADOPTED)) {
		flow->acknowledged[!end] = packet->sequence + 1;
	} else if (is_believed && match->is_initiator && match->stage == ZFW_FLOW_STARTED &&
		   packet->tcp_flags & TCP_ACK) {
		/* This host has seen an answer that we have not. */
		flow->acknowledged[end] = packet->acknowledgment;
		flow->next[!end] = packet->acknowledgment;
		flow->acknowledged[!end] = packet->sequence;
	}
}

static __always_inline bool may_begin(const struct zfw_packet *packet, __u32 track)
{
	if (packet->protocol == IPPROTO_UDP)
		return true;
	if (packet->protocol != IPPROTO_TCP)
		return packet->is_echo_request;
	return is_only_syn(packet) || (track == ZFW_TRACK_ADOPT && is_only_ack(packet));
}

static __always_inline void begin_flow(const struct zfw_packet *packet, void *opening,
				       const struct zfw_flow_key *key, __u32 end, __u8 admitted)
{
	struct zfw_flow flow = {
		.seen = bpf_ktime_get_coarse_ns(),
		.initiator = end,
		.flags = admitted,
		.stage = ZFW_FLOW_STARTED,
	};

	if (packet->protocol == IPPROTO_TCP) {
		__u32 data = packet->transport_length - packet->tcp_header;
		bool is_syn = packet->tcp_flags & TCP_SYN;
		__u32 next = packet->sequence + data + is_syn;

		if (!is_syn)
			flow.flags |= ZFW_FLOW_ADOPTED;
		/* Not flow.next[end]: the verifier has no place for that. */
		flow.next[0] = end ? 0 : next;
		flow.next[1] = end ? next : 0;
		if (is_syn) {
			flow.acknowledged[0] = end ? 0 : packet->sequence + 1;
			flow.acknowledged[1] = end ? packet->sequence + 1 : 0;
		} else {
			flow.acknowledged[0] = end ? 0 : packet->acknowledgment;
			flow.acknowledged[1] = end ? packet->acknowledgment : 0;
		}
	}
	bpf_map_update_elem(opening, key, &flow, BPF_ANY);
}

/* The initiator of an open flow has begun anew, as after a restart, and this answers it. */
static __always_inline bool answers_new_syn(const struct zfw_packet *packet,
					    const struct zfw_flow *flow,
					    const struct flow_match *match)
{
	return !match->is_initiator && match->stage != ZFW_FLOW_STARTED && flow->syn &&
	       (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) ==
		       (TCP_SYN | TCP_ACK) &&
	       packet->acknowledgment == flow->syn;
}

static __always_inline void begin_anew(const struct zfw_packet *packet, const struct zfw_flow *flow,
				       __u32 end, struct zfw_flow *anew)
{
	__u32 next = packet->sequence + packet->transport_length - packet->tcp_header + 1;

	anew->seen = bpf_ktime_get_coarse_ns();
	anew->initiator = flow->initiator;
	anew->flags = flow->flags & FLOW_ADMITTED;
	anew->stage = ZFW_FLOW_ANSWERED;
	anew->next[0] = end ? flow->syn : next;
	anew->next[1] = end ? next : flow->syn;
	anew->acknowledged[0] = end ? packet->sequence + 1 : flow->syn;
	anew->acknowledged[1] = end ? flow->syn : packet->sequence + 1;
}

/*
 * What was decided for a packet, for the flow that it belongs to. admitted is
 * ZFW_FLOW_ADMITTED_IN or _OUT, track an enum zfw_track other than none. Returns 0.
 */
__noinline int track_flow(struct zfw_packet *packet, __u32 track, __u32 admitted)
{
	struct zfw_flow_key key = {};
	struct flow_match match = {};
	struct zfw_flow *flow, moved = {};
	__u32 end, table, opening_table = ZFW_FLOWS_OPENING;
	void *open, *opening;

	if (!packet)
		return 0;
	table = open_table_of(packet->protocol);
	open = bpf_map_lookup_elem(&flows, &table);
	opening = bpf_map_lookup_elem(&flows, &opening_table);
	if (!open || !opening)
		return 0;
	end = flow_key(packet, &key) & 1;
	flow = bpf_map_lookup_elem(open, &key);
	if (!flow) {
		table = ZFW_FLOWS_OPENING;
		flow = bpf_map_lookup_elem(opening, &key);
	}
	if (!flow || is_expired(flow, packet->protocol, table) ||
	    (packet->protocol == IPPROTO_TCP && is_only_syn(packet) && is_closed(flow->flags))) {
		if (track == ZFW_TRACK_RENEW || !may_begin(packet, track))
			return 0;
		if (flow && table != ZFW_FLOWS_OPENING)
			bpf_map_delete_elem(open, &key);
		begin_flow(packet, opening, &key, end, admitted);
		return 0;
	}

	match_flow(flow, end, &match);
	if (packet->protocol == IPPROTO_TCP) {
		/* A SYN sent again, perhaps with another number. */
		if (is_only_syn(packet)) {
			if (match.is_initiator && match.stage == ZFW_FLOW_STARTED)
				begin_flow(packet, opening, &key, end,
					   (match.flags & FLOW_ADMITTED) | admitted);
			else if (match.is_initiator)
				flow->syn = packet->sequence + packet->transport_length -
					    packet->tcp_header + 1;
			return 0;
		}
		if (answers_new_syn(packet, flow, &match)) {
			begin_anew(packet, flow, end, &moved);
			if (bpf_map_update_elem(opening, &key, &moved, BPF_ANY) == 0 &&
			    table != ZFW_FLOWS_OPENING)
				bpf_map_delete_elem(open, &key);
			return 0;
		}
		if (!match.is_initiator && match.stage == ZFW_FLOW_STARTED &&
		    !(packet->tcp_flags & TCP_RST) && !is_proof(packet, &match))
			return 0;
		note_numbers(packet, flow, &match, end, track == ZFW_TRACK_OPEN);
	}
	flow->seen = bpf_ktime_get_coarse_ns();
	if (match.is_initiator) {
		flow->flags |= admitted;
		/* This host's own TCP acknowledges only what it has seen. */
		if (track == ZFW_TRACK_OPEN && packet->protocol == IPPROTO_TCP &&
		    (packet->tcp_flags & (TCP_ACK | TCP_RST)) == TCP_ACK)
			flow->stage = ZFW_FLOW_CONFIRMED;
		else if (match.stage == ZFW_FLOW_ANSWERED && is_proof(packet, &match))
			flow->stage = ZFW_FLOW_CONFIRMED;
	} else if (match.stage == ZFW_FLOW_STARTED && is_proof(packet, &match)) {
		flow->stage = ZFW_FLOW_ANSWERED;
	}
	if (table == ZFW_FLOWS_OPENING && flow->stage == ZFW_FLOW_CONFIRMED) {
		moved = *flow;
		if (bpf_map_update_elem(open, &key, &moved, BPF_ANY) == 0)
			bpf_map_delete_elem(opening, &key);
	}
	return 0;
}

#endif
