"""gRPC (grpc.pxd)."""
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from lb._fastpath.c.sys cimport (
    LB_R_BODY_TOO_LARGE,
    LB_R_GRPC_DEADLINE,
    LB_R_HEAD_TOO_LARGE,
    LB_R_REQUEST_TIMEOUT,
    LB_R_RESPONSE_TIMEOUT,
    lb_equal_nocase,
)
from lb._fastpath.exchange cimport X_GRPC, X_GRPC_DEADLINE
from lb._fastpath.http1_parse cimport imitates_known
from lb._fastpath.message cimport FIELD_OTHER

cdef enum:  # codes of statuscodes.md
    UNKNOWN = 2
    DEADLINE_EXCEEDED = 4
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


cdef bint is_grpc_type(const char* p, size_t n) noexcept nogil:
    """`application/grpc`, with `+proto` or parameters behind it; application/grpc-web is another protocol."""
    if n < 16 or not lb_equal_nocase(p, b"application/grpc", 16):
        return False
    return n == 16 or p[16] in (c"+", c";", c" ")


cdef void note_grpc(exchange* x, const field* content_type) noexcept nogil:
    """Whether this is a gRPC call."""
    cdef uint32_t size = content_type.value_size
    if not is_grpc_type(content_type.value, size):
        return
    x.flags |= X_GRPC
    x.grpc_type_size = <uint8_t>(size if size < sizeof(x.grpc_type) else 16)
    memcpy(x.grpc_type, content_type.value, x.grpc_type_size)


cdef bint note_deadline(exchange* x, const head* h) noexcept nogil:
    """Until when the call may last (PROTOCOL-HTTP2.md, Requests: Timeout). False: what stands there is no timeout."""
    cdef int i
    cdef const field* f
    cdef int64_t timeout_ms
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.name_size != 12 or not lb_equal_nocase(f.name, b"grpc-timeout", 12):
            continue
        timeout_ms = parse_timeout(f.value, f.value_size)
        if timeout_ms < 0 or x.flags & X_GRPC_DEADLINE:
            return False
        x.flags |= X_GRPC_DEADLINE
        x.request_deadline_ms = x.r.now_ms + timeout_ms
    return True


cdef int64_t parse_timeout(const char* text, size_t size) noexcept nogil:
    """`100m` in milliseconds, at least one: at most eight digits and a unit. -1: not a timeout."""
    cdef int64_t value = 0
    cdef size_t i
    cdef char unit
    if size < 2 or size > 9:
        return -1
    for i in range(size - 1):
        if text[i] < c"0" or text[i] > c"9":
            return -1
        value = value * 10 + (text[i] - c"0")
    unit = text[size - 1]
    if unit == c"H":
        value *= 3600000
    elif unit == c"M":
        value *= 60000
    elif unit == c"S":
        value *= 1000
    elif unit == c"u":
        value //= 1000
    elif unit == c"n":
        value //= 1000000
    elif unit != c"m":
        return -1
    return value if value > 0 else 1


cdef void note_grpc_status(exchange* x, const head* h) noexcept nogil:
    """The status among trailers, or in a head that has no body behind it."""
    cdef int i, status
    cdef const field* f
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.name_size != 11 or not lb_equal_nocase(f.name, b"grpc-status", 11):
            continue
        status = UNKNOWN
        if f.value_size == 1 and c"0" <= f.value[0] <= c"9":
            status = f.value[0] - c"0"
        elif f.value_size == 2 and f.value[0] == c"1" and c"0" <= f.value[1] <= c"6":
            status = 10 + f.value[1] - c"0"
        x.grpc_status = <signed char>status


cdef int grpc_status_of(int status, int reason) noexcept nogil:
    """What an error of lb's is called in gRPC (http-grpc-status-mapping.md, and what says more than it)."""
    if reason == LB_R_GRPC_DEADLINE or reason == LB_R_REQUEST_TIMEOUT or reason == LB_R_RESPONSE_TIMEOUT:
        return DEADLINE_EXCEEDED
    if reason == LB_R_BODY_TOO_LARGE or reason == LB_R_HEAD_TOO_LARGE:
        return RESOURCE_EXHAUSTED
    if status == 400:
        return INTERNAL
    if status == 401:
        return UNAUTHENTICATED
    if status == 403:
        return PERMISSION_DENIED
    if status == 404:
        return UNIMPLEMENTED
    if status == 429 or status == 502 or status == 503 or status == 504:
        return UNAVAILABLE
    return UNKNOWN


cdef void keep_metadata(head* trailers) noexcept nogil:
    """gRPC's trailers are metadata of any name (PROTOCOL-HTTP2.md, Responses); only what lb itself reads, or could be
    taken for that, is not among them.
    """
    cdef int i
    cdef field* f
    for i in range(trailers.field_count):
        f = &trailers.fields[i]
        if f.id == FIELD_OTHER and not imitates_known(f.name, f.name_size):
            f.drop = False
