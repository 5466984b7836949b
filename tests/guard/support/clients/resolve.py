# SPDX-License-Identifier: GPL-2.0-only
"""resolve.py NAME...: for each name and type a line, of all at once, by dnspython.

The name, the type, and the error's class or the end of the chain, the flags and the records.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import dns.exception
import dns.flags
import dns.resolver


def line(name: str, rdtype: str) -> str:
    """What a program that uses dnspython sees."""
    resolver = dns.resolver.Resolver()
    resolver.lifetime = 5.0
    resolver.use_edns(0, dns.flags.DO, 1232)
    try:
        found = resolver.resolve(name, rdtype, search=True)
    except dns.exception.DNSException as error:
        return f"{name} {rdtype} {type(error).__name__}"
    records = [
        f"{each.name} {each.ttl} {each.rdtype} {data}"
        for each in found.response.answer
        for data in each
    ]
    flags = dns.flags.to_text(found.response.flags)
    return f"{name} {rdtype} {found.canonical_name} {flags} {records}"


def main() -> None:
    """Print the lines."""
    questions = [(name, rdtype) for name in sys.argv[1:] for rdtype in ("A", "AAAA")]
    with ThreadPoolExecutor(len(questions)) as pool:
        for each in pool.map(lambda question: line(*question), questions):
            print(each)


if __name__ == "__main__":
    main()
