# SPDX-License-Identifier: GPL-2.0-only
"""zfw: an interception firewall for Linux gateways.

    from zfw_py import Firewall, Prefix, Rule, RuleKey

    firewall = Firewall()
    firewall.attach("eth0")
    key = RuleKey(Prefix.parse("100.72.0.4/32"), "tcp", 22)
    firewall.insert(Rule(key, tproxy_port=43321))

Importing this package imports nothing else; each name is loaded when it is used.
"""

from __future__ import annotations

# Any module may import it from here: this file runs before each of them and imports none.
_HOMES = {
    "__version__": "zfw_py.version",
    "Firewall": "zfw_py.firewall.service",
    "Insert": "zfw_py.firewall.service",
    "Delete": "zfw_py.firewall.service",
    "Inserted": "zfw_py.firewall.rules",
    "Deleted": "zfw_py.firewall.rules",
    "RuleNotFound": "zfw_py.firewall.rules",
    "Attachment": "zfw_py.firewall.programs",
    "Decision": "zfw_py.firewall.explain",
    "Explanation": "zfw_py.firewall.story",
    "Question": "zfw_py.firewall.question",
    "Flow": "zfw_py.firewall.flows",
    "FlowLimits": "zfw_py.firewall.flow_limits",
    "Document": "zfw_py.firewall.document",
    "DocumentError": "zfw_py.firewall.document",
    "Restored": "zfw_py.firewall.persistence",
    "Status": "zfw_py.firewall.status",
    "InterfaceStatus": "zfw_py.firewall.status",
    "EventSink": "zfw_py.guard.events",
    "Guard": "zfw_py.guard.service",
    "GuardEvent": "zfw_py.guard.events",
    "GuardStatus": "zfw_py.guard.listing",
    "GuardTarget": "zfw_py.guard.target",
    "Policy": "zfw_py.guard.model",
    "Prefix": "zfw_py.values.prefix",
    "OWN4": "zfw_py.firewall.model",
    "OWN6": "zfw_py.firewall.model",
    "Rule": "zfw_py.firewall.model",
    "RuleKey": "zfw_py.firewall.model",
    "RedirectStatus": "zfw_py.docker_dns.listing",
    "Redirect": "zfw_py.docker_dns.model",
    "DnsRedirect": "zfw_py.docker_dns.service",
    "RedirectOptions": "zfw_py.docker_dns.service",
    "MappingStatus": "zfw_py.steer.listing",
    "SteeringStatus": "zfw_py.steer.listing",
    "AddressTarget": "zfw_py.steer.model",
    "Mapping": "zfw_py.steer.model",
    "MappingKey": "zfw_py.steer.model",
    "ProcessTarget": "zfw_py.steer.model",
    "UnitTarget": "zfw_py.steer.model",
    "Applied": "zfw_py.steer.service",
    "Steering": "zfw_py.steer.service",
    "ZfwError": "zfw_py.errors",
    "UsageError": "zfw_py.errors",
    "NotInstalled": "zfw_py.errors",
    "NotFound": "zfw_py.errors",
    "Conflict": "zfw_py.errors",
    "MapFull": "zfw_py.errors",
    "LayoutMismatch": "zfw_py.errors",
    "Busy": "zfw_py.errors",
    "PermissionDenied": "zfw_py.errors",
    "KernelError": "zfw_py.errors",
    "VerifierError": "zfw_py.errors",
}

__all__ = sorted(name for name in _HOMES if name[0] != "_")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from zfw_py.docker_dns.listing import RedirectStatus as RedirectStatus
    from zfw_py.docker_dns.model import Redirect as Redirect
    from zfw_py.docker_dns.service import DnsRedirect as DnsRedirect
    from zfw_py.docker_dns.service import RedirectOptions as RedirectOptions
    from zfw_py.errors import Busy as Busy
    from zfw_py.errors import Conflict as Conflict
    from zfw_py.errors import KernelError as KernelError
    from zfw_py.errors import LayoutMismatch as LayoutMismatch
    from zfw_py.errors import MapFull as MapFull
    from zfw_py.errors import NotFound as NotFound
    from zfw_py.errors import NotInstalled as NotInstalled
    from zfw_py.errors import PermissionDenied as PermissionDenied
    from zfw_py.errors import UsageError as UsageError
    from zfw_py.errors import VerifierError as VerifierError
    from zfw_py.errors import ZfwError as ZfwError
    from zfw_py.firewall.document import Document as Document
    from zfw_py.firewall.document import DocumentError as DocumentError
    from zfw_py.firewall.explain import Decision as Decision
    from zfw_py.firewall.flow_limits import FlowLimits as FlowLimits
    from zfw_py.firewall.flows import Flow as Flow
    from zfw_py.firewall.model import OWN4 as OWN4
    from zfw_py.firewall.model import OWN6 as OWN6
    from zfw_py.firewall.model import Rule as Rule
    from zfw_py.firewall.model import RuleKey as RuleKey
    from zfw_py.firewall.persistence import Restored as Restored
    from zfw_py.firewall.programs import Attachment as Attachment
    from zfw_py.firewall.question import Question as Question
    from zfw_py.firewall.rules import Deleted as Deleted
    from zfw_py.firewall.rules import Inserted as Inserted
    from zfw_py.firewall.rules import RuleNotFound as RuleNotFound
    from zfw_py.firewall.service import Delete as Delete
    from zfw_py.firewall.service import Firewall as Firewall
    from zfw_py.firewall.service import Insert as Insert
    from zfw_py.firewall.status import InterfaceStatus as InterfaceStatus
    from zfw_py.firewall.status import Status as Status
    from zfw_py.firewall.story import Explanation as Explanation
    from zfw_py.guard.events import EventSink as EventSink
    from zfw_py.guard.events import GuardEvent as GuardEvent
    from zfw_py.guard.listing import GuardStatus as GuardStatus
    from zfw_py.guard.model import Policy as Policy
    from zfw_py.guard.service import Guard as Guard
    from zfw_py.guard.target import GuardTarget as GuardTarget
    from zfw_py.steer.listing import MappingStatus as MappingStatus
    from zfw_py.steer.listing import SteeringStatus as SteeringStatus
    from zfw_py.steer.model import AddressTarget as AddressTarget
    from zfw_py.steer.model import Mapping as Mapping
    from zfw_py.steer.model import MappingKey as MappingKey
    from zfw_py.steer.model import ProcessTarget as ProcessTarget
    from zfw_py.steer.model import UnitTarget as UnitTarget
    from zfw_py.steer.service import Applied as Applied
    from zfw_py.steer.service import Steering as Steering
    from zfw_py.values.prefix import Prefix as Prefix
    from zfw_py.version import __version__ as __version__


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
