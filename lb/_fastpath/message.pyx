"""The one table of reason phrases that lb itself uses (RFC 9110 15), and requests in one piece."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

cdef struct packed_head:
    # Followed by the bytes of method, target and host, and by the fields.
    int64_t content_length
    int method
    uint32_t method_size
    uint32_t target_size
    uint32_t path_size
    uint32_t host_size
    uint16_t field_count
    bint chunked
    bint has_body
    bint upgrade
    bint te_trailers

cdef struct packed_field:
    # Followed by the bytes of name and value.
    uint32_t value_size
    uint16_t name_size
    uint8_t id


cdef size_t packed_size(const head* h) noexcept nogil:
    """Room that pack_head needs."""
    cdef size_t size = sizeof(packed_head) + h.method_name.size + h.target.size + h.host.size
    cdef int i
    for i in range(h.field_count):
        if not h.fields[i].drop:
            size += sizeof(packed_field) + h.fields[i].name_size + h.fields[i].value_size
    return size


cdef char* put(char* out, const void* data, size_t size) noexcept nogil:
    if size:  # `data` may be NULL
        memcpy(out, data, size)
    return out + size


cdef size_t pack_head(const head* h, char* out) noexcept nogil:
    """A request's head with the fields that go on; how many bytes it took."""
    cdef packed_head all
    cdef packed_field one
    cdef const field* f
    cdef char* at = out + sizeof(packed_head)
    cdef int i
    memset(&all, 0, sizeof(all))
    all.content_length = h.content_length
    all.method = h.method
    all.method_size = h.method_name.size
    all.target_size = h.target.size
    all.path_size = h.path_size
    all.host_size = h.host.size
    all.chunked = h.chunked
    all.has_body = h.has_body
    all.upgrade = h.upgrade
    all.te_trailers = h.te_trailers
    at = put(at, h.method_name.at, h.method_name.size)
    at = put(at, h.target.at, h.target.size)
    at = put(at, h.host.at, h.host.size)
    memset(&one, 0, sizeof(one))
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.drop:
            continue
        one.value_size = f.value_size
        one.name_size = f.name_size
        one.id = f.id
        at = put(at, &one, sizeof(one))
        at = put(at, f.name, f.name_size)
        at = put(at, f.value, f.value_size)
        all.field_count += 1
    memcpy(out, &all, sizeof(all))
    return <size_t>(at - out)


cdef void unpack_head(const char* packed, head* h) noexcept nogil:
    """What pack_head made, as a head that points into it."""
    cdef packed_head all
    cdef packed_field one
    cdef field* f
    cdef int i
    memcpy(&all, packed, sizeof(all))
    packed += sizeof(all)
    h.content_length = all.content_length
    h.method = all.method
    h.chunked = all.chunked
    h.has_body = all.has_body
    h.upgrade = all.upgrade
    h.te_trailers = all.te_trailers
    h.method_name.at = packed
    h.method_name.size = all.method_size
    packed += all.method_size
    h.target.at = packed
    h.target.size = all.target_size
    h.path_size = all.path_size
    packed += all.target_size
    h.host.at = packed
    h.host.size = all.host_size
    packed += all.host_size
    h.field_count = all.field_count
    for i in range(h.field_count):
        memcpy(&one, packed, sizeof(one))
        packed += sizeof(one)
        f = &h.fields[i]
        f.name = packed
        f.name_size = one.name_size
        f.value = packed + one.name_size
        f.value_size = one.value_size
        f.id = one.id
        f.drop = False
        packed += one.name_size + one.value_size


cdef const char* status_phrase(int status) noexcept nogil:
    if status == 200:
        return b"OK"
    if status == 204:
        return b"No Content"
    if status == 301:
        return b"Moved Permanently"
    if status == 302:
        return b"Found"
    if status == 304:
        return b"Not Modified"
    if status == 307:
        return b"Temporary Redirect"
    if status == 308:
        return b"Permanent Redirect"
    if status == 401:
        return b"Unauthorized"
    if status == 403:
        return b"Forbidden"
    if status == 410:
        return b"Gone"
    if status == 500:
        return b"Internal Server Error"
    if status == 400:
        return b"Bad Request"
    if status == 404:
        return b"Not Found"
    if status == 405:
        return b"Method Not Allowed"
    if status == 408:
        return b"Request Timeout"
    if status == 413:
        return b"Content Too Large"
    if status == 414:
        return b"URI Too Long"
    if status == 417:
        return b"Expectation Failed"
    if status == 421:
        return b"Misdirected Request"
    if status == 429:
        return b"Too Many Requests"
    if status == 431:
        return b"Request Header Fields Too Large"
    if status == 501:
        return b"Not Implemented"
    if status == 502:
        return b"Bad Gateway"
    if status == 503:
        return b"Service Unavailable"
    if status == 504:
        return b"Gateway Timeout"
    if status == 505:
        return b"HTTP Version Not Supported"
    return b"Error"
