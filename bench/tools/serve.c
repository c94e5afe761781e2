/* The daemon behind every contender: small enough that it is never what is measured. One thread, epoll; says nothing.
 *
 *   serve PORT echo          gives back what it gets
 *   serve PORT name LETTER   as echo, but the first byte of each answer is LETTER: who it was
 *   serve PORT sink          reads, and answers nothing
 *   serve PORT source        reads, and sends as fast as it goes
 *
 * PORT may be fd=N: a listener that it was given.
 */
#include "tcp.h"

static void accept_all(int ep, int listener, unsigned events) {
    struct epoll_event ev = {.events = events};
    int fd;
    while ((fd = accept4(listener, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        no_delay(fd);
        ev.data.fd = fd;
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    }
}

/* Write all of it: answers are small, and the client reads each before it asks again. */
static void answer(int fd, ssize_t size, int name) {
    if (name) buffer[0] = name;
    for (ssize_t sent = 0, s; sent < size; sent += s > 0 ? s : 0)
        if ((s = write(fd, buffer + sent, size - sent)) < 0 && errno != EAGAIN) break;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int name = argc > 3 ? argv[3][0] : 0, echo = name || !strcmp(argv[2], "echo"), source = !strcmp(argv[2], "source");
    struct sockaddr_in a = loopback(atoi(argv[1]));
    int given = !strncmp(argv[1], "fd=", 3); /* a listener that the parent made */
    int one = 1, listener = given ? atoi(argv[1] + 3) : socket(AF_INET, SOCK_STREAM, 0);
    many_descriptors();
    no_sigpipe();
    fcntl(listener, F_SETFD, FD_CLOEXEC);
    fcntl(listener, F_SETFL, O_NONBLOCK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if ((!given && bind(listener, (struct sockaddr *)&a, sizeof a)) || listen(listener, 4096)) fail("listen");
    int ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = listener}, got[EVENTS];
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &ev);
    for (;;) {
        int n = epoll_wait(ep, got, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            int fd = got[i].data.fd;
            if (fd == listener) {
                accept_all(ep, listener, source ? EPOLLIN | EPOLLOUT : EPOLLIN);
                continue;
            }
            if (got[i].events & EPOLLOUT) {
                ssize_t sent = write(fd, buffer, BUFFER);
                if (sent < 0 && errno != EAGAIN) {
                    close(fd);
                    continue;
                }
            }
            if (!(got[i].events & ~EPOLLOUT)) continue;
            ssize_t size = read(fd, buffer, BUFFER);
            if (size > 0 && echo) answer(fd, size, name);
            else if (size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR)) close(fd);
        }
    }
}
