"""What an exchange knows of gRPC: that it is one, its deadline, its status, and what lb's own errors are called.

Source: gRPC's PROTOCOL-HTTP2.md, http-grpc-status-mapping.md and statuscodes.md.
"""
from lb._fastpath.exchange cimport exchange
from lb._fastpath.message cimport field, head

cdef enum:
    GRPC_STATUSES = 17
    GRPC_NONE = -1  # no status was seen

cdef bint is_grpc_type(const char* p, size_t n) noexcept nogil
cdef void note_grpc(exchange* x, const field* content_type) noexcept nogil
cdef bint note_deadline(exchange* x, const head* h) noexcept nogil
cdef void note_grpc_status(exchange* x, const head* h) noexcept nogil
cdef int grpc_status_of(int status, int reason) noexcept nogil
cdef void keep_metadata(head* trailers) noexcept nogil
