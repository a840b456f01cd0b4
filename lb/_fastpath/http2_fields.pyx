"""Fields of HTTP/2 (http2_fields.pxd)."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from lb._fastpath.c.nghttp2 cimport NGHTTP2_NV_FLAG_NO_INDEX, NGHTTP2_NV_FLAG_NONE, nghttp2_nv
from lb._fastpath.c.sys cimport (
    LB_DIGIT,
    LB_R_BAD_EXPECTATION,
    LB_R_BAD_FRAMING,
    LB_R_BAD_HOST,
    LB_R_BAD_METHOD,
    LB_R_BAD_PROTOCOL,
    LB_R_BAD_TARGET,
    LB_R_HEAD_TOO_LARGE,
    LB_R_HOST_MISMATCH,
    LB_R_METHOD_REFUSED,
    LB_R_NO_MEMORY,
    LB_R_TARGET_TOO_LONG,
    LB_R_TOO_MANY_HEADERS,
    LB_TARGET,
    LB_TOKEN,
    lb_class,
    lb_equal_nocase,
    lb_lower,
    lb_random,
    lb_value_run,
)
from lb._fastpath.http1_parse cimport (
    MAX_METHOD,
    imitates_known,
    known_field,
    known_method,
    parse_length,
    resolve_target,
    trailer_allowed,
)
from lb._fastpath.memory cimport page_alloc, page_data, page_free
from lb._fastpath.message cimport (
    FIELD_AUTHORIZATION,
    FIELD_CONNECTION,
    FIELD_CONTENT_LENGTH,
    FIELD_COOKIE,
    FIELD_EXPECT,
    FIELD_HOST,
    FIELD_HTTP2_SETTINGS,
    FIELD_KEEP_ALIVE,
    FIELD_OTHER,
    FIELD_PROXY_AUTHORIZATION,
    FIELD_PROXY_CONNECTION,
    FIELD_TE,
    FIELD_TRANSFER_ENCODING,
    FIELD_UPGRADE,
    FIELD_X_REQUEST_ID,
    METHOD_CONNECT,
    METHOD_GET,
    METHOD_OPTIONS,
    METHOD_OTHER,
    field,
    head_add,
    span,
)

cdef extern from "openssl/sha.h" nogil:
    unsigned char* SHA1(const unsigned char* data, size_t size, unsigned char* digest)

cdef extern from "openssl/evp.h" nogil:
    int EVP_EncodeBlock(unsigned char* target, const unsigned char* source, int size)

cdef struct stored:
    # Followed by the bytes of name and value.
    uint32_t value_size
    uint32_t name_size

cdef struct pseudo:
    # The pseudo-header fields of a request (RFC 9113 8.3.1, RFC 8441 4).
    span method
    span scheme
    span authority
    span path
    span protocol


# -------------------------------------------------------------------------------------------------------------- blocks

cdef void block_begin(field_block* b, memory* m) noexcept nogil:
    block_end(b, m)
    b.count = 0
    b.list_bytes = 0
    b.refused = 0


cdef void block_end(field_block* b, memory* m) noexcept nogil:
    if b.bytes != NULL:
        page_free(m, b.bytes)
        b.bytes = NULL


cdef bint block_add(field_block* b, memory* m, const char* name, size_t name_size, const char* value,
        size_t value_size, int max_bytes, int max_fields) noexcept nogil:
    """Keep a field. What passes a limit is counted only, and the message refused at its end; False: so much of it that
    only an attack can be meant.
    """
    cdef page* bigger
    cdef stored one
    cdef size_t need = sizeof(stored) + name_size + value_size
    cdef char* out
    b.count += 1
    b.list_bytes += <uint32_t>(name_size + value_size) + 32
    # One byte of a block can stand for a field of kilobytes (RFC 7541 7.3): beyond some multiple nobody errs.
    if b.list_bytes > 4 * <uint32_t>max_bytes + 65536 or b.count > 4 * <uint32_t>max_fields + 1024:
        return False
    if b.refused:
        return True
    if b.list_bytes > <uint32_t>max_bytes:
        b.refused = LB_R_HEAD_TOO_LARGE
        return True
    if b.count > <uint32_t>max_fields + 5:  # pseudo-header fields are not among them
        b.refused = LB_R_TOO_MANY_HEADERS
        return True
    if b.bytes == NULL or b.bytes.end + need > b.bytes.capacity - sizeof(page):
        bigger = page_alloc(m, 4000 if b.bytes == NULL and need < 4000 else (
            need if b.bytes == NULL else 2 * b.bytes.end + need))
        if bigger == NULL:
            b.refused = LB_R_NO_MEMORY  # which is nobody's fault, and costs this message only
            return True
        if b.bytes != NULL:
            memcpy(page_data(bigger), page_data(b.bytes), b.bytes.end)
            bigger.end = b.bytes.end
            page_free(m, b.bytes)
        b.bytes = bigger
    out = page_data(b.bytes) + b.bytes.end
    one.name_size = <uint32_t>name_size
    one.value_size = <uint32_t>value_size
    memcpy(out, &one, sizeof(one))
    memcpy(out + sizeof(one), name, name_size)
    memcpy(out + sizeof(one) + name_size, value, value_size)
    b.bytes.end += <uint32_t>need
    return True


cdef bint next_stored(const field_block* b, size_t* at, span* name, span* value) noexcept nogil:
    cdef stored one
    cdef const char* p
    if b.bytes == NULL or at[0] >= b.bytes.end:
        return False
    p = page_data(b.bytes) + at[0]
    memcpy(&one, p, sizeof(one))
    name.at = p + sizeof(one)
    name.size = one.name_size
    value.at = name.at + one.name_size
    value.size = one.value_size
    at[0] += sizeof(one) + one.name_size + one.value_size
    return True


cdef bint same(const span* s, const char* text, size_t size) noexcept nogil:
    return s.size == size and memcmp(s.at, text, size) == 0


cdef bint plain_name(const span* name) noexcept nogil:
    """A lower-case token (RFC 9113 8.2.1)."""
    cdef uint32_t i
    if name.size == 0 or name.size > 65535:
        return False
    for i in range(name.size):
        if not lb_class[<uint8_t>name.at[i]] & LB_TOKEN or lb_lower[<uint8_t>name.at[i]] != <uint8_t>name.at[i]:
            return False
    return True


cdef bint plain_value(const span* value) noexcept nogil:
    """No controls; no blanks at the ends, which HTTP/1 would lose."""
    if value.size == 0:
        return True
    if value.at[0] == c" " or value.at[0] == c"\t":
        return False
    if value.at[value.size - 1] == c" " or value.at[value.size - 1] == c"\t":
        return False
    return lb_value_run(value.at, value.size) == value.size


cdef field* take_field(head* h, const span* name, const span* value) noexcept nogil:
    """Append a regular field; NULL: malformed, or no room."""
    cdef field* f
    if not plain_name(name) or not plain_value(value) or h.field_count >= MAX_FIELDS - 4:
        return NULL
    f = &h.fields[h.field_count]
    f.name = name.at
    f.name_size = <uint16_t>name.size
    f.value = value.at
    f.value_size = value.size
    f.id = <uint8_t>known_field(name.at, name.size)
    # CGI-like servers read `_` as `-`: see imitates_known.
    f.drop = f.id == FIELD_OTHER and imitates_known(name.at, name.size)
    h.field_count += 1
    return f


cdef void reset_head(head* h) noexcept nogil:
    h.field_count = 0
    h.minor = 1
    h.version = 20
    h.content_length = -1
    h.chunked = False
    h.has_body = False
    h.keep_alive = True
    h.close_asked = False
    h.upgrade = False
    h.te_trailers = False
    h.keep_alive_timeout = 0
    h.host.at = NULL
    h.host.size = 0
    h.reason_phrase.at = NULL
    h.reason_phrase.size = 0
    h.method = METHOD_OTHER
    h.method_name.size = 0
    h.target.size = 0
    h.raw_target.at = NULL
    h.raw_target.size = 0


# ------------------------------------------------------------------------------------------------------------ requests

cdef bint take_pseudo(pseudo* p, const span* name, const span* value) noexcept nogil:
    cdef span* target
    if same(name, b":method", 7):
        target = &p.method
    elif same(name, b":scheme", 7):
        target = &p.scheme
    elif same(name, b":authority", 10):
        target = &p.authority
    elif same(name, b":path", 5):
        target = &p.path
    elif same(name, b":protocol", 9):
        target = &p.protocol
    else:
        return False
    if target.at != NULL:
        return False  # twice
    target[0] = value[0]
    return True


cdef int take_request_field(head* h, const span* name, const span* value, span* host) noexcept nogil:
    """0, a reason, or MALFORMED."""
    cdef field* f = take_field(h, name, value)
    if f == NULL:
        return MALFORMED
    if f.id == FIELD_OTHER:
        return 0
    if f.id in (FIELD_CONNECTION, FIELD_KEEP_ALIVE, FIELD_PROXY_CONNECTION, FIELD_TRANSFER_ENCODING, FIELD_UPGRADE):
        return MALFORMED  # RFC 9113 8.2.2
    if f.id == FIELD_HOST:
        if host.at != NULL:
            return LB_R_BAD_HOST
        host[0] = value[0]
    elif f.id == FIELD_CONTENT_LENGTH:
        if h.content_length >= 0 or not parse_length(value.at, value.size, &h.content_length):
            return LB_R_BAD_FRAMING
        f.drop = True
    elif f.id == FIELD_TE:
        if value.size != 8 or not lb_equal_nocase(value.at, b"trailers", 8):
            return MALFORMED
        h.te_trailers = True
        f.drop = True
    elif f.id == FIELD_EXPECT:
        if value.size != 12 or not lb_equal_nocase(value.at, b"100-continue", 12):
            return LB_R_BAD_EXPECTATION
    elif f.id == FIELD_HTTP2_SETTINGS or f.id == FIELD_PROXY_AUTHORIZATION:
        f.drop = True
    return 0


cdef int request_from_block(const field_block* b, head* h, const listener_view* view, char* work, uint64_t* random,
        bint* websocket) noexcept nogil:
    """A request's head as parse_request (http1_parse.pyx) would have made it. `has_body` is left to the caller."""
    cdef pseudo p
    cdef span name, value, host
    cdef size_t at = 0
    cdef int refused = 0, reason
    cdef bint fields_begun = False
    cdef int cookie = -1
    cdef char* cookies = NULL
    p.method.at = p.scheme.at = p.authority.at = p.path.at = p.protocol.at = NULL
    p.method.size = p.scheme.size = p.authority.size = p.path.size = p.protocol.size = 0
    host.at = NULL
    host.size = 0
    websocket[0] = False
    reset_head(h)
    if b.refused:
        return b.refused
    while next_stored(b, &at, &name, &value):
        if name.size and name.at[0] == c":":
            if fields_begun or not plain_value(&value) or not take_pseudo(&p, &name, &value):
                return MALFORMED
            continue
        fields_begun = True
        if same(&name, b"cookie", 6) and cookie >= 0 and plain_value(&value):
            # Crumbs are one field again (RFC 9113 8.2.3), put together behind what resolve_target writes to `work`.
            # Empty ones would leave a blank at its end, which no field may have.
            if value.size == 0:
                continue
            if h.fields[cookie].value_size == 0:
                h.fields[cookie].value = value.at
                h.fields[cookie].value_size = value.size
                continue
            if cookies == NULL:
                cookies = work + p.path.size + 1024
                memcpy(cookies, h.fields[cookie].value, h.fields[cookie].value_size)
                h.fields[cookie].value = cookies
            memcpy(cookies + h.fields[cookie].value_size, b"; ", 2)
            memcpy(cookies + h.fields[cookie].value_size + 2, value.at, value.size)
            h.fields[cookie].value_size += value.size + 2
            continue
        reason = take_request_field(h, &name, &value, &host)
        if reason == MALFORMED:
            return MALFORMED
        if reason and not refused:
            refused = reason
        if h.fields[h.field_count - 1].id == FIELD_COOKIE:
            cookie = h.field_count - 1
    reason = resolve_request(h, &p, &host, view, work, random, websocket)
    return reason if reason == MALFORMED or not refused else refused


cdef int resolve_request(head* h, pseudo* p, const span* host, const listener_view* view, char* work,
        uint64_t* random, bint* websocket) noexcept nogil:
    cdef uint32_t i
    if p.method.size == 0:
        return MALFORMED
    for i in range(p.method.size):
        if not lb_class[<uint8_t>p.method.at[i]] & LB_TOKEN:
            return MALFORMED
    h.method_name = p.method
    h.method = known_method(p.method.at, p.method.size)
    h.raw_target = p.path
    h.host = p.authority if p.authority.at != NULL else host[0]
    if p.method.size > MAX_METHOD:
        return LB_R_BAD_METHOD
    if h.method == METHOD_CONNECT:
        if p.protocol.at == NULL:
            # RFC 9113 8.5: neither scheme nor path. lb is no forward proxy.
            if p.scheme.at != NULL or p.path.at != NULL:
                return MALFORMED
            return LB_R_METHOD_REFUSED
        if not (p.protocol.size == 9 and lb_equal_nocase(p.protocol.at, b"websocket", 9)):
            return LB_R_BAD_PROTOCOL
        if h.content_length >= 0:
            # What follows is the tunnel's (RFC 8441 5). An HTTP/1 endpoint would wait for a body of that length, and
            # take what comes next on its connection for it.
            return LB_R_BAD_FRAMING
        websocket[0] = True
        begin_websocket(h, work, random)
        work += 32
    elif p.protocol.at != NULL:
        return MALFORMED
    if p.scheme.size == 0 or p.path.size == 0:
        return MALFORMED
    if not (is_nocase(&p.scheme, b"http", 4) or is_nocase(&p.scheme, b"https", 5)):
        return LB_R_BAD_TARGET
    if p.path.at[0] != c"/" and not (p.path.size == 1 and p.path.at[0] == c"*" and h.method == METHOD_OPTIONS):
        return MALFORMED
    if p.path.size > <uint32_t>view.max_target_bytes:
        return LB_R_TARGET_TOO_LONG
    for i in range(p.path.size):
        if not lb_class[<uint8_t>p.path.at[i]] & LB_TARGET:
            return LB_R_BAD_TARGET
    if p.authority.at != NULL and host.at != NULL and not view.accept_host_mismatch and not (
        p.authority.size == host.size and equal_nocase(p.authority.at, host.at, host.size)
    ):
        return LB_R_HOST_MISMATCH
    return resolve_target(h, view, work)


cdef bint is_nocase(const span* s, const char* lower, size_t size) noexcept nogil:
    return s.size == size and lb_equal_nocase(s.at, lower, size)


cdef bint equal_nocase(const char* a, const char* b, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(size):
        if lb_lower[<uint8_t>a[i]] != lb_lower[<uint8_t>b[i]]:
            return False
    return True


cdef void begin_websocket(head* h, char* work, uint64_t* random) noexcept nogil:
    """Extended CONNECT has no key of its own (RFC 8441 5), and HTTP/1 wants one (RFC 6455 4.1)."""
    cdef uint64_t words[2]
    cdef int i
    for i in range(h.field_count):
        if h.fields[i].name_size == 17 and lb_equal_nocase(h.fields[i].name, b"sec-websocket-key", 17):
            h.fields[i].drop = True
    words[0] = lb_random(random)
    words[1] = lb_random(random)
    EVP_EncodeBlock(<unsigned char*>work, <const unsigned char*>words, 16)
    h.method = METHOD_GET
    h.method_name.at = b"GET"
    h.method_name.size = 3
    h.upgrade = True
    head_add(h, b"Upgrade", 7, b"websocket", 9).id = FIELD_UPGRADE
    head_add(h, b"Sec-WebSocket-Key", 17, work, 24)


# ----------------------------------------------------------------------------------------------- responses and trailers

cdef int response_from_block(const field_block* b, head* h) noexcept nogil:
    """0, or MALFORMED."""
    cdef span name, value
    cdef size_t at = 0
    cdef field* f
    reset_head(h)
    h.status = 0
    if b.refused:
        return b.refused
    while next_stored(b, &at, &name, &value):
        if same(&name, b":status", 7):
            if h.status or h.field_count or value.size != 3 or not three_digits(value.at):
                return MALFORMED
            h.status = (value.at[0] - c"0") * 100 + (value.at[1] - c"0") * 10 + (value.at[2] - c"0")
            continue
        f = take_field(h, &name, &value)
        if f == NULL:
            return MALFORMED
        if f.id in (FIELD_CONNECTION, FIELD_KEEP_ALIVE, FIELD_PROXY_CONNECTION, FIELD_TRANSFER_ENCODING, FIELD_UPGRADE):
            return MALFORMED
        if f.id == FIELD_CONTENT_LENGTH:
            if h.content_length >= 0 or not parse_length(value.at, value.size, &h.content_length):
                return MALFORMED
            f.drop = True
        elif f.id == FIELD_TE:
            f.drop = True
    return 0 if 100 <= h.status <= 599 and h.status != 101 else MALFORMED


cdef bint three_digits(const char* p) noexcept nogil:
    return (lb_class[<uint8_t>p[0]] & lb_class[<uint8_t>p[1]] & lb_class[<uint8_t>p[2]] & LB_DIGIT) != 0


cdef int trailers_from_block(const field_block* b, head* h) noexcept nogil:
    """What is not on the list of trailer_allowed is marked to be dropped; gRPC's metadata may have any name, and who
    knows that a message is gRPC takes the marks of FIELD_OTHER away again.
    """
    cdef span name, value
    cdef size_t at = 0
    cdef field* f
    reset_head(h)
    if b.refused:
        return MALFORMED
    while next_stored(b, &at, &name, &value):
        f = take_field(h, &name, &value)
        if f == NULL:
            return MALFORMED
        if not trailer_allowed(f):
            f.drop = True
    return 0


# --------------------------------------------------------------------------------------------------------- on their way

cdef void put_pair(pairs* out, const char* name, size_t name_size, const char* value, size_t value_size,
        uint8_t flags) noexcept nogil:
    cdef nghttp2_nv* nv = &out.list[out.count]
    nv.name = <uint8_t*>name
    nv.namelen = name_size
    nv.value = <uint8_t*>value
    nv.valuelen = value_size
    nv.flags = flags
    out.count += 1
    out.bytes += name_size + value_size


cdef bint stays_out_of_table(const field* f) noexcept nogil:
    """Whether a field is never indexed: many clients share the table of one connection.

    That holds for their secrets (RFC 7541 7.1.3), for ids, which never come again, and for what gRPC's libraries parse:
    grpc-core keeps with an entry that it was malformed, and finds so whatever takes its name from that entry. One
    client's `grpc-timeout: x` would end the calls of all others.
    """
    if f.id in (FIELD_AUTHORIZATION, FIELD_COOKIE, FIELD_X_REQUEST_ID):
        return True
    if f.name_size > 5 and lb_equal_nocase(f.name, b"grpc-", 5):
        return True
    if f.name_size > 4 and lb_equal_nocase(f.name + f.name_size - 4, b"-bin", 4):
        return True
    return f.name_size == 12 and lb_equal_nocase(f.name, b"x-request-id", 12)


cdef void put_fields(pairs* out, const head* h) noexcept nogil:
    """nghttp2 copies names in lower case."""
    cdef int i
    cdef const field* f
    cdef uint8_t flags
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.drop:
            continue
        flags = <uint8_t>(NGHTTP2_NV_FLAG_NO_INDEX if stays_out_of_table(f) else NGHTTP2_NV_FLAG_NONE)
        put_pair(out, f.name, f.name_size, f.value, f.value_size, flags)


cdef void put_length(pairs* out, int64_t length) noexcept nogil:
    cdef int at = sizeof(out.length)
    if length < 0:
        return
    while True:
        at -= 1
        out.length[at] = <char>(c"0" + length % 10)
        length //= 10
        if length == 0:
            break
    put_pair(out, b"content-length", 14, &out.length[at], <size_t>(<int>sizeof(out.length) - at), 0)


cdef void response_pairs(pairs* out, const head* h) noexcept nogil:
    """A 101 becomes the 200 of extended CONNECT (RFC 8441 5), without what HTTP/1 says of the upgrade."""
    cdef int status = 200 if h.status == 101 else h.status
    cdef size_t i = 1
    out.count = 0
    out.bytes = 0
    out.status[0] = <char>(c"0" + status // 100)
    out.status[1] = <char>(c"0" + status // 10 % 10)
    out.status[2] = <char>(c"0" + status % 10)
    put_pair(out, b":status", 7, out.status, 3, 0)
    put_fields(out, h)
    if h.status != 101:
        if status >= 200 and status != 204:
            put_length(out, h.content_length)
        return
    while i < out.count:
        if is_pair(&out.list[i], b"upgrade", 7) or is_pair(&out.list[i], b"sec-websocket-accept", 20):
            out.count -= 1
            out.list[i] = out.list[out.count]
        else:
            i += 1


cdef bint is_pair(const nghttp2_nv* nv, const char* lower, size_t size) noexcept nogil:
    return nv.namelen == size and lb_equal_nocase(<const char*>nv.name, lower, size)


cdef void request_pairs(pairs* out, const head* h, bint secure) noexcept nogil:
    """A neutral websocket handshake becomes extended CONNECT."""
    cdef size_t i
    out.count = 0
    out.bytes = 0
    if h.upgrade:
        put_pair(out, b":method", 7, b"CONNECT", 7, 0)
        put_pair(out, b":protocol", 9, b"websocket", 9, 0)
    else:
        put_pair(out, b":method", 7, h.method_name.at, h.method_name.size, 0)
    put_pair(out, b":scheme", 7, b"https" if secure else b"http", 5 if secure else 4, 0)
    if h.host.size:
        put_pair(out, b":authority", 10, h.host.at, h.host.size, 0)
    put_pair(out, b":path", 5, h.target.at, h.target.size, 0)
    i = out.count
    put_fields(out, h)
    if h.te_trailers:
        put_pair(out, b"te", 2, b"trailers", 8, 0)
    if not h.upgrade:
        put_length(out, h.content_length)
    while h.upgrade and i < out.count:
        if is_pair(&out.list[i], b"upgrade", 7) or is_pair(&out.list[i], b"sec-websocket-key", 17):
            out.count -= 1
            out.list[i] = out.list[out.count]
        else:
            i += 1


cdef void trailer_pairs(pairs* out, const head* h) noexcept nogil:
    out.count = 0
    out.bytes = 0
    put_fields(out, h)


# ---------------------------------------------------------------------------------------------------------- websockets

cdef bint asks_websocket(const head* h) noexcept nogil:
    """Whether the upgrade that is asked for is the one that extended CONNECT knows."""
    cdef int i
    for i in range(h.field_count):
        if h.fields[i].id == FIELD_UPGRADE:
            return h.fields[i].value_size == 9 and lb_equal_nocase(h.fields[i].value, b"websocket", 9)
    return False


cdef bint websocket_accept(const head* h, char* out) noexcept nogil:
    """Sec-WebSocket-Accept for the request's key (RFC 6455 4.2.2), with a zero behind it. False: there is no key."""
    cdef const char* salt = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    cdef unsigned char text[64 + 36]
    cdef unsigned char digest[20]
    cdef int i
    cdef const field* f
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.name_size == 17 and lb_equal_nocase(f.name, b"sec-websocket-key", 17) and f.value_size <= 64:
            memcpy(text, f.value, f.value_size)
            memcpy(text + f.value_size, salt, 36)
            SHA1(text, f.value_size + 36, digest)
            EVP_EncodeBlock(<unsigned char*>out, digest, 20)
            return True
    return False
