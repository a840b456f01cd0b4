"""Byte streams: connections of either side, what waits to be written to them, and the bytes that were read too early;
and legs, which is how an exchange holds on to them.

Writing collects into the reactor's batch and goes out with one call when the event is handled; what the peer does not
take waits in pages. Reading goes into the reactor's scratch, and only what cannot be handled at once moves to a page.
So a connection at rest holds no buffer at all.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lb._fastpath.c.sys cimport sockaddr_storage, ssize_t
from lb._fastpath.client_hello cimport hello_texts
from lb._fastpath.endpoint cimport endpoint
from lb._fastpath.memory cimport page, page_data
from lb._fastpath.message cimport head
from lb._fastpath.pipes cimport pipe
from lb._fastpath.proxy_protocol cimport proxy_value
from lb._fastpath.reactor cimport IO_DEAD, IO_QUEUED, IO_READABLE, IO_WRITABLE, io, reactor
from lb._fastpath.table cimport listener_view, stream_view, table, tls_view, upstream_view
from lb._fastpath.timers cimport timer
from lb._fastpath.tls cimport tls

cdef enum:
    HIGH_WATER = 131072  # stop reading the other side when this much waits to be written
    LOW_WATER = 32768  # go on
    TURN_BYTES = 262144  # read from one connection before others get their turn

cdef enum:
    IO_FULL = 128  # more than HIGH_WATER waits to be written: whoever feeds this connection stops reading
    IO_ENDS = 4096  # the end of what is written goes out behind what waits

cdef enum:  # results of conn_receive besides a size
    RECEIVE_END = 0
    RECEIVE_AGAIN = -1
    RECEIVE_ERROR = -2
    RECEIVE_UNFIT = -3  # of conn_receive_pipe: not by splice, conn_receive is to be asked

cdef struct listening:
    # A listening socket of one reactor.
    io base
    uint32_t place
    uint32_t slot  # of the listener that it was opened for, or passed to
    uint32_t name_size
    char* name
    listening* next
    timer pause
    bint stopped
    bint carries  # what its clients send is only carried: it may be no HTTP

cdef struct listener_heir:
    # Whose the sockets of a place are from now on: TCP's (accept.pxd) or UDP's (datagram.pxd).
    uint32_t place
    uint32_t slot
    uint32_t name_size
    char* name

cdef struct chunk_state:
    # Where a chunked body stands; see http1.pxd.
    uint64_t left
    uint32_t overhead  # framing bytes since the last data: bounds what tiny chunks and extensions cost
    uint16_t line_bytes  # of the current size line
    uint8_t state

cdef enum:  # leg.flags
    LEG_CLOSE = 1  # its connection is not to be used again after this exchange; HTTP/2 has no need of it
    LEG_REUSED = 2  # upstream side: not the first exchange of its connection
    LEG_GOT_BYTES = 4  # upstream side: some of the response has come
    LEG_FIRST = 8  # upstream side: of those that wait for a shared connection it goes before the others

cdef struct conn
cdef struct leg

cdef struct outgoing:
    # A request head as it waits for its connection.
    const char* at  # HTTP/1 bytes or, when `packed`, what pack_head (message.pyx) made of the head
    uint32_t size
    bint packed
    bint no_body_expected  # the answer to HEAD has none
    bint upgrade
    bint chunked  # a body whose length nobody knows follows
    bint ended  # no body follows

cdef struct leg_calls:
    # How an exchange drives a codec: one constant table per codec and side.
    void (*start)(leg* l, void* exchange, const outgoing* request) noexcept nogil  # upstream side only
    size_t (*send_head)(leg* l, head* h) noexcept nogil  # client side only; 1xx: interim, 101: opens the tunnel
    void (*send_body)(leg* l, const char* data, size_t size) noexcept nogil  # of a tunnel, too
    void (*send_end)(leg* l, head* trailers) noexcept nogil  # trailers: may be NULL
    void (*shut)(leg* l) noexcept nogil  # of a tunnel: nothing more comes for this side
    void (*resume)(leg* l) noexcept nogil  # the other side takes bytes again: read on
    bint (*full)(leg* l) noexcept nogil  # so much waits to be written that the other side is not to be read
    conn* (*sink)(leg* l) noexcept nogil  # client side only: takes a body as it comes, without framing; NULL: not now
    size_t (*waiting)(leg* l) noexcept nogil  # bytes that this side has not taken yet
    void (*done)(leg* l) noexcept nogil  # the exchange is over and lets go
    void (*refuse)(leg* l, int reason) noexcept nogil  # client side only: a request that gets no answer
    void (*abort)(leg* l) noexcept nogil  # it is cut off in the middle, and the peer must see that

cdef struct leg:
    # One side of an exchange as its codec carries it: a whole HTTP/1 connection, or one stream of an HTTP/2 one.
    const leg_calls* calls
    conn* c
    void* exchange
    uint32_t flags

cdef struct exchange_calls:
    # What codecs tell the exchange.
    void (*request_head)(leg* downstream, head* h, listener_view* view) noexcept nogil
    void (*request_refused)(leg* downstream, int reason, listener_view* view) noexcept nogil
    void (*request_malformed)(leg* downstream, int reason, listener_view* view) noexcept nogil
    void (*request_body)(void* exchange, const char* data, size_t size) noexcept nogil
    void (*request_end)(void* exchange, head* trailers) noexcept nogil
    void (*request_failed)(void* exchange, int reason) noexcept nogil
    void (*client_half_closed)(void* exchange) noexcept nogil
    void (*client_drained)(void* exchange) noexcept nogil
    bint (*upstream_full)(void* exchange) noexcept nogil
    void (*upstream_drained)(void* exchange) noexcept nogil
    void (*response_head)(void* exchange, head* h) noexcept nogil
    void (*response_body)(void* exchange, const char* data, size_t size) noexcept nogil
    void (*response_end)(void* exchange, head* trailers) noexcept nogil
    void (*response_failed)(void* exchange, int reason) noexcept nogil
    bint (*client_full)(void* exchange) noexcept nogil
    void (*response_piped)(void* exchange, pipe* p) noexcept nogil  # a piece of the body, in the pipe; it is taken over
    conn* (*client_sink)(void* exchange) noexcept nogil  # where the body may be piped to now; NULL: nowhere
    void (*client_took)(void* exchange) noexcept nogil  # some of what waits for it
    bint (*client_waits)(void* exchange) noexcept nogil  # some bytes have not been taken by the client yet
    void (*client_gone)(conn* downstream) noexcept nogil  # after it was closed: give back what its acceptance took

cdef struct connect_calls:
    # What whom a connection is made for is told, by `leg.exchange`.
    bint (*opened)(void* exchange, conn* u) noexcept nogil  # before TLS and all else; False: it is of no use
    bint passes  # TLS is spoken through the connection, and not by its upstream
    void (*became_stream)(void* exchange, leg* u) noexcept nogil  # ALPN has chosen HTTP/2; it is still connecting
    void (*connected)(void* exchange, leg* u) noexcept nogil
    void (*connect_failed)(void* exchange, int reason) noexcept nogil

cdef struct proxied:
    # What a PROXY header has said of a client besides its address.
    unsigned char proxy[16]  # who has sent it
    bint proxy_known  # no: it came by a Unix socket
    bint target_known
    unsigned char target[16]  # whom the client has connected to
    uint16_t target_port
    page* values  # its type-length-values; NULL: none

cdef struct conn:
    io base
    leg leg  # HTTP/1: the exchange it carries
    # bytes that wait
    page* out_first
    page* out_last
    page* parked  # read, not handled yet
    pipe* piped  # goes before the pages
    uint32_t out_bytes  # in pages and pipe
    uint8_t state  # of the codec
    uint8_t minor
    uint16_t flags  # of the codec
    timer timer
    # the codec's
    void* session  # HTTP/2; NULL: HTTP/1
    tls* tls  # NULL: plain
    int64_t body_left
    chunk_state chunk
    uint32_t requests
    # whose it is
    uint32_t place  # client side: where it was accepted
    uint32_t slot  # client side: of the listener it was accepted for, which counts it
    uint16_t peer_port
    uint8_t local  # client side: a Unix socket
    uint8_t counted  # client side: in the per-client counts
    proxied* proxied  # client side: NULL: no PROXY header
    unsigned char peer[16]  # client side: address, IPv4 as ::ffff:a.b.c.d
    const char* listener_name
    uint32_t listener_name_size
    const stream_view* carried  # client side: where its bytes go; NULL: they are HTTP
    table* carried_by  # pinned, as long as that is known and no flow has begun; NULL: not pinned
    hello_texts* hello  # client side: what its first TLS message said, where somebody has looked
    endpoint* ep  # upstream side
    uint64_t wire  # upstream side: how it was made; see upstream_view
    const connect_calls* told  # upstream side: how whom it was made for learns what came of it
    int idle_timeout_ms  # upstream side: how long it may stay unused
    int taken  # upstream side: a sibling reactor has taken the descriptor over; set under the pool's lock
    # among all connections of the reactor
    conn* next_all
    conn* previous_all
    # in the list of idle clients, or in its endpoint's idle pool
    conn* newer
    conn* older

cdef inline proxy_value kept_values(const conn* c) noexcept nogil:
    """What a PROXY header has said of a client, in its own form (proxy_protocol.pxd)."""
    cdef proxy_value values
    values.at = NULL
    values.size = 0
    if c.proxied != NULL and c.proxied.values != NULL:
        values.at = <const uint8_t*>page_data(c.proxied.values)
        values.size = c.proxied.values.end
    return values

cdef ssize_t conn_receive(conn* c, char* buffer, size_t size) noexcept nogil
cdef ssize_t conn_receive_pipe(conn* c, pipe* p, size_t most) noexcept nogil
cdef void conn_write_pipe(conn* c, pipe* p) noexcept nogil
cdef void conn_write(conn* c, const void* data, size_t size) noexcept nogil
cdef void conn_write_copy(conn* c, const void* data, size_t size) noexcept nogil
cdef char* out_reserve(reactor* r, size_t size) noexcept nogil
cdef void out_commit(conn* c, size_t size) noexcept nogil
cdef void batch_flush(reactor* r) noexcept nogil
cdef void conn_drain(conn* c) noexcept nogil
cdef void conn_write_failed(conn* c) noexcept nogil
cdef bint conn_park(conn* c, const char* data, size_t size, size_t limit) noexcept nogil
cdef void conn_unpark(conn* c) noexcept nogil
cdef void conn_shut(conn* c) noexcept nogil
cdef void conn_close(conn* c, bint reset) noexcept nogil
cdef bint conn_quiet(conn* c) noexcept nogil
cdef bint conn_open(const conn* c) noexcept nogil
cdef int conn_handshake(conn* c, const tls_view* view) noexcept nogil
cdef bint note_address(const sockaddr_storage* address, unsigned char* bytes, uint16_t* port) noexcept nogil
cdef int family_for(const upstream_view* up, const unsigned char* client) noexcept nogil
cdef int socket_as_client(int fd, const endpoint* ep, bint is_stream, const unsigned char* address,
        uint16_t port) noexcept nogil
cdef conn* conn_new(reactor* r, int fd) noexcept nogil
cdef void conn_leave(conn* c) noexcept nogil
