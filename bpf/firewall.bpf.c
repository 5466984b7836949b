// SPDX-License-Identifier: GPL-2.0-only
/*
 * The interception firewall: decide, then act.
 *
 * decide_ingress() and decide_egress() say what becomes of a packet and have no
 * effect. "ingress" and "egress" carry their answers out; "explain_ingress" and
 * "explain_egress" write them down for BPF_PROG_TEST_RUN, so that tests and people
 * ask the very code that runs on the wire.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "firewall/abi.h"
#include "firewall/egress.h"
#include "firewall/flows.h"
#include "firewall/ingress.h"
#include "firewall/maps.h"

static __always_inline void add(struct zfw_counter *counter, __u32 bytes)
{
	counter->packets++;
	counter->bytes += bytes;
}

static __always_inline void count(const struct __sk_buff *skb, const struct zfw_decision *decision)
{
	__u32 reason = decision->reason;
	struct zfw_counter *counter = bpf_map_lookup_elem(&reasons, &reason);
	__u32 segment, slot;
	void *counters;

	if (counter)
		add(counter, skb->len);
	if (decision->slot == ZFW_NO_SLOT)
		return;
	segment = decision->slot / ZFW_SEGMENT_SLOTS;
	slot = decision->slot % ZFW_SEGMENT_SLOTS;
	counters = bpf_map_lookup_elem(&rule_counters, &segment);
	if (!counters)
		return;
	counter = bpf_map_lookup_elem(counters, &slot);
	if (counter)
		add(counter, skb->len);
}

/*
 * TC_ACT_UNSPEC lets filters behind ours see the packet, with clsact as with
 * TCX (where the same number is called TCX_NEXT).
 */
static __always_inline int finish(const struct __sk_buff *skb, const struct zfw_packet *packet,
				  bool is_leaving, const struct zfw_decision *decision)
{
	if (packet->fragment == ZFW_FRAGMENT_FIRST)
		remember_fragment(skb, packet, is_leaving, decision);
	count(skb, decision);
	return decision->verdict == ZFW_VERDICT_DROP ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("tc")
int ingress(struct __sk_buff *skb)
{
	struct zfw_packet packet = {};
	struct zfw_decision decision = {};
	struct bpf_sock *sk = decide_ingress(skb, &packet, &decision);

	if (sk) {
		long error = bpf_sk_assign(skb, sk, 0);

		bpf_sk_release(sk);
		/* It must not go to whoever else listens. */
		if (error)
			decided(&decision, ZFW_VERDICT_DROP, ZFW_REASON_ASSIGN_FAILED);
	}
	if (decision.track != ZFW_TRACK_NONE && decision.verdict != ZFW_VERDICT_DROP)
		track_flow(&packet, decision.track, ZFW_FLOW_ADMITTED_IN);
	return finish(skb, &packet, false, &decision);
}

SEC("tc")
int egress(struct __sk_buff *skb)
{
	struct zfw_packet packet = {};
	struct zfw_decision decision = {};

	decide_egress(skb, &packet, &decision);
	if (decision.track != ZFW_TRACK_NONE && decision.verdict != ZFW_VERDICT_DROP)
		track_flow(&packet, decision.track, ZFW_FLOW_ADMITTED_OUT);
	return finish(skb, &packet, true, &decision);
}

static __always_inline int write_down(struct __sk_buff *skb, const struct zfw_decision *decision)
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
	struct zfw_packet packet = {};
	struct zfw_decision decision = {};
	struct bpf_sock *sk = decide_ingress(skb, &packet, &decision);

	if (sk)
		bpf_sk_release(sk);
	return write_down(skb, &decision);
}

SEC("tc")
int explain_egress(struct __sk_buff *skb)
{
	struct zfw_packet packet = {};
	struct zfw_decision decision = {};

	decide_egress(skb, &packet, &decision);
	return write_down(skb, &decision);
}

char LICENSE[] SEC("license") = "GPL";
