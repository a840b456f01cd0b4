"""Reading and writing PROXY headers (proxy_protocol.pxd)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memcpy, memset

from lb._fastpath.c.crc32c cimport lb_crc32c
from lb._fastpath.c.sys cimport AF_INET, AF_INET6, inet_ntop, inet_pton

cdef enum:
    V1_MOST = 107  # with its CRLF
    V2_FIXED = 16
    V2_INET = 12  # bytes of addresses and ports
    V2_INET6 = 36
    V2_UNIX = 216
    VALUE_HEAD = 3  # of a value: its type, and the length of what follows
    CHECKSUM = 4

cdef const char* SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"  # of version 2: 12 bytes
cdef const char* MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"


cdef int proxy_read(const char* data, size_t size, proxy_header* header) noexcept nogil:
    """Bytes of the header that `data` begins with, PROXY_MORE while it may still become one, or PROXY_BAD."""
    memset(header, 0, sizeof(proxy_header))
    if size == 0:
        return PROXY_MORE
    if memcmp(data, SIGNATURE, size if size < 12 else 12) == 0:
        return read_v2(<const uint8_t*>data, size, header)
    if memcmp(data, b"PROXY ", size if size < 6 else 6) == 0:
        return read_v1(data, size, header)
    return PROXY_BAD


# ----------------------------------------------------------------------------------------------------------- version 1

cdef int read_v1(const char* data, size_t size, proxy_header* header) noexcept nogil:
    cdef const char* end = <const char*>memchr(data, c"\n", size if size < V1_MOST else V1_MOST)
    cdef const char* at = data + 6
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
    at = take_address(at + 5, family, header.client.address)
    if at != NULL:
        at = take_address(at, family, header.target.address)
    if at != NULL:
        at = take_port(at, c" ", &header.client.port)
    if at != NULL:
        at = take_port(at, c"\r", &header.target.port)
    if at != end:
        return PROXY_BAD
    header.client.known = True
    header.target.known = True
    return <int>(end + 1 - data)


cdef const char* take_address(const char* at, int family, uint8_t* address) noexcept nogil:
    """Behind an address and its space; NULL when it is none."""
    cdef char plain[46]
    cdef size_t size = 0
    while at[size] != c" ":
        if at[size] == c"\n" or at[size] == 0 or size == 45:  # inet_pton would end at a zero
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

cdef int read_v2(const uint8_t* data, size_t size, proxy_header* header) noexcept nogil:
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
        addresses = V2_UNIX  # paths say nothing here: the client is whoever has connected
    elif data[13] == 0x00:
        addresses = 0
    else:
        return PROXY_BAD  # datagrams, or what does not exist, over a stream
    if length < addresses:
        return PROXY_BAD
    header.values.at = data + V2_FIXED + addresses
    header.values.size = <uint32_t>(length - addresses)
    if not values_fit(data, V2_FIXED + length, header.values):
        return PROXY_BAD
    if data[13] == 0x11:
        take_end(&header.client, data + V2_FIXED, 4, data + V2_FIXED + 8)
        take_end(&header.target, data + V2_FIXED + 4, 4, data + V2_FIXED + 10)
    elif data[13] == 0x21:
        take_end(&header.client, data + V2_FIXED, 16, data + V2_FIXED + 32)
        take_end(&header.target, data + V2_FIXED + 16, 16, data + V2_FIXED + 34)
    return <int>(V2_FIXED + length)


cdef void take_end(proxy_end* end, const uint8_t* address, size_t width, const uint8_t* port) noexcept nogil:
    memcpy(end.address, MAPPED, 12)
    memcpy(end.address + 16 - width, address, width)
    end.port = <uint16_t>(port[0] << 8 | port[1])
    end.known = True


cdef bint values_fit(const uint8_t* data, size_t size, proxy_value rest) noexcept nogil:
    """Whether values fill a header to its end, those inside of VALUE_SSL fill that one, none is longer than it may be,
    and its checksum is right if it has one.
    """
    cdef proxy_value value, inner
    cdef const uint8_t* checksum = NULL
    cdef int kind = 0, inner_kind = 0
    while rest.size:
        value = proxy_next(&rest, &kind)
        if value.at == NULL:
            return False
        if kind == VALUE_CRC32C:
            if value.size != CHECKSUM or checksum != NULL:
                return False
            checksum = value.at
        elif kind == VALUE_UNIQUE_ID and value.size > UNIQUE_ID_MOST:
            return False
        elif kind == VALUE_SSL:
            if value.size < SSL_FIXED:
                return False
            inner = inside_ssl(value)
            while inner.size:
                if proxy_next(&inner, &inner_kind).at == NULL:
                    return False
    return checksum == NULL or checksum_of(data, size, checksum) == (
        <uint32_t>checksum[0] << 24 | <uint32_t>checksum[1] << 16 | <uint32_t>checksum[2] << 8 | checksum[3]
    )


cdef uint32_t checksum_of(const uint8_t* data, size_t size, const uint8_t* field) noexcept nogil:
    """Of a whole header, as if its own field were zero (2.2.3)."""
    cdef size_t before = <size_t>(field - data)
    cdef uint8_t nothing[4]
    cdef uint32_t crc
    memset(nothing, 0, CHECKSUM)
    crc = lb_crc32c(0xffffffff, data, before)
    crc = lb_crc32c(crc, nothing, CHECKSUM)
    return ~lb_crc32c(crc, field + CHECKSUM, size - before - CHECKSUM)


cdef proxy_value inside_ssl(proxy_value value) noexcept nogil:
    value.at += SSL_FIXED
    value.size -= SSL_FIXED
    return value


cdef proxy_value proxy_next(proxy_value* rest, int* kind) noexcept nogil:
    """The first value of `rest`, which moves on behind it. `at` is NULL when there is none that is whole."""
    cdef proxy_value value
    value.at = NULL
    value.size = 0
    if rest.size < VALUE_HEAD:
        return value
    value.size = <uint32_t>rest.at[1] << 8 | rest.at[2]
    if value.size > rest.size - VALUE_HEAD:
        value.size = 0
        return value
    kind[0] = rest.at[0]
    value.at = rest.at + VALUE_HEAD
    rest.at += VALUE_HEAD + value.size
    rest.size -= VALUE_HEAD + value.size
    return value


cdef proxy_value proxy_find(const proxy_value* values, int kind) noexcept nogil:
    """The first value of a type; of types that stand inside of VALUE_SSL, the one there."""
    cdef proxy_value rest = values[0], value
    cdef int found = 0
    if kind == VALUE_SSL_VERSION or kind == VALUE_SSL_CN or kind == VALUE_SSL_CIPHER:
        rest = proxy_find(values, VALUE_SSL)
        if rest.size >= SSL_FIXED:
            rest = inside_ssl(rest)
    while rest.size:
        value = proxy_next(&rest, &found)
        if value.at == NULL or found == kind:
            return value
    value.at = NULL
    value.size = 0
    return value


# ------------------------------------------------------------------------------------------------------------- writing

cdef bint both_ipv4(const proxy_end* client, const proxy_end* target) noexcept nogil:
    return memcmp(client.address, MAPPED, 12) == 0 and memcmp(target.address, MAPPED, 12) == 0


cdef uint32_t proxy_write_v1(const proxy_end* client, const proxy_end* target, char* out) noexcept nogil:
    """A header of version 1; at most V1_MOST bytes."""
    cdef char source[46]
    cdef char sink[46]
    if not client.known or not target.known:
        memcpy(out, b"PROXY UNKNOWN\r\n", 15)
        return 15
    if both_ipv4(client, target):
        inet_ntop(AF_INET, client.address + 12, source, 46)
        inet_ntop(AF_INET, target.address + 12, sink, 46)
        return <uint32_t>snprintf(out, V1_MOST + 1, b"PROXY TCP4 %s %s %d %d\r\n", source, sink, <int>client.port,
                <int>target.port)
    inet_ntop(AF_INET6, client.address, source, 46)
    inet_ntop(AF_INET6, target.address, sink, 46)
    return <uint32_t>snprintf(out, V1_MOST + 1, b"PROXY TCP6 %s %s %d %d\r\n", source, sink, <int>client.port,
            <int>target.port)


cdef void proxy_begin(proxy_writer* w, const proxy_end* client, const proxy_end* target, uint8_t* out) noexcept nogil:
    """A header of version 2 up to its values; proxy_end_header ends it."""
    cdef size_t width = 4 if both_ipv4(client, target) else 16
    w.out = out
    w.used = V2_FIXED
    memset(out, 0, V2_FIXED)
    memcpy(out, SIGNATURE, 12)
    if not client.known or not target.known:
        return
    out[13] = 0x11 if width == 4 else 0x21
    proxy_put(w, client.address + 16 - width, width)
    proxy_put(w, target.address + 16 - width, width)
    put_number(w, client.port)
    put_number(w, target.port)


cdef void put_number(proxy_writer* w, uint32_t value) noexcept nogil:
    w.out[w.used] = <uint8_t>(value >> 8)
    w.out[w.used + 1] = <uint8_t>(value & 255)
    w.used += 2


cdef uint32_t proxy_open(proxy_writer* w, int kind) noexcept nogil:
    """Begin a value; proxy_close with the result ends it."""
    w.out[w.used] = <uint8_t>kind
    w.used += VALUE_HEAD
    return w.used


cdef void proxy_put(proxy_writer* w, const void* data, size_t size) noexcept nogil:
    memcpy(w.out + w.used, data, size)
    w.used += <uint32_t>size


cdef void proxy_close(proxy_writer* w, uint32_t start) noexcept nogil:
    cdef uint32_t size = w.used - start
    w.out[start - 2] = <uint8_t>(size >> 8)
    w.out[start - 1] = <uint8_t>(size & 255)


cdef bint proxy_fits(const proxy_writer* w, uint32_t size) noexcept nogil:
    """Whether there is room for a value of this size, and for a checksum behind it."""
    return w.used + VALUE_HEAD + size + VALUE_HEAD + CHECKSUM <= PROXY_MOST


cdef void proxy_add(proxy_writer* w, int kind, const void* data, size_t size) noexcept nogil:
    """A whole value."""
    cdef uint32_t start = proxy_open(w, kind)
    proxy_put(w, data, size)
    proxy_close(w, start)


cdef uint32_t proxy_end_header(proxy_writer* w, bint checked) noexcept nogil:
    """The size of the whole header, with its checksum when it is `checked`."""
    cdef uint8_t* field
    cdef uint32_t crc, length
    cdef bint says_something = checked or w.used > V2_FIXED
    if checked:
        crc = 0
        proxy_add(w, VALUE_CRC32C, &crc, CHECKSUM)
    length = w.used - V2_FIXED
    # Of LOCAL a receiver passes over all the rest: who has something to say, and no addresses, says PROXY and UNSPEC.
    w.out[12] = 0x21 if says_something else 0x20
    w.out[14] = <uint8_t>(length >> 8)
    w.out[15] = <uint8_t>(length & 255)
    if checked:
        field = w.out + w.used - CHECKSUM
        crc = checksum_of(w.out, w.used, field)
        field[0] = <uint8_t>(crc >> 24)
        field[1] = <uint8_t>(crc >> 16 & 255)
        field[2] = <uint8_t>(crc >> 8 & 255)
        field[3] = <uint8_t>(crc & 255)
    return w.used
