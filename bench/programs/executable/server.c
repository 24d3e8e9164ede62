// The least server there is: one thread, epoll, keep-alive, always the same reply. What is measured is what is before it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void) {
    static const char reply[] = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\n\r\nHello, World!";
    const char *port = getenv("PORT");
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(port ? atoi(port) : 8080),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) return 1;
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[64];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(epoll, events, 64, -1);
        for (int at = 0; at < count; at++) {
            int ready = events[at].data.fd;
            if (ready == listener) {
                int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                event.data.fd = client;
                if (client >= 0) epoll_ctl(epoll, EPOLL_CTL_ADD, client, &event);
                continue;
            }
            char request[16384];
            ssize_t length = read(ready, request, sizeof request);
            if (length <= 0) close(ready);
            else if (memmem(request, length, "\r\n\r\n", 4) && write(ready, reply, sizeof reply - 1) < 0) close(ready);
        }
    }
}
