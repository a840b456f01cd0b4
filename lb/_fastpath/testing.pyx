"""For tests and micro-benchmarks only: the parser and the algorithms of the data plane, callable from Python.

The daemon never imports this. Functions take and return plain Python values and own no rules of their own.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from lb._fastpath.affinity cimport AFFINITY_SETS, AFFINITY_WAYS
from lb._fastpath.balance cimport (
    ANY_FAMILY,
    balance_pick,
    balance_release,
    endpoint_answered,
    endpoint_connect_failed,
    endpoint_connected,
    endpoint_connecting,
    endpoint_ejected,
    flow_hash,
    tried_bit,
)
from lb._fastpath.c.sys cimport AF_INET, AF_INET6, lb_hash, lb_huge_alloc, lb_line_alloc, lb_reason_names, ssize_t
from lb._fastpath.client_hello cimport HELLO_BAD, HELLO_MOST, HELLO_OK, client_hello, hello_read
from lb._fastpath.clock cimport monotonic_ns
from lb._fastpath.endpoint cimport CURSOR_WORDS, FAILED_NO_ANSWER, affinity_entry, endpoint, upstream_live
from lb._fastpath.http1_parse cimport (
    CHUNK_BAD,
    CHUNK_DATA,
    CHUNK_TRAILERS,
    chunk_next,
    parse_request as c_parse_request,
    parse_response as c_parse_response,
    normalize_host as c_normalize_host,
    normalize_target as c_normalize_target,
)
from lb._fastpath.limits cimport RATE_ROWS, client_in_rate, listener_in_rate, rate_row
from lb._fastpath.message cimport head
from lb._fastpath.proxy_protocol cimport proxy_end, proxy_header, proxy_read
from lb._fastpath.reactor cimport io, io_first_in_line, io_stand_in_line, reactor, shared
from lb._fastpath.shares cimport build_maglev, build_sequence
from lb._fastpath.table cimport (
    BALANCE_MAGLEV,
    listener_view,
    upstream_forget,
    upstream_lay_out,
    upstream_view,
)
from lb._fastpath.transport cimport chunk_state


def normalize_target(bytes target, bint merge_slashes=True, bint keep_escaped_slashes=False):
    """(path, query or None), or None when a rule is broken. Bytes that no target may hold are the head parser's
    business.
    """
    cdef char* out = <char*>malloc(len(target) + 1)
    cdef uint32_t path_size = 0, size = 0
    if out == NULL:
        raise MemoryError
    try:
        if not c_normalize_target(target, len(target), out, merge_slashes, keep_escaped_slashes, &path_size, &size):
            return None
        path = out[:path_size]
        return (path, out[path_size + 1:size]) if size > path_size else (path, None)
    finally:
        free(out)


def normalize_host(bytes value):
    """The hostname for routing, or None when a rule is broken."""
    cdef char* out = <char*>malloc(len(value) + 1)
    cdef uint32_t size = 0
    if out == NULL:
        raise MemoryError
    try:
        return out[:size] if c_normalize_host(value, len(value), out, &size) else None
    finally:
        free(out)


cdef dict describe(head* h):
    return {
        "keep_alive": bool(h.keep_alive), "content_length": h.content_length, "chunked": bool(h.chunked),
        "upgrade": bool(h.upgrade), "minor": h.minor,
        "fields": [
            (h.fields[i].name[:h.fields[i].name_size], h.fields[i].value[:h.fields[i].value_size],
                    bool(h.fields[i].drop))
            for i in range(h.field_count)
        ],
    }


def parse_request(bytes data, int max_head_bytes=32768, int max_headers=100, int max_target_bytes=8192,
        bint reject_bare_lf=False):
    """(bytes used, description), (0, None) when more is needed, or (-1, reason)."""
    cdef listener_view view
    cdef head* h = <head*>calloc(1, sizeof(head))
    cdef char* work = <char*>malloc(65536)
    cdef ssize_t used
    if h == NULL or work == NULL:
        raise MemoryError
    memset(&view, 0, sizeof(view))
    view.max_head_bytes = max_head_bytes
    view.max_headers = max_headers
    view.max_target_bytes = max_target_bytes
    view.merge_slashes = True
    view.reject_bare_lf = reject_bare_lf
    try:
        used = c_parse_request(data, len(data), h, &view, work)
        if used < 0:
            return -1, lb_reason_names[-used].decode()
        if used == 0:
            return 0, None
        result = describe(h)
        result["method"] = h.method_name.at[:h.method_name.size]
        result["target"] = h.target.at[:h.target.size]
        result["path"] = h.target.at[:h.path_size]
        result["hostname"] = h.hostname.at[:h.hostname.size]
        return used, result
    finally:
        free(h)
        free(work)


def parse_response(bytes data):
    """(bytes used, description), (0, None) when more is needed, or (-1, reason)."""
    cdef head* h = <head*>calloc(1, sizeof(head))
    cdef ssize_t used
    if h == NULL:
        raise MemoryError
    try:
        used = c_parse_response(data, len(data), h)
        if used < 0:
            return -1, lb_reason_names[-used].decode()
        if used == 0:
            return 0, None
        result = describe(h)
        result["status"] = h.status
        return used, result
    finally:
        free(h)


def decode_chunks(list pieces):
    """(body, rest) of a chunked body that comes in these pieces; rest begins with the trailer section. None: bad; body
    alone when it is not over yet.
    """
    cdef chunk_state state
    cdef bytes piece
    cdef size_t at, used, size
    cdef const char* data
    cdef const char* p
    cdef int step
    body = bytearray()
    memset(&state, 0, sizeof(state))
    for number, piece in enumerate(pieces):
        p = piece
        at = 0
        while at < <size_t>len(piece):
            used = 0
            size = 0
            step = chunk_next(&state, p + at, len(piece) - at, &used, &data, &size)
            if step == CHUNK_BAD:
                return None
            if step == CHUNK_DATA:
                body += data[:size]
            at += used
            if step == CHUNK_TRAILERS:
                return bytes(body), piece[at:] + b"".join(pieces[number + 1:])
    return (bytes(body),)


def read_proxy_header(bytes data):
    """(size, client, target, values) of the PROXY header that `data` begins with, ends as (16-byte address, port) or
    None; 0 while it may still become one, -1 when it is none.
    """
    cdef proxy_header header
    cdef int size = proxy_read(data, len(data), &header)
    if size <= 0:
        return size
    values = header.values.at[:header.values.size] if header.values.size else b""
    return size, describe_end(&header.client), describe_end(&header.target), values


cdef object describe_end(const proxy_end* end):
    return ((<const char*>end.address)[:16], end.port) if end.known else None


def connections_in_rate(int rate, list attempts):
    """Which of these connections are within `rate` a second: (nanosecond, 16-byte address or None for anybody)."""
    cdef shared* s = <shared*>calloc(1, sizeof(shared))
    cdef reactor* r = <reactor*>calloc(1, sizeof(reactor))
    cdef bytes address
    try:
        if s == NULL or r == NULL:
            raise MemoryError
        s.client_rates = calloc(RATE_ROWS, sizeof(rate_row))
        if s.client_rates == NULL:
            raise MemoryError
        s.secret = 7
        r.s = s
        result = []
        for now_ns, client in attempts:
            r.now_ns = now_ns
            if client is None:
                result.append(bool(listener_in_rate(r, 3, rate)))
            else:
                address = client
                result.append(bool(client_in_rate(r, <const unsigned char*><const char*>address, 3, rate)))
        return result
    finally:
        if s != NULL:
            free(s.client_rates)
        free(s)
        free(r)


def smooth_sequence(weights, uint32_t capacity=8192):
    """One period of smooth weighted round-robin."""
    cdef uint32_t count = <uint32_t>len(weights), size, i
    cdef int* given = <int*>malloc(count * sizeof(int) + 1)
    cdef uint32_t* made = <uint32_t*>malloc(capacity * sizeof(uint32_t))
    if given == NULL or made == NULL:
        raise MemoryError
    try:
        for i in range(count):
            given[i] = weights[i]
        size = build_sequence(given, count, made, capacity)
        return [made[i] for i in range(size)]
    finally:
        free(given)
        free(made)


def handshakes_in_line(str coming):
    """In which order handshakes have their turn: the places in `coming`, where `c` stands for one with a client, `e`
    for one with an endpoint, and `-` lets the first in line have its turn.
    """
    cdef reactor* r = <reactor*>calloc(1, sizeof(reactor))
    cdef io* waiting = <io*>calloc(len(coming) + 1, sizeof(io))
    cdef io* first
    order = []
    try:
        if r == NULL or waiting == NULL:
            raise MemoryError
        for i, kind in enumerate(coming + "-" * len(coming)):
            if kind != "-":
                waiting[i].r = r
                io_stand_in_line(&waiting[i], kind == "e")
                continue
            first = io_first_in_line(r)
            if first != NULL:
                order.append(first - waiting)
        return order
    finally:
        free(waiting)
        free(r)


def read_client_hello(bytes data):
    """(server name, ALPN protocols), None while more is to come, or "bad"."""
    cdef uint8_t* copy
    cdef client_hello hello
    cdef int result
    cdef size_t size = min(len(data), HELLO_MOST)
    protocols = []
    copy = <uint8_t*>malloc(size + 1)  # exactly what there is: the sanitizers see who reads beyond it
    if copy == NULL:
        raise MemoryError
    memcpy(copy, <const char*>data, size)
    try:
        result = hello_read(copy, size, &hello)
        if result != HELLO_OK:
            return "bad" if result == HELLO_BAD else None
        at = 0
        while at < hello.protocols_size:
            protocols.append((<const char*>hello.protocols)[at + 1:at + 1 + hello.protocols[at]])
            at += 1 + hello.protocols[at]
        return hello.name[:hello.name_size], tuple(protocols)
    finally:
        free(copy)


def maglev_table(keys, weights, uint32_t size=0):
    """The slots of a Maglev table; `size`: a prime, 0 for the one that is used for so many."""
    cdef uint32_t count = <uint32_t>len(keys), i
    cdef uint64_t* hashes = <uint64_t*>malloc(count * sizeof(uint64_t) + 1)
    cdef int* given = <int*>malloc(count * sizeof(int) + 1)
    cdef uint32_t* slots = NULL
    cdef bytes key
    if hashes == NULL or given == NULL:
        raise MemoryError
    try:
        for i in range(count):
            key = keys[i].encode()
            hashes[i] = lb_hash(key, len(key))
            given[i] = weights[i]
        slots = build_maglev(hashes, given, count, &size)
        return [slots[i] for i in range(size)] if slots != NULL else []
    finally:
        free(hashes)
        free(given)
        free(slots)


cdef class Balancer:
    """One upstream by itself, with reactors that have no thread and a clock that stands still until it is set."""

    cdef shared s
    cdef reactor* reactors
    cdef upstream_live live
    cdef upstream_view* view
    cdef uint32_t* maglev
    cdef dict endpoints  # key -> address of its live state, which survives every swap
    cdef readonly list keys

    def __cinit__(self, int reactors=1, uint64_t seed=1):
        cdef int i
        self.endpoints = {}
        self.keys = []
        self.s.reactor_count = reactors
        self.s.secret = seed
        self.reactors = <reactor*>lb_line_alloc(reactors * sizeof(reactor))
        self.live.cursors = <uint32_t*>lb_line_alloc(reactors * CURSOR_WORDS * sizeof(uint32_t))
        if self.reactors == NULL or self.live.cursors == NULL:
            raise MemoryError
        for i in range(reactors):
            self.reactors[i].s = &self.s
            self.reactors[i].index = i
            self.reactors[i].random[0] = seed * 0x9e3779b97f4a7c15 + <uint64_t>i
            self.reactors[i].random[1] = seed
            self.reactors[i].now_ms = 1_000_000

    def __dealloc__(self):
        self.forget_view()
        free(self.s.affinity)
        for address in self.endpoints.values():
            free(<void*><size_t>address)
        free(self.live.cursors)
        free(self.reactors)

    cdef forget_view(self):
        if self.view != NULL:
            upstream_forget(self.view)
        free(self.maglev)
        self.view = NULL
        self.maglev = NULL

    cdef endpoint* at(self, str key) except NULL:
        return <endpoint*><size_t>self.endpoints[key]

    def swap(self, endpoints, int balance=0, *, int hash_key=0, bint affinity=False, int max_connections=0,
            int max_connections_per_endpoint=0, int checked=0, int slow_start_ms=0,
            int affinity_timeout_ms=0):
        """Another view: (key, weight) of each endpoint, and BALANCE_…, HASH_… and CHECKED_… of table.pxd."""
        cdef endpoint* ep
        cdef bytes raw
        cdef uint64_t* hashes
        cdef uint32_t i
        self.forget_view()
        self.keys = [key for key, _ in endpoints]
        self.view = <upstream_view*>calloc(1, sizeof(upstream_view))
        if self.view == NULL:
            raise MemoryError
        self.view.live = &self.live
        self.view.count = <uint32_t>len(self.keys)
        self.view.balance = <unsigned char>balance
        self.view.hash_key = <unsigned char>hash_key
        self.view.client_affinity = affinity
        self.view.max_connections = max_connections
        self.view.max_connections_per_endpoint = max_connections_per_endpoint
        self.view.checked = checked
        self.view.slow_start_ms = slow_start_ms
        self.view.affinity_timeout_ms = affinity_timeout_ms
        if affinity and self.s.affinity == NULL:
            self.s.affinity = <affinity_entry*>lb_huge_alloc(AFFINITY_SETS * AFFINITY_WAYS * sizeof(affinity_entry))
            if self.s.affinity == NULL:
                raise MemoryError
        self.view.endpoints = <endpoint**>calloc(self.view.count + 1, sizeof(endpoint*))
        self.view.weights = <int*>calloc(self.view.count + 1, sizeof(int))
        hashes = <uint64_t*>malloc(self.view.count * sizeof(uint64_t) + 1)
        if self.view.endpoints == NULL or self.view.weights == NULL or hashes == NULL:
            raise MemoryError
        for i, (key, weight) in enumerate(endpoints):
            if key not in self.endpoints:
                ep = <endpoint*>lb_line_alloc(sizeof(endpoint))
                if ep == NULL:
                    raise MemoryError
                raw = key.encode()
                ep.hash = lb_hash(raw, len(raw))
                ep.family = AF_INET6 if b"[" in raw else AF_INET
                ep.upstream = &self.live
                self.endpoints[key] = <size_t>ep
            self.view.endpoints[i] = self.at(key)
            self.view.weights[i] = weight
            hashes[i] = self.view.endpoints[i].hash
        if balance == BALANCE_MAGLEV and not affinity:
            self.maglev = build_maglev(hashes, self.view.weights, self.view.count, &self.view.maglev_size)
            self.view.maglev = self.maglev
        elif self.view.count and not upstream_lay_out(self.view):
            raise MemoryError
        free(hashes)

    def pick(self, uint64_t hash=0, tried=(), int by=0, int family=ANY_FAMILY):
        """The key of the endpoint that is chosen, with a place reserved on it, or one of PICK_…. `tried`: keys;
        `family`: AF_….
        """
        cdef uint64_t bits = 0
        for key in tried:
            bits |= tried_bit(<uint32_t>self.keys.index(key))
        i = balance_pick(&self.reactors[by], self.view, family, bits, hash)
        return self.keys[i] if i >= 0 else i

    def release(self, str key):
        balance_release(&self.live, self.at(key))

    def count(self, int picks, uint64_t first_hash=0):
        """{key: how often it is chosen} of so many choices, each released at once, by hashes of numbers."""
        cdef uint32_t i
        cdef int number, chosen
        cdef uint64_t n
        counts = [0] * (self.view.count + 1)
        for number in range(picks):
            n = first_hash + <uint64_t>number
            chosen = balance_pick(&self.reactors[number % self.s.reactor_count], self.view, ANY_FAMILY, 0,
                    lb_hash(<const char*>&n, sizeof(n)))
            counts[chosen] += 1
            if chosen >= 0:
                balance_release(&self.live, self.view.endpoints[chosen])
        return {key: counts[i] for i, key in enumerate(self.keys) if counts[i]}

    def nanoseconds(self, int picks):
        """What a choice takes, its release included."""
        cdef int _, chosen
        cdef uint64_t hash = 1
        cdef int64_t started = monotonic_ns()
        with nogil:
            for _ in range(picks):
                hash = lb_hash(<const char*>&hash, sizeof(hash))
                chosen = balance_pick(&self.reactors[0], self.view, ANY_FAMILY, 0, hash)
                balance_release(&self.live, self.view.endpoints[chosen])
        return (monotonic_ns() - started) / <double>picks

    def moves(self, list homes, int rounds, int by=0):
        """How often clients 0, 1, ... are not sent to the endpoint named in `homes`, each asked for so many times.
        Other threads may do the same meanwhile.
        """
        cdef uint32_t* wanted = <uint32_t*>malloc(len(homes) * sizeof(uint32_t) + 1)
        cdef uint32_t count = <uint32_t>len(homes), i
        cdef int _, chosen, moved = 0
        if wanted == NULL:
            raise MemoryError
        for i in range(count):
            wanted[i] = self.keys.index(homes[i])
        with nogil:
            for _ in range(rounds):
                self.reactors[by].now_ms += 64
                for i in range(count):
                    chosen = balance_pick(&self.reactors[by], self.view, ANY_FAMILY, 0, i)
                    balance_release(&self.live, self.view.endpoints[chosen])
                    moved += <uint32_t>chosen != wanted[i]
        free(wanted)
        return moved

    def flow_hash(self, bytes client, int client_port, bytes destination, int destination_port, int protocol):
        """Addresses of 16 bytes."""
        return flow_hash(self.view, client, client_port, destination, destination_port, protocol)

    def set(self, str key, *, health=None, admin=None, active=None, failures_in_row=None, bint joins=False):
        """HEALTH_… and ADMIN_… of endpoint.pxd, how many exchanges are under way, how many connections have failed, and
        that it joins others now."""
        cdef endpoint* ep = self.at(key)
        if health is not None:
            ep.health = health
        if admin is not None:
            ep.admin = admin
        if active is not None:
            ep.active = active
        if failures_in_row is not None:
            ep.failures_in_row = failures_in_row
        if joins:
            ep.joined_ms = self.reactors[0].now_ms

    def connect(self, str key, bint succeeds):
        """What a connection to an endpoint has come to."""
        if succeeds:
            endpoint_connected(self.at(key), &self.reactors[0])
        else:
            endpoint_connect_failed(self.at(key), &self.reactors[0], FAILED_NO_ANSWER)

    def begin_to_connect(self, str key, int timeout_ms):
        endpoint_connecting(self.at(key), &self.reactors[0], timeout_ms)

    def answer(self, str key):
        """On a connection that was kept."""
        endpoint_answered(self.at(key), &self.reactors[0])

    def is_ejected(self, str key):
        """As it is told."""
        return bool(endpoint_ejected(self.at(key)))

    def ejections(self):
        """(how often endpoints were ejected, how often one was newly ejected or came back from it)."""
        return self.live.ejections, self.s.ejection_changes

    def active(self):
        return {key: self.at(key).active for key in self.keys}

    def pass_time(self, int64_t milliseconds):
        cdef int i
        for i in range(self.s.reactor_count):
            self.reactors[i].now_ms += milliseconds
