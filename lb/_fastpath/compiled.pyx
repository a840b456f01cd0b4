"""The compiled configuration and the live state it names, as Python objects.

They own the C structs of tables, one each (HostProgram, HostIndex, UpstreamView, ListenerView, Table), and keep each
other alive the way the structs point at each other. Live state (Endpoint, Upstream) is in the engine's registries and
outlives all tables. The engine makes them all; everything here runs under the GIL, in the control plane's threads.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from lb._fastpath.accept cimport choose_route
from lb._fastpath.c.sys cimport (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    htons,
    inet_pton,
    lb_hash,
    lb_huge_alloc,
    lb_line_alloc,
    lb_load_int,
    lb_peek_int,
    sockaddr_in,
    sockaddr_in6,
    sockaddr_un,
)
from lb._fastpath.client_hello cimport client_hello
from lb._fastpath.credentials cimport ClientTls, TlsHost
from lb._fastpath.endpoint cimport CURSOR_WORDS, endpoint, idle_pool, upstream_live
from lb._fastpath.message cimport MAX_FIELDS, head
from lb._fastpath.shares cimport build_maglev
from lb._fastpath.table cimport (
    BALANCE_MAGLEV,
    LISTENER_GONE,
    NO_LISTENER,
    NO_ROUTE,
    find_host,
    find_route,
    host_entry,
    host_index,
    index_put,
    index_remove,
    listener_view,
    name_route,
    network,
    route_at,
    stream_view,
    table,
    target,
    text_at,
    upstream_forget,
    upstream_lay_out,
    upstream_view,
    vhost,
)

# ---------------------------------------------------------------------------------------------------------- live state

cdef class Endpoint:
    """Live state of one endpoint of one upstream."""

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
# makes and frees them, under the GIL; a place that is given back is used for the next program of its size.
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
