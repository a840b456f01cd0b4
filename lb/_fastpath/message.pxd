"""One representation of a request or response head for every codec: spans into bytes that somebody else owns.

A head lives in its reactor and is only valid while the event that filled it is handled.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

cdef enum:
    MAX_FIELDS = 256
    EXTRA_FIELDS = 24  # Room for the fields lb adds.

cdef enum:  # field_id
    # Fields that lb itself reads or writes.
    FIELD_OTHER = 0
    FIELD_HOST
    FIELD_CONNECTION
    FIELD_CONTENT_LENGTH
    FIELD_TRANSFER_ENCODING
    FIELD_TE
    FIELD_TRAILER
    FIELD_UPGRADE
    FIELD_EXPECT
    FIELD_KEEP_ALIVE
    FIELD_PROXY_CONNECTION
    FIELD_PROXY_AUTHENTICATE
    FIELD_PROXY_AUTHORIZATION
    FIELD_FORWARDED
    FIELD_X_FORWARDED_FOR
    FIELD_X_FORWARDED_PROTO
    FIELD_X_FORWARDED_HOST
    FIELD_X_FORWARDED_PORT
    FIELD_X_REAL_IP
    FIELD_X_REQUEST_ID
    FIELD_ACCEPT
    FIELD_USER_AGENT
    FIELD_REFERER
    FIELD_AUTHORIZATION
    FIELD_COOKIE
    FIELD_HTTP2_SETTINGS
    FIELD_CONTENT_TYPE
    FIELD_CLIENT_CERTIFICATE  # what says who a client's certificate is of: X-Forwarded-Client-Cert, ssl-client-*

cdef enum:  # method_id
    METHOD_OTHER = 0
    METHOD_GET
    METHOD_HEAD
    METHOD_POST
    METHOD_PUT
    METHOD_DELETE
    METHOD_OPTIONS
    METHOD_PATCH
    METHOD_TRACE
    METHOD_CONNECT

cdef struct span:
    const char* at
    uint32_t size

cdef struct field:
    const char* name
    const char* value
    uint32_t value_size
    uint16_t name_size
    uint8_t id
    bint drop  # Not sent on.

cdef struct head:
    # Set by the codec that parsed it
    uint32_t size  # bytes of the head on the wire
    int method
    span method_name
    span target  # Path and query, normalised.
    uint32_t path_size
    span raw_target  # As the client sent it, for the log.
    span host  # Host and port as they are sent on.
    span hostname  # Lower case, without port and trailing dot: what routing looks at.
    int status
    span reason_phrase
    int minor  # HTTP/1.minor.
    int version  # 10, 11 or 20
    int field_count
    field fields[MAX_FIELDS + EXTRA_FIELDS]
    # Framing and connection, derived from the fields
    int64_t content_length  # -1: none given.
    bint chunked
    bint has_body
    bint keep_alive
    bint close_asked  # Connection: close stands in the message
    bint upgrade  # Asks for, or agrees to, another protocol.
    bint te_trailers
    int keep_alive_timeout  # Seconds of a response's `Keep-Alive: timeout=`; 0: none given.

cdef inline field* head_add(head* h, const char* name, size_t name_size, const char* value,
        size_t value_size) noexcept nogil:
    """Append a field of ours; there is always room for EXTRA_FIELDS of them."""
    cdef field* f = &h.fields[h.field_count]
    h.field_count += 1
    f.name = name
    f.name_size = <uint16_t>name_size
    f.value = value
    f.value_size = <uint32_t>value_size
    f.id = FIELD_OTHER
    f.drop = False
    return f

cdef const char* status_phrase(int status) noexcept nogil

# A head that waits, when nobody knows yet by which protocol it will go on: what is needed to send it, in one piece.
cdef size_t packed_size(const head* h) noexcept nogil
cdef size_t pack_head(const head* h, char* out) noexcept nogil
cdef void unpack_head(const char* packed, head* h) noexcept nogil
