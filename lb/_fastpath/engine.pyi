"""What the control plane drives. What it puts into tables is in compiled and credentials, looks at flows in flow_look.

Under the GIL, one call at a time: `compile_host` and the `make_` and `change_` calls come from the worker thread of a
build, all others from the event loop. What both touch (live endpoints) is guarded by the pipeline's lock.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from lb._fastpath.compiled import HostIndex, HostProgram, ListenerView, Table, TlsIndex, UpstreamView
from lb._fastpath.credentials import ClientTls, TlsHost
from lb._fastpath.flow_look import FlowLook

REASONS: tuple[str, ...]
"""Why an exchange or a connection ended (`ok`, `no-route`, `no-endpoint`, `connect-failed`, `head-timeout`, …): log
field, metric
label and `explain` text. The index is the value in C."""
HISTOGRAM_BOUNDS_SECONDS: tuple[float, ...]
"""Upper bounds of the latency histograms, as Prometheus' `le`; one more, open bucket follows."""
LOG_FIELDS: tuple[str, ...]
"""Fields that an access log program may use: time, time_clf, client, client_port, listener, method, host, target,
protocol, status, bytes_in, bytes_out, duration, first_byte, connect, queue (these four in seconds), virtual_host,
route, upstream, endpoint, attempts, failed_attempts, reason, request_id, user_agent, referer, generation,
tls_version, tls_cipher, server_name, client_subject, client_verify, client_serial,
client_fingerprint, client_san, grpc_status, tls_error, alpn, proxy, proxy_unique_id."""

class Traffic(TypedDict):
    """Counters since start, summed over threads."""

    responses: list[int]
    """By status class: 1xx, 2xx, 3xx, 4xx, 5xx."""
    bytes_in: int
    """From the client (listener, route) or sent to endpoints (upstream), bodies and heads."""
    bytes_out: int
    buckets: list[int]
    """Not cumulative; len(HISTOGRAM_BOUNDS_SECONDS) + 1. Listener and route: whole exchange. Upstream: to first
    byte.
    """
    seconds: float
    """Sum of what the buckets count."""

class ListenerStats(Traffic):
    accepted: int
    active: int
    rejected: int
    requests: int
    tls_failed: int

class DatagramStats(TypedDict):
    datagrams_in: int
    datagrams_out: int
    evicted: int
    """Sessions that made way for others."""
    dropped: dict[str, int]
    """Datagrams by reason, either way; only reasons there were."""

class UpstreamStats(Traffic):
    active: int
    queued: int
    attempts: int
    retries: int
    connects: int
    connect_failures: int
    reused: int
    idle: int
    ejected: int
    ejections: int

class EndpointStats(TypedDict):
    key: str
    state: str
    """What balancing sees: `ready`, `draining`, `ejected` (after connect failures), `unhealthy` (by its checks),
    `untested` (came to others and waits for its first check), `drain`, `down` (by an operator).
    """
    weight: int
    active: int
    idle: int
    requests: int
    failures: int
    ejected_for_ms: int
    slow_share: float
    """How much of its weight it has: 1, or less while it starts slowly."""
    tls_error: str
    """Why its last TLS handshake has failed, in OpenSSL's words; empty since one has succeeded."""
    failures_in_row: int
    last_failure: str
    """Why the last connection failed; empty since one has succeeded."""

RouteSpec = tuple[str, int, bytes, Sequence[bytes], Sequence[Condition], Sequence[Condition], object, tuple[int, ...]]
"""Name, path kind (0 exact, 1 prefix, 2 string-prefix), path key, methods, headers, query parameters, action (a list of
(upstream, weight), or (status, body)), options (max body bytes or -1; response, idle, tunnel and request timeout in
ms; retries; status of the redirect to https; whether gRPC-Web is bridged)."""
StreamSpec = tuple[str, Sequence[tuple[str, int]], tuple[int, int, int, int], tuple[tuple[bytes, int], ...]]
"""What a listener does that only carries bytes: name of its route; (upstream, weight); idle, half-closed and drain
timeout in ms, retries; networks whose clients are let in, as `trusted`."""
NameSpec = tuple[StreamSpec, bool, bytes]
"""Where the connections of a server name go: as above; whether lb terminates TLS; the ALPN protocols of which the
client must offer one, each behind its length."""
Condition = tuple[bytes, bytes | None]

class Engine:
    """N reactor threads and what they share."""

    generation: int
    """Of the table that serves; 0 before the first one."""
    def __init__(
        self,
        *,
        threads: int,
        max_connections: int = 0,
        max_buffer_bytes: int = 0,
        log_ring_bytes: int = 1 << 20,
        spare_descriptors: int = 64,
        tls_by_kernel: bool = False,
    ) -> None:
        """`spare_descriptors` are left to the control plane."""
    def compile_host(self, hostname: str, one_label: bool, routes: list[RouteSpec]) -> HostProgram:
        """One virtual host; `routes` in rank order."""
    def make_index(self, hosts: dict[str, HostProgram]) -> HostIndex: ...
    def change_index(self, before: HostIndex, changed: dict[str, HostProgram], removed: Sequence[str]) -> HostIndex:
        """`before` with these programs put in and these names taken out; costs a copy, not a rebuild."""
    def make_listener(
        self,
        name: str,
        index: HostIndex,
        port: int,
        options: tuple[int, ...],
        trusted: tuple[tuple[bytes, int], ...],
        tls: TlsIndex | None = None,
        https_port: int = 0,
        hsts: bytes = b"",
        http2: bool = True,
        carried: StreamSpec | None = None,
        proxies: tuple[tuple[bytes, int], ...] = (),
        names: Mapping[str, Sequence[NameSpec]] | None = None,
        carries: bool = False,
        sessions: tuple[int, int, int, int, int] | None = None,
    ) -> ListenerView:
        """`options` in the order of lb/compile/table.py; `trusted` and `proxies` (whose connections begin with a PROXY
        header) as (16-byte address, leading bits); `https_port`: where the same hosts are served by TLS; `hsts`: value
        of Strict-Transport-Security; `names`: server names whose connections are carried; `carries`: there is no HTTP;
        `sessions`: of a UDP listener the answers that end one, how many there may be, in all and of one client, and how
        many new ones a second.
        """
    def make_tls_index(self, hosts: dict[str, TlsHost]) -> TlsIndex:
        """Over {server name: TlsHost}; `*.example.com` covers one label, `*` stands for all other names."""
    def set_ticket_keys(self, keys: Sequence[bytes]) -> None:
        """Session tickets are made with the first key and read with any: 80 bytes each (name, AES-256, HMAC)."""
    def make_upstream(
        self,
        name: str,
        endpoints: list[tuple[str, str, int, int]],
        policy: tuple[int, ...],
        protocol: int = 0,
        tls: ClientTls | None = None,
    ) -> UpstreamView:
        """`endpoints` as (key, address, port, weight). ValueError for what is no address. `protocol`: 0 HTTP/1."""
    def make_table(
        self,
        generation: int,
        listeners: dict[str, ListenerView],
        upstreams: dict[str, UpstreamView],
        places: dict[str, str] | None = None,
    ) -> Table:
        """`places`: which listener a place has that open_listener was told, or will be. What comes there is served by
        that one from the moment this table is published.
        """
    def start(self) -> None:
        """Start the threads. They accept nothing before a table is published and a listener opened."""
    def publish(self, table: Table) -> None:
        """Make `table` the one every request uses that starts from now on."""
    def collect(self) -> int:
        """Free what no thread uses any more; returns how many old tables are still pinned. Call it about once a
        second.
        """
    def open_listener(self, name: str, sockets: Sequence[int], place: str | None = None) -> None:
        """Accept on these listening, non-blocking sockets: one a thread (SO_REUSEPORT), or one shared by all. The
        engine duplicates them; the caller closes its own. `place`: any text, by which tables say whose it is; without
        one it is the name."""
    def pass_listener(self, place: str, name: str) -> None:
        """The sockets at a place are another listener's, as the published table says already."""
    def close_listener(self, place: str) -> None:
        """Take what waits in the accept queues, then close the sockets. Connections go on, UDP sessions end."""
    def stop_accepting(self) -> None: ...
    def drain(self) -> None:
        """Answer what is under way with `Connection: close`, close idle connections."""
    def active(self) -> tuple[int, int]:
        """(exchanges and tunnels under way, client connections open)."""
    def stop(self) -> None:
        """End the threads now; open connections are closed."""
    def heartbeat_ages_ms(self) -> list[int]:
        """Since each reactor last turned; it turns at least every 500 ms."""
    def set_error_answer(self, status: int, content_type: str, body: bytes) -> None:
        """The body for lb's own answers with this status (0: for all others). `%(status)`, `%(title)`, `%(reason)` and
        `%(request_id)` are filled in. Call before start."""
    def open_log(self, fd: int, program: Sequence[bytes | tuple[str, str]]) -> None:
        """Write access log records to `fd` (duplicated), also to replace the file after a rotation. `program` is one
        record: literal bytes and (field, escape) pairs with escape `raw`, `json` (the inside of a JSON string) or
        `clf`. An empty program ends logging."""
    def flush_log(self) -> None:
        """Wait until all records made so far are written (at most 1 s)."""
    def counters(self) -> dict[str, int]:
        """Process-wide counts: connections_opened, connections_closed, upstream_opened, upstream_closed,
        upstream_stolen, exchanges_started, exchanges_ended, log_dropped, log_written, log_failed, accept_pauses,
        idle_closed_by_pressure, turns, events; and at this moment: connections, descriptors, tables_pinned,
        buffer_bytes."""
    def reasons(self) -> dict[str, int]:
        """How many exchanges and connections ended for each reason."""
    def listener_stats(self) -> dict[str, ListenerStats]:
        """Of UDP listeners, sessions stand for connections."""
    def datagram_stats(self) -> dict[str, DatagramStats]:
        """Of the UDP listeners that were opened."""
    def route_stats(self) -> dict[str, Traffic]:
        """Only routes that had traffic."""
    def grpc_stats(self) -> dict[str, list[int]]: ...
    def upstream_stats(self) -> dict[str, UpstreamStats]: ...
    def ejection_changes(self) -> int:
        """A number that is another one whenever an endpoint was ejected or has come back from that."""
    def ejected(self) -> dict[tuple[str, str], tuple[int, int, str]]:
        """{(upstream, endpoint): (for how many milliseconds more, connections in a row that failed, why the last
        one did)} of those in the current table that were ejected: until a connection to them succeeds, or their time
        is over and they answer on one that was kept.
        """
    def endpoint_stats(self, upstream: str) -> list[EndpointStats]:
        """Of the endpoints in the current table."""
    def look_at_flows(
        self,
        *,
        listener: str | None = None,
        upstream: str | None = None,
        key: str | None = None,
        client: tuple[bytes, int] | Literal["unix"] | None = None,
        order: str = "age",
        limit: int = 50,
        ends: bool = False,
    ) -> FlowLook | None:
        """Have all reactors look at their flows and UDP sessions, bounded work in each turn; None while they still do
        so for somebody else. `key`: of an endpoint; `client`: (16-byte address, leading bits). With `ends` those that
        are wanted end, with the reason `ended-by-operator`. KeyError("listener") or KeyError("upstream") when there has
        never been one of that name."""
    def remembered_endpoint(self, upstream: str, client: bytes) -> tuple[str, int] | None:
        """(endpoint, milliseconds since it was chosen last) of what client affinity remembers for a client (16-byte
        address); None when it does not."""
    def set_endpoint(self, upstream: str, key: str, *, admin: str | None = None, weight: int | None = None) -> None:
        """Operator's say: admin is `ready`, `drain` (nothing new) or `down` (nothing new, idle connections closed);
        weight -1 returns to the model's. Survives reloads. KeyError when there is no such endpoint."""
    def set_health(self, upstream: str, key: str, healthy: bool, reset_flows: bool = False) -> None:
        """What health checks say, for all threads at once; an endpoint that is not checked is healthy. One that turns
        unhealthy loses its unused connections and its UDP sessions, and with `reset_flows` its TCP connections; one
        that turns healthy is no longer ejected. One that has gone meanwhile is passed over."""
