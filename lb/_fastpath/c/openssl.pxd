# OpenSSL 3 as the data plane uses it. Declarations only.
from libc.stdint cimport uint8_t, uint64_t

cdef extern from "<openssl/ssl.h>" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL_METHOD:
        pass
    ctypedef struct SSL_CIPHER:
        pass
    ctypedef struct SSL_SESSION:
        pass
    int SSL_ERROR_NONE, SSL_ERROR_SSL, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_ZERO_RETURN
    int SSL_VERIFY_NONE, SSL_VERIFY_PEER, SSL_VERIFY_FAIL_IF_NO_PEER_CERT, SSL_VERIFY_CLIENT_ONCE
    int SSL_MODE_RELEASE_BUFFERS, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, SSL_MODE_NO_AUTO_CHAIN
    int SSL_MODE_ENABLE_PARTIAL_WRITE
    uint64_t SSL_OP_NO_RENEGOTIATION, SSL_OP_NO_COMPRESSION, SSL_OP_CIPHER_SERVER_PREFERENCE
    uint64_t SSL_OP_PRIORITIZE_CHACHA, SSL_OP_IGNORE_UNEXPECTED_EOF, SSL_OP_ENABLE_KTLS
    int SSL_SESS_CACHE_OFF, SSL_SESS_CACHE_CLIENT, SSL_SESS_CACHE_NO_INTERNAL
    int SSL_CLIENT_HELLO_SUCCESS, SSL_CLIENT_HELLO_ERROR
    int SSL_KEY_UPDATE_NONE, SSL3_RT_APPLICATION_DATA
    int SSL_TLSEXT_ERR_OK, SSL_TLSEXT_ERR_ALERT_FATAL, SSL_TLSEXT_ERR_NOACK
    int TLSEXT_TYPE_server_name, TLSEXT_NAMETYPE_host_name
    int SSL_AD_ACCESS_DENIED, SSL_AD_INTERNAL_ERROR, SSL_AD_UNRECOGNIZED_NAME, SSL_AD_NO_APPLICATION_PROTOCOL
    int TLS1_2_VERSION, TLS1_3_VERSION
    int OPENSSL_NPN_NEGOTIATED

    const SSL_METHOD* TLS_server_method()
    const SSL_METHOD* TLS_client_method()
    SSL_CTX* SSL_CTX_new(const SSL_METHOD* method)
    void SSL_CTX_free(SSL_CTX* ctx)
    int SSL_CTX_up_ref(SSL_CTX* ctx)
    uint64_t SSL_CTX_set_options(SSL_CTX* ctx, uint64_t options)
    uint64_t SSL_CTX_clear_options(SSL_CTX* ctx, uint64_t options)
    long SSL_CTX_set_mode(SSL_CTX* ctx, long mode)
    long SSL_CTX_set_session_cache_mode(SSL_CTX* ctx, long mode)
    int SSL_CTX_set_session_id_context(SSL_CTX* ctx, const unsigned char* context, unsigned int size)
    int SSL_CTX_set_min_proto_version(SSL_CTX* ctx, int version)
    int SSL_CTX_set_max_proto_version(SSL_CTX* ctx, int version)
    int SSL_CTX_set_cipher_list(SSL_CTX* ctx, const char* list)
    int SSL_CTX_set_ciphersuites(SSL_CTX* ctx, const char* list)
    int SSL_CTX_set1_groups_list(SSL_CTX* ctx, const char* list)
    int SSL_CTX_set1_sigalgs_list(SSL_CTX* ctx, const char* list)
    void SSL_CTX_set_verify(SSL_CTX* ctx, int mode, int (*callback)(int, X509_STORE_CTX*) noexcept nogil)
    void SSL_CTX_set_verify_depth(SSL_CTX* ctx, int depth)
    int SSL_CTX_set_alpn_protos(SSL_CTX* ctx, const unsigned char* protos, unsigned int size)
    X509_STORE* SSL_CTX_get_cert_store(const SSL_CTX* ctx)
    int SSL_CTX_set_default_verify_paths(SSL_CTX* ctx)
    void SSL_CTX_set_client_CA_list(SSL_CTX* ctx, STACK_OF_X509_NAME* names)
    void SSL_CTX_set_client_hello_cb(SSL_CTX* ctx, int (*callback)(SSL*, int*, void*) noexcept nogil, void* argument)
    void SSL_CTX_set_cert_cb(SSL_CTX* ctx, int (*callback)(SSL*, void*) noexcept nogil, void* argument)
    void SSL_CTX_set_alpn_select_cb(SSL_CTX* ctx, int (*callback)(SSL*, const unsigned char**, unsigned char*,
            const unsigned char*, unsigned int, void*) noexcept nogil, void* argument)
    int SSL_CTX_set_tlsext_ticket_key_evp_cb(SSL_CTX* ctx, int (*callback)(SSL*, unsigned char*, unsigned char*,
            EVP_CIPHER_CTX*, EVP_MAC_CTX*, int) noexcept nogil)
    long SSL_CTX_set_tlsext_status_cb(SSL_CTX* ctx, int (*callback)(SSL*, void*) noexcept nogil)
    int SSL_CTX_set_num_tickets(SSL_CTX* ctx, size_t count)
    int SSL_CTX_use_certificate(SSL_CTX* ctx, X509* leaf)
    int SSL_CTX_use_cert_and_key(SSL_CTX* ctx, X509* leaf, EVP_PKEY* key, STACK_OF_X509* chain, int override)
    void SSL_CTX_sess_set_new_cb(SSL_CTX* ctx, int (*callback)(SSL*, SSL_SESSION*) noexcept nogil)
    int SSL_select_next_proto(unsigned char** out, unsigned char* out_size, const unsigned char* server,
            unsigned int server_size, const unsigned char* client, unsigned int client_size)

    SSL* SSL_new(SSL_CTX* ctx)
    void SSL_free(SSL* ssl)
    SSL_CTX* SSL_set_SSL_CTX(SSL* ssl, SSL_CTX* ctx)
    SSL_CTX* SSL_get_SSL_CTX(const SSL* ssl)
    void SSL_set_bio(SSL* ssl, BIO* reading, BIO* writing)
    void SSL_set_accept_state(SSL* ssl)
    void SSL_set_connect_state(SSL* ssl)
    int SSL_get_ex_data_X509_STORE_CTX_idx()
    BIO* SSL_get_rbio(const SSL* ssl)
    void SSL_certs_clear(SSL* ssl)
    long SSL_get_tmp_key(SSL* ssl, EVP_PKEY** key)
    long SSL_get_peer_tmp_key(SSL* ssl, EVP_PKEY** key)
    int SSL_do_handshake(SSL* ssl)
    int SSL_read(SSL* ssl, void* buffer, int size)
    int SSL_write(SSL* ssl, const void* buffer, int size)
    int SSL_shutdown(SSL* ssl)
    void SSL_set_quiet_shutdown(SSL* ssl, int mode)
    int SSL_get_error(const SSL* ssl, int result)
    int SSL_pending(const SSL* ssl)
    int SSL_has_pending(const SSL* ssl)
    int SSL_set_min_proto_version(SSL* ssl, int version)
    int SSL_set_max_proto_version(SSL* ssl, int version)
    void SSL_set_verify(SSL* ssl, int mode, int (*callback)(int, X509_STORE_CTX*) noexcept nogil)
    void SSL_set_verify_depth(SSL* ssl, int depth)
    uint64_t SSL_set_options(SSL* ssl, uint64_t options)
    int SSL_set_session_id_context(SSL* ssl, const unsigned char* context, unsigned int size)
    int SSL_use_cert_and_key(SSL* ssl, X509* leaf, EVP_PKEY* key, STACK_OF_X509* chain, int override)
    int SSL_client_hello_get0_ext(SSL* ssl, unsigned int type, const unsigned char** out, size_t* size)
    void SSL_get0_alpn_selected(const SSL* ssl, const unsigned char** data, unsigned int* size)
    int SSL_set_alpn_protos(SSL* ssl, const unsigned char* protos, unsigned int size)
    long SSL_set_tlsext_host_name(SSL* ssl, const char* name)
    long SSL_set_tlsext_status_ocsp_resp(SSL* ssl, unsigned char* response, long size)
    X509* SSL_get_certificate(const SSL* ssl)
    X509* SSL_get1_peer_certificate(const SSL* ssl)
    long SSL_get_verify_result(const SSL* ssl)
    int SSL_session_reused(const SSL* ssl)
    const char* SSL_get_version(const SSL* ssl)
    int SSL_version(const SSL* ssl)
    const SSL_CIPHER* SSL_get_current_cipher(const SSL* ssl)
    const SSL_CIPHER* SSL_get_pending_cipher(const SSL* ssl)
    const char* SSL_CIPHER_get_name(const SSL_CIPHER* cipher)
    int SSL_CIPHER_is_aead(const SSL_CIPHER* cipher)
    int SSL_CIPHER_get_kx_nid(const SSL_CIPHER* cipher)
    int NID_kx_rsa
    uint64_t SSL_set_options(SSL* ssl, uint64_t options)
    int SSL_get_key_update_type(const SSL* ssl)
    int SSL_set_session(SSL* ssl, SSL_SESSION* session)
    void SSL_SESSION_free(SSL_SESSION* session)
    int SSL_SESSION_up_ref(SSL_SESSION* session)
    int SSL_SESSION_is_resumable(const SSL_SESSION* session)
    SSL_SESSION* SSL_get_session(const SSL* ssl)
    STACK_OF_X509_NAME* SSL_CTX_get_client_CA_list(const SSL_CTX* ctx)

cdef extern from "<openssl/bio.h>" nogil:
    ctypedef struct BIO:
        pass
    ctypedef struct BIO_METHOD:
        pass
    int BIO_CTRL_FLUSH, BIO_CTRL_GET_KTLS_SEND, BIO_TYPE_SOURCE_SINK
    int BIO_get_new_index()
    BIO_METHOD* BIO_meth_new(int type, const char* name)
    int BIO_meth_set_write(BIO_METHOD* method, int (*write)(BIO*, const char*, int) noexcept nogil)
    int BIO_meth_set_read(BIO_METHOD* method, int (*read)(BIO*, char*, int) noexcept nogil)
    int BIO_meth_set_ctrl(BIO_METHOD* method, long (*ctrl)(BIO*, int, long, void*) noexcept nogil)
    BIO* BIO_new(const BIO_METHOD* method)
    int BIO_free(BIO* bio)
    int BIO_up_ref(BIO* bio)
    void BIO_set_data(BIO* bio, void* data)
    void* BIO_get_data(BIO* bio)
    void BIO_set_init(BIO* bio, int done)
    void BIO_set_retry_read(BIO* bio)
    void BIO_set_retry_write(BIO* bio)
    void BIO_clear_retry_flags(BIO* bio)
    int BIO_write(BIO* bio, const void* data, int size)
    BIO* BIO_new_mem_buf(const void* data, int size)
    const BIO_METHOD* BIO_s_mem()
    long BIO_get_mem_data(BIO* bio, char** data)

cdef extern from "<openssl/x509.h>" nogil:
    ctypedef struct X509:
        pass
    ctypedef struct X509_NAME:
        pass
    ctypedef struct X509_CRL:
        pass
    ctypedef struct X509_STORE:
        pass
    ctypedef struct X509_STORE_CTX:
        pass
    ctypedef struct ASN1_INTEGER:
        pass
    ctypedef struct ASN1_STRING:
        pass
    ctypedef struct STACK_OF_X509 "STACK_OF(X509)":
        pass
    ctypedef struct STACK_OF_X509_NAME "STACK_OF(X509_NAME)":
        pass
    int X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_UNSPECIFIED, NID_commonName
    int X509_V_OK, X509_V_FLAG_CRL_CHECK, X509_V_FLAG_CRL_CHECK_ALL, X509_V_FLAG_PARTIAL_CHAIN
    unsigned int X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
    unsigned long XN_FLAG_RFC2253
    void X509_free(X509* certificate)
    int X509_up_ref(X509* certificate)
    X509_NAME* X509_get_subject_name(const X509* certificate)
    X509_NAME* X509_get_issuer_name(const X509* certificate)
    X509_NAME* X509_NAME_dup(const X509_NAME* name)
    const ASN1_INTEGER* X509_get0_serialNumber(const X509* certificate)
    ctypedef struct X509_NAME_ENTRY:
        pass
    int X509_NAME_get_index_by_NID(const X509_NAME* name, int nid, int after)
    const X509_NAME_ENTRY* X509_NAME_get_entry(const X509_NAME* name, int index)
    ASN1_STRING* X509_NAME_ENTRY_get_data(const X509_NAME_ENTRY* entry)
    int X509_NAME_print_ex(BIO* out, const X509_NAME* name, int indent, unsigned long flags)
    int X509_digest(const X509* certificate, const EVP_MD* type, unsigned char* digest, unsigned int* size)
    int X509_check_private_key(const X509* certificate, const EVP_PKEY* key)
    EVP_PKEY* X509_get0_pubkey(const X509* certificate)
    const char* X509_verify_cert_error_string(long code)
    int X509_STORE_add_cert(X509_STORE* store, X509* certificate)
    int X509_STORE_add_crl(X509_STORE* store, X509_CRL* crl)
    int X509_STORE_set_flags(X509_STORE* store, unsigned long flags)
    void X509_CRL_free(X509_CRL* crl)
    STACK_OF_X509* sk_X509_new_null()
    int sk_X509_push(STACK_OF_X509* stack, X509* certificate)
    void sk_X509_free(STACK_OF_X509* stack)
    int sk_X509_num(const STACK_OF_X509* stack)
    X509* sk_X509_value(const STACK_OF_X509* stack, int index)
    STACK_OF_X509_NAME* sk_X509_NAME_new_null()
    int sk_X509_NAME_push(STACK_OF_X509_NAME* stack, X509_NAME* name)
    void* X509_STORE_CTX_get_ex_data(const X509_STORE_CTX* store, int index)
    int X509_STORE_CTX_get_error_depth(const X509_STORE_CTX* store)
    X509* X509_STORE_CTX_get_current_cert(const X509_STORE_CTX* store)
    void X509_STORE_CTX_set_error(X509_STORE_CTX* store, int error)

cdef extern from "<openssl/x509v3.h>" nogil:
    int X509_check_host(X509* certificate, const char* name, size_t size, unsigned int flags, char** found)
    int X509_check_ip_asc(X509* certificate, const char* address, unsigned int flags)
    ctypedef struct GENERAL_NAME:
        int type
    ctypedef struct GENERAL_NAMES:
        pass
    int NID_subject_alt_name, GEN_DNS, GEN_URI, GEN_EMAIL
    void* X509_get_ext_d2i(const X509* certificate, int nid, int* critical, int* index)
    int sk_GENERAL_NAME_num(const GENERAL_NAMES* names)
    GENERAL_NAME* sk_GENERAL_NAME_value(const GENERAL_NAMES* names, int index)
    void GENERAL_NAMES_free(GENERAL_NAMES* names)
    void* GENERAL_NAME_get0_value(const GENERAL_NAME* name, int* type)

cdef extern from "<openssl/asn1.h>" nogil:
    int ASN1_STRING_to_UTF8(unsigned char** out, const ASN1_STRING* string)
    const unsigned char* ASN1_STRING_get0_data(const ASN1_STRING* string)
    int ASN1_STRING_length(const ASN1_STRING* string)
    int i2a_ASN1_INTEGER(BIO* out, const ASN1_INTEGER* number)

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_PKEY:
        pass
    ctypedef struct EVP_MD:
        pass
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_CIPHER_CTX:
        pass
    ctypedef struct EVP_MAC_CTX:
        pass
    int EVP_MAX_MD_SIZE
    const EVP_MD* EVP_sha256()
    const EVP_CIPHER* EVP_aes_256_cbc()
    EVP_CIPHER* EVP_CIPHER_fetch(void* library, const char* name, const char* properties)
    int EVP_EncryptInit_ex(EVP_CIPHER_CTX* ctx, const EVP_CIPHER* cipher, void* engine, const unsigned char* key,
            const unsigned char* iv)
    int EVP_DecryptInit_ex(EVP_CIPHER_CTX* ctx, const EVP_CIPHER* cipher, void* engine, const unsigned char* key,
            const unsigned char* iv)
    void EVP_PKEY_free(EVP_PKEY* key)
    int EVP_PKEY_get_base_id(const EVP_PKEY* key)
    int EVP_PKEY_EC, EVP_PKEY_X25519
    int EVP_PKEY_set_type(EVP_PKEY* key, int type)

cdef extern from "<openssl/core_names.h>" nogil:
    ctypedef struct OSSL_PARAM:
        pass
    OSSL_PARAM OSSL_PARAM_construct_octet_string(const char* key, void* buffer, size_t size)
    OSSL_PARAM OSSL_PARAM_construct_utf8_string(const char* key, char* buffer, size_t size)
    OSSL_PARAM OSSL_PARAM_construct_end()
    int EVP_MAC_CTX_set_params(EVP_MAC_CTX* ctx, const OSSL_PARAM* params)

cdef extern from "<openssl/pem.h>" nogil:
    X509* PEM_read_bio_X509(BIO* bio, X509** out, int (*ask)(char*, int, int, void*) noexcept nogil, void* argument)
    X509_CRL* PEM_read_bio_X509_CRL(BIO* bio, X509_CRL** out, int (*ask)(char*, int, int, void*) noexcept nogil,
            void* argument)
    EVP_PKEY* PEM_read_bio_PrivateKey(BIO* bio, EVP_PKEY** out, int (*ask)(char*, int, int, void*) noexcept nogil,
            void* argument)
    int PEM_write_bio_X509(BIO* bio, X509* certificate)
    int PEM_R_NO_START_LINE

cdef extern from "<openssl/rand.h>" nogil:
    int RAND_bytes(unsigned char* out, int size)

cdef extern from "<openssl/err.h>" nogil:
    void ERR_clear_error()
    unsigned long ERR_peek_error()
    unsigned long ERR_peek_last_error()
    int ERR_GET_REASON(unsigned long code)
    int SSL_R_CERTIFICATE_VERIFY_FAILED
    const char* ERR_reason_error_string(unsigned long code)

cdef extern from "<openssl/crypto.h>" nogil:
    int OPENSSL_VERSION
    const char* OpenSSL_version(int what)
    void* OPENSSL_memdup(const void* data, size_t size)
    void OPENSSL_free(void* data)
