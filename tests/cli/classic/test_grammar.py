# SPDX-License-Identifier: GPL-2.0-only
"""The classic grammar: what callers of the classic command say, and what comes out.

``case_N`` in a name is the case of that number in the callers' contract.
"""

from __future__ import annotations

import sys

import pytest

from tests.support.command import captured
from zfw_py.cli import classic
from zfw_py.cli.classic import listing
from zfw_py.cli.classic.grammar import (
    ClassicError,
    ClassicUsage,
    Request,
    help_text,
    parse,
    usage_text,
)
from zfw_py.firewall.model import FIELDS
from zfw_py.firewall.settings import SETTINGS

ROUTER = (
    "-I -c 10.0.0.16 -m 28 -p tcp -o 0.0.0.0 -n 0 -l 22 -h 22 -t 33381 -s 5XzC8mf1RrFO2vmfHGG5GL"
)
INSERT = "-I -c 10.0.0.1 -m 32 -p tcp -l 22 -h 22 -t 0"
DELETE = "-D -c 10.0.0.1 -m 32 -p tcp -l 22"


def ask(line: str) -> Request:
    return parse(line.split())


def refused(line: str) -> str:
    """The one line that a command with exit code 1 ends with."""
    with pytest.raises(ClassicError) as caught:
        ask(line)
    assert caught.value.exit_code == 1
    assert "\n" not in caught.value.message
    return caught.value.message


def misread(argv: list[str]) -> str:
    """The one line that a command with exit code 64 ends with."""
    with pytest.raises(ClassicUsage) as caught:
        parse(argv)
    assert caught.value.exit_code == 64
    assert "\n" not in caught.value.message
    return caught.value.message


# How words become options


@pytest.mark.parametrize(
    ("line", "verb"),
    [
        ("-V", "version"),
        ("--version", "version"),
        ("--vers", "version"),
        ("-?", "help"),
        ("--help", "help"),
        ("--usage", "usage"),
        ("-IV", "version"),
        ("-I extra -V", "version"),
        ("-V --no-such-option", "version"),
        ("-L -F --help -9", "help"),
    ],
)
def test_case_1_and_2_version_help_and_usage_act_where_they_stand(line: str, verb: str) -> None:
    assert ask(line).verb == verb


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-Z"], "option requires an argument -- 'Z'"),
        (["-I", "-c"], "option requires an argument -- 'c'"),
        (["--high-port"], "option '--high-port' requires an argument"),
        (["--list=all"], "option '--list' doesn't allow an argument"),
        (["-I", "extra"], "Too many arguments"),
        (["-L", "--", "-V"], "Too many arguments"),
        (["-L", "-"], "Too many arguments"),
        (["-L", ""], "Too many arguments"),
        (["-9"], "invalid option -- '9'"),
        (["-L9"], "invalid option -- '9'"),
        (["-9", "-V"], "invalid option -- '9'"),
        (["--foo"], "unrecognized option '--foo'"),
        (["--foo=1"], "unrecognized option '--foo'"),
        (["--a\nb"], r"unrecognized option '--a\nb'"),
        (["--hi", "1", "--h"], "option '--h' is ambiguous; possibilities: '--high-port' '--help'"),
    ],
)
def test_case_2_misuse_is_reported_as_argp_does(argv: list[str], message: str) -> None:
    assert misread(argv) == message


@pytest.mark.parametrize(
    "spelling",
    ["-h 30", "-h30", "--high-port 30", "--high-port=30", "--high=30", "--hi 30", "-h 5 -h30"],
)
def test_a_value_is_given_in_any_of_argps_ways_and_the_last_counts(spelling: str) -> None:
    request = ask(f"-I -c 10.0.0.1 -m 32 -p tcp -l 22 {spelling} -t 0")
    assert request.rule.high_port == 30


def test_a_cluster_may_end_in_an_option_with_its_value() -> None:
    request = ask("-Irc10.0.0.1 -m32 -ptcp -l22 -h22 -t0 --")
    assert (request.verb, request.route) == ("insert", True)
    assert str(request.rule.key.destination) == "10.0.0.1/32"


def test_an_exact_long_name_wins_over_those_that_it_begins() -> None:
    assert ask("--list").what == "rules"
    assert ask("--list --list-di").what == "diag"
    assert ask("--insert -dc :: -m 0 -ptcp -l1 -h2 -t0 --disable").rule.action == "deny"


def test_a_value_may_look_like_an_option() -> None:
    assert ask(f"{INSERT} -s --").rule.service_id == "--"
    assert refused("-I -c -m") == "-l, --low-port: missing, -I, --insert needs it"


# Inserts and deletes


def test_case_3_the_routers_insert() -> None:
    rule = ask(ROUTER).rule
    assert str(rule) == "ingress tcp 10.0.0.16/28 port 22 intercept"
    assert rule.key.source.length == 0
    assert (rule.tproxy_port, rule.service_id) == (33381, "5XzC8mf1RrFO2vmfHGG5GL")
    assert rule.interfaces == ()


def test_case_7_and_9_a_delete_names_the_inserted_rule_whatever_its_high_port() -> None:
    request = ask("-D -c 10.0.0.16 -m 28 -p tcp -o 0.0.0.0 -n 0 -l 22 -h 30")
    assert (request.verb, request.interfaces) == ("delete", ())
    assert request.key == ask(ROUTER).rule.key
    assert ask("-D -c 10.0.0.16 -m 28 -p tcp -l 22").key == request.key
    assert refused(f"{DELETE} -h x").startswith("-h, --high-port: ")


def test_case_13_host_bits_are_dropped_on_insert_and_delete() -> None:
    key = ask("-I -c 10.1.2.3 -m 8 -p tcp -l 22 -h 22 -t 1").rule.key
    assert str(key.destination) == "10.0.0.0/8"
    for address in ("10.1.2.3", "10.0.0.0"):
        assert ask(f"-D -c {address} -m 8 -p tcp -l 22").key == key


def test_case_15_ipv6_takes_the_routers_ipv4_any_source() -> None:
    line = "-I -c fd00::1 -m 128 -p tcp -o 0.0.0.0 -n 0 -l 443 -h 443 -t 5000 -s X"
    key = ask(line).rule.key
    assert (str(key.destination), str(key.source), key.family) == ("fd00::1/128", "::/0", 6)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("-o myhost.example -n 32", "not an IPv4 or IPv6 address: 'myhost.example'"),
        ("-o fd00::5 -n 32", "fd00::/32 is not IPv4 as the destination is"),
        ("-o :: -n 0", "::/0 is not IPv4 as the destination is"),
        ("-o 10.0.0.0/8 -n 9", "'10.0.0.0/8' contradicts the prefix length 9"),
        ("-n 8", "missing, -n, --oprefix-len needs it"),
    ],
)
def test_case_17_a_bad_source_names_its_flag(source: str, message: str) -> None:
    assert refused(f"{INSERT} {source}") == f"-o, --ocidr-block: {message}"
    assert refused(f"{DELETE} {source}") == f"-o, --ocidr-block: {message}"


def test_a_source_needs_its_length_and_a_lone_length_of_0_is_any() -> None:
    assert refused(f"{INSERT} -o 10.0.0.1") == (
        "-n, --oprefix-len: missing, -o, --ocidr-block needs it"
    )
    assert refused(f"{INSERT} -n x").startswith("-n, --oprefix-len: not a prefix length")
    assert ask(f"{INSERT} -n 0").rule.key.source.length == 0
    assert str(ask(f"{INSERT} -o 10.1.0.0/16").rule.key.source) == "10.1.0.0/16"


@pytest.mark.parametrize("service_id", ["-foo123", ".foo123", "-I", "x" * 64, "0" * 22])
def test_case_18_any_service_id_is_kept_whole(service_id: str) -> None:
    assert parse([*INSERT.split(), "-s", service_id]).rule.service_id == service_id
    assert parse([*DELETE.split(), "-s", service_id]).verb == "delete"


def test_case_18_a_service_id_too_long_is_refused() -> None:
    assert refused(f"{INSERT} -s {'x' * 65}").startswith("-s, --service-id: longer than 64 bytes")
    assert refused(f"{DELETE} -s {'x' * 65}").startswith("-s, --service-id: longer than 64 bytes")


def test_case_19_several_interfaces_add_up() -> None:
    assert ask(f"{INSERT} -N eth1 -N eth0 --interface=eth1").rule.interfaces == ("eth0", "eth1")
    assert ask(f"{DELETE} -Neth1 -N eth0").interfaces == ("eth0", "eth1")


@pytest.mark.parametrize("name", ["a/b", "a" * 16, "..", ""])
def test_case_20_what_cannot_be_an_interface_is_refused(name: str) -> None:
    with pytest.raises(ClassicError, match=r"^-N, --interface: not an interface name"):
        parse([*INSERT.split(), "-N", name])


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (65535, 65535), (0, 0)])
def test_case_21_the_whole_range_of_ports(low: int, high: int) -> None:
    rule = ask(f"-I -c 10.0.0.1 -m 32 -p tcp -l {low} -h {high} -t 0").rule
    assert (rule.key.low_port, rule.high_port) == (low, high)


@pytest.mark.parametrize("flag", ["-l", "-h", "-t"])
@pytest.mark.parametrize("port", ["70000", "x", "", "-1", "4294967318", "²", "1 "])
def test_case_21_bad_ports_name_their_flag(flag: str, port: str) -> None:
    with pytest.raises(ClassicError, match=rf"^{flag}, --(low|high|tproxy)-port: not a port "):
        parse([*INSERT.split(), flag, port])


def test_case_21_low_above_high() -> None:
    message = refused("-I -c 10.0.0.1 -m 32 -p tcp -l 10 -h 5 -t 0")
    assert message == "-h, --high-port: 5 is below the low port 10"


@pytest.mark.parametrize("text", ["tcp", "TCP", "udp", "UDP"])
def test_case_22_protocols_in_any_case(text: str) -> None:
    assert ask(f"{DELETE} -p {text}").key.protocol == text.lower()


@pytest.mark.parametrize("text", ["sctp", "6"])
def test_case_22_other_protocols_are_refused(text: str) -> None:
    assert refused(f"{INSERT} -p {text}") == f"-p, --protocol: not tcp or udp: {text!r}"


@pytest.mark.parametrize("flag", ["c", "m", "l", "h", "t", "p"])
def test_an_insert_names_what_it_lacks(flag: str) -> None:
    words = INSERT.split()
    at = words.index(f"-{flag}")
    message = refused(" ".join(words[:at] + words[at + 2 :]))
    assert message.startswith(f"-{flag}, --")
    assert ": missing, -" in message


@pytest.mark.parametrize("flag", ["c", "m", "l", "p"])
def test_a_delete_names_what_it_lacks(flag: str) -> None:
    words = DELETE.split()
    at = words.index(f"-{flag}")
    assert refused(" ".join(words[:at] + words[at + 2 :])).startswith(f"-{flag}, --")


@pytest.mark.parametrize(
    ("destination", "flag"),
    [
        ("-c 300.1.1.1 -m 32", "-c, --dcidr-block"),
        ("-c 1.2.3 -m 32", "-c, --dcidr-block"),
        ("-c 0x7f000001 -m 32", "-c, --dcidr-block"),
        ("-c 10.0.0.0 -m 33", "-c, --dcidr-block"),
        ("-c 10.0.0.0/33", "-c, --dcidr-block"),
        ("-c 10.0.0.0/8 -m 9", "-c, --dcidr-block"),
        ("-c 10.0.0.0 -m 256", "-m, --dprefix-len"),
        ("-c 10.0.0.0 -m -1", "-m, --dprefix-len"),
        ("-c 10.0.0.0/8 -m x", "-m, --dprefix-len"),
    ],
)
def test_a_bad_destination_names_its_flag(destination: str, flag: str) -> None:
    assert refused(f"-I {destination} -p tcp -l 1 -h 1 -t 0").startswith(f"{flag}: ")


def test_empty_values_are_not_zero() -> None:
    for flag, name in (("-m", "dprefix-len"), ("-l", "low-port")):
        with pytest.raises(ClassicError, match=f"^{flag}, --{name}: "):
            parse([*INSERT.split(), flag, ""])


@pytest.mark.parametrize("destination", ["-c 10.1.0.0/16", "-c 10.1.0.0/16 -m 16"])
def test_a_destination_may_carry_its_length(destination: str) -> None:
    rule = ask(f"-I {destination} -p tcp -l 1 -h 1 -t 0").rule
    assert str(rule.key.destination) == "10.1.0.0/16"


def test_case_41_the_scripts_passthrough() -> None:
    rule = ask("-I -c 192.168.1.2 -m 32 -l 443 -h 443 -t 0  -p tcp").rule
    assert str(rule) == "ingress tcp 192.168.1.2/32 port 443 pass"


def test_case_42_the_resolver_is_routed() -> None:
    assert ask("-I -c 100.127.255.254 -m 32 -l 53 -h 53 -t 0 -p udp -r").route
    assert not ask("-I -c 10.0.0.1 -m 32 -l 53 -h 53 -t 0 -p udp").route


def test_deny_takes_no_tproxy_port() -> None:
    assert ask(f"{INSERT} -d").rule.action == "deny"
    assert refused(f"{INSERT} -d -t 5") == (
        "-t, --tproxy-port: a deny rule cannot intercept; use 0"
    )


def test_egress_takes_no_tproxy_port() -> None:
    request = ask(f"{INSERT} -z egress -d")
    assert (request.direction, request.rule.key.direction) == ("egress", "egress")
    assert refused(f"{INSERT} -z egress -t 5") == (
        "-t, --tproxy-port: an egress rule cannot intercept; use 0"
    )
    assert refused(f"{INSERT} -z both") == "-z, --direction: not ingress or egress: 'both'"


def test_case_54_everything_passes() -> None:
    rule = ask("-I -c :: -m 0 -l 1 -h 65535 -t 0 -p udp").rule
    assert str(rule) == "ingress udp ::/0 port 1-65535 pass"


def test_case_56_a_delete_may_carry_what_the_insert_did() -> None:
    line = "-c 10.0.0.1 -m 32 -l 22 -h 23 -t 4000 -p tcp -s -abc"
    assert ask(f"-D {line}").key == ask(f"-I {line}").rule.key


# Lists and flushes


@pytest.mark.parametrize(
    ("line", "what"),
    [("-L", "rules"), ("-L -E", "diag"), ("-LE", "diag"), ("-L -G", "gc"), ("-GL", "gc")],
)
def test_what_is_listed(line: str, what: str) -> None:
    request = ask(line)
    assert (request.verb, request.what, request.direction) == ("list", what, None)


def test_a_list_of_everything_has_no_filter() -> None:
    request = ask("-L")
    assert (request.family, request.destination, request.source) == (4, None, None)
    assert request.protocol is None
    assert not request.intercepts_only
    assert not request.passthrough_only


def test_case_60_filters_of_a_list() -> None:
    request = ask("-L -c 10.0.0.1 -m 8 -p TCP -o 0.0.0.0 -n 0 -z egress -i")
    assert (str(request.destination), str(request.source)) == ("10.0.0.0/8", "0.0.0.0/0")
    assert (request.protocol, request.direction, request.family) == ("tcp", "egress", 4)
    assert request.intercepts_only
    assert ask("-Lf").passthrough_only
    assert refused("-L -m 8") == "-c, --dcidr-block: missing, -m, --dprefix-len needs it"
    assert refused("-L -c 10.0.0.1") == "-m, --dprefix-len: missing, -c, --dcidr-block needs it"


def test_intercepts_and_passthrough_together_are_no_filter() -> None:
    request = ask("-L -i -f")
    assert not request.intercepts_only
    assert not request.passthrough_only


def test_case_60_the_family_listed_is_the_filters_or_that_of_6() -> None:
    assert ask("-L -6 all").family == 6
    assert ask("-L -c fd00::1 -m 128").family == 6
    assert str(ask("-L -6 all -o 0.0.0.0 -n 0").source) == "::/0"
    assert refused("-L -o fd00::1 -n 128") == (
        "-o, --ocidr-block: fd00::1/128 is not IPv4 as the destination is"
    )
    assert refused("-L -6 eth0") == "-6, --ipv6-enable: with -L, --list it takes only the value all"


def test_case_40_flush() -> None:
    request = ask("-F -z ingress -r")
    assert (request.verb, request.direction, request.route) == ("flush", "ingress", True)
    request = ask("-F")
    assert (request.verb, request.direction, request.route) == ("flush", None, False)


# Programs and settings


@pytest.mark.parametrize(
    ("direction", "path"),
    [
        ("ingress", "/opt/openziti/bin/zfw_tc_ingress.o"),
        ("egress", "/opt/openziti/bin/zfw_tc_outbound_track.o"),
    ],
)
def test_case_36_and_37_attach(direction: str, path: str) -> None:
    request = ask(f"-X eth0 -O {path} -z {direction}")
    assert (request.verb, request.interface, request.direction) == ("attach", "eth0", direction)
    assert request.object_file == path


def test_case_38_attach_and_detach_name_what_they_lack() -> None:
    assert refused("-X eth0 -O x.o") == "-z, --direction: missing, -X, --set-tc-filter needs it"
    assert refused("-X eth0 -z ingress") == (
        "-O, --object-file: missing, -X, --set-tc-filter needs it"
    )
    assert refused("-X eth0 -d").startswith("-z, --direction: missing")
    assert refused("-X a/b -z ingress -O x.o").startswith("-X, --set-tc-filter: not an interface")
    request = ask("-X all -z egress -d")
    assert (request.verb, request.interface, request.direction) == ("detach", "all", "egress")


def test_init_and_uninstall() -> None:
    request = ask("-H all")
    assert (request.verb, request.interface) == ("init", "all")
    assert ask("-Q").verb == "uninstall"


@pytest.mark.parametrize(
    ("line", "setting"),
    [
        ("-P eth0", ("per_interface_rules", "eth0", True)),
        ("-P eth0 -d", ("per_interface_rules", "eth0", False)),
        ("-x eth0", ("ssh", "eth0", False)),
        ("-x eth0 -d", ("ssh", "eth0", True)),
        ("-e eth0", ("icmp_echo", "eth0", True)),
        ("-6 eth0", ("ipv6", "eth0", True)),
        ("-6 all -d", ("ipv6", "all", False)),
        ("-q eth0", ("pass_non_tuple", "eth0", True)),
        ("-v all", ("verbose", "all", True)),
        ("--outbound-filter eth0", ("outbound_filter", "eth0", True)),
        ("-b all -d", ("outbound_filter", "all", False)),
        ("-R eth0", ("vrrp", "eth0", True)),
        ("-w eth0 -d", ("eapol", "eth0", False)),
    ],
)
def test_case_39_and_45_settings(line: str, setting: tuple[str, str, bool]) -> None:
    request = ask(line)
    assert (request.verb, request.settings) == ("set", [setting])


def test_settings_may_come_together() -> None:
    assert ask("-q eth0 -6eth0 -x eth1").settings == [
        ("pass_non_tuple", "eth0", True),
        ("ipv6", "eth0", True),
        ("ssh", "eth1", False),
    ]
    assert refused("-e a/b") == "-e, --icmp-echo: not an interface name: 'a/b'"


# What does not go together


def test_insert_counts_before_delete_flush_and_list() -> None:
    assert ask(f"{INSERT} -D").verb == "insert"
    assert ask(f"{INSERT} -L").verb == "insert"
    assert ask(f"{DELETE} -F").verb == "delete"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-L -F", "-L, --list: not together with -F, --flush"),
        ("-s x", "-s, --service-id: only together with -I or -D"),
        ("-L -s x", "-s, --service-id: only together with -I or -D"),
        ("-L -N eth0", "-N, --interface: only together with -I or -D"),
        ("-i", "-i, --intercepts: only together with -L"),
        ("-F -f", "-f, --passthrough: only together with -L"),
        ("-L -r", "-r, --route: only together with -I or -D or -F"),
    ],
)
def test_case_61_what_does_not_go_together(line: str, message: str) -> None:
    assert refused(line) == message


@pytest.mark.parametrize("flag", ["E", "G", "U", "Y"])
def test_lists_need_list(flag: str) -> None:
    assert refused(f"-{flag}").endswith(": only together with -L")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-C", "-C, --list-dnp3-fcodes: only together with -L or -F"),
        ("-L -j", "-j, --bind-flush: only together with -F"),
        ("-W x", "-W, --write-log: only together with -M"),
        ("-O x.o", "-O, --object-file: only together with -X"),
        ("-e eth0 -z ingress", "-z, --direction: only together with -I or -D or -F or -L or -X"),
        ("-F -c 10.0.0.1 -m 32", "-c, --dcidr-block: only together with -I or -D or -L"),
        ("-F -Q", "-Q, --disable-ebpf: not together with -F, --flush"),
        ("-H eth0 -e eth0", "-e, --icmp-echo: not together with -H, --init-tc"),
        (f"{INSERT} -6 all", "-6, --ipv6-enable: not together with -I, --insert"),
        ("-F -j -z ingress", "-z, --direction: not together with -j, --bind-flush"),
        ("-F -j -r", "-r, --route: not together with -j, --bind-flush"),
        ("-B 10.0.0.1 -J 10.0.0.1 -m 32", "-J, --bind-saddr-delete: not together with -B, "),
        ("-A -F", "-A, --add-user-rules: not together with -F, --flush"),
        ("-B 10.0.0.1 -m 32 -d", "-d, --disable: only together with "),
    ],
)
def test_nothing_asked_for_is_silently_left_undone(line: str, message: str) -> None:
    assert refused(line).startswith(message)


@pytest.mark.parametrize("line", ["", "--"])
def test_asking_for_nothing(line: str) -> None:
    assert refused(line).startswith("nothing to do: ")
    assert refused("-d").startswith("-d, --disable: only together with -I or -D or -X or -e ")


# Bound addresses, user rules


def test_case_57_an_address_is_bound_and_unbound() -> None:
    for flag, verb in (("-B", "bind"), ("-J", "unbind"), ("--bind-saddr-a", "bind")):
        request = ask(f"{flag} 10.1.2.3 -m 16")
        assert (request.verb, str(request.prefix)) == (verb, "10.1.0.0/16")
        assert str(ask(f"{flag} fd00::1/128").prefix) == "fd00::1/128"
    assert (ask("-F -j").verb, ask("-jF").verb) == ("unbind_all", "unbind_all")
    assert ask("-A").verb == "user_rules"


@pytest.mark.parametrize("flag", ["B", "J"])
def test_case_57_an_address_without_a_length_is_refused(flag: str) -> None:
    name = {"B": "bind-saddr-add", "J": "bind-saddr-delete"}[flag]
    message = f"-m, --dprefix-len: missing, -{flag}, --{name} needs it"
    assert refused(f"-{flag} 10.0.0.1") == message
    for bad, option in (
        ("10.0.0.1 -m 33", f"-{flag}, --{name}"),
        ("10.0.0.1 -m x", "-m, --dprefix-len"),
        ("host.example -m 32", f"-{flag}, --{name}"),
        ("fd00::1 -m 129", "-m, --dprefix-len"),
        ("10.0.0.1 -m 32 -o 10.0.0.2 -n 32", "-o, --ocidr-block"),
    ):
        assert refused(f"-{flag} {bad}").startswith(f"{option}: ")


# What comes later


@pytest.mark.parametrize(
    ("line", "feature"),
    [
        ("--ddos-dport-add 443", "-u, --ddos-dport-add"),
        ("-u 443 -d", "-u, --ddos-dport-add"),
        ("-L -U", "-U, --list-ddos-dports"),
        ("-LC", "-C, --list-dnp3-fcodes"),
        ("-F -C", "-C, --list-dnp3-fcodes"),
        ("-T eth0", "-T, --set-tun-mode"),
        ("-e eth0 -T eth0", "-T, --set-tun-mode"),
        ("-M all -W /tmp/log", "-M, --monitor"),
        ("-Z tun0", "-Z, --init-xdp"),
    ],
)
def test_case_43_to_45_what_is_not_there_yet_is_understood(line: str, feature: str) -> None:
    request = ask(line)
    assert (request.verb, request.feature) == ("later", feature)


# The table, and what is made of it


def test_case_62_the_articles_rule() -> None:
    rule = ask("-I -c 100.72.0.4 -m 32 -p tcp -l 22 -h 22 -t 43321").rule
    assert str(rule) == "ingress tcp 100.72.0.4/32 port 22 intercept"
    assert rule.tproxy_port == 43321


def test_every_option_is_in_help_and_usage() -> None:
    help_lines = help_text().splitlines()
    usage = usage_text()
    for flag in classic.FLAGS.values():
        [line] = [line for line in help_lines if line.lstrip().startswith(f"{flag.name} ")]
        assert flag.help in line
        assert f"[-{flag.short}" in usage if flag.short else f"[--{flag.long}]" in usage
        assert flag.argument in usage


def test_the_table_names_what_there_is() -> None:
    assert classic.FIELD_NAMES.keys() == FIELDS.keys()
    assert classic.SETTINGS.keys() <= SETTINGS.keys()
    assert {flag.row for flag in classic.SETTINGS.values()} < set(listing._SETTING_ROWS)
    for name, flag in classic.SETTINGS.items():
        assert flag.turns_off == SETTINGS[name].default
    for flag in classic.FLAGS.values():
        letters = {*flag.with_, *flag.needs, *flag.refuses} | ({flag.length} - {""})
        assert letters <= classic.FLAGS.keys()


@pytest.mark.parametrize("text", [help_text(), usage_text()])
def test_help_and_usage_fit_a_terminal(text: str) -> None:
    assert text.startswith("Usage: zfw ")
    assert text.endswith("\n")
    assert all(len(line) <= 100 and line.isascii() for line in text.splitlines())


def test_a_request_shows_what_was_asked() -> None:
    assert repr(ask("-F -z egress")) == "<Request flush {'F': '', 'z': 'egress'}>"


def test_nothing_but_the_model_is_imported() -> None:
    program = (
        "import sys; before = set(sys.modules); import zfw_py.cli.classic.grammar;"
        "print(*sorted(set(sys.modules) - before))"
    )
    path = [entry for entry in sys.path if entry]
    program = f"import sys; sys.path[:] = {path!r}; {program}"
    imported = captured(sys.executable, "-S", "-c", program, check=True).stdout.split()
    assert imported == [
        "__future__",
        "_socket",
        "zfw_py",
        "zfw_py.cli",
        "zfw_py.cli.classic",
        "zfw_py.cli.classic.grammar",
        "zfw_py.errors",
        "zfw_py.firewall",
        "zfw_py.firewall.model",
        "zfw_py.values",
        "zfw_py.values.prefix",
    ]
