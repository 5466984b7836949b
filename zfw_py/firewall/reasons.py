# SPDX-License-Identifier: GPL-2.0-only
"""Each reason of a decision in words, and the command that changes such a decision. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from zfw_py.firewall.model import Rule
    from zfw_py.firewall.question import Question

# No program of the direction is attached to the interface; no reason of a program.
NOT_ATTACHED = "not_attached"

TEXTS = {
    "no_rule": "No rule matches, and nothing else lets the packet in.",
    "loopback": "Loopback: what no ingress rule matches passes, and all that leaves.",
    "arp": "ARP always passes.",
    "non_ip": "The frame is neither IPv4, IPv6 nor ARP.",
    "non_tuple": "Neither TCP nor UDP, and the interface has pass-non-tuple.",
    "protocol": "The protocol is neither TCP, UDP nor ICMP.",
    "malformed": "The headers contradict each other or are cut off.",
    "header_chain": "More or longer IPv6 extension headers than the program reads.",
    "ipv6_off": "IPv6 is off on the interface.",
    "fragment_passed": "A later fragment: its first one passed, or the address is this host's.",
    "fragment_dropped": "A later fragment, whose first fragment was dropped.",
    "fragment_orphan": "A later fragment, whose first fragment did not pass here before.",
    "fragment_intercept": "A fragment of what a rule intercepts: reassembly loses the listener.",
    "icmp_echo": "Ping: the interface has icmp-echo.",
    "icmp_echo_off": "Ping: the interface does not have icmp-echo, and no request was let out.",
    "icmp_error": "An ICMP error about a packet of this host or of a tracked flow.",
    "icmp_error_unrelated": "An ICMP error about no packet of this host and of no tracked flow.",
    "icmp_other": "ICMP that is neither ping, an error, nor needed by the link.",
    "neighbour_discovery": "IPv6 neighbour discovery on the link.",
    "multicast_listener": "A report or query of multicast groups on the link.",
    "dhcp": "DHCP passes without a rule.",
    "ssh": "SSH passes without a rule: TCP port 22 of the interface's own addresses.",
    "established": "A socket of this host has this very connection.",
    "rule_deny": "The rule denies it.",
    "rule_pass": "The rule passes it.",
    "rule_intercept": "The rule intercepts it: the listener gets the packet.",
    "no_listener": "The rule intercepts it, and no socket listens on the rule's port.",
    "assign_failed": "The kernel refused to assign the packet to the listener.",
    "not_local": "The kernel does not take the destination for local.",
    "rules_changing": "The rules are being changed.",
    "flow": "The packet belongs to a tracked flow that was let through.",
    "flow_invalid": "A tracked flow, but the TCP numbers do not fit it.",
    "vrrp": "The interface passes VRRP.",
    "eapol": "The interface passes EAPOL (802.1X).",
    "egress": "The interface has no outbound filter: all that leaves passes.",
    "egress_no_rule": "The outbound filter: no egress rule and no open flow allows the packet.",
    "listener_not_transparent": "The rule intercepts it, but any user may have opened the socket.",
    "deliver_intercept": "The packet had lost its listener, and got it back.",
    "deliver_no_listener": "The packet had lost its listener, and there was none to give it.",
    "source_route": "The packet has a source route.",
    "misrouted": "The kernel forwards a packet that belongs to a socket of this host.",
    "other_host": "Another host takes the frame, or a device above the interface.",
    NOT_ATTACHED: "No program is attached there, so the firewall does not see the packet.",
}

_PASSES_ALL = "zfw set {interface} --pass-non-tuple {on}"
# By reason: what to do, and the command, where there is one.
_ADVICE: dict[str, tuple[tuple[str, str], ...]] = {
    "non_ip": (("pass what is neither TCP nor UDP", _PASSES_ALL.replace("{on}", "on")),),
    "protocol": (("pass what is neither TCP nor UDP", _PASSES_ALL.replace("{on}", "on")),),
    "icmp_other": (("pass what is neither TCP nor UDP", _PASSES_ALL.replace("{on}", "on")),),
    "icmp_error_unrelated": (("pass all ICMP", _PASSES_ALL.replace("{on}", "on")),),
    "non_tuple": (("drop it", _PASSES_ALL.replace("{on}", "off")),),
    "ipv6_off": (("apply the rules to IPv6", "zfw set {interface} --ipv6 on"),),
    "icmp_echo": (("drop pings", "zfw set {interface} --icmp-echo off"),),
    "icmp_echo_off": (("answer pings", "zfw set {interface} --icmp-echo on"),),
    "ssh": (("have the rules decide", "zfw set {interface} --ssh off"),),
    "vrrp": (("drop VRRP", "zfw set {interface} --vrrp off"),),
    "eapol": (("drop EAPOL", "zfw set {interface} --eapol off"),),
    "egress": (("let egress rules decide", "zfw set {interface} --outbound-filter on"),),
    "rules_changing": (
        ("ask again; the next command that changes a rule completes a killed one's change", ""),
    ),
    "flow": (("see the tracked flows", "zfw flows"),),
    "flow_invalid": (("see the tracked flows", "zfw flows"),),
    "no_listener": (("start the program that listens on {loopback}", ""),),
    "listener_not_transparent": (
        ("open the socket as root on {loopback}, or with IP_TRANSPARENT", ""),
    ),
    NOT_ATTACHED: (("filter there", "zfw attach {interface}"),),
}


def advice(
    reason: str,
    question: Question,
    interface: str,
    rule: Rule | None,
    *,
    is_local: bool,
    is_per_interface: bool,
) -> list[tuple[str, str]]:
    """What to do to change a decision: a purpose and a command each, which may be empty.

    ``is_local``: whether the kernel delivers the packet to this host. ``is_per_interface``:
    whether only rules that name the interface apply to it.
    """
    loopback = Endpoint("127.0.0.1" if question.family == 4 else "::1", 0)
    if rule is not None:
        loopback = loopback._replace(port=rule.tproxy_port)
    fixed = [
        (purpose.format(loopback=loopback), command.format(interface=interface))
        for purpose, command in _ADVICE.get(reason, ())
    ]
    if question.icmp is None and reason in ("no_rule", "egress_no_rule"):
        fixed += _missing(question, interface, is_local, is_per_interface)
    if rule is not None:
        fixed += _with_rule(reason, rule)
    return fixed


def _missing(
    question: Question, interface: str, is_local: bool, is_per_interface: bool
) -> list[tuple[str, str]]:
    insert = (
        f"zfw insert -c {question.destination_address} -p {question.protocol}"
        f" -l {question.destination_port}"
    )
    if is_per_interface:
        insert += f" -N {interface}"
    if question.direction == "egress":
        return [
            ("let it out", f"{insert} -z egress"),
            ("let all out", f"zfw set {interface} --outbound-filter off"),
        ]
    return [
        ("pass it to this host" if is_local else "pass it on", insert),
        ("give it to a listener on loopback", f"{insert} -t PORT"),
    ]


def _with_rule(reason: str, rule: Rule) -> list[tuple[str, str]]:
    key = _key_options(rule)
    last = "" if rule.high_port == rule.key.low_port else f" -h {rule.high_port}"
    drop = ("drop it", f"zfw insert {key}{last} --deny")
    remove = ("remove the rule", f"zfw delete {key}")
    if reason == "rule_deny":
        return [remove, ("pass it", f"zfw insert {key}{last}")]
    if reason == "rule_pass":
        return [drop, remove]
    to_host = ("pass it to this host instead", f"zfw insert {key}{last} -t 0")
    return [to_host, remove] if reason != "rule_intercept" else [to_host, drop, remove]


def _key_options(rule: Rule) -> str:
    key = rule.key
    words = f"-c {key.destination} -p {key.protocol} -l {key.low_port}"
    if key.source.length:
        words += f" -o {key.source}"
    return words if key.direction == "ingress" else f"{words} -z {key.direction}"
