/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The states of a tracked flow: the table of transitions, which drives fw_track_flow(), and the
 * timeouts.
 *
 *             beginning           answer           confirmation, own ACK
 *   no entry ------------> started -----> answered ---------------------> confirmed
 *                          |  ^  |        |  ^   ^                         ^   |
 *                          +--+  |        +--+   +------ new answer -------|---+
 *                       beginning|     new answer                          |
 *                                +----------------- own ACK ---------------+
 *
 * The entry moves from the table of opening flows to that of open ones when the flow becomes
 * confirmed, and back when a new SYN is answered. Two marks override the state: a flow is
 * "closing" after both ends have sent FIN, and "reset" after an exact RST. A marked flow has a
 * shorter timeout. Where the SYNs of both ends cross (RFC 9293, section 3.5), the responder may
 * answer by any segment that acknowledges the initiator's. A bare SYN treats a marked flow like a
 * flow whose timeout is over: as no entry.
 *
 * The tests named test_flow_states.py compare the reference model with this table, and the
 * program with the model, in each state with each kind of packet.
 */
#ifndef FIREWALL_FLOW_STATES_H
#define FIREWALL_FLOW_STATES_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#include "common/time.h"
#include "firewall/abi.h"

#define FW_FLOW_ADMITTED (FW_FLOW_ADMITTED_IN | FW_FLOW_ADMITTED_OUT)
#define FW_FLOW_FINS (FW_FLOW_FIN_0 | FW_FLOW_FIN_1)

/* The state of a flow that has no entry; the other states are enum fw_flow_stage. */
#define FW_FLOW_NO_ENTRY 0

/* The steps: the effects of a packet on its flow's entry. */
enum fw_flow_step {
	FW_STEP_IGNORE, /* nothing, the timeout goes on */
	FW_STEP_RENEW, /* notes the packet's numbers and marks, restarts the timeout */
	FW_STEP_BEGIN, /* writes a new entry: started */
	FW_STEP_REMEMBER, /* notes the number of the SYN, the timeout goes on */
	FW_STEP_BEGIN_ANEW, /* writes a new entry of the same initiator: answered */
	FW_STEP_ANSWER, /* as RENEW; then answered */
	FW_STEP_CONFIRM, /* as RENEW; then confirmed */
	FW_STEP_CROSS, /* marks the flow as crossed, the timeout goes on */
};

/* A row of the table: the step in each state. */
#define FW_ROW(no_entry, started, answered, confirmed)                                             \
	(FW_STEP_##no_entry | FW_STEP_##started << 4 | FW_STEP_##answered << 8 |                   \
	 FW_STEP_##confirmed << 12)

/*
 * The table. The value of an event is its row. Proof means that the packet shows that its
 * sender has received what the other end sent, see fw_is_proof(); every datagram is proof.
 */
/* clang-format off */
enum fw_flow_event {
	/* The first packet of a flow, or a bare SYN of the initiator. */
	/*                               no entry, started, answered,   confirmed */
	FW_EVENT_BEGINNING     = FW_ROW(BEGIN,     BEGIN,   REMEMBER,   REMEMBER),

	/* The responder: a bare SYN; a SYN-ACK to the initiator's new SYN; proof; TCP without
	 * proof. */
	FW_EVENT_RESPONDER_SYN = FW_ROW(IGNORE,    CROSS,   IGNORE,     IGNORE),
	FW_EVENT_NEW_ANSWER    = FW_ROW(IGNORE,    IGNORE,  BEGIN_ANEW, BEGIN_ANEW),
	FW_EVENT_ANSWER        = FW_ROW(IGNORE,    ANSWER,  RENEW,      RENEW),
	FW_EVENT_UNPROVEN      = FW_ROW(IGNORE,    IGNORE,  RENEW,      RENEW),

	/* The initiator: proof; an ACK of this host, whose TCP acknowledges only what it has
	 * received. */
	FW_EVENT_CONFIRMATION  = FW_ROW(IGNORE,    RENEW,   CONFIRM,    RENEW),
	FW_EVENT_OWN_ACK       = FW_ROW(IGNORE,    CONFIRM, CONFIRM,    RENEW),

	/* Everything else, and a RST of either end. */
	FW_EVENT_OTHER         = FW_ROW(IGNORE,    RENEW,   RENEW,      RENEW),
};
/* clang-format on */

static __always_inline enum fw_flow_step fw_step(enum fw_flow_event event, __u32 stage)
{
	return event >> 4 * (stage & 3) & 15;
}

static __always_inline bool fw_is_closed(__u8 flags)
{
	return flags & FW_FLOW_RESET || (flags & FW_FLOW_FINS) == FW_FLOW_FINS;
}

/*
 * The timeouts, without a packet:
 *
 *   TCP  reset                FW_TCP_RESET_IDLE
 *        closing              FW_TCP_CLOSING_IDLE
 *        started, answered    FW_TCP_OPENING_IDLE
 *        confirmed            fw_flow_limits.tcp_idle
 *   UDP, ICMP echo            fw_flow_limits.udp_idle
 *   other protocols           FW_OTHER_IDLE
 *
 * table: where the entry lies; it is FW_FLOWS_OPENING until the flow is confirmed.
 */
static __always_inline __u64 fw_flow_timeout(const struct fw_flow *flow, __u8 protocol, __u32 table,
					     const struct fw_flow_limits *limits)
{
	if (protocol == IPPROTO_UDP || protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6)
		return limits->udp_idle;
	if (protocol != IPPROTO_TCP)
		return FW_OTHER_IDLE * NSEC_PER_SEC;
	if (flow->flags & FW_FLOW_RESET)
		return FW_TCP_RESET_IDLE * NSEC_PER_SEC;
	if (fw_is_closed(flow->flags))
		return FW_TCP_CLOSING_IDLE * NSEC_PER_SEC;
	if (table == FW_FLOWS_OPENING)
		return FW_TCP_OPENING_IDLE * NSEC_PER_SEC;
	return limits->tcp_idle;
}

#endif
