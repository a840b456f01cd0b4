/* The load of everything that is only carried by TCP, to stream_backend.c behind it.
 *
 *     stream_client exchange PORT CONNECTIONS SECONDS     128 bytes there and back on each, again and again
 *     stream_client connect PORT CONNECTIONS SECONDS      the same, each on a connection of its own that is closed then
 *     stream_client down PORT CONNECTIONS SECONDS         bulk from the endpoint on each
 *     stream_client up PORT CONNECTIONS SECONDS           ... and to it
 *     stream_client idle PORT CONNECTIONS                 one exchange on each, then hold them until stdin ends
 *
 * It writes one JSON object when its connections are open, waits for a byte on stdin, and writes another one when done: so
 * what opening costs can be left out. Kept connections have had one exchange by then.
 *
 * Every byte that comes back is compared. Bulk ends in order: the half of the client first, then what is still on its way
 * comes. `up` compares also how many bytes the endpoint has had. A wrong byte, or a connection that ends too early, ends
 * the client.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "load.h"
#include "pattern.h"

enum { MESSAGE_BYTES = 128, EVENTS = 256, PATIENCE_SECONDS = 60 };

static const struct mode {
    const char *name;
    char first;               /* what the endpoint is to do */
    int once;                 /* a connection for each exchange */
    int idle;
} modes[] = {{"exchange", 'e', 0, 0}, {"connect", 'e', 1, 0}, {"down", 'd', 0, 0}, {"up", 'u', 0, 0}, {"idle", 'e', 0, 1}}, *mode;

struct connection {
    int fd;
    uint64_t number;          /* of its exchange, or place in the pattern */
    size_t have;              /* of an answer */
    int ended;
};

static struct sockaddr_in server;
static int poll_fd, busy;
static uint64_t deadline_ns, exchanges, bytes;

static void give_up(const char *what)
{
    fprintf(stderr, "stream_client: %s (%s)\n", what, strerror(errno));
    exit(1);
}

/* No two are the same. */
static const unsigned char *message(uint64_t number)
{
    static unsigned char text[MESSAGE_BYTES];
    if (!text[0])
        memcpy(text, pattern, sizeof text);
    text[0] = 'e';
    memcpy(text + 1, &number, sizeof number);
    return text;
}

static void open_socket(struct connection *c)
{
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&server, sizeof server))
        give_up("no connection");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
}

static void watch(struct connection *c, uint32_t events, int change)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(poll_fd, change, c->fd, &event);
}

/* A message is far smaller than a socket buffer. */
static void ask(struct connection *c)
{
    static uint64_t next;
    c->number = next++;
    c->have = 0;
    if (send(c->fd, message(c->number), MESSAGE_BYTES, MSG_NOSIGNAL) != MESSAGE_BYTES)
        give_up("a message cannot be sent");
    busy++;
}

static void go_on(struct connection *c)
{
    if (mode->once) {
        close(c->fd);
        open_socket(c);
        watch(c, EPOLLIN, EPOLL_CTL_ADD);
    }
    ask(c);
}

static void handle_answer(struct connection *c)
{
    unsigned char answer[MESSAGE_BYTES];
    ssize_t got = recv(c->fd, answer, MESSAGE_BYTES - c->have, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        give_up("a connection ended early");
    if (memcmp(answer, message(c->number) + c->have, (size_t)got))
        give_up("a wrong answer");
    c->have += (size_t)got;
    if (c->have < MESSAGE_BYTES)
        return;
    busy--;
    exchanges++;
    if (deadline_ns && now_ns() < deadline_ns)
        go_on(c);
}

static void end_of_bulk(struct connection *c)
{
    if (mode->first == 'u' && c->have != sizeof c->number)
        give_up("the endpoint has not had the right bytes");
    close(c->fd);
    c->ended = 1;
    busy--;
}

static void handle_down(struct connection *c)
{
    static unsigned char page[PATTERN_MOST];
    ssize_t got = recv(c->fd, page, sizeof page, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got < 0 || (!got && now_ns() < deadline_ns))
        give_up("a connection ended early");
    if (!got) {
        end_of_bulk(c);
        return;
    }
    if (memcmp(page, pattern_at(c->number), (size_t)got))
        give_up("a wrong byte");
    c->number += (uint64_t)got;
    bytes += (uint64_t)got;
}

static void handle_up(struct connection *c, uint32_t events)
{
    if (events & EPOLLOUT && now_ns() < deadline_ns) {
        ssize_t sent = send(c->fd, pattern_at(c->number), PATTERN_MOST, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            give_up("a connection ended early");
        if (sent > 0) {
            c->number += (uint64_t)sent;
            bytes += (uint64_t)sent;
        }
        return;
    }
    uint64_t taken = 0;
    ssize_t got = recv(c->fd, &taken, sizeof taken, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (!got) {
        end_of_bulk(c);
        return;
    }
    if (got != sizeof taken || taken != c->number)
        give_up("the endpoint has not had all bytes");
    c->have = (size_t)got;
}

static void turn(uint64_t until_ns)
{
    struct epoll_event events[EVENTS];
    uint64_t now = now_ns(), wait = until_ns > now ? until_ns - now : 0;
    struct timespec timeout = {.tv_sec = (time_t)(wait / 1000000000u), .tv_nsec = (long)(wait % 1000000000u)};
    int count = epoll_pwait2(poll_fd, events, EVENTS, &timeout, NULL);
    for (int i = 0; i < count; i++) {
        struct connection *c = events[i].data.ptr;
        if (mode->first == 'e')
            handle_answer(c);
        else if (mode->first == 'd')
            handle_down(c);
        else
            handle_up(c, events[i].events);
    }
}

static struct connection *open_all(size_t count)
{
    struct connection *all = calloc(count, sizeof *all);
    for (size_t i = 0; i < count; i++) {
        open_socket(&all[i]);
        watch(&all[i], EPOLLIN, EPOLL_CTL_ADD);
        if (mode->first != 'e' || mode->once)
            continue;
        ask(&all[i]);
        while (busy)
            turn(now_ns() + 1000000000u);
    }
    exchanges = 0;
    return all;
}

static void finish(uint64_t patience_ns)
{
    while (busy) {
        if (now_ns() > patience_ns)
            give_up("not all connections came to their end");
        turn(patience_ns);
    }
}

static void run_exchanges(struct connection *all, size_t count)
{
    for (size_t i = 0; i < count; i++)
        ask(&all[i]);
    while (now_ns() < deadline_ns)
        turn(deadline_ns);
    finish(deadline_ns + 5000000000u);
}

static void run_bulk(struct connection *all, size_t count)
{
    busy = (int)count;
    for (size_t i = 0; i < count; i++) {
        if (send(all[i].fd, &mode->first, 1, MSG_NOSIGNAL) != 1)
            give_up("nothing can be sent");
        if (mode->first == 'u')
            watch(&all[i], EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    }
    while (now_ns() < deadline_ns)
        turn(deadline_ns);
    for (size_t i = 0; i < count; i++) {
        if (mode->first == 'u')
            watch(&all[i], EPOLLIN, EPOLL_CTL_MOD);
        if (!all[i].ended)
            shutdown(all[i].fd, SHUT_WR);
    }
    finish(deadline_ns + 20000000000u);
}

/* How many of them have not been closed by the other end. */
static size_t count_open(const struct connection *all, size_t count)
{
    size_t open = 0;
    char byte;
    for (size_t i = 0; i < count; i++)
        open += recv(all[i].fd, &byte, 1, MSG_PEEK) < 0 && errno == EAGAIN;
    return open;
}

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof modes / sizeof *modes && argc > 3; i++)
        if (!strcmp(argv[1], modes[i].name) && argc == (modes[i].idle ? 4 : 5))
            mode = &modes[i];
    if (!mode) {
        fprintf(stderr, "usage: stream_client exchange|connect|down|up PORT CONNECTIONS SECONDS | stream_client idle PORT CONNECTIONS\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    make_pattern();
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)atoi(argv[2]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    poll_fd = epoll_create1(0);
    size_t count = (size_t)atol(argv[3]);
    alarm(PATIENCE_SECONDS);    /* a proxy that stalls ends us */
    struct connection *all = open_all(count);
    alarm(0);
    printf("{\"open\": %zu}\n", count);
    wait_for_byte();
    if (mode->idle) {
        printf("{\"open\": %zu}\n", count_open(all, count));
        return 0;
    }
    double seconds = atof(argv[4]);
    alarm((unsigned)seconds + PATIENCE_SECONDS);
    deadline_ns = now_ns() + (uint64_t)(seconds * 1e9);
    if (mode->first == 'e')
        run_exchanges(all, count);
    else
        run_bulk(all, count);
    printf("{\"exchanges\": %lu, \"bytes\": %lu}\n", exchanges, bytes);
    return 0;
}
