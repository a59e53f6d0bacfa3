// Signal handlers: what is said of those that are installed, and that none runs unnoticed in a call that waits; cancellation, which
// is a signal as well.
#include "probe.h"

#include <ucontext.h>

// What programs of old call, and one structure for both arguments.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#pragma GCC diagnostic ignored "-Wrestrict"

extern int __sigaction(int, const struct sigaction *, struct sigaction *);
extern sighandler_t bsd_signal(int, sighandler_t), ssignal(int, sighandler_t), __sysv_signal(int, sighandler_t);

static volatile int runs[2];
static volatile bool had_information;
static void first(int number) { runs[0] += number == SIGUSR1; }
static void second(int number) { runs[1] += number == SIGUSR1; }
static void informed(int number, siginfo_t *info, void *context) {
  runs[0] += number == SIGUSR1;
  had_information = info->si_signo == number && info->si_pid == getpid() && context;
}
static const char *name_of_handler(sighandler_t handler) {
  return handler == SIG_DFL    ? "SIG_DFL"
         : handler == SIG_IGN  ? "SIG_IGN"
         : handler == SIG_ERR  ? "SIG_ERR"
         : handler == SIG_HOLD ? "SIG_HOLD"
         : handler == first    ? "first"
         : handler == second   ? "second"
         : handler == (sighandler_t)(void *)informed ? "informed"
                               : "ANOTHER HANDLER";
}
static void show_action(const char *what, int number) {
  struct sigaction now;
  memset(&now, POISON, sizeof now);
  const char *result = TRY(sigaction(number, NULL, &now));
  char flags[80] = "";
  static const struct { int bit; const char *name; } names[] = {
      {SA_RESTART, " RESTART"}, {SA_RESETHAND, " RESETHAND"}, {SA_NODEFER, " NODEFER"}, {SA_SIGINFO, " SIGINFO"}, {SA_ONSTACK, " ONSTACK"}};
  for (unsigned i = 0; i < LENGTH(names); i++)
    if (now.sa_flags & names[i].bit) strcat(flags, names[i].name);
  say("  %s: %s, %s,%s, SIGUSR2 %s", what, result, name_of_handler(now.sa_handler), flags, sigismember(&now.sa_mask, SIGUSR2) == 1 ? "blocked" : "open");
}
static void raise_it(const char *what) {
  runs[0] = runs[1] = 0;
  raise(SIGUSR1);
  say("  %s, raised: %d, %d", what, runs[0], runs[1]);
}

CASE(handlers, "what sigaction and its like say of handlers, and which of them runs") {
  signal(SIGUSR1, SIG_DFL);
  static const struct { const char *name; sighandler_t (*call)(int, sighandler_t); } calls[] = {
      {"signal", signal}, {"bsd_signal", bsd_signal}, {"ssignal", ssignal}, {"sysv_signal", sysv_signal}, {"__sysv_signal", __sysv_signal},
      {"sigset", sigset}};
  for (unsigned i = 0; i < LENGTH(calls); i++) {
    say(" %s", calls[i].name);
    say("  was %s", name_of_handler(calls[i].call(SIGUSR1, first)));
    show_action("then", SIGUSR1);
    raise_it("first");
    say("  was %s", name_of_handler(calls[i].call(SIGUSR1, second)));
    say("  was %s", name_of_handler(calls[i].call(SIGUSR1, second)));
    raise_it("second");
    CALL("  siginterrupt = %s", siginterrupt(SIGUSR1, 1));
    show_action("then", SIGUSR1);
    CALL("  siginterrupt = %s", siginterrupt(SIGUSR1, 0));
    show_action("then", SIGUSR1);
    say("  was %s", name_of_handler(calls[i].call(SIGUSR1, SIG_IGN)));
    say("  was %s", name_of_handler(calls[i].call(SIGUSR1, SIG_DFL)));
    show_action("then", SIGUSR1);
    static const int numbers[] = {-1, 0, SIGKILL, SIGSTOP, 32, 33, 34, 64, 65};
    for (unsigned n = 0; n < LENGTH(numbers); n++) {
      errno = NO_ERRNO;
      sighandler_t old = calls[i].call(numbers[n], first);
      if (old == SIG_ERR) say("  of signal %d: SIG_ERR %s", numbers[n], strerrorname_np(errno));
      else say("  of signal %d: %s", numbers[n], name_of_handler(calls[i].call(numbers[n], SIG_DFL)));
    }
  }
  say(" sigaction");
  struct sigaction action = {.sa_handler = first, .sa_flags = SA_RESTART}, old;
  sigaddset(&action.sa_mask, SIGUSR2);
  CALL("  sigaction = %s", sigaction(SIGUSR1, &action, NULL));
  show_action("first", SIGUSR1);
  action.sa_sigaction = informed, action.sa_flags = SA_SIGINFO | SA_RESETHAND;
  CALL("  __sigaction = %s, was %s", __sigaction(SIGUSR1, &action, &old), name_of_handler(old.sa_handler));
  show_action("informed", SIGUSR1);
  raise_it("informed");
  say("  it was informed: %s", had_information ? "yes" : "NO");
  show_action("reset", SIGUSR1);
  CALL("  put back = %s, was %s", sigaction(SIGUSR1, &old, &old), name_of_handler(old.sa_handler)); // one structure for both
  show_action("put back", SIGUSR1);
  raise_it("put back");
  CALL("  of SIGKILL = %s", sigaction(SIGKILL, &action, NULL));
  CALL("  of SIGSTOP = %s", sigaction(SIGSTOP, &action, &old));
  CALL("  of 0 = %s", sigaction(0, &action, &old));
  CALL("  of 65 = %s", sigaction(65, &action, &old));
  CALL("  of 32 = %s", sigaction(32, &action, NULL));
  signal(SIGUSR1, SIG_DFL);
}

CASE(handlers_vfork, "handlers of a child: of a fork, and of a vfork, whose memory is the parent's") {
  signal(SIGUSR1, first);
  int status;
  for (int borrows = 0; borrows < 2; borrows++) {
    pid_t child = borrows ? vfork() : fork();
    if (child == 0) {
      struct sigaction old, action = {.sa_handler = second};
      bool right = sigaction(SIGUSR1, &action, &old) == 0 && old.sa_handler == first;
      right = right && sigaction(SIGUSR1, NULL, &old) == 0 && old.sa_handler == second;
      runs[1] = 0;
      raise(SIGUSR1);
      _exit(right && runs[1] == 1 ? 7 : 8);
    }
    waitpid(child, &status, 0);
    say("  the child: %d", WEXITSTATUS(status));
    show_action("the parent's", SIGUSR1);
    raise_it("the parent's");
  }
  signal(SIGUSR1, SIG_DFL);
}

// ------------------------------------------------------------------------------------ none runs unnoticed

struct waiter {
  int kind, fd, epoll;
  int other; // the handler receives there
  timer_t timer;
  unsigned dice;
  volatile pid_t thread;
  volatile unsigned long begun, ended;
  volatile uintptr_t stack; // of the caller: a handler that finds less has interrupted the call
  volatile bool has_run, was_inside, over;
  unsigned long inside, wrong;
};
static struct waiter waiter;
static void look_where(int number, siginfo_t *info, void *context) {
  const ucontext_t *of = context;
#if defined(__x86_64__)
  uintptr_t stack = (uintptr_t)of->uc_mcontext.gregs[REG_RSP];
#else
  uintptr_t stack = of->uc_mcontext.sp;
#endif
  waiter.was_inside = stack < waiter.stack;
  waiter.has_run = true;
  int saved = errno;
  char room[10];
  if (waiter.other >= 0 && recv(waiter.other, room, sizeof room, MSG_DONTWAIT) != -1) waiter.wrong++;
  errno = saved;
}
static void *waits(void *unused) {
  struct epoll_event event;
  struct pollfd entry = {waiter.fd, POLLIN, 0};
  char room[10];
  struct sigevent how = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
  how._sigev_un._tid = gettid();
  if (timer_create(CLOCK_MONOTONIC, &how, &waiter.timer) != 0) give_up("timer_create");
  while (!waiter.over) {
    uintptr_t stack;
#if defined(__x86_64__)
    __asm__ volatile("mov %%rsp, %0" : "=r"(stack));
#else
    __asm__ volatile("mov %0, sp" : "=r"(stack));
#endif
    waiter.was_inside = waiter.has_run = false;
    waiter.dice = waiter.dice * 1664525 + 1013904223;
    struct itimerspec soon = {.it_value.tv_nsec = 2000 + (waiter.dice >> 16) % 16000};
    waiter.begun++;
    errno = 0;
    timer_settime(waiter.timer, 0, &soon, NULL);
    waiter.stack = stack;
    long result = waiter.kind % 3 == 0 ? recv(waiter.fd, room, sizeof room, 0)
                  : waiter.kind == 1 ? epoll_wait(waiter.epoll, &event, 1, -1)
                                     : poll(&entry, 1, -1);
    if (result != -1 || errno != EINTR) waiter.wrong++;
    waiter.stack = 0;
    waiter.inside += waiter.was_inside;
    waiter.ended++;
  }
  timer_delete(waiter.timer);
  return NULL;
}

static void interrupts(const char *name) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, waits, NULL) != 0) give_up("pthread_create");
  unsigned long unnoticed = 0;
  while (waiter.ended < 2000 && unnoticed < 200) {
    unsigned long number = waiter.ended;
    // One that came before the call had begun is lost to it, on the kernel as well.
    for (int i = 0; i < 20 && waiter.ended == number && (!waiter.has_run || waiter.was_inside); i++) usleep(1000);
    if (waiter.ended != number || waiter.begun == number) continue;
    unnoticed += waiter.was_inside;
    while (waiter.ended == number) pthread_kill(thread, SIGUSR1), usleep(1000);
  }
  waiter.over = true;
  while (pthread_tryjoin_np(thread, NULL) != 0) pthread_kill(thread, SIGUSR1), usleep(1000);
  // (The first instructions of a call are before its first look.)
  say("  %s: mostly interrupted within: %s; nearly always ended by it: %s; with another result than EINTR: %lu", name,
      waiter.inside > 1000 ? "yes" : "NO", unnoticed <= 40 ? "yes" : "NO", waiter.wrong);
  if (waiter.inside <= 1000 || unnoticed > 40) say("  within %lu, unnoticed %lu, of %lu", waiter.inside, unnoticed, waiter.ended);
}
static unsigned dice_begin(void) {
  const char *seed = getenv("PROBE_SEED");
  return seed ? (unsigned)strtoul(seed, NULL, 0) : 1;
}

CASE(unnoticed, "a signal at any moment of a call that waits ends it: none runs between two looks at a ring unnoticed") {
  static const char *names[] = {"recv", "epoll_wait", "poll", "recv, and the handler receives, too"};
  struct sigaction action = {.sa_sigaction = look_where, .sa_flags = SA_SIGINFO};
  sigaction(SIGUSR1, &action, NULL);
  for (int kind = 0; kind < 4; kind++) {
    int other = kind == 3 ? udp("b") : -1;
    waiter = (struct waiter){.kind = kind, .fd = udp("a"), .epoll = keep(epoll_create1(0)), .other = other, .dice = dice_begin() + kind};
    struct epoll_event event = {EPOLLIN, {0}};
    epoll_ctl(waiter.epoll, EPOLL_CTL_ADD, waiter.fd, &event);
    interrupts(names[kind]);
    drop(waiter.fd), close(waiter.epoll);
    if (other >= 0) drop(other);
  }
  signal(SIGUSR1, SIG_DFL);
}

CASE(unnoticed_without, "the same of an epoll before the first socket, and of one without any after it") {
  struct sigaction action = {.sa_sigaction = look_where, .sa_flags = SA_SIGINFO};
  sigaction(SIGUSR1, &action, NULL);
  int fd = -1;
  for (int after = 0; after < 2; after++) {
    if (after) fd = udp("a");
    waiter = (struct waiter){.kind = 1, .fd = -1, .epoll = keep(epoll_create1(0)), .other = -1, .dice = dice_begin() + after};
    interrupts(after ? "after" : "before");
    close(waiter.epoll);
  }
  drop(fd);
  signal(SIGUSR1, SIG_DFL);
}

// ------------------------------------------------------------------------------------ cancellation

/// As a destructor of C++: what runs it is the unwinding of the stack (this program is built with -fexceptions).
static unsigned long cleaned_up;
static void destroy(int *unused) { cleaned_up++; }

static void *waits_once(void *unused) {
  __attribute__((cleanup(destroy), unused)) int guard = 0;
  struct epoll_event event;
  struct pollfd entry = {waiter.fd, POLLIN, 0};
  fd_set set;
  char room[10];
  FD_ZERO(&set);
  FD_SET(waiter.fd, &set);
  waiter.begun++;
  if (waiter.kind == 0) recv(waiter.fd, room, sizeof room, 0);
  else if (waiter.kind == 1) epoll_wait(waiter.epoll, &event, 1, -1);
  else if (waiter.kind == 2) poll(&entry, 1, -1);
  else select(waiter.fd + 1, &set, NULL, NULL, NULL);
  return NULL;
}

CASE(cancelled, "pthread_cancel at any moment of a call that waits ends its thread") {
  static const char *names[] = {"recv", "epoll_wait", "poll", "select"};
  unsigned dice = dice_begin();
  for (int kind = 0; kind < 4; kind++) {
    waiter = (struct waiter){.kind = kind, .fd = udp("a"), .epoll = keep(epoll_create1(0))};
    struct epoll_event event = {EPOLLIN, {0}};
    epoll_ctl(waiter.epoll, EPOLL_CTL_ADD, waiter.fd, &event);
    unsigned long cancelled = 0;
    cleaned_up = 0;
    for (unsigned long round = 1; round <= 200; round++) {
      pthread_t thread;
      void *result = NULL;
      if (pthread_create(&thread, NULL, waits_once, NULL) != 0) give_up("pthread_create");
      while (waiter.begun != round) {}
      dice = dice * 1664525 + 1013904223;
      for (unsigned spin = (dice >> 16 & 65535) * (round & 15); spin; spin--) __asm__ volatile("" ::: "memory");
      pthread_cancel(thread);
      pthread_join(thread, &result);
      cancelled += result == PTHREAD_CANCELED;
    }
    say("  %s: %lu of 200 cancelled, %lu cleaned up", names[kind], cancelled, cleaned_up);
    drop(waiter.fd), close(waiter.epoll);
  }
}

static void *looks_on(void *unused) {
  __attribute__((cleanup(destroy), unused)) int guard = 0;
  struct epoll_event event;
  int type;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
  epoll_wait(waiter.epoll, &event, 1, 0);
  pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
  if (type != PTHREAD_CANCEL_DEFERRED) waiter.wrong++;
  pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
  waiter.begun++;
  for (;;) epoll_pwait(waiter.epoll, &event, 1, 0, NULL);
  return unused;
}

CASE(cancelled_without, "pthread_cancel of a thread that waits in an epoll, or looks at one again and again, before and after the first socket") {
  static void *(*const ways[])(void *) = {waits_once, looks_on};
  waiter = (struct waiter){.kind = 1, .epoll = keep(epoll_create1(0))};
  unsigned long round = 0;
  for (int step = 0; step < 4; step++) {
    if (step == 2) waiter.fd = udp("a");
    unsigned long cancelled = 0;
    cleaned_up = 0;
    for (int i = 0; i < 50; i++) {
      pthread_t thread;
      void *result = NULL;
      if (pthread_create(&thread, NULL, ways[step % 2], NULL) != 0) give_up("pthread_create");
      round++;
      while (waiter.begun != round) sched_yield();
      if (i % 2) usleep(1000);
      pthread_cancel(thread);
      pthread_join(thread, &result);
      cancelled += result == PTHREAD_CANCELED;
    }
    say("  %s, %s: %lu of 50 cancelled, %lu cleaned up", step < 2 ? "before" : "after", step % 2 ? "looking" : "waiting", cancelled, cleaned_up);
  }
  say("  another type than deferred: %lu", waiter.wrong);
  drop(waiter.fd), close(waiter.epoll);
}
