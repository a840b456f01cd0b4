"""Looking at what is carried right now: live flows and UDP sessions, copied to whoever asks, or ended.

    command to each reactor -> its connections, some each turn -> its sessions, some each turn -> done

What is asked, and the memory for the answer, belong to the control plane until every reactor has said `done`. A reactor
keeps its place between turns: among connections in `reactor.looking`, which moves on when that one leaves, and among
sessions as a number of a bucket that stays right when there come to be more of them. So what lives all the while is
seen exactly once; what begins or ends meanwhile may be seen or not.
"""
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from lb._fastpath.client_hello cimport HELLO_NAME
from lb._fastpath.endpoint cimport upstream_live
from lb._fastpath.reactor cimport command, reactor
from lb._fastpath.table cimport network

cdef enum:
    LOOK_PER_TURN = 1024  # connections of both sides, or buckets and sessions: some 0.2 ms
    LOOK_KEY = 128  # the key of an endpoint; a Unix socket's has 112 bytes
    LOOK_BUCKETS = 4096
    LOOK_END = 8  # as much time as looking at so many takes ending one

cdef enum:  # look_question.order
    LOOK_BY_AGE = 0
    LOOK_BY_IDLE
    LOOK_BY_BYTES

cdef enum:  # carried_record.state
    CARRIED_CONNECTING = 0
    CARRIED_OPEN
    CARRIED_CLIENT_ENDED
    CARRIED_ENDPOINT_ENDED
    CARRIED_BOTH_ENDED  # what waits is still on its way
    CARRIED_CLIENT_RESET
    CARRIED_ENDPOINT_RESET
    CARRIED_UNANSWERED  # a session whose endpoint has not said anything

cdef struct look_question:
    int64_t slot  # of a listener; -1: all
    const upstream_live* upstream  # NULL: all
    const char* endpoint  # its key; NULL: all
    uint32_t endpoint_size
    bint by_client
    bint local_only  # clients that have come by a Unix socket
    network client  # of IPv6, where it is so wide that the addresses of IPv4 lie in it, those of IPv6 are meant
    int order
    uint32_t limit
    bint ends  # not only looked at: those that are wanted end
    int cancelled  # atomic: nobody waits for the answer any more

cdef struct carried_record:
    bint is_session
    int state
    uint32_t slot
    bint local
    unsigned char peer[16]
    uint16_t peer_port
    bint has_proxy
    bint proxy_known  # no: the proxy came by a Unix socket
    unsigned char proxy[16]
    uint32_t name_size
    char name[HELLO_NAME]
    const char* route_name  # lives for ever
    uint32_t route_name_size
    const upstream_live* live  # lives for ever
    uint32_t key_size
    char key[LOOK_KEY]
    int64_t started_ns
    int64_t since_ms  # the last byte, or when the connecting began
    int64_t drain_deadline_ms  # 0: its endpoint has not been removed
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t datagrams_in
    uint64_t datagrams_out
    uint64_t waits_for_endpoint
    uint64_t waits_for_client
    uint16_t attempts
    int64_t rank

cdef struct ranked:
    int64_t rank
    uint32_t record

cdef struct look_total:
    # Of all that is wanted and goes to one endpoint, whether it has a record or not.
    look_total* next
    uint64_t hash
    const upstream_live* live
    uint32_t key_size
    char key[LOOK_KEY]
    uint64_t flows
    uint64_t sessions
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t waits_for_endpoint
    uint64_t waits_for_client

cdef struct look_part:
    # One reactor's.
    look_question* question
    int done  # atomic: the reactor looks at nothing of this any more
    bint begun
    bint past_connections
    bint failed  # there was no memory
    uint64_t bucket
    uint64_t matched
    carried_record* records  # question.limit of them
    ranked* heap  # as many; the one that is the first to make way on top
    uint32_t count
    look_total* totals[LOOK_BUCKETS]

cdef void run_look(reactor* r, command* c) noexcept nogil
