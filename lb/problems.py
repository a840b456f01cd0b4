"""Problems: what is wrong with the input, said so that somebody can fix it.

Owns the Problem value, the list of all problem codes, and the collector. A problem never stops a build: the object
it names is the only thing that it costs. This file knows nothing of Kubernetes, of files or of the data plane.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Where something in the model came from.

    `line` and `column` count from 1; 0 says that they are not known yet. For JSON `line` is 0 and `item` names the
    object's place in its file (`items[12]`), from which the line is found when somebody asks.
    """

    kind: str = ""
    namespace: str = ""
    name: str = ""
    file: str = ""
    line: int = 0
    column: int = 0
    item: str = ""

    @property
    def object(self) -> str:
        """`Ingress shop/web`, or the file's name for what belongs to no object."""
        if not self.kind:
            return self.file
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"

    @property
    def place(self) -> str:
        """`web.yaml:12:3`, `export.json items[12]`, or `` for what has no file."""
        if self.line:
            return f"{self.file}:{self.line}:{self.column}" if self.column else f"{self.file}:{self.line}"
        return f"{self.file} {self.item}".rstrip()


class Problem(msgspec.Struct, frozen=True, gc=False):
    """One thing that is wrong: which object, where in it, what, why it matters, and how to fix it."""

    code: str
    origin: Origin
    what: str
    why: str = ""
    fix: str = ""
    field: str = ""
    """Path inside the object, such as `spec.rules[0].http.paths[1].backend`."""
    trace: str = ""
    """Where in lb it failed, when the fault is lb's own."""

    @property
    def severity(self) -> Severity:
        return CODES[self.code].severity


class Code(msgspec.Struct, frozen=True, gc=False):
    """A stable problem code: users search for it, suppress it and alert on it."""

    severity: Severity
    title: str


CODES: dict[str, Code] = {
    # Reading files
    "LB1001": Code("error", "file cannot be read"),
    "LB1002": Code("error", "syntax error"),
    "LB1003": Code("error", "field has the wrong type or is missing"),
    "LB1004": Code("warning", "object stands more than once in the input"),
    "LB1005": Code("note", "nothing in the input is of a kind lb serves"),
    "LB1006": Code("error", "file ends in the middle; the last good content stays in use"),
    "LB1007": Code("error", "apiVersion has been superseded"),
    "LB1008": Code("error", "certificate file cannot be used"),
    "LB1009": Code("warning", "field is probably misspelt"),
    "LB1010": Code("error", "field that holds access back is probably misspelt"),
    # Which objects are ours
    "LB2001": Code("note", "no object names lb: every Ingress is served"),
    "LB2002": Code("note", "Ingress belongs to another controller"),
    "LB2003": Code("warning", "IngressClass does not exist"),
    "LB2004": Code("warning", "more than one default IngressClass"),
    "LB2005": Code("note", "Service of type LoadBalancer is left to others"),
    # Ingress
    "LB3001": Code("error", "path is not valid"),
    "LB3002": Code("error", "host is not valid"),
    "LB3003": Code("error", "pathType is missing or unknown"),
    "LB3004": Code("warning", "another object already serves this host and path"),
    "LB3005": Code("error", "backend is not valid: it needs one service or resource, and one port"),
    "LB3006": Code("error", "resource backends are not served"),
    "LB3007": Code("warning", "rule is shadowed and never matches"),
    "LB3008": Code("note", "age of conflicting objects is unknown or equal: ordered by namespace and name"),
    "LB3010": Code("error", "TLS Secret does not exist"),
    "LB3011": Code("error", "TLS Secret cannot be used"),
    "LB3012": Code("error", "certificate is not for the host"),
    "LB3013": Code("error", "Secret or ConfigMap with authorities does not exist"),
    "LB3014": Code("error", "authorities cannot be used"),
    "LB3015": Code("error", "TLS is not passed through as the Ingress says"),
    "LB3016": Code("warning", "rule is served by plain HTTP only, because TLS of its host is passed through"),
    # Services, endpoints, nodes
    "LB4001": Code("error", "Service does not exist"),
    "LB4002": Code("error", "Service has no such port"),
    "LB4003": Code("warning", "Service has no ready endpoint"),
    "LB4004": Code("error", "external name is not valid"),
    "LB4005": Code("warning", "name cannot be resolved"),
    "LB4006": Code("error", "Service has no nodePort"),
    "LB4007": Code("warning", "no node can serve as target"),
    "LB4008": Code("error", "address is no IP address"),
    "LB4009": Code("warning", "appProtocol asks for TLS that is not set up"),
    "LB4010": Code("error", "port of a load balancer is neither TCP nor UDP"),
    "LB4011": Code("error", "another object already listens on this address and port"),
    "LB4012": Code("error", "source range is no network"),
    "LB4013": Code("error", "entry of tcp-services or udp-services is not valid"),
    "LB4014": Code("error", "timeout of session affinity is out of range"),
    "LB4015": Code("error", "more ports are asked for than lb listens on"),
    "LB4016": Code("error", "Service has a value that Kubernetes refuses"),
    "LB4017": Code("warning", "Service takes an address of a port that another object has on all"),
    "LB4018": Code("note", "Service takes an address of a port that another object has on all, as lb/addresses says"),
    "LB4019": Code("warning", "externalIPs are not listened on"),
    "LB4020": Code("note", "Services listen on all addresses, and clients know them at some"),
    # Annotations and the native file
    "LB5001": Code("error", "annotation has a value lb does not know"),
    "LB5002": Code("warning", "annotation is not known"),
    "LB5003": Code("error", "native file is not valid"),
    "LB5004": Code("error", "reference names nothing in the native file"),
    "LB5005": Code("warning", "name is defined more than once; the first definition counts"),
    "LB5006": Code("warning", "annotations of several objects contradict each other"),
    "LB5007": Code("warning", "annotations of another controller have no effect"),
    "LB5008": Code("warning", "annotations for TLS to endpoints have no effect"),
    "LB5009": Code("warning", "certificates of endpoints are not verified"),
    "LB5010": Code("error", "client certificates cannot be asked for as the Ingress says"),
    "LB5011": Code("warning", "plain HTTP is sent to https all the same, because client certificates are required"),
    "LB5012": Code("error", "Ingresses ask different things of the clients of one host"),
    "LB5013": Code("warning", "HTTP/2 gives way: connections are for one client"),
    "LB5014": Code("warning", "host is served by plain HTTP only, because TLS of its name is passed through"),
    "LB5015": Code("warning", "settings stand in a file that -c does not name"),
    "LB5016": Code("warning", "file that the settings name cannot be opened here"),
    # Serving
    "LB6001": Code("error", "listener cannot be opened"),
    "LB6002": Code("warning", "certificate expires soon"),
    "LB6003": Code("warning", "certificate has expired"),
    "LB6004": Code("warning", "certificate is not valid yet"),
    "LB6005": Code("warning", "certificate chain may not lead to its root"),
    "LB6006": Code("warning", "OCSP response is out of date"),
    "LB6007": Code("error", "certificate is refused by OpenSSL"),
    "LB6008": Code("error", "authorities or revocation lists are refused by OpenSSL"),
    "LB6009": Code("error", "revocation list is out of date"),
    "LB6010": Code("error", "connections cannot leave with clients' addresses"),
    # Faults of lb
    "LB7001": Code("error", "lb fails on an object, by a fault of its own"),
}


NOT_LISTENED_FOR = ("LB2005", "LB4010", "LB4011", "LB4012", "LB4013", "LB4015")
"""Why a port of a load balancer, or one of its clients, finds nobody."""

WHERE_TO_LISTEN = (
    "spec.loadBalancerIP",
    "spec.ports",
    "spec.type",
    "metadata.annotations[lb/addresses]",
    "metadata.annotations[lb/load-balancer]",
    "metadata.annotations[metallb.io/loadBalancerIPs]",
    "metadata.annotations[metallb.universe.tf/loadBalancerIPs]",
)
"""Fields of which a mistake has the same effect."""


class Problems:
    """Collects problems in the order they are found, each once."""

    __slots__ = ("_seen",)

    def __init__(self, problems: Iterable[Problem] = ()) -> None:
        self._seen: dict[Problem, None] = dict.fromkeys(problems)

    def add(self, code: str, origin: Origin, what: str, *, why: str = "", fix: str = "", field: str = "") -> None:
        if code not in CODES:
            raise KeyError(f"problem code {code} is not in lb/problems.py")
        self._seen[Problem(code, origin, what, why, fix, field)] = None

    def extend(self, problems: Iterable[Problem]) -> None:
        self._seen.update(dict.fromkeys(problems))

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)

    def count(self, severity: Severity) -> int:
        return sum(1 for problem in self._seen if problem.severity == severity)
