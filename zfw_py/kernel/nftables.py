# SPDX-License-Identifier: GPL-2.0-only
"""Base chains of nftables in the caller's network namespace, by nfnetlink.

iptables-nft makes the same chains. The tables of iptables-legacy cannot be read by netlink.
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import NamedTuple

from zfw_py.errors import KernelError
from zfw_py.kernel import netlink

# include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_GETCHAIN, _NFT_MSG_GETRULE = 4, 7
_NFTA_CHAIN_TABLE, _NFTA_CHAIN_NAME, _NFTA_CHAIN_HOOK, _NFTA_CHAIN_POLICY = 1, 3, 4, 5
_NFTA_HOOK_HOOKNUM = 1
_NFTA_RULE_TABLE, _NFTA_RULE_CHAIN, _NFTA_RULE_EXPRESSIONS = 1, 2, 4
_NFTA_EXPR_NAME, _NFTA_EXPR_DATA = 1, 2
_NFTA_META_KEY, _NFT_META_IIFNAME = 2, 6
_NFTA_CMP_DATA, _NFTA_IMMEDIATE_DATA = 3, 2
_NFTA_DATA_VALUE, _NFTA_DATA_VERDICT, _NFTA_VERDICT_CODE = 1, 2, 1
_NF_DROP, _NF_ACCEPT = 0, 1
# Families with the hooks of IP (NFPROTO_INET, _IPV4, _IPV6), and hook 1 of them.
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_HOOKS = {0: "prerouting", 1: "input"}

_genmsg = Struct("=BBH")  # struct nfgenmsg: family, version, resource
_u32 = Struct(">I")


class Chain(NamedTuple):
    """A base chain that drops what none of its rules accepts.

    ``accepts``: the interfaces for which a rule accepts every packet.
    """

    family: str
    table: str
    name: str
    hook: str
    accepts: frozenset[str]


def dropping_chains() -> list[Chain]:
    """The chains at prerouting and input that have the policy drop. Raises KernelError."""
    found = []
    for family, table, name, hook in _base_chains():
        found.append(Chain(_FAMILIES[family], table, name, hook, _accepted(family, table, name)))
    return found


def _base_chains() -> list[tuple[int, str, str, str]]:
    found = []
    for family, attributes in _dump(_NFT_MSG_GETCHAIN):
        hook = netlink.attributes(attributes.get(_NFTA_CHAIN_HOOK, b"")).get(_NFTA_HOOK_HOOKNUM)
        policy = attributes.get(_NFTA_CHAIN_POLICY)
        if family not in _FAMILIES or hook is None or policy is None:
            continue
        number = _u32.unpack(hook)[0]
        if _u32.unpack(policy)[0] == _NF_DROP and number in _HOOKS:
            table = netlink.text(attributes[_NFTA_CHAIN_TABLE])
            name = netlink.text(attributes[_NFTA_CHAIN_NAME])
            found.append((family, table, name, _HOOKS[number]))
    return found


def _accepted(family: int, table: str, chain: str) -> frozenset[str]:
    found = set()
    for rule_family, attributes in _dump(_NFT_MSG_GETRULE):
        place = tuple(
            netlink.text(attributes.get(each, b"")) for each in (_NFTA_RULE_TABLE, _NFTA_RULE_CHAIN)
        )
        if (rule_family, *place) == (family, table, chain):
            interface = _interface_accepted(attributes.get(_NFTA_RULE_EXPRESSIONS, b""))
            if interface:
                found.add(interface)
    return frozenset(found)


def _interface_accepted(expressions: bytes) -> str:
    """The interface if the rule is ``iifname "NAME" accept``, with or without a counter."""
    found = []
    for _, expression in netlink.attribute_list(expressions):
        attributes = netlink.attributes(expression)
        name = netlink.text(attributes[_NFTA_EXPR_NAME])
        if name != "counter":
            found.append((name, netlink.attributes(attributes.get(_NFTA_EXPR_DATA, b""))))
    if [name for name, _ in found] != ["meta", "cmp", "immediate"]:
        return ""
    (_, meta), (_, compared), (_, immediate) = found
    value = netlink.attributes(compared.get(_NFTA_CMP_DATA, b"")).get(_NFTA_DATA_VALUE, b"")
    data = netlink.attributes(immediate.get(_NFTA_IMMEDIATE_DATA, b""))
    verdict = netlink.attributes(data.get(_NFTA_DATA_VERDICT, b"")).get(_NFTA_VERDICT_CODE)
    is_name = meta.get(_NFTA_META_KEY) == _u32.pack(_NFT_META_IIFNAME)
    return netlink.text(value) if is_name and verdict == _u32.pack(_NF_ACCEPT) else ""


def _dump(kind: int) -> list[tuple[int, dict[int, bytes]]]:
    """The family and the attributes of each; none where the kernel has no nftables."""
    try:
        messages = netlink.dump(
            netlink.NETFILTER, _NFNL_SUBSYS_NFTABLES << 8 | kind, _genmsg.pack(0, 0, 0)
        )
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EPROTONOSUPPORT):
            return []
        raise KernelError("read the chains of nftables", error.errno or 0) from error
    return [
        (_genmsg.unpack_from(message)[0], netlink.attributes(message[_genmsg.size :]))
        for message in messages
    ]
