/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What becomes of a frame between "ingress" and the stack: the devices above the interface.
 *
 * A bridge, a bond, a VLAN device, a macvlan or a VRF takes the frames of the interface below it. A
 * bridge sends a frame on to another port unless it is for an own MAC address, whatever socket the
 * packet has: fw_keep_frame() writes the bridge's address into a frame that is for a socket of this
 * host, as the target "redirect" of ebtables does. The stack then sees the device above, and
 * perhaps a packet without its socket (br_netfilter takes it away). So "ingress" leaves a promise
 * for "deliver": the interface at which it saw the packet.
 */
#ifndef FIREWALL_DEVICES_H
#define FIREWALL_DEVICES_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "common/maps.h"
#include "common/packet.h"
#include "common/time.h"
#include "firewall/abi.h"
#include "firewall/maps.h"
#include "firewall/routing.h"

/* Devices one above the other (a port of a bond of a bridge), and devices on one. */
#define FW_DEVICE_LEVELS 3
#define FW_UPPER_DEVICES 32

/* Nanoseconds; far longer than a packet waits on its way up. */
#define FW_PROMISE_LIFETIME NSEC_PER_SEC

/* The kernel's own structures. libbpf replaces offsets and values by the running kernel's. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

enum netdev_priv_flags {
	IFF_MACVLAN_PORT = 1 << 8,
	IFF_BRIDGE_PORT = 1 << 9,
	IFF_OVS_DATAPATH = 1 << 10,
};

struct list_head {
	struct list_head *next;
};

struct net_device {
	int ifindex;
	__u32 priv_flags;
	struct {
		struct list_head upper; /* of struct netdev_adjacent */
	} adj_list;
	const unsigned char *dev_addr;
	struct {
		void *net;
	} nd_net;
	void *rx_handler;
};

/* A device above another one. The master, if there is one, is the first of the list. */
struct netdev_adjacent {
	struct net_device *dev;
	bool master;
	struct list_head list;
};

struct sk_buff {
	struct net_device *dev;
};

#pragma clang attribute pop

/* Who takes a frame that is for a socket of this host. */
enum fw_receiver {
	/* Another host, another network namespace, or a program that reads a tap. */
	FW_RECEIVER_OTHER,
	FW_RECEIVER_HOST,
	/* A bridge hands it to this host, which forwards it. */
	FW_RECEIVER_FORWARDED,
};

static __always_inline void fw_set_promise_key(const struct packet *packet, struct fw_flow_key *key)
{
	__builtin_memcpy(key->address[0], packet->source, sizeof(key->address[0]));
	__builtin_memcpy(key->address[1], packet->destination, sizeof(key->address[1]));
	key->port[0] = packet->source_port;
	key->port[1] = packet->destination_port;
	key->protocol = packet->protocol;
}

/* For fw_promised_interface(). A later fragment has no ports: those of the first one count. */
static __always_inline void fw_promise(const struct packet *packet, __u32 ifindex)
{
	__u64 now = bpf_ktime_get_coarse_ns(), *latest = only_element(&latest_promise);
	struct fw_promise promise = { .made = now, .ifindex = ifindex };
	struct fw_flow_key key = {};

	if (!latest || packet->fragment == PKT_FRAGMENT_LATER)
		return;
	fw_set_promise_key(packet, &key);
	bpf_map_update_elem(&promises, &key, &promise, BPF_ANY);
	if (*latest != now)
		*latest = now;
}

static __always_inline bool fw_is_fresh(__u64 made)
{
	return made && made + FW_PROMISE_LIFETIME >= bpf_ktime_get_coarse_ns();
}

/* Whether there is any promise. Most look-ups need not search for theirs. */
static __always_inline bool fw_has_promises(void)
{
	__u64 *latest = only_element(&latest_promise);

	return latest && fw_is_fresh(*latest);
}

/* The interface at which "ingress" saw this packet, or 0. */
static __always_inline __u32 fw_promised_interface(const struct packet *packet)
{
	struct fw_flow_key key = {};
	struct fw_promise *promise;

	fw_set_promise_key(packet, &key);
	promise = bpf_map_lookup_elem(&promises, &key);
	return promise && fw_is_fresh(promise->made) ? promise->ifindex : 0;
}

#define fw_has_flag(device, flag)                                                                  \
	(BPF_CORE_READ_BITFIELD_PROBED(device, priv_flags) &                                       \
	 bpf_core_enum_value(enum netdev_priv_flags, flag))

static __always_inline bool fw_read_mac(const struct net_device *device, __u8 mac[ETH_ALEN])
{
	const unsigned char *address = NULL;

	return !bpf_core_read(&address, sizeof(address), &device->dev_addr) &&
	       !bpf_probe_read_kernel(mac, ETH_ALEN, address);
}

static __always_inline bool fw_has_mac(const struct net_device *device, const __u8 mac[ETH_ALEN])
{
	__u8 own[ETH_ALEN] = {}, differing = 0;

	if (!fw_read_mac(device, own))
		return false;
	for (int byte = 0; byte < ETH_ALEN; byte++)
		differing |= own[byte] ^ mac[byte];
	return !differing;
}

static __always_inline const struct netdev_adjacent *fw_adjacent(const struct list_head *element)
{
	return (const void *)element - bpf_core_field_offset(struct netdev_adjacent, list);
}

/* The first device above, or NULL. */
static __always_inline const struct list_head *fw_first_upper(const struct net_device *device)
{
	const struct list_head *first = NULL;

	bpf_core_read(&first, sizeof(first), &device->adj_list.upper.next);
	return first == &device->adj_list.upper ? NULL : first;
}

/* The bridge, bond, team or VRF that a device belongs to, or NULL. */
static __always_inline const struct net_device *fw_master_of(const struct net_device *device)
{
	const struct list_head *first = fw_first_upper(device);

	if (!first || !BPF_CORE_READ(fw_adjacent(first), master))
		return NULL;
	return BPF_CORE_READ(fw_adjacent(first), dev);
}

/* Whether a device above another one, with this MAC address, hands it to the stack of the same
 * network namespace. A tap on a macvlan hands it to its reader. */
static __always_inline bool fw_is_taken_by(const struct net_device *upper,
					   const struct net_device *device,
					   const __u8 mac[ETH_ALEN])
{
	const struct net_device *master;

	if (BPF_CORE_READ(upper, nd_net.net) != BPF_CORE_READ(device, nd_net.net))
		return false;
	/* A VLAN device that is a port: the bridge has an address of its own. */
	if (fw_has_flag(upper, IFF_BRIDGE_PORT)) {
		master = fw_master_of(upper);
		if (master && fw_has_mac(master, mac))
			return true;
	} else if (BPF_CORE_READ(upper, rx_handler) && !fw_has_flag(upper, IFF_MACVLAN_PORT)) {
		return false;
	}
	return fw_has_mac(upper, mac);
}

/* Hands a frame to a bridge's own host: the frame gets the bridge's address. */
static __always_inline enum fw_receiver
fw_hand_up(struct __sk_buff *skb, const struct net_device *bridge, __u8 mac[ETH_ALEN])
{
	/* For the address of any port a bridge is local as well. */
	if (skb->pkt_type == PACKET_HOST || fw_has_mac(bridge, mac))
		return FW_RECEIVER_HOST;
	return fw_read_mac(bridge, mac) && !bpf_skb_store_bytes(skb, 0, mac, ETH_ALEN, 0) ?
		       FW_RECEIVER_HOST :
		       FW_RECEIVER_OTHER;
}

/*
 * Keeps a frame that is for a socket of this host from devices that would take it elsewhere, and
 * makes the promise where some device above takes it at all. Returns an enum fw_receiver.
 *
 * is_intercepted: by a rule, so that no socket but the listener may have it. The socket that is
 * assigned keeps a packet from being forwarded, but br_netfilter takes it away. So the route is
 * looked up where there is a bridge.
 *
 * Where the kernel forbids to read its memory (lockdown in confidentiality mode), a frame with
 * another MAC address than the interface's is taken for another host's.
 */
__noinline int fw_keep_frame(struct __sk_buff *skb, struct packet *packet, int is_intercepted)
{
	const struct net_device *lowest = NULL, *device, *master;
	const struct list_head *element = NULL;
	__u8 mac[ETH_ALEN] = {};

	if (!packet)
		return FW_RECEIVER_OTHER;
	if (bpf_core_read(&lowest, sizeof(lowest), &((struct sk_buff *)skb)->dev) || !lowest ||
	    (element = fw_first_upper(lowest)))
		fw_promise(packet, skb->ifindex);
	if (!element)
		return skb->pkt_type == PACKET_OTHERHOST ? FW_RECEIVER_OTHER : FW_RECEIVER_HOST;
	bpf_skb_load_bytes(skb, 0, mac, sizeof(mac));

	device = lowest;
	for (int level = 0; level < FW_DEVICE_LEVELS; level++) {
		/* Its flows decide, and its master has no address that counts. */
		if (fw_has_flag(device, IFF_OVS_DATAPATH))
			return FW_RECEIVER_OTHER;
		master = fw_master_of(device);
		if (!master)
			break;
		if (fw_has_flag(device, IFF_BRIDGE_PORT)) {
			if (is_intercepted &&
			    fw_is_forwarded(skb, packet, BPF_CORE_READ(master, ifindex)))
				return FW_RECEIVER_FORWARDED;
			return fw_hand_up(skb, master, mac);
		}
		device = master;
	}
	if (skb->pkt_type != PACKET_OTHERHOST || (device != lowest && fw_has_mac(device, mac)))
		return FW_RECEIVER_HOST;

	for (int number = 0; number < FW_UPPER_DEVICES; number++) {
		if (!element || element == &lowest->adj_list.upper)
			break;
		if (fw_is_taken_by(BPF_CORE_READ(fw_adjacent(element), dev), lowest, mac))
			return FW_RECEIVER_HOST;
		element = BPF_CORE_READ(fw_adjacent(element), list.next);
	}
	return FW_RECEIVER_OTHER;
}

#endif
