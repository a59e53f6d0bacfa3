// Static C++ objects that use sockets, in their constructors and destructors; a line per step, the same on the kernel and on Machnet.
// Three times: in the program; in a library that is linked, and initialised before all others; in one that is opened and closed.
//
//   c++ -DWHERE='"linked"' -shared -fPIC -Wl,-z,initfirst    c++ -DWHERE='"opened"' -shared -fPIC    c++ -DPROGRAM
//   statics LIBRARY            opens and closes LIBRARY, opens it again, and ends
#include <arpa/inet.h>
#include <dlfcn.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#ifndef WHERE
#define WHERE "program"
#endif

namespace {
struct Pair {
  const char *name;
  int from, to;
  sockaddr_in at{};

  explicit Pair(const char *name) : name(name) {
    from = socket(AF_INET, SOCK_DGRAM, 0), to = socket(AF_INET, SOCK_DGRAM, 0);
    at.sin_family = AF_INET, at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof at;
    timeval limit{5, 0};
    if (bind(to, reinterpret_cast<sockaddr *>(&at), sizeof at) != 0) dprintf(1, "bind\n");
    getsockname(to, reinterpret_cast<sockaddr *>(&at), &length);
    setsockopt(to, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    exchange("constructor");
  }
  Pair(const Pair &) = delete;
  ~Pair() {
    exchange("destructor");
    dprintf(1, WHERE ", %s, closed: %d %d\n", name, close(from), close(to));
  }
  void exchange(const char *when) {
    for (int i = 0; i < 10; i++) {
      char data = 0;
      ssize_t sent = sendto(from, &(const char &)"0123456789"[i], 1, 0, reinterpret_cast<sockaddr *>(&at), sizeof at);
      ssize_t received = recv(to, &data, 1, 0);
      if (sent != 1 || received != 1 || data != '0' + i) dprintf(1, WHERE ", %s, %s: %zd, %zd, %d\n", name, when, sent, received, data);
    }
    dprintf(1, WHERE ", %s, %s\n", name, when);
  }
};

__attribute__((init_priority(101))) Pair first("first");
Pair last("last");
thread_local Pair mine("a thread's own");
} // namespace

extern "C" __attribute__((visibility("default"))) void use_own() { mine.exchange("used"); }

#ifdef PROGRAM
int main(int, char **words) {
  std::atexit([] { first.exchange("atexit"); });
  std::thread(use_own).join();
  use_own();
  for (int i = 0; i < 2; i++) {
    void *library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) return dprintf(1, "%s\n", dlerror()), 1;
    std::thread(reinterpret_cast<void (*)()>(dlsym(library, "use_own"))).join();
    if (i == 0) dprintf(1, "closed: %d\n", dlclose(library));
  }
  last.exchange("main's end");
  return 0;
}
#endif
