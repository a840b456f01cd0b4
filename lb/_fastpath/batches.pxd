"""Datagrams in batches: many of them for one system call, on a listener's socket and on those towards endpoints.

    recvmmsg on a listener -> messages -> sendmmsg to endpoints; recv from endpoints -> replies -> sendmmsg to clients

A message is a datagram, or a train of them that the kernel joined (UDP_GRO) or is to cut (UDP_SEGMENT). Batches lie in
slots that are there from the beginning. Who talks to whom is told by control messages and known above (datagram).
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from lb._fastpath.c.sys cimport EAGAIN, ENOBUFS, ENOMEM, iovec, mmsghdr, sockaddr_in6
from lb._fastpath.counters cimport datagram_traffic
from lb._fastpath.reactor cimport io, reactor
from lb._fastpath.timers cimport timer

cdef enum:
    RECEIVE_BATCH = 32
    REPLY_BATCH = 64
    # More than any datagram has. No multiple of a large power of two, or all slots would share the same cache lines.
    SLOT_BYTES = 65728
    CONTROL_BYTES = 96
    # A train is cut into datagrams by the kernel, or by the network card. Longer pieces than these may be longer than
    # what the path takes, and then only single ones can be fragmented.
    TRAIN_PIECE_MOST = 1432
    TRAIN_MOST = 65000
    TRAIN_COUNT = 60
    WATCH_MS = 1000  # how often the kernel is asked what it had to drop

cdef struct session_key:
    # All 64 bytes count, so what is not said is zero.
    sockaddr_in6 client  # or a sockaddr_in
    uint32_t padding
    uint8_t asked[16]  # the address that was asked, IPv4 as ::ffff:a.b.c.d; zero where the listener has only one
    uint64_t listener  # udp_socket*
    uint64_t unused

cdef struct udp_socket:
    # A socket that clients send to.
    io base
    int family
    unsigned char address[16]
    uint16_t port
    bint wildcard  # it has all addresses: datagrams say which one they ask
    uint32_t client_size  # of a client's sockaddr
    uint32_t kernel_drops  # the count that was seen last
    datagram_traffic* stats
    timer watch

cdef union control:
    uint8_t bytes[CONTROL_BYTES]
    uint64_t aligned

cdef union client_name:
    # As the kernel writes it, where any kind of sockaddr may be read.
    sockaddr_in6 v6
    uint64_t aligned[4]

cdef struct received:
    # A batch of a listener.
    int used  # messages that are to be made ready again
    mmsghdr messages[RECEIVE_BATCH]
    iovec pieces[RECEIVE_BATCH]
    client_name names[RECEIVE_BATCH]
    control controls[RECEIVE_BATCH]
    session_key keys[RECEIVE_BATCH]
    uint16_t train_pieces[RECEIVE_BATCH]  # of a message that is several datagrams, the length of each; 0: it is one
    char* slots

cdef struct replies:
    # Answers on their way to clients of one listener's socket. They need no session any more.
    udp_socket* u
    # Called upwards: the way of this session's client takes no trains.
    void (*unfit)(reactor* r, uint64_t hash) noexcept nogil
    int used  # slots
    int count  # messages, of one slot or, as a train, of several
    mmsghdr messages[REPLY_BATCH]
    iovec pieces[REPLY_BATCH]
    sockaddr_in6 names[REPLY_BATCH]
    control controls[REPLY_BATCH]
    uint16_t train_pieces[REPLY_BATCH]  # by slot, as in `received`
    uint64_t hashes[REPLY_BATCH]  # of their sessions, which may have ended
    uint16_t trains[REPLY_BATCH]  # by message: the length of its datagrams, but for the last; 0: it is one
    char* slots


cdef inline uint64_t count_of(uint64_t size, uint16_t piece) noexcept nogil:
    """Datagrams of a message."""
    return (size + piece - 1) // piece if piece else 1


cdef inline bint is_full(int error) noexcept nogil:
    return error == EAGAIN or error == ENOBUFS or error == ENOMEM


cdef inline char* slot_of(replies* o, int i) noexcept nogil:
    return o.slots + <size_t>i * SLOT_BYTES


cdef bint batches_init(received* b, replies* o) noexcept nogil
cdef void batches_release(received* b, replies* o) noexcept nogil
cdef void prepare_socket(udp_socket* u) noexcept nogil
cdef int take_error(io* source) noexcept nogil
cdef void drop(udp_socket* u, int reason, uint64_t count) noexcept nogil
cdef void drop_messages(udp_socket* u, const received* b, int i, int j, int reason) noexcept nogil
cdef int receive_batch(udp_socket* u, received* b) noexcept nogil
cdef int send_messages(int fd, received* b, int i, int j, bint* apart) noexcept nogil
cdef bint send_pieces(int fd, const char* data, uint32_t size, uint16_t piece) noexcept nogil
cdef int receive_replies(replies* o, int fd, int want, bint trains) noexcept nogil
cdef void put_replies(replies* o, int first, const session_key* key, uint64_t hash, bint apart) noexcept nogil
cdef void flush_replies(replies* o) noexcept nogil
