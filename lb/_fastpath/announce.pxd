"""What lb tells an endpoint of the client that a connection is for, by a PROXY header: the addresses, what a proxy
before it has said, and what lb knows itself.

Of one thing only one is told: what lb has seen itself goes before what a proxy has said. A checksum and padding are
each sender's own and never passed on.
"""
from libc.stdint cimport uint32_t

from lb._fastpath.proxy_protocol cimport proxy_end, proxy_header
from lb._fastpath.table cimport upstream_view
from lb._fastpath.transport cimport conn

cdef bint keep_header(conn* client, const proxy_header* header) noexcept nogil
cdef bint target_of(const conn* client, proxy_end* target) noexcept nogil
cdef bint announce_client(conn* u, const conn* client, const upstream_view* view, const char* unique_id,
        uint32_t unique_id_size) noexcept nogil
