"""Reading and writing PROXY headers (proxy_protocol.pxd)."""
from libc.stdint cimport uint8_t, uint16_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memcpy, memset

from lb._fastpath.c.sys cimport AF_INET, AF_INET6, inet_ntop, inet_pton

cdef enum:
    V1_MOST = 107  # with its CRLF
    V2_FIXED = 16
    V2_INET = 12  # bytes of addresses and ports
    V2_INET6 = 36
    V2_UNIX = 216

cdef const char* SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"  # of version 2: 12 bytes
cdef const char* MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"


cdef int proxy_read(const char* data, size_t size, proxy_client* client) noexcept nogil:
    """Bytes of the header that `data` begins with, PROXY_MORE while it may still become one, or PROXY_BAD."""
    client.known = False
    if size == 0:
        return PROXY_MORE
    if memcmp(data, SIGNATURE, size if size < 12 else 12) == 0:
        return read_v2(<const uint8_t*>data, size, client)
    if memcmp(data, b"PROXY ", size if size < 6 else 6) == 0:
        return read_v1(data, size, client)
    return PROXY_BAD


# ----------------------------------------------------------------------------------------------------------- version 1

cdef int read_v1(const char* data, size_t size, proxy_client* client) noexcept nogil:
    cdef const char* end = <const char*>memchr(data, c"\n", size if size < V1_MOST else V1_MOST)
    cdef const char* at = data + 6
    cdef uint8_t other[16]
    cdef uint16_t other_port
    cdef int family
    if end == NULL:
        return PROXY_MORE if size < V1_MOST else PROXY_BAD
    if (end - 1)[0] != c"\r" or end - at < 8:
        return PROXY_BAD
    if memcmp(at, b"UNKNOWN", 7) == 0 and (at[7] == c" " or at[7] == c"\r"):
        return <int>(end + 1 - data)  # whatever follows is to be passed over
    if memcmp(at, b"TCP4 ", 5) == 0:
        family = AF_INET
    elif memcmp(at, b"TCP6 ", 5) == 0:
        family = AF_INET6
    else:
        return PROXY_BAD
    at = take_address(at + 5, family, client.address)
    if at != NULL:
        at = take_address(at, family, other)
    if at != NULL:
        at = take_port(at, c" ", &client.port)
    if at != NULL:
        at = take_port(at, c"\r", &other_port)
    if at != end:
        return PROXY_BAD
    client.known = True
    return <int>(end + 1 - data)


cdef const char* take_address(const char* at, int family, uint8_t* address) noexcept nogil:
    """Behind an address and its space; NULL when it is none."""
    cdef char plain[46]
    cdef size_t size = 0
    while at[size] != c" ":
        if at[size] == c"\n" or size == 45:
            return NULL
        plain[size] = at[size]
        size += 1
    plain[size] = 0
    if family == AF_INET:
        memcpy(address, MAPPED, 12)
        return at + size + 1 if inet_pton(AF_INET, plain, address + 12) == 1 else NULL
    return at + size + 1 if inet_pton(AF_INET6, plain, address) == 1 else NULL


cdef const char* take_port(const char* at, char end, uint16_t* port) noexcept nogil:
    cdef unsigned int value = 0
    cdef int digits = 0
    while c"0" <= at[0] <= c"9" and digits < 6:
        value = value * 10 + <unsigned int>(at[0] - c"0")
        digits += 1
        at += 1
    if digits == 0 or value > 65535 or at[0] != end or (digits > 1 and (at - digits)[0] == c"0"):
        return NULL
    port[0] = <uint16_t>value
    return at + 1


# ----------------------------------------------------------------------------------------------------------- version 2

cdef int read_v2(const uint8_t* data, size_t size, proxy_client* client) noexcept nogil:
    cdef size_t length, addresses
    if size < V2_FIXED:
        return PROXY_MORE
    length = <size_t>data[14] << 8 | data[15]
    if data[12] != 0x20 and data[12] != 0x21 or V2_FIXED + length > PROXY_MOST:
        return PROXY_BAD
    if size < V2_FIXED + length:
        return PROXY_MORE
    if data[12] == 0x20:  # LOCAL: the proxy's own, such as a health check; all the rest is to be passed over
        return <int>(V2_FIXED + length)
    if data[13] == 0x11:
        addresses = V2_INET
    elif data[13] == 0x21:
        addresses = V2_INET6
    elif data[13] == 0x31:
        addresses = V2_UNIX
    elif data[13] == 0x00:
        addresses = 0
    else:
        return PROXY_BAD  # datagrams, or what does not exist, over a stream
    if length < addresses or not tlvs_fit(data + V2_FIXED + addresses, length - addresses):
        return PROXY_BAD
    if data[13] == 0x11:
        memcpy(client.address, MAPPED, 12)
        memcpy(client.address + 12, data + V2_FIXED, 4)
        client.port = <uint16_t>(data[V2_FIXED + 8] << 8 | data[V2_FIXED + 9])
        client.known = True
    elif data[13] == 0x21:
        memcpy(client.address, data + V2_FIXED, 16)
        client.port = <uint16_t>(data[V2_FIXED + 32] << 8 | data[V2_FIXED + 33])
        client.known = True
    return <int>(V2_FIXED + length)


cdef bint tlvs_fit(const uint8_t* at, size_t size) noexcept nogil:
    """Whether type-length-values fill the header to its end."""
    cdef size_t length
    while size >= 3:
        length = 3 + (<size_t>at[1] << 8 | at[2])
        if length > size:
            return False
        at += length
        size -= length
    return size == 0


# ------------------------------------------------------------------------------------------------------------- writing

cdef size_t proxy_write(int version, const proxy_client* client, const proxy_client* local, char* out) noexcept nogil:
    """The header for a client that has connected to `local`; at most PROXY_ROOM bytes."""
    if version == PROXY_V1:
        return write_v1(client, local, out)
    return write_v2(client, local, <uint8_t*>out)


cdef bint both_ipv4(const proxy_client* client, const proxy_client* local) noexcept nogil:
    return memcmp(client.address, MAPPED, 12) == 0 and memcmp(local.address, MAPPED, 12) == 0


cdef size_t write_v1(const proxy_client* client, const proxy_client* local, char* out) noexcept nogil:
    cdef char source[46]
    cdef char target[46]
    if not client.known or not local.known:
        memcpy(out, b"PROXY UNKNOWN\r\n", 15)
        return 15
    if both_ipv4(client, local):
        inet_ntop(AF_INET, client.address + 12, source, 46)
        inet_ntop(AF_INET, local.address + 12, target, 46)
        return <size_t>snprintf(out, PROXY_ROOM, b"PROXY TCP4 %s %s %d %d\r\n", source, target, <int>client.port,
                <int>local.port)
    inet_ntop(AF_INET6, client.address, source, 46)
    inet_ntop(AF_INET6, local.address, target, 46)
    return <size_t>snprintf(out, PROXY_ROOM, b"PROXY TCP6 %s %s %d %d\r\n", source, target, <int>client.port,
            <int>local.port)


cdef size_t write_v2(const proxy_client* client, const proxy_client* local, uint8_t* out) noexcept nogil:
    cdef size_t width = 4 if both_ipv4(client, local) else 16
    memset(out, 0, V2_FIXED)
    memcpy(out, SIGNATURE, 12)
    if not client.known or not local.known:
        out[12] = 0x20
        return V2_FIXED
    out[12] = 0x21
    out[13] = 0x11 if width == 4 else 0x21
    out[15] = <uint8_t>(2 * width + 4)
    memcpy(out + V2_FIXED, client.address + 16 - width, width)
    memcpy(out + V2_FIXED + width, local.address + 16 - width, width)
    put_port(out + V2_FIXED + 2 * width, client.port)
    put_port(out + V2_FIXED + 2 * width + 2, local.port)
    return V2_FIXED + 2 * width + 4


cdef void put_port(uint8_t* out, uint16_t port) noexcept nogil:
    out[0] = <uint8_t>(port >> 8)
    out[1] = <uint8_t>(port & 255)
