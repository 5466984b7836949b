// SPDX-License-Identifier: GPL-2.0-only
/*
 * The firewall: its programs first decide, then act.
 *
 * fw_decide_ingress() and fw_decide_egress() decide on a packet and change nothing. "ingress" and
 * "egress" carry the decision out. "explain_ingress" and "explain_egress" only return it, through
 * BPF_PROG_TEST_RUN: so tests and `zfw explain` run the code that runs on the wire.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "common/counters.h"
#include "common/packet.h"
#include "firewall/abi.h"
#include "firewall/egress.h"
#include "firewall/flows.h"
#include "firewall/fragments.h"
#include "firewall/ingress.h"
#include "firewall/maps.h"
#include "firewall/tracking.h"
#include "firewall/verdict.h"

static __always_inline void fw_count(const struct __sk_buff *skb,
				     const struct fw_decision *decision)
{
	__u32 segment;
	void *counters;

	if (decision->reason < FW_FIRST_REASONS)
		count_packet(&reasons, decision->reason, skb->len);
	else
		count_packet(&added_reasons, decision->reason - FW_FIRST_REASONS, skb->len);
	if (decision->slot == FW_NO_SLOT)
		return;
	segment = decision->slot / FW_SEGMENT_SLOTS;
	counters = bpf_map_lookup_elem(&rule_counters, &segment);
	if (counters)
		count_packet(counters, decision->slot % FW_SEGMENT_SLOTS, skb->len);
}

/*
 * TC_ACT_UNSPEC lets filters behind this one see the packet, with clsact as with TCX (where the
 * same number is called TCX_NEXT).
 */
static __always_inline int fw_finish(const struct __sk_buff *skb, const struct packet *packet,
				     bool is_leaving, const struct fw_decision *decision)
{
	if (packet->fragment == PKT_FRAGMENT_FIRST)
		fw_remember_fragment(skb, packet, is_leaving, decision);
	fw_count(skb, decision);
	return decision->verdict == FW_VERDICT_DROP ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("tc")
int ingress(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct fw_decision decision = {};
	struct bpf_sock *sk = fw_decide_ingress(skb, &packet, &decision);

	if (sk) {
		long error = bpf_sk_assign(skb, sk, 0);

		bpf_sk_release(sk);
		/* Without its socket the packet would go to any other listener on its address. */
		if (error)
			fw_decide(&decision, FW_VERDICT_DROP, FW_REASON_ASSIGN_FAILED);
	}
	if (decision.track != FW_TRACK_NONE && decision.verdict != FW_VERDICT_DROP)
		fw_track(skb, &packet, decision.track, FW_FLOW_ADMITTED_IN);
	return fw_finish(skb, &packet, false, &decision);
}

SEC("tc")
int egress(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct fw_decision decision = {};

	fw_decide_egress(skb, &packet, &decision);
	if (decision.track != FW_TRACK_NONE && decision.verdict != FW_VERDICT_DROP)
		fw_track(skb, &packet, decision.track, FW_FLOW_ADMITTED_OUT);
	return fw_finish(skb, &packet, true, &decision);
}

static __always_inline int fw_write_down(struct __sk_buff *skb, const struct fw_decision *decision)
{
	skb->cb[0] = decision->verdict;
	skb->cb[1] = decision->reason;
	skb->cb[2] = decision->slot;
	skb->cb[3] = decision->track;
	return 0;
}

SEC("tc")
int explain_ingress(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct fw_decision decision = {};
	struct bpf_sock *sk = fw_decide_ingress(skb, &packet, &decision);

	if (sk)
		bpf_sk_release(sk);
	return fw_write_down(skb, &decision);
}

SEC("tc")
int explain_egress(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct fw_decision decision = {};

	fw_decide_egress(skb, &packet, &decision);
	return fw_write_down(skb, &decision);
}

char LICENSE[] SEC("license") = "GPL";
