// A library whose constructor runs before the shim's (the program is linked with it, so the loader initialises it first), and
// calls all that the shim intercepts. What the calls say is printed, to be compared with what they say on the kernel; the
// socket that it makes lives on in the program (early-main.c).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

int early_socket = -1;
extern char **environ;
ssize_t __read_chk(int, void *, size_t, size_t);
ssize_t __recv_chk(int, void *, size_t, size_t, int);
ssize_t __recvfrom_chk(int, void *, size_t, size_t, int, struct sockaddr *, socklen_t *);
int __poll_chk(struct pollfd *, nfds_t, int, size_t);
int __ppoll_chk(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *, size_t);
int __sendmmsg(int, struct mmsghdr *, unsigned, int);

static char said[8192];
static size_t length;
static void say(const char *call, long result) {
  int error = errno;
  length += (size_t)snprintf(said + length, sizeof said - length, "%s %ld%s%s\n", call, result, result < 0 ? " " : "",
                             result < 0 ? strerrorname_np(error) : "");
}
#define SAY(call) (errno = 0, say(#call, (long)(call)))

__attribute__((constructor)) static void early(void) {
  struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}}, from;
  socklen_t size = sizeof name;
  char data[64] = "0123456789";
  struct iovec vector = {data, 10};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
  struct mmsghdr batch = {.msg_hdr = message};
  int value = 1, status;
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  struct pollfd entry = {fd, POLLIN | POLLOUT, 0};
  struct epoll_event event = {EPOLLIN, {0}};
  struct timespec moment = {0, 0};
  fd_set set;
  SAY(bind(fd, (void *)&name, sizeof name));
  SAY(getsockname(fd, (void *)&name, &size));
  SAY(sendto(fd, data, 10, 0, (void *)&name, sizeof name));
  SAY(recvfrom(fd, data, 64, 0, (void *)&from, &size));
  SAY(connect(fd, (void *)&name, sizeof name));
  SAY(getpeername(fd, (void *)&from, &size));
  SAY(send(fd, data, 10, 0));
  SAY(recv(fd, data, 64, 0));
  SAY(write(fd, data, 10));
  SAY(read(fd, data, 64));
  SAY(writev(fd, &vector, 1));
  SAY(readv(fd, &vector, 1));
  SAY(pwritev2(fd, &vector, 1, -1, 0));
  SAY(preadv2(fd, &vector, 1, -1, 0));
  SAY(sendmsg(fd, &message, 0));
  SAY(recvmsg(fd, &message, 0));
  SAY(sendmmsg(fd, &batch, 1, 0));
  SAY(recvmmsg(fd, &batch, 1, 0, NULL));
  SAY(__sendmmsg(fd, &batch, 1, 0));
  SAY(__recv_chk(fd, data, 64, 64, 0));
  SAY(__recvfrom_chk(fd, data, 64, 64, MSG_DONTWAIT, (void *)&from, &size));
  SAY(__read_chk(-1, data, 64, 64));
  SAY(poll(&entry, 1, 0));
  SAY(ppoll(&entry, 1, &moment, NULL));
  SAY(__poll_chk(&entry, 1, 0, sizeof entry));
  SAY(__ppoll_chk(&entry, 1, &moment, NULL, sizeof entry));
  FD_ZERO(&set);
  FD_SET(fd, &set);
  SAY(select(fd + 1, NULL, &set, NULL, &(struct timeval){0, 0}));
  SAY(pselect(fd + 1, NULL, &set, NULL, &moment, NULL));
  int epfd = epoll_create1(EPOLL_CLOEXEC), old = epoll_create(1);
  SAY(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &event));
  SAY(epoll_wait(epfd, &event, 1, 0));
  SAY(epoll_pwait(epfd, &event, 1, 0, NULL));
  SAY(epoll_pwait2(epfd, &event, 1, &moment, NULL));
  SAY(setsockopt(fd, SOL_SOCKET, SO_TIMESTAMP, &value, sizeof value));
  size = sizeof value;
  SAY(getsockopt(fd, SOL_SOCKET, SO_TIMESTAMP, &value, &size));
  SAY(ioctl(fd, FIONREAD, &value));
  SAY(fcntl(fd, F_GETFD));
  SAY(fcntl64(fd, F_GETFD));
  int copy = dup(fd);
  SAY(dup2(fd, copy) == copy);
  SAY(dup3(fd, copy, O_CLOEXEC) == copy);
  SAY(close(copy));
  SAY(close(old));
  SAY(close(epfd));
  SAY(close_range(1000, 1001, 0));
  closefrom(1000);
  SAY(syscall(SYS_close, -1));
  SAY(execve("/nowhere", (char *[]){"x", NULL}, environ));
  SAY(execv("/nowhere", (char *[]){"x", NULL}));
  SAY(execvp("/nowhere", (char *[]){"x", NULL}));
  SAY(execvpe("/nowhere", (char *[]){"x", NULL}, environ));
  SAY(fexecve(-1, (char *[]){"x", NULL}, environ));
  // Where the preload is set, a child's own constructors must not go round in a circle.
  if (!getenv("EARLY_CHILD")) {
    pid_t child = -1;
    char *environment[] = {"EARLY_CHILD=1", NULL};
    SAY(posix_spawn(&child, "/bin/true", NULL, NULL, (char *[]){"true", NULL}, environment));
    waitpid(child, &status, 0);
    say("the child", status);
    SAY(posix_spawnp(&child, "true", NULL, NULL, (char *[]){"true", NULL}, environment));
    waitpid(child, &status, 0);
    say("the child", status);
    child = fork();
    if (child == 0) _exit(send(fd, data, 10, 0) == 10 && recv(fd, data, 64, 0) == 10 ? 0 : 1);
    waitpid(child, &status, 0);
    say("the forked child", status);
  }
  SAY(shutdown(-1, SHUT_RD));
  early_socket = fd;
  fwrite(said, 1, length, stdout);
}
__attribute__((destructor)) static void late(void) {
  char data[64];
  length = 0;
  SAY(send(early_socket, "late", 4, 0));
  SAY(recv(early_socket, data, 64, 0));
  SAY(close(early_socket));
  fwrite(said, 1, length, stdout);
  fflush(stdout);
}
