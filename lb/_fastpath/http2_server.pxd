"""HTTP/2 towards clients: requests that come in on streams, and their responses (http2.pxd)."""
from lb._fastpath.reactor cimport reactor
from lb._fastpath.transport cimport conn

cdef enum:
    DRAIN_NOTICE_MS = 1000  # between the notice and the last word, unless the client answers earlier

cdef void http2_server_install() noexcept nogil
cdef void http2_server_open(conn* c) noexcept nogil
cdef void http2_server_preface(conn* c, const char* data, size_t n) noexcept nogil
cdef void http2_server_drain(reactor* r) noexcept nogil
cdef void http2_server_cut(conn* c, int reason) noexcept nogil
