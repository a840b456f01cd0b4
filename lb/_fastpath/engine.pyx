"""What the control plane drives: the reactors and what they share, as one Python object.

It makes what tables consist of (compiled.pyx, and credentials.pyx for TLS), and frees it when no reactor uses it any
more. Live state (Endpoint, Upstream, listener and route ids) is in its registries and outlives all tables. Everything
here runs in the control plane's thread; reactors are reached through the table pointer, through atomics, and through
commands.
"""
import errno
import os
import resource
import stat
import time

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from lb._fastpath.accept cimport run_close_listener, run_listen, run_pass_listener, run_stop_accepting
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
    SOCK_DGRAM,
    SOL_SOCKET,
    SO_TYPE,
    F_DUPFD_CLOEXEC,
    LB_R_DRAIN,
    LB_REASON_COUNT,
    close,
    fcntl,
    getsockopt,
    lb_fence,
    lb_hash,
    lb_add_int,
    lb_huge_alloc,
    lb_line_alloc,
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
    socklen_t,
)
from lb._fastpath.affinity cimport AFFINITY_SETS, AFFINITY_WAYS, affinity_tell, remembered
from lb._fastpath.client_hello cimport hello_texts
from lb._fastpath.clock cimport monotonic_ns
from lb._fastpath.compiled cimport (
    MAX_RETRIES,
    Endpoint,
    HostIndex,
    HostProgram,
    ListenerView,
    NameIndex,
    StreamView,
    Table,
    TlsIndex,
    Upstream,
    UpstreamView,
    make_networks,
    program_alloc,
)
from lb._fastpath.credentials cimport ClientTls
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
from lb._fastpath.flow_look cimport FlowLook
from lb._fastpath.flows cimport run_look
from lb._fastpath.balance cimport endpoint_ejected, endpoint_forgive
from lb._fastpath.clients cimport clients_drain_idle
from lb._fastpath.http2 cimport stream
from lb._fastpath.http2_server cimport http2_server_drain
from lb._fastpath.limits cimport RATE_ROWS, rate_row
from lb._fastpath.memory cimport PAGE_CLASSES, slab_init
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
from lb._fastpath.table cimport (
    ACTION_FORWARD,
    ACTION_RESPOND,
    NO_SEAT,
    arena,
    arena_take,
    arena_text,
    build_paths,
    pattern,
    predicate,
    route,
    slow_share,
    target,
    text,
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
