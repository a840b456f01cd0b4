"""The access log: records from the reactors' rings, formatted and written by a thread of its own.

A log program says what a record looks like: literals and fields, each with its way of escaping. The control plane
makes it from `json`, `combined` or a template (lb/observe/access.py); nothing here knows any of these formats.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from lb._fastpath.c.sys cimport pthread_t
from lb._fastpath.datagram cimport session
from lb._fastpath.endpoint cimport endpoint
from lb._fastpath.exchange cimport exchange
from lb._fastpath.memory cimport page
from lb._fastpath.reactor cimport reactor, refusal, shared
from lb._fastpath.stream cimport flow

cdef enum:  # fields, in the order of LOG_FIELDS in access.pyx
    LOG_LITERAL = -1
    LOG_TIME = 0
    LOG_TIME_CLF
    LOG_CLIENT
    LOG_CLIENT_PORT
    LOG_LISTENER
    LOG_METHOD
    LOG_HOST
    LOG_TARGET
    LOG_PROTOCOL
    LOG_STATUS
    LOG_BYTES_IN
    LOG_BYTES_OUT
    LOG_DURATION
    LOG_FIRST_BYTE
    LOG_CONNECT
    LOG_QUEUE
    LOG_VIRTUAL_HOST
    LOG_ROUTE
    LOG_UPSTREAM
    LOG_ENDPOINT
    LOG_ATTEMPTS
    LOG_FAILED_ATTEMPTS
    LOG_REASON
    LOG_REQUEST_ID
    LOG_USER_AGENT
    LOG_REFERER
    LOG_GENERATION
    LOG_TLS_VERSION
    LOG_TLS_CIPHER
    LOG_SERVER_NAME
    LOG_CLIENT_SUBJECT
    LOG_CLIENT_VERIFY
    LOG_CLIENT_SERIAL
    LOG_CLIENT_FINGERPRINT
    LOG_CLIENT_SAN
    LOG_GRPC_STATUS
    LOG_TLS_ERROR
    LOG_ALPN
    LOG_PROXY
    LOG_PROXY_UNIQUE_ID
    LOG_FIELD_COUNT

cdef enum:  # ways of escaping
    ESCAPE_RAW = 0
    ESCAPE_JSON
    ESCAPE_CLF

cdef struct log_step:
    int field
    int escape
    uint32_t at
    uint32_t size

cdef struct log_program:
    int fd
    uint32_t most  # bytes in one write: a pipe takes no more without blocking once it has said that it takes some
    uint32_t count
    log_step* steps
    char* literals

cdef struct log_writer:
    shared* s
    pthread_t thread
    int running
    void* incoming  # log_program*: to be used from now on
    log_program* program
    uint64_t flush_asked
    uint64_t flush_done
    uint64_t written
    uint64_t failed
    char* buffer
    uint32_t used
    long clock_second
    char clock_iso[32]
    char clock_clf[32]

cdef void note_failed_attempt(reactor* r, page** kept, const endpoint* ep, int reason) noexcept nogil
cdef void log_exchange(exchange* x, int64_t duration) noexcept nogil
cdef void log_flow(const flow* f, int64_t duration) noexcept nogil
cdef void log_session(const session* s, int64_t duration) noexcept nogil
cdef void log_refusal(reactor* r, const refusal* what) noexcept nogil
cdef void* log_main(void* argument) noexcept nogil
cdef void log_program_free(log_program* p) noexcept nogil
