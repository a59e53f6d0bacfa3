// fork, vfork and their kin: with threads, while others send, without exec, daemons, prefork servers.
#include "probe.h"

#include <dirent.h>
#include <sched.h>
#include <spawn.h>
#include <sys/syscall.h>

extern char **environ;

/// How a child ended: "0" is what each of them is to end with.
static const char *ending(pid_t child) {
  int status = 0;
  char *text = scratch();
  if (child < 0 || waitpid(child, &status, 0) != child) return strcpy(text, "never");
  if (WIFSIGNALED(status)) snprintf(text, 512, "killed by SIG%s", sigabbrev_np(WTERMSIG(status)));
  else snprintf(text, 512, "%d", WEXITSTATUS(status));
  return text;
}

static bool send_one(int fd, const struct sockaddr_in *to, unsigned seed) {
  unsigned char data[10];
  return sendto(fd, fill(data, seed, sizeof data), sizeof data, 0, (const void *)to, sizeof *to) == sizeof data;
}
/// The next datagram is the one of that seed.
static bool receive_one(int fd, unsigned seed) {
  unsigned char data[100], wanted[10];
  struct pollfd entry = {fd, POLLIN, 0};
  if (poll(&entry, 1, 3000) != 1) return false;
  return recv(fd, data, sizeof data, 0) == sizeof wanted && !memcmp(data, fill(wanted, seed, sizeof wanted), sizeof wanted);
}
/// A socket of its own, from it to itself: what any child of any process must be able to do. No stdio, no malloc.
static int own_socket_works(void) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in name = ipv4("127.0.0.1", 0);
  socklen_t length = sizeof name;
  if (fd < 0) return 11;
  if (bind(fd, (void *)&name, sizeof name) != 0 || getsockname(fd, (void *)&name, &length) != 0) return 12;
  for (unsigned seed = 1; seed <= 3; seed++) {
    if (!send_one(fd, &name, seed)) return 13;
    if (!receive_one(fd, seed)) return 14;
  }
  return close(fd) == 0 ? 0 : 15;
}

CASE(case_7, "fork, then use: the child, the parent, both; on sockets of before and of after (case 7)") {
  int a = udp("a"), b = udp("b");
  struct sockaddr_in to_a = name_of(a), to_b = name_of(b);
  send_one(a, &to_b, 1);
  settle(b);
  pid_t child = fork();
  if (child == 0) {
    // What was there before the fork, then the child's own.
    if (!receive_one(b, 1)) _exit(1);
    if (!send_one(b, &to_a, 2)) _exit(2);
    if (!receive_one(a, 2)) _exit(3);
    _exit(own_socket_works());
  }
  say("  the child ended with %s", ending(child));
  show_recv("nothing is delivered twice", b, 100, MSG_DONTWAIT);
  send_one(a, &to_b, 3);
  settle(b);
  show_recv("the parent goes on", b, 100, 0);
  // A grandchild, and the parent's end closed before it uses the socket.
  int gate[2];
  if (pipe(gate) != 0) give_up("pipe");
  child = fork();
  if (child == 0) {
    pid_t grandchild = fork();
    if (grandchild == 0) {
      char go;
      close(gate[1]);
      if (read(gate[0], &go, 1) != 1) _exit(1);
      _exit(send_one(a, &to_b, 4) && receive_one(b, 4) ? own_socket_works() : 2);
    }
    close(a), close(b);
    int status = 0;
    _exit(waitpid(grandchild, &status, 0) == grandchild && WIFEXITED(status) ? WEXITSTATUS(status) : 3);
  }
  drop(a), drop(b);
  if (write(gate[1], "x", 1) != 1) give_up("write");
  say("  the grandchild ended with %s", ending(child));
  close(gate[0]), close(gate[1]);
}

static volatile bool stop_threads;
static void *busy_with_own_socket(void *unused) {
  unsigned long failures = 0;
  while (!stop_threads) failures += own_socket_works() != 0;
  return (void *)failures;
}
static void *busy_with_epoll(void *unused) {
  unsigned long failures = 0;
  while (!stop_threads) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0), epfd = epoll_create1(0);
    struct sockaddr_in name = ipv4("127.0.0.1", 0);
    struct epoll_event event = {EPOLLIN, {.fd = fd}};
    failures += bind(fd, (void *)&name, sizeof name) != 0;
    failures += epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &event) != 0;
    failures += epoll_wait(epfd, &event, 1, 0) != 0;
    close(fd), close(epfd);
  }
  return (void *)failures;
}

CASE(case_23, "fork while other threads open, send, receive, register and close (case 23)") {
  int a = udp("a"), b = udp("b");
  struct sockaddr_in to_b = name_of(b);
  pthread_t threads[3];
  stop_threads = false;
  pthread_create(&threads[0], NULL, busy_with_own_socket, NULL);
  pthread_create(&threads[1], NULL, busy_with_own_socket, NULL);
  pthread_create(&threads[2], NULL, busy_with_epoll, NULL);
  int children = 0, wrong = 0;
  const char *first = NULL;
  for (; children < 60; children++) {
    pid_t child = fork();
    if (child == 0) {
      int result = own_socket_works();
      _exit(result ? result : send_one(a, &to_b, 9) && receive_one(b, 9) ? 0 : 1);
    }
    const char *end = ending(child);
    if (strcmp(end, "0")) wrong++, first = first ? first : strdup(end);
  }
  stop_threads = true;
  unsigned long failures = 0;
  for (int i = 0; i < 3; i++) {
    void *result;
    pthread_join(threads[i], &result);
    failures += (unsigned long)result;
  }
  say("  %d children, %d ended wrongly%s%s; the threads saw %lu failures", children, wrong, first ? ", the first with " : "",
      first ? first : "", failures);
  show_recv("nothing is left", b, 100, MSG_DONTWAIT);
}

static int stream_from, stream_to;
static void *receive_stream(void *count) {
  for (long i = 0; i < (long)count; i++)
    if (!receive_one(stream_to, (unsigned)i % 250)) return (void *)i;
  return count;
}

CASE(case_26, "fork and _exit, no exec, while the parent sends and receives (case 26)") {
  enum { COUNT = 4000 };
  stream_from = udp("a"), stream_to = udp("b");
  struct sockaddr_in to = name_of(stream_to);
  pthread_t receiver;
  pthread_create(&receiver, NULL, receive_stream, (void *)COUNT);
  int children = 0, wrong = 0;
  pid_t waiting[8] = {0};
  for (long i = 0; i < COUNT; i++) {
    if (!send_one(stream_from, &to, (unsigned)i % 250)) give_up("sendto");
    // Not more in flight than any receive queue holds.
    int queued = 0;
    while (ioctl(stream_to, FIONREAD, &queued) == 0 && queued > 0 && i % 32 == 31) sched_yield();
    if (i % 100 != 50) continue;
    pid_t *place = &waiting[children++ % 8];
    if (*place > 0) wrong += strcmp(ending(*place), "0") != 0;
    *place = fork();
    if (*place == 0) {
      // A heap that fork has copied is a good one (redis saves its data so).
      char *copy = strdup("some bytes of the child's own");
      free(copy);
      _exit(copy == NULL);
    }
  }
  for (int i = 0; i < 8; i++) wrong += strcmp(ending(waiting[i]), "0") != 0;
  void *arrived;
  pthread_join(receiver, &arrived);
  say("  %d children, %d ended wrongly; %ld of %d datagrams arrived, each once and in order", children, wrong, (long)arrived, COUNT);
  show_recv("nothing is left", stream_to, 100, MSG_DONTWAIT);
}

CASE(daemonized, "a server that becomes a daemon by two forks, its descriptors on /dev/null (case 7)") {
  int server = udp("server"), client = udp("client"), ready[2];
  struct sockaddr_in to = name_of(server), from;
  if (pipe(ready) != 0) give_up("pipe");
  pid_t child = fork();
  if (child == 0) {
    setsid();
    if (fork() > 0) _exit(0);
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++) dup2(null, fd);
    char go = 'x';
    if (write(ready[1], &go, 1) != 1) _exit(1);
    for (int i = 0; i < 5; i++) {
      socklen_t length = sizeof from;
      ssize_t n = recvfrom(server, inbox, sizeof inbox, 0, (void *)&from, &length);
      if (n < 0 || sendto(server, inbox, (size_t)n, 0, (void *)&from, length) != n) _exit(1);
    }
    _exit(0);
  }
  say("  the first child ended with %s", ending(child));
  char go;
  if (read(ready[0], &go, 1) != 1) give_up("read");
  close(ready[0]), close(ready[1]);
  drop(server);
  for (unsigned i = 0; i < 5; i++) {
    send_one(client, &to, i);
    settle(client);
    show_recvmsg("answer", client, 100, 0, 128, 0);
  }
}

CASE(prefork, "four processes serve one socket, by recv and by epoll: each datagram is answered once; then one of them is killed") {
  enum { SERVERS = 4, COUNT = 200 };
  int server = udp("server"), client = udp("client");
  struct sockaddr_in to = name_of(server);
  pid_t children[SERVERS];
  for (int i = 0; i < SERVERS; i++) {
    children[i] = fork();
    if (children[i] != 0) continue;
    int epfd = epoll_create1(0);
    struct epoll_event event = {EPOLLIN, {.fd = server}};
    if (i % 2) {
      epoll_ctl(epfd, EPOLL_CTL_ADD, server, &event);
      nonblocking(server, false);
    }
    for (;;) {
      struct sockaddr_in from;
      socklen_t length = sizeof from;
      if (i % 2 && epoll_wait(epfd, &event, 1, -1) != 1) continue;
      ssize_t n = recvfrom(server, inbox, 100, i % 2 ? MSG_DONTWAIT : 0, (void *)&from, &length);
      if (n >= 0) sendto(server, inbox, (size_t)n, 0, (void *)&from, length);
    }
  }
  for (int round = 0; round < 2; round++) {
    int answers[COUNT] = {0}, wrong = 0;
    for (int i = 0; i < COUNT; i += 4) {
      for (int j = 0; j < 4; j++) sendto(client, payload((unsigned)(i + j), 10), 10, 0, (void *)&to, sizeof to);
      for (int j = 0; j < 4 && settle(client); j++) {
        ssize_t n = recv(client, inbox, 100, 0);
        int which = -1;
        for (int k = 0; k < COUNT && which < 0; k++)
          if (n == 10 && !memcmp(inbox, payload((unsigned)k, 10), 10)) which = k;
        if (which >= 0) answers[which]++;
        else wrong++;
      }
    }
    int once = 0;
    for (int i = 0; i < COUNT; i++) once += answers[i] == 1;
    say("  %d of %d answered once, %d strange answers", once, COUNT, wrong);
    if (round == 0) {
      kill(children[0], SIGKILL);
      say("  one server was %s", ending(children[0]));
    }
  }
  for (int i = 1; i < SERVERS; i++) {
    kill(children[i], SIGKILL);
    ending(children[i]);
  }
  show_recv("nothing is left", client, 100, MSG_DONTWAIT);
}

CASE(vfork_closes, "a child of vfork that closes and replaces everything before it execs: the parent's sockets stay (case 26)") {
  int a = udp("a"), b = udp("b"), e = keep(epoll_create1(0));
  struct sockaddr_in to_b = name_of(b);
  struct epoll_event event = {EPOLLIN, {.u64 = 5}};
  epoll_ctl(e, EPOLL_CTL_ADD, b, &event);
  send_one(a, &to_b, 1);
  settle(b);
  for (int way = 0; way < 3; way++) {
    pid_t child = vfork();
    if (child == 0) {
      if (way == 0) {
        close(a), close(b), close(e);
      } else if (way == 1) {
        close_range(3, ~0u, 0);
      } else {
        int null = open("/dev/null", O_RDWR);
        dup2(null, a), dup2(null, b);
        dup2(b, 150), fcntl(a, F_DUPFD, 160);
      }
      execl("/bin/true", "true", NULL);
      _exit(9);
    }
    say("  the child ended with %s", ending(child));
    int events = epoll_wait(e, &event, 1, 3000);
    say("  the epoll says %d", events);
    show_recvmsg("recvmsg", b, 100, 0, 128, 0);
    send_one(a, &to_b, (unsigned)way + 2);
    settle(b);
  }
  show_recv("the last", b, 100, 0);
}

CASE(raw_fork, "a fork that libc does not see: the child uses, closes and opens sockets; the parent's stay (case 7)") {
  int a = udp("a"), b = udp("b");
  struct sockaddr_in to_b = name_of(b);
  pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  if (child == 0) {
    close(a), close(b);
    _exit(own_socket_works());
  }
  say("  the child ended with %s", ending(child));
  send_one(a, &to_b, 1);
  settle(b);
  show_recv("the parent goes on", b, 100, 0);
  child = _Fork();
  if (child == 0) _exit(own_socket_works());
  say("  the child of _Fork ended with %s", ending(child));
  send_one(a, &to_b, 2);
  settle(b);
  show_recv("the parent goes on", b, 100, 0);
}

CASE(spawned, "posix_spawn with file actions on sockets: the program sends by what it inherits; the parent's stay") {
  int a = udp("a"), b = udp("b");
  struct sockaddr_in to_b = name_of(b);
  if (connect(a, (void *)&to_b, sizeof to_b) != 0) give_up("connect");
  char *words[] = {"sh", "-c", "printf 0123456789 >&9", NULL};
  for (int way = 0; way < 2; way++) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, a, 9);
    posix_spawn_file_actions_addclose(&actions, a);
    posix_spawn_file_actions_addclosefrom_np(&actions, 10);
    pid_t child = -1;
    say("  posix_spawn = %d", way ? posix_spawnp(&child, "sh", &actions, NULL, words, environ)
                                  : posix_spawn(&child, "/bin/sh", &actions, NULL, words, environ));
    say("  the child ended with %s", ending(child));
    posix_spawn_file_actions_destroy(&actions);
    settle(b);
    memset(inbox, 0, 20);
    ssize_t n = recv(b, inbox, 100, 0);
    say("  it sent %zd bytes: %.10s", n, (char *)inbox);
    send_one(a, &to_b, 2);
    settle(b);
    show_recv("the parent goes on", b, 100, 0);
  }
}

/// How many descriptors the process has, the one that counts included.
static int descriptor_count(void) {
  int count = 0;
  DIR *directory = opendir("/proc/self/fd");
  while (directory && readdir(directory)) count++;
  closedir(directory);
  return count;
}

static volatile int epoll_entered;
static void *waits_in_epoll(void *epoll) {
  struct epoll_event event;
  __atomic_fetch_add(&epoll_entered, 1, __ATOMIC_SEQ_CST);
  epoll_wait((int)(long)epoll, &event, 1, -1);
  return NULL;
}

CASE(no_descriptor_stays, "fork after fork, beside threads that wait in epolls, some of them closed: no descriptor stays, neither here nor in a child that closes") {
  int a = udp("a"), b = udp("b"), before = 0, grown = 0, gates[4][2];
  struct sockaddr_in to_a = name_of(a);
  send_one(b, &to_a, 1), receive_one(a, 1);
  // One that has had nothing else.
  pid_t first = fork();
  if (first == 0) close(a), close(b), _exit(descriptor_count());
  waitpid(first, &before, 0);
  before = WEXITSTATUS(before);
  for (int round = 0; round < 12; round++) {
    // A pipe; a socket as well; closed; closed, and the socket, too.
    int epolls[4], sockets[4];
    pthread_t threads[4];
    epoll_entered = 0;
    for (int i = 0; i < 4; i++) {
      epolls[i] = epoll_create1(0);
      if (pipe(gates[i]) != 0) give_up("pipe");
      struct epoll_event event = {EPOLLIN, {.u64 = 1}};
      epoll_ctl(epolls[i], EPOLL_CTL_ADD, gates[i][0], &event);
      sockets[i] = socket(AF_INET, SOCK_DGRAM, 0);
      struct sockaddr_in name = ipv4("127.0.0.1", 0);
      bind(sockets[i], (void *)&name, sizeof name);
      if (i > 0) epoll_ctl(epolls[i], EPOLL_CTL_ADD, sockets[i], &event);
      pthread_create(&threads[i], NULL, waits_in_epoll, (void *)(long)epolls[i]);
    }
    while (epoll_entered < 4) sched_yield();
    usleep(20000);
    close(epolls[2]), close(epolls[3]), close(sockets[3]);
    for (int i = 0; i < 3; i++) {
      pid_t child = fork();
      if (child == 0) {
        // What it closes is all that it has of the parent's.
        for (int j = 0; j < 4; j++) {
          close(gates[j][0]), close(gates[j][1]);
          if (j < 2) close(epolls[j]);
          if (j < 3) close(sockets[j]);
        }
        close(a), close(b);
        _exit(descriptor_count() != before);
      }
      int status = -1;
      waitpid(child, &status, 0);
      grown += status != 0;
    }
    for (int i = 0; i < 4; i++) {
      if (write(gates[i][1], "x", 1) != 1) give_up("write");
      pthread_join(threads[i], NULL);
      close(gates[i][0]), close(gates[i][1]);
      if (i < 2) close(epolls[i]);
      if (i < 3) close(sockets[i]);
    }
    static int ours;
    if (round == 0) ours = descriptor_count();
    else if (descriptor_count() != ours) say("  round %d: %d here, and %d before", round, descriptor_count(), ours);
  }
  say("  children that had others than the first: %d", grown);
  // Generations: each child forks the next, with an epoll that it closes.
  int gate[2], e = epoll_create1(0), last = 0;
  struct epoll_event event = {EPOLLIN, {.u64 = 1}};
  epoll_ctl(e, EPOLL_CTL_ADD, a, &event);
  if (pipe(gate) != 0) give_up("pipe");
  for (int depth = 0; depth < 6; depth++) {
    pid_t child = fork();
    if (child != 0) {
      int status = -1;
      waitpid(child, &status, 0);
      if (depth == 0) break;
      _exit(0);
    }
    int f = epoll_create1(0);
    epoll_ctl(f, EPOLL_CTL_ADD, a, &event), epoll_wait(f, &event, 1, 0), epoll_wait(e, &event, 1, 0);
    close(f);
    int count = descriptor_count();
    write(gate[1], &count, sizeof count);
    if (depth == 5) _exit(0);
  }
  int counts[6] = {0};
  for (int i = 0; i < 6; i++) last += read(gate[0], &counts[i], sizeof counts[i]) == sizeof counts[i];
  say("  %d generations, the last has %d more than the third", last, counts[5] - counts[2]);
  close(gate[0]), close(gate[1]), close(e);
}
