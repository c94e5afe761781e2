/* Load for the benchmarks, and the daemon behind it: small enough that it is never what is measured.
 *
 *   load serve PORT echo|sink        one thread, epoll; says nothing
 *   load pingpong PORT CONNS SIZE S  one message in flight a connection; prints ops/s and latencies in microseconds
 *   load connects PORT SIZE S        connect, one exchange, close, one after the other
 *   load bulk PORT STREAMS S         sends as fast as it goes; prints bytes/s
 *   load idle PORT CONNS             opens so many, prints "ready", and waits for the end of its input
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 512, BUFFER = 1 << 18 };
static char buffer[BUFFER];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static void no_delay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static int dial(int port) {
    struct sockaddr_in a = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("socket");
    while (connect(fd, (struct sockaddr *)&a, sizeof a) < 0)
        if (errno != EINTR && errno != EADDRNOTAVAIL) fail("connect");
    no_delay(fd);
    return fd;
}

static void serve(int port, int echo) {
    struct sockaddr_in a = loopback(port);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&a, sizeof a) || listen(listener, 4096)) fail("listen");
    int ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = listener}, got[EVENTS];
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &ev);
    for (;;) {
        int n = epoll_wait(ep, got, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            int fd = got[i].data.fd;
            if (fd == listener) {
                int c;
                while ((c = accept4(listener, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                    no_delay(c);
                    ev.events = EPOLLIN;
                    ev.data.fd = c;
                    epoll_ctl(ep, EPOLL_CTL_ADD, c, &ev);
                }
                continue;
            }
            ssize_t size = read(fd, buffer, BUFFER);
            if (size > 0 && echo) {
                for (ssize_t sent = 0, s; sent < size; sent += s > 0 ? s : 0)
                    if ((s = write(fd, buffer + sent, size - sent)) < 0 && errno != EAGAIN) break;
            } else if (size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR)) {
                close(fd);
            }
        }
    }
}

static int by_value(const void *x, const void *y) {
    float a = *(const float *)x, b = *(const float *)y;
    return (a > b) - (a < b);
}

static int pingpong(int port, int conns, int size, double seconds) {
    int *fds = calloc(conns, sizeof *fds), *left = calloc(conns, sizeof *left);
    double *sent = calloc(conns, sizeof *sent);
    size_t room = 1 << 22, count = 0;
    float *took = malloc(room * sizeof *took);
    int ep = epoll_create1(0);
    struct epoll_event ev, got[EVENTS];
    memset(buffer, 'x', size);
    for (int i = 0; i < conns; i++) {
        fds[i] = dial(port);
        ev.events = EPOLLIN;
        ev.data.u32 = i;
        epoll_ctl(ep, EPOLL_CTL_ADD, fds[i], &ev);
    }
    double began = now(), end = began + seconds;
    for (int i = 0; i < conns; i++) {
        left[i] = size;
        sent[i] = now();
        if (write(fds[i], buffer, size) != size) fail("write");
    }
    double at = began;
    while (at < end) {
        int n = epoll_wait(ep, got, EVENTS, 1000);
        for (int i = 0; i < n; i++) {
            int c = got[i].data.u32;
            ssize_t r = read(fds[c], buffer, left[c]);
            if (r <= 0) fail("read");
            if ((left[c] -= r) > 0) continue;
            at = now();
            if (count < room) took[count++] = (at - sent[c]) * 1e6;
            left[c] = size;
            sent[c] = at;
            if (write(fds[c], buffer, size) != size) fail("write");
        }
        at = now();
    }
    qsort(took, count, sizeof *took, by_value);
    printf("{\"ops_s\": %.1f, \"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, \"max_us\": %.2f}\n",
           count / (at - began), took[count / 2], took[count * 99 / 100], took[count * 999 / 1000], took[count - 1]);
    return 0;
}

static int connects(int port, int size, double seconds) {
    double began = now(), at = began;
    long count = 0;
    while ((at = now()) < began + seconds) {
        int fd = dial(port), left = size;
        if (write(fd, buffer, size) != size) fail("write");
        while (left > 0) {
            ssize_t r = read(fd, buffer, left);
            if (r <= 0) fail("read");
            left -= r;
        }
        struct linger at_once = {1, 0}; /* no TIME_WAIT: the ports of loopback would run out in seconds */
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        shutdown(fd, SHUT_WR);
        while (read(fd, buffer, 1) > 0) {}
        close(fd);
        count++;
    }
    printf("{\"per_s\": %.1f}\n", count / (at - began));
    return 0;
}

static int bulk(int port, int streams, double seconds) {
    int ep = epoll_create1(0);
    struct epoll_event ev, got[EVENTS];
    for (int i = 0; i < streams; i++) {
        int fd = dial(port);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        ev.events = EPOLLOUT;
        ev.data.fd = fd;
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    }
    double began = now(), at = began, bytes = 0;
    while ((at = now()) < began + seconds) {
        int n = epoll_wait(ep, got, EVENTS, 1000);
        for (int i = 0; i < n; i++) {
            ssize_t s = write(got[i].data.fd, buffer, BUFFER);
            if (s > 0) bytes += s;
            else if (errno != EAGAIN) fail("write");
        }
    }
    printf("{\"bytes_s\": %.0f}\n", bytes / (at - began));
    return 0;
}

static int idle(int port, int conns) {
    struct rlimit many = {1 << 19, 1 << 19};
    setrlimit(RLIMIT_NOFILE, &many);
    for (int i = 0; i < conns; i++) dial(port);
    puts("ready");
    fflush(stdout);
    while (read(0, buffer, BUFFER) > 0) {}
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int port = atoi(argv[2]);
    if (!strcmp(argv[1], "serve") && argc == 4) {
        struct rlimit many = {1 << 19, 1 << 19};
        setrlimit(RLIMIT_NOFILE, &many);
        serve(port, !strcmp(argv[3], "echo"));
    }
    if (!strcmp(argv[1], "pingpong") && argc == 6) return pingpong(port, atoi(argv[3]), atoi(argv[4]), atof(argv[5]));
    if (!strcmp(argv[1], "connects") && argc == 5) return connects(port, atoi(argv[3]), atof(argv[4]));
    if (!strcmp(argv[1], "bulk") && argc == 5) return bulk(port, atoi(argv[3]), atof(argv[4]));
    if (!strcmp(argv[1], "idle") && argc == 4) return idle(port, atoi(argv[3]));
    return 2;
}
