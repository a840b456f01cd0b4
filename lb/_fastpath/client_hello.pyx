"""Reading a ClientHello (client_hello.pxd)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memmove

from lb._fastpath.c.sys cimport LB_UNRESERVED, lb_class, lb_lower

cdef enum:
    RECORD_HEADER = 5
    RECORD_HANDSHAKE = 22
    RECORD_MOST = 16384  # RFC 8446 5.1
    MESSAGE_HEADER = 4
    CLIENT_HELLO = 1
    EXTENSION_SERVER_NAME = 0
    EXTENSION_ALPN = 16

cdef struct span:
    # What is left to be read of a vector.
    const uint8_t* at
    const uint8_t* end


# ------------------------------------------------------------------------------------------------------------- records

cdef int hello_read(uint8_t* data, size_t size, client_hello* hello) noexcept nogil:
    """The ClientHello that `data` begins with: HELLO_OK, HELLO_MORE or HELLO_BAD. `size`: at most HELLO_MOST.

    A message that comes in several records is put together where it is, and the name is made lower case there: `data`
    is the caller's copy, and the results point into it.
    """
    cdef uint8_t* message = data + RECORD_HEADER  # of one record, which nearly all have, nothing is moved
    cdef size_t at = 0, have = 0, piece, length = 0
    hello.name = <const char*>data
    hello.name_size = 0
    hello.protocols = data
    hello.protocols_size = 0
    while True:
        if at < size and data[at] != RECORD_HANDSHAKE or at + 1 < size and data[at + 1] != 3:
            return HELLO_BAD
        if size - at < RECORD_HEADER:
            return HELLO_MORE if size < HELLO_MOST else HELLO_BAD
        piece = <size_t>data[at + 3] << 8 | data[at + 4]
        at += RECORD_HEADER
        if piece == 0 or piece > RECORD_MOST:
            return HELLO_BAD
        if piece > size - at:
            piece = size - at
        if message + have != data + at:
            memmove(message + have, data + at, piece)
        have += piece
        at += piece
        if have and message[0] != CLIENT_HELLO:
            return HELLO_BAD
        if have >= MESSAGE_HEADER:
            length = MESSAGE_HEADER + (<size_t>message[1] << 16 | <size_t>message[2] << 8 | message[3])
            if length > HELLO_MOST - RECORD_HEADER:
                return HELLO_BAD
            if have >= length:
                return HELLO_OK if read_message(message + MESSAGE_HEADER, message + length, hello) else HELLO_BAD
        if at == size:
            return HELLO_MORE if size < HELLO_MOST else HELLO_BAD


# ------------------------------------------------------------------------------------------------------------- message

cdef inline bint take(span* s, size_t count) noexcept nogil:
    """Pass over so many bytes."""
    if <size_t>(s.end - s.at) < count:
        return False
    s.at += count
    return True


cdef inline bint take_vector(span* s, int width, span* inner) noexcept nogil:
    """A length of `width` bytes (1 or 2), and what it is the length of."""
    cdef size_t length
    if s.end - s.at < width:
        return False
    length = s.at[0] if width == 1 else <size_t>s.at[0] << 8 | s.at[1]
    inner.at = s.at + width
    inner.end = inner.at + length
    return take(s, width + length)


cdef bint read_message(uint8_t* data, const uint8_t* end, client_hello* hello) noexcept nogil:
    """The body of the message, whose every byte must be accounted for."""
    cdef span s, inner
    s.at = data
    s.end = end
    if not take(&s, 2 + 32) or not take_vector(&s, 1, &inner) or inner.end - inner.at > 32:
        return False  # version, random, session
    if not take_vector(&s, 2, &inner) or inner.at == inner.end or (inner.end - inner.at) & 1:
        return False  # cipher suites
    if not take_vector(&s, 1, &inner) or inner.at == inner.end:
        return False  # compression
    if s.at == s.end:
        return True  # RFC 5246 7.4.1.2: there need be no extensions
    return take_vector(&s, 2, &inner) and s.at == s.end and read_extensions(&inner, hello)


cdef bint read_extensions(span* s, client_hello* hello) noexcept nogil:
    cdef span inner
    cdef uint16_t kind
    cdef bint named = False, offered = False
    while s.at != s.end:
        if s.end - s.at < 2:
            return False
        kind = <uint16_t>(s.at[0] << 8 | s.at[1])
        s.at += 2
        if not take_vector(s, 2, &inner):
            return False
        # What is there twice might be read differently by whom it is passed on to (RFC 8446 4.2: not allowed).
        if kind == EXTENSION_SERVER_NAME:
            if named or not read_server_name(&inner, hello):
                return False
            named = True
        elif kind == EXTENSION_ALPN:
            if offered or not read_protocols(&inner, hello):
                return False
            offered = True
    return True


cdef bint read_server_name(span* s, client_hello* hello) noexcept nogil:
    """One host name, and nothing beside it: other kinds of names there are none (RFC 6066 3, as OpenSSL reads it)."""
    cdef span entries, name
    if not take_vector(s, 2, &entries) or s.at != s.end or entries.at == entries.end or entries.at[0] != 0:
        return False
    entries.at += 1
    if not take_vector(&entries, 2, &name) or entries.at != entries.end:
        return False
    if name.at != name.end and (name.end - 1)[0] == c".":
        name.end -= 1
    if name.at == name.end or name.end - name.at > HELLO_NAME:
        return False
    if is_address(name.at, name.end):
        return True  # RFC 6066 3: it is no name, whoever says it
    hello.name_size = <uint32_t>(name.end - name.at)
    hello.name = <const char*>name.at
    return make_lower(<uint8_t*>name.at, name.end)


cdef bint is_address(const uint8_t* at, const uint8_t* end) noexcept nogil:
    """Digits and dots alone, or what only IPv6 has."""
    cdef bint colon = False, digit = False, letter = False
    while at != end:
        if at[0] == c":":
            colon = True
        elif c"0" <= at[0] <= c"9":
            digit = True
        elif c"a" <= lb_lower[at[0]] <= c"f":
            letter = True
        elif at[0] != c".":
            return False
        at += 1
    return colon or (digit and not letter)


cdef bint make_lower(uint8_t* at, const uint8_t* end) noexcept nogil:
    """False: no hostname has such bytes, or such an empty label."""
    cdef uint8_t before = c"."
    while at != end:
        if not (lb_class[at[0]] & LB_UNRESERVED) or at[0] == c"~" or (at[0] == c"." and before == c"."):
            return False
        before = at[0]
        at[0] = <uint8_t>lb_lower[at[0]]
        at += 1
    return True


cdef bint read_protocols(span* s, client_hello* hello) noexcept nogil:
    """RFC 7301 3.1: at least one, and none of them empty."""
    cdef span entries, one
    if not take_vector(s, 2, &entries) or s.at != s.end or entries.at == entries.end:
        return False
    hello.protocols = entries.at
    hello.protocols_size = <uint32_t>(entries.end - entries.at)
    while entries.at != entries.end:
        if not take_vector(&entries, 1, &one) or one.at == one.end:
            return False
    return True


# --------------------------------------------------------------------------------------------------------------- using

cdef const uint8_t* hello_offers(const client_hello* hello, const uint8_t* wanted, uint32_t size) noexcept nogil:
    """The first of `wanted` (each behind its length, as the length is) that the client offers; NULL: none."""
    cdef uint32_t i = 0, k
    while i < size:
        k = 0
        while k < hello.protocols_size:
            if hello.protocols[k] == wanted[i] and memcmp(hello.protocols + k, wanted + i, 1 + <size_t>wanted[i]) == 0:
                return wanted + i
            k += 1 + <uint32_t>hello.protocols[k]
        i += 1 + <uint32_t>wanted[i]
    return NULL


cdef void hello_note(const client_hello* hello, hello_texts* texts) noexcept nogil:
    cdef uint32_t k = 0, used = 0, size
    memcpy(texts.name, hello.name, hello.name_size)
    texts.name_size = <uint8_t>hello.name_size
    while k < hello.protocols_size:
        size = hello.protocols[k]
        if used + 1 + size > HELLO_PROTOCOLS:
            break
        if used:
            texts.protocols[used] = c","
            used += 1
        memcpy(texts.protocols + used, hello.protocols + k + 1, size)
        used += size
        k += 1 + size
    texts.protocols_size = <uint8_t>used
