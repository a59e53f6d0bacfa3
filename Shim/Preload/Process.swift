public import CMachnetABI
public import CTrampoline
import ShimChannel
import Synchronization

/// A channel that this process has mapped. Never unmapped: a thread may be anywhere.
@safe
struct Channel: ~Copyable {
  var base: UnsafeMutableRawPointer
  var identifier: UInt32
  var token: UInt64
  var capacity: UInt32
  var engineCount: UInt32
  var txCapacity: UInt32
  var rxCapacity: UInt32
  var doorbells: InlineArray<16, Int32>
  /// Set when the daemon has no block left in it; a new channel is opened then.
  @Shared var full: Bool
  /// The connection that it was opened on is not this process's own (it forked since).
  @Shared var inherited: Bool

  /// The TX ring of a block, and its RX ring of an engine.
  func writer(_ index: UInt32) -> UnsafeMutableRawPointer {
    unsafe base + Int(mn_rings_offset(index, capacity, engineCount, txCapacity, rxCapacity))
  }
  func reader(_ index: UInt32, _ engine: Int) -> UnsafeMutableRawPointer {
    unsafe writer(index) + Int(mn_ring_stride(UInt64(txCapacity)) + UInt64(engine) * mn_ring_stride(UInt64(rxCapacity)))
  }

  /// An engine found this channel damaged.
  var isDamaged: Bool { unsafe mn_load_relaxed_u32(base + Int(MN_OFFSET_CHANNEL_DAMAGED)) != 0 }
}

/// Everything the shim knows of the process that it lives in. One, mapped at start, never freed.
///
/// Fields are written under the lock, unless they say otherwise; those that are read without it are atomic.
@safe
struct Process: ~Copyable {
  /// Guards this structure on the slow paths: attach, close, registration.
  let lock: FairLock
  /// Connection to the daemon; -1: none.
  @Shared var control: Int32
  /// HELLO has been sent and its answer not been read yet.
  @Shared var greeting: Bool
  var sequence: UInt32
  /// When the daemon was last looked for, CLOCK_MONOTONIC ns.
  @Shared var lastAttempt: UInt64
  private let directoryWord: Atomic<UnsafeMutableRawPointer?>
  /// The rules' generation that the mask was made by, in the high half, and how many masks have been made, in the low one.
  private let ruling: Atomic<UInt64>
  /// Two, in turn: a call that is at the one before may go on with it.
  fileprivate var masks: UnsafeMutablePointer<ProgramMask>
  fileprivate(set) var channels: UnsafeMutablePointer<Channel>
  @Shared var channelCount: Int
  /// Local names that this process has given up lately (`mn_departed_until`).
  let departed: InlineArray<8, Atomic<UInt64>>
  var departedNext: Int
  /// An eventfd that nobody signals: in each epoll that is known (`Epoll.meet`).
  @Shared fileprivate(set) var marker: Int32
  /// Where watches are (`Watch.from`).
  let watchBlocks: InlineArray<20, Atomic<UnsafeMutableRawPointer?>>
  /// Sockets that lost their engine and may get a new one, or wait for a slow daemon; 0: there are none.
  let lostSockets: Atomic<Int>
  /// The question that a slow daemon has not answered yet (0: none), when it was asked, CLOCK_MONOTONIC ns, and for which socket.
  @Shared var unanswered: UInt32
  var unansweredSince: UInt64
  var unansweredSocket: SocketPointer?
  /// How often it has been forked from another one.
  @Shared var forks: UInt32
  /// The thread that is about to make another program of the process; 0: none.
  @Shared var leaver: UInt32
  /// Connections inherited by fork, held only so that the daemon keeps the channels alive, and how many.
  private let lifelines: InlineArray<8, Atomic<Int32>>
  @Shared private var lifelineCount: Int
  let sockets: SocketSlab
  /// How this process waits, where its environment says so: ns to look at the rings before a sleep, and whether to
  /// yield between looks; -1: as the daemon says.
  var spinNanoseconds: Int64
  var yields: Int32
  var executable: InlineArray<64, CChar>
  var called: InlineArray<64, CChar>

  fileprivate var lastLifeline: Int32 {
    let count = lifelineCount
    return count > 0 ? lifelines[count - 1].load(ordering: .relaxed) : -1
  }

  /// - Returns: false when there is no room for one more.
  fileprivate func keepLifeline(_ fd: Int32) -> Bool {
    let count = lifelineCount
    if count == 8 { return false }
    lifelines[count].store(fd, ordering: .relaxed)
    lifelineCount = count + 1
    return true
  }

  /// Nobody is to find them any more: their daemon has gone.
  func dropLifelines() {
    while lifelineCount > 0 {
      let count = lifelineCount - 1
      lifelineCount = count
      Process.drop(lifelines[count].load(ordering: .relaxed))
    }
  }

  /// Another one after a daemon's end; the old one stays mapped.
  var directory: Directory? {
    // Acquire: pairs with the release below.
    @inline(__always) get { unsafe directoryWord.load(ordering: .acquiring).map { unsafe Directory(unsafe: $0) } }
  }
  func use(directory base: UnsafeMutableRawPointer) { unsafe directoryWord.store(base, ordering: .releasing) }

  /// The rules' generation that `mask` was made by.
  var generation: UInt32 { UInt32(truncatingIfNeeded: ruling.load(ordering: .acquiring) >> 32) }

  /// Which rules name this program, and their generation.
  var programMask: (mask: UnsafePointer<ProgramMask>, generation: UInt32) {
    // Acquire: pairs with the release below.
    let ruling = ruling.load(ordering: .acquiring)
    return unsafe (UnsafePointer(masks + Int(ruling & 1)), UInt32(truncatingIfNeeded: ruling >> 32))
  }

  func use(mask: ProgramMask, generation: UInt32) {
    let turn = ruling.load(ordering: .relaxed) &+ 1
    unsafe masks[Int(turn & 1)] = mask
    ruling.store(UInt64(generation) << 32 | turn & 0xffff_ffff, ordering: .releasing)
  }

  /// The mask is of no rules in force.
  func forgetMask(generation: UInt32) { ruling.store(UInt64(generation) << 32 | ruling.load(ordering: .relaxed) & 0xffff_ffff, ordering: .releasing) }
}

typealias ProcessPointer = UnsafeMutablePointer<Process>

/// The process's state; nil before start and in processes that could not get memory.
var process: ProcessPointer? {
  guard let raw = unsafe mn_process_get() else { return nil }
  return unsafe raw.assumingMemoryBound(to: Process.self)
}

/// The library's constructor: says hello to the daemon without waiting for its answer, so that a program that never
/// opens a UDP socket, and has inherited none, pays for one connect, one send and a look at its descriptors. Early, because the program may chroot, change its uid or
/// filter its system calls later.
@c(mn_hook_start)
public func start() {
  guard let raw = unsafe mn_sys_map(MemoryLayout<Process>.stride) else { return }
  let process = unsafe raw.bindMemory(to: Process.self, capacity: 1)
  let room = MemoryLayout<Channel>.stride * Int(MN_CHANNELS_PER_PROCESS_MAX)
  guard let channels = unsafe mn_sys_map(room + 2 * MemoryLayout<ProgramMask>.stride) else { return }
  // (Zeros are a valid one, but for these.)
  unsafe process.pointee.control = -1
  unsafe process.pointee.channels = channels.bindMemory(to: Channel.self, capacity: Int(MN_CHANNELS_PER_PROCESS_MAX))
  unsafe process.pointee.masks = (channels + room).bindMemory(to: ProgramMask.self, capacity: 2)
  unsafe process.pointee.spinNanoseconds = Waiting.spin()
  unsafe process.pointee.yields = Waiting.yields()
  unsafe withUnsafeMutableBytes(of: &process.pointee.executable) { executable in
    unsafe withUnsafeMutableBytes(of: &process.pointee.called) { called in
      unsafe mn_program_names(
        executable.baseAddress!.assumingMemoryBound(to: CChar.self),
        called.baseAddress!.assumingMemoryBound(to: CChar.self))
    }
  }
  unsafe Control.greet(process)
  unsafe mn_process_set(raw)
  if unsafe process.pointee.control >= 0 { mn_each_inherited() }
}

/// Waiting options of one process (`machnet run --profile`). What is not understood is not obeyed.
enum Waiting {
  /// MACHNET_SPIN_US, 0...1,000,000.
  static func spin() -> Int64 {
    guard let text = unsafe mn_environment("MACHNET_SPIN_US") else { return -1 }
    var value: Int64 = 0
    var index = 0
    while unsafe text[index] != 0 {
      let digit = unsafe Int64(text[index]) - 48
      if index == 7 || digit < 0 || digit > 9 { return -1 }
      value = value * 10 + digit
      index += 1
    }
    return index == 0 || value > 1_000_000 ? -1 : value * 1000
  }

  /// MACHNET_YIELD, true or false.
  static func yields() -> Int32 {
    guard let text = unsafe mn_environment("MACHNET_YIELD") else { return -1 }
    return unsafe isWord(text, "true") ? 1 : isWord(text, "false") ? 0 : -1
  }

  private static func isWord(_ text: UnsafePointer<CChar>, _ word: StaticString) -> Bool {
    // With its NUL.
    for index in 0...word.utf8CodeUnitCount where unsafe UInt8(bitPattern: text[index]) != word.utf8Start[index] {
      return false
    }
    return true
  }
}

extension Process {
  /// How long the daemon may need to take a closed endpoint out of sight, ns.
  static var departure: UInt64 { 50_000_000 }

  /// The connection that hangs up when the daemon goes: our own, or after a fork the one that we inherited.
  static func connection(_ process: ProcessPointer) -> Int32 {
    if unsafe process.pointee.control >= 0 { return unsafe process.pointee.control }
    return unsafe process.pointee.lastLifeline
  }

  /// Works out which rules name this program when the rule set has changed since. The caller holds the lock.
  static func refreshMask(_ process: ProcessPointer) {
    guard let directory = unsafe process.pointee.directory else { return }
    let generation = directory.rulesGeneration
    if unsafe generation == process.pointee.generation { return }
    let rules = directory.rules(generation: generation)
    let mask = unsafe withUnsafeBytes(of: &process.pointee.executable) { executable in
      unsafe withUnsafeBytes(of: &process.pointee.called) { called in
        unsafe rules.mask(
          programs: executable.baseAddress!.assumingMemoryBound(to: CChar.self),
          called.baseAddress!.assumingMemoryBound(to: CChar.self))
      }
    }
    unsafe process.pointee.use(mask: mask, generation: generation)
  }

  /// Opens the descriptor table: from now on the trampolines ask it.
  static func openTable(_ process: ProcessPointer) -> Bool {
    if mn_table_size() != 0 { return true }
    let length = mn_sys_descriptor_limit(true)
    guard let table = unsafe mn_sys_map(Int(length) * MemoryLayout<UnsafeMutableRawPointer?>.stride) else { return false }
    unsafe mn_table_open(table.assumingMemoryBound(to: UnsafeMutableRawPointer?.self), length)
    unsafe process.pointee.marker = hide(mn_sys_eventfd())
    var index: UInt32 = 0
    while true {
      let early = mn_early_duplicate(index)
      if early < 0 { break }
      _ = unsafe Epoll.meet(early, process)
      index += 1
    }
    if unsafe process.pointee.control >= 0 { unsafe mn_table_set_internal(process.pointee.control) }
    return true
  }

  /// A descriptor of ours moves out of the program's way: high, close-on-exec, marked in the table.
  static func hide(_ fd: Int32) -> Int32 {
    let high = copy(fd)
    if high < 0 {
      mn_table_set_internal(fd)
      return fd
    }
    _ = mn_sys_close(fd)
    return high
  }

  /// A descriptor of ours for the same file: in the upper quarter of what the program may have, so that three quarters are left
  /// to it; and not higher than need be, because the kernel's table of a process (and each fork's copy) ends with the highest.
  ///
  /// - Returns: a negative errno value when there is none left.
  static func copy(_ fd: Int32) -> Int32 {
    let soft = Int64(mn_sys_descriptor_limit(false))
    let high = mn_sys_fcntl(fd, Int32(MN_F_DUPFD_CLOEXEC), min(soft - soft / 4, 16384))
    if high >= 0 { mn_table_set_internal(high) }
    return high
  }

  /// Ends a descriptor of ours. Nobody is to find its number any more: another file may have it next.
  @inline(never)
  static func drop(_ fd: Int32) {
    if fd < 0 { return }
    // (Where the program has closed it by a way that we did not see, the number may be the program's own by now.)
    if mn_table_size() == 0 || mn_table_is_internal(fd) {
      _ = mn_table_set(fd, nil)
      _ = mn_sys_close(fd)
    }
  }
}

// ------------------------------------------------------------------------------------------------------------- fork

/// Every live endpoint gets a second holder before the fork, so that no close can slip in between.
@c(mn_hook_fork_prepare)
public func forkPrepare() {
  guard let process = unsafe process else { return }
  unsafe process.pointee.sockets.forEach { socket in
    guard let endpoint = unsafe socket.pointee.endpoint else { return }
    _ = unsafe mn_fetch_add_u32(UnsafeMutableRawPointer(endpoint) + Int(MN_OFFSET_ENDPOINT_REFERENCES), 1)
  }
}

/// The child keeps the parent's connection as a life line of the shared channels, and opens its own when it needs one.
@c(mn_hook_fork_child)
public func forkChild() {
  mn_thread_id_forget()
  guard let process = unsafe process else { return }
  if unsafe process.pointee.lock.isTaken && !mn_thread_is_inside() {
    // Another thread of the parent was in the middle of a change; lists of free things may be torn.
    unsafe process.pointee.sockets.forget()
    Watch.forgetFree()
  }
  unsafe process.pointee.lock.reset()
  let inherited = unsafe process.pointee.control
  if inherited >= 0 {
    if unsafe !process.pointee.keepLifeline(inherited) { Process.drop(inherited) }
  }
  unsafe process.pointee.control = -1
  unsafe process.pointee.greeting = false
  unsafe process.pointee.unanswered = 0
  unsafe process.pointee.lastAttempt = 0
  for index in 0..<(unsafe process.pointee.channelCount) {
    unsafe process.pointee.channels[index].inherited = true
  }
  unsafe process.pointee.forks = process.pointee.forks &+ 1
  // The threads that waited are the parent's.
  Epoll.forgetWaiters()
  unsafe process.pointee.sockets.forEach { socket in
    guard unsafe socket.pointee.waiters.load(ordering: .relaxed) != 0 else { return }
    unsafe socket.pointee.waiters.store(1, ordering: .relaxed)
    unsafe Socket.letGo(socket)
  }
}
