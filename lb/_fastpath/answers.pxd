"""lb's own answers: errors, fixed responses and redirects, in the form that the client reads.

A client that speaks gRPC gets a status in a response without a body; one that asks for JSON gets JSON; the operator
may have given bodies of his own.
"""
from lb._fastpath.exchange cimport exchange
from lb._fastpath.message cimport head
from lb._fastpath.reactor cimport reactor

cdef const char* http_date(reactor* r) noexcept nogil
cdef void send_answer(exchange* x, int status, int reason, const char* body, size_t size) noexcept nogil
cdef void send_redirect(exchange* x, const head* h) noexcept nogil
