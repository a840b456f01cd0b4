"""The PROXY protocol, versions 1 and 2: what a proxy says of its client before the first byte of a connection.

Source: haproxy/doc/proxy-protocol.txt. Reading is strict: what is not understood whole is no header at all.
"""
from libc.stdint cimport uint8_t, uint16_t

from lb._fastpath.c.sys cimport ssize_t

cdef enum:
    PROXY_MOST = 4096  # bytes of a header that is read, TLVs included
    PROXY_ROOM = 128  # for one that is written

cdef enum:  # upstream_view.proxy_protocol
    PROXY_NONE = 0
    PROXY_V1
    PROXY_V2

cdef enum:  # results of proxy_read besides a size
    PROXY_MORE = 0
    PROXY_BAD = -1

cdef struct proxy_client:
    # Whom a header speaks of, as a connection keeps it: IPv4 as ::ffff:a.b.c.d.
    uint8_t address[16]
    uint16_t port
    bint known  # it names an address

cdef int proxy_read(const char* data, size_t size, proxy_client* client) noexcept nogil
cdef size_t proxy_write(int version, const proxy_client* client, const proxy_client* local, char* out) noexcept nogil
