// What every probe shares: named cases, a transcript of exact libc calls, and a second process to talk to.
//
// A probe prints what a program can see: return values, errno names, every out-field. Out-fields are filled with 0xA5
// before each call, errno is set to a value that no call sets, and whatever may differ between two runs on the kernel
// (ports, times) is printed by the role it plays. Two runs are then compared line by line.
#ifndef PROBE_H
#define PROBE_H
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/errqueue.h>
#include <linux/net_tstamp.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define POISON 0xA5
#define NO_ERRNO 4242 /* no call sets it */
#define LENGTH(array) (sizeof(array) / sizeof *(array))

// ------------------------------------------------------------------------------------------------------ the transcript

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
  va_list list;
  va_start(list, format);
  vprintf(format, list);
  va_end(list);
  putchar('\n');
  fflush(stdout);
}

/// The harness itself failed: nothing can be compared.
__attribute__((format(printf, 1, 2), noreturn)) static void give_up(const char *format, ...) {
  va_list list;
  va_start(list, format);
  fprintf(stderr, "probe: ");
  vfprintf(stderr, format, list);
  fprintf(stderr, ": %s\n", strerror(errno));
  va_end(list);
  exit(3);
}

/// Text that lives until sixteen others were made.
static char *scratch(void) {
  static char room[16][512];
  static unsigned next;
  return room[next++ & 15];
}

/// The outcome of a call made by TRY: its result, or the errno's name; and whether a success touched errno.
__attribute__((unused)) static const char *outcome(long result) {
  int error = errno;
  char *text = scratch();
  if (result < 0) snprintf(text, 512, "%ld %s", result, error == NO_ERRNO ? "(errno not set)" : strerrorname_np(error));
  else snprintf(text, 512, "%ld%s", result, error == NO_ERRNO ? "" : " (errno touched)");
  errno = error;
  return text;
}
#define TRY(call) (errno = NO_ERRNO, outcome((long)(call)))
/// Says the outcome of a call, then what it has written (looked at after it).
#define CALL(format, call, ...)                                                                                    \
  do {                                                                                                             \
    const char *outcome_of_call = TRY(call);                                                                       \
    say(format, outcome_of_call, ##__VA_ARGS__);                                                                   \
  } while (0)

// ------------------------------------------------------------------------------------------------------ payloads

static inline unsigned char pattern(unsigned seed, size_t i) { return (unsigned char)(seed * 31 + i * 7 + (i >> 8)); }
__attribute__((unused)) static void *fill(void *to, unsigned seed, size_t size) {
  for (size_t i = 0; i < size; i++) ((unsigned char *)to)[i] = pattern(seed, i);
  return to;
}
static unsigned char content[70000];
__attribute__((unused)) static void *payload(unsigned seed, size_t size) { return fill(content, seed, size); }

/// Which datagram (or part of one, from `offset`) the bytes are: "#3", or what is wrong with them.
__attribute__((unused)) static const char *identify_from(const void *bytes, size_t size, size_t offset) {
  if (size == 0) return "nothing";
  char *text = scratch();
  for (unsigned seed = 0; seed < 250; seed++) {
    size_t i = 0;
    while (i < size && ((const unsigned char *)bytes)[i] == pattern(seed, i + offset)) i++;
    if (i == size) return snprintf(text, 512, "#%u", seed), text;
  }
  snprintf(text, 512, "unknown bytes %02x %02x...", ((const unsigned char *)bytes)[0], size > 1 ? ((const unsigned char *)bytes)[1] : 0);
  return text;
}
__attribute__((unused)) static const char *identify(const void *bytes, size_t size) { return identify_from(bytes, size, 0); }

/// "" if all of the bytes are poison still.
__attribute__((unused)) static const char *beyond(const void *bytes, size_t size) {
  for (size_t i = 0; i < size; i++)
    if (((const unsigned char *)bytes)[i] != POISON) {
      char *text = scratch();
      snprintf(text, 512, " WRITTEN BEYOND at %zu", i);
      return text;
    }
  return "";
}

// ------------------------------------------------------------------------------------------------------ names

static struct { uint16_t port; char role[24]; } roles[256];
static unsigned role_count;
static void know(uint16_t port, const char *role) {
  for (unsigned i = 0; i < role_count; i++)
    if (roles[i].port == port) return (void)snprintf(roles[i].role, sizeof roles[i].role, "%s", role);
  if (role_count == LENGTH(roles)) role_count = 0;
  roles[role_count].port = port;
  snprintf(roles[role_count++].role, sizeof roles[0].role, "%s", role);
}
static bool is_known(uint16_t port) {
  for (unsigned i = 0; i < role_count; i++)
    if (roles[i].port == port) return true;
  return false;
}
static const char *role_of(uint16_t port) {
  for (unsigned i = 0; i < role_count; i++)
    if (roles[i].port == port) return roles[i].role;
  return port == 0 ? "0" : "some port";
}

/// A socket address by role; only what lies within `length` is looked at.
__attribute__((unused)) static const char *show_name(const void *bytes, socklen_t length) {
  char *text = scratch(), number[64];
  struct sockaddr_storage name;
  memset(&name, 0, sizeof name);
  memcpy(&name, bytes, length < sizeof name ? length : sizeof name);
  if (length >= sizeof(struct sockaddr_in6) && name.ss_family == AF_INET6) {
    struct sockaddr_in6 *six = (void *)&name;
    inet_ntop(AF_INET6, &six->sin6_addr, number, sizeof number);
    snprintf(text, 512, "[%s]:%s flow %u scope %u", number, role_of(ntohs(six->sin6_port)), six->sin6_flowinfo, six->sin6_scope_id);
  } else if (length >= sizeof(struct sockaddr_in) && name.ss_family == AF_INET) {
    struct sockaddr_in *four = (void *)&name;
    inet_ntop(AF_INET, &four->sin_addr, number, sizeof number);
    uint64_t zero;
    memcpy(&zero, four->sin_zero, 8);
    snprintf(text, 512, "%s:%s%s", number, role_of(ntohs(four->sin_port)), zero ? " padding not zero" : "");
  } else if (length >= 2) snprintf(text, 512, "family %d", name.ss_family);
  else snprintf(text, 512, "no name");
  return text;
}

__attribute__((unused)) static struct sockaddr_in ipv4(const char *address, uint16_t port) {
  struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, address, &name.sin_addr);
  return name;
}
__attribute__((unused)) static struct sockaddr_in6 ipv6(const char *address, uint16_t port) {
  struct sockaddr_in6 name = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
  inet_pton(AF_INET6, address, &name.sin6_addr);
  return name;
}
/// ::ffff:127.0.0.1
__attribute__((unused)) static struct sockaddr_in6 mapped(uint16_t port) { return ipv6("::ffff:127.0.0.1", port); }

static uint16_t port_of(int fd) {
  struct sockaddr_storage name;
  socklen_t length = sizeof name;
  if (getsockname(fd, (void *)&name, &length) != 0) give_up("getsockname");
  return ntohs(((struct sockaddr_in *)&name)->sin_port); /* the same place in sockaddr_in6 */
}
__attribute__((unused)) static struct sockaddr_in name_of(int fd) { return ipv4("127.0.0.1", port_of(fd)); }

// ------------------------------------------------------------------------------------------------------ sockets

static int opened[512], opened_count; /* closed at the case's end */
static int keep(int fd) {
  if (fd < 0) give_up("a descriptor");
  if (opened_count == (int)LENGTH(opened)) give_up("too many descriptors");
  opened[opened_count++] = fd;
  return fd;
}
__attribute__((unused)) static void drop(int fd) {
  for (int i = 0; i < opened_count; i++)
    if (opened[i] == fd) opened[i] = -1;
  close(fd);
}

__attribute__((unused)) static int unbound(int family, int type) { return keep(socket(family, SOCK_DGRAM | type, 0)); }
__attribute__((unused)) static int bound_to(const char *address, const char *role) {
  // (One of the kernel's choice may be that of another address as well; then one of the two would have the other's role.)
  for (;;) {
    int fd = unbound(AF_INET, 0);
    struct sockaddr_in name = ipv4(address, 0);
    if (bind(fd, (void *)&name, sizeof name) != 0) give_up("bind");
    uint16_t port = port_of(fd);
    if (is_known(port)) {
      drop(fd);
      continue;
    }
    know(port, role);
    return fd;
  }
}
/// A socket at 127.0.0.1 and a free port, which the transcript calls `role`.
__attribute__((unused)) static int udp(const char *role) { return bound_to("127.0.0.1", role); }
/// The same, AF_INET6 and not V6ONLY, at ::ffff:127.0.0.1 (or at `address`).
__attribute__((unused)) static int udp6(const char *address, const char *role) {
  int fd = unbound(AF_INET6, 0), no = 0;
  setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
  struct sockaddr_in6 name = ipv6(address, 0);
  if (bind(fd, (void *)&name, sizeof name) != 0) give_up("bind");
  know(port_of(fd), role);
  return fd;
}
__attribute__((unused)) static void nonblocking(int fd, bool on) {
  int flags = fcntl(fd, F_GETFL);
  if (fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK) != 0) give_up("fcntl");
}
__attribute__((unused)) static void set(int fd, int level, int name, int value) {
  if (setsockopt(fd, level, name, &value, sizeof value) != 0) give_up("setsockopt %d %d", level, name);
}
/// Waits until the descriptor can be read (delivery need not be instant): part of the harness, not of the case.
__attribute__((unused)) static bool settle(int fd) {
  struct pollfd entry = {fd, POLLIN, 0};
  return poll(&entry, 1, 3000) == 1;
}
/// Waits until what the socket has sent is out of its send queue (the harness's business, too).
__attribute__((unused)) static void wait_sent(int fd) {
  int waiting = 1;
  for (int i = 0; i < 3000 && waiting > 0; i++) {
    if (ioctl(fd, SIOCOUTQ, &waiting) != 0) give_up("SIOCOUTQ");
    if (waiting > 0) usleep(1000);
  }
}
/// Sends a datagram of `size` bytes from `from` to 127.0.0.1 and `to`'s port; the harness's own way.
__attribute__((unused)) static void send_to(int from, int to, unsigned seed, size_t size) {
  struct sockaddr_in name = name_of(to);
  if (sendto(from, payload(seed, size), size, 0, (void *)&name, sizeof name) != (ssize_t)size) give_up("sendto");
}
__attribute__((unused)) static uint64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

// ------------------------------------------------------------------------------------------------------ receives

static const char *near_now(int64_t seconds, int64_t nanoseconds) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  double age = (double)(t.tv_sec - seconds) + (double)(t.tv_nsec - nanoseconds) / 1e9;
  if (seconds == 0 && nanoseconds == 0) return "none";
  return age > -1 && age < 10 ? "now" : "WRONG TIME";
}

static void show_control(struct msghdr *message) {
  for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
    size_t size = c->cmsg_len - CMSG_LEN(0);
    unsigned char *data = CMSG_DATA(c);
    int number = 0;
    memcpy(&number, data, size < 4 ? size : 4);
    char a[64], b[64];
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMP && size == 16) {
      struct timeval t;
      memcpy(&t, data, 16);
      say("    SCM_TIMESTAMP %s", near_now(t.tv_sec, t.tv_usec * 1000));
    } else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS && size == 16) {
      struct timespec t;
      memcpy(&t, data, 16);
      say("    SCM_TIMESTAMPNS %s", near_now(t.tv_sec, t.tv_nsec));
    } else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPING && size == 48) {
      struct timespec t[3];
      memcpy(t, data, 48);
      say("    SCM_TIMESTAMPING software %s, legacy %s, hardware %s", near_now(t[0].tv_sec, t[0].tv_nsec),
          near_now(t[1].tv_sec, t[1].tv_nsec), near_now(t[2].tv_sec, t[2].tv_nsec));
    } else if (c->cmsg_level == SOL_SOCKET && (c->cmsg_type == SCM_TIMESTAMP || c->cmsg_type == SCM_TIMESTAMPNS || c->cmsg_type == SCM_TIMESTAMPING)) {
      say("    a timestamp of type %d, cut to %zu bytes", c->cmsg_type, size);
    } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_ORIGDSTADDR) {
      say("    IP_ORIGDSTADDR %s (%zu bytes)", show_name(data, (socklen_t)size), size);
    } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_CHECKSUM) {
      say("    IP_CHECKSUM (%zu bytes)", size);
    } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO && size == 12) {
      struct in_pktinfo info;
      memcpy(&info, data, 12);
      inet_ntop(AF_INET, &info.ipi_spec_dst, a, sizeof a);
      inet_ntop(AF_INET, &info.ipi_addr, b, sizeof b);
      say("    IP_PKTINFO interface %d spec_dst %s addr %s", info.ipi_ifindex, a, b);
    } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO && size == 20) {
      struct in6_pktinfo info;
      memcpy(&info, data, 20);
      inet_ntop(AF_INET6, &info.ipi6_addr, a, sizeof a);
      say("    IPV6_PKTINFO interface %u addr %s", info.ipi6_ifindex, a);
    } else if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) || (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR)) {
      struct sock_extended_err error;
      memcpy(&error, data, sizeof error);
      say("    RECVERR level %d %s origin %u type %u code %u info %u offender %s (%zu bytes)", c->cmsg_level,
          strerrorname_np((int)error.ee_errno), error.ee_origin, error.ee_type, error.ee_code, error.ee_info,
          show_name(data + sizeof error, (socklen_t)(size - sizeof error)), size);
    } else {
      char hex[140] = "";
      for (size_t i = 0; i < size && i < 64; i++) sprintf(hex + 2 * i, "%02x", data[i]);
      say("    control level %d type %d size %zu: %s", c->cmsg_level, c->cmsg_type, size, size <= 4 ? (sprintf(a, "%d", number), a) : hex);
    }
  }
}

static unsigned char inbox[70000];
static unsigned char name_room[256], control_room[1024] __attribute__((aligned(8)));

/// One recvmsg, everything that it may write poisoned before and printed after.
/// name_size or control_size -1: a NULL pointer (with a length that says otherwise).
__attribute__((unused)) static void show_recvmsg(const char *what, int fd, size_t room, int flags, int name_size, int control_size) {
  memset(inbox, POISON, sizeof inbox);
  memset(name_room, POISON, sizeof name_room);
  memset(control_room, POISON, sizeof control_room);
  struct iovec vector = {inbox, room};
  struct msghdr m;
  memset(&m, POISON, sizeof m);
  m.msg_name = name_size < 0 ? NULL : name_room;
  m.msg_namelen = name_size < 0 ? 77 : (socklen_t)name_size;
  m.msg_iov = &vector;
  m.msg_iovlen = 1;
  m.msg_control = control_size < 0 ? NULL : control_room;
  m.msg_controllen = control_size < 0 ? 55 : (size_t)control_size;
  errno = NO_ERRNO;
  ssize_t n = recvmsg(fd, &m, flags);
  const char *result = outcome(n);
  size_t copied = n < 0 ? 0 : (size_t)n < room ? (size_t)n : room;
  say("  %s = %s, %s%s", what, result, identify(inbox, copied), beyond(inbox + copied, sizeof inbox - copied));
  if (n < 0) {
    say("    namelen %u controllen %zu flags %#x%s%s", m.msg_namelen, m.msg_controllen, (unsigned)m.msg_flags,
        beyond(name_room, sizeof name_room), beyond(control_room, sizeof control_room));
    return;
  }
  socklen_t named = name_size < 0 ? 0 : m.msg_namelen < (socklen_t)name_size ? m.msg_namelen : (socklen_t)name_size;
  say("    namelen %u controllen %zu flags %#x name %s%s%s", m.msg_namelen, m.msg_controllen, (unsigned)m.msg_flags,
      show_name(name_room, named), beyond(name_room + named, sizeof name_room - named),
      control_size < 0 ? "" : beyond(control_room + m.msg_controllen, sizeof control_room - m.msg_controllen));
  if (control_size > 0) show_control(&m);
}

/// One recvfrom. name_size -1: no name wanted.
__attribute__((unused)) static void show_recvfrom(const char *what, int fd, size_t room, int flags, int name_size) {
  memset(inbox, POISON, sizeof inbox);
  memset(name_room, POISON, sizeof name_room);
  socklen_t length = name_size < 0 ? 0xA5A5A5A5 : (socklen_t)name_size;
  errno = NO_ERRNO;
  ssize_t n = recvfrom(fd, inbox, room, flags, name_size < 0 ? NULL : (void *)name_room, name_size < 0 ? NULL : &length);
  const char *result = outcome(n);
  size_t copied = n < 0 ? 0 : (size_t)n < room ? (size_t)n : room;
  socklen_t named = name_size < 0 || n < 0 ? 0 : length < (socklen_t)name_size ? length : (socklen_t)name_size;
  say("  %s = %s, %s%s; addrlen %#x name %s%s", what, result, identify(inbox, copied), beyond(inbox + copied, sizeof inbox - copied),
      length, show_name(name_room, named), beyond(name_room + named, sizeof name_room - named));
}

/// One recv.
__attribute__((unused)) static void show_recv(const char *what, int fd, size_t room, int flags) {
  memset(inbox, POISON, sizeof inbox);
  errno = NO_ERRNO;
  ssize_t n = recv(fd, inbox, room, flags);
  const char *result = outcome(n);
  size_t copied = n < 0 ? 0 : (size_t)n < room ? (size_t)n : room;
  say("  %s = %s, %s%s", what, result, identify(inbox, copied), beyond(inbox + copied, sizeof inbox - copied));
}

/// An option's value, its length poisoned around it.
__attribute__((unused)) static void show_option(const char *what, int fd, int level, int name) {
  int value[8];
  memset(value, POISON, sizeof value);
  socklen_t length = 4;
  const char *result = TRY(getsockopt(fd, level, name, value, &length));
  say("  %s = %s, value %d length %u%s", what, result, value[0], length, beyond(value + 1, sizeof value - 4));
}

// ------------------------------------------------------------------------------------------------------ the peer

enum { PEER_OPEN = 1, PEER_CLOSE, PEER_SEND, PEER_RECEIVE, PEER_CONNECT, PEER_OPTION, PEER_ADOPT };
struct peer_command {
  int kind, index, family;
  uint16_t port;
  unsigned seed;
  unsigned count;
  uint32_t size;
  int level, name, value;
};
struct peer_reply {
  long result;
  int error;
  uint16_t port;
  char text[200];
};
#define PEER_FD 199 /* a SOCK_SEQPACKET connection to the other process; the runner makes it */

static struct peer_reply ask_peer(struct peer_command command) {
  struct peer_reply reply;
  if (write(PEER_FD, &command, sizeof command) != sizeof command) give_up("the peer does not listen");
  if (read(PEER_FD, &reply, sizeof reply) != sizeof reply) give_up("the peer does not answer");
  return reply;
}
/// The peer process opens a socket at 127.0.0.1; the transcript calls it `role`. Returns its index.
__attribute__((unused)) static int peer_open(const char *role) {
  struct peer_reply r = ask_peer((struct peer_command){.kind = PEER_OPEN});
  if (r.result < 0) give_up("peer_open");
  know(r.port, role);
  return (int)r.result;
}
__attribute__((unused)) static uint16_t peer_port(int index) {
  return ask_peer((struct peer_command){.kind = PEER_CLOSE + 100, .index = index}).port;
}
__attribute__((unused)) static struct sockaddr_in peer_name(int index) { return ipv4("127.0.0.1", peer_port(index)); }
/// The peer sends `count` datagrams, seeds counting up, to `to`'s port.
__attribute__((unused)) static void peer_send(int index, int to, unsigned seed, uint32_t size, unsigned count) {
  struct peer_reply r = ask_peer((struct peer_command){
      .kind = PEER_SEND, .index = index, .port = port_of(to), .seed = seed, .size = size, .count = count});
  if (r.result != (long)count) give_up("the peer sent %ld of %u", r.result, count);
}
__attribute__((unused)) static void peer_connect(int index, int to) {
  ask_peer((struct peer_command){.kind = PEER_CONNECT, .index = index, .port = port_of(to)});
}
__attribute__((unused)) static void peer_option(int index, int level, int name, int value) {
  struct peer_reply r = ask_peer((struct peer_command){.kind = PEER_OPTION, .index = index, .level = level, .name = name, .value = value});
  if (r.result != 0) give_up("the peer's setsockopt");
}
/// The peer gets descriptors (SCM_RIGHTS); returns the index of the first. `batched`: by sendmmsg.
__attribute__((unused)) static int peer_adopt(const int *fds, int count, bool batched) {
  struct peer_command command = {.kind = PEER_ADOPT};
  struct iovec vector = {&command, sizeof command};
  char room[CMSG_SPACE(8 * sizeof(int))] __attribute__((aligned(8))) = {0};
  struct mmsghdr m = {.msg_hdr = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = room, .msg_controllen = CMSG_SPACE((size_t)count * sizeof(int))}};
  struct cmsghdr *c = CMSG_FIRSTHDR(&m.msg_hdr);
  *c = (struct cmsghdr){.cmsg_len = CMSG_LEN((size_t)count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
  memcpy(CMSG_DATA(c), fds, (size_t)count * sizeof(int));
  if (batched ? sendmmsg(PEER_FD, &m, 1, 0) != 1 : sendmsg(PEER_FD, &m.msg_hdr, 0) != sizeof command) give_up("descriptors for the peer");
  struct peer_reply reply;
  if (read(PEER_FD, &reply, sizeof reply) != sizeof reply || reply.result < 0) give_up("the peer does not answer");
  return (int)reply.result;
}
__attribute__((unused)) static void peer_close(int index) { ask_peer((struct peer_command){.kind = PEER_CLOSE, .index = index}); }
/// What arrives at the peer (it waits): size, content, sender, time to live, type of service.
__attribute__((unused)) static void show_peer(const char *what, int index) {
  struct peer_reply r = ask_peer((struct peer_command){.kind = PEER_RECEIVE, .index = index});
  say("  %s: %s from %s", what, r.text, r.result >= 0 ? role_of(r.port) : "nobody");
}

// ------------------------------------------------------------------------------------------------------ cases

struct probe_case { const char *name; void (*run)(void); };
static struct probe_case cases[256];
static unsigned case_count;

#define CASE(function, title)                                                                                     \
  static void function(void);                                                                                     \
  __attribute__((constructor)) static void add_##function(void) {                                                 \
    cases[case_count++] = (struct probe_case){title, function};                                                   \
  }                                                                                                               \
  static void function(void)

static void clean_up(void) {
  for (int i = 0; i < opened_count; i++)
    if (opened[i] >= 0) close(opened[i]);
  opened_count = 0;
  ask_peer((struct peer_command){.kind = PEER_CLOSE, .index = -1});
}

/// probe --list | probe NAME...
int main(int count, char **names) {
  if (count == 2 && !strcmp(names[1], "--list")) {
    for (unsigned i = 0; i < case_count; i++) puts(cases[i].name);
    return 0;
  }
  signal(SIGPIPE, SIG_IGN);
  for (int n = 1; n < count; n++)
    for (unsigned i = 0; i < case_count; i++) {
      if (strcmp(cases[i].name, names[n])) continue;
      say("== %s", cases[i].name);
      cases[i].run();
      clean_up();
      say("== end");
    }
  return 0;
}
#endif
