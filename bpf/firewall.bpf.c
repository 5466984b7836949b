// SPDX-License-Identifier: GPL-2.0-only
/*
 * The firewall: its programs first decide, then act.
 *
 * fw_decide_ingress() and fw_decide_egress() decide on a packet and change nothing. "ingress" and
 * "egress" carry the decision out. "explain_ingress" and "explain_egress" only return it, through
 * BPF_PROG_TEST_RUN: so tests and `zfw explain` run the code that runs on the wire. "deliver" is
 * run by the kernel for a packet without a socket: firewall/deliver.h.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "common/counters.h"
#include "common/maps.h"
#include "common/packet.h"
#include "common/verifier.h"
#include "firewall/abi.h"
#include "firewall/deliver.h"
#include "firewall/devices.h"
#include "firewall/egress.h"
#include "firewall/flows.h"
#include "firewall/fragments.h"
#include "firewall/ingress.h"
#include "firewall/listeners.h"
#include "firewall/maps.h"
#include "firewall/tracking.h"
#include "firewall/verdict.h"

static __always_inline void fw_count_reason(__u32 reason, __u32 bytes)
{
	if (reason < FW_FIRST_REASONS)
		count_packet(&reasons, reason, bytes);
	else
		count_packet(&added_reasons, reason - FW_FIRST_REASONS, bytes);
}

static __always_inline void fw_count(const struct __sk_buff *skb,
				     const struct fw_decision *decision)
{
	__u32 segment;
	void *counters;

	fw_count_reason(decision->reason, skb->len);
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
static __always_inline int fw_finish(struct __sk_buff *skb, struct packet *packet, bool is_leaving,
				     const struct fw_decision *decision)
{
	/* A clone without its socket, or a packet of a connection whose local route is gone, could
	 * be forwarded to the destination that the listener stands for: "egress" drops it. */
	if (!is_leaving && (decision->reason == FW_REASON_RULE_INTERCEPT ||
			    decision->reason == FW_REASON_ESTABLISHED))
		skb->tc_index = FW_OWN_PACKET;
	if (packet->fragment == PKT_FRAGMENT_FIRST)
		fw_remember_fragment(skb, packet, is_leaving, decision);
	fw_count(skb, decision);
	return decision->verdict == FW_VERDICT_DROP ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

/* "deliver" leaves interfaces alone that this program is not attached to. */
static __always_inline void fw_note_attached(__u32 ifindex)
{
	__u32 row = ifindex % FW_INTERFACE_ROWS;
	struct fw_interface *known = bpf_map_lookup_elem(&interfaces, &row);

	if (known && known->ifindex == ifindex && !(known->link_flags & FW_LINK_ATTACHED))
		known->link_flags |= FW_LINK_ATTACHED;
}

/* Whether a device above the interface may take a packet from its socket. The kernel finds the
 * socket of a connection itself, unless the packet is a SYN that ends its TIME_WAIT. */
static __always_inline bool fw_may_be_taken(const struct __sk_buff *skb,
					    const struct packet *packet,
					    const struct fw_decision *decision)
{
	return decision->reason == FW_REASON_RULE_INTERCEPT ||
	       (decision->reason == FW_REASON_ESTABLISHED &&
		(skb->pkt_type != PACKET_HOST || fw_is_only_syn(packet)));
}

static __always_inline void fw_keep(struct __sk_buff *skb, struct packet *packet,
				    struct fw_decision *decision)
{
	bool is_intercepted = decision->reason == FW_REASON_RULE_INTERCEPT;
	int receiver = fw_keep_frame(skb, packet, is_intercepted);

	if (is_intercepted && receiver != FW_RECEIVER_HOST)
		fw_decide(decision, FW_VERDICT_DROP,
			  receiver == FW_RECEIVER_OTHER ? FW_REASON_OTHER_HOST :
							  FW_REASON_MISROUTED);
}

SEC("tc")
int ingress(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct fw_decision decision = {};
	struct bpf_sock *sk;

	fw_note_attached(skb->ifindex);
	sk = fw_decide_ingress(skb, &packet, &decision, false);
	if (sk) {
		/* Reassembly forgets it, and the whole datagram is for "deliver". */
		long error = packet.fragment == PKT_FRAGMENT_NONE ? bpf_sk_assign(skb, sk, 0) : 0;

		fw_mirror_new_listener(sk, &packet);
		bpf_sk_release(sk);
		/* Without its socket the packet would go to any other listener on its address. */
		if (error)
			fw_decide(&decision, FW_VERDICT_DROP, FW_REASON_ASSIGN_FAILED);
	}
	if (fw_may_be_taken(skb, &packet, &decision))
		fw_keep(skb, &packet, &decision);
	keep_together(decision);
	fw_track(skb, &packet, &decision, FW_FLOW_ADMITTED_IN);
	return fw_finish(skb, &packet, false, &decision);
}

/* Since Linux 5.17 (f89315650ba3) a look-up shows the interface that the packet arrived by. */
SEC("sk_lookup")
int deliver(struct bpf_sk_lookup *ctx)
{
	struct fw_decision decision;
	int verdict;

	if (!bpf_core_field_exists(ctx->ingress_ifindex) || !fw_may_have_been_seen(ctx))
		return SK_PASS;
	__builtin_memset(&decision, 0, sizeof(decision));
	decision.reason = FW_REASONS;
	verdict = fw_deliver(ctx, &decision);
	if (decision.reason != FW_REASONS)
		fw_count_reason(decision.reason, 0);
	return verdict;
}

SEC("tc")
int egress(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct fw_decision decision = {};

	fw_decide_egress(skb, &packet, &decision, false);
	fw_track(skb, &packet, &decision, FW_FLOW_ADMITTED_OUT);
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

/*
 * What a decision notes in "cpus" for the CPU's next packet is kept meanwhile in cb, since the
 * stack has no room, and put back: so nothing is left of an explained packet.
 */
static __always_inline void fw_keep_notes(struct __sk_buff *skb)
{
	struct fw_cpu *cpu = only_element(&cpus);

	if (!cpu)
		return;
	skb->cb[0] = cpu->looked_up;
	skb->cb[1] = cpu->looked_up >> 32;
	skb->cb[2] = cpu->listener;
	skb->cb[3] = cpu->new_port;
}

static __always_inline void fw_put_notes_back(const struct __sk_buff *skb)
{
	struct fw_cpu *cpu = only_element(&cpus);

	if (!cpu)
		return;
	cpu->looked_up = (__u64)skb->cb[1] << 32 | skb->cb[0];
	cpu->listener = skb->cb[2];
	cpu->new_port = skb->cb[3];
}

SEC("tc")
int explain_ingress(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct fw_decision decision = {};
	struct bpf_sock *sk;

	fw_keep_notes(skb);
	sk = fw_decide_ingress(skb, &packet, &decision, true);
	if (sk)
		bpf_sk_release(sk);
	fw_put_notes_back(skb);
	return fw_write_down(skb, &decision);
}

SEC("tc")
int explain_egress(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct fw_decision decision = {};

	fw_decide_egress(skb, &packet, &decision, true);
	return fw_write_down(skb, &decision);
}

char LICENSE[] SEC("license") = "GPL";
