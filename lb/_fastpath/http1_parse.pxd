"""Parsing HTTP/1: heads, targets, hosts, chunks and trailers, from bytes that nobody has checked before.

The rules are stricter than RFC 9112 wherever implementations disagree, because disagreement is what smuggling lives
on. Heads are parsed without state: on a short read the bytes are kept and parsed again from the start, which costs
nothing in practice (one read carries a whole head) and leaves no state to get wrong. Only chunks, which have no
bound, have a state.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from lb._fastpath.c.sys cimport ssize_t
from lb._fastpath.message cimport field, head
from lb._fastpath.table cimport listener_view
from lb._fastpath.transport cimport chunk_state

cdef enum:
    MAX_RESPONSE_HEAD = 49152  # also the most that max_head_bytes may be: heads are built in one scratch page
    MAX_TRAILERS = 8192
    MAX_CHUNK_LINE = 1024
    MAX_CHUNK_OVERHEAD = 16384  # extension bytes beyond the data they came with
    MAX_CONNECTION_TOKENS = 16
    MAX_METHOD = 32

cdef enum:  # results of chunk_next
    CHUNK_MORE = 0  # all bytes are used
    CHUNK_DATA
    CHUNK_TRAILERS  # the last chunk is over; parse_trailers takes it from here
    CHUNK_BAD

# Bytes used, 0 when more are needed, or -reason.
cdef ssize_t parse_request(const char* p, size_t n, head* h, const listener_view* view, char* work) noexcept nogil
cdef ssize_t parse_response(const char* p, size_t n, head* h) noexcept nogil
cdef ssize_t parse_trailers(const char* p, size_t n, head* h) noexcept nogil
cdef int chunk_next(chunk_state* c, const char* p, size_t n, size_t* used, const char** data,
        size_t* size) noexcept nogil
# False when a rule is broken. `out` has room for as many bytes as come in.
cdef bint normalize_target(const char* target, size_t size, char* out, bint merge_slashes, bint keep_escaped_slashes,
                           uint32_t* path_size, uint32_t* out_size) noexcept nogil
cdef bint normalize_host(const char* value, size_t size, char* out, uint32_t* out_size) noexcept nogil

# What HTTP/2 needs, too.
cdef int known_field(const char* p, size_t n) noexcept nogil
cdef bint imitates_known(const char* p, size_t n) noexcept nogil
cdef int known_method(const char* p, size_t n) noexcept nogil
cdef bint parse_length(const char* p, size_t n, int64_t* result) noexcept nogil
cdef bint trailer_allowed(const field* f) noexcept nogil
cdef int resolve_target(head* h, const listener_view* view, char* work) noexcept nogil
