"""Keeping PROXY headers of clients, and writing those to endpoints (announce.pxd)."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from lb._fastpath.c.sys cimport (
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    getsockname,
    send,
    sockaddr,
    sockaddr_storage,
    socklen_t,
    ssize_t,
)
from lb._fastpath.memory cimport page, page_alloc, page_data, slab_alloc
from lb._fastpath.proxy_protocol cimport (
    CLIENT_CERT_CONN,
    CLIENT_CERT_SESS,
    CLIENT_SSL,
    PROXY_MOST,
    PROXY_V1,
    TELL_ALPN,
    TELL_AUTHORITY,
    TELL_CRC32C,
    TELL_SSL,
    TELL_UNIQUE_ID,
    VALUE_ALPN,
    VALUE_AUTHORITY,
    VALUE_CRC32C,
    VALUE_NOOP,
    VALUE_SSL,
    VALUE_SSL_CIPHER,
    VALUE_SSL_CN,
    VALUE_SSL_VERSION,
    VALUE_UNIQUE_ID,
    proxy_add,
    proxy_begin,
    proxy_close,
    proxy_end_header,
    proxy_fits,
    proxy_next,
    proxy_open,
    proxy_put,
    proxy_value,
    proxy_write_v1,
    proxy_writer,
)
from lb._fastpath.tls cimport tls, tls_alpn, tls_cipher, tls_common_name, tls_resumed, tls_verify_result, tls_version
from lb._fastpath.transport cimport kept_values, note_address, proxied

cdef enum:
    COMMON_NAME_MOST = 256


# --------------------------------------------------------------------------------------------------------- from proxies

cdef bint keep_header(conn* client, const proxy_header* header) noexcept nogil:
    """The client is whom the header names, and what else it says stays with the connection. False: no memory."""
    cdef proxied* kept
    if not header.client.known and header.values.size == 0:
        return True  # the proxy speaks for itself, or does not know
    kept = <proxied*>slab_alloc(&client.base.r.proxied_slab)
    if kept == NULL:
        return False
    client.proxied = kept
    if not client.local:
        memcpy(kept.proxy, client.peer, 16)
        kept.proxy_known = True
    if header.client.known:
        client.local = 0  # whoever has told the address by a Unix socket: it is that of a client, who is not trusted
        memcpy(client.peer, header.client.address, 16)
        client.peer_port = header.client.port
        memcpy(kept.target, header.target.address, 16)
        kept.target_port = header.target.port
        kept.target_known = header.target.known
    return keep_values(client, header.values)


cdef bint keep_values(conn* client, proxy_value rest) noexcept nogil:
    """All but those that are each sender's own."""
    cdef proxy_value all_of_them = rest
    cdef proxy_value value
    cdef page* p = NULL
    cdef int kind = 0
    cdef uint32_t size
    while rest.size:
        value = proxy_next(&rest, &kind)
        if kind == VALUE_CRC32C or kind == VALUE_NOOP:
            continue
        if p == NULL:
            p = page_alloc(&client.base.r.pages, all_of_them.size)
            if p == NULL:
                return False
            client.proxied.values = p
        size = <uint32_t>(rest.at - (value.at - 3))
        memcpy(page_data(p) + p.end, value.at - 3, size)
        p.end += size
    return True


# --------------------------------------------------------------------------------------------------------- to endpoints

cdef bint target_of(const conn* client, proxy_end* target) noexcept nogil:
    """Whom the client has connected to: what the proxy before lb says, else the address of lb that took it."""
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(address)
    if client.proxied != NULL and client.proxied.target_known:
        memcpy(target.address, client.proxied.target, 16)
        target.port = client.proxied.target_port
        target.known = True
    else:
        memset(&address, 0, sizeof(address))
        target.known = getsockname(client.base.fd, <sockaddr*>&address, &size) == 0 and note_address(
            &address, target.address, &target.port
        )
    return target.known


cdef bint announce_client(conn* u, const conn* client, const upstream_view* view, const char* unique_id,
        uint32_t unique_id_size) noexcept nogil:
    """Begin a connection with a PROXY header. `unique_id` stands in the access log, too; its size is 0 when there is
    none. A fresh socket takes so few bytes; False when it is broken.
    """
    cdef char header[PROXY_MOST]
    cdef proxy_end source, target
    cdef proxy_writer w
    cdef uint32_t size
    cdef int told
    memcpy(source.address, client.peer, 16)
    source.port = client.peer_port
    source.known = not client.local
    target_of(client, &target)
    if view.proxy_protocol == PROXY_V1:
        size = proxy_write_v1(&source, &target, header)
    else:
        proxy_begin(&w, &source, &target, <uint8_t*>header)
        told = put_own(&w, client, view.proxy_values)
        if view.proxy_values & TELL_UNIQUE_ID and unique_id_size:
            proxy_add(&w, VALUE_UNIQUE_ID, unique_id, unique_id_size)
            told |= TELL_UNIQUE_ID
        pass_values_on(&w, client, told)
        size = proxy_end_header(&w, (view.proxy_values & TELL_CRC32C) != 0)
    return send(u.base.fd, header, size, MSG_NOSIGNAL | MSG_DONTWAIT) == <ssize_t>size


cdef int put_own(proxy_writer* w, const conn* client, int wanted) noexcept nogil:
    """What lb knows itself, of what is wanted; the result says what there was to tell (TELL_…)."""
    cdef const tls* t = client.tls
    cdef const char* name = NULL
    cdef uint32_t size = 0
    cdef int told = 0
    if t != NULL:
        name = t.sni
        size = t.sni_size
    elif client.hello != NULL:  # its TLS is carried and not spoken
        name = client.hello.name
        size = client.hello.name_size
    if wanted & TELL_ALPN and t != NULL and put_alpn(w, t):
        told |= TELL_ALPN
    if wanted & TELL_AUTHORITY and size:
        proxy_add(w, VALUE_AUTHORITY, name, size)
        told |= TELL_AUTHORITY
    if wanted & TELL_SSL and t != NULL:
        put_ssl(w, t)
        told |= TELL_SSL
    return told


cdef bint put_alpn(proxy_writer* w, const tls* t) noexcept nogil:
    cdef uint32_t size = 0
    cdef const unsigned char* protocol = tls_alpn(t, &size)
    if size == 0:
        return False
    proxy_add(w, VALUE_ALPN, protocol, size)
    return True


cdef void put_ssl(proxy_writer* w, const tls* t) noexcept nogil:
    cdef char name[COMMON_NAME_MOST]
    cdef uint8_t fixed[5]
    cdef uint32_t start = proxy_open(w, VALUE_SSL)
    cdef uint32_t size = 0
    cdef uint32_t result = tls_verify_result(t)
    fixed[0] = CLIENT_SSL
    if t.client != NULL:
        fixed[0] |= CLIENT_CERT_SESS if tls_resumed(t) else CLIENT_CERT_SESS | CLIENT_CERT_CONN
        size = tls_common_name(t, name, COMMON_NAME_MOST)
    fixed[1] = <uint8_t>(result >> 24)
    fixed[2] = <uint8_t>(result >> 16 & 255)
    fixed[3] = <uint8_t>(result >> 8 & 255)
    fixed[4] = <uint8_t>(result & 255)
    proxy_put(w, fixed, sizeof(fixed))
    put_text(w, VALUE_SSL_VERSION, tls_version(t))
    put_text(w, VALUE_SSL_CIPHER, tls_cipher(t))
    if size:
        proxy_add(w, VALUE_SSL_CN, name, size)
    proxy_close(w, start)


cdef void put_text(proxy_writer* w, int kind, const char* text) noexcept nogil:
    cdef size_t size = 0
    while text[size]:
        size += 1
    proxy_add(w, kind, text, size)


cdef void pass_values_on(proxy_writer* w, const conn* client, int told) noexcept nogil:
    """What a proxy has said, but for what lb has told itself, and for what there is no room left."""
    cdef proxy_value rest = kept_values(client)
    cdef proxy_value value
    cdef int kind = 0
    while rest.size:
        value = proxy_next(&rest, &kind)
        if not told & told_by(kind) and proxy_fits(w, value.size):
            proxy_add(w, kind, value.at, value.size)


cdef int told_by(int kind) noexcept nogil:
    if kind == VALUE_ALPN:
        return TELL_ALPN
    if kind == VALUE_AUTHORITY:
        return TELL_AUTHORITY
    if kind == VALUE_SSL:
        return TELL_SSL
    return TELL_UNIQUE_ID if kind == VALUE_UNIQUE_ID else 0
