"""The PROXY protocol, versions 1 and 2: what a proxy says of its client before the first byte of a connection.

Source: haproxy/doc/proxy-protocol.txt. Reading is strict: what is not understood whole is no header at all. This file
knows the form; what lb says of its own clients is announce.pyx.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum:
    # Bytes of a header, values included: of one that is read, and, as receivers have limits, too (nginx this one), of
    # one that is written. The protocol itself allows 65,551.
    PROXY_MOST = 4096

cdef enum:  # upstream_view.proxy_protocol
    PROXY_NONE = 0
    PROXY_V1
    PROXY_V2

cdef enum:  # upstream_view.proxy_values; PROXY_VALUES of lb/compile/table.py
    TELL_ALPN = 1
    TELL_AUTHORITY = 2
    TELL_SSL = 4
    TELL_UNIQUE_ID = 8
    TELL_CRC32C = 16

cdef enum:  # results of proxy_read besides a size
    PROXY_MORE = 0
    PROXY_BAD = -1

cdef enum:  # types of values (2.2.1 to 2.2.8)
    VALUE_ALPN = 0x01
    VALUE_AUTHORITY = 0x02
    VALUE_CRC32C = 0x03
    VALUE_NOOP = 0x04
    VALUE_UNIQUE_ID = 0x05
    VALUE_SSL = 0x20
    VALUE_SSL_VERSION = 0x21  # inside of VALUE_SSL, as the next two
    VALUE_SSL_CN = 0x22
    VALUE_SSL_CIPHER = 0x23

cdef enum:
    UNIQUE_ID_MOST = 128
    SSL_FIXED = 5  # before the values inside of VALUE_SSL: which of the next ones hold, and a number for `verified`
    CLIENT_SSL = 1
    CLIENT_CERT_CONN = 2  # the client has shown a certificate on this connection
    CLIENT_CERT_SESS = 4  # on this one, or on the one it resumes

cdef struct proxy_end:
    # One end of the client's connection: IPv4 as ::ffff:a.b.c.d.
    uint8_t address[16]
    uint16_t port
    bint known

cdef struct proxy_value:
    const uint8_t* at
    uint32_t size  # 0: there is none, or nothing in it

cdef struct proxy_header:
    proxy_end client
    proxy_end target  # whom the client has connected to
    proxy_value values  # all of version 2, one behind the other, in the bytes that were read

cdef struct proxy_writer:
    # A header of version 2 under way.
    uint8_t* out  # PROXY_MOST bytes
    uint32_t used

cdef int proxy_read(const char* data, size_t size, proxy_header* header) noexcept nogil
cdef proxy_value proxy_find(const proxy_value* values, int kind) noexcept nogil
cdef proxy_value proxy_next(proxy_value* rest, int* kind) noexcept nogil
cdef uint32_t proxy_write_v1(const proxy_end* client, const proxy_end* target, char* out) noexcept nogil
cdef void proxy_begin(proxy_writer* w, const proxy_end* client, const proxy_end* target, uint8_t* out) noexcept nogil
cdef uint32_t proxy_open(proxy_writer* w, int kind) noexcept nogil
cdef void proxy_put(proxy_writer* w, const void* data, size_t size) noexcept nogil
cdef void proxy_close(proxy_writer* w, uint32_t start) noexcept nogil
cdef bint proxy_fits(const proxy_writer* w, uint32_t size) noexcept nogil
cdef void proxy_add(proxy_writer* w, int kind, const void* data, size_t size) noexcept nogil
cdef uint32_t proxy_end_header(proxy_writer* w, bint checked) noexcept nogil
