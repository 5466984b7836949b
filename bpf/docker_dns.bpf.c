// SPDX-License-Identifier: GPL-2.0-only
/*
 * A container's DNS, answered by another server than the engine's.
 *
 * "query", on the egress of lo, sends what is meant for the built-in resolver out of
 * the uplink instead. By then NAT has made the daemon's own port of port 53. "answer",
 * on the uplink's ingress, hands back what the server says, from that address and port:
 * conntrack makes port 53 of it again. Both go by bpf_redirect_neigh(), which asks the
 * routing table and needs no sysctl; all other packets pass unchanged.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "docker_dns/abi.h"
#include "docker_dns/flow.h"
#include "docker_dns/maps.h"
#include "docker_dns/mss.h"
#include "docker_dns/name.h"
#include "docker_dns/rewrite.h"
#include "parse.h"

#define LOOPBACK_IFINDEX 1
#define VLAN_ID 0xfff

static __always_inline struct docker_dns_config *settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

static __always_inline void count(const struct __sk_buff *skb, enum docker_dns_outcome outcome)
{
	__u32 place = outcome;
	struct docker_dns_counter *counter = bpf_map_lookup_elem(&outcomes, &place);

	if (counter) {
		counter->packets++;
		counter->bytes += skb->len;
	}
}

static __always_inline void tell(const struct docker_dns_config *set,
				 const struct docker_dns_query_key *query, __u16 port,
				 const struct docker_dns_name *name,
				 enum docker_dns_outcome outcome)
{
	struct docker_dns_event *event;
	__u32 zero = 0;
	__u64 *missed;

	if (!set->is_watched)
		return;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		missed = bpf_map_lookup_elem(&lost, &zero);
		if (missed)
			(*missed)++;
		return;
	}
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

/* A whole IPv4 packet of UDP or TCP, or a part of one; the offset of its IP header. */
static __always_inline bool parse_ipv4_packet(struct __sk_buff *skb, bool has_ethernet,
					      struct zfw_packet *packet, __u32 *offset)
{
	struct ethhdr ethernet;

	/* With a tag beside the frame, if not for its priority alone, it is of another network;
	 * and with one in the frame, which a sender may not tell, IP would be elsewhere. */
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_tci & VLAN_ID ||
	    (has_ethernet && (!read_bytes(skb, 0, &ethernet, sizeof(ethernet)) ||
			      ethernet.h_proto != bpf_htons(ETH_P_IP))))
		return false;
	*offset = has_ethernet ? ETH_HLEN : 0;
	return parse_packet(skb, has_ethernet, packet) == ZFW_PARSED_IP &&
	       (packet->protocol == IPPROTO_UDP || packet->protocol == IPPROTO_TCP);
}

/* A socket of the daemon's, bound to the resolver's address and no other. */
static __always_inline bool has_daemon(struct __sk_buff *skb, const struct docker_dns_config *set,
				       __u8 protocol, __u16 port)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	bool is_its;

	tuple.ipv4.saddr = bpf_htonl(INADDR_LOOPBACK);
	tuple.ipv4.daddr = set->resolver;
	tuple.ipv4.dport = bpf_htons(port);
	sk = protocol == IPPROTO_TCP ?
		     bpf_sk_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0) :
		     bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	is_its = sk->src_ip4 == set->resolver;
	bpf_sk_release(sk);
	return is_its;
}

/*
 * Whether a port of the resolver's address is the daemon's. If none is known, or one
 * where nobody is any more, the daemon was started since: it is this one from now on.
 */
__noinline int is_daemon(struct __sk_buff *skb, __u32 protocol, __u32 port)
{
	struct docker_dns_config *set = settings();
	struct docker_dns_daemon *known;
	__u32 zero = 0;
	__u16 *mine, before;

	known = bpf_map_lookup_elem(&daemon, &zero);
	if (!set || !known)
		return false;
	if (port == set->resolver_port)
		return true;
	mine = protocol == IPPROTO_TCP ? &known->tcp_port : &known->udp_port;
	before = *mine;
	if (before && before == port)
		return true;
	if ((before && has_daemon(skb, set, protocol, before)) ||
	    !has_daemon(skb, set, protocol, port))
		return false;
	*mine = port;
	return true;
}

static __always_inline int leave(const struct __sk_buff *skb, const struct docker_dns_config *set,
				 const struct docker_dns_query_key *query,
				 const struct docker_dns_name *name,
				 enum docker_dns_outcome outcome)
{
	count(skb, outcome);
	tell(set, query, 0, name, outcome);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int query(struct __sk_buff *skb)
{
	struct docker_dns_config *set = settings();
	struct docker_dns_query_key key = {};
	struct docker_dns_query flow = {};
	struct docker_dns_ends to = {};
	struct docker_dns_name *name = NULL;
	struct zfw_packet packet = {};
	__u32 offset, mtu = 0;
	bool has_flow, is_opening;

	if (!set || !parse_ipv4_packet(skb, true, &packet, &offset) ||
	    packet.destination[3] != set->resolver || packet.fragment != ZFW_FRAGMENT_NONE)
		return TC_ACT_UNSPEC;
	key.source = packet.source[3];
	key.destination = packet.destination[3];
	key.source_port = bpf_ntohs(packet.source_port);
	key.destination_port = bpf_ntohs(packet.destination_port);
	key.protocol = packet.protocol;
	if (!is_daemon(skb, key.protocol, key.destination_port))
		return TC_ACT_UNSPEC;

	if (bpf_check_mtu(skb, set->uplink_ifindex, &mtu, set->has_ethernet ? 0 : -ETH_HLEN, 0))
		return leave(skb, set, &key, NULL, DOCKER_DNS_OUTCOME_BUILTIN_UPLINK);
	if (key.protocol == IPPROTO_UDP) {
		name = read_name(skb, &packet);
		if (set->has_domains && !name)
			return leave(skb, set, &key, NULL, DOCKER_DNS_OUTCOME_BUILTIN_UNREADABLE);
		if (set->has_domains && !is_covered(name))
			return leave(skb, set, &key, name, DOCKER_DNS_OUTCOME_BUILTIN_NAME);
	}
	has_flow = find_flow(set, &key, bpf_ktime_get_coarse_ns(), &flow);
	is_opening = (packet.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	if (key.protocol == IPPROTO_TCP) {
		/* A connection stays where it began. */
		if (!has_flow && is_opening && !set->redirects_tcp)
			return leave(skb, set, &key, NULL, DOCKER_DNS_OUTCOME_BUILTIN_TCP);
		if (!has_flow && !is_opening) {
			count(skb, DOCKER_DNS_OUTCOME_BUILTIN_TCP);
			return TC_ACT_UNSPEC;
		}
	}
	if (!has_flow && !make_flow(skb, &key, &flow)) {
		count(skb, DOCKER_DNS_OUTCOME_NO_PORT);
		tell(set, &key, 0, name, DOCKER_DNS_OUTCOME_NO_PORT);
		return TC_ACT_SHOT;
	}
	to.source = set->source;
	to.destination = flow.server;
	to.source_port = bpf_htons(flow.port);
	to.destination_port = bpf_htons(flow.server_port);
	if (key.protocol == IPPROTO_UDP || !has_flow)
		tell(set, &key, flow.port, name, DOCKER_DNS_OUTCOME_QUERY);
	if (!rewrite(skb, offset, &packet, &to) || !lower_mss(skb, &packet, mtu)) {
		count(skb, DOCKER_DNS_OUTCOME_UNCHANGED);
		return TC_ACT_SHOT;
	}
	count(skb, DOCKER_DNS_OUTCOME_QUERY);
	return bpf_redirect_neigh(set->uplink_ifindex, NULL, 0, 0);
}

/* Where an answer goes; false: it is none to a query of ours. */
static __always_inline bool find_query(const struct zfw_packet *packet, struct docker_dns_ends *to)
{
	struct docker_dns_fragment_key part = {
		.server = packet->source[3],
		.identification = packet->identification,
		.protocol = packet->protocol,
	};
	struct docker_dns_answer_key key = {
		.server = packet->source[3],
		.server_port = bpf_ntohs(packet->source_port),
		.port = bpf_ntohs(packet->destination_port),
		.protocol = packet->protocol,
	};
	__u64 now = bpf_ktime_get_coarse_ns();
	struct docker_dns_fragment *first, made = {};
	struct docker_dns_answer *answer;
	struct docker_dns_query_key query;

	if (packet->fragment == ZFW_FRAGMENT_LATER) {
		first = bpf_map_lookup_elem(&fragments, &part);
		if (!first || is_older(first->last, now, DOCKER_DNS_FRAGMENT_IDLE))
			return false;
		to->source = first->source;
		to->destination = first->destination;
		/* What is forgotten while it is read has another key at once: is it still so? */
		first = bpf_map_lookup_elem(&fragments, &part);
		return first && first->source == to->source &&
		       first->destination == to->destination;
	}
	answer = bpf_map_lookup_elem(&answers, &key);
	if (!answer || is_idle(key.protocol, answer->last, now)) {
		/* Another datagram, perhaps by the number of an answer before it. */
		if (packet->fragment == ZFW_FRAGMENT_FIRST)
			bpf_map_delete_elem(&fragments, &part);
		return false;
	}
	answer->last = now;
	query = answer->query;
	/* As above. */
	answer = bpf_map_lookup_elem(&answers, &key);
	if (!answer || !is_same_query(&answer->query, &query))
		return false;
	to->source = query.destination;
	to->destination = query.source;
	to->source_port = bpf_htons(query.destination_port);
	to->destination_port = bpf_htons(query.source_port);
	if (packet->fragment == ZFW_FRAGMENT_FIRST) {
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
	struct docker_dns_config *set = settings();
	struct zfw_packet packet = {};
	struct docker_dns_ends to = {};
	__u32 offset, mtu = 0;

	/* The stack takes no other host's packets; lo would make them its own. */
	if (!set || skb->pkt_type != PACKET_HOST ||
	    !parse_ipv4_packet(skb, set->has_ethernet, &packet, &offset) ||
	    packet.source[3] != set->server || packet.destination[3] != set->source)
		return TC_ACT_UNSPEC;
	if (!find_query(&packet, &to)) {
		if (packet.fragment == ZFW_FRAGMENT_LATER)
			count(skb, DOCKER_DNS_OUTCOME_ORPHAN);
		return TC_ACT_UNSPEC;
	}
	if (packet.tcp_flags & TCP_SYN)
		bpf_check_mtu(skb, 0, &mtu, 0, 0);
	if (!rewrite(skb, offset, &packet, &to) || !lower_mss(skb, &packet, mtu)) {
		count(skb, DOCKER_DNS_OUTCOME_UNCHANGED);
		return TC_ACT_SHOT;
	}
	/* It is a header of Ethernet's that bpf_redirect_neigh() takes away. */
	if (!set->has_ethernet && bpf_skb_change_head(skb, ETH_HLEN, 0)) {
		count(skb, DOCKER_DNS_OUTCOME_UNCHANGED);
		return TC_ACT_SHOT;
	}
	count(skb, DOCKER_DNS_OUTCOME_ANSWER);
	return bpf_redirect_neigh(LOOPBACK_IFINDEX, NULL, 0, 0);
}

char LICENSE[] SEC("license") = "GPL";
