# SPDX-License-Identifier: GPL-2.0-only
"""Parses DNS names to their canonical form: A-labels, lower case, without a last dot. Pure."""

from __future__ import annotations

import re

from zfw_py.errors import UsageError

# The root; every name is below it.
ROOT = "."

# RFC 1035, section 2.3.4, as text without the root's dot.
_MAX_NAME = 253
_MAX_LABEL = 63
_LABEL = re.compile(r"[a-z0-9_-]+")
# The characters that separate labels in Unicode (RFC 3490, section 3.1).
_DOTS = re.compile("[.\u3002\uff0e\uff61]")
# Characters for which IDNA 2003 and IDNA 2008 give different names (UTS 46, section 7).
_DEVIATIONS = frozenset("\u00df\u03c2\u1e9e\u200c\u200d")


def is_like_ipv4(name: str) -> bool:
    """Whether the last label is a number; host names have none such (RFC 1123, section 2.1)."""
    last = name.removesuffix(".").rpartition(".")[2]
    return last.isascii() and last.isdigit()


def parse_name(text: str, option: str) -> str:
    """Read a name, in A-labels or Unicode; its canonical form.

    Raises UsageError whose message begins with ``option``.
    """
    if text == ROOT:
        return ROOT
    if text == "*" or text.startswith("*."):
        covering = text[2:] or ROOT
        raise UsageError(f"{option}: '{covering}' covers all names below it: {text!r}")
    labels = (text if text.isascii() else _DOTS.sub(".", text)).split(".")
    if len(labels) > 1 and not labels[-1]:
        labels.pop()
    for index, label in enumerate(labels):
        made = labels[index] = label.lower() if label.isascii() else _a_label(label, text, option)
        if not made:
            raise UsageError(f"{option}: an empty label in {text!r}")
        if len(made) > _MAX_LABEL:
            raise UsageError(f"{option}: a label of more than {_MAX_LABEL} octets in {text!r}")
        if not _LABEL.fullmatch(made):
            raise UsageError(
                f"{option}: only letters, digits, hyphens and underscores are allowed: {text!r}"
            )
    name = ".".join(labels)
    if len(name) > _MAX_NAME:
        raise UsageError(f"{option}: a name of more than {_MAX_NAME} octets: {text!r}")
    if is_like_ipv4(name):
        raise UsageError(f"{option}: not an IPv4 or IPv6 address: {text!r}")
    return name


def _a_label(label: str, text: str, option: str) -> str:
    """The A-label, by IDNA 2008 if the package idna is installed, else by IDNA 2003."""
    from dns.exception import DNSException
    from dns.name import IDNA_2003_Practical, IDNA_2008_Practical, have_idna_2008

    if not have_idna_2008 and not _DEVIATIONS.isdisjoint(label):
        # IDNA 2003 would give another name than the package does.
        raise UsageError(f"{option}: needs the Python package idna, or A-labels (xn--): {text!r}")
    codec = IDNA_2008_Practical if have_idna_2008 else IDNA_2003_Practical
    try:
        return codec.encode(label).decode("ascii").lower()
    except (DNSException, UnicodeError):
        raise UsageError(f"{option}: {label!r} is not a valid label: {text!r}") from None
