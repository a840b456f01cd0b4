"""UDP sessions: what one client and one endpoint send each other through a listener.

    datagrams of a batch -> session of each -> endpoint -> its answers -> sent with those of other sessions -> end

A session is known by where its datagrams come from and which address they ask: a client's datagrams come to one
reactor (SO_REUSEPORT), which owns the session and its connected socket towards the endpoint. Nothing queues: what a
socket does not take at once is dropped and counted.
"""
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from lb._fastpath.batches cimport received, replies, session_key, udp_socket
from lb._fastpath.counters cimport carried_traffic, datagram_traffic
from lb._fastpath.endpoint cimport endpoint, upstream_live
from lb._fastpath.memory cimport page, slab
from lb._fastpath.reactor cimport command, io, reactor, shared
from lb._fastpath.timers cimport timer

cdef enum:
    RECEIVES_PER_TURN = 4  # batches of one listener before others get their turn
    # First datagrams that may have to be sent to another endpoint: the newest ones of all sessions.
    HELD_BYTES = 262144
    BUCKETS_LEAST = 1024
    BURST_MOST = 32  # answers of one session that are read at once
    # Records a second of clients that are refused, for each socket: they may come from invented addresses.
    REFUSALS_LOGGED = 10
    DRAIN_SILENCE_MS = 2000  # when lb stops, a session that was silent for so long is over
    ANSWER_MS = 2000  # so long a removed endpoint is waited for after a question

cdef enum:  # session.flags
    SESSION_RESERVED = 1  # holds a place on its endpoint
    SESSION_LINKED = 2  # among the sessions of its endpoint
    SESSION_COUNTED = 4  # among the sessions of its client's address
    SESSION_PROVEN = 8  # its client has spoken again after an answer: it is where it says it is
    SESSION_GRO = 16  # its socket gives several answers as one
    SESSION_NO_TRAINS = 32  # what goes to the endpoint goes one by one
    SESSION_NO_REPLY_TRAINS = 64
    SESSION_ASTRAY = 128  # its listener does not lead to its upstream any more
    SESSION_TRANSPARENT = 256  # its socket has its client's address
    SESSION_ASKED = 512  # its client has spoken last
    SESSION_LATE = 1024  # it began while lb was stopping, which does not wait for it

cdef struct datagram_socket:
    # A listener's socket of one reactor.
    udp_socket udp
    uint32_t place  # where it is: the table says which listener has that
    uint32_t slot  # of the listener that it was opened for, or passed to last: of its counters
    uint32_t name_size
    char* name
    datagram_socket* next
    int sharers  # reactors that have a socket of this listener
    # its sessions, the one that spoke last first: those of clients that are proven to be there, and the others
    session* newest[2]
    session* oldest[2]
    uint32_t counts[2]
    int64_t refusals_full_ns  # the bucket of records of who is refused

cdef struct session:
    io base  # its socket towards the endpoint
    timer timer
    session_key key
    uint64_t hash
    session* next_same  # in its bucket
    session* newer  # of its listener
    session* older
    session* next_of_endpoint
    session* previous_of_endpoint
    datagram_socket* l
    uint32_t slot  # of the listener that it began with, whose name and counters it keeps to its end
    uint32_t listener_name_size
    const char* listener_name
    endpoint* ep
    upstream_live* live
    page* failed_attempts  # the text for the log; NULL: none has failed
    const char* route_name  # outlives the table
    uint32_t route_name_size
    uint32_t flags
    unsigned char peer[16]
    uint16_t peer_port
    uint16_t attempts
    uint16_t retries_left
    uint16_t reason  # of the last endpoint's failure, then of the end
    uint16_t burst  # how many answers to ask for at once
    uint16_t unasked  # answers since the client has spoken
    uint16_t held_piece  # the held datagrams are a train of such pieces; 0: it is one datagram
    uint32_t held_size
    uint64_t held_at
    uint64_t tried
    uint64_t client_hash
    uint64_t generation  # of the table that it was last looked at with
    carried_traffic stats
    datagram_traffic* datagram_stats  # of its listener
    # amounts and times
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t datagrams_in
    uint64_t datagrams_out
    int64_t started_ns
    int64_t first_byte_ns  # of the endpoint; -1: none came
    int64_t progress_ms
    int64_t drain_deadline_ms  # its endpoint has been removed; 0: it has not
    int idle_timeout_ms
    int drain_timeout_ms
    int responses

cdef struct datagrams:
    # All of one reactor; made when its first UDP listener is opened.
    io flusher  # stands in the run queue while there are replies
    received in_batch
    replies out
    slab sessions
    session** buckets
    uint64_t mask
    uint64_t count
    char* held
    uint64_t held_written
    datagram_socket* sockets

cdef void datagram_install(shared* s) noexcept nogil
cdef datagrams* datagrams_new(reactor* r) noexcept nogil
cdef void datagrams_release(reactor* r) noexcept nogil
cdef void run_open_datagrams(reactor* r, command* c) noexcept nogil
cdef void run_pass_datagrams(reactor* r, command* c) noexcept nogil
cdef void run_close_datagrams(reactor* r, command* c) noexcept nogil
cdef void sessions_leave(reactor* r, endpoint* ep) noexcept nogil
cdef void sessions_stay(reactor* r, endpoint* ep) noexcept nogil
cdef void sessions_drain(reactor* r) noexcept nogil
cdef bint is_leaving(const session* s) noexcept nogil
cdef void session_end(session* s, int reason) noexcept nogil
