"""TLS as a transformation of bytes: plain to encrypted and back, by OpenSSL, without a socket.

The reactor's scratch holds the ciphertext on both sides: transport puts what it has received at `in_at`, and sends what
has gathered in `r.tls_out`. Between two events a connection at rest holds no buffer, here or in OpenSSL.

What names share is a context (one SSL_CTX): versions, ciphers, ALPN, and what is asked of clients. Certificates are no
part of it; they are put on a connection when its client has said whom it wants.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from lb._fastpath.c.openssl cimport EVP_PKEY, SSL, SSL_CTX, SSL_SESSION, STACK_OF_X509, X509, X509_STORE_CTX
from lb._fastpath.c.sys cimport ssize_t
from lb._fastpath.reactor cimport reactor
from lb._fastpath.table cimport tls_view

cdef enum:
    TLS_IN_BYTES = 49152  # received at a time: with what OpenSSL holds of a record its plaintext fits one scratch
    TLS_OUT_BYTES = 81920
    TLS_RECORD = 16384
    TLS_OVERHEAD = 512  # more than a record adds
    TICKET_KEYS = 8
    # Bytes of several whole records, of which not one in 64 was plaintext: the peer only makes work. A key update is
    # a record of 27 bytes, and new keys are derived for each.
    FRUITLESS_MOST = 131072
    FRUITLESS_SHARE = 64

cdef enum:  # results
    TLS_DONE = 1
    TLS_AGAIN = 0
    TLS_FAILED = -1
    TLS_CLOSED = -2  # the peer has said that it sends no more

cdef enum:  # what is offered to an endpoint by ALPN
    OFFER_ALL = 0
    OFFER_HTTP1  # because what is to be sent needs HTTP/1
    OFFER_NOTHING  # bytes are only carried, and what they are is not known

cdef enum:  # tls_context.client_mode
    CLIENTS_NOT_ASKED = 0
    CLIENTS_OPTIONAL
    CLIENTS_REQUIRED
    CLIENTS_UNVERIFIED  # asked, and what they show is handed on without a look
    CLIENTS_REFUSED  # nobody gets in, because what should be asked of them cannot be used

cdef enum:  # tls_host.forward
    FORWARD_XFCC = 1
    FORWARD_SSL_CLIENT = 2

cdef struct ticket_key:
    unsigned char name[16]
    unsigned char aes[32]
    unsigned char hmac[32]
    size_t size  # of both: 32, or 16 for AES-128

cdef struct ticket_keys:
    # Immutable once published. The first one encrypts.
    int count
    ticket_key keys[TICKET_KEYS]

cdef struct tls_certificate:
    X509* leaf
    EVP_PKEY* key
    STACK_OF_X509* chain
    unsigned char* ocsp
    int ocsp_size
    int64_t ocsp_until  # seconds since the epoch; 0: for ever

cdef struct wanted_name:
    char text[256]
    bint is_address

cdef struct tls_context:
    # control plane
    SSL_CTX* ctx
    uint64_t id
    bint server
    int client_mode
    int depth
    int min_version
    int max_version
    unsigned char identity[32]  # what binds resumption to this context
    unsigned char alpn[64]  # in wire form, best first
    unsigned int alpn_size
    char server_name[256]
    wanted_name* names  # client side: the endpoint's certificate must have one of them; NULL: it is not verified
    int name_count
    # each reactor its own
    SSL_SESSION** sessions  # client side: the newest one
    # every thread, atomically
    int references  # the object that made it, and every connection to an endpoint

cdef struct tls_host:
    # What a name is served with.
    tls_context* context
    tls_certificate** certificates
    int certificate_count
    int forward

cdef struct client_text:
    const char* at
    uint32_t size

cdef struct client_facts:
    # Who the client's certificate says it is. The texts stand behind the struct.
    client_text verify  # SUCCESS, or FAILED: and why
    client_text subject
    client_text issuer
    client_text serial
    client_text fingerprint  # SHA-256, hexadecimal
    client_text san  # DNS:a,URI:b
    client_text pem  # URL-encoded

cdef struct tls:
    SSL* ssl
    reactor* r
    const char* in_at
    const char* in_end
    const tls_view* view  # server side: only valid during a step of the handshake
    const tls_host* host  # as well
    tls_context* context  # client side
    uint64_t context_id  # server side: of the context that the client's name got it
    client_facts* client
    bint carried  # server side: nobody knows what is spoken in it
    const uint8_t* alpn  # then: what may be agreed on; only valid during the handshake
    uint32_t alpn_size
    uint8_t forward
    bint closed
    bint named  # client side: the endpoint's certificate has one of the wanted names
    bint failed  # what came behind the last plaintext is no TLS, or far too little of what came was plaintext
    uint32_t fruitless  # bytes since a read has brought plaintext worth its size
    const char* why  # the handshake has failed, or what came after it; NULL: the peer has just closed the connection
    bint established
    bint h2
    bint by_kernel  # the kernel encrypts what is sent: it is written plain
    bint held  # of that, TCP had no room for all yet (transport.pyx)
    int fd  # where the kernel may take over; -1: nowhere
    uint8_t record_type  # of what OpenSSL writes next, when it is by_kernel
    uint8_t sni_size
    char* sni

cdef bint tls_init() noexcept nogil
cdef void tls_context_release(tls_context* context) noexcept nogil
cdef tls* tls_new_server(reactor* r, const tls_view* view) noexcept nogil
cdef tls* tls_new_client(reactor* r, tls_context* context, int offer) noexcept nogil
cdef void tls_carry(tls* t, const uint8_t* alpn, uint32_t alpn_size) noexcept nogil
cdef void tls_offer_same(tls* t, const tls* client) noexcept nogil
cdef void tls_free(tls* t) noexcept nogil
cdef bint tls_move(tls* t, reactor* r) noexcept nogil
cdef void tls_release(reactor* r) noexcept nogil
cdef int tls_handshake(tls* t, const tls_view* view) noexcept nogil
cdef ssize_t tls_decrypt(tls* t, char* out, size_t room) noexcept nogil
cdef bint tls_encrypt(tls* t, const char* data, size_t size) noexcept nogil
cdef void tls_say_goodbye(tls* t) noexcept nogil
cdef const tls_host* tls_lookup(const tls_view* view, const char* name, size_t size) noexcept nogil
cdef const char* tls_version(const tls* t) noexcept nogil
cdef const char* tls_cipher(const tls* t) noexcept nogil
cdef bint tls_resumed(const tls* t) noexcept nogil
cdef const unsigned char* tls_alpn(const tls* t, uint32_t* size) noexcept nogil
cdef uint32_t tls_verify_result(const tls* t) noexcept nogil
cdef uint32_t tls_common_name(const tls* t, char* out, uint32_t room) noexcept nogil

# Making contexts (control plane); the callbacks that every server's context needs.
cdef void prepare_server_context(tls_context* context) noexcept nogil
cdef void prepare_client_context(tls_context* context) noexcept nogil
cdef int verify_names(int ok, X509_STORE_CTX* store) noexcept nogil
