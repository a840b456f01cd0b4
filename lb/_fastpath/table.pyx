"""Building and reading the compiled table (table.pxd)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memset

from lb._fastpath.c.sys cimport lb_equal_nocase, lb_hash, lb_prefetch
from lb._fastpath.message cimport field, head
from lb._fastpath.shares cimport build_lots, build_sequence

cdef enum:
    MAX_SEQUENCE = 8192


# ------------------------------------------------------------------------------------------------------------ building

cdef uint32_t arena_take(arena* a, size_t size) noexcept nogil:
    """Room for `size` zeroed bytes, aligned to 8; its offset. After a failure `failed` is set and offset 0 is given."""
    cdef size_t start = (<size_t>a.size + 7) & ~(<size_t>7)
    cdef size_t capacity = a.capacity
    cdef char* data
    if a.failed or start + size > 0x7fffffff:
        a.failed = True
        return 0
    if start + size > capacity:
        while start + size > capacity:
            capacity = capacity * 2 if capacity else 4096
        data = <char*>realloc(a.data, capacity)
        if data == NULL:
            a.failed = True
            return 0
        a.data = data
        a.capacity = <uint32_t>capacity
    memset(a.data + start, 0, size)
    a.size = <uint32_t>(start + size)
    return <uint32_t>start


cdef text arena_text(arena* a, const char* data, size_t size) noexcept nogil:
    cdef text t
    t.at = arena_take(a, size)
    t.size = <uint32_t>size
    if not a.failed and size:
        memcpy(a.data + t.at, data, size)
    return t


cdef uint32_t common_depth(const pattern* patterns, uint32_t low, uint32_t high, uint32_t depth) noexcept nogil:
    """How far all of patterns[low:high] agree, at least `depth`: the first and the last of a sorted range decide."""
    cdef const pattern* a = &patterns[low]
    cdef const pattern* b = &patterns[high - 1]
    cdef uint32_t shorter = a.size if a.size < b.size else b.size
    while depth < shorter and a.key[depth] == b.key[depth]:
        depth += 1
    return depth


cdef uint32_t build_paths(arena* a, pattern* patterns, uint32_t low, uint32_t high, uint32_t depth) noexcept nogil:
    """A trie over patterns[low:high], which agree in their first `depth` bytes; the offset of its root.

    The recursion is as deep as the longest chain of patterns that extend each other, which the control plane's limit
    on path lengths bounds.
    """
    cdef uint32_t node_at = arena_take(a, sizeof(path_node))
    cdef uint32_t end = common_depth(patterns, low, high, depth)
    cdef text prefix = arena_text(a, patterns[low].key + depth, end - depth)
    cdef uint32_t here = low, start, child, children = 0, child_count = 0
    cdef uint16_t counts[3]
    cdef uint32_t kind, i, routes
    cdef path_node* node
    memset(counts, 0, sizeof(counts))
    while here < high and patterns[here].size == end:
        counts[patterns[here].kind] += 1
        here += 1
    routes = arena_take(a, sizeof(uint32_t) * (here - low))
    if a.failed:
        return 0
    for i in range(low, here):
        (<uint32_t*>(a.data + routes))[i - low] = patterns[i].rank
    start = here
    while start < high:
        i = start
        while i < high and patterns[i].key[end] == patterns[start].key[end]:
            i += 1
        child_count += 1
        start = i
    if child_count:
        children = arena_take(a, child_count * (sizeof(uint32_t) + 1))
    start = here
    child = 0
    while start < high and not a.failed:
        i = start
        while i < high and patterns[i].key[end] == patterns[start].key[end]:
            i += 1
        (<uint8_t*>(a.data + children + child_count * sizeof(uint32_t)))[child] = <uint8_t>patterns[start].key[end]
        kind = build_paths(a, patterns, start, i, end)
        if a.failed:
            return 0
        (<uint32_t*>(a.data + children))[child] = kind
        child += 1
        start = i
    if a.failed:
        return 0
    node = <path_node*>(a.data + node_at)
    node.prefix = prefix
    node.children = children
    node.child_count = <uint16_t>child_count
    node.exact_count = counts[PATH_EXACT]
    node.prefix_count = counts[PATH_PREFIX]
    node.string_count = counts[PATH_STRING_PREFIX]
    node.routes = routes
    return node_at


cdef const char* index_key(const vhost* host, size_t* size) noexcept nogil:
    """What lookups ask for: the name, of `*.example.com` the part from the dot on."""
    cdef const char* name = text_at(host, host.hostname)
    cdef bint wildcard = host.hostname.size > 1 and name[0] == c"*"
    size[0] = host.hostname.size - 1 if wildcard else host.hostname.size
    return name + 1 if wildcard else name


cdef void index_put(host_index* index, vhost* host) noexcept nogil:
    """Put a virtual host under its name, in place of the one that had it. The index has room."""
    cdef size_t size
    cdef const char* key = index_key(host, &size)
    cdef uint64_t hash = lb_hash(key, size)
    cdef uint32_t slot = <uint32_t>hash & index.mask
    cdef vhost* other
    if text_at(host, host.hostname)[0] == c"*":
        if host.hostname.size == 1:
            index.fallback = host
            return
        index.has_wildcards = True
    while True:
        other = index.entries[slot].host
        if other == NULL:
            index.count += 1
            break
        if other.hostname.size == host.hostname.size and memcmp(
            text_at(other, other.hostname), text_at(host, host.hostname), host.hostname.size
        ) == 0:
            break
        slot = (slot + 1) & index.mask
    index.entries[slot].hash = hash
    index.entries[slot].host = host


cdef void index_remove(host_index* index, const vhost* host) noexcept nogil:
    """Take a virtual host out; entries behind it that were pushed on by it move back (Knuth 6.4, algorithm R)."""
    cdef size_t size
    cdef const char* key = index_key(host, &size)
    cdef uint32_t hole = <uint32_t>lb_hash(key, size) & index.mask
    cdef uint32_t slot, home
    if index.fallback == host:
        index.fallback = NULL
        return
    while index.entries[hole].host != host:
        if index.entries[hole].host == NULL:
            return
        hole = (hole + 1) & index.mask
    index.count -= 1
    slot = hole
    while True:
        index.entries[hole].host = NULL
        while True:
            slot = (slot + 1) & index.mask
            if index.entries[slot].host == NULL:
                return
            home = <uint32_t>index.entries[slot].hash & index.mask
            # The entry may stay when its home lies cyclically behind the hole.
            if not ((hole < home <= slot) if hole <= slot else (hole < home or home <= slot)):
                break
        index.entries[hole] = index.entries[slot]
        hole = slot


cdef bint upstream_lay_out(upstream_view* up) noexcept nogil:
    """Make what its algorithm reads, of the endpoints and weights that are there. False: no memory."""
    if up.client_affinity:
        return lay_out_seats(up)
    if up.balance == BALANCE_RANDOM_TWO:
        up.lots = <lot*>malloc(up.count * sizeof(lot))
        if up.lots != NULL and not build_lots(up.weights, up.count, up.lots):
            free(up.lots)
            up.lots = NULL
    elif up.balance == BALANCE_ROUND_ROBIN:
        up.sequence = <uint32_t*>malloc(MAX_SEQUENCE * sizeof(uint32_t))
        if up.sequence == NULL:
            return False
        up.sequence_size = build_sequence(up.weights, up.count, up.sequence, MAX_SEQUENCE)
        up.sequence = <uint32_t*>realloc(up.sequence, (up.sequence_size + 1) * sizeof(uint32_t))
    return True


cdef bint lay_out_seats(upstream_view* up) noexcept nogil:
    """An index of endpoints by their tags, at most half full. Of two with the same tag the first has it."""
    cdef uint32_t size = 2, i, at
    while size < 2 * up.count:
        size *= 2
    up.seats = <uint32_t*>malloc(size * sizeof(uint32_t))
    if up.seats == NULL:
        return False
    up.seat_mask = size - 1
    for i in range(size):
        up.seats[i] = NO_SEAT
    for i in range(up.count):
        at = seat_tag(up.endpoints[i]) & up.seat_mask
        while up.seats[at] != NO_SEAT:
            at = (at + 1) & up.seat_mask
        up.seats[at] = i
    return True


cdef void upstream_forget(upstream_view* up) noexcept nogil:
    free(up.endpoints)
    free(up.weights)
    free(up.sequence)
    free(up.lots)
    free(up.seats)
    free(up)


# ------------------------------------------------------------------------------------------------------------- reading

cdef vhost* index_get(const host_index* index, const char* key, size_t size, bint wildcard) noexcept nogil:
    cdef uint64_t hash = lb_hash(key, size)
    cdef uint32_t slot = <uint32_t>hash & index.mask
    cdef const host_entry* entry
    cdef const char* name
    cdef size_t name_size
    while True:
        entry = &index.entries[slot]
        if entry.host == NULL:
            return NULL
        if entry.hash == hash:
            name = text_at(entry.host, entry.host.hostname)
            name_size = entry.host.hostname.size
            if wildcard:
                if name_size == size + 1 and name[0] == c"*" and memcmp(name + 1, key, size) == 0:
                    return entry.host
            elif name_size == size and name[0] != c"*" and memcmp(name, key, size) == 0:
                return entry.host
        slot = (slot + 1) & index.mask


cdef vhost* find_host(const host_index* index, const char* name, size_t size) noexcept nogil:
    """Exact name, else the longest wildcard, else `*` (Ingress and Gateway API agree on that order)."""
    cdef vhost* host
    cdef const char* dot
    cdef size_t at = 0
    cdef bint first_label = True
    if index == NULL:
        return NULL
    if index.count == 0 or size == 0 or size > MAX_HOST:
        return index.fallback
    host = index_get(index, name, size, False)
    if host != NULL:
        return host
    if index.has_wildcards and name[0] != c".":
        while True:
            dot = <const char*>memchr(name + at, c".", size - at)
            if dot == NULL:
                break
            at = <size_t>(dot - name)
            host = index_get(index, dot, size - at, True)
            if host != NULL and (first_label or not host.one_label):
                return host
            first_label = False
            at += 1
    return index.fallback


cdef bint value_holds(const vhost* host, const predicate* p, const head* h) noexcept nogil:
    """A header condition against all lines of that name, joined with `, ` (RFC 9110 5.3)."""
    cdef const char* name = text_at(host, p.name)
    cdef const char* wanted = text_at(host, p.value)
    cdef size_t left = p.value.size
    cdef bint found = False
    cdef int i
    cdef const field* f
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.name_size != p.name.size or not lb_equal_nocase(f.name, name, f.name_size):
            continue
        if p.any:
            return True
        if found:
            if left < 2 or memcmp(wanted, <const char*>b", ", 2) != 0:
                return False
            wanted += 2
            left -= 2
        found = True
        if f.value_size > left or memcmp(wanted, f.value, f.value_size) != 0:
            return False
        wanted += f.value_size
        left -= f.value_size
    return found and left == 0


cdef bint query_holds(const vhost* host, const predicate* p, const char* query, size_t size) noexcept nogil:
    """The first parameter of that name decides; raw bytes, no decoding."""
    cdef const char* name = text_at(host, p.name)
    cdef const char* end = query + size
    cdef const char* stop
    cdef const char* equals
    cdef size_t name_size, value_size
    while query <= end:
        stop = <const char*>memchr(query, c"&", <size_t>(end - query)) if query < end else NULL
        if stop == NULL:
            stop = end
        equals = <const char*>memchr(query, c"=", <size_t>(stop - query)) if query < stop else NULL
        name_size = <size_t>((equals if equals != NULL else stop) - query)
        if name_size == p.name.size and memcmp(query, name, name_size) == 0:
            if p.any:
                return True
            if equals == NULL:
                return p.value.size == 0
            value_size = <size_t>(stop - equals) - 1
            return value_size == p.value.size and memcmp(equals + 1, text_at(host, p.value), value_size) == 0
        query = stop + 1
    return False


cdef bint route_holds(const vhost* host, const route* r, const char* query, size_t query_size, bint has_query,
        const head* h) noexcept nogil:
    cdef uint32_t i
    cdef const text* methods
    if r.method_count:
        methods = <const text*>(<const char*>host + r.methods)
        for i in range(r.method_count):
            if methods[i].size == h.method_name.size and memcmp(text_at(host, methods[i]), h.method_name.at,
                    methods[i].size) == 0:
                break
        else:
            return False
    for i in range(r.header_count):
        if not value_holds(host, <const predicate*>(<const char*>host + r.headers) + i, h):
            return False
    for i in range(r.query_count):
        if not has_query or not query_holds(host, <const predicate*>(<const char*>host + r.queries) + i, query,
                query_size):
            return False
    return True


cdef uint32_t find_route(const vhost* host, const char* path, size_t path_size, const char* query,
        size_t query_size, bint has_query,
                         const head* h) noexcept nogil:
    """The lowest rank whose conditions hold: walk the trie along the path and look at the routes on the way."""
    cdef const char* base = <const char*>host
    cdef const path_node* node = <const path_node*>(base + host.root)
    cdef const uint32_t* ranks
    cdef const uint8_t* firsts
    cdef size_t at = 0
    cdef uint32_t best = NO_ROUTE, i, skip, count
    if host.route_count == 0:
        return NO_ROUTE
    lb_prefetch(base + host.routes)
    lb_prefetch(base + host.root)
    while True:
        if node.prefix.size > path_size - at or memcmp(base + node.prefix.at, path + at, node.prefix.size) != 0:
            return best
        at += node.prefix.size
        ranks = <const uint32_t*>(base + node.routes)
        if at == path_size:
            skip = 0  # exact, prefix and string-prefix routes may hold
            count = <uint32_t>node.exact_count + node.prefix_count + node.string_count
        elif path[at] == c"/":
            skip = node.exact_count
            count = <uint32_t>node.exact_count + node.prefix_count + node.string_count
        else:
            skip = <uint32_t>node.exact_count + node.prefix_count
            count = skip + node.string_count
        for i in range(skip, count):
            if ranks[i] < best and route_holds(host, route_at(host, ranks[i]), query, query_size, has_query, h):
                best = ranks[i]
        if at == path_size or node.child_count == 0:
            return best
        firsts = <const uint8_t*>(base + node.children + node.child_count * sizeof(uint32_t))
        for i in range(node.child_count):
            if firsts[i] == <uint8_t>path[at]:
                break
        else:
            return best
        node = <const path_node*>(base + (<const uint32_t*>(base + node.children))[i])
