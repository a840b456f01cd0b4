"""The first message of a TLS client: whom it wants (SNI) and what it would speak (ALPN), before anybody has answered.

Source: RFC 8446 4.1.2 and 5.1, RFC 5246 7.4.1.2, RFC 6066 3, RFC 7301 3.1. Every length is checked against what is
around it; what the message says beyond these two extensions is for whom it is meant.
"""
from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    HELLO_MOST = 16384  # bytes that are looked at, the headers of records included
    HELLO_NAME = 253
    HELLO_PROTOCOLS = 63

cdef enum:  # results
    HELLO_OK = 1
    HELLO_MORE = 0  # what has come may still become one
    HELLO_BAD = -1  # it is none, or has not ended within HELLO_MOST

cdef struct client_hello:
    const char* name  # lower case, without a dot at the end
    uint32_t name_size  # 0: none; addresses are none
    const uint8_t* protocols  # each behind its length
    uint32_t protocols_size  # 0: none are offered

cdef struct hello_texts:
    # What a connection keeps of it, for whoever tells of the client later.
    uint8_t name_size
    uint8_t protocols_size
    char name[HELLO_NAME]
    char protocols[HELLO_PROTOCOLS]  # `h2,http/1.1`; as many as there is room for

cdef int hello_read(uint8_t* data, size_t size, client_hello* hello) noexcept nogil
cdef void hello_note(const client_hello* hello, hello_texts* texts) noexcept nogil
cdef const uint8_t* hello_offers(const client_hello* hello, const uint8_t* wanted, uint32_t size) noexcept nogil
