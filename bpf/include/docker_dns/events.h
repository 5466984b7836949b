/* SPDX-License-Identifier: GPL-2.0-only */
/* Counters of outcomes, and events about queries. */
#ifndef DOCKER_DNS_EVENTS_H
#define DOCKER_DNS_EVENTS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "common/counters.h"
#include "common/events.h"
#include "docker_dns/abi.h"
#include "docker_dns/maps.h"

static __always_inline void dns_count(const struct __sk_buff *skb, enum dns_outcome outcome)
{
	count_packet(&outcomes, outcome, skb->len);
}

static __always_inline void dns_emit(const struct dns_config *set,
				     const struct dns_query_key *query, __u16 port,
				     const struct dns_name *name, enum dns_outcome outcome)
{
	struct dns_event *event;

	if (!set->is_watched)
		return;
	event = reserve_event(&events, sizeof(*event), &lost, 0);
	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	event->query = *query;
	event->server = set->server;
	event->server_port = set->server_port;
	event->outcome = outcome;
	event->port = port;
	if (name) {
		event->has_name = true;
		event->id = name->id;
		event->name_length = name->length;
		__builtin_memcpy(event->name, name->wire, sizeof(event->name));
	}
	bpf_ringbuf_submit(event, 0);
}

#endif
