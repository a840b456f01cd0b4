/* Why an exchange or a connection ended: the one list. Log field, metric label and `explain` text come from it.
 * LB_REASON(identifier, name, status lb answers when nothing was sent yet; 0 closes without an answer). */
#ifndef LB_REASONS_H
#define LB_REASONS_H

#define LB_REASON_LIST(LB_REASON)                                        \
    LB_REASON(OK, "ok", 0)                                               \
    LB_REASON(LOCAL_ANSWER, "local-answer", 0)                           \
    /* the client */                                                     \
    LB_REASON(CLIENT_CLOSED, "client-closed", 0)                         \
    LB_REASON(CLIENT_RESET, "client-reset", 0)                           \
    LB_REASON(KEEPALIVE_TIMEOUT, "keepalive-timeout", 0)                 \
    LB_REASON(HEAD_TIMEOUT, "head-timeout", 408)                         \
    LB_REASON(CLIENT_IDLE_TIMEOUT, "client-idle-timeout", 408)           \
    LB_REASON(TLS_HANDSHAKE_FAILED, "tls-handshake-failed", 0)           \
    LB_REASON(TLS_TIMEOUT, "tls-timeout", 0)                             \
    LB_REASON(SOURCE_REFUSED, "source-refused", 0)                       \
    LB_REASON(CLIENT_UNREACHABLE, "client-unreachable", 0)               \
    LB_REASON(BAD_PROXY_HEADER, "bad-proxy-header", 0)                   \
    LB_REASON(PROXY_HEADER_TIMEOUT, "proxy-header-timeout", 0)           \
    /* what it sent */                                                   \
    LB_REASON(BAD_CLIENT_HELLO, "bad-client-hello", 0)                   \
    LB_REASON(DATAGRAM_TRUNCATED, "datagram-truncated", 0)               \
    LB_REASON(DATAGRAM_TOO_LONG, "datagram-too-long", 0)                 \
    LB_REASON(PLAIN_HTTP, "plain-http", 400)                             \
    LB_REASON(NOT_HTTP, "not-http", 0)                                   \
    LB_REASON(BAD_REQUEST_LINE, "bad-request-line", 400)                 \
    LB_REASON(BAD_METHOD, "bad-method", 400)                             \
    LB_REASON(METHOD_REFUSED, "method-refused", 405)                     \
    LB_REASON(BAD_TARGET, "bad-target", 400)                             \
    LB_REASON(BAD_VERSION, "bad-version", 505)                           \
    LB_REASON(BAD_HEADER, "bad-header", 400)                             \
    LB_REASON(BAD_HOST, "bad-host", 400)                                 \
    LB_REASON(HOST_MISMATCH, "host-mismatch", 400)                       \
    LB_REASON(BAD_FRAMING, "bad-framing", 400)                           \
    LB_REASON(BAD_CHUNK, "bad-chunk", 400)                               \
    LB_REASON(BAD_TRANSFER_CODING, "bad-transfer-coding", 501)           \
    LB_REASON(BAD_EXPECTATION, "bad-expectation", 417)                   \
    LB_REASON(HEAD_TOO_LARGE, "head-too-large", 431)                     \
    LB_REASON(TOO_MANY_HEADERS, "too-many-headers", 431)                 \
    LB_REASON(TARGET_TOO_LONG, "target-too-long", 414)                   \
    LB_REASON(BAD_PROTOCOL, "bad-protocol", 501)                         \
    LB_REASON(H2_PROTOCOL_ERROR, "h2-protocol-error", 0)                 \
    LB_REASON(H2_RAPID_RESET, "h2-rapid-reset", 0)                       \
    LB_REASON(H2_MADE_YOU_RESET, "h2-made-you-reset", 0)                 \
    LB_REASON(H2_STREAM_FLOOD, "h2-stream-flood", 0)                     \
    LB_REASON(H2_CONTROL_FLOOD, "h2-control-flood", 0)                   \
    LB_REASON(H2_CONTINUATION_FLOOD, "h2-continuation-flood", 0)         \
    LB_REASON(H2_HEADER_BOMB, "h2-header-bomb", 0)                       \
    LB_REASON(H2_WINDOW_STALL, "h2-window-stall", 0)                     \
    LB_REASON(BAD_GRPC_WEB, "bad-grpc-web", 400)                         \
    LB_REASON(BODY_TOO_LARGE, "body-too-large", 413)                     \
    /* routing */                                                        \
    LB_REASON(MISDIRECTED, "misdirected", 421)                           \
    LB_REASON(UNRECOGNIZED_NAME, "unrecognized-name", 0)                 \
    LB_REASON(NO_APPLICATION_PROTOCOL, "no-application-protocol", 0)     \
    LB_REASON(NO_HOST, "no-host", 404)                                   \
    LB_REASON(NO_ROUTE, "no-route", 404)                                 \
    LB_REASON(NO_UPSTREAM, "no-upstream", 503)                           \
    LB_REASON(NO_ENDPOINT, "no-endpoint", 503)                           \
    LB_REASON(NO_HEALTHY_ENDPOINT, "no-healthy-endpoint", 503)           \
    LB_REASON(QUEUE_FULL, "queue-full", 503)                             \
    LB_REASON(QUEUE_TIMEOUT, "queue-timeout", 503)                       \
    /* the endpoint */                                                   \
    LB_REASON(CONNECT_FAILED, "connect-failed", 502)                     \
    LB_REASON(CONNECT_TIMEOUT, "connect-timeout", 504)                   \
    LB_REASON(NO_CLIENT_ADDRESS, "no-client-address", 502)               \
    LB_REASON(TRANSPARENCY_REFUSED, "transparency-refused", 502)         \
    LB_REASON(UPSTREAM_TLS_FAILED, "upstream-tls-failed", 502)           \
    LB_REASON(UPSTREAM_PROTOCOL, "upstream-protocol", 502)               \
    LB_REASON(UPSTREAM_CLOSED, "upstream-closed", 502)                   \
    LB_REASON(UPSTREAM_RESET, "upstream-reset", 502)                     \
    LB_REASON(UPSTREAM_REFUSED, "upstream-refused", 502)                 \
    LB_REASON(UPSTREAM_NO_WEBSOCKET, "upstream-no-websocket", 502)       \
    LB_REASON(UPSTREAM_TRUNCATED, "upstream-truncated", 502)             \
    LB_REASON(BAD_RESPONSE, "bad-response", 502)                         \
    LB_REASON(RESPONSE_TOO_LARGE, "response-too-large", 502)             \
    LB_REASON(RESPONSE_TIMEOUT, "response-timeout", 504)                 \
    LB_REASON(UPSTREAM_IDLE_TIMEOUT, "upstream-idle-timeout", 504)       \
    LB_REASON(REQUEST_TIMEOUT, "request-timeout", 504)                   \
    LB_REASON(GRPC_DEADLINE, "grpc-deadline", 504)                       \
    LB_REASON(TUNNEL_TIMEOUT, "tunnel-timeout", 0)                       \
    LB_REASON(FLOW_TIMEOUT, "flow-timeout", 0)                           \
    LB_REASON(HALF_CLOSED_TIMEOUT, "half-closed-timeout", 0)             \
    LB_REASON(SESSION_TIMEOUT, "session-timeout", 0)                     \
    LB_REASON(ENDPOINT_REMOVED, "endpoint-removed", 0)                   \
    LB_REASON(ENDPOINT_UNHEALTHY, "endpoint-unhealthy", 0)               \
    /* lb itself */                                                      \
    LB_REASON(TOO_MANY_CONNECTIONS, "too-many-connections", 503)         \
    LB_REASON(TOO_MANY_FROM_CLIENT, "too-many-from-client", 429)         \
    LB_REASON(CONNECTION_RATE, "connection-rate", 503)                   \
    LB_REASON(CLIENT_CONNECTION_RATE, "client-connection-rate", 429)     \
    LB_REASON(SESSION_EVICTED, "session-evicted", 0)                     \
    LB_REASON(RECEIVE_BUFFER_FULL, "receive-buffer-full", 0)             \
    LB_REASON(SEND_BUFFER_FULL, "send-buffer-full", 0)                   \
    LB_REASON(LISTENER_REMOVED, "listener-removed", 0)                   \
    LB_REASON(NO_DESCRIPTORS, "no-descriptors", 503)                     \
    LB_REASON(NO_PORT, "no-port", 503)                                   \
    LB_REASON(NO_MEMORY, "no-memory", 503)                               \
    LB_REASON(PRESSURE, "pressure", 0)                                   \
    LB_REASON(ENDED_BY_OPERATOR, "ended-by-operator", 0)                 \
    LB_REASON(DRAIN, "drain", 0)                                         \
    LB_REASON(SHUTDOWN, "shutdown", 503)

#define LB_REASON_ENUM(id, name, status) LB_R_##id,
enum lb_reason { LB_REASON_LIST(LB_REASON_ENUM) LB_REASON_COUNT };
#undef LB_REASON_ENUM
_Static_assert(LB_REASON_COUNT <= 128, "counters.pxd MAX_REASONS");

#define LB_REASON_NAME(id, name, status) name,
static const char *const lb_reason_names[] = {LB_REASON_LIST(LB_REASON_NAME)};
#undef LB_REASON_NAME

#define LB_REASON_STATUS(id, name, status) status,
static const short lb_reason_statuses[] = {LB_REASON_LIST(LB_REASON_STATUS)};
#undef LB_REASON_STATUS

#endif
