#define _GNU_SOURCE
#include "machnet_control.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>

#include <grp.h>
#include <ifaddrs.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1 */
#endif
#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71 /* Linux 5.14 */
#endif

static int result(int value) { return value < 0 ? -errno : value; }

// ---------------------------------------------------------------------------------------------- memory

int mnc_memfd(const char *name, uint64_t size, bool huge) {
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge ? MFD_HUGETLB : 0));
  if (fd < 0) return -errno;
  if (ftruncate(fd, (off_t)size) < 0) {
    int error = errno;
    close(fd);
    return -error;
  }
  return fd;
}

uint64_t mnc_huge_page_size(uint64_t *available) {
  *available = 0;
  FILE *file = fopen("/proc/meminfo", "re");
  if (!file) return 0;
  char line[128];
  unsigned long long size = 0, unused = 0, reserved = 0;
  while (fgets(line, sizeof line, file)) {
    sscanf(line, "HugePages_Free: %llu", &unused);
    sscanf(line, "HugePages_Rsvd: %llu", &reserved);
    sscanf(line, "Hugepagesize: %llu kB", &size);
  }
  fclose(file);
  *available = unused > reserved ? unused - reserved : 0;
  return size << 10;
}

int mnc_seal_size(int fd) { return result(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)); }

int mnc_seal_future_write(int fd) {
  return result(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL));
}

int mnc_seal_write(int fd) {
  return result(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL));
}

int mnc_reopen_read_only(int fd) {
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return result(open(path, O_RDONLY | O_CLOEXEC));
}

void *mnc_map(int fd, uint64_t size, bool writable, int *error) {
  void *base = mmap(NULL, size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
  *error = base == MAP_FAILED ? errno : 0;
  return base == MAP_FAILED ? NULL : base;
}

int mnc_punch_hole(int fd, uint64_t offset, uint64_t length) {
  return result(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length));
}

// ---------------------------------------------------------------------------------------------- the control socket

static int unix_address(const char *path, struct sockaddr_un *address, socklen_t *length) {
  size_t size = strlen(path);
  if (size == 0 || size >= sizeof address->sun_path) return -ENAMETOOLONG;
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  memcpy(address->sun_path, path, size);
  if (path[0] == '@') address->sun_path[0] = 0;
  *length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size + (path[0] != '@'));
  return 0;
}

int mnc_listen(const char *path, uint32_t mode, uint32_t gid) {
  struct sockaddr_un address;
  socklen_t length;
  int error = unix_address(path, &address, &length);
  if (error < 0) return error;
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -errno;
  // Nobody gets in before group and mode are set: connections are refused until listen. bind gives the name the
  // socket's own mode, less the umask, so that the name is never wider than asked for; the umask itself belongs to
  // the whole process, where another thread may be starting a program, and is left alone.
  if (fchmod(fd, mode) < 0 || bind(fd, (struct sockaddr *)&address, length) < 0) {
    error = errno;
    close(fd);
    return -error;
  }
  if ((gid != (gid_t)-1 && chown(path, (uid_t)-1, gid) < 0) || chmod(path, mode) < 0 || listen(fd, 128) < 0) {
    error = errno;
    unlink(path);
    close(fd);
    return -error;
  }
  return fd;
}

int mnc_connect(const char *path) {
  struct sockaddr_un address;
  socklen_t length;
  int error = unix_address(path, &address, &length);
  if (error < 0) return error;
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  if (connect(fd, (struct sockaddr *)&address, length) < 0) {
    error = errno;
    close(fd);
    return -error;
  }
  return fd;
}

bool mnc_peer_is_in_group(int fd, const struct mnc_peer *peer, uint32_t gid) {
  if (peer->gid == gid) return true;
  // NGROUPS_MAX of them, 256 kB: on the heap, and only for whom it matters.
  socklen_t length = 65536 * sizeof(gid_t);
  gid_t *groups = malloc(length);
  bool found = false;
  if (groups && getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &length) == 0)
    for (size_t i = 0; i < length / sizeof *groups; i++) found |= groups[i] == gid;
  free(groups);
  return found;
}

int mnc_accept(int listener, struct mnc_peer *peer) {
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) return -errno;
  // Room for a dozen replies: descriptors in those that nobody reads count for the daemon (RLIMIT_NOFILE, unix(7)).
  int room = 8192;
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
  struct ucred credentials;
  socklen_t length = sizeof credentials;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) < 0) {
    int error = errno;
    close(fd);
    return -error;
  }
  *peer = (struct mnc_peer){.pid = credentials.pid, .uid = credentials.uid, .gid = credentials.gid};
  return fd;
}

int64_t mnc_receive(int fd, void *data, size_t capacity, int *descriptors, int limit, int *count, bool *cut,
                    bool wait) {
  _Alignas(struct cmsghdr) char control[CMSG_SPACE(MNC_DESCRIPTORS_SENT_MAX * sizeof(int))];
  struct iovec vector = {.iov_base = data, .iov_len = capacity};
  struct msghdr message = {
      .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  *count = 0;
  *cut = false;
  ssize_t length;
  do {
    length = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_TRUNC | (wait ? 0 : MSG_DONTWAIT));
  } while (length < 0 && errno == EINTR);
  if (length < 0) return -errno;
  *cut = (message.msg_flags & MSG_CTRUNC) != 0;
  for (struct cmsghdr *part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    size_t parts = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t index = 0; index < parts; index++) {
      int descriptor;
      memcpy(&descriptor, CMSG_DATA(part) + index * sizeof(int), sizeof descriptor);
      if (*count < limit) {
        descriptors[(*count)++] = descriptor;
      } else {
        close(descriptor);
        *cut = true;
      }
    }
  }
  return length;
}

int64_t mnc_send(int fd, const void *data, size_t length, const int *descriptors, int count) {
  _Alignas(struct cmsghdr) char control[CMSG_SPACE(MNC_DESCRIPTORS_MAX * sizeof(int))];
  struct iovec vector = {.iov_base = (void *)data, .iov_len = length};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
  if (count < 0 || count > MNC_DESCRIPTORS_MAX) return -EINVAL;
  if (count > 0) {
    size_t bytes = (size_t)count * sizeof(int);
    memset(control, 0, sizeof control);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(bytes);
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(bytes);
    memcpy(CMSG_DATA(part), descriptors, bytes);
  }
  ssize_t sent;
  do {
    sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  return sent < 0 ? -errno : sent;
}

// ---------------------------------------------------------------------------------------------- sockets

static bool option(int fd, int name, void *value, socklen_t size) {
  return getsockopt(fd, SOL_SOCKET, name, value, &size) == 0;
}

static void take_address(const struct sockaddr_storage *from, uint32_t words[4], uint16_t *port) {
  memset(words, 0, 16);
  *port = 0;
  if (from->ss_family == AF_INET) {
    const struct sockaddr_in *in = (const struct sockaddr_in *)from;
    words[2] = htonl(0xffff);
    words[3] = in->sin_addr.s_addr;
    *port = ntohs(in->sin_port);
  } else if (from->ss_family == AF_INET6) {
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)from;
    memcpy(words, &in6->sin6_addr, 16);
    *port = ntohs(in6->sin6_port);
  }
}

uint64_t mnc_inode(int fd) {
  struct stat status;
  int type;
  // A file may be one of a FUSE server, which answers fstat when it likes.
  return option(fd, SO_TYPE, &type, sizeof type) && fstat(fd, &status) == 0 ? status.st_ino : 0;
}

bool mnc_closes_at_once(int fd) {
  int domain = 0, type = 0;
  return option(fd, SO_DOMAIN, &domain, sizeof domain) && (domain == AF_INET || domain == AF_INET6) &&
         option(fd, SO_TYPE, &type, sizeof type) && type == SOCK_DGRAM;
}

int mnc_socket_protocol(const char *path, char *name, size_t size) {
  ssize_t length = getxattr(path, "system.sockprotoname", name, size - 1);
  if (length < 0) return -errno;
  name[length] = 0;
  return 0;
}

/// The option that makes a socket the kernel's alone; NULL: none does.
static const char *kernel_option(int fd) {
  static const struct {
    int level, name;
    const char *words;
  } flags[] = {
      {IPPROTO_IP, IP_RECVORIGDSTADDR, "IP_RECVORIGDSTADDR"}, {IPPROTO_IP, IP_CHECKSUM, "IP_CHECKSUM"},
      {IPPROTO_IP, IP_RECVOPTS, "IP_RECVOPTS"},               {IPPROTO_IP, IP_RETOPTS, "IP_RETOPTS"},
      {IPPROTO_IP, IP_PASSSEC, "IP_PASSSEC"},                 {IPPROTO_IP, IP_RECVFRAGSIZE, "IP_RECVFRAGSIZE"},
      {IPPROTO_IP, IP_MINTTL, "IP_MINTTL"},                   {IPPROTO_UDP, UDP_ENCAP, "UDP_ENCAP"},
  };
  int number = 0;
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
    socklen_t length = sizeof number;
    if (getsockopt(fd, flags[i].level, flags[i].name, &number, &length) == 0 && number != 0) return flags[i].words;
  }
  // All but the receiving half: RX_HARDWARE, RX_SOFTWARE, SOFTWARE, SYS_HARDWARE, RAW_HARDWARE.
  const int stamping = 0x7c;
  socklen_t length = sizeof number;
  if (getsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &number, &length) == 0 && number & ~stamping) return "SO_TIMESTAMPING";
  length = sizeof number;
  if (getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &number, &length) == 0 && number >= 0) return "SO_PEEK_OFF";
  length = 0;  // In filter blocks: how many there are.
  if (getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &length) == 0 && length > 0) return "SO_ATTACH_FILTER";
  char text[64] = "";
  length = sizeof text;
  if (getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, text, &length) == 0 && text[0] && strcmp(text, "lo") != 0) return "SO_BINDTODEVICE";
  length = sizeof text;
  if (getsockopt(fd, IPPROTO_IP, IP_OPTIONS, text, &length) == 0 && length > 0) return "IP_OPTIONS";
  const int status = fcntl(fd, F_GETFL);
  return status >= 0 && status & O_ASYNC ? "O_ASYNC" : NULL;
}

int mnc_kernel_option(int pid, int fd, char *name, size_t size) {
  const int process = syscall(SYS_pidfd_open, pid, 0);
  if (process < 0) return -errno;
  const int copy = syscall(SYS_pidfd_getfd, process, fd, 0);
  const int error = errno;
  close(process);
  if (copy < 0) return -error;
  const char *found = kernel_option(copy);
  close(copy);
  if (!found) return -ENOENT;
  snprintf(name, size, "%s", found);
  return 0;
}

int mnc_inspect_socket(int fd, struct mnc_socket *found) {
  memset(found, 0, sizeof *found);
  found->inode = mnc_inode(fd);
  int domain = 0, type = 0, protocol = 0, reuse_port = 0, reuse_address = 0, only_v6 = 0;
  if (!option(fd, SO_DOMAIN, &domain, sizeof domain)) return -errno;
  if (domain != AF_INET && domain != AF_INET6) return -EAFNOSUPPORT;
  socklen_t length = sizeof only_v6;
  if (!option(fd, SO_TYPE, &type, sizeof type) || !option(fd, SO_PROTOCOL, &protocol, sizeof protocol) ||
      !option(fd, SO_REUSEPORT, &reuse_port, sizeof reuse_port) ||
      !option(fd, SO_REUSEADDR, &reuse_address, sizeof reuse_address) ||
      !option(fd, SO_COOKIE, &found->cookie, sizeof(uint64_t)) ||
      !option(fd, SO_NETNS_COOKIE, &found->netns_cookie, sizeof(uint64_t))) {
    return -errno;
  }
  if (domain == AF_INET6 && getsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only_v6, &length) < 0) return -errno;
  found->is_udp = type == SOCK_DGRAM && protocol == IPPROTO_UDP;
  found->is_v6 = domain == AF_INET6;
  found->reuse_port = reuse_port != 0;
  found->reuse_address = reuse_address != 0;
  found->only_v6 = only_v6 != 0;

  struct sockaddr_storage address;
  length = sizeof address;
  if (getsockname(fd, (struct sockaddr *)&address, &length) < 0) return -errno;
  take_address(&address, found->local, &found->local_port);
  length = sizeof address;
  if (getpeername(fd, (struct sockaddr *)&address, &length) == 0) {
    take_address(&address, found->peer, &found->peer_port);
    found->connected = true;
  } else if (errno != ENOTCONN) {
    return -errno;
  }
  return 0;
}

int mnc_own_netns_cookie(uint64_t *cookie) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  int status = option(fd, SO_NETNS_COOKIE, cookie, sizeof *cookie) ? 0 : -errno;
  close(fd);
  return status;
}

// One family's sockets, behind the `count` that are there already.
static int dump_cookies(int fd, uint8_t family, uint64_t *cookies, int count, int limit) {
  struct {
    struct nlmsghdr head;
    struct inet_diag_req_v2 body;
  } request = {
      .head = {.nlmsg_len = sizeof request, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
      .body = {.sdiag_family = family, .sdiag_protocol = IPPROTO_UDP, .idiag_states = ~0u}};
  if (send(fd, &request, sizeof request, 0) < 0) return -errno;
  static _Thread_local char buffer[32768] __attribute__((aligned(8)));
  for (;;) {
    ssize_t length = recv(fd, buffer, sizeof buffer, 0);
    if (length < 0 && errno == EINTR) continue;
    if (length < 0) return -errno;
    for (struct nlmsghdr *one = (struct nlmsghdr *)buffer; NLMSG_OK(one, (size_t)length); one = NLMSG_NEXT(one, length)) {
      if (one->nlmsg_type == NLMSG_DONE) return count;
      if (one->nlmsg_type == NLMSG_ERROR) return -EIO;
      if (one->nlmsg_len < NLMSG_LENGTH(sizeof(struct inet_diag_msg))) continue;
      const struct inet_diag_msg *socket = NLMSG_DATA(one);
      if (count < limit) cookies[count] = (uint64_t)socket->id.idiag_cookie[1] << 32 | socket->id.idiag_cookie[0];
      count++;
    }
  }
}

int mnc_udp_cookies(uint64_t *cookies, int limit) {
  int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
  if (fd < 0) return -errno;
  // A dump is made by the calls themselves; that one never ends, nobody has seen.
  struct timeval patience = {1, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  int count = dump_cookies(fd, AF_INET, cookies, 0, limit);
  if (count >= 0) count = dump_cookies(fd, AF_INET6, cookies, count, limit);
  close(fd);
  return count;
}

int mnc_host_addresses(uint32_t *addresses, int limit) {
  struct ifaddrs *list;
  if (getifaddrs(&list) < 0) return -errno;
  int count = 0;
  for (struct ifaddrs *one = list; one && count < limit; one = one->ifa_next) {
    if (!one->ifa_addr || one->ifa_addr->sa_family != AF_INET || !(one->ifa_flags & IFF_UP)) continue;
    addresses[count++] = ntohl(((struct sockaddr_in *)one->ifa_addr)->sin_addr.s_addr);
  }
  freeifaddrs(list);
  return count;
}

// ---------------------------------------------------------------------------------------------- the process

int mnc_signal_descriptor(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGHUP);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  int error = pthread_sigmask(SIG_BLOCK, &set, NULL);
  if (error) return -error;
  return result(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

int mnc_next_signal(int fd) {
  struct signalfd_siginfo info;
  return read(fd, &info, sizeof info) == sizeof info ? (int)info.ssi_signo : -EAGAIN;
}

int mnc_raise_descriptor_limit(uint64_t *limit) {
  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) < 0) return -errno;
  files.rlim_cur = files.rlim_max;
  *limit = files.rlim_max;
  return result(setrlimit(RLIMIT_NOFILE, &files));
}

int mnc_notify(const char *path, const char *text) {
  struct sockaddr_un address;
  socklen_t length;
  int error = unix_address(path, &address, &length);
  if (error < 0) return error;
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  ssize_t sent = sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&address, length);
  error = sent < 0 ? -errno : 0;
  close(fd);
  return error;
}

int mnc_allowed_cpus(int *cpus, int limit) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) < 0) return -errno;
  int count = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE && count < limit; cpu++) {
    if (CPU_ISSET(cpu, &set)) cpus[count++] = cpu;
  }
  return count;
}

int mnc_name_thread(const char *name) { return -pthread_setname_np(pthread_self(), name); }

int64_t mnc_group_id(const char *name) {
  struct group *group = getgrnam(name);
  return group ? (int64_t)group->gr_gid : -ENOENT;
}

int mnc_random(void *data, size_t count) {
  ssize_t got = getrandom(data, count, 0);
  return got < 0 ? -errno : (size_t)got == count ? 0 : -EIO;
}

int mnc_epoll_watch(int epoll, int fd, uint64_t name) {
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = name};
  return result(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

int mnc_epoll_wait(int epoll, uint64_t *names, int limit, int milliseconds) {
  struct epoll_event events[64];
  int count = epoll_wait(epoll, events, limit < 64 ? limit : 64, milliseconds);
  if (count < 0) return errno == EINTR ? 0 : -errno;
  for (int index = 0; index < count; index++) names[index] = events[index].data.u64;
  return count;
}
