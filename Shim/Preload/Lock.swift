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
  static func release(_ word: UnsafeMutableRawPointer) {
    unsafe mn_store_release_u32(word, 0)
  }
}
