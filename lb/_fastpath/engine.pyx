"""What the control plane drives: the data plane as Python objects (those of TLS are in credentials).

Python objects own the C structs of tables, one each (HostProgram, HostIndex, UpstreamView, ListenerView, Table), and
keep each other alive the way the structs point at each other. Live state (Endpoint, Upstream, listener and route ids)
is in the engine's registries and outlives all tables. Everything here runs in the control plane's thread; reactors
are reached through the table pointer, through atomics, and through commands.
"""
import errno
import os
import resource
import stat
import time

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from lb._fastpath.accept cimport (
    choose_route,
    run_close_listener,
    run_listen,
    run_pass_listener,
    run_stop_accepting,
)
from lb._fastpath.access cimport (
    ESCAPE_CLF,
    ESCAPE_JSON,
    ESCAPE_RAW,
    LOG_FIELD_COUNT,
    LOG_LITERAL,
    log_main,
    log_program,
    log_program_free,
    log_step,
    log_writer,
)
from lb._fastpath.c.sys cimport (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    SOCK_DGRAM,
    SOL_SOCKET,
    SO_TYPE,
    F_DUPFD_CLOEXEC,
    LB_R_DRAIN,
    LB_REASON_COUNT,
    close,
    fcntl,
    getsockopt,
    htons,
    inet_pton,
    lb_fence,
    lb_hash,
    lb_add_int,
    lb_huge_alloc,
    lb_line_alloc,
    lb_load_int,
    lb_load_ptr,
    lb_load_u64,
    lb_peek_i64,
    lb_peek_int,
    lb_peek_u64,
    lb_put_i64,
    lb_put_int,
    lb_reason_names,
    lb_store_int,
    lb_store_u64,
    lb_swap_ptr,
    pthread_create,
    pthread_join,
    pthread_setname_np,
    sockaddr_in,
    sockaddr_in6,
    sockaddr_un,
    socklen_t,
)
from lb._fastpath.affinity cimport AFFINITY_SETS, AFFINITY_WAYS, affinity_tell, remembered
from lb._fastpath.client_hello cimport client_hello, hello_texts
from lb._fastpath.clock cimport monotonic_ns
from lb._fastpath.credentials cimport ClientTls, TlsHost
from lb._fastpath.counters cimport (
    BUCKETS,
    STATS_CHUNK,
    STATS_CHUNKS,
    counters,
    datagram_traffic,
    grpc_traffic,
    lb_bounds_us,
    listener_traffic,
    stats_release,
    stats_space,
    traffic,
    upstream_traffic,
)
from lb._fastpath.endpoint cimport (
    ADMIN_DOWN,
    ADMIN_DRAIN,
    ADMIN_READY,
    CURSOR_WORDS,
    FAILED_BEFORE_SETTINGS,
    FAILED_NO_ANSWER,
    FAILED_NOT_HTTP2,
    FAILED_TLS,
    HEALTH_FAILED,
    HEALTH_OK,
    HEALTH_UNTESTED,
    MAX_REACTORS,
    affinity_entry,
    endpoint,
    idle_pool,
    upstream_live,
)
from lb._fastpath.datagram cimport (
    datagram_install,
    datagram_socket,
    datagrams_new,
    datagrams_release,
    run_close_datagrams,
    run_open_datagrams,
    run_pass_datagrams,
    sessions_drain,
    sessions_leave,
    sessions_stay,
)
from lb._fastpath.exchange cimport exchange, exchange_install
from lb._fastpath.flows cimport (
    LOOK_BUCKETS,
    LOOK_BY_AGE,
    LOOK_BY_BYTES,
    LOOK_BY_IDLE,
    carried_record,
    look_part,
    look_question,
    look_total,
    ranked,
    run_look,
)
from lb._fastpath.balance cimport endpoint_ejected, endpoint_forgive
from lb._fastpath.clients cimport clients_drain_idle
from lb._fastpath.http2 cimport stream
from lb._fastpath.http2_server cimport http2_server_drain
from lb._fastpath.limits cimport RATE_ROWS, rate_row
from lb._fastpath.memory cimport PAGE_CLASSES, slab_init
from lb._fastpath.message cimport MAX_FIELDS, head
from lb._fastpath.pipes cimport pipes_release
from lb._fastpath.reactor cimport (
    LISTENERS_MOST,
    command,
    error_answer,
    reactor,
    reactor_init,
    reactor_main,
    reactor_post,
    reactor_release,
    reactor_wake,
    shared,
)
from lb._fastpath.shares cimport build_maglev
from lb._fastpath.table cimport (
    ACTION_FORWARD,
    ACTION_RESPOND,
    BALANCE_MAGLEV,
    LISTENER_GONE,
    NO_LISTENER,
    NO_ROUTE,
    NO_SEAT,
    arena,
    arena_take,
    arena_text,
    build_paths,
    datagram_view,
    find_host,
    find_route,
    host_entry,
    host_index,
    index_put,
    index_remove,
    listener_view,
    name_route,
    network,
    pattern,
    predicate,
    route,
    route_at,
    slow_share,
    stream_view,
    table,
    target,
    text,
    text_at,
    tls_view,
    upstream_forget,
    upstream_lay_out,
    upstream_view,
    vhost,
)
from lb._fastpath.stream cimport flow, flows_begin_reset, flows_drain, flows_reset, flows_stay, stream_install
from lb._fastpath.tls cimport TICKET_KEYS, ticket_keys, tls_release
from lb._fastpath.transport cimport conn, listener_heir, listening, proxied
from lb._fastpath.upstream cimport pool_close

REASONS = tuple(lb_reason_names[i].decode() for i in range(LB_REASON_COUNT))
HISTOGRAM_BOUNDS_SECONDS = tuple(lb_bounds_us[i] / 1e6 for i in range(BUCKETS - 1))
LOG_FIELDS = (
    "time", "time_clf", "client", "client_port", "listener", "method", "host", "target", "protocol", "status",
    "bytes_in", "bytes_out", "duration", "first_byte", "connect", "queue", "virtual_host", "route", "upstream",
    "endpoint", "attempts", "failed_attempts", "reason", "request_id", "user_agent", "referer", "generation",
    "tls_version", "tls_cipher", "server_name", "client_subject", "client_verify", "client_serial",
    "client_fingerprint", "client_san", "grpc_status", "tls_error", "alpn", "proxy", "proxy_unique_id",
)
assert len(LOG_FIELDS) == LOG_FIELD_COUNT

cdef enum:
    MAX_IDS = STATS_CHUNK * STATS_CHUNKS
    MAX_RETRIES = 250


# ---------------------------------------------------------------------------------------------------------- live state

cdef class Endpoint:
    """Live state of one endpoint of one upstream."""

    cdef endpoint* p
    cdef readonly str upstream
    cdef readonly str key
    cdef readonly str admin
    cdef readonly object weight_override

    def __cinit__(self, Upstream upstream not None, str key, str address, int port, int reactors):
        cdef bytes raw = key.encode()
        cdef size_t size = reactors * sizeof(idle_pool)
        self.p = <endpoint*>lb_line_alloc(sizeof(endpoint))
        if self.p == NULL:
            raise MemoryError
        self.p.pools = <idle_pool*>lb_line_alloc(size)
        self.p.key = <char*>malloc(len(raw) + 1)
        if self.p.pools == NULL or self.p.key == NULL:
            raise MemoryError
        memcpy(self.p.key, <char*>raw, len(raw) + 1)
        self.p.key_size = <uint32_t>len(raw)
        self.p.hash = lb_hash(self.p.key, self.p.key_size)
        self.p.upstream = upstream.p
        self.p.retired = 1  # until it is published
        self.upstream = upstream.name
        self.key = key
        self.admin = "ready"
        self.weight_override = None
        self.set_address(address, port)

    def __dealloc__(self):
        if self.p != NULL:
            free(self.p.pools)
            free(self.p.key)
            free(self.p)

    cdef set_address(self, str address, int port):
        cdef sockaddr_in* v4 = <sockaddr_in*>&self.p.address
        cdef sockaddr_in6* v6 = <sockaddr_in6*>&self.p.address
        cdef sockaddr_un* local = <sockaddr_un*>&self.p.address
        cdef bytes raw = address.encode()
        if address.startswith("unix:"):
            raw = raw[5:]
            if not 0 < len(raw) < 108:
                raise ValueError(f"Unix socket path of {len(raw)} bytes, must be 1 to 107: {address}")
            local.sun_family = <unsigned short>AF_UNIX
            memcpy(local.sun_path, <char*>raw, len(raw) + 1)
            self.p.family = AF_UNIX
            self.p.address_size = <unsigned int>(2 + len(raw) + 1)
        elif inet_pton(AF_INET, raw, &v4.sin_addr) == 1:
            v4.sin_family = <unsigned short>AF_INET
            v4.sin_port = htons(<uint16_t>port)
            self.p.family = AF_INET
            self.p.address_size = sizeof(sockaddr_in)
        elif inet_pton(AF_INET6, raw, &v6.sin6_addr) == 1:
            v6.sin6_family = <unsigned short>AF_INET6
            v6.sin6_port = htons(<uint16_t>port)
            self.p.family = AF_INET6
            self.p.address_size = sizeof(sockaddr_in6)
        else:
            raise ValueError(f"not an IP address: {address}")

    cdef bint unused(self):
        return lb_peek_int(&self.p.active) == 0 and lb_peek_int(&self.p.connections) == 0 and (
            lb_load_int(&self.p.resetting) == 0  # the reactors' last word: nothing of theirs comes after it
        )


cdef class Upstream:
    """Live state of one upstream."""

    cdef upstream_live* p
    cdef readonly str name
    cdef readonly dict endpoints
    cdef MaglevTable maglev  # the one made last

    def __cinit__(self, str name, uint32_t id, int reactors):
        cdef bytes raw = name.encode("utf-8", "replace")
        self.p = <upstream_live*>lb_line_alloc(sizeof(upstream_live))
        if self.p == NULL:
            raise MemoryError
        self.p.cursors = <uint32_t*>lb_line_alloc(reactors * CURSOR_WORDS * sizeof(uint32_t))
        if self.p.cursors == NULL:
            raise MemoryError
        self.p.name = <char*>malloc(len(raw) + 1)
        if self.p.name == NULL:
            raise MemoryError
        memcpy(self.p.name, <char*>raw, len(raw) + 1)
        self.p.name_size = <uint32_t>len(raw)
        self.p.id = id
        self.name = name
        self.endpoints = {}

    def __dealloc__(self):
        if self.p != NULL:
            free(self.p.cursors)
            free(self.p.name)
            free(self.p)


# ---------------------------------------------------------------------------------------------------- parts of a table

cdef class MaglevTable:
    """The Maglev table of these endpoints with these weights."""

    cdef uint32_t* slots
    cdef uint32_t size
    cdef readonly tuple endpoints
    cdef readonly tuple weights

    cdef build(self, UpstreamView view):
        cdef uint64_t* hashes = <uint64_t*>malloc(view.p.count * sizeof(uint64_t))
        cdef uint32_t i
        if hashes == NULL:
            raise MemoryError
        self.endpoints = view.endpoints
        self.weights = view.weights
        with nogil:
            for i in range(view.p.count):
                hashes[i] = view.p.endpoints[i].hash
            self.slots = build_maglev(hashes, view.p.weights, view.p.count, &self.size)
            free(hashes)
        if self.slots == NULL and self.size > 0:
            raise MemoryError

    def __dealloc__(self):
        free(self.slots)


cdef class UpstreamView:
    """An upstream as a table sees it."""

    cdef upstream_view* p
    cdef readonly Upstream live
    cdef readonly tuple endpoints
    cdef readonly tuple weights
    cdef readonly tuple model_weights
    cdef readonly tuple policy
    cdef readonly int protocol
    cdef readonly ClientTls tls
    cdef readonly MaglevTable maglev

    def __cinit__(self, Upstream live not None, tuple endpoints, tuple weights, tuple policy, tuple model_weights=None,
            int protocol=0, ClientTls tls=None):
        """`policy`: BALANCE_… of table.pxd, client affinity, connect timeout, idle timeout, requests per connection,
        connections, connections per endpoint, queue, queue timeout, streams per connection, health checks (CHECKED_… of
        table.pxd), PROXY header (0 none, or its version), hash key (HASH_…), slow start, affinity timeout, what lb
        tells in the header besides addresses (TELL_… of proxy_protocol.pxd), whether connections leave with the
        client's address. `protocol`: 0 HTTP/1, 1 HTTP/2, 2 by ALPN."""
        cdef uint32_t i, count = <uint32_t>len(endpoints)
        cdef Endpoint ep
        self.live = live
        self.endpoints = endpoints
        self.weights = weights
        self.model_weights = weights if model_weights is None else model_weights
        self.policy = policy
        self.p = <upstream_view*>calloc(1, sizeof(upstream_view))
        if self.p == NULL:
            raise MemoryError
        self.p.live = live.p
        self.p.count = count
        self.protocol = protocol
        self.tls = tls
        self.p.protocol = <uint8_t>protocol
        self.p.wire = <uint64_t>protocol
        if tls is not None:
            self.p.tls = tls.p
            self.p.wire |= tls.p.id << 2
        (self.p.balance, self.p.client_affinity, self.p.connect_timeout_ms, self.p.idle_timeout_ms,
         self.p.max_requests_per_connection, self.p.max_connections, self.p.max_connections_per_endpoint,
         self.p.max_queue, self.p.queue_timeout_ms, self.p.max_streams_per_connection, self.p.checked,
         self.p.proxy_protocol, self.p.hash_key, self.p.slow_start_ms, self.p.affinity_timeout_ms,
         self.p.proxy_values, self.p.transparent) = policy
        self.p.for_one_client = self.p.transparent or self.p.proxy_protocol != 0
        if count == 0:
            return
        self.p.endpoints = <endpoint**>calloc(count, sizeof(endpoint*))
        self.p.weights = <int*>calloc(count, sizeof(int))
        if self.p.endpoints == NULL or self.p.weights == NULL:
            raise MemoryError
        for i in range(count):
            ep = endpoints[i]
            self.p.endpoints[i] = ep.p
            self.p.weights[i] = weights[i]
        if self.p.balance == BALANCE_MAGLEV and not self.p.client_affinity:
            self.look_up_in_table()
            return
        self.live.maglev = None
        if not upstream_lay_out(self.p):
            raise MemoryError

    cdef look_up_in_table(self):
        """With the table that was made last, if it is of the same endpoints and weights."""
        cdef MaglevTable made = self.live.maglev
        if made is None or made.endpoints != self.endpoints or made.weights != self.weights:
            made = MaglevTable()
            made.build(self)
            self.live.maglev = made
        self.maglev = made
        self.p.maglev = made.slots
        self.p.maglev_size = made.size

    def __dealloc__(self):
        if self.p != NULL:
            upstream_forget(self.p)


# Programs of up to 4 KiB lie side by side on huge pages, by size in steps of a cache line. Only the control plane
# makes and
# frees them, under the GIL; a place that is given back is used for the next program of its size.
cdef enum:
    PROGRAM_STEP = 64
    PROGRAM_STEPS = 64
    PROGRAM_FIRST = 65536  # most configurations need no more
    PROGRAM_PIECE = 2097152

cdef void* program_places[PROGRAM_STEPS + 1]
cdef char* program_piece = NULL
cdef size_t program_left = 0


cdef vhost* program_alloc(size_t size) noexcept:
    global program_piece, program_left
    cdef size_t step = (size + PROGRAM_STEP - 1) // PROGRAM_STEP, skip
    cdef void* place
    if step > PROGRAM_STEPS:
        return <vhost*>malloc(size)
    place = program_places[step]
    if place != NULL:
        program_places[step] = (<void**>place)[0]
        return <vhost*>place
    if program_left < step * PROGRAM_STEP:
        # What is left of the old piece is less than one program of this size.
        program_left = PROGRAM_PIECE if program_piece != NULL else PROGRAM_FIRST
        program_piece = <char*>lb_huge_alloc(program_left)
        if program_piece == NULL:
            program_left = 0
            return NULL
        skip = (PROGRAM_STEP - <size_t>program_piece % PROGRAM_STEP) % PROGRAM_STEP
        program_piece += skip
        program_left -= skip
    place = program_piece
    program_piece += step * PROGRAM_STEP
    program_left -= step * PROGRAM_STEP
    return <vhost*>place


cdef void program_free(vhost* program) noexcept:
    cdef size_t step = (<size_t>program.size + PROGRAM_STEP - 1) // PROGRAM_STEP
    if step > PROGRAM_STEPS:
        free(program)
        return
    (<void**>program)[0] = program_places[step]
    program_places[step] = program


cdef class HostProgram:
    """One compiled virtual host: trie, conditions, routes. Immutable."""

    cdef vhost* p
    cdef readonly str hostname

    def __dealloc__(self):
        if self.p != NULL:
            program_free(self.p)

    @property
    def route_count(self):
        return self.p.route_count

    @property
    def size_bytes(self):
        return self.p.size


cdef class HostIndex:
    """Hostnames to virtual hosts, for one host set."""

    cdef host_index* p
    cdef readonly dict hosts

    def __cinit__(self, dict hosts not None, HostIndex before=None, dict changed=None, removed=()):
        """Of `hosts` ({hostname: HostProgram}); made from `before` by putting `changed` and taking `removed` when
        given.
        """
        cdef uint32_t capacity = 16
        cdef HostProgram program
        self.hosts = hosts
        self.p = <host_index*>calloc(1, sizeof(host_index))
        if self.p == NULL:
            raise MemoryError
        while capacity < 2 * len(hosts):
            capacity *= 2
        if before is not None and before.p.mask + 1 == capacity:
            self.p[0] = before.p[0]
        else:
            before = None
            self.p.mask = capacity - 1
        self.p.entries = <host_entry*>lb_huge_alloc(capacity * sizeof(host_entry))
        if self.p.entries == NULL:
            raise MemoryError
        if before is not None:
            memcpy(self.p.entries, before.p.entries, capacity * sizeof(host_entry))
            for name in removed:
                program = before.hosts[name]
                index_remove(self.p, program.p)
            hosts = changed
        for program in hosts.values():
            index_put(self.p, program.p)

    def __dealloc__(self):
        if self.p != NULL:
            free(self.p.entries)
            free(self.p)


cdef class TlsIndex:
    """Server names to what they are served with, for one listener."""

    cdef tls_view view
    cdef readonly HostIndex index
    cdef readonly dict hosts

    def __cinit__(self, HostIndex index not None, dict hosts not None):
        """`hosts`: {name: TlsHost}, whose `*` is for all other names; `index`: a program without routes for each."""
        cdef TlsHost host
        cdef HostProgram program
        self.index = index
        self.hosts = hosts
        for name, host in hosts.items():
            program = index.hosts[name]
            program.p.payload = host.p
        host = hosts["*"]
        self.view.hosts = index.p
        self.view.fallback = host.p
        self.view.varied = len({one.policy for one in hosts.values()}) > 1
        self.view.strict = any([(<TlsHost>one).policy.is_strict for one in hosts.values()])


cdef network* make_networks(tuple networks) except NULL:
    """Of (16-byte address, leading bits), at least one."""
    cdef network* made = <network*>calloc(len(networks), sizeof(network))
    cdef uint32_t i
    cdef bytes address
    if made == NULL:
        raise MemoryError
    for i in range(<uint32_t>len(networks)):
        address, bits = networks[i]
        memcpy(made[i].address, <char*>address, 16)
        made[i].bits = bits
    return made


cdef class StreamView:
    """Where connections go whose bytes are carried."""

    cdef stream_view view
    cdef bytes name

    def __cinit__(self, bytes name, uint32_t route_id, list targets, tuple options, tuple allowed):
        """`targets`: (slot of an upstream, weight). `name` outlives the table."""
        cdef uint32_t i, sum = 0
        cdef stream_view* s = &self.view
        self.name = name
        s.name = name
        s.name_size = <uint32_t>len(name)
        s.route_id = route_id
        s.idle_timeout_ms, s.half_closed_timeout_ms, s.drain_timeout_ms, retries = options
        s.retries = min(retries, MAX_RETRIES)
        s.targets = <target*>calloc(len(targets) + 1, sizeof(target))
        if s.targets == NULL:
            raise MemoryError
        s.target_count = <uint32_t>len(targets)
        for i in range(s.target_count):
            slot, weight = targets[i]
            sum += <uint32_t>weight
            s.targets[i].slot = slot
            s.targets[i].until = sum
        if allowed:
            s.allowed = make_networks(allowed)
            s.allowed_count = <uint32_t>len(allowed)

    def __dealloc__(self):
        free(self.view.targets)
        free(self.view.allowed)


cdef class NameIndex:
    """Server names to where the connections of their clients go, for one listener."""

    cdef readonly HostIndex index
    cdef list parts
    cdef name_route* routes

    def __cinit__(self, HostIndex index not None, dict names not None):
        """`names`: {name: [(StreamView, whether lb terminates TLS, ALPN protocols in wire form)]}; `index`: a program
        without routes for each."""
        cdef name_route* way
        cdef StreamView part
        cdef HostProgram program
        cdef bytes alpn
        self.index = index
        self.parts = [one for ways in names.values() for one in ways]
        self.routes = <name_route*>calloc(len(self.parts) + 1, sizeof(name_route))
        if self.routes == NULL:
            raise MemoryError
        way = self.routes
        for name, ways in names.items():
            program = index.hosts[name]
            program.p.payload = way
            for part, terminates, alpn in ways:
                way.stream = &part.view
                part.view.passes = not terminates
                way.terminates = terminates
                way.alpn = <uint8_t*><char*>alpn
                way.alpn_size = <uint32_t>len(alpn)
                way += 1
            (way - 1).last = True

    def __dealloc__(self):
        free(self.routes)


cdef class ListenerView:
    """A listener as a table sees it."""

    cdef listener_view* p
    cdef readonly HostIndex index
    cdef readonly str name
    cdef readonly TlsIndex tls
    cdef readonly int https_port
    cdef StreamView stream
    cdef NameIndex names
    cdef datagram_view datagram

    def __cinit__(self, str name, HostIndex index not None, int port, tuple options, tuple trusted, TlsIndex tls=None,
            int https_port=0, bytes hsts=b"", bint http2=True):
        """`options` in the order of the assignment below; `trusted`: (16-byte address, bits); `https_port`: where the
        same hosts are served by TLS; `hsts`: the value of Strict-Transport-Security."""
        self.name = name
        self.index = index
        self.p = <listener_view*>calloc(1, sizeof(listener_view))
        if self.p == NULL:
            raise MemoryError
        self.p.hosts = index.p
        self.p.port = port
        self.tls = tls
        if tls is not None:
            self.p.tls = &tls.view
        self.https_port = https_port
        self.p.https_port = https_port
        self.p.http2 = http2
        if hsts:
            self.p.hsts = <char*>malloc(len(hsts))
            if self.p.hsts == NULL:
                raise MemoryError
            memcpy(self.p.hsts, <char*>hsts, len(hsts))
            self.p.hsts_size = <uint32_t>len(hsts)
        self.p.port_text_size = snprintf(self.p.port_text, sizeof(self.p.port_text), b"%d", port)
        (self.p.head_timeout_ms, self.p.keepalive_timeout_ms, self.p.idle_timeout_ms, self.p.linger_timeout_ms,
         self.p.max_requests_per_connection, self.p.max_head_bytes, self.p.max_headers, self.p.max_target_bytes,
         self.p.max_connections, self.p.max_connections_per_client, self.p.max_connection_rate,
         self.p.max_connection_rate_per_client, self.p.max_body_bytes, self.p.forwarded_header,
         self.p.merge_slashes, self.p.keep_escaped_slashes, self.p.reject_bare_lf,
         self.p.accept_host_mismatch) = options
        if trusted:
            self.p.trusted = make_networks(trusted)
            self.p.trusted_count = <uint32_t>len(trusted)

    cdef carry_datagrams(self, tuple limits):
        """Of a UDP listener. `limits`: answers that end a session, sessions, sessions of one client, new ones a second,
        those of one client."""
        self.datagram.to = &self.stream.view
        (self.datagram.responses, self.datagram.max_sessions, self.datagram.max_sessions_per_client,
         self.datagram.max_session_rate, self.datagram.max_session_rate_per_client) = limits
        self.p.datagram = &self.datagram

    def __dealloc__(self):
        if self.p != NULL:
            free(self.p.trusted)
            free(self.p.proxies)
            free(self.p.hsts)
            free(self.p)


cdef class Table:
    """Everything a request needs, as one immutable value."""

    cdef table* p
    cdef readonly dict listeners
    cdef readonly dict upstreams
    cdef dict slots
    cdef list places

    def __cinit__(self, uint64_t generation, dict listeners, dict listener_slots, dict upstreams,
            uint32_t upstream_slots, list places):
        cdef ListenerView listener
        cdef UpstreamView upstream
        cdef uint32_t slot
        self.listeners = listeners
        self.upstreams = upstreams
        self.slots = listener_slots
        self.places = places
        self.p = <table*>lb_line_alloc(sizeof(table))
        if self.p == NULL:
            raise MemoryError
        self.p.generation = generation
        self.p.listener_count = <uint32_t>len(listener_slots)
        self.p.listeners = <listener_view**>calloc(self.p.listener_count + 1, sizeof(listener_view*))
        self.p.upstream_count = upstream_slots
        self.p.upstreams = <upstream_view**>calloc(upstream_slots + 1, sizeof(upstream_view*))
        self.p.place_count = <uint32_t>len(places)
        self.p.places = <uint32_t*>calloc(len(places) + 1, sizeof(uint32_t))
        if self.p.listeners == NULL or self.p.upstreams == NULL or self.p.places == NULL:
            raise MemoryError
        for place, holder in enumerate(places):
            if holder is None:
                self.p.places[<uint32_t>place] = <uint32_t>NO_LISTENER
            else:
                self.p.places[<uint32_t>place] = <uint32_t>(listener_slots[holder] if holder else LISTENER_GONE)
        for name, listener in listeners.items():
            slot = listener_slots[name]
            self.p.listeners[slot] = listener.p
        for upstream in upstreams.values():
            self.p.upstreams[upstream.live.p.id] = upstream.p

    def __dealloc__(self):
        if self.p != NULL:
            free(self.p.listeners)
            free(self.p.places)
            free(self.p.upstreams)
            free(self.p)

    @property
    def generation(self):
        return self.p.generation

    @property
    def host_count(self):
        return sum(len(index.hosts) for index in self._indexes())

    @property
    def route_count(self):
        return sum(program.route_count for index in self._indexes() for program in index.hosts.values())

    @property
    def size_bytes(self):
        return sum(program.size_bytes for index in self._indexes() for program in index.hosts.values())

    def _indexes(self):
        return {id(listener.index): listener.index for listener in self.listeners.values()}.values()

    def match(self, str listener, bytes host, bytes path, bytes method=b"GET", headers=(), query=None):
        """(hostname of the virtual host, name of the route), None for what there is not."""
        cdef ListenerView view = self.listeners[listener]
        cdef vhost* chosen = find_host(view.p.hosts, host, len(host))
        cdef head* h
        cdef bytes name, value
        cdef uint32_t rank
        cdef const char* query_at = b""
        if chosen == NULL:
            return None, None
        h = <head*>calloc(1, sizeof(head))
        if h == NULL:
            raise MemoryError
        try:
            h.method_name.at = method
            h.method_name.size = <uint32_t>len(method)
            for name, value in headers:
                if h.field_count == MAX_FIELDS:
                    raise ValueError(f"more than {MAX_FIELDS} headers")
                h.fields[h.field_count].name = name
                h.fields[h.field_count].name_size = <uint16_t>len(name)
                h.fields[h.field_count].value = value
                h.fields[h.field_count].value_size = <uint32_t>len(value)
                h.field_count += 1
            if query is not None:
                query_at = <bytes>query
            rank = find_route(chosen, path, len(path), query_at, len(query or b""), query is not None, h)
        finally:
            free(h)
        hostname = text_at(chosen, chosen.hostname)[:chosen.hostname.size].decode()
        if rank == NO_ROUTE:
            return hostname, None
        return hostname, text_at(chosen, route_at(chosen, rank).name)[:route_at(chosen, rank).name.size].decode()

    def match_name(self, str listener, bytes server_name, bytes offered=b""):
        """Name of the route that a TLS connection goes to; None: it is for the hosts of HTTP, or for nobody.
        `offered`: ALPN protocols, each behind its length."""
        cdef ListenerView view = self.listeners[listener]
        cdef client_hello hello
        cdef const name_route* found
        cdef bint known = False
        hello.name = server_name
        hello.name_size = <uint32_t>len(server_name)
        hello.protocols = <const uint8_t*><const char*>offered
        hello.protocols_size = <uint32_t>len(offered)
        found = choose_route(view.p, &hello, &known) if view.p.names != NULL else NULL
        return found.stream.name[:found.stream.name_size].decode() if found != NULL else None


# --------------------------------------------------------------------------------------------------- looking at flows

# By their numbers in flows.pxd.
CARRIED_STATES = (
    "connecting", "open", "half-closed-client", "half-closed-endpoint", "ending", "reset-client", "reset-endpoint",
    "unanswered",
)
LOOK_ORDERS = {"age": LOOK_BY_AGE, "idle": LOOK_BY_IDLE, "bytes": LOOK_BY_BYTES}


cdef class FlowLook:
    """A question about what is carried, and what the reactors have answered. They write to it until they have all
    done so; the engine keeps it as long.
    """

    cdef look_question question
    cdef look_part* parts
    cdef int count
    cdef bytes endpoint
    cdef list listener_names

    def __cinit__(self, list listener_names, int reactors, int limit, str order):
        cdef int i
        self.listener_names = listener_names
        self.question.slot = -1
        self.question.order = LOOK_ORDERS[order]
        self.question.limit = <uint32_t>limit
        self.parts = <look_part*>calloc(reactors, sizeof(look_part))
        if self.parts == NULL:
            raise MemoryError
        self.count = reactors
        for i in range(self.count):
            self.parts[i].question = &self.question
            self.parts[i].records = <carried_record*>calloc(limit + 1, sizeof(carried_record))
            self.parts[i].heap = <ranked*>calloc(limit + 1, sizeof(ranked))
            if self.parts[i].records == NULL or self.parts[i].heap == NULL:
                raise MemoryError

    def __dealloc__(self):
        cdef int i, k
        cdef look_total* t
        for i in range(self.count):
            free(self.parts[i].records)
            free(self.parts[i].heap)
            for k in range(LOOK_BUCKETS):
                while self.parts[i].totals[k] != NULL:
                    t = self.parts[i].totals[k]
                    self.parts[i].totals[k] = t.next
                    free(t)
        free(self.parts)

    cdef ask_client(self, object client):
        """Of this network, as (16-byte address, leading bits), or `unix`."""
        cdef bytes address
        if client == "unix":
            self.question.local_only = True
            return
        address, bits = client
        memcpy(self.question.client.address, <char*>address, 16)
        self.question.client.bits = bits
        self.question.by_client = True

    def waits_for(self):
        """The threads that have not answered yet."""
        cdef int i
        return [i for i in range(self.count) if not lb_load_int(&self.parts[i].done)]

    def cancel(self):
        """Nobody wants to know any more: the reactors leave off, and end no more flows."""
        lb_store_int(&self.question.cancelled, 1)

    def result(self):
        """(the first of them in the order that was asked for, how many there are, totals by endpoint), when nothing is
        waited for. MemoryError when there was none for the totals.
        """
        cdef int i, k
        cdef uint32_t n
        cdef look_total* t
        if self.waits_for():
            raise RuntimeError("the look is not over")
        found, matched, totals = [], 0, {}
        for i in range(self.count):
            if self.parts[i].failed:
                raise MemoryError
            matched += self.parts[i].matched
            for n in range(self.parts[i].count):
                found.append((-self.parts[i].records[n].rank, i, n))
            for k in range(LOOK_BUCKETS):
                t = self.parts[i].totals[k]
                while t != NULL:
                    add_total(totals, t)
                    t = t.next
        found.sort()
        return [self.describe(i, n) for _, i, n in found[:self.question.limit]], matched, list(totals.values())

    cdef dict describe(self, int i, uint32_t n):
        cdef carried_record* c = &self.parts[i].records[n]
        cdef int64_t now_ms = monotonic_ns() // 1000000
        return {
            "kind": "udp" if c.is_session else "tcp",
            "state": CARRIED_STATES[c.state],
            "thread": i,
            "listener": (<bytes>self.listener_names[c.slot]).decode(),
            "peer": None if c.local else c.peer[:16],
            "peer_port": c.peer_port,
            "has_proxy": bool(c.has_proxy),
            "proxy": c.proxy[:16] if c.proxy_known else None,
            "server_name": c.name[:c.name_size].decode("utf-8", "replace"),
            "route": c.route_name[:c.route_name_size].decode("utf-8", "replace"),
            "upstream": c.live.name[:c.live.name_size].decode("utf-8", "replace") if c.live != NULL else "",
            "endpoint": c.key[:c.key_size].decode("utf-8", "replace"),
            "attempts": c.attempts,
            "age_ms": max(0, now_ms - c.started_ns // 1000000),
            "idle_ms": max(0, now_ms - c.since_ms),
            "drain_ms": max(0, c.drain_deadline_ms - now_ms) if c.drain_deadline_ms else None,
            "bytes_in": c.bytes_in,
            "bytes_out": c.bytes_out,
            "datagrams_in": c.datagrams_in,
            "datagrams_out": c.datagrams_out,
            "waits_for_endpoint": c.waits_for_endpoint,
            "waits_for_client": c.waits_for_client,
        }


cdef add_total(dict totals, const look_total* t):
    upstream = t.live.name[:t.live.name_size].decode("utf-8", "replace")
    key = t.key[:t.key_size].decode("utf-8", "replace")
    sums = totals.get((upstream, key))
    if sums is None:
        sums = totals[upstream, key] = dict.fromkeys((
            "flows", "sessions", "bytes_in", "bytes_out", "waits_for_endpoint", "waits_for_client",
        ), 0)
        sums.update(upstream=upstream, endpoint=key)
    sums["flows"] += t.flows
    sums["sessions"] += t.sessions
    sums["bytes_in"] += t.bytes_in
    sums["bytes_out"] += t.bytes_out
    sums["waits_for_endpoint"] += t.waits_for_endpoint
    sums["waits_for_client"] += t.waits_for_client


# ------------------------------------------------------------------------------------------------------------ commands

cdef void run_drain(reactor* r, command* c) noexcept nogil:
    clients_drain_idle(r, LB_R_DRAIN, 0x7fffffff)
    http2_server_drain(r)
    sessions_drain(r)


cdef void run_close_pool(reactor* r, command* c) noexcept nogil:
    pool_close(r, <endpoint*>c.subject, 0x7fffffff)
    flows_drain(r, <endpoint*>c.subject)
    sessions_leave(r, <endpoint*>c.subject)


cdef void run_reset_flows(reactor* r, command* c) noexcept nogil:
    """Reset some flows of an endpoint, and go on in the next turn (then `number` is 1)."""
    cdef endpoint* ep = <endpoint*>c.subject
    cdef command* again
    if c.number == 0:
        flows_begin_reset(r, ep)
    while not flows_reset(r, ep):
        again = <command*>calloc(1, sizeof(command))
        if again == NULL:
            continue  # then all in this turn
        again.run = run_reset_flows
        again.subject = ep
        again.number = 1
        reactor_post(r, again)
        return
    lb_add_int(&ep.resetting, -1)  # the last that is done with it: it may be gone now


cdef void run_serve_again(reactor* r, command* c) noexcept nogil:
    flows_stay(r, <endpoint*>c.subject)
    sessions_stay(r, <endpoint*>c.subject)


# -------------------------------------------------------------------------------------------------------------- engine

cdef class Engine:
    """N reactor threads and what they share."""

    cdef shared s
    cdef log_writer log
    cdef bint started
    cdef int thread_count
    cdef bint log_started
    cdef dict listener_slots
    cdef dict upstreams
    cdef dict route_ids
    cdef dict stream_names
    cdef list listener_names
    cdef dict places  # where sockets are open, or were: its number
    cdef dict holders  # who has such a place, or had it last
    cdef dict open_names  # of listeners for which sockets were opened, by place
    cdef set datagram_places  # those of them where the sockets are of UDP
    cdef dict closed_names  # of those that had some, and where the reactors stood then
    cdef list retired_tables
    cdef list retired_tickets
    cdef dict overrides
    cdef Table current
    cdef int log_ring_bytes
    cdef int64_t buffer_budget
    cdef dict doomed
    cdef FlowLook look  # the one that reactors write to, or have written to

    def __cinit__(self, *, int threads, int max_connections=0, int64_t max_buffer_bytes=0, int log_ring_bytes=1 << 20,
            int spare_descriptors=64, bint tls_by_kernel=False):
        cdef int i
        if not 1 <= threads <= MAX_REACTORS:
            raise ValueError(f"threads must be 1 to {MAX_REACTORS}, not {threads}")
        if log_ring_bytes < 65536 or log_ring_bytes & (log_ring_bytes - 1):
            raise ValueError(f"log_ring_bytes must be a power of two of at least 65536, not {log_ring_bytes}")
        self.log_ring_bytes = log_ring_bytes
        self.s.reactor_count = threads
        self.s.running = 1
        self.s.max_connections = max_connections
        self.s.tls_by_kernel = tls_by_kernel
        self.buffer_budget = max_buffer_bytes if max_buffer_bytes > 0 else INT64_MAX // 2
        self.s.budget_left = self.buffer_budget
        descriptors = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 30)
        self.s.descriptor_limit = max(descriptors - spare_descriptors, descriptors // 4)
        self.s.secret = int.from_bytes(os.urandom(8), "little")
        self.s.reactors = <reactor*>lb_line_alloc(threads * sizeof(reactor))
        self.s.client_rates = calloc(RATE_ROWS, sizeof(rate_row))  # 2 MiB that take no memory until they are used
        if self.s.reactors == NULL or self.s.client_rates == NULL:
            raise MemoryError
        exchange_install(&self.s)
        stream_install(&self.s)
        datagram_install(&self.s)
        for i in range(threads):
            if not reactor_init(&self.s.reactors[i], &self.s, i):
                raise OSError(errno.EMFILE, "cannot make a reactor: out of descriptors or memory")
            slab_init(&self.s.reactors[i].conn_slab, sizeof(conn))
            slab_init(&self.s.reactors[i].exchange_slab, sizeof(exchange))
            slab_init(&self.s.reactors[i].stream_slab, sizeof(stream))
            slab_init(&self.s.reactors[i].flow_slab, sizeof(flow))
            slab_init(&self.s.reactors[i].hello_slab, sizeof(hello_texts))
            slab_init(&self.s.reactors[i].proxied_slab, sizeof(proxied))
        self.log.s = &self.s
        self.listener_slots = {}
        self.listener_names = []
        self.places = {}
        self.holders = {}
        self.open_names = {}
        self.datagram_places = set()
        self.closed_names = {}
        self.upstreams = {}
        self.route_ids = {}
        self.stream_names = {}
        self.retired_tables = []
        self.retired_tickets = []
        self.overrides = {}
        self.doomed = {}

    def __dealloc__(self):
        cdef int i
        cdef error_answer* a
        if self.s.reactors == NULL:
            return
        if self.started:
            self._stop()
        for i in range(self.s.reactor_count):
            release_reactor(&self.s.reactors[i])
        free(self.s.reactors)
        free(self.s.affinity)
        free(self.s.client_rates)
        free(self.s.ticket_keys)
        for keys, _ in self.retired_tickets:
            free(<void*><size_t>keys)
        while self.s.error_answers != NULL:
            a = self.s.error_answers
            self.s.error_answers = a.next
            free(a.content_type)
            free(a.body)
            free(a)

    # ------------------------------------------------------------------------------------------------- making tables

    cdef uint32_t _id(self, dict ids, str name) except? 0xffffffff:
        """A number for a name, for ever: counters keep their place over every table."""
        cdef object found = ids.get(name)
        if found is None:
            # The very last number is shared by all names that came too late for one of their own.
            found = min(len(ids), MAX_IDS - 1)
            ids[name] = found
        return found

    cdef ensure_chunk(self, int which, uint32_t id):
        cdef int i
        cdef stats_space* space
        for i in range(self.s.reactor_count):
            if which == 0:
                space = &self.s.reactors[i].listener_stats
            elif which == 1:
                space = &self.s.reactors[i].route_stats
            else:
                space = &self.s.reactors[i].upstream_stats
            self.add_chunk(space, id)
            if which == 0:
                self.add_chunk(&self.s.reactors[i].datagram_stats, id)
            if which == 1:
                self.add_chunk(&self.s.reactors[i].grpc_stats, id)

    cdef add_chunk(self, stats_space* space, uint32_t id):
        cdef void** chunk
        if space.chunks[id // STATS_CHUNK] != NULL:
            return
        chunk = <void**>calloc(STATS_CHUNK, sizeof(void*))
        if chunk == NULL:
            raise MemoryError
        space.chunks[id // STATS_CHUNK] = chunk

    def compile_host(self, str hostname, bint one_label, list routes):
        """A HostProgram. Each route: (name, path kind, path key, methods, headers, queries, action, options).

        action is a list of (upstream name, weight) or (status, body); options are (max body bytes, response, idle,
        tunnel and request timeout in ms, retries, status of the redirect to https or 0, whether gRPC-Web is bridged).
        """
        cdef HostProgram program = HostProgram.__new__(HostProgram)
        cdef arena a
        cdef bytes raw = hostname.encode("utf-8", "replace")
        cdef uint32_t count = <uint32_t>len(routes)
        cdef uint32_t routes_at, rank, root
        cdef text name
        memset(&a, 0, sizeof(a))
        try:
            arena_take(&a, sizeof(vhost))
            name = arena_text(&a, raw, len(raw))
            routes_at = arena_take(&a, count * sizeof(route))
            for rank in range(count):
                self.put_route(&a, routes_at + rank * <uint32_t>sizeof(route), routes[rank])
            root = self.put_paths(&a, routes)
            if a.failed:
                raise MemoryError
            program.p = program_alloc(a.size)
            if program.p == NULL:
                raise MemoryError
            memcpy(program.p, a.data, a.size)
            program.p.size = a.size
        finally:
            free(a.data)
        program.p.route_count = count
        program.p.routes = routes_at
        program.p.root = root
        program.p.hostname = name
        program.p.one_label = one_label
        program.hostname = hostname
        return program

    cdef uint32_t put_paths(self, arena* a, list routes) except? 0xffffffff:
        cdef list keys = sorted((spec[2], spec[1], rank) for rank, spec in enumerate(routes))
        cdef uint32_t count = <uint32_t>len(keys), i
        cdef pattern* patterns
        cdef uint32_t root
        cdef bytes key
        if count == 0:
            return 0
        patterns = <pattern*>malloc(count * sizeof(pattern))
        if patterns == NULL:
            raise MemoryError
        for i in range(count):
            key = keys[i][0]
            patterns[i].key = key
            patterns[i].size = <uint32_t>len(key)
            patterns[i].kind = keys[i][1]
            patterns[i].rank = keys[i][2]
        root = build_paths(a, patterns, 0, count, 0)
        free(patterns)
        return root

    cdef put_route(self, arena* a, uint32_t at, tuple spec):
        cdef route r
        cdef bytes raw
        cdef uint32_t i, place, sum = 0
        cdef text t
        name, _, _, methods, headers, queries, action, options = spec
        memset(&r, 0, sizeof(r))
        raw = name.encode("utf-8", "replace")
        r.name = arena_text(a, raw, len(raw))
        r.id = self._id(self.route_ids, name)
        self.ensure_chunk(1, r.id)
        (r.max_body_bytes, r.response_timeout_ms, r.idle_timeout_ms, r.tunnel_timeout_ms, r.request_timeout_ms,
                retries, r.https_redirect, r.grpc_web) = options
        r.retries = <uint8_t>min(retries, MAX_RETRIES)
        if isinstance(action, tuple):
            r.action = ACTION_RESPOND
            r.status = action[0]
            raw = action[1]
            r.body = arena_text(a, raw, len(raw))
        else:
            r.action = ACTION_FORWARD
            r.target_count = <uint16_t>len(action)
            r.targets = arena_take(a, len(action) * sizeof(target))
            for i in range(r.target_count):
                upstream, weight = action[i]
                sum += <uint32_t>weight
                place = self.live_upstream(upstream).p.id
                if not a.failed:
                    (<target*>(a.data + r.targets))[i].slot = place
                    (<target*>(a.data + r.targets))[i].until = sum
        r.method_count = <uint16_t>len(methods)
        r.methods = arena_take(a, len(methods) * sizeof(text))
        for i in range(r.method_count):
            raw = methods[i]
            t = arena_text(a, raw, len(raw))
            if not a.failed:
                (<text*>(a.data + r.methods))[i] = t
        r.header_count = <uint16_t>len(headers)
        r.headers = self.put_predicates(a, headers)
        r.query_count = <uint16_t>len(queries)
        r.queries = self.put_predicates(a, queries)
        if not a.failed:
            memcpy(a.data + at, &r, sizeof(r))

    cdef uint32_t put_predicates(self, arena* a, conditions) except? 0xffffffff:
        cdef uint32_t at = arena_take(a, len(conditions) * sizeof(predicate))
        cdef uint32_t i
        cdef predicate p
        cdef bytes name, value
        for i in range(<uint32_t>len(conditions)):
            name, wanted = conditions[i]
            value = wanted or b""
            memset(&p, 0, sizeof(p))
            p.name = arena_text(a, name, len(name))
            p.value = arena_text(a, value, len(value))
            p.any = wanted is None
            if not a.failed:
                memcpy(a.data + at + i * sizeof(predicate), &p, sizeof(p))
        return at

    cdef Upstream live_upstream(self, str name):
        cdef Upstream live = self.upstreams.get(name)
        if live is None:
            if len(self.upstreams) == MAX_IDS:
                raise ValueError(f"more than {MAX_IDS} upstreams since start")
            live = Upstream(name, <uint32_t>len(self.upstreams), self.s.reactor_count)
            self.ensure_chunk(2, live.p.id)
            self.upstreams[name] = live
        return live

    def make_index(self, dict hosts):
        """A HostIndex over {hostname: HostProgram}."""
        return HostIndex(hosts)

    def change_index(self, HostIndex before not None, dict changed, removed):
        """The HostIndex that `before` becomes with these programs put in and these names taken out."""
        hosts = dict(before.hosts)
        for name in removed:
            del hosts[name]
        hosts.update(changed)
        return HostIndex(hosts, before, changed, removed)

    def make_listener(self, str name, HostIndex index, int port, tuple options, tuple trusted, TlsIndex tls=None,
            int https_port=0, bytes hsts=b"", bint http2=True, tuple carried=None, tuple proxies=(), dict names=None,
            bint carries=False, tuple sessions=None):
        cdef ListenerView view = ListenerView(name, index, port, options, trusted, tls, https_port, hsts, http2)
        view.p.carries = carries
        if proxies:
            view.p.proxies = make_networks(proxies)
            view.p.proxies_count = <uint32_t>len(proxies)
        if carried is not None:
            view.stream = self.make_stream(carried)
            if sessions is None:
                view.p.stream = &view.stream.view
            else:
                view.carry_datagrams(sessions)
        if names:
            programs = HostIndex({name: self.compile_host(name, False, []) for name in names})
            view.names = NameIndex(programs, {
                name: [(self.make_stream(spec), terminates, alpn) for spec, terminates, alpn in ways]
                for name, ways in names.items()
            })
            view.p.names = programs.p
        return view

    cdef StreamView make_stream(self, tuple spec):
        name, shares, limits, allowed = spec
        targets = [(self.live_upstream(upstream).p.id, weight) for upstream, weight in shares]
        id = self._id(self.route_ids, name)
        self.ensure_chunk(1, id)
        # A flow goes on without its table, so the name it is logged by stays.
        raw = self.stream_names.setdefault(name, name.encode("utf-8", "replace"))
        return StreamView(raw, id, targets, limits, allowed)

    def make_tls_index(self, dict hosts not None):
        """A TlsIndex over {server name: TlsHost}. `*.example.com` covers one label (RFC 6125 6.4.3); `*` stands for all
        names that are not there, and for clients that say none."""
        return TlsIndex(HostIndex({name: self.compile_host(name, True, []) for name in hosts}), hosts)

    def set_ticket_keys(self, keys):
        """Session tickets are made with the first key and read with any. A key is a name of 16 bytes, one for AES and
        one for HMAC, of 32 bytes each (AES-256) or of 16 (AES-128)."""
        cdef ticket_keys* new
        cdef int i
        cdef bytes raw
        keys = list(keys)
        if len(keys) > TICKET_KEYS or any(len(key) not in (48, 80) for key in keys):
            raise ValueError(f"ticket keys are 80 or 48 bytes each, and at most {TICKET_KEYS}")
        new = <ticket_keys*>calloc(1, sizeof(ticket_keys))
        if new == NULL:
            raise MemoryError
        new.count = <int>len(keys)
        for i in range(new.count):
            raw = keys[i]
            new.keys[i].size = (len(raw) - 16) // 2
            memcpy(new.keys[i].name, <char*>raw, 16)
            memcpy(new.keys[i].aes, <char*>raw + 16, new.keys[i].size)
            memcpy(new.keys[i].hmac, <char*>raw + 16 + new.keys[i].size, new.keys[i].size)
        self.retired_tickets.append((<size_t>lb_swap_ptr(&self.s.ticket_keys, new), self.turns()))

    def make_upstream(self, str name, list endpoints, tuple policy, int protocol=0, ClientTls tls=None):
        """An UpstreamView; `endpoints`: (key, address, port, weight). An endpoint that was known keeps its live
        state. `protocol`: 0 HTTP/1, 1 HTTP/2, 2 by ALPN.
        """
        cdef Upstream live = self.live_upstream(name)
        cdef Endpoint ep
        cdef UpstreamView view
        cdef list members = []
        for key, address, port, _ in endpoints:
            ep = live.endpoints.get(key)
            if ep is None:
                ep = Endpoint(live, key, address, port, self.s.reactor_count)
                live.endpoints[key] = ep
            members.append(ep)
        view = UpstreamView(live, tuple(members), tuple(entry[3] for entry in endpoints), policy, None, protocol, tls)
        if view.p.client_affinity and self.s.affinity == NULL:
            # Reactors see it with the first table that needs it.
            self.s.affinity = <affinity_entry*>lb_huge_alloc(AFFINITY_SETS * AFFINITY_WAYS * sizeof(affinity_entry))
            if self.s.affinity == NULL:
                raise MemoryError
        return view

    def make_table(self, uint64_t generation, dict listeners, dict upstreams, dict places=None):
        """A Table of {name: ListenerView} and {name: UpstreamView}. `places`: {place: name of the listener it has}."""
        cdef ListenerView view
        cdef bytes raw
        for name, view in listeners.items():
            raw = self.listener_names[self.slot_of(name, listeners)]
            view.p.name = raw
            view.p.name_size = <uint32_t>len(raw)
        effective = upstreams
        for place, name in (places or {}).items():
            self.place_of(place)
            self.holders[place] = name
            view = listeners[name]
            if view.p.datagram != NULL:
                self.datagram_places.add(place)
        if self.overrides:
            effective = dict(upstreams)
            for name, weights in self.overrides.items():
                if name in effective:
                    effective[name] = self.with_overrides(effective[name], weights)
        return Table(generation, dict(listeners), dict(self.listener_slots), effective, <uint32_t>len(self.upstreams),
                [self.holder_of(place, listeners) for place in self.places])

    cdef str holder_of(self, str place, dict listeners):
        """Who has a place, or had it last and serves elsewhere now; empty: who had it is gone, or of UDP now while the
        place is of TCP, or the other way around; None: nobody ever."""
        cdef str name = self.holders.get(place)
        cdef ListenerView view = listeners.get(name)
        if name is None:
            return None
        is_udp_now = view is not None and view.p.datagram != NULL
        return name if view is not None and is_udp_now == (place in self.datagram_places) else ""

    cdef uint32_t place_of(self, str place):
        """The number of a place. It keeps it, because sockets and connections know it by that."""
        return <uint32_t>self.places.setdefault(place, len(self.places))

    cdef UpstreamView with_overrides(self, UpstreamView view, dict weights):
        return UpstreamView(
            view.live, view.endpoints,
            tuple([weights.get((<Endpoint>ep).key, weight) for ep, weight in zip(view.endpoints, view.model_weights)]),
            view.policy, view.model_weights, view.protocol, view.tls
        )

    cdef uint32_t slot_of(self, str name, wanted=()) except? 0xffffffff:
        """The slot of a listener; a new one gets the slot of one that is over when there is no other left. `wanted`:
        those that are about to be served as well.
        """
        cdef object slot = self.listener_slots.get(name)
        if slot is not None:
            return slot
        if len(self.listener_slots) < LISTENERS_MOST:
            slot = len(self.listener_slots)
            self.listener_names.append(None)
            self.ensure_chunk(0, slot)
        else:
            slot = self.free_slot(wanted)
        self.listener_slots[name] = slot
        self.listener_names[slot] = name.encode("utf-8", "replace")
        return slot

    cdef object free_slot(self, wanted):
        """Of a listener that nothing refers to any more: no table, no socket, no connection."""
        cdef object slot
        kept = set(wanted) | set(self.open_names.values()) | self.closed_names.keys()
        for t in (self.current, *[old for old, _ in self.retired_tables]):
            if t is not None:
                kept |= (<Table>t).listeners.keys()
        for name, slot in self.listener_slots.items():
            if name not in kept and self.sum_traffic(0, slot)["active"] == 0:
                del self.listener_slots[name]
                self.forget_traffic(slot)
                return slot
        raise ValueError(f"more than {LISTENERS_MOST} listeners")

    cdef forget_traffic(self, uint32_t slot):
        """Of a listener that is over: its slot goes to another one. No reactor writes to its counters."""
        cdef int i
        cdef void* block
        for i in range(self.s.reactor_count):
            block = self.s.reactors[i].listener_stats.chunks[slot // STATS_CHUNK][slot % STATS_CHUNK]
            if block != NULL:
                memset(block, 0, sizeof(listener_traffic))
            block = self.s.reactors[i].datagram_stats.chunks[slot // STATS_CHUNK][slot % STATS_CHUNK]
            if block != NULL:
                memset(block, 0, sizeof(datagram_traffic))
        self.s.listener_full_ns[slot] = 0

    # ------------------------------------------------------------------------------------------------- publishing

    @property
    def generation(self):
        return self.current.generation if self.current is not None else 0

    def publish(self, Table new not None):
        """Make `new` the table of every request that starts from now on."""
        cdef Table old = self.current
        cdef UpstreamView view, before
        cdef Endpoint ep
        # New ones, and old ones that come back, must be willing before the first request asks for them.
        for name, view in new.upstreams.items():
            if old is not None and old.upstreams.get(name) is view:
                continue
            joins = (view.p.checked or view.p.slow_start_ms) and self.keeps_some(name, view)
            for ep in view.endpoints:
                if lb_peek_int(&ep.p.retired):
                    lb_store_int(&ep.p.health, HEALTH_UNTESTED if joins and view.p.checked else HEALTH_OK)
                    lb_put_i64(&ep.p.joined_ms, monotonic_ns() // 1000000 if joins else 0)
                    lb_store_int(&ep.p.retired, 0)
                if self.doomed.pop(ep, None) is not None:
                    self.post(run_serve_again, ep.p, 0)
        self.current = new
        lb_swap_ptr(&self.s.current, new.p)
        lb_fence()  # pairs with the one in reactor_main
        if old is None:
            return
        self.retired_tables.append((old, self.turns()))
        for name, before in old.upstreams.items():
            view = new.upstreams.get(name)
            if view is before:
                continue
            kept = set(view.endpoints) if view is not None else ()
            for ep in before.endpoints:
                if ep not in kept:
                    lb_store_int(&ep.p.retired, 1)
                    self.close_pools(ep)

    cdef bint keeps_some(self, str name, UpstreamView view):
        """Whether an endpoint that serves now goes on serving: those that come can then wait for their first check."""
        cdef UpstreamView before = self.current.upstreams.get(name) if self.current is not None else None
        return before is not None and not set(before.endpoints).isdisjoint(view.endpoints)

    cdef list turns(self):
        """Where each reactor stands: what was posted or swapped before it reaches two more has been seen by it."""
        return [lb_load_u64(&self.s.reactors[i].turn) for i in range(self.s.reactor_count)]

    cdef bint have_passed(self, list turns):
        """Whether all reactors have begun and ended a turn since; those that sleep are woken."""
        cdef int i
        cdef bint passed = True
        for i in range(self.s.reactor_count):
            if self.started and lb_load_u64(&self.s.reactors[i].turn) < <uint64_t>turns[i] + 2:
                passed = False
                reactor_wake(&self.s.reactors[i])
        return passed

    cdef close_pools(self, Endpoint ep):
        """Close the unused connections of an endpoint that is no longer served; it goes when the commands have been
        run.
        """
        self.post(run_close_pool, ep.p, 0)
        self.doomed[ep] = self.turns()

    cdef post(self, void (*run)(reactor*, command*) noexcept nogil, void* subject, int64_t number):
        cdef int i
        for i in range(self.s.reactor_count):
            self.post_to(i, run, subject, number)

    cdef post_to(self, int i, void (*run)(reactor*, command*) noexcept nogil, void* subject, int64_t number):
        cdef command* c = <command*>calloc(1, sizeof(command))
        if c == NULL:
            raise MemoryError
        c.run = run
        c.subject = subject
        c.number = number
        reactor_post(&self.s.reactors[i], c)

    def collect(self):
        """Free what no reactor uses any more; how many old tables are still in use."""
        cdef Table t
        cdef Endpoint ep
        cdef int i
        cdef uint64_t pins
        cdef list kept = []
        for t, turns in self.retired_tables:
            pins = 0
            for i in range(self.s.reactor_count):
                pins += lb_load_u64(&t.p.pins[i].count)
            if pins or not self.have_passed(turns):
                kept.append((t, turns))
        self.retired_tables = kept
        for keys, turns in list(self.retired_tickets):
            if self.have_passed(turns):
                free(<void*><size_t>keys)
                self.retired_tickets.remove((keys, turns))
        for name, turns in list(self.closed_names.items()):
            if self.have_passed(turns):
                del self.closed_names[name]
        for ep, turns in list(self.doomed.items()):
            if not self.have_passed(turns) or self.is_served(ep, kept):
                continue
            if not ep.unused():
                self.close_pools(ep)
            elif ep.weight_override is None and ep.admin == "ready":
                del self.doomed[ep]
                (<Upstream>self.upstreams[ep.upstream]).endpoints.pop(ep.key, None)
        if self.look is not None and not self.look.waits_for():
            self.look = None
        return len(kept)

    cdef bint is_served(self, Endpoint ep, list tables):
        """Whether an old table that is still in use names the endpoint."""
        cdef UpstreamView view
        for t, _ in tables:
            view = (<Table>t).upstreams.get(ep.upstream)
            if view is not None and ep in view.endpoints:
                return True
        return False

    # ------------------------------------------------------------------------------------------------- running

    def start(self):
        """Start the reactor threads."""
        cdef int i
        if self.started:
            raise RuntimeError("the engine has been started already")
        self.started = True
        self.thread_count = 0
        for i in range(self.s.reactor_count):
            if pthread_create(&self.s.reactors[i].thread, NULL, reactor_main, &self.s.reactors[i]) != 0:
                self._stop()
                raise OSError(errno.EAGAIN, "cannot start a reactor thread")
            self.thread_count += 1
            pthread_setname_np(self.s.reactors[i].thread, b"lb-reactor-%d" % i)

    def open_listener(self, str name, descriptors, str place=None):
        """Accept on these listening sockets: one a reactor, or one for all. Of UDP sockets each has its own reactor,
        because its sessions are there: a single one is served by a single reactor. `place`: where that is, which may
        pass to another listener with a table; none is named: the listener's own."""
        cdef uint32_t slot = self.slot_of(name)
        cdef uint32_t number
        cdef bytes raw = self.listener_names[slot]
        cdef listening* l
        cdef int i, fd
        place = place or name
        descriptors = list(descriptors)
        number = self.place_of(place)
        if is_udp(descriptors[0]):
            self.datagram_places.add(place)
            self.open_datagrams(slot, descriptors[:self.s.reactor_count], number)
            self.open_names[place] = name
            return
        for i in range(self.s.reactor_count):
            l = <listening*>calloc(1, sizeof(listening))
            fd = fcntl(<int>descriptors[i % len(descriptors)], F_DUPFD_CLOEXEC, 3)
            if l == NULL or fd < 0:
                free(l)
                if fd >= 0:
                    close(fd)
                self.post(run_close_listener, NULL, number)  # those that have been opened
                raise OSError(errno.EMFILE, "cannot open a listening socket: out of descriptors or memory")
            os.set_blocking(fd, False)
            lb_add_int(&self.s.descriptors, 1)
            l.base.fd = fd
            l.place = number
            l.slot = slot
            l.name = raw
            l.name_size = <uint32_t>len(raw)
            self.post_to(i, run_listen, l, 0)
        self.open_names[place] = name

    cdef open_datagrams(self, uint32_t slot, list descriptors, uint32_t place):
        cdef bytes raw = self.listener_names[slot]
        cdef datagram_socket* l
        cdef int i, first, fd
        # Single sockets of several listeners are spread over the reactors.
        first = <int>slot % self.s.reactor_count if len(descriptors) == 1 else 0
        for i in range(len(descriptors)):
            if self.s.reactors[first + i].datagrams == NULL:
                self.s.reactors[first + i].datagrams = datagrams_new(&self.s.reactors[first + i])
            l = <datagram_socket*>calloc(1, sizeof(datagram_socket))
            fd = fcntl(<int>descriptors[i], F_DUPFD_CLOEXEC, 3)
            if l == NULL or fd < 0 or self.s.reactors[first + i].datagrams == NULL:
                free(l)
                if fd >= 0:
                    close(fd)
                self.post(run_close_datagrams, NULL, place)  # those that have been opened
                raise OSError(errno.EMFILE, "cannot open a UDP socket: out of descriptors or memory")
            os.set_blocking(fd, False)
            lb_add_int(&self.s.descriptors, 1)
            l.udp.base.fd = fd
            l.place = place
            l.slot = slot
            l.name = raw
            l.name_size = <uint32_t>len(raw)
            l.sharers = <int>len(descriptors)
            self.post_to(first + i, run_open_datagrams, l, 0)

    def pass_listener(self, str place, str name):
        """The sockets at a place are another listener's from now on."""
        cdef uint32_t slot = self.slot_of(name)
        cdef bytes raw = self.listener_names[slot]
        cdef listener_heir* heir
        cdef int i
        for i in range(self.s.reactor_count):
            heir = <listener_heir*>calloc(1, sizeof(listener_heir))
            if heir == NULL:
                raise MemoryError
            heir.place = self.place_of(place)
            heir.slot = slot
            heir.name = raw
            heir.name_size = <uint32_t>len(raw)
            self.post_to(i, run_pass_datagrams if place in self.datagram_places else run_pass_listener, heir, 0)
        self.closed_names[self.open_names[place]] = self.turns()
        self.open_names[place] = name

    def close_listener(self, str place):
        """Stop accepting at a place; its connections go on, its UDP sessions end."""
        cdef str name = self.open_names.pop(place)
        self.post(
            run_close_datagrams if place in self.datagram_places else run_close_listener, NULL, self.place_of(place)
        )
        self.closed_names[name] = self.turns()

    def stop_accepting(self):
        self.post(run_stop_accepting, NULL, 0)

    def drain(self):
        """Answer what is under way with `Connection: close`, close what is idle."""
        lb_put_int(&self.s.draining, 1)
        self.post(run_drain, NULL, 0)

    def active(self):
        """(exchanges under way, client connections open)."""
        cdef int i, exchanges = 0
        for i in range(self.s.reactor_count):
            exchanges += lb_peek_int(&self.s.reactors[i].exchange_count)
        return exchanges, lb_peek_int(&self.s.connections)

    def stop(self):
        """End the threads now; what is open is closed."""
        if self.started:
            self._stop()

    cdef _stop(self):
        cdef int i
        self.started = False
        lb_store_int(&self.s.running, 0)
        for i in range(self.s.reactor_count):
            reactor_wake(&self.s.reactors[i])
        with nogil:
            for i in range(self.thread_count):
                pthread_join(self.s.reactors[i].thread, NULL)
        for i in range(self.s.reactor_count):
            close_all(&self.s.reactors[i])
        if self.log_started:
            self.log_started = False
            lb_store_int(&self.log.running, 0)
            with nogil:
                pthread_join(self.log.thread, NULL)
            log_program_free(<log_program*>lb_swap_ptr(&self.log.incoming, NULL))
            log_program_free(self.log.program)
            free(self.log.buffer)

    def heartbeat_ages_ms(self):
        """Since each reactor last turned."""
        cdef int64_t now = monotonic_ns() // 1000000
        return [max(0, now - lb_peek_i64(&self.s.reactors[i].heartbeat_ms)) for i in range(self.s.reactor_count)]

    def set_error_answer(self, int status, str content_type, bytes body):
        """The body of lb's own answers with this status; 0: of all others."""
        cdef error_answer* a = <error_answer*>calloc(1, sizeof(error_answer))
        cdef bytes kind = content_type.encode("ascii")
        if a == NULL:
            raise MemoryError
        a.status = status
        a.content_type = <char*>malloc(len(kind) + 1)
        a.body = <char*>malloc(len(body) + 1)
        if a.content_type == NULL or a.body == NULL:
            raise MemoryError
        memcpy(a.content_type, <char*>kind, len(kind) + 1)
        memcpy(a.body, <char*>body, len(body) + 1)
        a.content_type_size = <uint32_t>len(kind)
        a.body_size = <uint32_t>len(body)
        a.next = self.s.error_answers
        self.s.error_answers = a

    # ------------------------------------------------------------------------------------------------- access log

    def open_log(self, int fd, program):
        """Write records to `fd` by `program`; an empty program ends logging."""
        cdef log_program* p = self.make_program(fd, list(program))
        if not self.log_started and p.count:
            self.start_log()
        if not self.log_started:
            log_program_free(p)
            return
        log_program_free(<log_program*>lb_swap_ptr(&self.log.incoming, p))
        lb_put_int(&self.s.logging, 1 if p.count else 0)

    cdef log_program* make_program(self, int fd, list steps) except NULL:
        cdef log_program* p = <log_program*>calloc(1, sizeof(log_program))
        cdef bytes literals = b"".join(step for step in steps if isinstance(step, bytes))
        cdef uint32_t at = 0
        cdef int i
        if p == NULL:
            raise MemoryError
        p.fd = -1
        p.steps = <log_step*>calloc(len(steps) + 1, sizeof(log_step))
        p.literals = <char*>malloc(len(literals) + 1)
        if p.steps == NULL or p.literals == NULL:
            log_program_free(p)
            raise MemoryError
        memcpy(p.literals, <char*>literals, len(literals))
        try:
            for step in steps:
                i = p.count
                if isinstance(step, bytes):
                    if len(step) > 8192:
                        raise ValueError("a literal of an access log program has more than 8192 bytes")
                    p.steps[i].field = LOG_LITERAL
                    p.steps[i].at = at
                    p.steps[i].size = <uint32_t>len(step)
                    at += <uint32_t>len(step)
                else:
                    name, escape = step
                    p.steps[i].field = LOG_FIELDS.index(name)
                    p.steps[i].escape = {"raw": ESCAPE_RAW, "json": ESCAPE_JSON, "clf": ESCAPE_CLF}[escape]
                p.count += 1
            if p.count:
                p.fd = os.dup(fd)
                p.most = 1 << 20 if stat.S_ISREG(os.fstat(fd).st_mode) else 4096
        except BaseException:
            log_program_free(p)
            raise
        return p

    cdef start_log(self):
        cdef int i
        for i in range(self.s.reactor_count):
            self.s.reactors[i].log.size = self.log_ring_bytes
            self.s.reactors[i].log.data = <char*>malloc(self.log_ring_bytes)
            if self.s.reactors[i].log.data == NULL:
                raise MemoryError
        self.log.buffer = <char*>malloc(262144)
        if self.log.buffer == NULL:
            raise MemoryError
        self.log.running = 1
        if pthread_create(&self.log.thread, NULL, log_main, &self.log) != 0:
            raise OSError(errno.EAGAIN, "cannot start the access log thread")
        pthread_setname_np(self.log.thread, b"lb-access-log")
        self.log_started = True

    def flush_log(self):
        """Wait until what was recorded before is written, at most a second."""
        cdef uint64_t ticket
        if not self.log_started:
            return
        ticket = self.log.flush_asked + 1
        lb_store_u64(&self.log.flush_asked, ticket)
        deadline = time.monotonic() + 1
        while lb_load_u64(&self.log.flush_done) < ticket and time.monotonic() < deadline:
            time.sleep(0.005)

    # ------------------------------------------------------------------------------------------------- looking

    def counters(self):
        """Process-wide counts, summed over the reactors."""
        cdef int i
        cdef counters* c
        sums = dict.fromkeys((
            "connections_opened", "connections_closed", "upstream_opened", "upstream_closed", "upstream_stolen",
            "exchanges_started", "exchanges_ended", "log_dropped", "accept_pauses", "idle_closed_by_pressure", "turns",
            "events", "tls_handshakes", "tls_resumed", "tls_failed", "tls_deferred",
            "tls_by_kernel", "tls_passed",
        ), 0)
        for i in range(self.s.reactor_count):
            c = &self.s.reactors[i].counts
            sums["connections_opened"] += lb_peek_u64(&c.connections_opened)
            sums["connections_closed"] += lb_peek_u64(&c.connections_closed)
            sums["upstream_opened"] += lb_peek_u64(&c.upstream_opened)
            sums["upstream_closed"] += lb_peek_u64(&c.upstream_closed)
            sums["upstream_stolen"] += lb_peek_u64(&c.upstream_stolen)
            sums["exchanges_started"] += lb_peek_u64(&c.exchanges_started)
            sums["exchanges_ended"] += lb_peek_u64(&c.exchanges_ended)
            sums["log_dropped"] += lb_peek_u64(&c.log_dropped)
            sums["accept_pauses"] += lb_peek_u64(&c.accept_pauses)
            sums["idle_closed_by_pressure"] += lb_peek_u64(&c.idle_closed_by_pressure)
            sums["turns"] += lb_peek_u64(&c.turns)
            sums["events"] += lb_peek_u64(&c.events)
            sums["tls_handshakes"] += lb_peek_u64(&c.tls_handshakes)
            sums["tls_resumed"] += lb_peek_u64(&c.tls_resumed)
            sums["tls_failed"] += lb_peek_u64(&c.tls_failed)
            sums["tls_deferred"] += lb_peek_u64(&c.tls_deferred)
            sums["tls_by_kernel"] += lb_peek_u64(&c.tls_by_kernel)
            sums["tls_passed"] += lb_peek_u64(&c.tls_passed)
        sums["connections"] = lb_peek_int(&self.s.connections)
        sums["descriptors"] = lb_peek_int(&self.s.descriptors)
        sums["buffer_bytes"] = self.buffer_bytes()
        sums["tables_pinned"] = len(self.retired_tables)
        sums["log_written"] = lb_peek_u64(&self.log.written)
        sums["log_failed"] = lb_peek_u64(&self.log.failed)
        return sums

    cdef int64_t buffer_bytes(self):
        """In pages that hold bytes. Those that wait for their next use are left out, as of the moment they are read."""
        cdef int64_t used = self.buffer_budget - lb_peek_i64(&self.s.budget_left)
        cdef int i, page_class
        for i in range(self.s.reactor_count):
            for page_class in range(PAGE_CLASSES):
                used -= <int64_t>lb_peek_int(&self.s.reactors[i].pages.free_counts[page_class]) << (
                    10 + 2 * page_class)
        return used if used > 0 else 0

    def reasons(self):
        """How many exchanges and connections ended for each reason."""
        cdef int i, reason
        cdef uint64_t sum
        result = {}
        for reason in range(LB_REASON_COUNT):
            sum = 0
            for i in range(self.s.reactor_count):
                sum += lb_peek_u64(&self.s.reactors[i].counts.reasons[reason])
            result[REASONS[reason]] = sum
        return result

    cdef dict sum_traffic(self, int which, uint32_t id):
        """Counters of an id over all reactors, or None when it had no traffic."""
        cdef int i, k
        cdef void** chunk
        cdef traffic* t
        cdef traffic sum
        cdef upstream_traffic* u
        cdef listener_traffic* l
        cdef uint64_t extra[5]
        cdef bint any = False
        memset(&sum, 0, sizeof(sum))
        memset(extra, 0, sizeof(extra))
        for i in range(self.s.reactor_count):
            if which == 0:
                chunk = self.s.reactors[i].listener_stats.chunks[id // STATS_CHUNK]
            elif which == 1:
                chunk = self.s.reactors[i].route_stats.chunks[id // STATS_CHUNK]
            else:
                chunk = self.s.reactors[i].upstream_stats.chunks[id // STATS_CHUNK]
            t = <traffic*>lb_load_ptr(&chunk[id % STATS_CHUNK]) if chunk != NULL else NULL
            if t == NULL:
                continue
            any = True
            for k in range(5):
                sum.responses[k] += lb_peek_u64(&t.responses[k])
            for k in range(BUCKETS):
                sum.buckets[k] += lb_peek_u64(&t.buckets[k])
            sum.bytes_in += lb_peek_u64(&t.bytes_in)
            sum.bytes_out += lb_peek_u64(&t.bytes_out)
            sum.nanoseconds += lb_peek_u64(&t.nanoseconds)
            if which == 0:
                l = <listener_traffic*>t
                extra[0] += lb_peek_u64(&l.accepted)
                extra[1] += lb_peek_u64(&l.rejected)
                extra[2] += lb_peek_u64(&l.requests)
                extra[3] += lb_peek_u64(&l.closed)
                extra[4] += lb_peek_u64(&l.tls_failed)
            elif which == 2:
                u = <upstream_traffic*>t
                extra[0] += lb_peek_u64(&u.attempts)
                extra[1] += lb_peek_u64(&u.retries)
                extra[2] += lb_peek_u64(&u.connects)
                extra[3] += lb_peek_u64(&u.connect_failures)
                extra[4] += lb_peek_u64(&u.reused)
        if which == 1 and not any:
            return None
        result = {
            "responses": [sum.responses[k] for k in range(5)],
            "bytes_in": sum.bytes_in,
            "bytes_out": sum.bytes_out,
            "buckets": [sum.buckets[k] for k in range(BUCKETS)],
            "seconds": sum.nanoseconds / 1e9,
        }
        if which == 0:
            result.update(accepted=extra[0], rejected=extra[1], requests=extra[2], active=extra[0] - extra[3],
                    tls_failed=extra[4])
        elif which == 2:
            result.update(attempts=extra[0], retries=extra[1], connects=extra[2], connect_failures=extra[3],
                    reused=extra[4])
        return result

    def listener_stats(self):
        return {name: self.sum_traffic(0, slot) for name, slot in list(self.listener_slots.items())}

    def datagram_stats(self):
        """Of the UDP listeners that were opened: datagrams each way, dropped ones by reason, sessions that made way."""
        cdef int i, reason
        cdef uint32_t slot
        cdef datagram_traffic* t
        cdef void** chunk
        result = {}
        for name, slot in list(self.listener_slots.items()):
            sums = None
            for i in range(self.s.reactor_count):
                chunk = self.s.reactors[i].datagram_stats.chunks[slot // STATS_CHUNK]
                t = <datagram_traffic*>lb_load_ptr(&chunk[slot % STATS_CHUNK]) if chunk != NULL else NULL
                if t == NULL:
                    continue
                if sums is None:
                    sums = {"datagrams_in": 0, "datagrams_out": 0, "evicted": 0, "dropped": {}}
                sums["datagrams_in"] += lb_peek_u64(&t.datagrams_in)
                sums["datagrams_out"] += lb_peek_u64(&t.datagrams_out)
                sums["evicted"] += lb_peek_u64(&t.evicted)
                for reason in range(LB_REASON_COUNT):
                    dropped = lb_peek_u64(&t.dropped[reason])
                    if dropped:
                        sums["dropped"][REASONS[reason]] = sums["dropped"].get(REASONS[reason], 0) + dropped
            if sums is not None:
                result[name] = sums
        return result

    def route_stats(self):
        """Only routes that had traffic."""
        result = {}
        for name, id in list(self.route_ids.items()):  # a build may be adding to it
            stats = self.sum_traffic(1, id)
            if stats is not None:
                result[name] = stats
        return result

    def grpc_stats(self):
        """{route: how many calls ended with each gRPC status, 0 to 16, and at the end how many without any}, of routes
        that carried gRPC."""
        cdef int i, k
        cdef grpc_traffic* t
        cdef void** chunk
        result = {}
        for name, id in list(self.route_ids.items()):
            sums = None
            for i in range(self.s.reactor_count):
                chunk = self.s.reactors[i].grpc_stats.chunks[id // STATS_CHUNK]
                t = <grpc_traffic*>lb_load_ptr(&chunk[id % STATS_CHUNK]) if chunk != NULL else NULL
                if t == NULL:
                    continue
                if sums is None:
                    sums = [0] * 18
                for k in range(18):
                    sums[k] += lb_peek_u64(&t.statuses[k])
            if sums is not None:
                result[name] = sums
        return result

    def upstream_stats(self):
        """Of the upstreams in the current table."""
        cdef UpstreamView view
        cdef Endpoint ep
        cdef int i, idle, ejected
        result = {}
        if self.current is None:
            return result
        for name, view in self.current.upstreams.items():
            stats = self.sum_traffic(2, view.live.p.id)
            idle = ejected = 0
            for ep in view.endpoints:
                ejected += endpoint_ejected(ep.p)
                for i in range(self.s.reactor_count):
                    idle += lb_peek_int(&ep.p.pools[i].count)
            stats.update(active=lb_peek_int(&view.live.p.active), queued=lb_peek_int(&view.live.p.queued), idle=idle,
                    ejected=ejected, ejections=lb_peek_u64(&view.live.p.ejections))
            result[name] = stats
        return result

    def ejection_changes(self):
        """A number that is another one whenever an endpoint was ejected or has come back from that."""
        return lb_peek_int(&self.s.ejection_changes)

    def ejected(self):
        """{(upstream, endpoint): (for how many milliseconds more, connections in a row that failed, why the last
        one did)} of those in the current table that were ejected: until a connection to them succeeds, or their time
        is over and they answer on one that was kept.
        """
        cdef UpstreamView view
        cdef endpoint* ep
        cdef uint32_t i
        cdef int64_t now = monotonic_ns() // 1000000, until
        result = {}
        if self.current is None:
            return result
        for name, view in self.current.upstreams.items():
            for i in range(view.p.count):
                ep = view.p.endpoints[i]
                until = lb_peek_i64(&ep.ejected_until_ms)
                if endpoint_ejected(ep):
                    result[name, ep.key[:ep.key_size].decode()] = (
                        max(0, until - now), lb_peek_int(&ep.failures_in_row), failure_text(ep),
                    )
        return result

    def endpoint_stats(self, str upstream):
        """Of the endpoints in the current table."""
        cdef UpstreamView view
        cdef Endpoint ep
        cdef int i, idle
        cdef int64_t now = monotonic_ns() // 1000000, ejected
        cdef const char* tls_error
        result = []
        if self.current is None or upstream not in self.current.upstreams:
            return result
        view = self.current.upstreams[upstream]
        for ep, weight in zip(view.endpoints, view.weights):
            idle = 0
            for i in range(self.s.reactor_count):
                idle += lb_peek_int(&ep.p.pools[i].count)
            ejected = max(0, lb_peek_i64(&ep.p.ejected_until_ms) - now)
            tls_error = <const char*>lb_load_ptr(&ep.p.tls_error)
            if ep.admin != "ready":
                state = ep.admin
            elif weight == 0:
                state = "draining"
            elif lb_peek_int(&ep.p.health) != HEALTH_OK:
                state = "unhealthy" if lb_peek_int(&ep.p.health) == HEALTH_FAILED else "untested"
            else:
                state = "ejected" if ejected else "ready"
            result.append({
                "key": ep.key, "state": state, "weight": weight, "active": lb_peek_int(&ep.p.active), "idle": idle,
                "requests": lb_peek_u64(&ep.p.requests), "failures": lb_peek_u64(&ep.p.failures),
                "ejected_for_ms": ejected, "slow_share": slow_share(view.p, ep.p, now) / 1000.0,
                "tls_error": tls_error.decode() if tls_error != NULL else "",
                "failures_in_row": lb_peek_int(&ep.p.failures_in_row), "last_failure": failure_text(ep.p),
            })
        return result

    def look_at_flows(self, *, str listener=None, str upstream=None, str key=None, client=None, str order="age",
            int limit=50, bint ends=False):
        """Have all reactors look at their flows and UDP sessions; None while they still do so for somebody else.
        With `ends` they end those that are wanted. KeyError("listener") or KeyError("upstream") when there has never
        been one of that name.
        """
        cdef FlowLook look
        cdef int i
        if self.look is not None and self.look.waits_for():
            return None
        for what, name, known in (("listener", listener, self.listener_slots), ("upstream", upstream, self.upstreams)):
            if name is not None and name not in known:
                raise KeyError(what)
        look = FlowLook(self.listener_names, self.s.reactor_count, limit, order)
        if listener is not None:
            look.question.slot = self.listener_slots[listener]
        if upstream is not None:
            look.question.upstream = (<Upstream>self.upstreams[upstream]).p
        if key is not None:
            look.endpoint = key.encode("utf-8", "replace")
            look.question.endpoint = look.endpoint
            look.question.endpoint_size = <uint32_t>len(look.endpoint)
        if client is not None:
            look.ask_client(client)
        look.question.ends = ends
        self.look = look
        for i in range(self.s.reactor_count):
            self.post_to(i, run_look, &look.parts[i], 0)
        return look

    def remembered_endpoint(self, str upstream, bytes client):
        """(endpoint, milliseconds since it was chosen last) of what affinity remembers for a client (16-byte address);
        None when it does not.
        """
        cdef UpstreamView view = self.current.upstreams.get(upstream) if self.current is not None else None
        cdef remembered told
        if view is None or not view.p.client_affinity or len(client) != 16:
            return None
        told = affinity_tell(&self.s, monotonic_ns() // 1000000, view.p, lb_hash(<char*>client, 16))
        if told.index == NO_SEAT:
            return None
        return (<Endpoint>view.endpoints[told.index]).key, max(0, told.silent_ms)

    def set_endpoint(self, str upstream, str key, *, admin=None, weight=None):
        """Operator's say; survives reloads. KeyError when there is no such endpoint."""
        cdef Upstream live = self.upstreams[upstream]
        cdef Endpoint ep = live.endpoints[key]
        if admin is not None:
            if admin == "ready" and ep.admin != "ready":
                self.joins(ep)
            lb_store_int(&ep.p.admin, {"ready": ADMIN_READY, "drain": ADMIN_DRAIN, "down": ADMIN_DOWN}[admin])
            ep.admin = admin
            self.post(run_close_pool if admin == "down" else run_serve_again, ep.p, 0)
        if weight is None:
            return
        if weight < 0:
            ep.weight_override = None
            self.overrides.get(upstream, {}).pop(key, None)
            if not self.overrides.get(upstream):
                self.overrides.pop(upstream, None)
        else:
            ep.weight_override = weight
            self.overrides.setdefault(upstream, {})[key] = weight
        self.republish(upstream)

    def set_health(self, str upstream, str key, bint healthy, bint reset_flows=False):
        """What health checks say, for all reactors at once; whether the flows of one that has just failed are reset.
        Passes over an endpoint that has gone meanwhile.
        """
        cdef Upstream live = self.upstreams.get(upstream)
        cdef Endpoint ep = live.endpoints.get(key) if live is not None else None
        cdef int before
        if ep is None or lb_peek_int(&ep.p.retired):
            return
        before = lb_peek_int(&ep.p.health)
        if healthy and before != HEALTH_OK:
            self.joins(ep)
        lb_store_int(&ep.p.health, HEALTH_OK if healthy else HEALTH_FAILED)
        if not healthy and before != HEALTH_FAILED:
            # Whatever broke the endpoint may have broken them: no request should have to find out.
            self.post(run_close_pool, ep.p, 0)
            if reset_flows:
                lb_add_int(&ep.p.resetting, self.s.reactor_count)
                self.post(run_reset_flows, ep.p, 0)
        elif healthy and before == HEALTH_FAILED:
            # Checks have just connected, so connections that failed before say nothing any more (as in Envoy).
            endpoint_forgive(&self.s, ep.p)

    cdef joins(self, Endpoint ep):
        """It comes back to those that serve: from now on it may start slowly."""
        lb_put_i64(&ep.p.joined_ms, monotonic_ns() // 1000000)

    cdef republish(self, str upstream):
        """The current table again, with the operator's weights in it."""
        cdef Table t = self.current
        if t is None or upstream not in t.upstreams:
            return
        upstreams = dict(t.upstreams)
        upstreams[upstream] = self.with_overrides(t.upstreams[upstream], self.overrides.get(upstream, {}))
        self.publish(Table(t.generation, t.listeners, dict(self.listener_slots), upstreams,
                <uint32_t>len(self.upstreams), t.places))


cdef str failure_text(endpoint* ep):
    """Why the last connection to it has failed; empty when it has not."""
    cdef int why = lb_peek_int(&ep.last_failure)
    cdef const char* tls_error = <const char*>lb_load_ptr(&ep.tls_error)
    if lb_peek_int(&ep.failures_in_row) == 0:
        return ""
    if why == FAILED_NO_ANSWER:
        return "no answer in time"
    if why == FAILED_NOT_HTTP2:
        return "it does not speak HTTP/2"
    if why == FAILED_BEFORE_SETTINGS:
        return "it ends the connection before HTTP/2 begins"
    if why == FAILED_TLS:
        return "TLS failed" + (f": {tls_error.decode()}" if tls_error != NULL else "")
    return os.strerror(why).lower()


cdef bint is_udp(int fd):
    cdef int kind = 0
    cdef socklen_t size = sizeof(kind)
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &size)
    return kind == SOCK_DGRAM


cdef void release_reactor(reactor* r) noexcept:
    datagrams_release(r)
    stats_release(&r.datagram_stats)
    stats_release(&r.listener_stats)
    stats_release(&r.route_stats)
    stats_release(&r.upstream_stats)
    stats_release(&r.grpc_stats)
    free(r.log.data)
    tls_release(r)
    pipes_release(r)
    reactor_release(r)


cdef void close_all(reactor* r) noexcept:
    """Close the descriptors of a reactor whose thread has ended."""
    cdef conn* c = <conn*>r.connections
    cdef listening* l = <listening*>r.listeners
    cdef listening* following
    while c != NULL:
        close(c.base.fd)
        c = c.next_all
    r.connections = NULL
    while l != NULL:
        following = l.next
        close(l.base.fd)
        free(l)
        l = following
    r.listeners = NULL
