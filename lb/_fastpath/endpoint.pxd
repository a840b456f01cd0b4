"""Live state of upstreams and endpoints: what survives every table. Blocks are grouped by who writes them."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from lb._fastpath.c.sys cimport sockaddr_storage, socklen_t

cdef enum:
    MAX_REACTORS = 64
    CURSOR_WORDS = 16  # one cache line
    FAMILY_WORDS = 2  # of them, those that each family of clients has for itself
    # Connect failures in a row before an endpoint rests (HAProxy `observe layer4` fall 3, nginx max_fails).
    EJECT_AFTER = 3
    EJECT_MS = 10000  # For how long (nginx fail_timeout) ...
    EJECT_MOST_MS = 60000  # ... twice as long each time that it is tried again in vain, up to this
    PROBE_GRACE_MS = 1000  # How much later than its time is up a connection may be found to have failed.

cdef enum:  # admin_state
    ADMIN_READY = 0
    ADMIN_DRAIN
    ADMIN_DOWN

cdef enum:  # endpoint.last_failure, besides values of errno
    FAILED_TLS = -1  # tls_error tells more
    FAILED_NOT_HTTP2 = -2
    FAILED_NO_ANSWER = -3
    FAILED_BEFORE_SETTINGS = -4  # it has ended the connection: because it restarts, or does not know HTTP/2

cdef enum:  # health: what the control plane's checks say
    HEALTH_OK = 0  # or not checked
    HEALTH_UNTESTED  # came to others and waits for its first check: serves when nobody is better
    HEALTH_FAILED

cdef enum:  # affinity_entry.key, besides those of clients
    AFFINITY_FREE = 0
    AFFINITY_BUSY  # being written

cdef struct affinity_entry:
    # Where a client is (affinity.pxd). Every reactor, atomically.
    uint64_t key
    uint64_t seat  # the endpoint, in the upper half, and when it was chosen last

cdef struct idle_pool:
    # The unused connections of one reactor to one endpoint, most recently used first.  Written by whoever holds the
    # lock: its reactor, or a sibling that takes a connection over. The lock is only ever tried.
    int lock
    int count
    void* newest
    void* oldest
    void* shared  # conn*: those that speak HTTP/2 and take more streams; its reactor's only
    void* flows  # conn*: those that carry bytes or will, linked by newer and older, newest first; its reactor's only
    void* resetting  # conn*: the newest of those flows that are being reset; NULL: none is
    void* sessions  # session*: UDP sessions with it; its reactor's only
    int streams  # how many the endpoint has last allowed on one connection; 0: not known. Its reactor's only
    char padding[4]

cdef struct upstream_live:
    # control plane
    uint32_t id
    char* name
    uint32_t name_size
    # every reactor, at the start and end of each exchange
    int active
    int queued
    uint64_t ejections
    char padding[32]
    # each reactor its own
    # CURSOR_WORDS each: the round-robin position, and the last pass over the queue that found the upstream full.
    uint32_t* cursors

cdef struct endpoint:
    # control plane, rarely
    upstream_live* upstream
    sockaddr_storage address
    socklen_t address_size
    int family
    char* key
    uint32_t key_size
    int admin
    int retired  # Not in the current table: connections close when they are done.
    int health
    uint64_t hash  # Of the key, for rendezvous hashing.
    # every reactor, atomically
    int active  # Exchanges and tunnels under way, over all reactors: exact.
    int failures_in_row
    int64_t ejected_until_ms  # 0: the last connection has succeeded, or not enough have failed
    int connections  # Open, used or not.
    int probing  # Ejected no longer, it is being tried by one connection; until that is made it counts as ejected.
    uint64_t requests
    uint64_t failures
    void* tls_error  # const char*: why its last handshake has failed, NULL since one has succeeded
    int64_t joined_ms  # when it came to others that serve, or back to them; 0: it was there from the start
    int ejections_in_row
    int last_failure
    int answering  # The time of its ejection is over, and it has answered on a connection that was kept.
    int resetting  # reactors that have not reset all flows yet which they had with it when it failed its checks
    # each reactor its own
    idle_pool* pools  # One a reactor.
