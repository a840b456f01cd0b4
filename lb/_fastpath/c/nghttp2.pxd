# libnghttp2 (1.50 or later) as Cython sees it: sessions, their callbacks, and what they are fed. Declarations only.
from libc.stdint cimport int32_t, uint8_t, uint32_t

from lb._fastpath.c.sys cimport ssize_t

cdef extern from "nghttp2/nghttp2.h" nogil:
    struct nghttp2_session
    struct nghttp2_session_callbacks
    struct nghttp2_option
    ctypedef struct nghttp2_nv:
        uint8_t* name
        uint8_t* value
        size_t namelen
        size_t valuelen
        uint8_t flags
    ctypedef struct nghttp2_frame_hd:
        size_t length
        int32_t stream_id
        uint8_t type
        uint8_t flags
    ctypedef struct nghttp2_headers:
        nghttp2_frame_hd hd
        int cat
    ctypedef struct nghttp2_rst_stream:
        nghttp2_frame_hd hd
        uint32_t error_code
    ctypedef struct nghttp2_goaway:
        nghttp2_frame_hd hd
        int32_t last_stream_id
        uint32_t error_code
    ctypedef union nghttp2_frame:
        nghttp2_frame_hd hd
        nghttp2_headers headers
        nghttp2_rst_stream rst_stream
        nghttp2_goaway goaway
    ctypedef struct nghttp2_settings_entry:
        int32_t settings_id
        uint32_t value
    ctypedef union nghttp2_data_source:
        void* ptr
    ctypedef ssize_t (*nghttp2_data_source_read_callback)(
        nghttp2_session* session, int32_t stream_id, uint8_t* buf, size_t length, uint32_t* data_flags,
        nghttp2_data_source* source, void* user_data) noexcept nogil
    ctypedef struct nghttp2_data_provider:
        nghttp2_data_source source
        nghttp2_data_source_read_callback read_callback

    int NGHTTP2_NV_FLAG_NONE, NGHTTP2_NV_FLAG_NO_INDEX
    int NGHTTP2_DATA, NGHTTP2_HEADERS, NGHTTP2_PRIORITY, NGHTTP2_RST_STREAM, NGHTTP2_SETTINGS, NGHTTP2_PING
    int NGHTTP2_GOAWAY, NGHTTP2_WINDOW_UPDATE, NGHTTP2_CONTINUATION, NGHTTP2_PRIORITY_UPDATE
    int NGHTTP2_FLAG_NONE, NGHTTP2_FLAG_END_STREAM, NGHTTP2_FLAG_END_HEADERS, NGHTTP2_FLAG_PADDED, NGHTTP2_FLAG_ACK
    int NGHTTP2_HCAT_REQUEST, NGHTTP2_HCAT_RESPONSE, NGHTTP2_HCAT_HEADERS
    int NGHTTP2_DATA_FLAG_EOF, NGHTTP2_DATA_FLAG_NO_END_STREAM, NGHTTP2_DATA_FLAG_NO_COPY
    int NGHTTP2_SETTINGS_ENABLE_PUSH, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    int NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL
    int NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES
    int NGHTTP2_NO_ERROR, NGHTTP2_PROTOCOL_ERROR, NGHTTP2_INTERNAL_ERROR, NGHTTP2_STREAM_CLOSED, NGHTTP2_REFUSED_STREAM
    int NGHTTP2_CANCEL, NGHTTP2_CONNECT_ERROR, NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_HTTP_1_1_REQUIRED
    int NGHTTP2_ERR_DEFERRED, NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE, NGHTTP2_ERR_CALLBACK_FAILURE
    int NGHTTP2_ERR_BAD_CLIENT_MAGIC, NGHTTP2_ERR_HTTP_HEADER, NGHTTP2_ERR_NOMEM, NGHTTP2_ERR_WOULDBLOCK

    int nghttp2_session_callbacks_new(nghttp2_session_callbacks** callbacks)
    void nghttp2_session_callbacks_set_on_begin_headers_callback(
        nghttp2_session_callbacks* callbacks,
        int (*callback)(nghttp2_session*, const nghttp2_frame*, void*) noexcept nogil)
    void nghttp2_session_callbacks_set_on_header_callback(
        nghttp2_session_callbacks* callbacks,
        int (*callback)(nghttp2_session*, const nghttp2_frame*, const uint8_t*, size_t, const uint8_t*, size_t,
                        uint8_t, void*) noexcept nogil)
    void nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(
        nghttp2_session_callbacks* callbacks,
        int (*callback)(nghttp2_session*, const nghttp2_frame*, int, void*) noexcept nogil)
    void nghttp2_session_callbacks_set_on_invalid_header_callback(
        nghttp2_session_callbacks* callbacks,
        int (*callback)(nghttp2_session*, const nghttp2_frame*, const uint8_t*, size_t, const uint8_t*, size_t,
                        uint8_t, void*) noexcept nogil)
    void nghttp2_session_callbacks_set_on_frame_recv_callback(
        nghttp2_session_callbacks* callbacks,
        int (*callback)(nghttp2_session*, const nghttp2_frame*, void*) noexcept nogil)
    void nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
        nghttp2_session_callbacks* callbacks,
        int (*callback)(nghttp2_session*, uint8_t, int32_t, const uint8_t*, size_t, void*) noexcept nogil)
    void nghttp2_session_callbacks_set_on_frame_send_callback(
        nghttp2_session_callbacks* callbacks,
        int (*callback)(nghttp2_session*, const nghttp2_frame*, void*) noexcept nogil)
    void nghttp2_session_callbacks_set_on_stream_close_callback(
        nghttp2_session_callbacks* callbacks,
        int (*callback)(nghttp2_session*, int32_t, uint32_t, void*) noexcept nogil)
    void nghttp2_session_callbacks_set_send_data_callback(
        nghttp2_session_callbacks* callbacks,
        int (*callback)(nghttp2_session*, nghttp2_frame*, const uint8_t*, size_t, nghttp2_data_source*,
                        void*) noexcept nogil)

    int nghttp2_option_new(nghttp2_option** option)
    void nghttp2_option_set_no_auto_window_update(nghttp2_option* option, int value)
    void nghttp2_option_set_no_closed_streams(nghttp2_option* option, int value)
    void nghttp2_option_set_max_outbound_ack(nghttp2_option* option, size_t value)
    void nghttp2_option_set_builtin_recv_extension_type(nghttp2_option* option, uint8_t type)
    void nghttp2_option_set_max_send_header_block_length(nghttp2_option* option, size_t value)

    int nghttp2_session_server_new2(nghttp2_session** session, const nghttp2_session_callbacks* callbacks,
                                    void* user_data, const nghttp2_option* option)
    int nghttp2_session_client_new2(nghttp2_session** session, const nghttp2_session_callbacks* callbacks,
                                    void* user_data, const nghttp2_option* option)
    void nghttp2_session_del(nghttp2_session* session)
    ssize_t nghttp2_session_mem_send(nghttp2_session* session, const uint8_t** data)
    ssize_t nghttp2_session_mem_recv(nghttp2_session* session, const uint8_t* data, size_t size)
    int nghttp2_session_resume_data(nghttp2_session* session, int32_t stream_id)
    int nghttp2_session_want_read(nghttp2_session* session)
    int nghttp2_session_want_write(nghttp2_session* session)
    void* nghttp2_session_get_stream_user_data(nghttp2_session* session, int32_t stream_id)
    int nghttp2_session_set_stream_user_data(nghttp2_session* session, int32_t stream_id, void* data)
    size_t nghttp2_session_get_outbound_queue_size(nghttp2_session* session)
    int32_t nghttp2_session_get_last_proc_stream_id(nghttp2_session* session)
    uint32_t nghttp2_session_get_remote_settings(nghttp2_session* session, int id)
    int nghttp2_session_check_request_allowed(nghttp2_session* session)
    int nghttp2_session_get_stream_remote_close(nghttp2_session* session, int32_t stream_id)
    int nghttp2_session_consume_connection(nghttp2_session* session, size_t size)
    int nghttp2_session_consume_stream(nghttp2_session* session, int32_t stream_id, size_t size)
    int nghttp2_session_set_local_window_size(nghttp2_session* session, uint8_t flags, int32_t stream_id, int32_t size)
    int nghttp2_submit_settings(nghttp2_session* session, uint8_t flags, const nghttp2_settings_entry* iv, size_t niv)
    int nghttp2_submit_ping(nghttp2_session* session, uint8_t flags, const uint8_t* opaque)
    int nghttp2_submit_goaway(nghttp2_session* session, uint8_t flags, int32_t last_stream_id, uint32_t error_code,
                              const uint8_t* opaque, size_t size)
    int nghttp2_submit_shutdown_notice(nghttp2_session* session)
    int nghttp2_submit_rst_stream(nghttp2_session* session, uint8_t flags, int32_t stream_id, uint32_t error_code)
    int nghttp2_submit_response(nghttp2_session* session, int32_t stream_id, const nghttp2_nv* nva, size_t nvlen,
                                const nghttp2_data_provider* provider)
    int32_t nghttp2_submit_request(nghttp2_session* session, const void* priority, const nghttp2_nv* nva, size_t nvlen,
                                   const nghttp2_data_provider* provider, void* stream_user_data)
    int32_t nghttp2_submit_headers(nghttp2_session* session, uint8_t flags, int32_t stream_id, const void* priority,
                                   const nghttp2_nv* nva, size_t nvlen, void* stream_user_data)
    int nghttp2_submit_trailer(nghttp2_session* session, int32_t stream_id, const nghttp2_nv* nva, size_t nvlen)
