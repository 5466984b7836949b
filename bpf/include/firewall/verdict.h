/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Writing down a decision.
 */
#ifndef FIREWALL_VERDICT_H
#define FIREWALL_VERDICT_H

#include <bpf/bpf_helpers.h>

#include "firewall/abi.h"

static __always_inline void fw_decide(struct fw_decision *decision, enum fw_verdict verdict,
				      enum fw_reason reason)
{
	decision->verdict = verdict;
	decision->reason = reason;
}

#endif
