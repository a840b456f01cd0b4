"""The compiled table: what a request is matched against. Immutable once published; read by all reactors without locks.

    table -> listener view -> host_index -> vhost -> path nodes -> routes -> upstream views -> endpoints

A vhost is one allocation with offsets inside, so it can be shared by any number of tables. Building is in table.pyx and
is called by the control plane without the GIL; nothing here is checked again when a request reads it.
"""
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from lb._fastpath.c.sys cimport lb_hash, lb_peek_i64, lb_random
from lb._fastpath.endpoint cimport MAX_REACTORS, endpoint, upstream_live
from lb._fastpath.message cimport head
from lb._fastpath.shares cimport lot

cdef enum:
    NO_ROUTE = 0xffffffff
    NO_SEAT = 0xffffffff
    MAX_HOST = 255

cdef enum:  # path_kind
    PATH_EXACT = 0
    PATH_PREFIX
    PATH_STRING_PREFIX

cdef enum:  # action_kind
    ACTION_FORWARD = 0
    ACTION_RESPOND

cdef enum:  # upstream_view.protocol
    PROTOCOL_HTTP1 = 0
    PROTOCOL_HTTP2
    PROTOCOL_BY_ALPN

cdef enum:  # upstream_view.balance
    BALANCE_ROUND_ROBIN = 0
    BALANCE_LEAST_CONNECTIONS
    BALANCE_RANDOM_TWO
    BALANCE_MAGLEV

cdef enum:  # slow_share
    LEAST_SHARE = 100
    FULL_SHARE = 1000

cdef enum:  # upstream_view.hash_key
    HASH_SOURCE = 0  # the client's address
    HASH_SOURCE_PORT  # ... and its port
    HASH_FLOW  # ... and where it connects to, and the protocol

cdef enum:  # upstream_view.checked
    CHECKED_NOT = 0
    CHECKED_SERVE  # when all fail their checks, they serve
    CHECKED_REFUSE  # ... they do not

cdef struct text:
    # Bytes inside a vhost.
    uint32_t at
    uint32_t size

cdef struct target:
    # One of a route's weighted upstreams; `until` is the running sum of weights.
    uint32_t slot
    uint32_t until

cdef struct predicate:
    # A header or query condition; present suffices when `any`.
    text name
    text value
    bint any

cdef struct route:
    text name
    uint32_t id  # Of its counters.
    uint8_t action
    uint8_t retries
    int16_t status
    text body
    uint32_t targets  # Offset of target[target_count].
    uint16_t target_count
    uint16_t method_count
    uint32_t methods  # Offset of text[method_count].
    uint32_t headers
    uint32_t queries
    uint16_t header_count
    uint16_t query_count
    int64_t max_body_bytes  # -1: the listener's.
    int32_t response_timeout_ms
    int32_t idle_timeout_ms
    int32_t tunnel_timeout_ms
    int32_t request_timeout_ms
    int16_t https_redirect  # status; 0: none
    bint grpc_web

cdef struct path_node:
    # One node of the radix trie: the bytes that lead here, and the routes that end here, each list in rank order.
    text prefix
    uint32_t children  # Offset of uint32_t[child_count] node offsets, behind them uint8_t[child_count] first bytes.
    uint16_t child_count
    uint16_t exact_count
    uint16_t prefix_count
    uint16_t string_count
    uint32_t routes  # Offset of uint32_t[] ranks: exact, then prefix, then string-prefix.

cdef struct vhost:
    uint32_t size
    uint32_t route_count
    uint32_t routes
    uint32_t root
    text hostname
    bint one_label
    void* payload  # of an index that is not of routes: what the name stands for

cdef struct host_entry:
    uint64_t hash
    vhost* host  # NULL: free.

cdef struct host_index:
    uint32_t mask
    uint32_t count
    bint has_wildcards
    vhost* fallback  # `*`
    host_entry* entries

cdef struct tls_view:
    # What a listener knows of TLS.
    host_index* hosts  # by server name; the payload of a vhost is a tls_host (tls.pxd)
    void* fallback  # tls_host of all other names, and of clients that say none
    bint varied  # not all names have the same context
    bint strict  # there is a name that lets in nobody whose certificate it has not seen

cdef struct network:
    # A trusted network: `bits` leading bits of a 16-byte address (IPv4 as ::ffff:a.b.c.d).
    uint8_t address[16]
    int bits

cdef struct stream_view:
    # Where the connections of a listener go whose bytes are only carried (lb/model/stream.py).
    target* targets
    uint32_t target_count
    uint32_t route_id
    char* name  # of the route; outlives the table, as its counters do
    uint32_t name_size
    int idle_timeout_ms
    int half_closed_timeout_ms
    int drain_timeout_ms
    int retries
    network* allowed  # whose clients are let in
    uint32_t allowed_count  # 0: everybody's
    bint passes  # clients speak TLS with endpoints: what an upstream says of TLS is none of theirs

cdef struct name_route:
    # One of the routes that a server name has; the payload of its vhost points to the first of them.
    stream_view* stream
    uint8_t* alpn  # only for clients that offer one of these, each behind its length
    uint32_t alpn_size  # 0: for all
    bint terminates
    bint last

cdef struct datagram_view:
    # Where the datagrams of a UDP listener go (lb/model/datagram.py).
    stream_view* to
    int responses
    int max_sessions
    int max_sessions_per_client
    int max_session_rate  # new ones a second
    int max_session_rate_per_client

cdef struct listener_view:
    # A listener as one table sees it: its hosts and its rules (lb/model/listener.py, HttpOptions).
    const char* name  # outlives the table, and every connection that was accepted for it
    uint32_t name_size
    host_index* hosts
    int port
    char port_text[8]
    int port_text_size
    int head_timeout_ms
    int keepalive_timeout_ms
    int idle_timeout_ms
    int linger_timeout_ms
    int max_requests_per_connection
    int max_head_bytes
    int max_headers
    int max_target_bytes
    int max_connections
    int max_connections_per_client
    int max_connection_rate  # a second
    int max_connection_rate_per_client
    int64_t max_body_bytes
    network* trusted
    uint32_t trusted_count
    network* proxies  # whose connections begin with a PROXY header
    uint32_t proxies_count
    stream_view* stream  # of all its connections
    host_index* names  # by server name, those whose bytes are carried; NULL: nobody is asked before the handshake
    bint carries  # it has no HTTP
    datagram_view* datagram  # of UDP, where all that comes goes
    bint forwarded_header
    bint merge_slashes
    bint keep_escaped_slashes
    bint reject_bare_lf
    bint accept_host_mismatch
    bint http2
    tls_view* tls  # NULL: plain
    int https_port  # where the same hosts are served by TLS
    char* hsts  # value of Strict-Transport-Security
    uint32_t hsts_size

cdef struct upstream_view:
    # An upstream as one table sees it: its endpoints, their order and the policy.
    upstream_live* live
    endpoint** endpoints
    int* weights
    uint32_t count
    uint8_t balance
    uint8_t hash_key
    bint client_affinity
    # what the algorithm reads; only its own is there
    uint32_t* sequence  # Smooth weighted round-robin, one period of indexes.
    uint32_t sequence_size
    lot* lots  # random-two: `count` of them; NULL: nobody has weight
    const uint32_t* maglev  # belongs to a MaglevTable (compiled.pyx): many views share it
    uint32_t maglev_size
    uint32_t* seats  # client affinity: indexes by what stands for them in the table of affinity.pxd
    uint32_t seat_mask
    int affinity_timeout_ms  # 0: no limit
    uint8_t protocol
    uint8_t proxy_protocol  # which header its connections begin with (proxy_protocol.pxd)
    uint8_t proxy_values  # what lb tells in it besides addresses
    bint transparent  # connections leave with the client's address
    bint for_one_client  # a connection is: it tells who that is, or has its address
    void* tls  # tls_context (tls.pxd); NULL: plain
    uint64_t wire  # how connections are made, the protocol in its lowest two bits: others are not used
    int connect_timeout_ms
    int idle_timeout_ms
    int max_requests_per_connection
    int max_connections
    int max_connections_per_endpoint
    int max_queue
    int queue_timeout_ms
    int max_streams_per_connection
    int checked
    int slow_start_ms  # 0: none

cdef struct table_pin:
    # Exchanges of one reactor that use the table; written by that reactor only.
    uint64_t count
    char padding[56]

cdef enum:  # in `table.places`
    NO_LISTENER = 0xffffffff  # nothing was ever said of it
    LISTENER_GONE = 0xfffffffe  # who had it last is gone

cdef struct table:
    uint64_t generation
    uint32_t listener_count
    listener_view** listeners  # by listener slot; NULL: the listener is gone
    uint32_t place_count
    uint32_t* places  # by place: the slot of the listener that has it, or had it last
    uint32_t upstream_count
    upstream_view** upstreams  # By upstream slot; NULL for a slot not in use.
    table_pin pins[MAX_REACTORS]

cdef inline uint32_t slot_at(const table* t, uint32_t place, uint32_t before) noexcept nogil:
    """The slot of the listener that has a place, or had it last (LISTENER_GONE is none, and nothing to index with);
    `before`: of the one that its sockets were opened for.

    Sockets and their connections know their place, so that a place passes to another listener with the table, and no
    client meets the rules of one listener at the address of another.
    """
    if place < t.place_count and t.places[place] != NO_LISTENER:
        return t.places[place]
    return before

cdef inline listener_view* listener_at(const table* t, uint32_t place, uint32_t before) noexcept nogil:
    """NULL: that listener is gone."""
    cdef uint32_t slot
    if t == NULL:
        return NULL
    slot = slot_at(t, place, before)
    return t.listeners[slot] if slot < t.listener_count else NULL

# Building (control plane)
cdef struct pattern:
    # A path to put into a trie. Patterns come sorted by key, then kind, then rank.
    const char* key
    uint32_t size
    uint32_t rank
    uint8_t kind

cdef struct arena:
    # A growing buffer; offsets stay valid.
    char* data
    uint32_t size
    uint32_t capacity
    bint failed

cdef uint32_t arena_take(arena* a, size_t size) noexcept nogil
cdef text arena_text(arena* a, const char* data, size_t size) noexcept nogil
cdef uint32_t build_paths(arena* a, pattern* patterns, uint32_t low, uint32_t high, uint32_t depth) noexcept nogil
cdef bint upstream_lay_out(upstream_view* up) noexcept nogil
cdef void upstream_forget(upstream_view* up) noexcept nogil
cdef void index_put(host_index* index, vhost* host) noexcept nogil
cdef void index_remove(host_index* index, const vhost* host) noexcept nogil

# Reading (reactors)
cdef vhost* find_host(const host_index* index, const char* name, size_t size) noexcept nogil
cdef uint32_t find_route(const vhost* host, const char* path, size_t path_size, const char* query,
        size_t query_size, bint has_query,
                         const head* h) noexcept nogil

cdef inline uint32_t seat_tag(const endpoint* ep) noexcept nogil:
    """What stands for an endpoint in the table of affinity."""
    return <uint32_t>ep.hash

cdef inline uint32_t seat_of(const upstream_view* up, uint32_t tag) noexcept nogil:
    """The index of the endpoint with this tag; NO_SEAT: it is not there any more."""
    cdef uint32_t at = tag & up.seat_mask
    while up.seats[at] != NO_SEAT and seat_tag(up.endpoints[up.seats[at]]) != tag:
        at = (at + 1) & up.seat_mask
    return up.seats[at]

cdef inline int slow_share(const upstream_view* up, endpoint* ep, int64_t now_ms) noexcept nogil:
    """How much of its weight an endpoint has that joined not long ago, in thousandths: a straight line from 100 to
    1,000 (Envoy's slow_start_config with min_weight_percent 10 and aggression 1, its defaults).
    """
    cdef int64_t joined = lb_peek_i64(&ep.joined_ms), share
    if up.slow_start_ms == 0 or joined == 0:
        return FULL_SHARE
    share = (now_ms - joined) * FULL_SHARE // up.slow_start_ms
    if share >= FULL_SHARE:
        return FULL_SHARE
    return <int>share if share > LEAST_SHARE else LEAST_SHARE

cdef inline bint in_networks(const network* networks, uint32_t count, const uint8_t* address) noexcept nogil:
    """Whether a 16-byte address (IPv4 as ::ffff:a.b.c.d) lies in one of them; IPv4 lies in no network of IPv6."""
    cdef uint32_t i
    cdef int whole, rest
    cdef bint ipv4 = memcmp(address, <const char*>b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0
    for i in range(count):
        if ipv4 and networks[i].bits < 96:
            continue  # such as ::/0
        whole = networks[i].bits // 8
        rest = networks[i].bits % 8
        if memcmp(networks[i].address, address, <size_t>whole) != 0:
            continue
        if rest == 0 or ((networks[i].address[whole] ^ address[whole]) >> (8 - rest)) == 0:
            return True
    return False

cdef inline const target* draw_target(const target* targets, uint32_t count, uint64_t* random) noexcept nogil:
    """One of several weighted upstreams, at random in proportion to the weights; NULL when none has any."""
    cdef uint32_t i = 0, draw
    if count == 0 or targets[count - 1].until == 0:
        return NULL
    if count > 1:
        draw = <uint32_t>(lb_random(random) >> 33) % targets[count - 1].until
        while targets[i].until <= draw:
            i += 1
    return &targets[i]

cdef inline const char* text_at(const vhost* host, text t) noexcept nogil:
    return <const char*>host + t.at

cdef inline const route* route_at(const vhost* host, uint32_t rank) noexcept nogil:
    return <const route*>(<const char*>host + host.routes) + rank
