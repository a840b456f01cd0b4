"""lb's own answers (answers.pxd)."""
from libc.stdint cimport int64_t, uint16_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy

from lb._fastpath.c.sys cimport LB_R_LOCAL_ANSWER, LB_R_METHOD_REFUSED, gmtime_r, lb_reason_names, tm
from lb._fastpath.clock cimport realtime_ns
from lb._fastpath.exchange cimport (
    X_GRPC,
    X_HAS_BODY,
    X_HEAD,
    X_JSON,
    X_REQUEST_DONE,
    X_RESPONSE_DONE,
    X_RESPONSE_STARTED,
)
from lb._fastpath.grpc cimport grpc_status_of
from lb._fastpath.message cimport head_add, status_phrase
from lb._fastpath.reactor cimport error_answer, shared
from lb._fastpath.transport cimport LEG_CLOSE, batch_flush


cdef size_t append(char* out, size_t at, size_t limit, const char* text, size_t size) noexcept nogil:
    if at + size > limit:
        size = limit - at
    memcpy(out + at, text, size)
    return at + size


cdef size_t append_text(char* out, size_t at, size_t limit, const char* text) noexcept nogil:
    cdef size_t size = 0
    while text[size]:
        size += 1
    return append(out, at, limit, text, size)


cdef size_t fill_in(exchange* x, char* out, size_t limit, const char* text, size_t size, int status,
        int reason) noexcept nogil:
    """An error body with its %(status), %(title), %(reason) and %(request_id) filled in."""
    cdef size_t i = 0, at = 0
    cdef char number[12]
    while i < size:
        if text[i] == c"%" and size - i >= 9 and memcmp(text + i, <const char*>b"%(status)", 9) == 0:
            snprintf(number, sizeof(number), b"%d", status)
            at = append_text(out, at, limit, number)
            i += 9
        elif text[i] == c"%" and size - i >= 8 and memcmp(text + i, <const char*>b"%(title)", 8) == 0:
            at = append_text(out, at, limit, status_phrase(status))
            i += 8
        elif text[i] == c"%" and size - i >= 9 and memcmp(text + i, <const char*>b"%(reason)", 9) == 0:
            at = append_text(out, at, limit, lb_reason_names[reason])
            i += 9
        elif text[i] == c"%" and size - i >= 13 and memcmp(text + i, <const char*>b"%(request_id)", 13) == 0:
            at = append(out, at, limit, x.request_id, x.request_id_size)
            i += 13
        else:
            at = append(out, at, limit, text + i, 1)
            i += 1
    return at


cdef error_answer* find_error_answer(shared* s, int status) noexcept nogil:
    cdef error_answer* a = s.error_answers
    cdef error_answer* general = NULL
    while a != NULL:
        if a.status == status:
            return a
        if a.status == 0:
            general = a
        a = a.next
    return general


cdef const char* http_date(reactor* r) noexcept nogil:
    """The time in RFC 9110 5.6.7 form, made once a second."""
    cdef long seconds = <long>(realtime_ns() // 1000000000)
    cdef tm parts
    if seconds != r.date_second:
        r.date_second = seconds
        gmtime_r(&seconds, &parts)
        snprintf(
            r.date, sizeof(r.date), b"%.3s, %02d %.3s %04d %02d:%02d:%02d GMT",
            <const char*>b"SunMonTueWedThuFriSat" + 3 * parts.tm_wday, parts.tm_mday,
            <const char*>b"JanFebMarAprMayJunJulAugSepOctNovDec" + 3 * parts.tm_mon, parts.tm_year + 1900,
            parts.tm_hour, parts.tm_min, parts.tm_sec
        )
    return r.date


cdef head* begin(exchange* x, int status) noexcept nogil:
    cdef head* h = &x.r.answer
    h.field_count = 0
    h.status = status
    h.reason_phrase.at = NULL
    h.reason_phrase.size = 0
    h.content_length = 0
    h.chunked = False
    h.has_body = True
    h.upgrade = False
    batch_flush(x.r)
    return h


cdef void send(exchange* x, head* h, const char* body, size_t size) noexcept nogil:
    head_add(h, b"Date", 4, http_date(x.r), 29)
    head_add(h, b"X-Request-ID", 12, x.request_id, x.request_id_size)
    x.status = <uint16_t>h.status
    x.flags |= X_RESPONSE_STARTED | X_RESPONSE_DONE
    if x.flags & X_HAS_BODY and not x.flags & X_REQUEST_DONE:
        x.d.flags |= LEG_CLOSE
    x.bytes_out += x.d.calls.send_head(x.d, h)
    if size and not x.flags & X_HEAD:
        x.d.calls.send_body(x.d, body, size)
        x.bytes_out += size
    x.d.calls.send_end(x.d, NULL)
    batch_flush(x.r)


cdef void send_answer(exchange* x, int status, int reason, const char* body, size_t size) noexcept nogil:
    """An answer with this status. Without a body a small one is made, except for a success."""
    cdef head* h
    cdef const char* content_type = b"text/plain; charset=utf-8"
    cdef size_t type_size = 25
    if x.flags & X_GRPC and reason != LB_R_LOCAL_ANSWER:
        send_grpc_error(x, status, reason)
        return
    h = begin(x, status)
    if status == 204 or status == 304:
        size = 0  # RFC 9110 15.3.5, 15.4.5
    if size == 0 and status >= 400:
        body = error_body(x, status, reason, &size, &content_type, &type_size)
    h.content_length = <int64_t>size if status != 304 else -1
    if size:
        head_add(h, b"Content-Type", 12, content_type, type_size)
    if reason == LB_R_METHOD_REFUSED:
        head_add(h, b"Allow", 5, b"GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH, TRACE", 51)
    if status == 503:
        head_add(h, b"Retry-After", 11, b"5", 1)
    send(x, h, body, size)


cdef const char* error_body(exchange* x, int status, int reason, size_t* size, const char** content_type,
        size_t* type_size) noexcept nogil:
    """The body of an error, made in scratch_text: the request's head has been used, or there was none."""
    cdef error_answer* custom
    cdef const char* text
    cdef size_t text_size = 0
    if x.flags & X_JSON:
        text = (
            b"{\"status\":%(status),\"title\":\"%(title)\","
            b"\"reason\":\"%(reason)\",\"request_id\":\"%(request_id)\"}\n"
        )
        content_type[0] = b"application/json"
        type_size[0] = 16
    else:
        custom = find_error_answer(x.r.s, status)
        if custom != NULL:
            content_type[0] = custom.content_type
            type_size[0] = custom.content_type_size
            size[0] = fill_in(x, x.r.scratch_text, 32768, custom.body, custom.body_size, status, reason)
            return x.r.scratch_text
        text = b"%(status) %(title): %(reason)\nrequest id: %(request_id)\n"
    while text[text_size]:
        text_size += 1
    size[0] = fill_in(x, x.r.scratch_text, 32768, text, text_size, status, reason)
    return x.r.scratch_text


cdef void send_grpc_error(exchange* x, int status, int reason) noexcept nogil:
    """Trailers-Only (gRPC PROTOCOL-HTTP2.md, Responses): the status in the head, and nothing behind it."""
    cdef head* h = begin(x, 200)
    cdef char* text = x.r.scratch_text
    cdef size_t at
    cdef int number
    x.grpc_status = <signed char>grpc_status_of(status, reason)
    h.content_length = -1
    h.has_body = False
    head_add(h, b"Content-Type", 12, x.grpc_type, x.grpc_type_size)
    number = snprintf(text, 16, b"%d", x.grpc_status)
    head_add(h, b"grpc-status", 11, text, <size_t>number)
    # Names of reasons need no percent-encoding.
    at = append_text(text, 16, 1024, b"lb: ")
    at = append_text(text, at, 1024, lb_reason_names[reason])
    head_add(h, b"grpc-message", 12, text + 16, at - 16)
    send(x, h, NULL, 0)


cdef void send_redirect(exchange* x, const head* asked) noexcept nogil:
    """The same URL by https, on the port where lb serves it."""
    cdef head* h = begin(x, x.rt.https_redirect)
    cdef char* text = x.r.scratch_out + 32768  # behind what the head will be built in; the URL fits twice
    cdef size_t size = 8
    cdef size_t host_size = asked.host.size
    while host_size and asked.host.at[host_size - 1] != c":" and asked.host.at[host_size - 1] != c"]":
        host_size -= 1
    if host_size and asked.host.at[host_size - 1] == c":":
        host_size -= 1
    elif host_size == 0 or asked.host.at[host_size - 1] != c"]":
        host_size = asked.host.size  # no port
    memcpy(text, b"https://", 8)
    memcpy(text + size, asked.host.at, host_size)
    size += host_size
    if x.view.https_port and x.view.https_port != 443:
        size += <size_t>snprintf(text + size, 8, b":%d", x.view.https_port)
    memcpy(text + size, asked.target.at, asked.target.size)
    size += asked.target.size
    head_add(h, b"Location", 8, text, size)
    send(x, h, NULL, 0)
