"""The parser of http1_parse.pxd. Every read is bounded by an explicit end; every number is checked before it grows."""
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memchr, memcmp, memcpy, memmove

from lb._fastpath.c.sys cimport (
    LB_DIGIT,
    LB_HEX,
    LB_R_BAD_EXPECTATION,
    LB_R_BAD_FRAMING,
    LB_R_BAD_HEADER,
    LB_R_BAD_HOST,
    LB_R_BAD_METHOD,
    LB_R_BAD_REQUEST_LINE,
    LB_R_BAD_RESPONSE,
    LB_R_BAD_TARGET,
    LB_R_BAD_TRANSFER_CODING,
    LB_R_BAD_VERSION,
    LB_R_HEAD_TOO_LARGE,
    LB_R_HOST_MISMATCH,
    LB_R_METHOD_REFUSED,
    LB_R_NOT_HTTP,
    LB_R_RESPONSE_TOO_LARGE,
    LB_R_TARGET_TOO_LONG,
    LB_R_TOO_MANY_HEADERS,
    LB_TARGET,
    LB_TOKEN,
    LB_UNRESERVED,
    lb_class,
    lb_equal_nocase,
    lb_hexval,
    lb_lower,
    lb_value_run,
)
from lb._fastpath.message cimport (
    FIELD_ACCEPT,
    FIELD_CLIENT_CERTIFICATE,
    FIELD_CONTENT_TYPE,
    FIELD_AUTHORIZATION,
    FIELD_CONNECTION,
    FIELD_CONTENT_LENGTH,
    FIELD_COOKIE,
    FIELD_EXPECT,
    FIELD_FORWARDED,
    FIELD_HOST,
    FIELD_HTTP2_SETTINGS,
    FIELD_KEEP_ALIVE,
    FIELD_OTHER,
    FIELD_PROXY_AUTHENTICATE,
    FIELD_PROXY_AUTHORIZATION,
    FIELD_PROXY_CONNECTION,
    FIELD_REFERER,
    FIELD_TE,
    FIELD_TRAILER,
    FIELD_TRANSFER_ENCODING,
    FIELD_UPGRADE,
    FIELD_USER_AGENT,
    FIELD_X_FORWARDED_FOR,
    FIELD_X_FORWARDED_HOST,
    FIELD_X_FORWARDED_PORT,
    FIELD_X_FORWARDED_PROTO,
    FIELD_X_REAL_IP,
    FIELD_X_REQUEST_ID,
    MAX_FIELDS,
    METHOD_CONNECT,
    METHOD_DELETE,
    METHOD_GET,
    METHOD_HEAD,
    METHOD_OPTIONS,
    METHOD_OTHER,
    METHOD_PATCH,
    METHOD_POST,
    METHOD_PUT,
    METHOD_TRACE,
    field,
)

cdef enum:
    MAX_EMPTY_LINES = 4  # before a request line (RFC 9112 2.2)
    MAX_HOST_BYTES = 253  # RFC 1035 2.3.4

cdef enum:  # chunk_state.state
    CHUNK_SIZE_FIRST = 0
    CHUNK_SIZE
    CHUNK_EXTENSION
    CHUNK_SIZE_LF
    CHUNK_BYTES
    CHUNK_BYTES_CR
    CHUNK_BYTES_LF
    CHUNK_LAST


# --------------------------------------------------------------------------------------------------------------- names

cdef int known_field(const char* p, size_t n) noexcept nogil:
    """The field's id, by length first: at most two comparisons for any name."""
    if n == 4:
        if lb_equal_nocase(p, b"host", 4):
            return FIELD_HOST
    elif n == 2:
        if lb_equal_nocase(p, b"te", 2):
            return FIELD_TE
    elif n == 6:
        if lb_lower[<uint8_t>p[0]] == c"a":
            return FIELD_ACCEPT if lb_equal_nocase(p, b"accept", 6) else FIELD_OTHER
        if lb_lower[<uint8_t>p[0]] == c"e":
            return FIELD_EXPECT if lb_equal_nocase(p, b"expect", 6) else FIELD_OTHER
        if lb_equal_nocase(p, b"cookie", 6):
            return FIELD_COOKIE
    elif n == 7:
        if lb_lower[<uint8_t>p[0]] == c"r":
            return FIELD_REFERER if lb_equal_nocase(p, b"referer", 7) else FIELD_OTHER
        if lb_lower[<uint8_t>p[0]] == c"u":
            return FIELD_UPGRADE if lb_equal_nocase(p, b"upgrade", 7) else FIELD_OTHER
        if lb_equal_nocase(p, b"trailer", 7):
            return FIELD_TRAILER
    elif n == 9:
        if lb_lower[<uint8_t>p[0]] == c"f":
            return FIELD_FORWARDED if lb_equal_nocase(p, b"forwarded", 9) else FIELD_OTHER
        if lb_equal_nocase(p, b"x-real-ip", 9):
            return FIELD_X_REAL_IP
    elif n == 10:
        if lb_lower[<uint8_t>p[0]] == c"u":
            return FIELD_USER_AGENT if lb_equal_nocase(p, b"user-agent", 10) else FIELD_OTHER
        if lb_lower[<uint8_t>p[0]] == c"c":
            return FIELD_CONNECTION if lb_equal_nocase(p, b"connection", 10) else FIELD_OTHER
        if lb_equal_nocase(p, b"keep-alive", 10):
            return FIELD_KEEP_ALIVE
    elif n == 12:
        if lb_lower[<uint8_t>p[0]] == c"c":
            return FIELD_CONTENT_TYPE if lb_equal_nocase(p, b"content-type", 12) else FIELD_OTHER
        if lb_equal_nocase(p, b"x-request-id", 12):
            return FIELD_X_REQUEST_ID
    elif n == 13:
        if lb_equal_nocase(p, b"authorization", 13):
            return FIELD_AUTHORIZATION
    elif n == 14:
        if lb_lower[<uint8_t>p[0]] == c"h":
            return FIELD_HTTP2_SETTINGS if lb_equal_nocase(p, b"http2-settings", 14) else FIELD_OTHER
        if lb_equal_nocase(p, b"content-length", 14):
            return FIELD_CONTENT_LENGTH
    elif n == 15:
        if lb_equal_nocase(p, b"x-forwarded-for", 15):
            return FIELD_X_FORWARDED_FOR
    elif n == 16:
        if lb_lower[<uint8_t>p[0]] == c"p":
            return FIELD_PROXY_CONNECTION if lb_equal_nocase(p, b"proxy-connection", 16) else FIELD_OTHER
        if lb_equal_nocase(p, b"x-forwarded-host", 16):
            return FIELD_X_FORWARDED_HOST
        if lb_equal_nocase(p, b"x-forwarded-port", 16):
            return FIELD_X_FORWARDED_PORT
    elif n == 17:
        if lb_lower[<uint8_t>p[0]] == c"t":
            return FIELD_TRANSFER_ENCODING if lb_equal_nocase(p, b"transfer-encoding", 17) else FIELD_OTHER
        if lb_equal_nocase(p, b"x-forwarded-proto", 17):
            return FIELD_X_FORWARDED_PROTO
    elif n == 18:
        if lb_equal_nocase(p, b"proxy-authenticate", 18):
            return FIELD_PROXY_AUTHENTICATE
    elif n == 19:
        if lb_equal_nocase(p, b"proxy-authorization", 19):
            return FIELD_PROXY_AUTHORIZATION
    elif n == 23:
        if lb_equal_nocase(p, b"x-forwarded-client-cert", 23):
            return FIELD_CLIENT_CERTIFICATE
    if n > 11 and lb_lower[<uint8_t>p[0]] == c"s" and lb_equal_nocase(p, b"ssl-client-", 11):
        return FIELD_CLIENT_CERTIFICATE
    return FIELD_OTHER


cdef bint imitates_known(const char* p, size_t n) noexcept nogil:
    """`X_Forwarded_For`: CGI-like servers read `_` as `-`, so such a name could slip past what is stripped."""
    cdef char plain[32]
    cdef size_t i
    if n > sizeof(plain) or memchr(p, c"_", n) == NULL:
        return False
    for i in range(n):
        plain[i] = c"-" if p[i] == c"_" else p[i]
    return known_field(plain, n) != FIELD_OTHER


cdef int known_method(const char* p, size_t n) noexcept nogil:
    if n == 3:
        if memcmp(p, b"GET", 3) == 0:
            return METHOD_GET
        if memcmp(p, b"PUT", 3) == 0:
            return METHOD_PUT
    elif n == 4:
        if memcmp(p, b"POST", 4) == 0:
            return METHOD_POST
        if memcmp(p, b"HEAD", 4) == 0:
            return METHOD_HEAD
    elif n == 5:
        if memcmp(p, b"PATCH", 5) == 0:
            return METHOD_PATCH
        if memcmp(p, b"TRACE", 5) == 0:
            return METHOD_TRACE
    elif n == 6:
        if memcmp(p, b"DELETE", 6) == 0:
            return METHOD_DELETE
    elif n == 7:
        if memcmp(p, b"OPTIONS", 7) == 0:
            return METHOD_OPTIONS
        if memcmp(p, b"CONNECT", 7) == 0:
            return METHOD_CONNECT
    return METHOD_OTHER


# -------------------------------------------------------------------------------------------------------- field values

cdef bint next_token(const char** at, const char* end, const char** token, size_t* size) noexcept nogil:
    """The next non-empty member of a comma-separated list, without blanks around it. False at the end."""
    cdef const char* p = at[0]
    cdef const char* start
    while p < end and (p[0] == c"," or p[0] == c" " or p[0] == c"\t"):
        p += 1
    if p == end:
        at[0] = p
        return False
    start = p
    while p < end and p[0] != c",":
        p += 1
    at[0] = p
    while (p - 1)[0] == c" " or (p - 1)[0] == c"\t":
        p -= 1
    token[0] = start
    size[0] = <size_t>(p - start)
    return True


cdef bint parse_length(const char* p, size_t n, int64_t* result) noexcept nogil:
    """Content-Length: digits only, below 2^52 (what every implementation can hold)."""
    cdef int64_t value = 0
    cdef size_t i
    if n == 0 or n > 32:
        return False
    for i in range(n):
        if not lb_class[<uint8_t>p[i]] & LB_DIGIT:
            return False
        value = value * 10 + (p[i] - c"0")
        if value >= <int64_t>1 << 52:
            return False
    result[0] = value
    return True


cdef int parse_codings(const field* f) noexcept nogil:
    """Transfer-Encoding: only `chunked`, once, is understood (RFC 9112 6.1). 0, or the reason it is refused."""
    cdef const char* at = f.value
    cdef const char* end = f.value + f.value_size
    cdef const char* token
    cdef size_t size
    cdef int count = 0
    while next_token(&at, end, &token, &size):
        if size != 7 or not lb_equal_nocase(token, b"chunked", 7):
            return LB_R_BAD_TRANSFER_CODING
        count += 1
    # `chunked, chunked` and an empty list are wrong; so is a comma with nothing beside it.
    if count != 1 or f.value_size != 7:
        return LB_R_BAD_FRAMING
    return 0


cdef int apply_connection(head* h, const field* f) noexcept nogil:
    """Connection: its options, and the removal of the fields that it nominates (RFC 9110 7.6.1).

    Framing, routing, credentials and our own forwarding fields cannot be nominated away: that has been used to make a
    proxy drop what a server behind it relied on. 0, or the reason it is refused.
    """
    cdef const char* at = f.value
    cdef const char* end = f.value + f.value_size
    cdef const char* token
    cdef size_t size
    cdef int count = 0, i
    cdef field* other
    while next_token(&at, end, &token, &size):
        count += 1
        if count > MAX_CONNECTION_TOKENS:
            return LB_R_BAD_HEADER
        if size == 5 and lb_equal_nocase(token, b"close", 5):
            h.keep_alive = False
            h.close_asked = True
        elif size == 10 and lb_equal_nocase(token, b"keep-alive", 10):
            if not h.close_asked:
                h.keep_alive = True
        elif size == 7 and lb_equal_nocase(token, b"upgrade", 7):
            h.upgrade = True
        else:
            for i in range(h.field_count):
                other = &h.fields[i]
                if other.name_size != size or other.id in (
                    FIELD_HOST, FIELD_CONTENT_LENGTH, FIELD_TRANSFER_ENCODING, FIELD_X_FORWARDED_FOR,
                    FIELD_X_FORWARDED_PROTO, FIELD_X_FORWARDED_HOST, FIELD_X_FORWARDED_PORT, FIELD_X_REAL_IP,
                    FIELD_FORWARDED, FIELD_AUTHORIZATION, FIELD_COOKIE, FIELD_X_REQUEST_ID, FIELD_TE,
                ):
                    continue
                if equal_names(other.name, token, size):
                    other.drop = True
    return 0


cdef bint equal_names(const char* a, const char* b, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if lb_lower[<uint8_t>a[i]] != lb_lower[<uint8_t>b[i]]:
            return False
    return True


# --------------------------------------------------------------------------------------------------------- field lines

cdef ssize_t parse_fields(const char* start, const char* p, const char* end, head* h, int most,
        bint reject_bare_lf) noexcept nogil:
    """Field lines up to and with the empty line (RFC 9112 5). Bytes used since `start`, 0 for more, or -reason."""
    cdef const char* name
    cdef const char* value
    cdef const char* stop
    cdef field* f
    while True:
        if p == end:
            return 0
        if p[0] == c"\r":
            if p + 1 == end:
                return 0
            if p[1] != c"\n":
                return -LB_R_BAD_HEADER
            return p + 2 - start
        if p[0] == c"\n":
            return -LB_R_BAD_HEADER if reject_bare_lf else p + 1 - start
        if h.field_count == most or h.field_count == MAX_FIELDS:
            return -LB_R_TOO_MANY_HEADERS
        name = p
        while p < end and lb_class[<uint8_t>p[0]] & LB_TOKEN:
            p += 1
        if p == end:
            return 0 if p - name < 65536 else -LB_R_BAD_HEADER
        # No name, a blank before the colon, a folded line, no colon at all: all the same to us.
        if p == name or p[0] != c":":
            return -LB_R_BAD_HEADER
        f = &h.fields[h.field_count]
        f.name = name
        f.name_size = <uint16_t>(p - name)
        p += 1
        while p < end and (p[0] == c" " or p[0] == c"\t"):
            p += 1
        value = p
        p += lb_value_run(p, <size_t>(end - p))
        if p == end:
            return 0
        stop = p
        if p[0] == c"\r":
            if p + 1 == end:
                return 0
            if p[1] != c"\n":
                return -LB_R_BAD_HEADER
            p += 2
        elif p[0] == c"\n" and not reject_bare_lf:
            p += 1
        else:
            return -LB_R_BAD_HEADER
        while stop > value and ((stop - 1)[0] == c" " or (stop - 1)[0] == c"\t"):
            stop -= 1
        f.value = value
        f.value_size = <uint32_t>(stop - value)
        f.id = <uint8_t>known_field(name, f.name_size)
        f.drop = False
        h.field_count += 1


cdef int scan_fields(head* h, bint request) noexcept nogil:
    """Derive framing and connection from the fields, and drop what is meant for this hop only. 0, or a reason."""
    cdef int i, reason, hosts = 0, lengths = 0, codings = 0
    cdef bint upgrade_field = False, connection_field = False, h2c = False
    cdef field* f
    cdef uint8_t id
    h.content_length = -1
    h.chunked = False
    h.upgrade = False
    h.close_asked = False
    h.te_trailers = False
    h.keep_alive = h.minor >= 1
    h.keep_alive_timeout = 0
    for i in range(h.field_count):
        f = &h.fields[i]
        id = f.id
        if id == FIELD_OTHER:
            if imitates_known(f.name, f.name_size):
                f.drop = True
            continue
        if id == FIELD_HOST:
            hosts += 1
            if hosts > 1 and request:
                return LB_R_BAD_HOST
            h.host.at = f.value
            h.host.size = f.value_size
        elif id == FIELD_CONTENT_LENGTH:
            lengths += 1
            if lengths > 1 or not parse_length(f.value, f.value_size, &h.content_length):
                return LB_R_BAD_FRAMING
            f.drop = True
        elif id == FIELD_TRANSFER_ENCODING:
            codings += 1
            if codings > 1:
                return LB_R_BAD_FRAMING
            reason = parse_codings(f)
            if reason:
                return reason
            h.chunked = True
            f.drop = True
        elif id == FIELD_CONNECTION:
            connection_field = True
            f.drop = True
        elif id == FIELD_UPGRADE:
            upgrade_field = True
            if offers_h2c(f):
                h2c = True
        elif id == FIELD_EXPECT:
            if request and h.minor >= 1:
                if f.value_size != 12 or not lb_equal_nocase(f.value, b"100-continue", 12):
                    return LB_R_BAD_EXPECTATION
            else:
                f.drop = True
        elif id == FIELD_TE:
            h.te_trailers = h.te_trailers or accepts_trailers(f)
            f.drop = True
        elif id == FIELD_KEEP_ALIVE:
            h.keep_alive_timeout = keep_alive_seconds(f)
            f.drop = True
        elif id in (FIELD_PROXY_CONNECTION, FIELD_PROXY_AUTHENTICATE, FIELD_PROXY_AUTHORIZATION,
                FIELD_HTTP2_SETTINGS, FIELD_TRAILER):
            f.drop = id != FIELD_PROXY_AUTHENTICATE or request
            if id == FIELD_TRAILER:
                f.drop = False
    if connection_field:
        for i in range(h.field_count):
            if h.fields[i].id == FIELD_CONNECTION:
                reason = apply_connection(h, &h.fields[i])
                if reason:
                    return reason
    if h.chunked and (lengths or h.minor == 0):
        return LB_R_BAD_FRAMING
    h.has_body = h.chunked or h.content_length > 0
    h.upgrade = h.upgrade and upgrade_field and h.minor >= 1 and not h2c
    if request and h.has_body:
        h.upgrade = False
    if upgrade_field and not h.upgrade:
        for i in range(h.field_count):
            if h.fields[i].id == FIELD_UPGRADE:
                h.fields[i].drop = True
    return 0


cdef bint accepts_trailers(const field* f) noexcept nogil:
    cdef const char* at = f.value
    cdef const char* end = f.value + f.value_size
    cdef const char* token
    cdef size_t size
    while next_token(&at, end, &token, &size):
        if size == 8 and lb_equal_nocase(token, b"trailers", 8):
            return True
    return False


cdef bint offers_h2c(const field* f) noexcept nogil:
    """HTTP/2 by upgrade is not offered (RFC 9113 3.1 dropped it), nor passed on: it would blind us."""
    cdef const char* at = f.value
    cdef const char* end = f.value + f.value_size
    cdef const char* token
    cdef size_t size
    while next_token(&at, end, &token, &size):
        if size >= 3 and lb_equal_nocase(token, b"h2c", 3):
            return True
    return False


cdef int keep_alive_seconds(const field* f) noexcept nogil:
    """`timeout=5` of a Keep-Alive field, 0 when there is none."""
    cdef const char* at = f.value
    cdef const char* end = f.value + f.value_size
    cdef const char* token
    cdef size_t size
    cdef int64_t seconds
    while next_token(&at, end, &token, &size):
        if size > 8 and lb_equal_nocase(token, b"timeout=", 8) and parse_length(token + 8, size - 8, &seconds):
            return <int>seconds if seconds < 86400 else 86400
    return 0


# ------------------------------------------------------------------------------------------------------------ requests

cdef ssize_t parse_request(const char* p, size_t n, head* h, const listener_view* view, char* work) noexcept nogil:
    """A request head. `work` (SCRATCH_BYTES) takes what has to be rewritten: the normalised target and the hostname."""
    cdef const char* start = p
    cdef const char* end = p + n
    cdef ssize_t used
    cdef int reason
    cdef int empty = 0
    if n > <size_t>view.max_head_bytes:
        end = p + view.max_head_bytes
    while p < end and (p[0] == c"\r" or p[0] == c"\n"):
        if p[0] == c"\n":
            empty += 1
        elif p + 1 < end and p[1] != c"\n":
            return -LB_R_BAD_REQUEST_LINE
        if empty > MAX_EMPTY_LINES or (p[0] == c"\n" and view.reject_bare_lf and (p == start or (p - 1)[0] != c"\r")):
            return -LB_R_BAD_REQUEST_LINE
        p += 1
    h.field_count = 0
    h.host.size = 0
    h.host.at = NULL
    used = parse_request_line(p, end, h, view)
    if used > 0:
        used = parse_fields(start, p + used, end, h, view.max_headers, view.reject_bare_lf)
    if used < 0:
        return used
    if used == 0:
        return 0 if n <= <size_t>view.max_head_bytes else -LB_R_HEAD_TOO_LARGE
    reason = scan_fields(h, True)
    if reason == 0:
        reason = resolve_target(h, view, work)
    return -reason if reason else used


cdef ssize_t parse_request_line(const char* p, const char* end, head* h, const listener_view* view) noexcept nogil:
    """`METHOD SP target SP HTTP/1.x CRLF` with single spaces (RFC 9112 3). Bytes used, 0, or -reason."""
    cdef const char* start = p
    cdef const char* at = p
    while p < end and lb_class[<uint8_t>p[0]] & LB_TOKEN:
        p += 1
        if p - at > MAX_METHOD:
            return -LB_R_BAD_METHOD
    if p == end:
        return 0
    if p == at and p[0] == 0x16:
        # A TLS handshake begins so (RFC 8446 5.1), in version 3 of its records.
        return 0 if p + 1 == end else -LB_R_NOT_HTTP if p[1] == 3 else -LB_R_BAD_REQUEST_LINE
    if p == at or p[0] != c" ":
        return -LB_R_BAD_REQUEST_LINE
    h.method_name.at = at
    h.method_name.size = <uint32_t>(p - at)
    h.method = known_method(at, <size_t>(p - at))
    p += 1
    at = p
    while p < end and lb_class[<uint8_t>p[0]] & LB_TARGET:
        p += 1
    if p - at > view.max_target_bytes:
        return -LB_R_TARGET_TOO_LONG
    if p == end:
        return 0
    if p == at:
        return -LB_R_BAD_REQUEST_LINE
    h.raw_target.at = at
    h.raw_target.size = <uint32_t>(p - at)
    if p[0] == c"\r" or p[0] == c"\n":
        return -LB_R_NOT_HTTP  # HTTP/0.9: nothing that could be answered
    if p[0] != c" ":
        return -LB_R_BAD_TARGET
    p += 1
    return parse_version(start, p, end, h, view.reject_bare_lf)


cdef ssize_t parse_version(const char* start, const char* p, const char* end, head* h,
        bint reject_bare_lf) noexcept nogil:
    cdef size_t room = <size_t>(end - p)
    cdef size_t compared = room if room < 5 else 5
    if memcmp(p, b"HTTP/", compared) != 0:
        return -LB_R_BAD_REQUEST_LINE
    if room < 9:
        if room > 5 and not lb_class[<uint8_t>p[5]] & LB_DIGIT:
            return -LB_R_BAD_REQUEST_LINE
        return 0
    if not (lb_class[<uint8_t>p[5]] & LB_DIGIT and p[6] == c"." and lb_class[<uint8_t>p[7]] & LB_DIGIT):
        return -LB_R_BAD_REQUEST_LINE
    if p[8] == c"\r":
        if room < 10:
            return 0
        if p[9] != c"\n":
            return -LB_R_BAD_REQUEST_LINE
    elif p[8] != c"\n" or reject_bare_lf:
        return -LB_R_BAD_REQUEST_LINE
    if p[5] != c"1":
        return -LB_R_BAD_VERSION
    h.minor = 0 if p[7] == c"0" else 1
    h.version = 10 + h.minor
    return p - start + (10 if p[8] == c"\r" else 9)


cdef int resolve_target(head* h, const listener_view* view, char* work) noexcept nogil:
    """The four forms of a target (RFC 9112 3.2), Host, and the normal form of both. 0, or a reason."""
    cdef const char* target = h.raw_target.at
    cdef size_t size = h.raw_target.size
    cdef size_t scheme = 0, authority
    cdef uint32_t name_size = 0
    cdef char* name = work + size + 1
    if h.method == METHOD_CONNECT:
        return LB_R_METHOD_REFUSED
    if h.minor >= 1 and (h.host.at == NULL or h.host.size == 0):
        return LB_R_BAD_HOST
    if target[0] == c"*" and size == 1:
        if h.method != METHOD_OPTIONS:
            return LB_R_BAD_TARGET
        h.target.at = target
        h.target.size = 1
        h.path_size = 1
    else:
        if target[0] != c"/":
            if size > 7 and lb_equal_nocase(target, b"http://", 7):
                scheme = 7
            elif size > 8 and lb_equal_nocase(target, b"https://", 8):
                scheme = 8
            else:
                return LB_R_BAD_TARGET
            authority = scheme
            while authority < size and target[authority] != c"/" and target[authority] != c"?":
                authority += 1
            if authority == scheme:
                return LB_R_BAD_TARGET
            if h.host.at != NULL and not (
                h.host.size == authority - scheme and equal_names(h.host.at, target + scheme, h.host.size)
            ) and not view.accept_host_mismatch:
                return LB_R_HOST_MISMATCH
            h.host.at = target + scheme
            h.host.size = <uint32_t>(authority - scheme)
            target += authority
            size -= authority
        if size == 0 or target[0] == c"?":
            # An absolute target without a path: `/` (RFC 9112 3.2.1).
            work[0] = c"/"
            memcpy(work + 1, target, size)
            h.target.at = work
            h.target.size = <uint32_t>size + 1
            h.path_size = 1
        elif is_plain(target, size, &h.path_size):
            h.target.at = target
            h.target.size = <uint32_t>size
        else:
            h.target.at = work
            if not normalize_target(target, size, work, view.merge_slashes, view.keep_escaped_slashes, &h.path_size,
                    &h.target.size):
                return LB_R_BAD_TARGET
    if h.host.at == NULL:
        h.hostname.at = work
        h.hostname.size = 0
        return 0
    if not normalize_host(h.host.at, h.host.size, name, &name_size):
        return LB_R_BAD_HOST
    h.hostname.at = name
    h.hostname.size = name_size
    return 0


cdef bint is_plain(const char* target, size_t size, uint32_t* path_size) noexcept nogil:
    """Whether the path is in normal form already, which nearly all are: no escape, no backslash, no `//`, no `/.`."""
    cdef size_t i = 0
    cdef char previous = 0, byte
    while i < size:
        byte = target[i]
        if byte == c"?":
            break
        if byte == c"%" or byte == c"\\" or (previous == c"/" and (byte == c"/" or byte == c".")):
            return False
        previous = byte
        i += 1
    path_size[0] = <uint32_t>i
    return True


cdef bint normalize_target(const char* target, size_t size, char* out, bint merge_slashes, bint keep_escaped_slashes,
                           uint32_t* path_size, uint32_t* out_size) noexcept nogil:
    """Normal form of an origin-form target; the rules are numbered in lb/model/normalize.py, Target."""
    cdef size_t i = 0, o = 0, path_end, length
    cdef int high, low, byte
    cdef const char* mark = <const char*>memchr(target, c"?", size)
    cdef size_t stop = <size_t>(mark - target) if mark != NULL else size
    if size == 0 or target[0] != c"/":
        return False
    while i < stop:
        if target[i] == c"%":
            if i + 2 >= stop:
                return False
            high = lb_hexval[<uint8_t>target[i + 1]]
            low = lb_hexval[<uint8_t>target[i + 2]]
            if high < 0 or low < 0:
                return False
            byte = high * 16 + low
            if byte == 0 or ((byte == c"/" or byte == c"\\") and not keep_escaped_slashes):
                return False
            if lb_class[byte] & LB_UNRESERVED:
                out[o] = <char>byte
                o += 1
            else:
                out[o] = c"%"
                out[o + 1] = <char>(high + (c"0" if high < 10 else c"A" - 10))
                out[o + 2] = <char>(low + (c"0" if low < 10 else c"A" - 10))
                o += 3
            i += 3
            continue
        if target[i] == c"\\" and not keep_escaped_slashes:
            return False
        out[o] = target[i]
        o += 1
        i += 1
    path_end = o
    if merge_slashes:
        o = 0
        for i in range(path_end):
            if out[i] == c"/" and o > 0 and out[o - 1] == c"/":
                continue
            out[o] = out[i]
            o += 1
        path_end = o
    if not remove_dot_segments(out, &path_end):
        return False
    path_size[0] = <uint32_t>path_end
    length = size - stop
    memmove(out + path_end, target + stop, length)
    out_size[0] = <uint32_t>(path_end + length)
    return True


cdef bint remove_dot_segments(char* path, size_t* size) noexcept nogil:
    """RFC 3986 5.2.4 in place, except that going above the root is refused. The path begins with `/`."""
    cdef size_t i = 0, o = 0, start, length, n = size[0]
    cdef bint dot
    while i < n:
        # path[i] is the `/` before a segment
        start = i + 1
        length = 0
        while start + length < n and path[start + length] != c"/":
            length += 1
        i = start + length
        dot = length == 1 and path[start] == c"."
        if length == 2 and path[start] == c"." and path[start + 1] == c".":
            if o == 0:
                return False
            o -= 1
            while path[o] != c"/":
                o -= 1
            dot = True
        if dot:
            if i == n:  # the last segment leaves the slash before it
                path[o] = c"/"
                o += 1
            continue
        path[o] = c"/"
        memmove(path + o + 1, path + start, length)
        o += 1 + length
    size[0] = o
    return True


cdef bint normalize_host(const char* value, size_t size, char* out, uint32_t* out_size) noexcept nogil:
    """Routing's form of a Host value; the rules are numbered in lb/model/normalize.py, Host."""
    cdef size_t i = 0, end, colons = 0, label = 0
    cdef uint32_t port = 0
    if size == 0:
        out_size[0] = 0
        return True
    if value[0] == c"[":
        i = 1
        while i < size and value[i] != c"]":
            if value[i] == c":":
                colons += 1
            elif value[i] != c"." and not lb_class[<uint8_t>value[i]] & LB_HEX:
                return False
            i += 1
        if i == size or colons < 2 or i > MAX_HOST_BYTES:
            return False
        end = i + 1
    else:
        while i < size and value[i] != c":":
            i += 1
        end = i
    if end < size:
        if value[end] != c":" or size - end > 6:
            return False
        for i in range(end + 1, size):
            if not lb_class[<uint8_t>value[i]] & LB_DIGIT:
                return False
            port = port * 10 + <uint32_t>(value[i] - c"0")
        if port > 65535:
            return False
    if value[0] != c"[":
        if end > 0 and value[end - 1] == c".":
            end -= 1
        if end > MAX_HOST_BYTES:
            return False
        for i in range(end):
            if value[i] == c".":
                if label == 0:
                    return False
                label = 0
                continue
            label += 1
            if not (lb_class[<uint8_t>value[i]] & LB_UNRESERVED) or value[i] == c"~":
                return False
        if label == 0:
            return False
    for i in range(end):
        out[i] = <char>lb_lower[<uint8_t>value[i]]
    out_size[0] = <uint32_t>end
    return True


# ----------------------------------------------------------------------------------------------------------- responses

cdef ssize_t parse_response(const char* p, size_t n, head* h) noexcept nogil:
    """A response head. Bare LF is refused here: servers have no excuse."""
    cdef const char* start = p
    cdef const char* end = p + (n if n < MAX_RESPONSE_HEAD else MAX_RESPONSE_HEAD)
    cdef size_t room = <size_t>(end - p)
    cdef ssize_t used
    cdef int reason
    cdef const char* phrase
    if memcmp(p, b"HTTP/1.", room if room < 7 else 7) != 0:
        return -LB_R_BAD_RESPONSE
    if room < 13:
        return 0
    if not (lb_class[<uint8_t>p[7]] & LB_DIGIT and p[8] == c" " and lb_class[<uint8_t>p[9]] & LB_DIGIT
            and lb_class[<uint8_t>p[10]] & LB_DIGIT and lb_class[<uint8_t>p[11]] & LB_DIGIT):
        return -LB_R_BAD_RESPONSE
    h.minor = 0 if p[7] == c"0" else 1
    h.version = 10 + h.minor
    h.status = (p[9] - c"0") * 100 + (p[10] - c"0") * 10 + (p[11] - c"0")
    if h.status < 100 or h.status > 599:
        return -LB_R_BAD_RESPONSE
    p += 12
    if p[0] == c" ":
        p += 1
    elif p[0] != c"\r":  # a missing reason phrase may take its blank with it
        return -LB_R_BAD_RESPONSE
    phrase = p
    p += lb_value_run(p, <size_t>(end - p))
    if end - p < 2:
        return 0 if n <= MAX_RESPONSE_HEAD else -LB_R_RESPONSE_TOO_LARGE
    if p[0] != c"\r" or p[1] != c"\n":
        return -LB_R_BAD_RESPONSE
    h.reason_phrase.at = phrase
    h.reason_phrase.size = <uint32_t>(p - phrase)
    h.field_count = 0
    used = parse_fields(start, p + 2, end, h, MAX_FIELDS, True)
    if used == -LB_R_TOO_MANY_HEADERS:
        return -LB_R_RESPONSE_TOO_LARGE
    if used < 0:
        return -LB_R_BAD_RESPONSE
    if used == 0:
        return 0 if n < MAX_RESPONSE_HEAD else -LB_R_RESPONSE_TOO_LARGE
    reason = scan_fields(h, False)
    return -LB_R_BAD_RESPONSE if reason else used


# ------------------------------------------------------------------------------------------------- chunks and trailers

cdef int chunk_next(chunk_state* c, const char* p, size_t n, size_t* used, const char** data,
        size_t* size) noexcept nogil:
    """Go on with a chunked body (RFC 9112 7.1), without any leniency: CRLF only, no blanks, extensions bounded."""
    cdef const char* start = p
    cdef const char* end = p + n
    cdef char byte
    while p < end:
        byte = p[0]
        if c.state == CHUNK_BYTES:
            size[0] = <size_t>(end - p)
            if size[0] > c.left:
                size[0] = <size_t>c.left
            data[0] = p
            c.left -= size[0]
            c.overhead = c.overhead - <uint32_t>size[0] if size[0] < c.overhead else 0
            if c.left == 0:
                c.state = CHUNK_BYTES_CR
            used[0] = <size_t>(p - start) + size[0]
            return CHUNK_DATA
        p += 1
        if c.state == CHUNK_SIZE or c.state == CHUNK_SIZE_FIRST:
            if lb_class[<uint8_t>byte] & LB_HEX:
                c.left = (c.left << 4) | <uint64_t>lb_hexval[<uint8_t>byte]
                c.line_bytes += 1
                if c.left >> 52 or c.line_bytes > 16:
                    return CHUNK_BAD
                c.state = CHUNK_SIZE
            elif c.state == CHUNK_SIZE_FIRST:
                return CHUNK_BAD
            elif byte == c"\r":
                c.state = CHUNK_SIZE_LF
            elif byte == c";":
                c.state = CHUNK_EXTENSION
            else:
                return CHUNK_BAD
        elif c.state == CHUNK_EXTENSION:
            if byte == c"\r":
                c.state = CHUNK_SIZE_LF
                continue
            c.line_bytes += 1
            c.overhead += 1
            if c.line_bytes > MAX_CHUNK_LINE or c.overhead > MAX_CHUNK_OVERHEAD:
                return CHUNK_BAD
            if (<uint8_t>byte < 0x20 and byte != c"\t") or byte == 0x7f:
                return CHUNK_BAD
        elif c.state == CHUNK_SIZE_LF:
            if byte != c"\n":
                return CHUNK_BAD
            c.line_bytes = 0
            if c.left == 0:
                c.state = CHUNK_LAST
                used[0] = <size_t>(p - start)
                return CHUNK_TRAILERS
            c.state = CHUNK_BYTES
        elif c.state == CHUNK_BYTES_CR:
            if byte != c"\r":
                return CHUNK_BAD
            c.state = CHUNK_BYTES_LF
        elif c.state == CHUNK_BYTES_LF:
            if byte != c"\n":
                return CHUNK_BAD
            c.state = CHUNK_SIZE_FIRST
        else:
            used[0] = 0
            return CHUNK_TRAILERS
    used[0] = n
    return CHUNK_TRAILERS if c.state == CHUNK_LAST else CHUNK_MORE


cdef bint trailer_allowed(const field* f) noexcept nogil:
    """What may travel behind a body (RFC 9110 6.5.1): nothing that frames, routes, authenticates or describes the
    message.
    """
    if f.id != FIELD_OTHER or imitates_known(f.name, f.name_size):
        return False
    if f.name_size > 5 and lb_equal_nocase(f.name, b"grpc-", 5):
        return True
    if f.name_size > 2 and lb_equal_nocase(f.name, b"x-", 2):
        return True
    return (
        (f.name_size == 13 and lb_equal_nocase(f.name, b"server-timing", 13))
        or (f.name_size == 6 and lb_equal_nocase(f.name, b"digest", 6))
        or (f.name_size == 11 and lb_equal_nocase(f.name, b"repr-digest", 11))
        or (f.name_size == 14 and lb_equal_nocase(f.name, b"content-digest", 14))
        or (f.name_size == 11 and lb_equal_nocase(f.name, b"content-md5", 11))
        or (f.name_size == 4 and lb_equal_nocase(f.name, b"etag", 4))
    )


cdef ssize_t parse_trailers(const char* p, size_t n, head* h) noexcept nogil:
    """The trailer section with its empty line; fields that may not be passed on are marked to be dropped."""
    cdef ssize_t used
    cdef int i
    h.field_count = 0
    used = parse_fields(p, p, p + (n if n < MAX_TRAILERS else MAX_TRAILERS), h, 64, True)
    if used < 0 or (used == 0 and n >= MAX_TRAILERS):
        return -1
    for i in range(h.field_count):
        if not trailer_allowed(&h.fields[i]):
            h.fields[i].drop = True
    return used
