/* The load of UDP that is only carried, to datagram_backend.c behind it: 64 bytes there and back.
 *
 *     datagram_client busy PORT SESSIONS SECONDS     WINDOW datagrams under way on each session, by recvmmsg and sendmmsg
 *     datagram_client once PORT SESSIONS SECONDS     each datagram from a port of its own, so many at a time, as in DNS
 *
 * It writes one JSON object when it is ready, waits for a byte on stdin, and writes another one when done. The sessions of
 * `busy` are open by then. Each datagram says its session and number, and every answer is compared; a wrong one ends the
 * client. What has no answer after LOST_NS is counted as lost and sent anew.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>

#include "datagram.h"
#include "load.h"

enum { WINDOW = 16, EVENTS = 256, PATIENCE_SECONDS = 60 };

static const uint64_t LOST_NS = 300000000;

struct datagram {
    uint64_t session, number;
    unsigned char rest[DATAGRAM_BYTES - 16];
};

struct session {
    int fd;
    uint64_t id, first, next;   /* numbers that may come back: first <= number < next */
    int under_way;
    uint64_t last_ns;           /* when something came or was sent anew */
};

static struct sockaddr_in server;
static struct batch batch;
static int poll_fd, once;
static uint64_t deadline_ns, exchanges, lost, strays;

static void give_up(const char *what)
{
    fprintf(stderr, "datagram_client: %s (%s)\n", what, strerror(errno));
    exit(1);
}

static void open_socket(struct session *s)
{
    static uint64_t next_id;
    s->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (s->fd < 0 || connect(s->fd, (struct sockaddr *)&server, sizeof server))
        give_up("no socket");
    s->id = next_id++;
    s->under_way = 0;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = s};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, s->fd, &event);
}

static void send_some(struct session *s, int count)
{
    s->last_ns = now_ns();
    for (int i = 0; i < count; i++) {
        struct datagram *d = (struct datagram *)batch.bytes[i];
        d->session = s->id;
        d->number = s->next++;
        memset(d->rest, (int)(d->number * 31 + d->session), sizeof d->rest);
        batch.pieces[i].iov_len = DATAGRAM_BYTES;
    }
    int sent = count == 1 ? (int)(send(s->fd, batch.bytes[0], DATAGRAM_BYTES, 0) > 0)
                          : sendmmsg(s->fd, batch.messages, (unsigned)count, 0);
    if (sent < 0)
        give_up("a datagram cannot be sent");
    s->under_way += count;      /* what the kernel has not taken is lost, and noticed as such */
}

/* Whether it is waited for: what was given up for lost may still come, also to a port that has a new session by then. */
static int check(struct session *s, const struct datagram *d, unsigned size)
{
    if (size != DATAGRAM_BYTES || (!once && (d->session != s->id || d->number >= s->next)))
        give_up("a wrong answer");
    for (size_t i = 0; i < sizeof d->rest; i++)
        if (d->rest[i] != (unsigned char)(d->number * 31 + d->session))
            give_up("a wrong byte");
    strays += d->session != s->id;
    return d->session == s->id && d->number >= s->first;
}

static void begin(struct session *s)
{
    if (once) {
        if (s->fd >= 0)
            close(s->fd);
        open_socket(s);
    }
    s->first = s->next;
    s->under_way = 0;
    send_some(s, once ? 1 : WINDOW);
}

static void handle(struct session *s)
{
    int got = 1, answers = 0;
    if (once) {
        ssize_t size = recv(s->fd, batch.bytes[0], ROOM_BYTES, 0);
        if (size < 0)
            return;             /* refused, or nothing: it will be lost */
        batch.messages[0].msg_len = (unsigned)size;
    } else {
        for (int i = 0; i < WINDOW; i++)
            batch.pieces[i].iov_len = ROOM_BYTES;
        got = recvmmsg(s->fd, batch.messages, WINDOW, MSG_DONTWAIT, NULL);
    }
    for (int i = 0; i < got; i++)
        answers += check(s, (struct datagram *)batch.bytes[i], batch.messages[i].msg_len);
    exchanges += (uint64_t)answers;
    s->under_way -= answers;
    if (!answers || now_ns() >= deadline_ns)
        return;
    if (once)
        begin(s);
    else
        send_some(s, answers);
}

static void turn(void)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(poll_fd, events, EVENTS, 20);
    for (int i = 0; i < count; i++)
        handle(events[i].data.ptr);
}

static int look_after(struct session *all, size_t count)
{
    int busy = 0;
    uint64_t now = now_ns();
    for (size_t i = 0; i < count; i++) {
        if (all[i].under_way > 0 && now - all[i].last_ns > LOST_NS) {
            lost += (uint64_t)all[i].under_way;
            all[i].under_way = 0;
            if (now < deadline_ns)
                begin(&all[i]);
        }
        busy += all[i].under_way > 0;
    }
    return busy;
}

int main(int argc, char **argv)
{
    once = argc == 5 && !strcmp(argv[1], "once");
    if (argc != 5 || (!once && strcmp(argv[1], "busy"))) {
        fprintf(stderr, "usage: datagram_client busy|once PORT SESSIONS SECONDS\n");
        return 2;
    }
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)atoi(argv[2]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    poll_fd = epoll_create1(0);
    prepare_batch(&batch, 0);
    size_t count = (size_t)atol(argv[3]);
    struct session *all = calloc(count, sizeof *all);
    for (size_t i = 0; i < count; i++) {
        all[i].fd = -1;
        if (!once)
            open_socket(&all[i]);
    }
    printf("{\"open\": %zu}\n", count);
    wait_for_byte();
    double seconds = atof(argv[4]);
    alarm((unsigned)seconds + PATIENCE_SECONDS);
    deadline_ns = now_ns() + (uint64_t)(seconds * 1e9);
    uint64_t looked_ns = now_ns();
    for (size_t i = 0; i < count; i++)
        begin(&all[i]);
    for (;;) {
        turn();
        if (now_ns() - looked_ns < 20000000 && now_ns() < deadline_ns)
            continue;
        looked_ns = now_ns();
        if (!look_after(all, count) && looked_ns >= deadline_ns)
            break;
    }
    printf("{\"exchanges\": %lu, \"lost\": %lu, \"strays\": %lu}\n", exchanges, lost, strays);
    return 0;
}
