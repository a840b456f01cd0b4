"""The forwarding headers (forwarded.pxd)."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy

from lb._fastpath.c.sys cimport AF_INET, AF_INET6, inet_ntop, inet_pton, lb_equal_nocase, lb_hash
from lb._fastpath.message cimport (
    FIELD_CLIENT_CERTIFICATE,
    FIELD_FORWARDED,
    FIELD_HOST,
    FIELD_X_FORWARDED_FOR,
    FIELD_X_FORWARDED_HOST,
    FIELD_X_FORWARDED_PORT,
    FIELD_X_FORWARDED_PROTO,
    FIELD_X_REAL_IP,
    field,
    head_add,
)
from lb._fastpath.table cimport in_networks, listener_view
from lb._fastpath.tls cimport FORWARD_SSL_CLIENT, FORWARD_XFCC, client_facts, client_text, tls


cdef bint is_ipv4(const unsigned char* address) noexcept nogil:
    return memcmp(address, <const char*>b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0


cdef size_t put_address(char* out, const unsigned char* address) noexcept nogil:
    """Text of a 16-byte address; room for 46 bytes."""
    cdef size_t size = 0
    cdef int i
    cdef unsigned int byte
    if is_ipv4(address):
        for i in range(12, 16):
            byte = address[i]
            if byte >= 100:
                out[size] = <char>(c"0" + byte // 100)
                size += 1
            if byte >= 10:
                out[size] = <char>(c"0" + byte // 10 % 10)
                size += 1
            out[size] = <char>(c"0" + byte % 10)
            out[size + 1] = c"."
            size += 2
        return size - 1
    inet_ntop(AF_INET6, address, out, 46)
    while out[size]:
        size += 1
    return size


cdef bint parse_address(const char* text, size_t size, unsigned char* address) noexcept nogil:
    """An address as X-Forwarded-For carries it: plain, or with a port, or in brackets."""
    cdef char plain[48]
    cdef const char* colon
    if size > 0 and text[0] == c"[":
        text += 1
        size -= 1
        colon = <const char*>memchr(text, c"]", size)
        if colon == NULL:
            return False
        size = <size_t>(colon - text)
    else:
        colon = <const char*>memchr(text, c":", size)
        if colon != NULL and memchr(text, c".", size) != NULL and memchr(colon + 1, c":",
                size - <size_t>(colon - text) - 1) == NULL:
            size = <size_t>(colon - text)
    if size == 0 or size > 45:
        return False
    memcpy(plain, text, size)
    plain[size] = 0
    if inet_pton(AF_INET, plain, address + 12) == 1:
        memcpy(address, <const char*>b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12)
        return True
    return inet_pton(AF_INET6, plain, address) == 1


cdef void real_client(exchange* x, const head* h, bint trusted, unsigned char* address) noexcept nogil:
    """Who the client is: the peer, or, behind trusted proxies, the last address in X-Forwarded-For that is none of
    theirs.
    """
    cdef int i
    cdef const field* f
    cdef const char* start
    cdef const char* end
    cdef const char* p
    cdef unsigned char candidate[16]
    memcpy(address, x.d.c.peer, 16)
    if not trusted:
        return
    i = h.field_count
    while i > 0:
        i -= 1
        f = &h.fields[i]
        if f.id != FIELD_X_FORWARDED_FOR:
            continue
        end = f.value + f.value_size
        while end > f.value:
            p = end
            while p > f.value and (p - 1)[0] != c",":
                p -= 1
            start = p
            while start < end and (start[0] == c" " or start[0] == c"\t"):
                start += 1
            while end > start and ((end - 1)[0] == c" " or (end - 1)[0] == c"\t"):
                end -= 1
            if not parse_address(start, <size_t>(end - start), candidate):
                return
            memcpy(address, candidate, 16)
            if not in_networks(x.view.trusted, x.view.trusted_count, candidate):
                return
            end = p - 1 if p > f.value else f.value


cdef bint from_trusted(const exchange* x) noexcept nogil:
    """Whether the peer is a proxy whose word about the client counts."""
    return x.d.c.local != 0 or in_networks(x.view.trusted, x.view.trusted_count, x.d.c.peer)


cdef bint is_secure(const exchange* x, const head* h) noexcept nogil:
    """Whether the client's own connection is encrypted: this one, or that to a trusted proxy before lb."""
    cdef int i
    if x.d.c.tls != NULL:
        return True
    if not from_trusted(x):
        return False
    for i in range(h.field_count):
        if h.fields[i].id == FIELD_X_FORWARDED_PROTO:
            return h.fields[i].value_size == 5 and lb_equal_nocase(h.fields[i].value, b"https", 5)
    return False


cdef void add_client_certificate(const tls* t, head* h, char* work) noexcept nogil:
    """Whose certificate the client has shown, in Envoy's form (x-forwarded-client-cert) and in ingress-nginx's
    (auth-tls-pass-certificate-to-upstream). What the client itself sent under these names is not passed on.
    """
    cdef const client_facts* facts = t.client
    cdef char* at = work
    cdef int i
    for i in range(h.field_count):
        if h.fields[i].id == FIELD_CLIENT_CERTIFICATE:
            h.fields[i].drop = True
    if facts == NULL:
        if t.forward & FORWARD_SSL_CLIENT:
            head_add(h, b"ssl-client-verify", 17, b"NONE", 4)
        return
    if t.forward & FORWARD_SSL_CLIENT:
        head_add(h, b"ssl-client-verify", 17, facts.verify.at, facts.verify.size)
        head_add(h, b"ssl-client-subject-dn", 21, facts.subject.at, facts.subject.size)
        head_add(h, b"ssl-client-issuer-dn", 20, facts.issuer.at, facts.issuer.size)
        head_add(h, b"ssl-client-serial", 17, facts.serial.at, facts.serial.size)
        head_add(h, b"ssl-client-fingerprint", 22, facts.fingerprint.at, facts.fingerprint.size)
        head_add(h, b"ssl-client-san", 14, facts.san.at, facts.san.size)
        head_add(h, b"ssl-client-cert", 15, facts.pem.at, facts.pem.size)
    if not t.forward & FORWARD_XFCC or facts.pem.size + 2 * facts.subject.size + facts.san.size > 24576:
        return
    at = put_part(at, b"Hash=", facts.fingerprint, False)
    at = put_part(at, b';Cert="', facts.pem, False)
    at = put_part(at, b'";Subject="', facts.subject, True)
    at[0] = c'"'
    at = put_names(at + 1, facts.san)
    head_add(h, b"X-Forwarded-Client-Cert", 23, work, <size_t>(at - work))


cdef char* put_part(char* out, const char* name, client_text text, bint quoted) noexcept nogil:
    cdef uint32_t i
    while name[0]:
        out[0] = name[0]
        out += 1
        name += 1
    for i in range(text.size):
        if quoted and (text.at[i] == c'"' or text.at[i] == c"\\"):
            out[0] = c"\\"
            out += 1
        out[0] = text.at[i]
        out += 1
    return out


cdef char* put_names(char* out, client_text san) noexcept nogil:
    """`DNS:a,URI:b` as `;DNS=a;URI=b`; other kinds have no place in XFCC."""
    cdef uint32_t i = 0, end
    while i < san.size:
        end = i
        while end < san.size and san.at[end] != c",":
            end += 1
        if end - i > 4 and san.at[i + 3] == c":":
            out[0] = c";"
            memcpy(out + 1, san.at + i, 3)
            out[4] = c"="
            memcpy(out + 5, san.at + i + 4, end - i - 4)
            out += 1 + end - i
        i = end + 1
    return out


cdef void add_forwarded(exchange* x, head* h) noexcept nogil:
    """Set the forwarding headers; their values stand in scratch_out, which is free while a head is handled."""
    cdef listener_view* view = x.view
    cdef bint trusted = from_trusted(x)
    cdef bint has_proto = False, has_host = False, has_port = False, has_real_ip = False
    cdef char* work = x.r.scratch_out
    cdef char* start = work
    cdef const char* proto = b"https" if x.d.c.tls != NULL else b"http"
    cdef size_t proto_size = 5 if x.d.c.tls != NULL else 4
    cdef const char* peer = x.client_text
    cdef size_t peer_size = x.client_text_size
    cdef unsigned char address[16]
    cdef size_t size
    cdef int i, count = h.field_count
    cdef field* f
    real_client(x, h, trusted, address)
    x.client_hash = lb_hash(<const char*>address, 16)
    for i in range(count):
        f = &h.fields[i]
        if f.id == FIELD_HOST:
            f.drop = True
        elif f.id == FIELD_X_FORWARDED_FOR:
            f.drop = True
            if trusted and f.value_size:
                memcpy(work, f.value, f.value_size)
                work += f.value_size
                work[0] = c","
                work[1] = c" "
                work += 2
        elif f.id == FIELD_X_FORWARDED_PROTO:
            has_proto = trusted
            f.drop = not trusted
        elif f.id == FIELD_X_FORWARDED_HOST:
            has_host = trusted
            f.drop = not trusted
        elif f.id == FIELD_X_FORWARDED_PORT:
            has_port = trusted
            f.drop = not trusted
        elif f.id == FIELD_X_REAL_IP:
            has_real_ip = trusted
            f.drop = not trusted
        elif f.id == FIELD_FORWARDED or f.id == FIELD_CLIENT_CERTIFICATE:
            f.drop = not trusted
    if peer_size:
        memcpy(work, peer, peer_size)
        work += peer_size
        head_add(h, b"X-Forwarded-For", 15, start, <size_t>(work - start))
        if not has_real_ip:
            size = put_address(work, address)
            head_add(h, b"X-Real-IP", 9, work, size)
            work += size
    elif work > start:
        head_add(h, b"X-Forwarded-For", 15, start, <size_t>(work - start) - 2)
    if not has_proto:
        head_add(h, b"X-Forwarded-Proto", 17, proto, proto_size)
    if not has_host and h.host.size:
        head_add(h, b"X-Forwarded-Host", 16, h.host.at, h.host.size)
    if not has_port and view.port:
        head_add(h, b"X-Forwarded-Port", 16, view.port_text, <size_t>view.port_text_size)
    if view.forwarded_header and peer_size:
        size = put_forwarded(work, peer, peer_size, h, proto, proto_size)
        head_add(h, b"Forwarded", 9, work, size)
        work += size
    if x.tls != NULL and x.tls.forward:
        add_client_certificate(x.tls, h, work)
    if trusted and not (x.d.c.local and memcmp(address, x.d.c.peer, 16) == 0):
        # From here on the log names the client, not the proxy. (`peer` has been copied.)
        x.client_text_size = <uint8_t>put_address(x.client_text, address)


cdef size_t put_forwarded(char* out, const char* peer, size_t peer_size, const head* h, const char* proto,
        size_t proto_size) noexcept nogil:
    """RFC 7239: an IPv6 address is quoted and in brackets."""
    cdef bint quoted = memchr(peer, c":", peer_size) != NULL
    cdef size_t size = 0
    memcpy(out, b"for=", 4)
    size = 4
    if quoted:
        memcpy(out + size, b"\"[", 2)
        size += 2
    memcpy(out + size, peer, peer_size)
    size += peer_size
    if quoted:
        memcpy(out + size, b"]\"", 2)
        size += 2
    if h.host.size:
        memcpy(out + size, b";host=\"", 7)
        size += 7
        memcpy(out + size, h.host.at, h.host.size)
        size += h.host.size
        out[size] = c"\""
        size += 1
    memcpy(out + size, b";proto=", 7)
    memcpy(out + size + 7, proto, proto_size)
    return size + 7 + proto_size
