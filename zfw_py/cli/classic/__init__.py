# SPDX-License-Identifier: GPL-2.0-only
"""The classic grammar, zfw -I and the like: its options, each one row of GROUPS. Hot.

``grammar`` reads command lines and makes help by the rows, ``run`` carries command lines out,
``listing`` prints rules and settings. The rows are here and not in a module of their
own because each module adds 0.1 ms to every command line of a router.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    class _Given(TypedDict, total=False):
        verb: str
        at_once: bool
        later: bool
        with_: tuple[str, ...]
        needs: tuple[str, ...]
        refuses: tuple[str, ...]
        negates: bool
        field: str
        length: str


INSERT, DELETE, FLUSH, LIST = RULE_VERBS = ("I", "D", "F", "L")
ATTACH, MONITOR = "X", "M"
BIND, UNBIND = "B", "J"
DISABLE, ROUTE, IPV6 = "d", "r", "6"


class Flag:
    """One option.

    Attributes:
        short: its letter; "" if it has none.
        help: its line of help.
        verb: the verb of the Request that it makes; "" if it only modifies another option.
        at_once: the words after it are not read, as in argp.
        later: the grammar accepts it, but this version does not have it.
        with_: letters of options, of which one at least must be given as well; () for none.
        needs: letters of options that must be given as well.
        refuses: letters of options that must not be given as well.
        negates: with ``-d`` it means the opposite.
        field: the field of a rule that its value is, one of ``model.FIELDS``.
        length: the letter of the option for its prefix length, unless the value ends in /LEN.
    """

    verb = field = length = ""
    at_once = later = negates = False
    with_: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()

    def __init__(self, spelling: str, help: str, **given: Unpack[_Given]) -> None:
        """``spelling`` is as help has it: ``-c, --dcidr-block ADDR[/LEN]``."""
        self.__dict__ = given  # type: ignore[assignment]
        self.spelling = spelling
        self.short = spelling[1].strip("-")
        self.help = help

    @property
    def name(self) -> str:
        """Both names, as messages have them: ``-c, --dcidr-block``."""
        return f"{self.spelling[:4] if self.short else ''}{self._rest[0]}"

    @property
    def long(self) -> str:
        """The long name, without its hyphens."""
        return self._rest[0][2:]

    @property
    def argument(self) -> str:
        """The value in help; "" for an option without one."""
        return self._rest[2]

    @property
    def _rest(self) -> tuple[str, str, str]:
        """The long option, a blank, and the argument."""
        return (self.spelling[4:] if self.short else self.spelling).partition(" ")


class Setting(Flag):
    """An option that turns a setting of interfaces on, or with ``-d`` off.

    Attributes:
        setting: the setting, one of ``firewall.settings.SETTINGS``.
        said: its name in the line that is printed when it was set.
        row: its name in the list of settings, ``-L -E``.
        turns_off: the option turns the setting off, and with ``-d`` on.
    """

    def __init__(
        self,
        spelling: str,
        help: str,
        setting: str,
        said: str,
        row: str,
        *,
        turns_off: bool = False,
    ) -> None:
        super().__init__(f"{spelling} IF|all", help, verb="set", negates=True)
        self.setting = setting
        self.said = said
        self.row = row
        self.turns_off = turns_off


_ONE_RULE = (INSERT, DELETE)
_RULES = (*_ONE_RULE, LIST)

# By heading, in the order of help. Where two verbs exclude each other, an error names them in
# this order.
# fmt: off
GROUPS = {
    "What to do with rules": (
        Flag("-I, --insert", "add a rule or replace it: needs -c -m -l -h -t -p",
             verb="insert", needs=("c", "l", "h", "t", "p"), negates=True),
        Flag("-D, --delete", "delete a rule: needs -c -m -l -p, and -o -n if it has them",
             verb="delete", needs=("c", "l", "p"), negates=True),
        Flag("-F, --flush", "delete all rules, or those of one direction (-z)",
             verb="flush", refuses=(LIST,)),
        Flag("-L, --list", "list the IPv4 rules; with -6 -E -G -U -Y -C something else",
             verb="list"),
    ),
    "A rule": (
        Flag("-c, --dcidr-block ADDR[/LEN]", "destination, IPv4 or IPv6",
             with_=_RULES, field="destination", length="m"),
        Flag("-m, --dprefix-len LEN", "prefix length of the destination",
             with_=(*_RULES, BIND, UNBIND), field="prefix_length"),
        Flag("-o, --ocidr-block ADDR[/LEN]", "source; any address if not given",
             with_=_RULES, field="source", length="n"),
        Flag("-n, --oprefix-len LEN", "prefix length of the source",
             with_=_RULES, field="source_length"),
        Flag("-l, --low-port PORT", "first destination port", with_=_ONE_RULE, field="low_port"),
        Flag("-h, --high-port PORT", "last destination port (-h is not help)",
             with_=_ONE_RULE, field="high_port"),
        Flag("-t, --tproxy-port PORT", "the local listener's port; 0 passes packets to the host",
             with_=_ONE_RULE, field="tproxy_port"),
        Flag("-p, --protocol tcp|udp", "protocol", with_=_RULES, field="protocol"),
        Flag("-d, --disable", "with -I: deny; with -X: detach; with a setting: turn it off"),
        Flag("-N, --interface IF", "only on this interface, if it is set to -P; repeatable",
             with_=_ONE_RULE),
        Flag("-r, --route", "add a local route to the destination; with -D, -F: remove it",
             with_=(*_ONE_RULE, FLUSH)),
        Flag("-s, --service-id ID", "name of the service that the rule belongs to",
             with_=_ONE_RULE, field="service_id"),
        Flag("-z, --direction ingress|egress", "ingress if not given, but both with -F",
             with_=(*_ONE_RULE, FLUSH, LIST, ATTACH), field="direction"),
    ),
    "What to list (with -L)": (
        Flag("-i, --intercepts", "only rules that intercept", with_=(LIST,)),
        Flag("-f, --passthrough", "only rules that pass packets to the host", with_=(LIST,)),
        Flag("-E, --list-diag", "each interface's settings", with_=(LIST,)),
        Flag("-G, --list-gc-sessions", "remove the sessions that have expired", with_=(LIST,)),
        Flag("-U, --list-ddos-dports", "ports protected by -a", with_=(LIST,), later=True),
        Flag("-Y, --list-ddos-saddr", "sources that -a lets through", with_=(LIST,), later=True),
        Flag("-C, --list-dnp3-fcodes", "DNP3 function codes that -S lets through",
             with_=(LIST, FLUSH), later=True),
    ),
    "Programs on interfaces": (
        Flag("-X, --set-tc-filter IF|all", "attach the program of -O in direction -z",
             verb="attach", needs=("z",), negates=True),
        Flag("-O, --object-file PATH", "the program that -X attaches", with_=(ATTACH,)),
        Flag("-H, --init-tc IF|all", "attach both directions", verb="init"),
        Flag("-Z, --init-xdp IF", "attach the XDP program of a tunnel interface", later=True),
        Flag("-Q, --disable-ebpf", "detach everywhere and remove all state", verb="uninstall"),
    ),
    "Settings of an interface (-d turns off)": (
        Setting("-e, --icmp-echo", "answer pings", "icmp_echo", "icmp-echo", "icmp echo"),
        Setting("-x, --disable-ssh", "do not pass SSH to the interface's own addresses",
                "ssh", "disable_ssh", "ssh disable", turns_off=True),
        Setting("-P, --per-interface-rules", "apply only rules that name this interface with -N",
                "per_interface_rules", "per_interface rule aware", "per interface"),
        Setting("-q, --pass-non-tuple", "pass all packets that are neither TCP nor UDP",
                "pass_non_tuple", "pass-non-tuple", "pass non tuple"),
        Setting("-6, --ipv6-enable", "apply the rules to IPv6; -L -6 all lists IPv6 rules",
                "ipv6", "ipv6_enable", "ipv6 enable"),
        Setting("-v, --verbose", "trace packets", "verbose", "verbose", "verbose"),
        Setting("-R, --vrrp-enable", "pass VRRP", "vrrp", "vrrp mode", "vrrp enable"),
        Setting("-w, --enable-eapol", "pass EAPOL frames (802.1X)",
                "eapol", "eapol", "eapol enable"),
        Flag("-T, --set-tun-mode IF|all", "intercept into the tunnel interface",
             negates=True, later=True),
        Setting("-b, --outbound-filtering", "apply the egress rules",
                "outbound_filter", "outbound_filter", "outbound filter"),
        Flag("-k, --masquerade IF|all", "rewrite the source of outgoing packets",
             negates=True, later=True),
        Flag("-a, --ddos-filtering IF|all", "pass only listed sources to protected ports",
             negates=True, later=True),
        Flag("-S, --ot-filtering IF|all", "check DNP3 and Modbus responses",
             negates=True, later=True),
    ),
    "Tables (-d deletes)": (
        Flag("-u, --ddos-dport-add PORT", "protect a port", negates=True, later=True),
        Flag("-y, --ddos-saddr-add ADDR", "let a source through", negates=True, later=True),
        Flag("-g, --dnp3-fcode-add CODE", "let a DNP3 function code through",
             negates=True, later=True),
        Flag("-B, --bind-saddr-add ADDR", "add an address, with length -m, to lo; it is counted",
             verb="bind", length="m"),
        Flag("-J, --bind-saddr-delete ADDR", "the inverse of -B: the last removes the address",
             verb="unbind", length="m"),
        Flag("-j, --bind-flush", "with -F: remove all addresses of -B, and nothing else",
             with_=(FLUSH,), refuses=("z", ROUTE)),
    ),
    "Other": (
        Flag("-M, --monitor IF|all", "print events as they happen", later=True),
        Flag("-W, --write-log PATH", "with -M: append the events to a file",
             with_=(MONITOR,), later=True),
        Flag("-A, --add-user-rules", "run /opt/openziti/bin/user/user_rules.sh",
             verb="user_rules"),
        Flag("-?, --help", "print this help", verb="help", at_once=True),
        Flag("--usage", "print the options without explanations", verb="usage", at_once=True),
        Flag("-V, --version", "print the version", verb="version", at_once=True),
    ),
}
# fmt: on

FLAGS: dict[str, Flag] = {flag.short: flag for flags in GROUPS.values() for flag in flags}
SETTINGS = {flag.setting: flag for flag in FLAGS.values() if isinstance(flag, Setting)}
FLAGS[DISABLE].with_ = tuple([flag.short for flag in FLAGS.values() if flag.negates])

# The fields of a rule by the names that messages give them.
FIELD_NAMES = {flag.field: flag.name for flag in FLAGS.values() if flag.field}
FIELD_NAMES["interfaces"] = FLAGS["N"].name
