"""HTTP/2 connections on libnghttp2's sessions: what both sides have in common.

nghttp2 knows frames, HPACK and flow control; this file feeds it bytes, collects what it wants to say, and carries one
exchange on each stream (a `leg`, like an HTTP/1 connection). The two sides are http2_server.pyx and http2_client.pyx.

Output is gathered: what happens on streams marks the connection, and the run queue makes all of a turn into one write.
Only bodies of 8 KiB and more go out at once, straight from where they were read. What is not sent yet waits in pages of
its stream, and who feeds the stream stops (`full`) when there is too much of it.

Input: a stream's bytes go to its exchange at once unless that cannot take them. Then they wait in pages of the stream,
and its flow-control window stays closed by as much. The connection's own window is given back at once, so that a stream
that stands still holds up nobody else. A stream begins with a small window, so that many of them cannot bring much that
nobody wants yet, and has the large one when its exchange has taken as much without a pause.

No callback of nghttp2 may end a connection or a session, so what they find out is noted (`marked`) and handled when
nghttp2 has returned (session_settle).
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from lb._fastpath.c.sys cimport ssize_t

from lb._fastpath.c.nghttp2 cimport nghttp2_data_source, nghttp2_session, nghttp2_session_callbacks
from lb._fastpath.http2_fields cimport ACCEPT_SIZE, field_block
from lb._fastpath.http2_meter cimport PREFACE_SIZE, meter
from lb._fastpath.memory cimport page
from lb._fastpath.message cimport head
from lb._fastpath.transport cimport conn, exchange_calls, leg, outgoing

cdef enum:
    FIRST_WINDOW = 65535
    STREAM_WINDOW = 262144
    CONNECTION_WINDOW = 1048576
    MAX_STREAMS = 128  # of one client at the same time
    STREAM_HIGH_WATER = 65536  # of one stream waits to be written: whoever feeds it stops
    STREAM_LOW_WATER = 16384  # go on
    DIRECT_BYTES = 8192  # bodies from here on are sent from where they are
    # Header blocks that go out, as nghttp2 estimates them: any head that may come in. Over it, nghttp2 drops the block
    # in silence, and its stream would wait for ever.
    MAX_SENT_BLOCK = 262144
    CONTROL_QUEUE = 64  # frames that wait to be written: nothing is read before they are out

cdef enum:  # conn.state
    HTTP2_OPEN = 32
    HTTP2_CLOSING  # GOAWAY is the last that is written
    HTTP2_LINGER  # all is written; what still comes is thrown away

cdef enum:  # session.flags
    S_RECEIVING = 1  # inside nghttp2_session_mem_recv
    S_SENDING = 2  # inside nghttp2_session_mem_send
    S_NOTICED = 4  # said that it will go away
    S_FINAL = 8  # said what the last stream is
    S_PEER_AWAY = 16  # the peer has said GOAWAY
    S_TOLD_AWAY = 32  # client side: the pool knows that nothing more can begin
    S_STREAM_ENDED = 64  # client side: the pool is to be told
    S_DOOMED = 128  # client side: to be closed when nghttp2 has returned
    S_CLIENT = 256
    S_PING_ACKED = 512
    S_SETTLED = 1024  # client side: the peer's settings are known
    S_BEGUN = 2048  # and those who have waited for them have begun
    S_TOLD_END = 4096  # nghttp2 itself has told the peer why this is the end
    S_SPOKEN = 8192  # something has been sent, SETTINGS first

cdef enum:  # stream.flags
    ST_HELD = 1  # an exchange has the leg
    ST_OPEN = 2  # nghttp2 has the stream
    ST_MARKED = 4  # in session.marked
    ST_LOST = 8  # closed; its exchange, if it still has one, is to be told
    ST_RESUMED = 16  # what waits for the exchange is to be delivered
    ST_DRAINED = 32  # the exchange is to be told that there is room
    ST_PAUSED = 64  # the exchange takes no bytes
    ST_IN_ENDED = 128  # END_STREAM has come
    ST_IN_TOLD = 256  # and the exchange knows, or need not know
    ST_OUT_ENDED = 512  # the exchange has said all
    ST_OUT_SENT = 1024  # END_STREAM is on its way
    ST_DEFERRED = 2048  # nghttp2 waits for data
    ST_FULL = 4096
    ST_NO_BODY = 8192  # the request is HEAD
    ST_RESET = 16384  # by our will, not for what the peer has sent
    ST_PEER_RESET = 32768
    ST_WEBSOCKET = 65536  # extended CONNECT
    ST_TUNNEL = 131072
    ST_ANSWERED = 262144  # the final response's head has been sent, or has come
    ST_RESET_AFTER = 524288  # when our side is out, tell the peer to stop (RFC 9113 8.1)
    ST_TELLING = 1048576  # its exchange is being told: it must stay
    ST_FAST = 4194304  # has the large window

cdef struct session
cdef struct stream

cdef struct side:
    # What the two sides do differently.
    void (*deliver)(stream* st, const char* data, size_t size) noexcept nogil
    void (*deliver_end)(stream* st, head* trailers) noexcept nogil
    bint (*other_full)(stream* st) noexcept nogil
    void (*drained)(stream* st) noexcept nogil
    void (*lost)(stream* st) noexcept nogil

cdef struct stream:
    leg leg
    session* s
    int32_t id
    uint32_t flags
    int reason  # why it is lost, when that is known
    uint32_t close_code
    stream* next
    stream* previous
    stream* next_marked
    # to be sent
    page* out_first
    page* out_last
    size_t out_bytes
    const char* direct
    size_t direct_size
    page* out_trailers
    int64_t progress_ms
    # has come, and waits for the exchange
    page* in_first
    page* in_last
    size_t in_bytes
    size_t taken_bytes  # by the exchange, as they came
    page* in_trailers
    uint32_t interim  # responses
    uint64_t heard_before  # client side: what the session had heard when the request was sent
    char accept[32]  # client side: Sec-WebSocket-Accept of the client's key

cdef struct session:
    conn* c
    nghttp2_session* ng
    const side* side
    uint32_t flags
    int reason  # why it is to be ended; 0: it is not
    uint32_t code  # and what the peer is told
    int stream_count
    int heads_left  # in this turn
    stream* streams
    stream* marked
    stream* heading  # whose header block is coming in
    field_block block
    meter meter
    int max_list_bytes
    int max_fields
    int64_t head_deadline_ms
    int64_t drain_deadline_ms
    int64_t sweep_ms
    int64_t idle_deadline_ms
    int64_t progress_ms  # the last byte that the peer has taken
    uint64_t heard  # how often bytes have come from it

cdef exchange_calls calls

cdef void http2_set_calls(exchange_calls* given) noexcept nogil
cdef bint http2_begins(const char* p, size_t n) noexcept nogil

# For the two sides
cdef nghttp2_session_callbacks* new_callbacks() noexcept nogil
cdef session* session_new(conn* c, const side* side) noexcept nogil
cdef void session_free(session* s) noexcept nogil
cdef void session_doom(session* s, int reason, uint32_t code) noexcept nogil
cdef bint session_input(session* s, const char* p, size_t n) noexcept nogil
cdef bint session_take_parked(session* s) noexcept nogil
cdef int session_read(session* s) noexcept nogil
cdef void session_flush(session* s) noexcept nogil
cdef void session_settle(session* s) noexcept nogil
cdef bint session_over(session* s) noexcept nogil
cdef void session_say_goodbye(session* s, uint32_t code) noexcept nogil
cdef stream* stream_new(session* s) noexcept nogil
cdef void stream_mark(stream* st, uint32_t flag) noexcept nogil
cdef void stream_release(stream* st) noexcept nogil
cdef void stream_reset(stream* st, uint32_t code) noexcept nogil
cdef void stream_drop_output(stream* st) noexcept nogil
cdef void deliver_waiting(stream* st) noexcept nogil
cdef void lose(stream* st, int reason) noexcept nogil
cdef void stream_ended_in(stream* st, head* trailers) noexcept nogil

# What legs of both sides do alike, and where nghttp2 gets their bodies from
cdef ssize_t read_source(nghttp2_session* ng, int32_t stream_id, uint8_t* buf, size_t size, uint32_t* flags,
        nghttp2_data_source* source, void* user_data) noexcept nogil
cdef void stream_send_body(leg* l, const char* data, size_t size) noexcept nogil
cdef void stream_send_end(leg* l, head* trailers) noexcept nogil
cdef void stream_shut(leg* l) noexcept nogil
cdef void stream_resume(leg* l) noexcept nogil
cdef bint stream_full(leg* l) noexcept nogil
cdef size_t stream_waiting(leg* l) noexcept nogil
