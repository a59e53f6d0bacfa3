public import CMachnetABI
public import CTrampoline

/// - Returns: -1, with errno set.
@inline(never)
func fail(_ error: Int) -> Int {
  mn_set_errno(Int32(truncatingIfNeeded: error))
  return -1
}

/// A lock word that threads of one process, and processes that share a channel after a fork, take in turn: 0 when free,
/// else the owner's kernel thread id. What it guards is consistent at every instruction (an index is published last),
/// so the lock of an owner that died may simply be taken over.
enum Lock {
  /// - Returns: false when this very thread holds it already: a signal handler interrupted the holder.
  @inline(__always)
  @_disfavoredOverload
  static func acquire(_ word: UnsafeMutableRawPointer) -> Bool {
    let me = mn_thread_id()
    if unsafe mn_compare_exchange_u32(word, 0, me) { return true }
    return unsafe contend(word, me)
  }

  @inline(never)
  private static func contend(_ word: UnsafeMutableRawPointer, _ me: UInt32) -> Bool {
    var turns: UInt32 = 0
    while true {
      let owner = unsafe mn_load_relaxed_u32(word)
      if owner == me { return false }
      if owner == 0 {
        if unsafe mn_compare_exchange_u32(word, 0, me) { return true }
        continue
      }
      turns &+= 1
      if turns < 64 {
        mn_pause()
      } else {
        // The owner waits for a processor, or is dead.
        if unsafe turns & 255 == 0 && mn_sys_thread_is_gone(owner) && mn_compare_exchange_u32(word, owner, me) {
          return true
        }
        _ = mn_sys_yield()
      }
    }
  }

  @inline(__always)
  @_disfavoredOverload
  static func release(_ word: UnsafeMutableRawPointer) {
    unsafe mn_store_release_u32(word, 0)
  }
}

/// The process's lock, for the slow paths: its holder may wait for the daemon, so others sleep, and are served in turn. A
/// holder never dies alone; fork ends the child's copy (`reset`).
@safe
struct FairLock {
  fileprivate var tickets: UInt32 = 0
  fileprivate var serving: UInt32 = 0
  fileprivate var sleepers: UInt32 = 0

  var isTaken: Bool { tickets != serving }

  /// In a forked child, whose only thread may be a signal handler's that interrupted the holder.
  mutating func reset() { self = FairLock(tickets: mn_thread_is_inside() ? 1 : 0) }
}

extension Lock {
  /// - Returns: false when this very thread holds it already: a signal handler interrupted the holder.
  @inline(never)
  static func acquire(_ lock: UnsafeMutablePointer<FairLock>) -> Bool {
    if mn_thread_is_inside() { return false }
    mn_thread_set_inside(true)
    let ticket = unsafe mn_fetch_add_u32(&lock.pointee.tickets, 1)
    var turns = 0
    while true {
      // Acquire: pairs with the release below.
      let serving = unsafe mn_load_acquire_u32(&lock.pointee.serving)
      if serving == ticket { return true }
      turns += 1
      // Most holders are gone before a sleeper would be awake.
      if turns < 64 {
        _ = mn_sys_yield()
        continue
      }
      // Sequentially consistent: the sleeper is counted before the kernel looks at the word; pairs with the fence below.
      _ = unsafe mn_fetch_add_u32(&lock.pointee.sleepers, 1)
      mn_fence()
      unsafe mn_sys_futex_wait(&lock.pointee.serving, serving)
      _ = unsafe mn_fetch_add_u32(&lock.pointee.sleepers, UInt32.max)
    }
  }

  @inline(never)
  static func release(_ lock: UnsafeMutablePointer<FairLock>) {
    Deferred.run()
    let next = unsafe lock.pointee.serving &+ 1
    unsafe mn_store_release_u32(&lock.pointee.serving, next)
    mn_fence()
    if unsafe mn_load_relaxed_u32(&lock.pointee.sleepers) != 0 { unsafe mn_sys_futex_wake(&lock.pointee.serving) }
    mn_thread_set_inside(false)
  }
}

/// What a signal handler closes while its own thread holds the process's lock is taken out of the table at once; the rest
/// is done by the holder, before it lets go.
enum Deferred {
  static var limit: Int { 16 }

  /// What does not fit is forgotten: its endpoint goes with the process.
  @inline(never)
  static func add(_ entry: UnsafeMutableRawPointer, _ fd: Int32) {
    let place = unsafe deferredCount
    if place == limit { return }
    unsafe deferredCount = place + 1
    unsafe deferred[place] = (UInt(bitPattern: entry), fd)
  }

  @inline(never)
  fileprivate static func run() {
    while unsafe deferredCount > 0 {
      unsafe deferredCount -= 1
      let (entry, fd) = unsafe deferred[deferredCount]
      if let entry = unsafe UnsafeMutableRawPointer(bitPattern: entry), let process = unsafe process { unsafe closed(entry, fd, process) }
    }
  }
}

/// Only touched by the holder of the process's lock and by handlers that interrupt it.
private nonisolated(unsafe) var deferredCount = 0
private nonisolated(unsafe) var deferred: InlineArray<16, (UInt, Int32)> = .init(repeating: (0, 0))
