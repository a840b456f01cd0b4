"""Making and writing access log records (access.pxd)."""
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from lb._fastpath.c.sys cimport (
    EAGAIN,
    EINTR,
    close,
    errno,
    gmtime_r,
    lb_load_int,
    lb_load_ptr,
    lb_load_u64,
    lb_reason_names,
    lb_writable,
    lb_store_u64,
    lb_swap_ptr,
    nanosleep,
    timespec,
    tm,
    write,
)
from lb._fastpath.clock cimport realtime_ns
from lb._fastpath.counters cimport bump
from lb._fastpath.endpoint cimport endpoint, upstream_live
from lb._fastpath.forwarded cimport put_address
from lb._fastpath.memory cimport page, page_alloc, page_data
from lb._fastpath.proxy_protocol cimport (
    VALUE_AUTHORITY,
    VALUE_SSL_CIPHER,
    VALUE_SSL_CN,
    VALUE_SSL_VERSION,
    VALUE_UNIQUE_ID,
    proxy_find,
    proxy_value,
)
from lb._fastpath.reactor cimport current_table, reactor, refusal
from lb._fastpath.ring cimport (
    TEXT_CLIENT,
    TEXT_CLIENT_FINGERPRINT,
    TEXT_CLIENT_SAN,
    TEXT_CLIENT_SERIAL,
    TEXT_CLIENT_SUBJECT,
    TEXT_CLIENT_VERIFY,
    TEXT_SERVER_NAME,
    TEXT_TLS_CIPHER,
    TEXT_ALPN,
    TEXT_TLS_ERROR,
    TEXT_TLS_VERSION,
    TEXT_PROXY,
    TEXT_PROXY_UNIQUE_ID,
    TEXT_COUNT,
    TEXT_ENDPOINT,
    TEXT_FAILED_ATTEMPTS,
    TEXT_HOST,
    TEXT_LISTENER,
    TEXT_METHOD,
    TEXT_REFERER,
    TEXT_REQUEST_ID,
    TEXT_ROUTE,
    TEXT_TARGET,
    TEXT_UPSTREAM,
    TEXT_USER_AGENT,
    TEXT_VIRTUAL_HOST,
    VERSION_TCP,
    VERSION_UDP,
    log_record,
    ring,
    ring_commit,
    ring_half_full,
    ring_reserve,
)
from lb._fastpath.table cimport table, text_at
from lb._fastpath.tls cimport client_text, tls, tls_cipher, tls_version
from lb._fastpath.transport cimport conn, kept_values

cdef enum:
    BUFFER_BYTES = 262144
    RECORD_ROOM = 131072  # no formatted record is longer: texts are cut at TEXT_LIMIT
    TEXT_LIMIT = 8192
    SLEEP_NS = 20000000
    PATIENCE_MS = 1000
    LAST_PATIENCE_MS = 50
    FAILED_ATTEMPTS_BYTES = 960  # what the smallest page has room for: a dozen attempts


# ------------------------------------------------------------------------------------------------------- in the reactor

cdef void note_failed_attempt(reactor* r, page** kept, const endpoint* ep, int reason) noexcept nogil:
    """Keep for the record that an attempt has failed, before lb tries again. As a text: the endpoint may be gone by the
    time a tunnel or a flow ends. Of too many the first ones, which say where the trouble began.
    """
    cdef const char* why = lb_reason_names[reason]
    cdef uint32_t size = size_of(why)
    cdef char* out
    if not r.s.logging:
        return
    if kept[0] == NULL:
        kept[0] = page_alloc(&r.pages, FAILED_ATTEMPTS_BYTES)
    if kept[0] == NULL or kept[0].end + ep.key_size + size + 3 > FAILED_ATTEMPTS_BYTES:
        return
    out = page_data(kept[0]) + kept[0].end
    if kept[0].end:
        out = put(out, b", ", 2)
    out = put(out, ep.key, ep.key_size)
    out = put(out, b" ", 1)
    out = put(out, why, size)
    kept[0].end = <uint32_t>(out - page_data(kept[0]))


cdef char* put(char* out, const char* text, uint32_t size) noexcept nogil:
    memcpy(out, text, size)
    return out + size


cdef void log_exchange(exchange* x, int64_t duration) noexcept nogil:
    """Put a record into the reactor's ring; count it when there is no room."""
    cdef const char* at[TEXT_COUNT]
    cdef uint32_t sizes[TEXT_COUNT]
    cdef log_record* record
    cdef const char* texts = page_data(x.request) if x.request != NULL else NULL
    cdef char proxy[46]
    cdef int i
    for i in range(TEXT_COUNT):
        at[i] = NULL
        sizes[i] = x.text_sizes[i]
        if sizes[i]:
            at[i] = texts
            texts += sizes[i]
            if sizes[i] > TEXT_LIMIT:
                sizes[i] = TEXT_LIMIT
    at[TEXT_CLIENT] = x.client_text
    sizes[TEXT_CLIENT] = x.client_text_size
    at[TEXT_LISTENER] = x.listener_name
    sizes[TEXT_LISTENER] = x.listener_name_size
    at[TEXT_REQUEST_ID] = x.request_id
    sizes[TEXT_REQUEST_ID] = x.request_id_size
    if x.host != NULL:
        at[TEXT_VIRTUAL_HOST] = text_at(x.host, x.host.hostname)
        sizes[TEXT_VIRTUAL_HOST] = x.host.hostname.size
        if x.rt != NULL:
            at[TEXT_ROUTE] = text_at(x.host, x.rt.name)
            sizes[TEXT_ROUTE] = x.rt.name.size
    if x.live != NULL:
        at[TEXT_UPSTREAM] = x.live.name
        sizes[TEXT_UPSTREAM] = x.live.name_size
    if x.ep != NULL:
        at[TEXT_ENDPOINT] = x.ep.key
        sizes[TEXT_ENDPOINT] = x.ep.key_size
    note_failed(x.failed_attempts, at, sizes)
    note_proxy(x.client, proxy, at, sizes)
    if x.tls != NULL:
        note_tls(x.tls, at, sizes)
    record = begin_record(x.r, at, sizes)
    if record == NULL:
        return
    record.status = x.status
    record.end_realtime_ns = realtime_ns()
    record.duration_ns = duration
    record.queue_ns = x.queued_ns
    record.connect_ns = x.connect_ns
    record.first_byte_ns = x.first_byte_ns
    record.bytes_in = x.bytes_in
    record.bytes_out = x.bytes_out
    record.generation = x.generation
    record.client_port = x.client_port
    record.reason = x.reason
    record.attempts = x.attempts
    record.version = x.version
    record.grpc_status = x.grpc_status
    ring_commit(&x.r.log, record.size)


cdef log_record* begin_record(reactor* r, const char** at, const uint32_t* sizes) noexcept nogil:
    """Room for a record, with its texts in place; NULL, and counted, when there is none. ring_commit makes it count."""
    cdef uint64_t total = sizeof(log_record)
    cdef log_record* record
    cdef char* room
    cdef int i
    for i in range(TEXT_COUNT):
        total += sizes[i]
    total = (total + 7) & ~(<uint64_t>7)
    room = ring_reserve(&r.log, total)
    if room == NULL:
        bump(&r.counts.log_dropped)
        return NULL
    record = <log_record*>room
    record.size = <uint32_t>total
    room += sizeof(log_record)
    for i in range(TEXT_COUNT):
        record.text_sizes[i] = sizes[i]
        if sizes[i]:
            memcpy(room, at[i], sizes[i])
            room += sizes[i]
    return record


cdef void log_flow(const flow* f, int64_t duration) noexcept nogil:
    """The same for a connection whose bytes were only carried: of what HTTP would say there is nothing."""
    cdef const char* at[TEXT_COUNT]
    cdef uint32_t sizes[TEXT_COUNT]
    cdef char client[46]
    cdef char proxy[46]
    cdef log_record* record
    memset(at, 0, sizeof(at))
    memset(sizes, 0, sizeof(sizes))
    if not f.d.local:
        at[TEXT_CLIENT] = client
        sizes[TEXT_CLIENT] = <uint32_t>put_address(client, f.d.peer)
    at[TEXT_LISTENER] = f.d.listener_name
    sizes[TEXT_LISTENER] = f.d.listener_name_size
    at[TEXT_ROUTE] = f.route_name
    sizes[TEXT_ROUTE] = f.route_name_size
    note_way(at, sizes, f.live, f.ep)
    note_failed(f.failed_attempts, at, sizes)
    at[TEXT_REQUEST_ID] = <const char*>f.unique_id
    sizes[TEXT_REQUEST_ID] = f.unique_id_size
    note_proxy(f.d, proxy, at, sizes)
    note_hello(f.d, at, sizes)
    if f.d.tls != NULL:
        note_tls(f.d.tls, at, sizes)
    record = begin_record(f.r, at, sizes)
    if record == NULL:
        return
    record.status = 0
    record.end_realtime_ns = realtime_ns()
    record.duration_ns = duration
    record.queue_ns = 0
    record.connect_ns = f.connect_ns
    record.first_byte_ns = f.first_byte_ns
    record.bytes_in = f.bytes_in
    record.bytes_out = f.bytes_out
    record.generation = f.generation
    record.client_port = f.d.peer_port
    record.reason = f.reason
    record.attempts = f.attempts
    record.version = VERSION_TCP
    record.grpc_status = -1
    ring_commit(&f.r.log, record.size)


cdef void note_way(
    const char** at, uint32_t* sizes, const upstream_live* live, const endpoint* ep
) noexcept nogil:
    """Where it went, as far as it came."""
    if live != NULL:
        at[TEXT_UPSTREAM] = live.name
        sizes[TEXT_UPSTREAM] = live.name_size
    if ep != NULL:
        at[TEXT_ENDPOINT] = ep.key
        sizes[TEXT_ENDPOINT] = ep.key_size


cdef void note_failed(page* kept, const char** at, uint32_t* sizes) noexcept nogil:
    if kept != NULL:
        at[TEXT_FAILED_ATTEMPTS] = page_data(kept)
        sizes[TEXT_FAILED_ATTEMPTS] = kept.end


cdef void log_session(const session* s, int64_t duration) noexcept nogil:
    """The same for a UDP session."""
    cdef const char* at[TEXT_COUNT]
    cdef uint32_t sizes[TEXT_COUNT]
    cdef char client[46]
    cdef log_record* record
    memset(at, 0, sizeof(at))
    memset(sizes, 0, sizeof(sizes))
    at[TEXT_CLIENT] = client
    sizes[TEXT_CLIENT] = <uint32_t>put_address(client, s.peer)
    at[TEXT_LISTENER] = s.listener_name
    sizes[TEXT_LISTENER] = s.listener_name_size
    at[TEXT_ROUTE] = s.route_name
    sizes[TEXT_ROUTE] = s.route_name_size
    note_way(at, sizes, s.live, s.ep)
    note_failed(s.failed_attempts, at, sizes)
    record = begin_record(s.base.r, at, sizes)
    if record == NULL:
        return
    record.status = 0
    record.end_realtime_ns = realtime_ns()
    record.duration_ns = duration
    record.queue_ns = 0
    record.connect_ns = 0
    record.first_byte_ns = s.first_byte_ns
    record.bytes_in = s.bytes_in
    record.bytes_out = s.bytes_out
    record.generation = s.generation
    record.client_port = s.peer_port
    record.reason = s.reason
    record.attempts = s.attempts
    record.version = VERSION_UDP
    record.grpc_status = -1
    ring_commit(&s.base.r.log, record.size)


cdef void log_refusal(reactor* r, const refusal* what) noexcept nogil:
    """The same for a client that is turned away: nobody else could tell why it does not get in.

    It costs a client nothing to be refused, so it is not for these records to push out those of who is served.
    """
    cdef const table* t = current_table(r)
    cdef const char* at[TEXT_COUNT]
    cdef uint32_t sizes[TEXT_COUNT]
    cdef char client[46]
    cdef char proxy[46]
    cdef log_record* record
    if ring_half_full(&r.log):
        bump(&r.counts.log_dropped)
        return
    memset(at, 0, sizeof(at))
    memset(sizes, 0, sizeof(sizes))
    if what.peer != NULL:
        at[TEXT_CLIENT] = client
        sizes[TEXT_CLIENT] = <uint32_t>put_address(client, what.peer)
    at[TEXT_LISTENER] = what.listener_name
    sizes[TEXT_LISTENER] = what.listener_name_size
    if what.client != NULL:
        note_refused(<const conn*>what.client, proxy, at, sizes)
    record = begin_record(r, at, sizes)
    if record == NULL:
        return
    record.status = what.status
    record.end_realtime_ns = realtime_ns()
    record.duration_ns = 0
    record.queue_ns = 0
    record.connect_ns = 0
    record.first_byte_ns = -1
    record.bytes_in = 0
    record.bytes_out = 0
    record.generation = t.generation if t != NULL else 0
    record.client_port = what.port
    record.reason = <uint16_t>what.reason
    record.attempts = 0
    record.version = <uint16_t>what.version
    record.grpc_status = -1
    ring_commit(&r.log, record.size)


cdef void note_refused(const conn* c, char* proxy, const char** at, uint32_t* sizes) noexcept nogil:
    """What a client has said before it was refused."""
    note_proxy(c, proxy, at, sizes)
    note_hello(c, at, sizes)
    if c.tls != NULL:
        at[TEXT_SERVER_NAME] = c.tls.sni
        sizes[TEXT_SERVER_NAME] = c.tls.sni_size
        if c.tls.why != NULL:
            at[TEXT_TLS_ERROR] = c.tls.why
            sizes[TEXT_TLS_ERROR] = size_of(c.tls.why)


cdef void note_hello(const conn* c, const char** at, uint32_t* sizes) noexcept nogil:
    if c.hello != NULL:
        at[TEXT_SERVER_NAME] = c.hello.name
        sizes[TEXT_SERVER_NAME] = c.hello.name_size
        at[TEXT_ALPN] = c.hello.protocols
        sizes[TEXT_ALPN] = c.hello.protocols_size


cdef void note_tls(const tls* t, const char** at, uint32_t* sizes) noexcept nogil:
    at[TEXT_TLS_VERSION] = tls_version(t)
    sizes[TEXT_TLS_VERSION] = size_of(at[TEXT_TLS_VERSION])
    at[TEXT_TLS_CIPHER] = tls_cipher(t)
    sizes[TEXT_TLS_CIPHER] = size_of(at[TEXT_TLS_CIPHER])
    at[TEXT_SERVER_NAME] = t.sni
    sizes[TEXT_SERVER_NAME] = t.sni_size
    if t.client != NULL:
        note_client(TEXT_CLIENT_SUBJECT, t.client.subject, at, sizes)
        note_client(TEXT_CLIENT_VERIFY, t.client.verify, at, sizes)
        note_client(TEXT_CLIENT_SERIAL, t.client.serial, at, sizes)
        note_client(TEXT_CLIENT_FINGERPRINT, t.client.fingerprint, at, sizes)
        note_client(TEXT_CLIENT_SAN, t.client.san, at, sizes)


cdef void note_proxy(const conn* c, char* proxy, const char** at, uint32_t* sizes) noexcept nogil:
    """What a PROXY header has said: of TLS, if lb itself does not speak it. `proxy` has room for an address."""
    cdef proxy_value values
    if c.proxied == NULL:
        return
    if c.proxied.proxy_known:
        at[TEXT_PROXY] = proxy
        sizes[TEXT_PROXY] = <uint32_t>put_address(proxy, c.proxied.proxy)
    values = kept_values(c)
    if values.size == 0:
        return
    note_value(TEXT_PROXY_UNIQUE_ID, proxy_find(&values, VALUE_UNIQUE_ID), at, sizes)
    if c.tls == NULL:  # what lb has seen itself is put over it
        note_value(TEXT_SERVER_NAME, proxy_find(&values, VALUE_AUTHORITY), at, sizes)
        note_value(TEXT_TLS_VERSION, proxy_find(&values, VALUE_SSL_VERSION), at, sizes)
        note_value(TEXT_TLS_CIPHER, proxy_find(&values, VALUE_SSL_CIPHER), at, sizes)
        note_value(TEXT_CLIENT_SUBJECT, proxy_find(&values, VALUE_SSL_CN), at, sizes)


cdef void note_value(int text, proxy_value value, const char** at, uint32_t* sizes) noexcept nogil:
    if value.size:
        at[text] = <const char*>value.at
        sizes[text] = value.size


cdef void note_client(int text, client_text value, const char** at, uint32_t* sizes) noexcept nogil:
    """Cut: a certificate has texts of any length, and the writer has room for so much of each."""
    at[text] = value.at
    sizes[text] = value.size if value.size < TEXT_LIMIT else TEXT_LIMIT


cdef uint32_t size_of(const char* text) noexcept nogil:
    cdef uint32_t size = 0
    while text[size]:
        size += 1
    return size


# ------------------------------------------------------------------------------------------------ in the writer thread

cdef void log_program_free(log_program* p) noexcept nogil:
    if p == NULL:
        return
    if p.fd >= 0:
        close(p.fd)
    free(p.steps)
    free(p.literals)
    free(p)


cdef void flush(log_writer* w) noexcept nogil:
    """Write the buffer out. A disk that is full or a reader that stands still costs the records, not the daemon."""
    cdef uint32_t at = 0
    cdef long n
    while at < w.used and w.program != NULL and w.program.fd >= 0:
        # A pipe may block for ever when its reader stands still, and making it non-blocking would change it for
        # everybody who shares it: so ask first, and write no more than a pipe takes whole once it says that it takes
        # some (pipe(7)).
        if not lb_writable(w.program.fd, PATIENCE_MS if lb_load_int(&w.running) else LAST_PATIENCE_MS):
            w.failed += 1
            break
        n = write(w.program.fd, w.buffer + at, w.used - at if w.used - at < w.program.most else w.program.most)
        if n > 0:
            at += <uint32_t>n
        elif n < 0 and (errno == EINTR or errno == EAGAIN):
            continue
        else:
            w.failed += 1
            break
    w.used = 0


cdef void put_bytes(log_writer* w, const char* data, uint32_t size) noexcept nogil:
    memcpy(w.buffer + w.used, data, size)
    w.used += size


cdef void put_escaped(log_writer* w, const char* data, uint32_t size, int escape) noexcept nogil:
    """JSON: what a JSON string needs, and \\u00XX for bytes outside ASCII, which no text here promises to be UTF-8.
    CLF: \\xXX as Apache.
    """
    cdef uint32_t i
    cdef uint8_t byte
    cdef const char* digits = b"0123456789abcdef"
    cdef char* out = w.buffer + w.used
    if size == 0 and escape == ESCAPE_CLF:
        out[0] = c"-"
        w.used += 1
        return
    for i in range(size):
        byte = <uint8_t>data[i]
        if escape == ESCAPE_RAW or (0x20 <= byte < 0x7f and byte != c"\"" and byte != c"\\"):
            out[0] = <char>byte
            out += 1
        elif byte == c"\"" or byte == c"\\":
            out[0] = c"\\"
            out[1] = <char>byte
            out += 2
        elif escape == ESCAPE_JSON:
            memcpy(out, b"\\u00", 4)
            out[4] = digits[byte >> 4]
            out[5] = digits[byte & 15]
            out += 6
        else:
            out[0] = c"\\"
            out[1] = c"x"
            out[2] = digits[byte >> 4]
            out[3] = digits[byte & 15]
            out += 4
    w.used = <uint32_t>(out - w.buffer)


cdef void put_seconds(log_writer* w, int64_t ns, int escape) noexcept nogil:
    """Seconds with six digits; what did not happen is `null` in JSON and `-` elsewhere."""
    if ns < 0:
        if escape == ESCAPE_JSON:
            put_bytes(w, b"null", 4)
        else:
            put_bytes(w, b"-", 1)
        return
    w.used += <uint32_t>snprintf(w.buffer + w.used, 40, b"%lld.%06lld", <long long>(ns // 1000000000),
            <long long>(ns % 1000000000 // 1000))


cdef void put_number(log_writer* w, uint64_t value) noexcept nogil:
    w.used += <uint32_t>snprintf(w.buffer + w.used, 24, b"%llu", <unsigned long long>value)


cdef void put_time(log_writer* w, int64_t realtime, bint clf) noexcept nogil:
    cdef long second = <long>(realtime // 1000000000)
    cdef tm t
    if second != w.clock_second:
        w.clock_second = second
        gmtime_r(&second, &t)
        snprintf(
            w.clock_iso, sizeof(w.clock_iso), b"%04d-%02d-%02dT%02d:%02d:%02d",
            t.tm_year + 1900, t.tm_mon + 1, t.tm_mday, t.tm_hour, t.tm_min, t.tm_sec
        )
        snprintf(
            w.clock_clf, sizeof(w.clock_clf), b"%02d/%.3s/%04d:%02d:%02d:%02d +0000",
            t.tm_mday, <const char*>b"JanFebMarAprMayJunJulAugSepOctNovDec" + 3 * t.tm_mon, t.tm_year + 1900,
            t.tm_hour, t.tm_min, t.tm_sec
        )
    if clf:
        put_bytes(w, w.clock_clf, 26)
    else:
        put_bytes(w, w.clock_iso, 19)
        w.used += <uint32_t>snprintf(w.buffer + w.used, 8, b".%03dZ", <int>(realtime // 1000000 % 1000))


cdef int text_of(int field) noexcept nogil:
    """Which text of a record holds the field; -1: it is no text."""
    if field == LOG_CLIENT:
        return TEXT_CLIENT
    if field == LOG_LISTENER:
        return TEXT_LISTENER
    if field == LOG_METHOD:
        return TEXT_METHOD
    if field == LOG_HOST:
        return TEXT_HOST
    if field == LOG_TARGET:
        return TEXT_TARGET
    if field == LOG_VIRTUAL_HOST:
        return TEXT_VIRTUAL_HOST
    if field == LOG_ROUTE:
        return TEXT_ROUTE
    if field == LOG_UPSTREAM:
        return TEXT_UPSTREAM
    if field == LOG_ENDPOINT:
        return TEXT_ENDPOINT
    if field == LOG_FAILED_ATTEMPTS:
        return TEXT_FAILED_ATTEMPTS
    if field == LOG_REQUEST_ID:
        return TEXT_REQUEST_ID
    if field == LOG_USER_AGENT:
        return TEXT_USER_AGENT
    if field == LOG_REFERER:
        return TEXT_REFERER
    if field == LOG_TLS_VERSION:
        return TEXT_TLS_VERSION
    if field == LOG_TLS_CIPHER:
        return TEXT_TLS_CIPHER
    if field == LOG_SERVER_NAME:
        return TEXT_SERVER_NAME
    if field == LOG_CLIENT_SUBJECT:
        return TEXT_CLIENT_SUBJECT
    if field == LOG_CLIENT_VERIFY:
        return TEXT_CLIENT_VERIFY
    if field == LOG_CLIENT_SERIAL:
        return TEXT_CLIENT_SERIAL
    if field == LOG_CLIENT_FINGERPRINT:
        return TEXT_CLIENT_FINGERPRINT
    if field == LOG_CLIENT_SAN:
        return TEXT_CLIENT_SAN
    if field == LOG_TLS_ERROR:
        return TEXT_TLS_ERROR
    if field == LOG_ALPN:
        return TEXT_ALPN
    if field == LOG_PROXY:
        return TEXT_PROXY
    if field == LOG_PROXY_UNIQUE_ID:
        return TEXT_PROXY_UNIQUE_ID
    return -1


cdef void put_field(log_writer* w, const log_record* record, const char** texts, const log_step* step) noexcept nogil:
    cdef int text = text_of(step.field)
    cdef const char* name
    cdef uint32_t size = 0
    if text >= 0:
        put_escaped(w, texts[text], record.text_sizes[text], step.escape)
    elif step.field == LOG_TIME or step.field == LOG_TIME_CLF:
        put_time(w, record.end_realtime_ns, step.field == LOG_TIME_CLF)
    elif step.field == LOG_STATUS:
        put_number(w, <uint64_t>record.status)
    elif step.field == LOG_CLIENT_PORT:
        put_number(w, record.client_port)
    elif step.field == LOG_BYTES_IN:
        put_number(w, record.bytes_in)
    elif step.field == LOG_BYTES_OUT:
        put_number(w, record.bytes_out)
    elif step.field == LOG_ATTEMPTS:
        put_number(w, record.attempts)
    elif step.field == LOG_GENERATION:
        put_number(w, record.generation)
    elif step.field == LOG_DURATION:
        put_seconds(w, record.duration_ns, step.escape)
    elif step.field == LOG_FIRST_BYTE:
        put_seconds(w, record.first_byte_ns, step.escape)
    elif step.field == LOG_CONNECT:
        put_seconds(w, record.connect_ns, step.escape)
    elif step.field == LOG_QUEUE:
        put_seconds(w, record.queue_ns, step.escape)
    elif step.field == LOG_GRPC_STATUS:
        if record.grpc_status >= 0:
            put_number(w, <uint64_t>record.grpc_status)
        elif step.escape == ESCAPE_JSON:
            put_bytes(w, b"null", 4)
        else:
            put_bytes(w, b"-", 1)
    elif step.field == LOG_PROTOCOL:
        put_protocol(w, record.version)
    elif step.field == LOG_REASON:
        name = lb_reason_names[record.reason]
        while name[size]:
            size += 1
        put_bytes(w, name, size)


cdef void put_protocol(log_writer* w, int version) noexcept nogil:
    if version == 20:
        put_bytes(w, b"HTTP/2.0", 8)
    elif version == 10:
        put_bytes(w, b"HTTP/1.0", 8)
    elif version == 11:
        put_bytes(w, b"HTTP/1.1", 8)
    elif version == VERSION_UDP:
        put_bytes(w, b"UDP", 3)
    else:
        put_bytes(w, b"TCP", 3)


cdef void put_record(log_writer* w, const log_record* record) noexcept nogil:
    cdef const char* texts[TEXT_COUNT]
    cdef const char* at = <const char*>record + sizeof(log_record)
    cdef uint32_t i
    cdef const log_step* step
    for i in range(TEXT_COUNT):
        texts[i] = at
        at += record.text_sizes[i]
    for i in range(w.program.count):
        # A program that names long texts often may need more than is left: send what there is and go on.
        if w.used > BUFFER_BYTES - RECORD_ROOM:
            flush(w)
        step = &w.program.steps[i]
        if step.field == LOG_LITERAL:
            put_bytes(w, w.program.literals + step.at, step.size)
        else:
            put_field(w, record, texts, step)
    w.written += 1


cdef bint take_records(log_writer* w, ring* q) noexcept nogil:
    cdef uint64_t written = lb_load_u64(&q.written)
    cdef uint64_t at
    cdef const log_record* record
    if q.taken == written:
        return False
    while q.taken != written:
        at = q.taken & (q.size - 1)
        record = <const log_record*>(q.data + at)
        if record.size == 0:
            lb_store_u64(&q.taken, q.taken + (q.size - at))
            continue
        put_record(w, record)
        lb_store_u64(&q.taken, q.taken + record.size)
    return True


cdef bint writes(const log_writer* w) noexcept nogil:
    return w.program != NULL and w.program.count != 0


cdef void change_program(log_writer* w) noexcept nogil:
    if lb_load_ptr(&w.incoming) != NULL:
        log_program_free(w.program)
        w.program = <log_program*>lb_swap_ptr(&w.incoming, NULL)


cdef void* log_main(void* argument) noexcept nogil:
    cdef log_writer* w = <log_writer*>argument
    cdef timespec pause
    cdef bint busy, running = True
    cdef uint64_t asked
    cdef int i
    while running:
        running = lb_load_int(&w.running)
        asked = lb_load_u64(&w.flush_asked)
        busy = False
        # Records are there only since somebody has asked for them: where nothing is written yet, they are for the
        # program that comes, and wait in the ring until it is seen.
        if not writes(w):
            change_program(w)
        for i in range(w.s.reactor_count):
            if writes(w) and take_records(w, &w.s.reactors[i].log):
                busy = True
        if w.used:
            flush(w)
        # What was logged before a change has gone to the old place.
        change_program(w)
        lb_store_u64(&w.flush_done, asked)
        if not busy and running:
            pause.tv_sec = 0
            pause.tv_nsec = SLEEP_NS
            nanosleep(&pause, NULL)
    return NULL
