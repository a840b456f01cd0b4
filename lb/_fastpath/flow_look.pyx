"""Looking at flows, as a Python object: the question to the reactors, and what they have answered in words."""
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from lb._fastpath.c.sys cimport lb_load_int, lb_store_int
from lb._fastpath.clock cimport monotonic_ns
from lb._fastpath.flows cimport (
    LOOK_BUCKETS,
    LOOK_BY_AGE,
    LOOK_BY_BYTES,
    LOOK_BY_IDLE,
    carried_record,
    look_part,
    look_total,
    ranked,
)

# By their numbers in flows.pxd.
CARRIED_STATES = (
    "connecting", "open", "half-closed-client", "half-closed-endpoint", "ending", "reset-client", "reset-endpoint",
    "unanswered",
)
LOOK_ORDERS = {"age": LOOK_BY_AGE, "idle": LOOK_BY_IDLE, "bytes": LOOK_BY_BYTES}


cdef class FlowLook:
    """A question about what is carried, and what the reactors have answered. They write to it until they have all
    done so; the engine keeps it as long.
    """

    def __cinit__(self, list listener_names, int reactors, int limit, str order):
        cdef int i
        self.listener_names = listener_names
        self.question.slot = -1
        self.question.order = LOOK_ORDERS[order]
        self.question.limit = <uint32_t>limit
        self.parts = <look_part*>calloc(reactors, sizeof(look_part))
        if self.parts == NULL:
            raise MemoryError
        self.count = reactors
        for i in range(self.count):
            self.parts[i].question = &self.question
            self.parts[i].records = <carried_record*>calloc(limit + 1, sizeof(carried_record))
            self.parts[i].heap = <ranked*>calloc(limit + 1, sizeof(ranked))
            if self.parts[i].records == NULL or self.parts[i].heap == NULL:
                raise MemoryError

    def __dealloc__(self):
        cdef int i, k
        cdef look_total* t
        for i in range(self.count):
            free(self.parts[i].records)
            free(self.parts[i].heap)
            for k in range(LOOK_BUCKETS):
                while self.parts[i].totals[k] != NULL:
                    t = self.parts[i].totals[k]
                    self.parts[i].totals[k] = t.next
                    free(t)
        free(self.parts)

    cdef ask_client(self, object client):
        """Of this network, as (16-byte address, leading bits), or `unix`."""
        cdef bytes address
        if client == "unix":
            self.question.local_only = True
            return
        address, bits = client
        memcpy(self.question.client.address, <char*>address, 16)
        self.question.client.bits = bits
        self.question.by_client = True

    def waits_for(self):
        """The threads that have not answered yet."""
        cdef int i
        return [i for i in range(self.count) if not lb_load_int(&self.parts[i].done)]

    def cancel(self):
        """Nobody wants to know any more: the reactors leave off, and end no more flows."""
        lb_store_int(&self.question.cancelled, 1)

    def result(self):
        """(the first of them in the order that was asked for, how many there are, totals by endpoint), when nothing is
        waited for. MemoryError when there was none for the totals.
        """
        cdef int i, k
        cdef uint32_t n
        cdef look_total* t
        if self.waits_for():
            raise RuntimeError("the look is not over")
        found, matched, totals = [], 0, {}
        for i in range(self.count):
            if self.parts[i].failed:
                raise MemoryError
            matched += self.parts[i].matched
            for n in range(self.parts[i].count):
                found.append((-self.parts[i].records[n].rank, i, n))
            for k in range(LOOK_BUCKETS):
                t = self.parts[i].totals[k]
                while t != NULL:
                    add_total(totals, t)
                    t = t.next
        found.sort()
        return [self.describe(i, n) for _, i, n in found[:self.question.limit]], matched, list(totals.values())

    cdef dict describe(self, int i, uint32_t n):
        cdef carried_record* c = &self.parts[i].records[n]
        cdef int64_t now_ms = monotonic_ns() // 1000000
        return {
            "kind": "udp" if c.is_session else "tcp",
            "state": CARRIED_STATES[c.state],
            "thread": i,
            "listener": (<bytes>self.listener_names[c.slot]).decode(),
            "peer": None if c.local else c.peer[:16],
            "peer_port": c.peer_port,
            "has_proxy": bool(c.has_proxy),
            "proxy": c.proxy[:16] if c.proxy_known else None,
            "server_name": c.name[:c.name_size].decode("utf-8", "replace"),
            "route": c.route_name[:c.route_name_size].decode("utf-8", "replace"),
            "upstream": c.live.name[:c.live.name_size].decode("utf-8", "replace") if c.live != NULL else "",
            "endpoint": c.key[:c.key_size].decode("utf-8", "replace"),
            "attempts": c.attempts,
            "age_ms": max(0, now_ms - c.started_ns // 1000000),
            "idle_ms": max(0, now_ms - c.since_ms),
            "drain_ms": max(0, c.drain_deadline_ms - now_ms) if c.drain_deadline_ms else None,
            "bytes_in": c.bytes_in,
            "bytes_out": c.bytes_out,
            "datagrams_in": c.datagrams_in,
            "datagrams_out": c.datagrams_out,
            "waits_for_endpoint": c.waits_for_endpoint,
            "waits_for_client": c.waits_for_client,
        }


cdef add_total(dict totals, const look_total* t):
    upstream = t.live.name[:t.live.name_size].decode("utf-8", "replace")
    key = t.key[:t.key_size].decode("utf-8", "replace")
    sums = totals.get((upstream, key))
    if sums is None:
        sums = totals[upstream, key] = dict.fromkeys((
            "flows", "sessions", "bytes_in", "bytes_out", "waits_for_endpoint", "waits_for_client",
        ), 0)
        sums.update(upstream=upstream, endpoint=key)
    sums["flows"] += t.flows
    sums["sessions"] += t.sessions
    sums["bytes_in"] += t.bytes_in
    sums["bytes_out"] += t.bytes_out
    sums["waits_for_endpoint"] += t.waits_for_endpoint
    sums["waits_for_client"] += t.waits_for_client
