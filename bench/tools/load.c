/* Load for the benchmarks, where no well-known tool fits; it prints one JSON object.
 *
 *   load pingpong PORT CONNS SIZE S        one message in flight a connection: operations, latencies in microseconds
 *   load connects PORT SIZE S              connect, one exchange, close, one after the other
 *   load bulk PORT STREAMS S up|down|both  as fast as it goes: bytes sent and received
 *   load idle PORT CONNS                   opens so many, prints "ready", and waits for the end of its input
 *
 * In time with a schedule, for switches: latency counts from when a connection was due, so that a stall is seen in full.
 *
 *   load watch PORT RATE SIZE FILE         RATE times a second connect, one exchange, close, till the end of its input;
 *                                          a line "LETTER\n" when another daemon answers; FILE: due, microseconds, who
 */
#include "tcp.h"

#include <sys/timerfd.h>

static int dial(int port) {
    struct sockaddr_in a = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("socket");
    double until = now() + 10;
    while (connect(fd, (struct sockaddr *)&a, sizeof a) < 0)
        if ((errno != EINTR && errno != EADDRNOTAVAIL) || now() > until) fail("connect");
    no_delay(fd);
    return fd;
}

static int by_value(const void *x, const void *y) {
    float a = *(const float *)x, b = *(const float *)y;
    return (a > b) - (a < b);
}

/* No TIME_WAIT: the ports of loopback would run out in seconds. */
static void forget(int fd) {
    struct linger at_once = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}

static int pingpong(int port, int conns, int size, double seconds) {
    int *fds = calloc(conns, sizeof *fds), *left = calloc(conns, sizeof *left);
    double *sent = calloc(conns, sizeof *sent);
    size_t room = 1 << 22, count = 0, all = 0;
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
    while (at < end || !count) {
        int n = epoll_wait(ep, got, EVENTS, 1000);
        for (int i = 0; i < n; i++) {
            int c = got[i].data.u32;
            ssize_t r = read(fds[c], buffer, left[c]);
            if (r <= 0) fail("read");
            if ((left[c] -= r) > 0) continue;
            at = now();
            all++;
            if (count < room) took[count++] = (at - sent[c]) * 1e6;
            left[c] = size;
            sent[c] = at;
            if (write(fds[c], buffer, size) != size) fail("write");
        }
        at = now();
        if (at > end + 10) fail("no answer");
    }
    qsort(took, count, sizeof *took, by_value);
    printf("{\"count\": %zu, \"ops_s\": %.1f, \"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, \"max_us\": %.2f}\n",
           all, all / (at - began), took[count / 2], took[count * 99 / 100], took[count * 999 / 1000],
           took[count - 1]);
    for (int i = 0; i < conns; i++) forget(fds[i]);
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
        forget(fd);
        shutdown(fd, SHUT_WR);
        while (read(fd, buffer, 1) > 0) {}
        close(fd);
        count++;
    }
    printf("{\"count\": %ld, \"per_s\": %.1f}\n", count, count / (at - began));
    return 0;
}

static int bulk(int port, int streams, double seconds, const char *way) {
    int up = strcmp(way, "down") != 0, down = strcmp(way, "up") != 0, ep = epoll_create1(0);
    struct epoll_event ev, got[EVENTS];
    for (int i = 0; i < streams; i++) {
        int fd = dial(port);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        ev.events = (up ? EPOLLOUT : 0) | (down ? EPOLLIN : 0);
        ev.data.fd = fd;
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    }
    double began = now(), at = began, sent = 0, received = 0;
    while ((at = now()) < began + seconds) {
        int n = epoll_wait(ep, got, EVENTS, 1000);
        for (int i = 0; i < n; i++) {
            if (got[i].events & EPOLLOUT) {
                ssize_t s = write(got[i].data.fd, buffer, BUFFER);
                if (s > 0) sent += s;
                else if (errno != EAGAIN) fail("write");
            }
            if (got[i].events & EPOLLIN) {
                ssize_t r = read(got[i].data.fd, buffer, BUFFER);
                if (r > 0) received += r;
                else if (r == 0 || errno != EAGAIN) fail("read");
            }
        }
    }
    printf("{\"count\": %.0f, \"bytes_s\": %.0f, \"up_s\": %.0f, \"down_s\": %.0f}\n", sent + received,
           (sent + received) / (at - began), sent / (at - began), received / (at - began));
    return 0;
}

static int idle(int port, int conns) {
    for (int i = 0; i < conns; i++) dial(port);
    puts("ready");
    fflush(stdout);
    while (read(0, buffer, BUFFER) > 0) {}
    return 0;
}

/* One connection of the watch: due when, how far it is, and how much of the answer is still to come. */
struct trip {
    double due;
    int left, sent, who;
};

static void told(FILE *file, struct trip *t, const char *who) {
    fprintf(file, "%.6f %.0f %s\n", t->due, (now() - t->due) * 1e6, who);
}

/* One step of a connection; 0 while it goes on. */
static const char *step(int fd, struct trip *t, int size, char *letter) {
    if (!t->sent) {
        int code = 0;
        socklen_t room = sizeof code;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &room);
        if (code) return code == ECONNREFUSED ? "refused" : code == ECONNRESET ? "reset" : "failed";
        if (write(fd, buffer, size) != size) return errno == EAGAIN ? 0 : errno == ECONNRESET ? "reset" : "failed";
        t->sent = 1;
        return 0;
    }
    char got[BUFFER / 4];
    ssize_t r = read(fd, got, t->left);
    if (r < 0 && errno == EAGAIN) return 0;
    if (r == 0) return "ended";
    if (r < 0) return errno == ECONNRESET ? "reset" : "failed";
    if (t->left == size) t->who = got[0];
    if ((t->left -= r) > 0) return 0;
    letter[0] = t->who;
    return letter;
}

static int watch(int port, double rate, int size, const char *path) {
    enum { MOST = 8192 };
    static struct trip trips[1 << 16];
    FILE *file = fopen(path, "w");
    if (!file) fail(path);
    int ep = epoll_create1(0), open = 0, last = 0;
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = 0}, got[EVENTS];
    epoll_ctl(ep, EPOLL_CTL_ADD, 0, &ev);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    long gap = 1e9 / rate;
    struct itimerspec every = {{gap / 1000000000, gap % 1000000000}, {gap / 1000000000, gap % 1000000000}};
    timerfd_settime(timer, 0, &every, 0);
    ev.data.fd = timer;
    epoll_ctl(ep, EPOLL_CTL_ADD, timer, &ev);
    memset(buffer, 'x', size);
    double due = now();
    for (;;) {
        int n = epoll_wait(ep, got, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            int fd = got[i].data.fd;
            if (fd == 0) {
                for (int f = 0; f < 1 << 16; f++) /* what was still under way is told, not forgotten */
                    if (trips[f].due && now() - trips[f].due > 1) told(file, &trips[f], "unanswered");
                fclose(file);
                return 0;
            }
            if (fd == timer) {
                unsigned long long times = 0;
                if (read(timer, &times, sizeof times) < 0) continue;
                for (; times; times--) {
                    due += gap * 1e-9;
                    struct trip t = {.due = due, .left = size};
                    if (open >= MOST) {
                        told(file, &t, "unsent");
                        continue;
                    }
                    int c = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
                    struct sockaddr_in a = loopback(port);
                    if (c < 0 || c >= 1 << 16) fail("socket");
                    no_delay(c);
                    if (connect(c, (struct sockaddr *)&a, sizeof a) < 0 && errno != EINPROGRESS) {
                        told(file, &t, errno == ECONNREFUSED ? "refused" : "failed");
                        close(c);
                        continue;
                    }
                    trips[c] = t;
                    open++;
                    struct epoll_event both = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.fd = c};
                    epoll_ctl(ep, EPOLL_CTL_ADD, c, &both);
                }
                continue;
            }
            char letter[2] = {0, 0};
            const char *end = step(fd, &trips[fd], size, letter);
            if (!end) end = step(fd, &trips[fd], size, letter); /* edge-triggered: the answer may be there already */
            if (!end) continue;
            told(file, &trips[fd], end);
            if (letter[0] && letter[0] != last) {
                last = letter[0];
                printf("%c\n", last);
                fflush(stdout);
            }
            trips[fd].due = 0;
            forget(fd);
            close(fd);
            open--;
        }
    }
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int port = atoi(argv[2]);
    many_descriptors();
    no_sigpipe();
    if (!strcmp(argv[1], "pingpong") && argc == 6) return pingpong(port, atoi(argv[3]), atoi(argv[4]), atof(argv[5]));
    if (!strcmp(argv[1], "connects") && argc == 5) return connects(port, atoi(argv[3]), atof(argv[4]));
    if (!strcmp(argv[1], "bulk") && argc == 6) return bulk(port, atoi(argv[3]), atof(argv[4]), argv[5]);
    if (!strcmp(argv[1], "idle") && argc == 4) return idle(port, atoi(argv[3]));
    if (!strcmp(argv[1], "watch") && argc == 6) return watch(port, atof(argv[3]), atoi(argv[4]), argv[5]);
    return 2;
}
