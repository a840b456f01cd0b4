"""gRPC-Web (grpc_web.pxd)."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from lb._fastpath.c.sys cimport LB_R_BAD_GRPC_WEB, LB_R_NO_MEMORY, lb_equal_nocase, lb_lower
from lb._fastpath.exchange cimport (
    X_CHUNKED,
    X_GRPC,
    X_GRPC_WEB,
    X_GRPC_WEB_TEXT,
    X_GRPC_WEB_TEXT_OUT,
    X_HAS_BODY,
)
from lb._fastpath.grpc cimport is_grpc_type
from lb._fastpath.http1_parse cimport MAX_RESPONSE_HEAD
from lb._fastpath.memory cimport page, page_alloc, page_data, page_free
from lb._fastpath.message cimport FIELD_ACCEPT, FIELD_CONTENT_TYPE, field
from lb._fastpath.replay cimport replay_pass
from lb._fastpath.transport cimport batch_flush

cdef enum:
    GRPC = 16  # length of "application/grpc"
    WEB = 20  # of "application/grpc-web"
    WEB_TEXT = 25  # of "application/grpc-web-text"
    SLICE = 24576  # bytes encoded at a time: a multiple of 3 whose base64 fits scratch_text
    TRAILERS_FRAME = 0x80  # flag of a frame that holds trailers


# ------------------------------------------------------------------------------------------------------------- requests

cdef uint32_t web_type_size(const char* p, size_t n) noexcept nogil:
    """How long the name of a gRPC-Web type is that begins here, up to its `+proto` or parameters; 0: it is none."""
    cdef uint32_t size = WEB
    if n < WEB or not lb_equal_nocase(p, b"application/grpc-web", WEB):
        return 0
    if n >= WEB_TEXT and lb_equal_nocase(p + WEB, b"-text", 5):
        size = WEB_TEXT
        if n >= WEB_TEXT + 7 and lb_equal_nocase(p + WEB_TEXT, b"-base64", 7):
            size = WEB_TEXT + 7  # what `-text` stands for
    return size if n == size or p[size] in (c"+", c";", c",", c" ") else 0


cdef bint wants_text(const head* h, bint by_default) noexcept nogil:
    """Whether the response is to be base64: the client says so in Accept; who says nothing gets what it sends."""
    cdef int i
    cdef size_t at
    cdef uint32_t size
    cdef const field* f
    cdef bint binary = False
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.id != FIELD_ACCEPT:
            continue
        for at in range(f.value_size):
            size = web_type_size(f.value + at, f.value_size - at)
            if size > WEB:
                return True
            if size:
                binary = True
    return by_default and not binary


cdef void bridge_request(exchange* x, head* h) noexcept nogil:
    """Make a gRPC-Web call a gRPC call; any other request stays as it is."""
    cdef int i
    cdef field* f = NULL
    cdef uint32_t size, rest, begun
    for i in range(h.field_count):
        if h.fields[i].id == FIELD_CONTENT_TYPE:
            f = &h.fields[i]
    size = web_type_size(f.value, f.value_size) if f != NULL else 0
    if size == 0:
        return
    rest = f.value_size - size
    if WEB_TEXT + rest > sizeof(x.grpc_type):
        return
    x.flags |= X_GRPC | X_GRPC_WEB
    begun = WEB
    if wants_text(h, size > WEB):
        x.flags |= X_GRPC_WEB_TEXT_OUT
        begun = WEB_TEXT
    memcpy(x.grpc_type, <const char*>b"application/grpc-web-text", begun)
    memcpy(x.grpc_type + begun, f.value + size, rest)
    x.grpc_type_size = <uint8_t>(begun + rest)
    memcpy(x.grpc_upstream_type, <const char*>b"application/grpc", GRPC)
    memcpy(x.grpc_upstream_type + GRPC, f.value + size, rest)
    f.value = x.grpc_upstream_type
    f.value_size = GRPC + rest
    h.te_trailers = True
    if size > WEB:
        x.flags |= X_GRPC_WEB_TEXT
        if x.flags & X_HAS_BODY:
            h.content_length = -1
            h.chunked = True
            x.flags |= X_CHUNKED


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


cdef int bridge_request_body(exchange* x, const char* data, size_t size) noexcept nogil:
    """Decode and send on; 0, or the reason why it ends here. Padding may stand anywhere between quartets, wherever the
    client flushed.
    """
    cdef char* out = x.r.scratch_text
    cdef size_t i, made = 0
    cdef int value
    batch_flush(x.r)  # which may still point into scratch_text
    for i in range(size):
        if data[i] == c"=":
            if x.base64_count < 2:
                return LB_R_BAD_GRPC_WEB
            x.base64_count += 1
            x.base64_padding += 1
        else:
            value = base64_value(<uint8_t>data[i])
            if value < 0 or x.base64_padding:
                return LB_R_BAD_GRPC_WEB
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
    if made and not replay_pass(x, out, made):
        return LB_R_NO_MEMORY
    batch_flush(x.r)
    return 0


# ------------------------------------------------------------------------------------------------------------ responses

cdef void bridge_response(exchange* x, head* h) noexcept nogil:
    """The content type that the client asked for. Trailers become a part of the body, so its length is not known. What
    is no gRPC response stays as it is.
    """
    cdef int i
    cdef field* f
    cdef bint bridged = False
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.id == FIELD_CONTENT_TYPE and is_grpc_type(f.value, f.value_size):
            f.value = x.grpc_type
            f.value_size = x.grpc_type_size
            bridged = True
    if not bridged:
        x.flags &= ~<uint32_t>(X_GRPC_WEB | X_GRPC_WEB_TEXT_OUT)
    elif h.has_body:
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
    if not x.flags & X_GRPC_WEB_TEXT_OUT:
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
    """Send the trailers as the last frame of the body; how many bytes that made.

    The frame is made in a page: what sends it builds in scratch_out and, for base64, in scratch_text.
    """
    cdef page* p = page_alloc(&x.r.pages, MAX_RESPONSE_HEAD)
    cdef char* out
    cdef size_t size = 5, k
    cdef uint32_t length
    cdef int i
    cdef const field* f
    if p == NULL:
        return 0
    out = page_data(p)
    batch_flush(x.r)
    for i in range(trailers.field_count):
        f = &trailers.fields[i]
        if f.drop or size + f.name_size + f.value_size + 4 > MAX_RESPONSE_HEAD:
            continue  # never for its size: no codec takes that much
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
    page_free(&x.r.pages, p)
    return size
