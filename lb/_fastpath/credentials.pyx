"""Certificates, keys and TLS contexts as Python objects: each owns its C struct, and what points at it keeps it alive.

Made by the compiler in the control plane's thread. Texts of errors are for people and never hold key material.
"""
import os

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from lb._fastpath.c.openssl cimport (
    BIO,
    BIO_free,
    BIO_new_mem_buf,
    ERR_clear_error,
    ERR_GET_REASON,
    ERR_peek_error,
    ERR_peek_last_error,
    ERR_reason_error_string,
    EVP_PKEY_free,
    OPENSSL_VERSION,
    OpenSSL_version,
    PEM_R_NO_START_LINE,
    PEM_read_bio_PrivateKey,
    PEM_read_bio_X509,
    PEM_read_bio_X509_CRL,
    SSL,
    SSL_CTX,
    SSL_CTX_get_cert_store,
    SSL_CTX_new,
    SSL_CTX_set1_groups_list,
    SSL_CTX_set_alpn_protos,
    SSL_CTX_set_cipher_list,
    SSL_CTX_set_ciphersuites,
    SSL_CTX_set_client_CA_list,
    SSL_CTX_set_default_verify_paths,
    SSL_CTX_set_max_proto_version,
    SSL_CTX_set_min_proto_version,
    SSL_CTX_set_verify,
    SSL_CTX_use_cert_and_key,
    SSL_SESSION,
    SSL_VERIFY_NONE,
    SSL_VERIFY_PEER,
    SSL_free,
    SSL_new,
    SSL_use_cert_and_key,
    TLS_client_method,
    TLS_server_method,
    X509,
    X509_CRL,
    X509_CRL_free,
    X509_NAME_dup,
    X509_STORE,
    X509_STORE_add_cert,
    X509_STORE_add_crl,
    X509_STORE_set_flags,
    X509_V_FLAG_CRL_CHECK,
    X509_V_FLAG_CRL_CHECK_ALL,
    X509_V_FLAG_PARTIAL_CHAIN,
    X509_check_private_key,
    X509_free,
    X509_get_subject_name,
    sk_X509_NAME_new_null,
    sk_X509_NAME_push,
    sk_X509_free,
    sk_X509_new_null,
    sk_X509_num,
    sk_X509_push,
    sk_X509_value,
    STACK_OF_X509_NAME,
)
from lb._fastpath.c.sys cimport ENOENT, ENOSYS
from lb._fastpath.endpoint cimport MAX_REACTORS
from lb._fastpath.ktls cimport ktls_probe
from lb._fastpath.tls cimport (
    CLIENTS_REFUSED,
    CLIENTS_REQUIRED,
    prepare_client_context,
    prepare_server_context,
    tls_certificate,
    tls_context,
    tls_context_release,
    tls_host,
    tls_init,
    verify_names,
    wanted_name,
)

if not tls_init():
    raise ImportError("OpenSSL lacks what lb needs of it")

cdef uint64_t contexts_made = 0
cdef SSL_CTX* probe = SSL_CTX_new(TLS_server_method())  # tries certificates and names of groups; serves nobody
if probe == NULL:
    raise ImportError("OpenSSL makes no context")


cdef int no_passphrase(char* buffer, int size, int writing, void* argument) noexcept nogil:
    """Never ask a terminal for a passphrase."""
    return -1


cdef str reason():
    """OpenSSL's own word for what went wrong last."""
    cdef const char* text = ERR_reason_error_string(ERR_peek_error())
    result = text.decode() if text != NULL else "no further reason"
    ERR_clear_error()
    return result


cdef check_end(str what):
    """A PEM text is read until there is no further block; ValueError when it was left in the middle."""
    cdef unsigned long error = ERR_peek_last_error()
    if error and ERR_GET_REASON(error) != PEM_R_NO_START_LINE:
        raise ValueError(f"{what} cannot be read: {reason()}")
    ERR_clear_error()


cdef class Certificate:
    """A chain and its key, as OpenSSL holds them."""

    def __cinit__(self, bytes chain not None, bytes key not None, bytes ocsp=b"", long ocsp_until=0):
        """PEM texts, the leaf first; `ocsp` is a DER response to be stapled until that many seconds after the epoch (0:
        for ever). ValueError when they cannot be used."""
        cdef BIO* bio
        cdef X509* one
        cdef SSL* tried
        cdef int served
        self.p = <tls_certificate*>calloc(1, sizeof(tls_certificate))
        if self.p == NULL:
            raise MemoryError
        self.p.chain = sk_X509_new_null()
        ERR_clear_error()
        bio = BIO_new_mem_buf(<char*>chain, <int>len(chain))
        try:
            self.p.leaf = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL)
            if self.p.leaf == NULL:
                raise ValueError(f"there is no certificate in it: {reason()}")
            while True:
                one = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL)
                if one == NULL:
                    break
                sk_X509_push(self.p.chain, one)
            check_end(f"certificate {sk_X509_num(self.p.chain) + 2} of the chain")
        finally:
            BIO_free(bio)
        bio = BIO_new_mem_buf(<char*>key, <int>len(key))
        self.p.key = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL)
        BIO_free(bio)
        if self.p.key == NULL:
            raise ValueError(f"the private key cannot be read: {reason()}")
        if X509_check_private_key(self.p.leaf, self.p.key) != 1:
            raise ValueError(f"the private key does not belong to the certificate: {reason()}")
        # What OpenSSL would refuse in a handshake, a signature that is too weak for example, it says here already.
        # A connection of its own takes the key along when it goes: the probe would keep it.
        tried = SSL_new(probe)
        if tried == NULL:
            raise MemoryError
        served = SSL_use_cert_and_key(tried, self.p.leaf, self.p.key, self.p.chain, 1)
        SSL_free(tried)
        if served != 1:
            raise ValueError(f"it cannot be served: {reason()}")
        if ocsp:
            self.p.ocsp = <unsigned char*>malloc(len(ocsp))
            if self.p.ocsp == NULL:
                raise MemoryError
            memcpy(self.p.ocsp, <char*>ocsp, len(ocsp))
            self.p.ocsp_size = <int>len(ocsp)
            self.p.ocsp_until = ocsp_until

    def __dealloc__(self):
        cdef int i
        if self.p == NULL:
            return
        for i in range(sk_X509_num(self.p.chain)):
            X509_free(sk_X509_value(self.p.chain, i))
        sk_X509_free(self.p.chain)
        X509_free(self.p.leaf)
        EVP_PKEY_free(self.p.key)
        free(self.p.ocsp)
        free(self.p)


cdef add_authorities(tls_context* context, bytes ca, bytes crl, bint name_them):
    """Trust these authorities; with `name_them` tell clients whom we trust. ValueError when there is none."""
    cdef X509_STORE* store = SSL_CTX_get_cert_store(context.ctx)
    cdef STACK_OF_X509_NAME* names = sk_X509_NAME_new_null() if name_them else NULL
    cdef BIO* bio = BIO_new_mem_buf(<char*>ca, <int>len(ca))
    cdef X509* one
    cdef X509_CRL* revoked
    cdef int count = 0
    refused = ""
    ERR_clear_error()
    while True:
        one = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL)
        if one == NULL:
            break
        if X509_STORE_add_cert(store, one) != 1:
            refused = reason()
        if names != NULL:
            sk_X509_NAME_push(names, X509_NAME_dup(X509_get_subject_name(one)))
        X509_free(one)
        count += 1
    BIO_free(bio)
    if names != NULL:
        SSL_CTX_set_client_CA_list(context.ctx, names)
    if refused:
        raise ValueError(f"an authority is refused: {refused}")
    if count == 0:
        raise ValueError(f"there is no certificate in the CA bundle: {reason()}")
    check_end(f"certificate {count + 1} of the CA bundle")
    # An authority in the bundle is trusted whether it is a root or not, as in Go, HAProxy and Envoy.
    X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN)
    if crl:
        bio = BIO_new_mem_buf(<char*>crl, <int>len(crl))
        count = 0
        while True:
            revoked = PEM_read_bio_X509_CRL(bio, NULL, no_passphrase, NULL)
            if revoked == NULL:
                break
            if X509_STORE_add_crl(store, revoked) != 1:
                refused = reason()
            X509_CRL_free(revoked)
            count += 1
        BIO_free(bio)
        if refused:
            raise ValueError(f"a revocation list is refused: {refused}")
        if count == 0:
            raise ValueError(f"there is no revocation list in the CRL: {reason()}")
        check_end(f"revocation list {count + 1} of the CRL")
        X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK | (X509_V_FLAG_CRL_CHECK_ALL if count > 1 else 0))
    ERR_clear_error()


cdef bytes wire_form(protocols):
    """ALPN protocol names, each behind its length."""
    form = b"".join(bytes([len(name)]) + name for name in protocols)
    if len(form) > 64:
        raise ValueError("the ALPN protocols are longer than 64 bytes together")
    return form


def known_groups(str groups not None):
    """Those of `groups` that this OpenSSL has, in the same order: X25519MLKEM768 came with 3.5."""
    known = [group for group in groups.split(":") if SSL_CTX_set1_groups_list(probe, group.encode()) == 1]
    ERR_clear_error()
    return ":".join(known)


def library_version():
    """`OpenSSL 3.5.4 30 Sep 2025`"""
    return OpenSSL_version(OPENSSL_VERSION).decode()


def kernel_tls_missing():
    """Why the kernel can encrypt nothing; empty when it can."""
    cdef int error = ktls_probe()
    if error == ENOENT:
        return "the kernel has no module `tls`, or it is not loaded"
    if error == ENOSYS:
        return "the OpenSSL that lb was built with cannot do it"
    return os.strerror(error) if error else ""


cdef set_versions(tls_context* context, int low, int high, str ciphers, str ciphersuites, str groups):
    context.min_version = low
    context.max_version = high
    if SSL_CTX_set_min_proto_version(context.ctx, low) != 1 or SSL_CTX_set_max_proto_version(context.ctx, high) != 1:
        raise ValueError(f"this OpenSSL does not speak the TLS versions asked for: {reason()}")
    if ciphers and SSL_CTX_set_cipher_list(context.ctx, ciphers.encode()) != 1:
        raise ValueError(f"`{ciphers}` names no cipher of TLS 1.2 that this OpenSSL knows")
    if ciphersuites and SSL_CTX_set_ciphersuites(context.ctx, ciphersuites.encode()) != 1:
        raise ValueError(f"`{ciphersuites}` names a cipher of TLS 1.3 that this OpenSSL does not know")
    if groups:
        known = known_groups(groups)
        if not known or SSL_CTX_set1_groups_list(context.ctx, known.encode()) != 1:
            raise ValueError(f"this OpenSSL knows none of the groups {groups}")


cdef tls_context* new_context(bint server) except NULL:
    global contexts_made
    cdef tls_context* context = <tls_context*>calloc(1, sizeof(tls_context))
    if context == NULL:
        raise MemoryError
    contexts_made += 1
    context.id = contexts_made
    context.server = server
    context.references = 1
    context.ctx = SSL_CTX_new(TLS_server_method() if server else TLS_client_method())
    if context.ctx == NULL:
        free(context)
        raise MemoryError(reason())
    return context


cdef class ServerTls:
    """What names with one policy share: versions, ciphers, ALPN, and what is asked of clients."""

    def __cinit__(self, *, int min_version, int max_version, str ciphers, str ciphersuites, str groups, tuple alpn,
            int client_mode, bytes ca, bytes crl, int depth, bytes identity):
        """`alpn`: names, best first. `client_mode`: 0 not asked, 1 optional, 2 required, 3 unverified, 4 refused.
        `identity` (32 bytes): sessions are resumed only where it is the same. ValueError when it cannot be used."""
        cdef bytes protocols = wire_form(alpn)
        if len(identity) != 32:
            raise ValueError("an identity has 32 bytes")
        self.p = new_context(True)
        self.p.client_mode = client_mode
        self.p.depth = depth
        memcpy(self.p.identity, <char*>identity, 32)
        memcpy(self.p.alpn, <char*>protocols, len(protocols))
        self.p.alpn_size = <unsigned int>len(protocols)
        set_versions(self.p, min_version, max_version, ciphers, ciphersuites, groups)
        prepare_server_context(self.p)
        if client_mode in (1, 2):
            add_authorities(self.p, ca, crl, True)

    @property
    def lets_in(self):
        """Whether any client can get in."""
        return self.p.client_mode != CLIENTS_REFUSED

    @property
    def is_strict(self):
        """Whether nobody gets in without a certificate that is known to be good."""
        return self.p.client_mode in (CLIENTS_REQUIRED, CLIENTS_REFUSED)

    def __dealloc__(self):
        if self.p != NULL:
            tls_context_release(self.p)


cdef class ClientTls:
    """How connections to the endpoints of an upstream are encrypted."""

    def __cinit__(self, *, int min_version, int max_version, str ciphers, str ciphersuites, tuple alpn, bint verify,
            bytes ca, bytes crl, str server_name, tuple names, Certificate certificate=None):
        """`ca`: PEM bundle, empty for the system's. `server_name`: sent as SNI. `names`: whom the certificate may
        belong to besides, or instead when `server_name` is empty; IP addresses are possible. ValueError when something
        cannot be used, and when there is nobody to verify."""
        cdef bytes protocols = wire_form(alpn)
        cdef bytes name = server_name.encode("ascii" if server_name.isascii() else "idna")
        if len(name) > 253:
            raise ValueError(f"`{server_name}` is longer than a name can be")
        self.p = new_context(False)
        self.certificate = certificate
        self.p.sessions = <SSL_SESSION**>calloc(MAX_REACTORS, sizeof(SSL_SESSION*))
        if self.p.sessions == NULL:
            raise MemoryError
        set_versions(self.p, min_version, max_version, ciphers, ciphersuites, "")
        prepare_client_context(self.p)
        if protocols:
            SSL_CTX_set_alpn_protos(self.p.ctx, <unsigned char*><char*>protocols, <unsigned int>len(protocols))
        if certificate is not None:
            if SSL_CTX_use_cert_and_key(self.p.ctx, certificate.p.leaf, certificate.p.key, certificate.p.chain, 1) != 1:
                raise ValueError(f"the client certificate cannot be used: {reason()}")
        if server_name and not is_address(server_name):
            memcpy(self.p.server_name, <char*>name, len(name))
        if not verify:
            SSL_CTX_set_verify(self.p.ctx, SSL_VERIFY_NONE, NULL)
            return
        wanted = [*names] or ([server_name] if server_name else [])
        if not wanted:
            raise ValueError("there is no name to verify: give a server name")
        self.p.names = <wanted_name*>calloc(len(wanted), sizeof(wanted_name))
        if self.p.names == NULL:
            raise MemoryError
        for one in wanted:
            name = one.encode("ascii" if one.isascii() else "idna")
            if not name or len(name) > 253 or name.startswith(b"."):
                raise ValueError(f"`{one}` is neither a name nor an address that can be verified")
            memcpy(self.p.names[self.p.name_count].text, <char*>name, len(name))
            self.p.names[self.p.name_count].is_address = is_address(one)
            self.p.name_count += 1
        if ca:
            add_authorities(self.p, ca, crl, False)
        elif SSL_CTX_set_default_verify_paths(self.p.ctx) != 1:
            raise ValueError(f"the system's certificate authorities cannot be read: {reason()}")
        SSL_CTX_set_verify(self.p.ctx, SSL_VERIFY_PEER, verify_names)

    def __dealloc__(self):
        if self.p != NULL:
            tls_context_release(self.p)


cdef bint is_address(str text):
    return ":" in text or text.replace(".", "").isdigit()


cdef class TlsHost:
    """What a name is served with: a policy and certificates."""

    def __cinit__(self, ServerTls policy not None, tuple certificates not None, int forward=0):
        """`forward`: which headers name the client's certificate to endpoints (1: X-Forwarded-Client-Cert, 2:
        ssl-client-*)."""
        cdef Certificate one
        self.policy = policy
        self.certificates = certificates
        self.p = <tls_host*>calloc(1, sizeof(tls_host))
        if self.p == NULL:
            raise MemoryError
        self.p.context = policy.p
        self.p.forward = forward
        self.p.certificates = <tls_certificate**>calloc(len(certificates) + 1, sizeof(tls_certificate*))
        if self.p.certificates == NULL:
            raise MemoryError
        for one in certificates:
            self.p.certificates[self.p.certificate_count] = one.p
            self.p.certificate_count += 1

    def __dealloc__(self):
        if self.p != NULL:
            free(self.p.certificates)
            free(self.p)
