/* The load that wrk cannot make: latency at a fixed rate, closed connections counted, idle connections held, TLS with
 * full and with resumed handshakes.
 *
 *     client load PORT CONNECTIONS SECONDS RATE TARGETS HOW     RATE 0: each connection sends as soon as it has its answer
 *     client idle PORT CONNECTIONS TARGETS HOW                  one request on each, then hold them until stdin ends
 *
 * TARGETS is a file of lines `host path`, requested in turn. HOW is one of
 *
 *     plain, tls     connections are kept alive
 *     full           each request has its own connection and a full handshake
 *     resumed        each request has its own connection, resumed by a ticket that the last one brought
 *
 * `load` writes one JSON object when its connections are open, waits for a byte on stdin, and writes another one when
 * done. So what opening costs can be left out, and a session to resume is there before the first request.
 *
 * All handshakes are the same for every server: TLS 1.3, TLS_AES_128_GCM_SHA256, X25519, SNI of the first target's host.
 * Another outcome ends the client. The certificate's chain is not verified; its signature of the handshake is.
 *
 * With a rate the schedule is fixed in advance: request k is due at k / RATE, and its latency counts from then on, also
 * while it waits for a free connection. A server that stalls is charged for every request that fell due meanwhile (no
 * coordinated omission). Latencies go into a log-linear histogram with 1/64 resolution.
 *
 * failed: the answer is not 200, is cut off, or never came. closed: the server closed a connection of ours that was to be
 * kept, whether with a request on it or not.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "load.h"

enum { HEAD_BYTES = 2048, EVENTS = 256, SUB = 64, BUCKETS = 64 * SUB, CONNECTING_MOST = 64, PATIENCE_SECONDS = 60 };
enum { LATER = -1, ENDED = 0 };       /* of receive(), besides a number of bytes */

static const struct how {
    const char *name;
    int tls, one_request, resumed;
} hows[] = {{"plain", 0, 0, 0}, {"tls", 1, 0, 0}, {"full", 1, 1, 0}, {"resumed", 1, 1, 1}}, *how;

struct target {
    char *bytes;
    size_t len;
};

struct connection {
    int fd;
    SSL *ssl;
    SSL_SESSION *session;     /* the newest ticket that a connection in this place was given */
    struct target *target;
    int busy;                 /* a request is under way */
    int unsent;               /* ... and waits for the end of the handshake */
    int ending;               /* answered; the server is to close */
    int in_body, close_after;
    uint64_t due_ns;
    size_t have;              /* bytes of an incomplete head */
    size_t body_left;
    char head[HEAD_BYTES];
};

static struct {
    uint64_t answered, failed, closed, not_ok, unfinished, bytes, handshakes, resumed;
} counts;

static struct target *targets;
static size_t target_count, next_target;
static char server_name[512];
static SSL_CTX *tls_context;
static uint64_t histogram[BUCKETS], latest_ns;
static int poll_fd, open_loop, connections_open;
static uint64_t deadline_ns;
static struct sockaddr_in server;
static struct connection **idle;      /* a ring: the connection that is idle for longest is used first */
static size_t idle_first, idle_count, idle_size;

static void record(uint64_t ns)
{
    int exponent = ns < SUB ? 0 : 63 - __builtin_clzll(ns) - 5;
    uint64_t index = exponent ? (uint64_t)exponent * (SUB / 2) + (ns >> exponent) : ns;
    histogram[index < BUCKETS ? index : BUCKETS - 1]++;
    if (ns > latest_ns)
        latest_ns = ns;
}

static double percentile_us(double share)
{
    uint64_t total = 0, seen = 0;
    for (int i = 0; i < BUCKETS; i++)
        total += histogram[i];
    if (!total)
        return 0;
    for (uint64_t i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if ((double)seen >= share * (double)total) {
            uint64_t exponent = i < SUB ? 0 : i / (SUB / 2) - 1;
            uint64_t ns = exponent ? (i - exponent * (SUB / 2)) << exponent : i;
            return (double)ns / 1000;
        }
    }
    return (double)latest_ns / 1000;
}

static void read_targets(const char *path)
{
    char line[1024], host[512], target[512], request[1200];
    size_t room = 0;
    FILE *file = fopen(path, "r");
    if (!file) {
        perror(path);
        exit(1);
    }
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "%511s %511s", host, target) != 2)
            continue;
        if (target_count == room)
            targets = realloc(targets, (room = room ? room * 2 : 64) * sizeof *targets);
        int len = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", target, host,
                           how->one_request ? "Connection: close\r\n" : "");
        if (!target_count)
            strcpy(server_name, host);
        targets[target_count].bytes = strdup(request);
        targets[target_count++].len = (size_t)len;
    }
    fclose(file);
    if (!target_count) {
        fprintf(stderr, "%s: no targets\n", path);
        exit(1);
    }
}

static void give_up(const char *what)
{
    fprintf(stderr, "client: %s\n", what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static int keep_ticket(SSL *ssl, SSL_SESSION *session)
{
    struct connection *c = SSL_get_app_data(ssl);
    SSL_SESSION_free(c->session);
    c->session = session;
    return 1;
}

static void prepare_tls(void)
{
    tls_context = SSL_CTX_new(TLS_client_method());
    if (!tls_context || !SSL_CTX_set_min_proto_version(tls_context, TLS1_3_VERSION) ||
        !SSL_CTX_set_ciphersuites(tls_context, "TLS_AES_128_GCM_SHA256") ||
        !SSL_CTX_set1_groups_list(tls_context, "X25519"))
        give_up("no TLS");
    SSL_CTX_set_read_ahead(tls_context, 1);
    SSL_CTX_set_mode(tls_context, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(tls_context, how->resumed ? SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL
                                                             : SSL_SESS_CACHE_OFF);
    SSL_CTX_sess_set_new_cb(tls_context, keep_ticket);
}

static void open_tls(struct connection *c)
{
    static const unsigned char http1[] = "\x08http/1.1";
    c->ssl = SSL_new(tls_context);
    if (!c->ssl || !SSL_set_fd(c->ssl, c->fd) || !SSL_set_tlsext_host_name(c->ssl, server_name) ||
        SSL_set_alpn_protos(c->ssl, http1, sizeof http1 - 1) || (c->session && !SSL_set_session(c->ssl, c->session)))
        give_up("no TLS connection");
    SSL_set_app_data(c->ssl, c);
    SSL_set_connect_state(c->ssl);
}

static void note_handshake(struct connection *c)
{
    const char *cipher = SSL_get_cipher_name(c->ssl);
    if (SSL_version(c->ssl) != TLS1_3_VERSION || strcmp(cipher, "TLS_AES_128_GCM_SHA256"))
        give_up("the server chose another version or cipher");
    counts.handshakes++;
    counts.resumed += (uint64_t)SSL_session_reused(c->ssl);
}

/* A connection that is to be kept has its handshake behind it then; another one makes it while it sends. */
static void open_socket(struct connection *c)
{
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&server, sizeof server)) {
        perror("connect");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (how->tls)
        open_tls(c);
    if (how->tls && !how->one_request) {
        if (SSL_connect(c->ssl) != 1)
            give_up("the handshake failed");
        note_handshake(c);
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event);
    c->busy = c->unsent = c->ending = c->in_body = c->close_after = 0;
    c->have = c->body_left = 0;
    connections_open++;
}

static void close_socket(struct connection *c)
{
    if (c->ssl) {
        /* Without this the library takes the end for a truncation and does not resume the session again. */
        SSL_set_shutdown(c->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        SSL_free(c->ssl);
        c->ssl = NULL;
    }
    close(c->fd);
    c->fd = -1;
    connections_open--;
}

/* LATER, ENDED, or the number of bytes. */
static ssize_t receive(struct connection *c, char *out, size_t size)
{
    if (!c->ssl) {
        ssize_t got = recv(c->fd, out, size, 0);
        return got > 0 ? got : got < 0 && errno == EAGAIN ? LATER : ENDED;
    }
    ERR_clear_error();
    int got = SSL_read(c->ssl, out, (int)size);
    return got > 0 ? got : SSL_get_error(c->ssl, got) == SSL_ERROR_WANT_READ ? LATER : ENDED;
}

/* A request is far smaller than a socket buffer. -1: the connection is gone. */
static int transmit(struct connection *c)
{
    if (!c->ssl)
        return send(c->fd, c->target->bytes, c->target->len, MSG_NOSIGNAL) < 0 ? -1 : 0;
    int fresh = !SSL_is_init_finished(c->ssl);
    ERR_clear_error();
    int sent = SSL_write(c->ssl, c->target->bytes, (int)c->target->len);
    c->unsent = sent <= 0;
    if (sent <= 0)
        return SSL_get_error(c->ssl, sent) == SSL_ERROR_WANT_READ ? 0 : -1;
    if (fresh)
        note_handshake(c);
    return 0;
}

static void send_request(struct connection *c, uint64_t due_ns)
{
    if (c->fd < 0)
        open_socket(c);
    c->target = &targets[next_target++ % target_count];
    c->busy = 1;
    c->due_ns = due_ns;
    if (transmit(c))
        shutdown(c->fd, SHUT_RDWR);     /* shows as a closed connection at the next read */
}

static void set_idle(struct connection *c)
{
    c->busy = 0;
    idle[(idle_first + idle_count++) % idle_size] = c;
}

static struct connection *take_idle(void)
{
    struct connection *c = idle[idle_first];
    idle_first = (idle_first + 1) % idle_size;
    idle_count--;
    return c;
}

/* It may stand anywhere in the ring. */
static void drop_idle(struct connection *c)
{
    for (size_t i = 0; i < idle_count; i++)
        if (idle[(idle_first + i) % idle_size] == c) {
            for (; i + 1 < idle_count; i++)
                idle[(idle_first + i) % idle_size] = idle[(idle_first + i + 1) % idle_size];
            idle_count--;
            return;
        }
}

static void go_on(struct connection *c)
{
    if (open_loop)
        set_idle(c);
    else if (deadline_ns && now_ns() < deadline_ns)
        send_request(c, now_ns());
    else
        c->busy = 0;
}

/* The server has closed it. */
static void reopen(struct connection *c)
{
    if (!c->ending) {
        counts.closed++;
        if (c->busy)
            counts.failed++;
        else if (open_loop)
            drop_idle(c);
    }
    close_socket(c);
    if (!how->one_request)
        open_socket(c);
    go_on(c);
}

static void complete(struct connection *c)
{
    record(now_ns() - c->due_ns);
    counts.answered++;
    c->have = 0;
    c->in_body = 0;
    if (how->one_request) {
        c->ending = 1;
        return;
    }
    if (c->close_after) {
        counts.closed++;
        close_socket(c);
        open_socket(c);
    }
    go_on(c);
}

static const char *find_header(const char *head, const char *name)
{
    const char *line = strcasestr(head, name);
    return line && line[-1] == '\n' ? line + strlen(name) : NULL;
}

/* 0: go on reading; -1: not an answer we can read. */
static int read_head(struct connection *c)
{
    c->head[c->have] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end)
        return c->have == HEAD_BYTES - 1 ? -1 : 0;
    end[2] = 0;
    const char *length = find_header(c->head, "content-length:");
    const char *connection = find_header(c->head, "connection:");
    if (!length || strncmp(c->head, "HTTP/1.1 ", 9))
        return -1;
    if (strncmp(c->head + 9, "200", 3)) {
        counts.not_ok++;
        counts.failed++;
    }
    c->close_after = connection && !strncasecmp(connection + strspn(connection, " "), "close", 5);
    c->in_body = 1;
    size_t body = strtoull(length, NULL, 10), got = c->have - (size_t)(end + 4 - c->head);
    if (got > body)
        return -1;
    c->body_left = body - got;
    return 0;
}

/* Whether there may be more to read. */
static int read_some(struct connection *c)
{
    static char page[262144];
    ssize_t got = c->in_body || c->ending ? receive(c, page, sizeof page)
                                          : receive(c, c->head + c->have, HEAD_BYTES - 1 - c->have);
    if (got == LATER)
        return 0;
    if (got == ENDED) {
        reopen(c);
        return 0;
    }
    counts.bytes += (uint64_t)got;
    int broken = !c->busy || c->ending;
    if (c->in_body) {
        broken |= (size_t)got > c->body_left;
        c->body_left -= (size_t)got;
    } else {
        c->have += (size_t)got;
        broken |= read_head(c);
    }
    if (broken) {
        fprintf(stderr, "client: unreadable answer: %.200s\n", c->head);
        exit(1);
    }
    if (c->in_body && !c->body_left)
        complete(c);
    return 1;
}

static void handle(struct connection *c)
{
    if (c->unsent) {
        if (transmit(c))
            reopen(c);
        if (c->unsent)
            return;
    }
    while (read_some(c) && c->ssl && SSL_has_pending(c->ssl))
        ;
}

static void turn(uint64_t until_ns)
{
    struct epoll_event events[EVENTS];
    uint64_t now = now_ns(), wait = until_ns > now ? until_ns - now : 0;
    struct timespec timeout = {.tv_sec = (time_t)(wait / 1000000000u), .tv_nsec = (long)(wait % 1000000000u)};
    int count = epoll_pwait2(poll_fd, events, EVENTS, &timeout, NULL);
    for (int i = 0; i < count; i++)
        handle(events[i].data.ptr);
}

static struct connection *open_all(size_t count)
{
    struct connection *all = calloc(count, sizeof *all);
    idle = calloc(idle_size = count, sizeof *idle);
    for (size_t i = 0; i < count; i++) {
        all[i].fd = -1;
        if (!how->one_request)
            open_socket(&all[i]);
    }
    return all;
}

/* One ticket for all of them to begin with, which servers take more than once as long as there is no early data. After
 * that the library uses each ticket once (RFC 8446 C.4), so a server that does not renew them sees full handshakes. */
static void take_ticket(struct connection *all, size_t count)
{
    send_request(&all[0], now_ns());
    uint64_t patience = now_ns() + 5000000000u;
    while (all[0].fd >= 0 && now_ns() < patience)
        turn(patience);
    if (!all[0].session)
        give_up("the server gives no ticket");
    for (size_t i = 1; i < count; i++)
        all[i].session = SSL_SESSION_dup(all[0].session);
    memset(&counts, 0, sizeof counts);
    memset(histogram, 0, sizeof histogram);
    latest_ns = 0;
}

static void run_open_loop(double rate, double seconds, uint64_t start)
{
    uint64_t total = (uint64_t)(rate * seconds), sent = 0;
    while (sent < total) {
        uint64_t now = now_ns(), due = start + (uint64_t)((double)sent * 1e9 / rate);
        if (due <= now && idle_count) {
            send_request(take_idle(), due);
            sent++;
            continue;
        }
        turn(due > now ? due : now + 1000000000u);
        if (now > deadline_ns + 5000000000u)
            break;              /* the server cannot keep this rate at all */
    }
    counts.unfinished = total - sent;
}

static void run_load(size_t count, double seconds, double rate)
{
    alarm(PATIENCE_SECONDS);    /* a server that stalls ends us */
    struct connection *all = open_all(count);
    if (how->resumed)
        take_ticket(all, count);
    alarm(0);
    printf("{\"open\": %d}\n", connections_open);
    wait_for_byte();
    alarm((unsigned)seconds + PATIENCE_SECONDS);
    uint64_t start = now_ns();
    deadline_ns = start + (uint64_t)(seconds * 1e9);
    open_loop = rate > 0;
    for (size_t i = 0; i < count; i++)
        go_on(&all[i]);
    if (open_loop)
        run_open_loop(rate, seconds, start);
    else
        while (now_ns() < deadline_ns)
            turn(deadline_ns);
    uint64_t ended = now_ns(), patience = ended + 2000000000u;
    for (;;) {
        size_t busy = 0;
        for (size_t i = 0; i < count; i++)
            busy += (size_t)all[i].busy;
        if (!busy || now_ns() > patience) {
            counts.unfinished += busy;
            break;
        }
        turn(now_ns() + 10000000u);
    }
    printf("{\"seconds\": %.6f, \"requests\": %lu, \"failed\": %lu, \"closed\": %lu, \"not_ok\": %lu, \"unfinished\": %lu, "
           "\"bytes\": %lu, \"handshakes\": %lu, \"resumed\": %lu, \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f}\n",
           (double)(ended - start) / 1e9, counts.answered, counts.failed + counts.unfinished, counts.closed, counts.not_ok,
           counts.unfinished, counts.bytes, counts.handshakes, counts.resumed, percentile_us(0.5), percentile_us(0.9), percentile_us(0.99),
           percentile_us(0.999), (double)latest_ns / 1000);
}

/* Few at a time, so that the proxy needs few backend connections and its growth is its client side's. */
static void run_idle(size_t count)
{
    struct connection *all = calloc(count, sizeof *all);
    alarm(PATIENCE_SECONDS);
    for (size_t first = 0; first < count; first += CONNECTING_MOST) {
        size_t end = first + CONNECTING_MOST < count ? first + CONNECTING_MOST : count;
        for (size_t i = first; i < end; i++) {
            open_socket(&all[i]);
            send_request(&all[i], now_ns());
        }
        uint64_t patience = now_ns() + 5000000000u;
        while (counts.answered < end && now_ns() < patience)
            turn(patience);
    }
    alarm(0);
    printf("{\"open\": %d, \"answered\": %lu}\n", connections_open, counts.answered);
    wait_for_byte();
    uint64_t end = now_ns() + 1000000u;
    while (now_ns() < end)
        turn(end);
    printf("{\"open\": %d, \"closed\": %lu}\n", connections_open, counts.closed);
}

int main(int argc, char **argv)
{
    int load = argc == 8 && !strcmp(argv[1], "load");
    if (load || (argc == 6 && !strcmp(argv[1], "idle")))
        for (size_t i = 0; i < sizeof hows / sizeof *hows; i++)
            if (!strcmp(argv[argc - 1], hows[i].name))
                how = &hows[i];
    if (!how) {
        fprintf(stderr, "usage: client load PORT CONNECTIONS SECONDS RATE TARGETS HOW | client idle PORT CONNECTIONS TARGETS HOW\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)atoi(argv[2]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    poll_fd = epoll_create1(0);
    read_targets(argv[argc - 2]);
    if (how->tls)
        prepare_tls();
    if (load)
        run_load((size_t)atol(argv[3]), atof(argv[4]), atof(argv[5]));
    else
        run_idle((size_t)atol(argv[3]));
    return 0;
}
