"""TLS by OpenSSL (tls.pxd)."""
from libc.stdint cimport uint8_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memmove
from libc.time cimport time

from lb._fastpath.c.openssl cimport (
    ASN1_STRING,
    ASN1_STRING_get0_data,
    ASN1_STRING_length,
    ASN1_STRING_to_UTF8,
    BIO,
    BIO_CTRL_FLUSH,
    BIO_CTRL_GET_KTLS_SEND,
    BIO_METHOD,
    BIO_TYPE_SOURCE_SINK,
    BIO_clear_retry_flags,
    BIO_free,
    BIO_get_data,
    BIO_get_mem_data,
    BIO_get_new_index,
    BIO_meth_new,
    BIO_meth_set_ctrl,
    BIO_meth_set_read,
    BIO_meth_set_write,
    BIO_new,
    BIO_s_mem,
    BIO_set_data,
    BIO_set_init,
    BIO_set_retry_read,
    BIO_set_retry_write,
    BIO_up_ref,
    BIO_write,
    ERR_GET_REASON,
    ERR_clear_error,
    ERR_peek_last_error,
    ERR_reason_error_string,
    EVP_CIPHER,
    EVP_CIPHER_CTX,
    EVP_CIPHER_fetch,
    EVP_DecryptInit_ex,
    EVP_EncryptInit_ex,
    EVP_MAC_CTX,
    EVP_MAC_CTX_set_params,
    EVP_PKEY,
    EVP_PKEY_X25519,
    EVP_PKEY_free,
    EVP_PKEY_set_type,
    EVP_sha256,
    GEN_DNS,
    GEN_EMAIL,
    GEN_URI,
    GENERAL_NAME,
    GENERAL_NAME_get0_value,
    GENERAL_NAMES,
    GENERAL_NAMES_free,
    NID_commonName,
    NID_subject_alt_name,
    OPENSSL_free,
    OPENSSL_memdup,
    OSSL_PARAM,
    OSSL_PARAM_construct_end,
    OSSL_PARAM_construct_octet_string,
    OSSL_PARAM_construct_utf8_string,
    PEM_write_bio_X509,
    RAND_bytes,
    SSL,
    SSL3_RT_APPLICATION_DATA,
    SSL_AD_ACCESS_DENIED,
    SSL_AD_INTERNAL_ERROR,
    NID_kx_rsa,
    SSL_CIPHER,
    SSL_CIPHER_get_kx_nid,
    SSL_CIPHER_get_name,
    SSL_CIPHER_is_aead,
    SSL_CLIENT_HELLO_ERROR,
    SSL_CLIENT_HELLO_SUCCESS,
    SSL_CTX_free,
    SSL_CTX_sess_set_new_cb,
    SSL_CTX_set_alpn_select_cb,
    SSL_CTX_set_cert_cb,
    SSL_CTX_set_client_hello_cb,
    SSL_CTX_set_mode,
    SSL_CTX_set_options,
    SSL_CTX_set_session_cache_mode,
    SSL_CTX_set_tlsext_status_cb,
    SSL_CTX_set_tlsext_ticket_key_evp_cb,
    SSL_CTX_set_verify,
    SSL_CTX_set_verify_depth,
    SSL_ERROR_WANT_READ,
    SSL_ERROR_ZERO_RETURN,
    SSL_KEY_UPDATE_NONE,
    SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER,
    SSL_MODE_NO_AUTO_CHAIN,
    SSL_MODE_RELEASE_BUFFERS,
    SSL_OP_CIPHER_SERVER_PREFERENCE,
    SSL_OP_ENABLE_KTLS,
    SSL_OP_NO_COMPRESSION,
    SSL_OP_NO_RENEGOTIATION,
    SSL_OP_PRIORITIZE_CHACHA,
    SSL_R_CERTIFICATE_VERIFY_FAILED,
    SSL_SESSION,
    SSL_SESSION_free,
    SSL_SESS_CACHE_CLIENT,
    SSL_SESS_CACHE_NO_INTERNAL,
    SSL_SESS_CACHE_OFF,
    SSL_TLSEXT_ERR_ALERT_FATAL,
    SSL_TLSEXT_ERR_NOACK,
    SSL_TLSEXT_ERR_OK,
    SSL_VERIFY_FAIL_IF_NO_PEER_CERT,
    SSL_VERIFY_NONE,
    SSL_VERIFY_PEER,
    SSL_certs_clear,
    SSL_client_hello_get0_ext,
    SSL_do_handshake,
    SSL_free,
    SSL_get0_alpn_selected,
    SSL_get1_peer_certificate,
    SSL_get_SSL_CTX,
    SSL_get_certificate,
    SSL_get_current_cipher,
    SSL_get_error,
    SSL_get_ex_data_X509_STORE_CTX_idx,
    SSL_get_key_update_type,
    SSL_get_peer_tmp_key,
    SSL_get_pending_cipher,
    SSL_get_rbio,
    SSL_get_tmp_key,
    SSL_get_verify_result,
    SSL_get_version,
    SSL_has_pending,
    SSL_new,
    SSL_read,
    SSL_select_next_proto,
    SSL_session_reused,
    SSL_set_SSL_CTX,
    SSL_set_accept_state,
    SSL_set_alpn_protos,
    SSL_set_bio,
    SSL_set_connect_state,
    SSL_set_max_proto_version,
    SSL_set_min_proto_version,
    SSL_set_options,
    SSL_set_session,
    SSL_set_session_id_context,
    SSL_set_tlsext_host_name,
    SSL_set_tlsext_status_ocsp_resp,
    SSL_set_verify,
    SSL_set_verify_depth,
    SSL_shutdown,
    SSL_use_cert_and_key,
    SSL_version,
    SSL_write,
    TLS1_3_VERSION,
    TLSEXT_TYPE_server_name,
    X509_CHECK_FLAG_NEVER_CHECK_SUBJECT,
    X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS,
    X509_STORE_CTX,
    X509_STORE_CTX_get_current_cert,
    X509_STORE_CTX_get_error_depth,
    X509_STORE_CTX_get_ex_data,
    X509_STORE_CTX_set_error,
    X509_V_ERR_HOSTNAME_MISMATCH,
    X509_V_ERR_UNSPECIFIED,
    X509_V_OK,
    X509_check_host,
    X509_check_ip_asc,
    X509_NAME,
    X509_NAME_ENTRY_get_data,
    X509_NAME_get_entry,
    X509_NAME_get_index_by_NID,
    X509_NAME_print_ex,
    X509_digest,
    X509_free,
    X509_get0_serialNumber,
    X509_get_ext_d2i,
    X509_get_issuer_name,
    X509_get_subject_name,
    X509_verify_cert_error_string,
    XN_FLAG_RFC2253,
    i2a_ASN1_INTEGER,
    sk_GENERAL_NAME_num,
    sk_GENERAL_NAME_value,
)
from lb._fastpath.c.sys cimport (
    EAGAIN,
    EINTR,
    LB_UNRESERVED,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    errno,
    lb_add_ordered_int,
    lb_class,
    lb_load_ptr,
    lb_lower,
    send,
)
from lb._fastpath.counters cimport bump
from lb._fastpath.endpoint cimport MAX_REACTORS
from lb._fastpath.ktls cimport ktls_attach, ktls_send_record, ktls_take_keys
from lb._fastpath.table cimport find_host, vhost

# Of a common name nobody says whether it is one of a host (RFC 9110 4.3.4).
cdef unsigned int HOST_FLAGS = X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT

# OpenSSL asks a BIO to have its socket encrypt by these; <openssl/bio.h> has them in a comment only.
cdef enum:
    BIO_CTRL_SET_KTLS_SEND = 72
    BIO_CTRL_SET_KTLS_SEND_CTRL_MSG = 74

cdef BIO_METHOD* bio_method = NULL
cdef EVP_CIPHER* ticket_aes_256 = NULL
cdef EVP_CIPHER* ticket_aes_128 = NULL


# ------------------------------------------------------------------------------------------------ ciphertext in and out

# One BIO serves all connections of a reactor: only one of them is dealt with at a time, and a BIO for each would cost a
# connection at rest 200 bytes and a handshake three allocations.

cdef inline SSL* enter(tls* t) noexcept nogil:
    """Have what OpenSSL reads, writes and calls back for be this connection's."""
    t.r.tls_current = t
    return t.ssl


cdef inline tls* current(SSL* ssl) noexcept nogil:
    """The connection that OpenSSL calls back for."""
    return <tls*>(<reactor*>BIO_get_data(SSL_get_rbio(ssl))).tls_current


cdef int bio_read(BIO* bio, char* out, int size) noexcept nogil:
    cdef tls* t = <tls*>(<reactor*>BIO_get_data(bio)).tls_current
    cdef size_t n = <size_t>(t.in_end - t.in_at)
    BIO_clear_retry_flags(bio)
    if n == 0:
        BIO_set_retry_read(bio)
        return -1
    if n > <size_t>size:
        n = <size_t>size
    memcpy(out, t.in_at, n)
    t.in_at += n
    return <int>n


cdef int bio_write(BIO* bio, const char* data, int size) noexcept nogil:
    cdef reactor* r = <reactor*>BIO_get_data(bio)
    BIO_clear_retry_flags(bio)
    if (<tls*>r.tls_current).by_kernel:
        return write_record(bio, <tls*>r.tls_current, data, size)
    if r.tls_out_used + <uint32_t>size > TLS_OUT_BYTES:
        BIO_set_retry_write(bio)
        return -1
    memcpy(r.tls_out + r.tls_out_used, data, <size_t>size)
    r.tls_out_used += <uint32_t>size
    return size


cdef long bio_ctrl(BIO* bio, int command, long number, void* argument) noexcept nogil:
    cdef tls* t
    if command == BIO_CTRL_FLUSH:
        return 1
    if command != BIO_CTRL_SET_KTLS_SEND and command != BIO_CTRL_GET_KTLS_SEND and (
        command != BIO_CTRL_SET_KTLS_SEND_CTRL_MSG
    ):
        return 0
    t = <tls*>(<reactor*>BIO_get_data(bio)).tls_current
    if command == BIO_CTRL_SET_KTLS_SEND:
        return number and give_to_kernel(t, argument)  # 0 for what is received: that stays here
    if command == BIO_CTRL_SET_KTLS_SEND_CTRL_MSG:
        t.record_type = <uint8_t>number
    return t.by_kernel


cdef bint give_to_kernel(tls* t, const void* keys) noexcept nogil:
    """Have the kernel encrypt from here on, when all that was encrypted before has gone out. `keys`: as ktls_take_keys
    wants them. False: OpenSSL goes on.
    """
    cdef reactor* r = t.r
    cdef ssize_t sent
    if t.fd < 0 or t.by_kernel or not ktls_attach(t.fd):
        return False
    while r.tls_out_used:
        sent = send(t.fd, r.tls_out, r.tls_out_used, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0:
            if errno == EINTR:
                continue
            return False
        r.tls_out_used -= <uint32_t>sent
        memmove(r.tls_out, r.tls_out + sent, r.tls_out_used)
    if not ktls_take_keys(t.fd, keys):
        return False
    t.by_kernel = True
    t.record_type = <uint8_t>SSL3_RT_APPLICATION_DATA
    bump(&r.counts.tls_by_kernel)
    return True


cdef int write_record(BIO* bio, tls* t, const char* data, int size) noexcept nogil:
    """What OpenSSL says by itself, to be encrypted by the kernel: tickets, alerts, the end of TLS 1.2's handshake. None
    of them can wait among data; when the socket is full, the handshake fails or the goodbye is left unsaid.
    """
    cdef ssize_t sent = ktls_send_record(t.fd, t.record_type, data, <size_t>size)
    if sent < 0 and errno == EAGAIN:
        BIO_set_retry_write(bio)
    t.record_type = <uint8_t>SSL3_RT_APPLICATION_DATA
    return <int>sent


cdef bint tls_init() noexcept nogil:
    """Once in a process, before the first context."""
    global bio_method, ticket_aes_256, ticket_aes_128
    if bio_method != NULL:
        return True
    ticket_aes_256 = EVP_CIPHER_fetch(NULL, b"AES-256-CBC", NULL)
    ticket_aes_128 = EVP_CIPHER_fetch(NULL, b"AES-128-CBC", NULL)
    bio_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, b"lb")
    if bio_method == NULL or ticket_aes_256 == NULL or ticket_aes_128 == NULL:
        return False
    BIO_meth_set_read(bio_method, bio_read)
    BIO_meth_set_write(bio_method, bio_write)
    BIO_meth_set_ctrl(bio_method, bio_ctrl)
    return True


# --------------------------------------------------------------------------------------------------------------- life

cdef tls* tls_new(reactor* r, tls_context* context) noexcept nogil:
    cdef tls* t = <tls*>calloc(1, sizeof(tls))
    if t == NULL:
        return NULL
    t.fd = -1
    t.ssl = SSL_new(context.ctx)
    if t.ssl == NULL or not tls_move(t, r):
        tls_free(t)
        ERR_clear_error()
        return NULL
    if r.s.tls_by_kernel:
        SSL_set_options(t.ssl, SSL_OP_ENABLE_KTLS)
    return t


cdef bint tls_move(tls* t, reactor* r) noexcept nogil:
    """To the reactor whose connection it is from now on. False: no memory."""
    cdef BIO* bio = <BIO*>r.tls_bio
    if bio == NULL:
        bio = BIO_new(bio_method)
        if bio == NULL:
            return False
        BIO_set_data(bio, r)
        BIO_set_init(bio, 1)
        r.tls_bio = bio
    t.r = r
    BIO_up_ref(bio)
    SSL_set_bio(t.ssl, bio, bio)
    return True


cdef void tls_release(reactor* r) noexcept nogil:
    """After its thread has ended."""
    if r.tls_bio != NULL:
        BIO_free(<BIO*>r.tls_bio)
        r.tls_bio = NULL


cdef tls* tls_new_server(reactor* r, const tls_view* view) noexcept nogil:
    """For a client of this listener; which host's certificate it gets is decided by its first message."""
    cdef tls* t = tls_new(r, (<const tls_host*>view.fallback).context)
    if t != NULL:
        SSL_set_accept_state(t.ssl)
    return t


cdef tls* tls_new_client(reactor* r, tls_context* context, int offer) noexcept nogil:
    """For a connection to an endpoint."""
    cdef tls* t = tls_new(r, context)
    if t == NULL:
        return NULL
    t.context = context
    lb_add_ordered_int(&context.references, 1)
    SSL_set_connect_state(t.ssl)
    if context.server_name[0]:
        SSL_set_tlsext_host_name(t.ssl, context.server_name)
    if offer == OFFER_HTTP1:
        SSL_set_alpn_protos(t.ssl, <const unsigned char*>b"\x08http/1.1", 9)
    elif offer == OFFER_NOTHING:
        SSL_set_alpn_protos(t.ssl, NULL, 0)
    if context.sessions[r.index] != NULL:
        SSL_set_session(t.ssl, context.sessions[r.index])
    return t


cdef void tls_carry(tls* t, const uint8_t* alpn, uint32_t alpn_size) noexcept nogil:
    """What is spoken with this client is not HTTP, but one of these (ALPN, each behind its length) or nobody knows."""
    if t == NULL:
        return
    t.carried = True
    t.alpn = alpn
    t.alpn_size = alpn_size


cdef void tls_offer_same(tls* t, const tls* client) noexcept nogil:
    """Offer an endpoint what has been agreed on with its client: the two will speak it."""
    cdef const unsigned char* chosen = NULL
    cdef unsigned char offer[256]
    cdef unsigned int size = 0
    SSL_get0_alpn_selected(client.ssl, &chosen, &size)
    if size:
        offer[0] = <unsigned char>size
        memcpy(offer + 1, chosen, size)
        SSL_set_alpn_protos(t.ssl, offer, size + 1)


cdef void tls_free(tls* t) noexcept nogil:
    if t == NULL:
        return
    if t.ssl != NULL:
        SSL_free(t.ssl)
    if t.context != NULL:
        tls_context_release(t.context)
    free(t.client)
    free(t.sni)
    free(t)


cdef void tls_context_release(tls_context* context) noexcept nogil:
    cdef int i
    if lb_add_ordered_int(&context.references, -1) > 0:
        return
    if context.sessions != NULL:
        for i in range(MAX_REACTORS):
            SSL_SESSION_free(context.sessions[i])
        free(context.sessions)
    SSL_CTX_free(context.ctx)
    free(context.names)
    free(context)


# ----------------------------------------------------------------------------------------------------------- handshake

cdef int tls_handshake(tls* t, const tls_view* view) noexcept nogil:
    """Go on with the handshake: TLS_DONE, TLS_AGAIN or TLS_FAILED. What is to be sent stands in tls_out, also after a
    failure (the alert).
    """
    cdef int result
    cdef const unsigned char* protocol = NULL
    cdef unsigned int size = 0
    t.view = view
    result = SSL_do_handshake(enter(t))
    t.view = NULL
    t.host = NULL
    if result != 1:
        if SSL_get_error(t.ssl, result) == SSL_ERROR_WANT_READ:
            return TLS_AGAIN
        if t.why == NULL:
            t.why = mistake(t)
        ERR_clear_error()
        return TLS_FAILED
    if t.context != NULL and t.context.names != NULL and not t.named and not SSL_session_reused(t.ssl):
        return TLS_FAILED  # nobody has looked at the name: that must not pass for having looked
    t.established = True
    SSL_get0_alpn_selected(t.ssl, &protocol, &size)
    t.h2 = size == 2 and memcmp(protocol, b"h2", 2) == 0
    if t.context == NULL:
        note_client(t)
        forget_certificates(t)
    forget_keys(t)
    return TLS_DONE


cdef const char* mistake(const tls* t) noexcept nogil:
    """OpenSSL's own words for what has ended a handshake or a connection, which live as long as the process; of a
    certificate that is not accepted, why not.
    """
    cdef unsigned long error = ERR_peek_last_error()
    if ERR_GET_REASON(error) == SSL_R_CERTIFICATE_VERIFY_FAILED:
        return X509_verify_cert_error_string(SSL_get_verify_result(t.ssl))
    return ERR_reason_error_string(error)


# What only the handshake needs would stay as long as the connection does: a kilobyte, and keys that an attacker of this
# process could use.

cdef void forget_certificates(tls* t) noexcept nogil:
    SSL_certs_clear(t.ssl)


cdef void forget_keys(tls* t) noexcept nogil:
    """The two halves of the key exchange. OpenSSL lets them be seen but not taken away: they are emptied."""
    cdef EVP_PKEY* key = NULL
    if SSL_get_tmp_key(t.ssl, &key) == 1:
        empty_key(key)
    if SSL_get_peer_tmp_key(t.ssl, &key) == 1:
        empty_key(key)


cdef void empty_key(EVP_PKEY* key) noexcept nogil:
    EVP_PKEY_set_type(key, EVP_PKEY_X25519)
    EVP_PKEY_free(key)


cdef const tls_host* tls_lookup(const tls_view* view, const char* name, size_t size) noexcept nogil:
    """What a name (lower case) is served with: its own, its wildcard's, else the default."""
    cdef const vhost* found = find_host(view.hosts, name, size) if size else NULL
    return <const tls_host*>(found.payload if found != NULL else view.fallback)


cdef int on_client_hello(SSL* ssl, int* alert, void* argument) noexcept nogil:
    """Before anything is decided: whom the client wants, and what that name asks of it."""
    cdef tls* t = current(ssl)
    cdef const unsigned char* extension = NULL
    cdef size_t size = 0
    cdef tls_context* context
    cdef int mode
    if t.view == NULL:
        alert[0] = SSL_AD_INTERNAL_ERROR
        return SSL_CLIENT_HELLO_ERROR
    if SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_server_name, &extension, &size) == 1:
        note_server_name(t, extension, size)
    t.host = tls_lookup(t.view, t.sni, t.sni_size)
    t.forward = <uint8_t>t.host.forward
    context = t.host.context
    if context.client_mode == CLIENTS_REFUSED:
        alert[0] = SSL_AD_ACCESS_DENIED
        t.why = b"no client of this name is let in"
        return SSL_CLIENT_HELLO_ERROR
    t.context_id = context.id
    if SSL_get_SSL_CTX(ssl) != context.ctx:
        # SSL_set_SSL_CTX takes the certificates, ciphers and callbacks along, and none of these:
        SSL_set_SSL_CTX(ssl, context.ctx)
        mode = verify_mode(context.client_mode)
        if context.client_mode == CLIENTS_UNVERIFIED:
            SSL_set_verify(ssl, mode, accept_any)
        else:
            SSL_set_verify(ssl, mode, NULL)
        SSL_set_verify_depth(ssl, context.depth)
        SSL_set_min_proto_version(ssl, context.min_version)
        SSL_set_max_proto_version(ssl, context.max_version)
    # Resumption never crosses from one policy to another (CVE-2025-23419).
    SSL_set_session_id_context(ssl, context.identity, sizeof(context.identity))
    return SSL_CLIENT_HELLO_SUCCESS


cdef void note_server_name(tls* t, const unsigned char* p, size_t size) noexcept nogil:
    """The first host name of the extension (RFC 6066 3), lower case and without a trailing dot; what no hostname can
    be counts as none.
    """
    cdef size_t length, i
    cdef uint8_t c
    if t.sni != NULL or size < 5 or (<size_t>p[0] << 8 | p[1]) != size - 2 or p[2] != 0:
        return
    length = <size_t>p[3] << 8 | p[4]
    if length > size - 5:
        return
    p += 5
    if length and p[length - 1] == c".":
        length -= 1
    if length == 0 or length > 253:
        return
    for i in range(length):
        c = p[i]
        if not (lb_class[c] & LB_UNRESERVED) or c == c"~":
            return
    t.sni = <char*>malloc(length)
    if t.sni == NULL:
        return
    for i in range(length):
        t.sni[i] = <char>lb_lower[p[i]]
    t.sni_size = <uint8_t>length


cdef int on_certificate(SSL* ssl, void* argument) noexcept nogil:
    """Put the host's certificates on the connection; OpenSSL takes the one whose kind the client understands."""
    cdef tls* t = current(ssl)
    cdef tls_certificate* one
    cdef int i
    if t.host == NULL:
        return 0
    for i in range(t.host.certificate_count):
        one = t.host.certificates[i]
        if SSL_use_cert_and_key(ssl, one.leaf, one.key, one.chain, 1) != 1:
            return 0
    return 1


cdef int on_status_request(SSL* ssl, void* argument) noexcept nogil:
    """Staple the OCSP response of the certificate that was chosen (RFC 6066 8); none is better than one whose time is
    over, which clients must not take (RFC 6960 3.2). HAProxy does so, and nginx with those it has fetched.
    """
    cdef tls* t = current(ssl)
    cdef tls_certificate* one
    cdef void* copy
    cdef int i
    if t.host == NULL:
        return SSL_TLSEXT_ERR_NOACK
    for i in range(t.host.certificate_count):
        one = t.host.certificates[i]
        if one.ocsp_size and one.leaf == SSL_get_certificate(ssl):
            if one.ocsp_until and one.ocsp_until <= time(NULL):
                return SSL_TLSEXT_ERR_NOACK
            copy = OPENSSL_memdup(one.ocsp, <size_t>one.ocsp_size)
            if copy == NULL:
                return SSL_TLSEXT_ERR_NOACK
            SSL_set_tlsext_status_ocsp_resp(ssl, <unsigned char*>copy, one.ocsp_size)
            return SSL_TLSEXT_ERR_OK
    return SSL_TLSEXT_ERR_NOACK


cdef int on_alpn(SSL* ssl, const unsigned char** out, unsigned char* out_size, const unsigned char* offered,
        unsigned int size, void* argument) noexcept nogil:
    """The best of ours that the client offers; none in common ends the handshake (RFC 7301 3.2)."""
    cdef tls_context* context = <tls_context*>argument
    cdef tls* t = current(ssl)
    cdef unsigned int first = 0 if is_adequate(SSL_get_pending_cipher(ssl)) else <unsigned int>1 + context.alpn[0]
    cdef unsigned char* chosen = NULL
    if t.carried and t.alpn_size == 0:
        return SSL_TLSEXT_ERR_NOACK
    if t.carried:
        if SSL_select_next_proto(&chosen, out_size, t.alpn, t.alpn_size, offered, size) != 1:
            return SSL_TLSEXT_ERR_ALERT_FATAL
        out[0] = chosen
        return SSL_TLSEXT_ERR_OK
    if SSL_select_next_proto(&chosen, out_size, context.alpn + first, context.alpn_size - first, offered, size) != 1:
        return SSL_TLSEXT_ERR_ALERT_FATAL
    out[0] = chosen
    return SSL_TLSEXT_ERR_OK


cdef bint is_adequate(const SSL_CIPHER* cipher) noexcept nogil:
    """Whether HTTP/2, the first of our protocols, may be spoken with it: clients break off over those that RFC 9113 A
    lists, which are all without ephemeral keys or authenticated encryption.
    """
    if cipher == NULL or not SSL_CIPHER_is_aead(cipher):
        return False
    return SSL_CIPHER_get_kx_nid(cipher) != NID_kx_rsa


cdef int on_ticket(SSL* ssl, unsigned char* name, unsigned char* iv, EVP_CIPHER_CTX* cipher, EVP_MAC_CTX* mac,
        int encrypt) noexcept nogil:
    """RFC 5077: keys come from the control plane and are the same in all reactors. Tickets have nginx's form
    (ngx_ssl_session_ticket_key_callback).
    """
    cdef ticket_keys* keys = <ticket_keys*>lb_load_ptr(&current(ssl).r.s.ticket_keys)
    cdef ticket_key* key = NULL
    cdef EVP_CIPHER* aes
    cdef OSSL_PARAM params[3]
    cdef int i
    if keys == NULL or keys.count == 0:
        return 0
    if encrypt:
        i = 0
        key = &keys.keys[0]
        if RAND_bytes(iv, 16) != 1:
            return -1
        memcpy(name, key.name, 16)
    else:
        for i in range(keys.count):
            if memcmp(name, keys.keys[i].name, 16) == 0:
                key = &keys.keys[i]
                break
        if key == NULL:
            return 0
    params[0] = OSSL_PARAM_construct_octet_string(b"key", key.hmac, key.size)
    params[1] = OSSL_PARAM_construct_utf8_string(b"digest", <char*><const char*>b"SHA256", 0)
    params[2] = OSSL_PARAM_construct_end()
    if EVP_MAC_CTX_set_params(mac, params) != 1:
        return -1
    aes = ticket_aes_256 if key.size == 32 else ticket_aes_128
    if encrypt:
        return 1 if EVP_EncryptInit_ex(cipher, aes, NULL, key.aes, iv) == 1 else -1
    if EVP_DecryptInit_ex(cipher, aes, NULL, key.aes, iv) != 1:
        return -1
    # 2: give the client a new one. With TLS 1.3 each ticket is for one connection (RFC 8446 C.4).
    return 1 if i == 0 and SSL_version(ssl) != TLS1_3_VERSION else 2


cdef int on_new_session(SSL* ssl, SSL_SESSION* session) noexcept nogil:
    """Client side: keep the newest session for the next connection. The reference is ours when 1 is returned."""
    cdef tls* t = current(ssl)
    cdef SSL_SESSION** place
    if t.context == NULL:
        return 0
    place = &t.context.sessions[t.r.index]
    if place[0] != NULL:
        SSL_SESSION_free(place[0])
    place[0] = session
    return 1


cdef int accept_any(int ok, X509_STORE_CTX* store) noexcept nogil:
    return 1


cdef int verify_names(int ok, X509_STORE_CTX* store) noexcept nogil:
    """Whether an endpoint's certificate has one of the names that its upstream wants (RFC 9110 4.3.4).

    OpenSSL's own check wants a host and an address both when it is given both, and knows one address only.
    """
    cdef tls* t
    cdef X509* leaf
    cdef wanted_name* name
    cdef int i
    if not ok or X509_STORE_CTX_get_error_depth(store) != 0:
        return ok
    t = current(<SSL*>X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()))
    leaf = X509_STORE_CTX_get_current_cert(store)
    for i in range(t.context.name_count):
        name = &t.context.names[i]
        if name.is_address:
            t.named = X509_check_ip_asc(leaf, name.text, 0) == 1
        else:
            t.named = X509_check_host(leaf, name.text, 0, HOST_FLAGS, NULL) == 1
        if t.named:
            return 1
    X509_STORE_CTX_set_error(store, X509_V_ERR_HOSTNAME_MISMATCH)
    return 0


cdef int verify_mode(int client_mode) noexcept nogil:
    if client_mode == CLIENTS_NOT_ASKED:
        return SSL_VERIFY_NONE
    if client_mode == CLIENTS_REQUIRED:
        return SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT
    return SSL_VERIFY_PEER


cdef void prepare_common(tls_context* context) noexcept nogil:
    SSL_CTX_set_mode(context.ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
        SSL_MODE_NO_AUTO_CHAIN)
    SSL_CTX_set_options(context.ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION)


cdef void prepare_server_context(tls_context* context) noexcept nogil:
    """What all contexts of servers have in common."""
    prepare_common(context)
    SSL_CTX_set_options(context.ctx, SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA)
    SSL_CTX_set_session_cache_mode(context.ctx, SSL_SESS_CACHE_OFF)  # tickets only
    if context.client_mode == CLIENTS_UNVERIFIED:
        SSL_CTX_set_verify(context.ctx, SSL_VERIFY_PEER, accept_any)
    else:
        SSL_CTX_set_verify(context.ctx, verify_mode(context.client_mode), NULL)
    SSL_CTX_set_verify_depth(context.ctx, context.depth)
    SSL_CTX_set_client_hello_cb(context.ctx, on_client_hello, NULL)
    SSL_CTX_set_cert_cb(context.ctx, on_certificate, NULL)
    SSL_CTX_set_alpn_select_cb(context.ctx, on_alpn, context)
    SSL_CTX_set_tlsext_ticket_key_evp_cb(context.ctx, on_ticket)
    SSL_CTX_set_tlsext_status_cb(context.ctx, on_status_request)


cdef void prepare_client_context(tls_context* context) noexcept nogil:
    """What all contexts of clients have in common."""
    prepare_common(context)
    SSL_CTX_set_session_cache_mode(context.ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL)
    SSL_CTX_sess_set_new_cb(context.ctx, on_new_session)


# --------------------------------------------------------------------------------------------------------------- bytes

cdef ssize_t tls_decrypt(tls* t, char* out, size_t room) noexcept nogil:
    """The plaintext of what stands at `in_at`: how much, 0 when a record is not complete yet, or TLS_FAILED.

    After the peer's goodbye `closed` is set, after a failure `failed`. `room` is more than the plaintext can be.
    """
    cdef size_t total = 0
    cdef int n, error
    while not t.closed and total < room:
        n = SSL_read(enter(t), out + total, <int>(room - total))
        if n <= 0:
            error = SSL_get_error(t.ssl, n)
            if error == SSL_ERROR_ZERO_RETURN:
                t.closed = True
            elif error != SSL_ERROR_WANT_READ:
                t.why = mistake(t)
                ERR_clear_error()
                t.failed = True
                return <ssize_t>total if total else TLS_FAILED
            break
        total += <size_t>n
        if t.in_at == t.in_end and not SSL_has_pending(t.ssl):
            break  # all is used, and no part of a record is left: OpenSSL need not be asked again
    if t.by_kernel and SSL_get_key_update_type(t.ssl) != SSL_KEY_UPDATE_NONE:
        # The peer wants new keys before anything else is sent (RFC 8446 4.6.3), and the kernel cannot be given them:
        # Linux takes them from 6.14 on, OpenSSL 3.0 hands them to nobody. So nothing may be answered any more, not even
        # what came with it.
        t.failed = True
        return TLS_FAILED
    return <ssize_t>total


cdef bint tls_encrypt(tls* t, const char* data, size_t size) noexcept nogil:
    """One record of at most TLS_RECORD bytes, for which tls_out has room."""
    if SSL_write(enter(t), data, <int>size) == <int>size:
        return True
    ERR_clear_error()
    return False


cdef void tls_say_goodbye(tls* t) noexcept nogil:
    """close_notify (RFC 8446 6.1)."""
    if t.established and SSL_shutdown(enter(t)) < 0:
        ERR_clear_error()


# --------------------------------------------------------------------------------------------------------------- facts

cdef const char* tls_version(const tls* t) noexcept nogil:
    return SSL_get_version(t.ssl)


cdef const char* tls_cipher(const tls* t) noexcept nogil:
    return SSL_CIPHER_get_name(SSL_get_current_cipher(t.ssl))


cdef bint tls_resumed(const tls* t) noexcept nogil:
    return SSL_session_reused(t.ssl) != 0


cdef const unsigned char* tls_alpn(const tls* t, uint32_t* size) noexcept nogil:
    """The protocol that was agreed on; `size` is 0 when there is none."""
    cdef const unsigned char* protocol = NULL
    cdef unsigned int length = 0
    SSL_get0_alpn_selected(t.ssl, &protocol, &length)
    size[0] = length
    return protocol


cdef uint32_t tls_verify_result(const tls* t) noexcept nogil:
    """0 when the client has shown a certificate that holds, else OpenSSL's number for what is wrong."""
    return <uint32_t>SSL_get_verify_result(t.ssl) if t.client != NULL else X509_V_ERR_UNSPECIFIED


cdef uint32_t tls_common_name(const tls* t, char* out, uint32_t room) noexcept nogil:
    """The first common name of the client's certificate in UTF-8, and its size; 0: there is none, or no room for it."""
    cdef X509* leaf = SSL_get1_peer_certificate(t.ssl)
    cdef const X509_NAME* subject
    cdef unsigned char* text = NULL
    cdef int at, size
    cdef uint32_t copied = 0
    if leaf == NULL:
        return 0
    subject = X509_get_subject_name(leaf)
    at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1)
    if at >= 0:
        size = ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)))
        if 0 < size <= <int>room:
            memcpy(out, text, <size_t>size)
            copied = <uint32_t>size
        OPENSSL_free(text)
    X509_free(leaf)
    ERR_clear_error()
    return copied


cdef void put_name(BIO* out, const X509_NAME* name) noexcept nogil:
    X509_NAME_print_ex(out, name, 0, XN_FLAG_RFC2253)


cdef void put_bytes(BIO* out, const char* data, int size) noexcept nogil:
    BIO_write(out, data, size)


cdef void note_client(tls* t) noexcept nogil:
    """Read the client's certificate once; most connections have none."""
    cdef X509* leaf = SSL_get1_peer_certificate(t.ssl)
    cdef BIO* out
    cdef uint32_t ends[7]
    cdef client_text* texts
    cdef char* data = NULL
    cdef long size
    cdef uint32_t start = 0
    cdef int i
    if leaf == NULL:
        return
    out = BIO_new(BIO_s_mem())
    if out == NULL:
        X509_free(leaf)
        return
    put_verify(t, out)
    ends[0] = written(out)
    put_name(out, X509_get_subject_name(leaf))
    ends[1] = written(out)
    put_name(out, X509_get_issuer_name(leaf))
    ends[2] = written(out)
    i2a_ASN1_INTEGER(out, X509_get0_serialNumber(leaf))
    ends[3] = written(out)
    put_fingerprint(out, leaf)
    ends[4] = written(out)
    put_alternative_names(out, leaf)
    ends[5] = written(out)
    put_pem(out, leaf)
    ends[6] = written(out)
    size = BIO_get_mem_data(out, &data)
    t.client = <client_facts*>malloc(sizeof(client_facts) + <size_t>size)
    if t.client != NULL:
        memcpy(<char*>t.client + sizeof(client_facts), data, <size_t>size)
        texts = <client_text*>t.client
        for i in range(7):
            texts[i].at = <char*>t.client + sizeof(client_facts) + start
            texts[i].size = ends[i] - start
            start = ends[i]
    BIO_free(out)
    X509_free(leaf)
    ERR_clear_error()


cdef uint32_t written(BIO* out) noexcept nogil:
    cdef char* data = NULL
    return <uint32_t>BIO_get_mem_data(out, &data)


cdef void put_verify(tls* t, BIO* out) noexcept nogil:
    cdef long result = SSL_get_verify_result(t.ssl)
    cdef const char* text
    if result == X509_V_OK:
        put_bytes(out, b"SUCCESS", 7)
        return
    put_bytes(out, b"FAILED:", 7)
    text = X509_verify_cert_error_string(result)
    put_bytes(out, text, length_of(text))


cdef int length_of(const char* text) noexcept nogil:
    cdef int size = 0
    while text[size]:
        size += 1
    return size


cdef void put_fingerprint(BIO* out, X509* leaf) noexcept nogil:
    cdef unsigned char digest[64]
    cdef unsigned int size = 0, i
    cdef char pair[4]
    X509_digest(leaf, EVP_sha256(), digest, &size)
    for i in range(size):
        snprintf(pair, sizeof(pair), b"%02x", digest[i])
        put_bytes(out, pair, 2)


cdef void put_alternative_names(BIO* out, X509* leaf) noexcept nogil:
    """`DNS:a,URI:b`. A name with a control character in it (CVE-2026-47778) or a comma is left out."""
    cdef GENERAL_NAMES* names = <GENERAL_NAMES*>X509_get_ext_d2i(leaf, NID_subject_alt_name, NULL, NULL)
    cdef GENERAL_NAME* name
    cdef ASN1_STRING* text
    cdef const char* p
    cdef int i, kind = 0, size
    cdef bint first = True
    if names == NULL:
        return
    for i in range(sk_GENERAL_NAME_num(names)):
        name = sk_GENERAL_NAME_value(names, i)
        text = <ASN1_STRING*>GENERAL_NAME_get0_value(name, &kind)
        if kind != GEN_DNS and kind != GEN_URI and kind != GEN_EMAIL:
            continue
        p = <const char*>ASN1_STRING_get0_data(text)
        size = ASN1_STRING_length(text)
        if not is_plain(p, size):
            continue
        if not first:
            put_bytes(out, b",", 1)
        first = False
        if kind == GEN_DNS:
            put_bytes(out, b"DNS:", 4)
        elif kind == GEN_URI:
            put_bytes(out, b"URI:", 4)
        else:
            put_bytes(out, b"email:", 6)
        put_bytes(out, p, size)
    GENERAL_NAMES_free(names)


cdef bint is_plain(const char* p, int size) noexcept nogil:
    cdef int i
    for i in range(size):
        if <uint8_t>p[i] <= 0x20 or <uint8_t>p[i] >= 0x7f or p[i] == c"," or p[i] == c";" or p[i] == c'"':
            return False
    return size > 0


cdef void put_pem(BIO* out, X509* leaf) noexcept nogil:
    """URL-encoded, as XFCC and nginx's $ssl_client_escaped_cert have it."""
    cdef const char* digits = b"0123456789ABCDEF"
    cdef BIO* plain = BIO_new(BIO_s_mem())
    cdef char* data = NULL
    cdef char triple[3]
    cdef long size, i
    cdef uint8_t c
    if plain == NULL:
        return
    PEM_write_bio_X509(plain, leaf)
    size = BIO_get_mem_data(plain, &data)
    triple[0] = c"%"
    for i in range(size):
        c = <uint8_t>data[i]
        if lb_class[c] & LB_UNRESERVED:
            put_bytes(out, data + i, 1)
        else:
            triple[1] = digits[c >> 4]
            triple[2] = digits[c & 15]
            put_bytes(out, triple, 3)
    BIO_free(plain)
