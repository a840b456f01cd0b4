"""The loop: one thread, one epoll, and everything that the thread owns.

A reactor turns when something is ready, when a timer is due, when it is woken, and every 500 ms in any case. The
start of each turn is its quiescent point: whatever table it saw before, it holds none now but those its exchanges
have pinned.
"""
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from lb._fastpath.c.sys cimport epoll_event, iovec, lb_load_ptr, lb_peek_int, lb_put_u64, lb_store_u64, pthread_t
from lb._fastpath.counters cimport counters, stats_space
from lb._fastpath.endpoint cimport affinity_entry
from lb._fastpath.memory cimport memory, slab
from lb._fastpath.message cimport head
from lb._fastpath.ring cimport ring
from lb._fastpath.table cimport table
from lb._fastpath.timers cimport wheel

cdef enum:
    EVENTS_PER_TURN = 256
    LONGEST_SLEEP_MS = 500
    SCRATCH_BYTES = 65536
    BULK_BYTES = 196608  # read at once of a body whose other side takes all of it
    BATCH_IOV = 64
    HANDSHAKE_NS = 200000  # of handshakes in one turn
    RANDOM_ID_BYTES = 32  # of the ids that lb makes for requests and connections
    LISTENERS_MOST = 4096  # at a time, with those that are over and still have connections
    # Of the descriptors: from here on idle clients and sessions make way, and from there on no client is let in, so
    # that those who are in reach their endpoints.
    SHORT_PERCENT = 90
    FULL_PERCENT = 95

cdef enum:  # io flags
    IO_READABLE = 1  # the kernel may have bytes: set by an event, cleared by a short read
    IO_WRITABLE = 2  # the kernel may take bytes: set by an event, cleared by EAGAIN
    IO_HALF_CLOSED = 4  # the peer has sent its FIN; bytes may wait before it
    IO_BROKEN = 8  # reset or error
    IO_QUEUED = 16  # in the run queue, or in line for a handshake
    IO_DEAD = 32  # closed; memory is given back at the end of the turn
    IO_CONNECTING = 64
    IO_ERRED = 2048  # not just hung up: the socket has an error
    IO_MUTED = 512  # epoll does not tell of bytes: they wait until others have been taken
    IO_URGENT = 1024  # urgent data has come: reading stops before it once, with more behind (tcp(7), Sockets API)
    IO_CUT = 256  # a write failed, which took the error off the socket: the end that reading finds is no orderly one

cdef struct io:
    # What epoll knows: first member of everything that waits for events.
    int fd
    uint32_t flags
    reactor* r
    void (*ready)(io* source) noexcept nogil  # something in `flags` is new, or its turn in the run queue has come
    void (*release)(io* source) noexcept nogil  # give back the memory
    io* next_queued
    io* next_dead

cdef struct command:
    # From another thread; executed by the reactor at the start of a turn, which also frees it.
    command* next
    void (*run)(reactor* r, command* c) noexcept nogil
    void* subject
    int64_t number

cdef struct client_cell:
    # Connections of one client, or its sessions at one UDP listener (limits.pxd).
    client_cell* next
    unsigned char address[16]
    uint32_t room
    int count

cdef struct client_shard:
    int lock
    client_cell* cells[256]
    char padding[48]

cdef struct error_answer:
    int status  # 0: all others
    char* content_type
    uint32_t content_type_size
    char* body
    uint32_t body_size
    error_answer* next

cdef struct refusal:
    # A client that is turned away before there is an exchange, a flow or a session of it.
    io* client  # conn*, which may know more of it; NULL: it has none
    const char* listener_name
    uint32_t listener_name_size
    uint16_t port
    const unsigned char* peer  # NULL: it has come by a Unix socket
    int reason
    int status  # 0: it was not answered
    int version  # VERSION_TCP or VERSION_UDP

cdef struct shared:
    # What all reactors of an engine share.
    # control plane
    void* current  # table*; swapped atomically
    int reactor_count
    reactor* reactors
    int max_connections
    int64_t descriptor_limit  # of the data plane; 0: none
    int running
    int draining
    int logging
    bint tls_by_kernel  # where it can, the kernel encrypts
    error_answer* error_answers
    void (*retry_waiting)(reactor* r) noexcept nogil
    void (*take_back)(reactor* r) noexcept nogil
    void (*cut_off)(reactor* r) noexcept nogil  # ends what is under way when the daemon stops
    void (*cut_flows)(reactor* r) noexcept nogil  # and before it the connections whose bytes are only carried
    void (*cut_sessions)(reactor* r) noexcept nogil  # UDP sessions as well
    void (*open_flow)(io* client) noexcept nogil  # the client of a listener that carries bytes has been let in
    void (*log_refusal)(reactor* r, const refusal* what) noexcept nogil
    uint64_t secret  # random; keys the hash of client addresses
    affinity_entry* affinity  # NULL until an upstream wants it, then for ever
    void* ticket_keys  # tls.pxd; swapped atomically
    char padding_a[64]
    # every reactor, atomically
    int64_t budget_left
    int connections
    int descriptors
    int ejection_changes  # how often an endpoint was ejected or came back from that
    char padding_b[44]
    client_shard clients[64]
    void* client_rates  # rate_row* (limits.pxd)
    int64_t listener_full_ns[LISTENERS_MOST]  # by listener slot: the buckets of their rates

cdef struct reactor:
    # set once
    shared* s
    int index
    int epfd
    int wakeup_fd
    pthread_t thread
    # other threads
    void* commands  # command*; a stack, pushed with compare-and-swap
    void* husks  # conn*; shells of connections that siblings took over
    int awake  # 0 while it may sleep in epoll_wait
    char padding_a[64]
    # this reactor; others read
    uint64_t turn
    int64_t heartbeat_ms
    counters counts
    stats_space listener_stats
    stats_space route_stats
    stats_space upstream_stats
    stats_space grpc_stats  # by route
    stats_space datagram_stats  # by UDP listener
    ring log
    # this reactor only
    int64_t now_ns
    int64_t now_ms
    wheel timers
    memory pages
    slab conn_slab
    slab exchange_slab
    slab stream_slab
    slab flow_slab
    slab hello_slab  # hello_texts
    slab proxied_slab
    void* datagrams  # datagrams*: all of its UDP listeners and sessions; NULL: it has none
    void* pipes_unused  # pipe* (pipes.pxd)
    int64_t pipes_after_ms  # when new ones may be asked for again
    int pipe_count  # with those in use
    io* queue_first
    io* queue_last
    io* dead
    void* idle_clients_newest  # conn*: idle client connections, for closing under pressure
    void* idle_clients_oldest
    int idle_client_count
    int exchange_count
    void* listeners  # listening*
    void* connections  # conn*: all of them
    void* looking  # conn*: where a look at all of them goes on (flows.pxd); NULL: nowhere
    void* waiting_first  # exchange*: those for whose upstream a limit is reached
    void* waiting_last
    int waiting_poked  # set by siblings, too
    uint32_t waiting_pass
    uint64_t random[2]
    # the write batch: bytes that go out with one sendmsg when the event is handled
    io* batch_owner
    iovec batch[BATCH_IOV]
    int batch_count
    head message  # the head being handled
    table* serving  # what the request being handled was parsed by, and what its exchange will pin
    head answer  # an answer of our own
    head outgoing  # a request that has waited
    uint32_t out_used
    char* scratch_in  # BULK_BYTES; the others have SCRATCH_BYTES
    char* scratch_out
    char* tls_in  # ciphertext that was received
    char* tls_out  # ciphertext to be sent
    uint32_t tls_out_used
    char* tls_gather  # small pieces on their way into one record
    int64_t handshake_ns_left  # in this turn, so that handshakes starve nobody
    io* line_first  # handshakes that wait for a turn with time left: those with endpoints, then clients', oldest first
    io* line_endpoints_last  # NULL: none of those that wait is with an endpoint
    io* line_last
    bint line_moves  # the one that is called now stood in it
    void* tls_bio  # BIO*: the one way of all its connections in and out of OpenSSL
    void* tls_current  # tls*: whose bytes OpenSSL is dealing with
    char* scratch_text  # normalised targets and names of the message that is being handled
    int64_t date_second
    char date[32]
    epoll_event events[EVENTS_PER_TURN]

cdef bint reactor_init(reactor* r, shared* s, int index) noexcept nogil
cdef void* reactor_main(void* argument) noexcept nogil
cdef void reactor_wake(reactor* r) noexcept nogil
cdef bint reactor_post(reactor* r, command* c) noexcept nogil
cdef void reactor_release(reactor* r) noexcept nogil
cdef bint io_watch(io* source) noexcept nogil
cdef void io_mute(io* source) noexcept nogil
cdef void io_unmute(io* source) noexcept nogil
cdef void put_random_id(reactor* r, char* out) noexcept nogil

cdef inline bint descriptors_above(reactor* r, int64_t percent) noexcept nogil:
    """Whether so much of what the data plane may use is in use. The rest of the process' limit is the control plane's,
    which must be able to read files and to answer while clients take all they can get.
    """
    return r.s.descriptor_limit != 0 and lb_peek_int(&r.s.descriptors) * 100 >= r.s.descriptor_limit * percent

cdef inline table* current_table(reactor* r) noexcept nogil:
    """Valid until the end of the turn, longer only when pinned."""
    return <table*>lb_load_ptr(&r.s.current)

cdef inline void table_pin_one(reactor* r, table* t) noexcept nogil:
    lb_put_u64(&t.pins[r.index].count, t.pins[r.index].count + 1)

cdef inline void table_unpin_one(reactor* r, table* t) noexcept nogil:
    lb_store_u64(&t.pins[r.index].count, t.pins[r.index].count - 1)

cdef inline void io_enqueue(io* source) noexcept nogil:
    """Have `ready` called again this turn or the next: work is left, but others come first."""
    cdef reactor* r = source.r
    if source.flags & (IO_QUEUED | IO_DEAD):
        return
    source.flags |= IO_QUEUED
    source.next_queued = NULL
    if r.queue_last != NULL:
        r.queue_last.next_queued = source
    else:
        r.queue_first = source
    r.queue_last = source

cdef inline void io_stand_in_line(io* source, bint with_endpoint) noexcept nogil:
    """Have `ready` called when there is time for handshakes, after those of its kind that came before. Handshakes with
    endpoints serve requests that wait, and go before clients'.
    """
    cdef reactor* r = source.r
    cdef io* before = r.line_endpoints_last if with_endpoint else r.line_last
    if source.flags & (IO_QUEUED | IO_DEAD):
        return
    source.flags |= IO_QUEUED
    if before != NULL:
        source.next_queued = before.next_queued
        before.next_queued = source
    else:
        source.next_queued = r.line_first
        r.line_first = source
    if source.next_queued == NULL:
        r.line_last = source
    if with_endpoint:
        r.line_endpoints_last = source

cdef inline io* io_first_in_line(reactor* r) noexcept nogil:
    """Whose turn it is, taken out of the line; NULL when nobody waits."""
    cdef io* source = r.line_first
    if source == NULL:
        return NULL
    r.line_first = source.next_queued
    if r.line_first == NULL:
        r.line_last = NULL
    if source == r.line_endpoints_last:
        r.line_endpoints_last = NULL
    source.flags &= ~<uint32_t>IO_QUEUED
    return source

cdef inline void io_bury(io* source) noexcept nogil:
    """The descriptor is closed; the memory lives until no event of this turn can name it."""
    source.flags |= IO_DEAD
    source.next_dead = source.r.dead
    source.r.dead = source
