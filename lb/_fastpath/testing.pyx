"""For tests and micro-benchmarks only: the parser and the algorithms of the data plane, callable from Python.

The daemon never imports this. Functions take and return plain Python values and own no rules of their own.
"""
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from lb._fastpath.c.sys cimport lb_reason_names, ssize_t
from lb._fastpath.client_hello cimport HELLO_BAD, HELLO_MOST, HELLO_OK, client_hello, hello_read
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
from lb._fastpath.message cimport head
from lb._fastpath.reactor cimport io, io_first_in_line, io_stand_in_line, reactor
from lb._fastpath.table cimport build_sequence, listener_view
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
