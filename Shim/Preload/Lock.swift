public import CMachnetABI
public import CTrampoline
import Synchronization

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

  /// As `acquire`, for 20 ms at the longest.
  @inline(never)
  static func acquireSoon(_ word: UnsafeMutableRawPointer) -> Bool {
    let me = mn_thread_id()
    var deadline: UInt64 = 0
    while unsafe !mn_compare_exchange_u32(word, 0, me) {
      let owner = unsafe mn_load_relaxed_u32(word)
      if owner == me { return false }
      let now = mn_sys_nanoseconds()
      if deadline == 0 { deadline = now &+ 20_000_000 }
      if now > deadline { return unsafe mn_sys_thread_is_gone(owner) && mn_compare_exchange_u32(word, owner, me) }
      _ = mn_sys_yield()
    }
    return true
  }

  @inline(__always)
  @_disfavoredOverload
  static func release(_ word: UnsafeMutableRawPointer) {
    unsafe mn_store_release_u32(word, 0)
  }
}

/// The process's lock, for the slow paths: its holder may wait for the daemon, so others sleep, and are served in turn. A
/// holder never dies alone; fork ends the child's copy (`reset`).
struct FairLock: ~Copyable {
  fileprivate let tickets: Atomic<UInt32>
  fileprivate let serving: Atomic<UInt32>
  fileprivate let sleepers: Atomic<UInt32>

  var isTaken: Bool { tickets.load(ordering: .relaxed) != serving.load(ordering: .relaxed) }

  /// In a forked child, whose only thread may be a signal handler's that interrupted the holder.
  func reset() {
    tickets.store(mn_thread_is_inside() ? 1 : 0, ordering: .relaxed)
    serving.store(0, ordering: .relaxed)
    sleepers.store(0, ordering: .relaxed)
  }
}

extension Lock {
  /// The process's lock.
  ///
  /// - Returns: false when this very thread holds it already: a signal handler interrupted the holder.
  @inline(never)
  static func acquire(_ process: ProcessPointer) -> Bool {
    if mn_thread_is_inside() { return false }
    mn_thread_set_inside(true)
    let ticket = unsafe process.pointee.lock.tickets.wrappingAdd(1, ordering: .relaxed).oldValue
    var turns = 0
    while true {
      // Acquire: pairs with the release below.
      let serving = unsafe process.pointee.lock.serving.load(ordering: .acquiring)
      if serving == ticket { return true }
      turns += 1
      // Most holders are gone before a sleeper would be awake.
      if turns < 64 {
        _ = mn_sys_yield()
        continue
      }
      // The sleeper is counted before the kernel looks at the word; pairs with the fence below.
      unsafe process.pointee.lock.sleepers.wrappingAdd(1, ordering: .relaxed)
      mn_fence()
      unsafe mn_sys_futex_wait(servingWord(process), serving)
      unsafe process.pointee.lock.sleepers.wrappingSubtract(1, ordering: .relaxed)
    }
  }

  @inline(never)
  static func release(_ process: ProcessPointer) {
    Deferred.run()
    let next = unsafe process.pointee.lock.serving.load(ordering: .relaxed) &+ 1
    unsafe process.pointee.lock.serving.store(next, ordering: .releasing)
    mn_fence()
    if unsafe process.pointee.lock.sleepers.load(ordering: .relaxed) != 0 { unsafe mn_sys_futex_wake(servingWord(process)) }
    mn_thread_set_inside(false)
  }

  /// Where the kernel looks at `serving`: the lock is the first field of the process's state, and this the second of its words.
  private static func servingWord(_ process: ProcessPointer) -> UnsafeMutableRawPointer { unsafe UnsafeMutableRawPointer(process) + 4 }
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
