"""gRPC-Web (grpc_web.pxd)."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from lb._fastpath.c.sys cimport lb_equal_nocase, lb_lower
from lb._fastpath.exchange cimport X_CHUNKED, X_GRPC, X_GRPC_WEB, X_GRPC_WEB_TEXT, X_HAS_BODY
from lb._fastpath.message cimport FIELD_CONTENT_TYPE, field
from lb._fastpath.transport cimport batch_flush

cdef enum:
    GRPC = 16  # length of "application/grpc"
    WEB = 20  # of "application/grpc-web"
    WEB_TEXT = 25  # of "application/grpc-web-text"
    SLICE = 24576  # bytes encoded at a time: a multiple of 3 whose base64 fits scratch_text
    TRAILERS_FRAME = 0x80  # flag of a frame that holds trailers


# ------------------------------------------------------------------------------------------------------------- requests

cdef bint ends_word(const field* f, uint32_t size) noexcept nogil:
    return f.value_size == size or f.value[size] == c"+" or f.value[size] == c";"


cdef void bridge_request(exchange* x, head* h) noexcept nogil:
    """Make a gRPC-Web call a gRPC call; any other request stays as it is."""
    cdef int i
    cdef field* f
    cdef uint32_t size, room = sizeof(x.grpc_type)
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.id != FIELD_CONTENT_TYPE or not WEB <= f.value_size <= room:
            continue
        if not lb_equal_nocase(f.value, b"application/grpc-web", WEB):
            continue
        size = WEB
        if f.value_size >= WEB_TEXT and lb_equal_nocase(f.value + WEB, b"-text", 5):
            size = WEB_TEXT
        if not ends_word(f, size):
            continue
        x.flags |= X_GRPC | X_GRPC_WEB
        x.grpc_type_size = <uint8_t>f.value_size
        memcpy(x.grpc_type, f.value, f.value_size)
        memcpy(x.grpc_upstream_type, <const char*>b"application/grpc", GRPC)
        memcpy(x.grpc_upstream_type + GRPC, f.value + size, f.value_size - size)
        f.value = x.grpc_upstream_type
        f.value_size = GRPC + f.value_size - size
        h.te_trailers = True
        if size == WEB_TEXT:
            x.flags |= X_GRPC_WEB_TEXT
            if x.flags & X_HAS_BODY:
                h.content_length = -1
                h.chunked = True
                x.flags |= X_CHUNKED
        return


cdef int base64_value(uint8_t c) noexcept nogil:
    if c"A" <= c <= c"Z":
        return c - c"A"
    if c"a" <= c <= c"z":
        return c - c"a" + 26
    if c"0" <= c <= c"9":
        return c - c"0" + 52
    if c == c"+":
        return 62
    if c == c"/":
        return 63
    return -1


cdef bint bridge_request_body(exchange* x, const char* data, size_t size) noexcept nogil:
    """Decode and send on. Padding may stand anywhere between quartets, wherever the client flushed. False: not base64.
    """
    cdef char* out = x.r.scratch_text
    cdef size_t i, made = 0
    cdef int value
    batch_flush(x.r)  # which may still point into scratch_text
    for i in range(size):
        if data[i] == c"=":
            if x.base64_count < 2:
                return False
            x.base64_count += 1
            x.base64_padding += 1
        else:
            value = base64_value(<uint8_t>data[i])
            if value < 0 or x.base64_padding:
                return False
            x.base64_bits = (x.base64_bits << 6) | <uint32_t>value
            x.base64_count += 1
        if x.base64_count < 4:
            continue
        x.base64_bits <<= 6 * x.base64_padding
        out[made] = <char>(x.base64_bits >> 16)
        out[made + 1] = <char>(x.base64_bits >> 8)
        out[made + 2] = <char>x.base64_bits
        made += 3 - x.base64_padding
        x.base64_bits = 0
        x.base64_count = 0
        x.base64_padding = 0
    if made:
        x.u.calls.send_body(x.u, out, made)
        batch_flush(x.r)
    return True


# ------------------------------------------------------------------------------------------------------------ responses

cdef void bridge_response(exchange* x, head* h) noexcept nogil:
    """The content type that the client asked for. Trailers become a part of the body, so its length is not known."""
    cdef int i
    cdef field* f
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.id == FIELD_CONTENT_TYPE and f.value_size >= GRPC and lb_equal_nocase(f.value, b"application/grpc", GRPC):
            f.value = x.grpc_type
            f.value_size = x.grpc_type_size
    if h.has_body:
        h.content_length = -1


cdef size_t bridge_response_body(exchange* x, const char* data, size_t size) noexcept nogil:
    """Send a piece of the body to the client; how many bytes that made.

    Each piece is padded on its own (PROTOCOL-WEB.md allows padding wherever a buffer is flushed), so that a message of
    a stream never waits for the next one.
    """
    cdef const char* digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    cdef char* out = x.r.scratch_text
    cdef const uint8_t* p = <const uint8_t*>data
    cdef size_t i, n, at, total = 0
    cdef uint32_t bits
    if not x.flags & X_GRPC_WEB_TEXT:
        x.d.calls.send_body(x.d, data, size)
        return size
    while size and x.d != NULL:
        batch_flush(x.r)
        n = size if size < SLICE else SLICE
        at = 0
        for i in range(0, n, 3):
            bits = <uint32_t>p[i] << 16
            if i + 1 < n:
                bits |= <uint32_t>p[i + 1] << 8
            if i + 2 < n:
                bits |= p[i + 2]
            out[at] = digits[bits >> 18]
            out[at + 1] = digits[(bits >> 12) & 63]
            out[at + 2] = digits[(bits >> 6) & 63] if i + 1 < n else c"="
            out[at + 3] = digits[bits & 63] if i + 2 < n else c"="
            at += 4
        x.d.calls.send_body(x.d, out, at)
        batch_flush(x.r)
        total += at
        p += n
        size -= n
    return total


cdef size_t bridge_trailers(exchange* x, const head* trailers) noexcept nogil:
    """Send the trailers as the last frame of the body; how many bytes that made."""
    cdef char* out = x.r.scratch_out + 16384  # base64 is made in scratch_text
    cdef size_t size = 5, k
    cdef uint32_t length
    cdef int i
    cdef const field* f
    batch_flush(x.r)
    for i in range(trailers.field_count):
        f = &trailers.fields[i]
        if f.drop or size + f.name_size + f.value_size + 4 > 16384:
            continue
        for k in range(f.name_size):
            out[size + k] = <char>lb_lower[<uint8_t>f.name[k]]
        size += f.name_size
        out[size] = c":"
        memcpy(out + size + 1, f.value, f.value_size)
        size += 1 + f.value_size
        out[size] = c"\r"
        out[size + 1] = c"\n"
        size += 2
    length = <uint32_t>(size - 5)
    out[0] = <char>TRAILERS_FRAME
    out[1] = <char>(length >> 24)
    out[2] = <char>(length >> 16)
    out[3] = <char>(length >> 8)
    out[4] = <char>length
    size = bridge_response_body(x, out, size)
    batch_flush(x.r)
    return size
