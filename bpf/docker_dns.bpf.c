// SPDX-License-Identifier: GPL-2.0-only
/*
 * docker-dns: another server than Docker's built-in resolver answers a container's DNS.
 *
 * "query", on the egress of lo, sends the queries to the built-in resolver out of the uplink
 * instead. NAT has already replaced port 53 by the port of Docker's daemon there. "answer", on the
 * uplink's ingress, hands the server's answers back from that address and port, and conntrack
 * restores port 53. Both use bpf_redirect_neigh(), which looks up the route and needs no sysctl.
 * All other packets pass unchanged.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/packet.h"
#include "docker_dns/abi.h"
#include "docker_dns/events.h"
#include "docker_dns/flows.h"
#include "docker_dns/maps.h"
#include "docker_dns/mss.h"
#include "docker_dns/names.h"
#include "docker_dns/rewrite.h"
#include "docker_dns/sockets.h"
#include "docker_dns/truncated.h"

#define VLAN_ID 0xfff

/* Parses an IPv4 packet of UDP or TCP, or a fragment of one. Sets *offset of its IP header. */
static __always_inline bool dns_parse_ipv4_packet(struct __sk_buff *skb, bool has_ethernet,
						  struct packet *packet, __u32 *offset)
{
	struct ethhdr ethernet;

	/* A tag beside the frame means another network, unless it only has a priority. A tag in the
	 * frame, which a sender can forge, would move the IP header. */
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_tci & VLAN_ID ||
	    (has_ethernet && (!read_bytes(skb, 0, &ethernet, sizeof(ethernet)) ||
			      ethernet.h_proto != bpf_htons(ETH_P_IP))))
		return false;
	*offset = has_ethernet ? ETH_HLEN : 0;
	return parse_packet(skb, has_ethernet, packet) == PKT_PARSED_IP &&
	       (packet->protocol == IPPROTO_UDP || packet->protocol == IPPROTO_TCP);
}

static __always_inline int dns_leave(const struct __sk_buff *skb, const struct dns_config *set,
				     const struct dns_query_key *query, const struct dns_name *name,
				     enum dns_outcome outcome)
{
	dns_count(skb, outcome);
	dns_emit(set, query, 0, name, outcome);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int query(struct __sk_buff *skb)
{
	struct dns_config *set = dns_config_of();
	struct dns_query_key key = {};
	struct dns_query flow = {};
	struct dns_ends to = {};
	struct dns_name *name = NULL;
	struct packet packet = {};
	__u32 offset, mtu = 0;
	bool has_flow, is_opening;

	if (!set || !dns_parse_ipv4_packet(skb, true, &packet, &offset) ||
	    packet.destination[3] != set->resolver || packet.fragment != PKT_FRAGMENT_NONE)
		return TC_ACT_UNSPEC;
	key.source = packet.source[3];
	key.destination = packet.destination[3];
	key.source_port = bpf_ntohs(packet.source_port);
	key.destination_port = bpf_ntohs(packet.destination_port);
	key.protocol = packet.protocol;
	if (!dns_is_daemon(skb, key.protocol, key.destination_port))
		return TC_ACT_UNSPEC;

	if (bpf_check_mtu(skb, set->uplink_ifindex, &mtu, set->has_ethernet ? 0 : -ETH_HLEN, 0))
		return dns_leave(skb, set, &key, NULL, DNS_OUTCOME_BUILTIN_UPLINK);
	if (key.protocol == IPPROTO_UDP) {
		name = dns_read_name(skb, &packet);
		if (set->has_domains && !name)
			return dns_leave(skb, set, &key, NULL, DNS_OUTCOME_BUILTIN_UNREADABLE);
		if (set->has_domains && !dns_is_covered(name))
			return dns_leave(skb, set, &key, name, DNS_OUTCOME_BUILTIN_NAME);
	}
	has_flow = dns_find_flow(set, &key, bpf_ktime_get_coarse_ns(), &flow);
	is_opening = (packet.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	if (key.protocol == IPPROTO_TCP) {
		/* A connection stays with the resolver that it began with. */
		if (!has_flow && is_opening && !set->redirects_tcp &&
		    !(set->has_domains && dns_take_truncated(key.source)))
			return dns_leave(skb, set, &key, NULL, DNS_OUTCOME_BUILTIN_TCP);
		if (!has_flow && !is_opening) {
			dns_count(skb, DNS_OUTCOME_BUILTIN_TCP);
			return TC_ACT_UNSPEC;
		}
	}
	if (!has_flow && !dns_make_flow(skb, &key, &flow)) {
		dns_count(skb, DNS_OUTCOME_NO_PORT);
		dns_emit(set, &key, 0, name, DNS_OUTCOME_NO_PORT);
		return TC_ACT_SHOT;
	}
	to.source = set->source;
	to.destination = flow.server;
	to.source_port = bpf_htons(flow.port);
	to.destination_port = bpf_htons(flow.server_port);
	if (key.protocol == IPPROTO_UDP || !has_flow)
		dns_emit(set, &key, flow.port, name, DNS_OUTCOME_QUERY);
	if (!dns_rewrite(skb, offset, &packet, &to) || !dns_lower_mss(skb, &packet, mtu)) {
		dns_count(skb, DNS_OUTCOME_UNCHANGED);
		return TC_ACT_SHOT;
	}
	dns_count(skb, DNS_OUTCOME_QUERY);
	return bpf_redirect_neigh(set->uplink_ifindex, NULL, 0, 0);
}

/* Finds the query that a packet answers: *to is where the answer goes. False if there is none. */
static __always_inline bool dns_find_query(const struct packet *packet, struct dns_ends *to)
{
	struct dns_fragment_key part = {
		.server = packet->source[3],
		.identification = packet->identification,
		.protocol = packet->protocol,
	};
	struct dns_answer_key key = {
		.server = packet->source[3],
		.server_port = bpf_ntohs(packet->source_port),
		.port = bpf_ntohs(packet->destination_port),
		.protocol = packet->protocol,
	};
	__u64 now = bpf_ktime_get_coarse_ns();
	struct dns_fragment *first, made = {};
	struct dns_answer *answer;
	struct dns_query_key query;

	if (packet->fragment == PKT_FRAGMENT_LATER) {
		first = bpf_map_lookup_elem(&fragments, &part);
		if (!first || dns_is_older(first->last, now, DNS_FRAGMENT_IDLE))
			return false;
		to->source = first->source;
		to->destination = first->destination;
		/* An element that is evicted during the read gets another key at once: look again.
		 */
		first = bpf_map_lookup_elem(&fragments, &part);
		return first && first->source == to->source &&
		       first->destination == to->destination;
	}
	answer = bpf_map_lookup_elem(&answers, &key);
	if (!answer || dns_is_idle(key.protocol, answer->last, now)) {
		/* Another datagram, which may have the identification of an earlier answer. */
		if (packet->fragment == PKT_FRAGMENT_FIRST)
			bpf_map_delete_elem(&fragments, &part);
		return false;
	}
	answer->last = now;
	query = answer->query;
	/* As above. */
	answer = bpf_map_lookup_elem(&answers, &key);
	if (!answer || !dns_is_same_query(&answer->query, &query))
		return false;
	to->source = query.destination;
	to->destination = query.source;
	to->source_port = bpf_htons(query.destination_port);
	to->destination_port = bpf_htons(query.source_port);
	if (packet->fragment == PKT_FRAGMENT_FIRST) {
		made.last = now;
		made.source = to->source;
		made.destination = to->destination;
		bpf_map_update_elem(&fragments, &part, &made, BPF_ANY);
	}
	return true;
}

SEC("tc")
int answer(struct __sk_buff *skb)
{
	struct dns_config *set = dns_config_of();
	struct packet packet = {};
	struct dns_ends to = {};
	__u32 offset, mtu = 0;

	/* The kernel ignores packets to other hosts. On lo they would become the container's own.
	 */
	if (!set || skb->pkt_type != PACKET_HOST ||
	    !dns_parse_ipv4_packet(skb, set->has_ethernet, &packet, &offset) ||
	    packet.source[3] != set->server || packet.destination[3] != set->source)
		return TC_ACT_UNSPEC;
	if (!dns_find_query(&packet, &to)) {
		if (packet.fragment == PKT_FRAGMENT_LATER)
			dns_count(skb, DNS_OUTCOME_ORPHAN);
		return TC_ACT_UNSPEC;
	}
	if (set->has_domains && !set->redirects_tcp && dns_is_truncated(skb, &packet))
		dns_note_truncated(to.destination);
	if (packet.tcp_flags & TCP_SYN)
		bpf_check_mtu(skb, 0, &mtu, 0, 0);
	if (!dns_rewrite(skb, offset, &packet, &to) || !dns_lower_mss(skb, &packet, mtu)) {
		dns_count(skb, DNS_OUTCOME_UNCHANGED);
		return TC_ACT_SHOT;
	}
	/* bpf_redirect_neigh() removes an Ethernet header. */
	if (!set->has_ethernet && bpf_skb_change_head(skb, ETH_HLEN, 0)) {
		dns_count(skb, DNS_OUTCOME_UNCHANGED);
		return TC_ACT_SHOT;
	}
	dns_count(skb, DNS_OUTCOME_ANSWER);
	return bpf_redirect_neigh(LOOPBACK_IFINDEX, NULL, 0, 0);
}

char LICENSE[] SEC("license") = "GPL";
