// Atomic accesses to words in shared memory, for Swift: a C11 access per name, no policy. Every use names its partner.
#ifndef MACHNET_ATOMIC_H
#define MACHNET_ATOMIC_H

#include <stdbool.h>
#include <stdint.h>

#include "machnet_abi.h"

#define MN_ATOMIC(type, suffix)                                                                                  \
  MN_HOT static inline type mn_load_relaxed_##suffix(const void *word) {                                         \
    return __atomic_load_n((const type *)word, __ATOMIC_RELAXED);                                                \
  }                                                                                                              \
  MN_HOT static inline type mn_load_acquire_##suffix(const void *word) {                                         \
    return __atomic_load_n((const type *)word, __ATOMIC_ACQUIRE);                                                \
  }                                                                                                              \
  MN_HOT static inline void mn_store_relaxed_##suffix(void *word, type value) {                                  \
    __atomic_store_n((type *)word, value, __ATOMIC_RELAXED);                                                     \
  }                                                                                                              \
  MN_HOT static inline void mn_store_release_##suffix(void *word, type value) {                                  \
    __atomic_store_n((type *)word, value, __ATOMIC_RELEASE);                                                     \
  }                                                                                                              \
  MN_HOT static inline type mn_exchange_##suffix(void *word, type value) {                                       \
    return __atomic_exchange_n((type *)word, value, __ATOMIC_SEQ_CST);                                           \
  }                                                                                                              \
  MN_HOT static inline type mn_fetch_or_##suffix(void *word, type value) {                                       \
    return __atomic_fetch_or((type *)word, value, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                              \
  MN_HOT static inline type mn_fetch_and_##suffix(void *word, type value) {                                      \
    return __atomic_fetch_and((type *)word, value, __ATOMIC_SEQ_CST);                                            \
  }                                                                                                              \
  MN_HOT static inline type mn_fetch_add_##suffix(void *word, type value) {                                      \
    return __atomic_fetch_add((type *)word, value, __ATOMIC_RELAXED);                                            \
  }                                                                                                              \
  /* Returns whether `word` held `expected` and now holds `desired`; acquire-release on success. */              \
  MN_HOT static inline bool mn_compare_exchange_##suffix(void *word, type expected, type desired) {              \
    return __atomic_compare_exchange_n((type *)word, &expected, desired, false, __ATOMIC_ACQ_REL,                \
                                       __ATOMIC_RELAXED);                                                        \
  }

MN_ATOMIC(uint32_t, u32)
MN_ATOMIC(uint64_t, u64)
#undef MN_ATOMIC

/// Orders a store of ours before a later load (publish, then look whether the other side sleeps).
MN_HOT static inline void mn_fence(void) {
#if defined(__x86_64__)
  // Of all locked instructions each is a fence, but for stores past the caches, of which there are none here; MFENCE takes four times as
  // long (Zen 5: 53 cycles against 14).
  __asm__ volatile("lock addl $0, -4(%%rsp)" : : : "memory", "cc");
#else
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

MN_HOT static inline void mn_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/// Has a cache line brought near before it is needed. An address that is none does no harm.
MN_HOT static inline void mn_prefetch(const void *line) { __builtin_prefetch(line); }

/// The same of a line that is about to be written: other cores give theirs up.
MN_HOT static inline void mn_prefetch_to_write(const void *line) {
#if defined(__x86_64__)
  // (The builtin is the same as for reading unless all of the program may use PREFETCHW. Where a processor does not know it, it does nothing.)
  __asm__ volatile("prefetchw (%0)" : : "r"(line));
#else
  __builtin_prefetch(line, 1);
#endif
}

/// The cycle counter (x86 TSC, Arm CNTVCT): monotonic on every cloud VM of the last decade (constant, non-stop TSC).
MN_HOT static inline uint64_t mn_cycles(void) {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t value;
  __asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
  return value;
#endif
}

#endif
