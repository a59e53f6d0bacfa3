public import CMachnetABI
public import CTrampoline
import ShimChannel

/// A channel that this process has mapped. Never unmapped: a thread may be anywhere.
@safe
struct Channel {
  var base: UnsafeMutableRawPointer
  var identifier: UInt32
  var token: UInt64
  var capacity: UInt32
  var engineCount: UInt32
  var txCapacity: UInt32
  var rxCapacity: UInt32
  var doorbells: InlineArray<16, Int32>
  /// Set when the daemon has no block left in it; a new channel is opened then.
  var full: Bool
  /// The connection that it was opened on is not this process's own (it forked since).
  var inherited: Bool

  /// An engine found this channel damaged.
  var isDamaged: Bool { unsafe mn_load_relaxed_u32(base + Int(MN_OFFSET_CHANNEL_DAMAGED)) != 0 }
}

/// Everything the shim knows of the process that it lives in. One, mapped at start, never freed.
@safe
struct Process {
  /// Guards this structure on the slow paths: attach, close, registration.
  var lock: FairLock
  /// Connection to the daemon; -1: none.
  var control: Int32
  /// HELLO has been sent and its answer not been read yet.
  var greeting: Bool
  var sequence: UInt32
  /// When the daemon was last looked for, CLOCK_MONOTONIC ns.
  var lastAttempt: UInt64
  var directory: Directory?
  var generation: UInt32
  var mask: ProgramMask
  var channels: UnsafeMutablePointer<Channel>
  var channelCount: Int
  /// Connections inherited by fork, held only so that the daemon keeps the channels alive.
  /// The sockets that sent last (`Wait.letLand`).
  var senders: InlineArray<4, SocketPointer?>
  var senderNext: Int
  /// Local names that this process has given up lately, and until when that matters, CLOCK_MONOTONIC ns; 0: none.
  var departed: InlineArray<8, UInt64>
  var departedNext: Int
  var departedUntil: UInt64
  /// Sockets that lost their engine and may get a new one, or wait for a slow daemon; 0: there are none.
  var lostSockets: Int
  /// The question that a slow daemon has not answered yet (0: none), when it was asked, CLOCK_MONOTONIC ns, and for which socket.
  var unanswered: UInt32
  var unansweredSince: UInt64
  var unansweredSocket: SocketPointer?
  /// About to become another program.
  var isLeaving: Bool
  var lifelines: InlineArray<8, Int32>
  var lifelineCount: Int
  var sockets: SocketSlab
  /// How this process waits, where its environment says so: ns to look at the rings before a sleep, and whether to
  /// yield between looks; -1: as the daemon says.
  var spinNanoseconds: Int64
  var yields: Int32
  var executable: InlineArray<64, CChar>
  var called: InlineArray<64, CChar>
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
  guard let channels = unsafe mn_sys_map(MemoryLayout<Channel>.stride * Int(MN_CHANNELS_PER_PROCESS_MAX)) else { return }
  unsafe process.initialize(
    to: Process(
      lock: FairLock(), control: -1, greeting: false, sequence: 0, lastAttempt: 0, directory: nil, generation: 0,
      mask: ProgramMask(), channels: channels.bindMemory(to: Channel.self, capacity: Int(MN_CHANNELS_PER_PROCESS_MAX)),
      channelCount: 0, senders: .init(repeating: nil), senderNext: 0, departed: .init(repeating: 0), departedNext: 0, departedUntil: 0, lostSockets: 0, unanswered: 0, unansweredSince: 0,
      unansweredSocket: nil, isLeaving: false, lifelines: .init(repeating: -1), lifelineCount: 0, sockets: SocketSlab(),
      spinNanoseconds: Waiting.spin(), yields: Waiting.yields(), executable: .init(repeating: 0), called: .init(repeating: 0)))
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
    let inherited = unsafe process.pointee.lifelineCount
    return unsafe inherited > 0 ? process.pointee.lifelines[inherited - 1] : -1
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
    unsafe process.pointee.mask = mask
    unsafe process.pointee.generation = generation
  }

  /// Opens the descriptor table: from now on the trampolines ask it.
  static func openTable(_ process: ProcessPointer) -> Bool {
    if mn_table_size() != 0 { return true }
    let length = mn_sys_descriptor_limit()
    guard let table = unsafe mn_sys_map(Int(length) * MemoryLayout<UnsafeMutableRawPointer?>.stride) else { return false }
    unsafe mn_table_open(table.assumingMemoryBound(to: UnsafeMutableRawPointer?.self), length)
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
    let soft = Int64(mn_sys_descriptor_soft_limit())
    let high = mn_sys_fcntl(fd, Int32(MN_F_DUPFD_CLOEXEC), min(soft - soft / 4, 16384))
    if high >= 0 { mn_table_set_internal(high) }
    return high
  }

  /// Ends a descriptor of ours.
  @inline(never)
  static func drop(_ fd: inout Int32) {
    if fd < 0 { return }
    // (Where the program has closed it by a way that we did not see, the number may be the program's own by now.)
    if mn_table_size() == 0 || mn_table_is_internal(fd) {
      _ = mn_table_set(fd, nil)
      _ = mn_sys_close(fd)
    }
    fd = -1
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
  var inherited = unsafe process.pointee.control
  if inherited >= 0 {
    if unsafe process.pointee.lifelineCount < 8 {
      unsafe process.pointee.lifelines[process.pointee.lifelineCount] = inherited
      unsafe process.pointee.lifelineCount += 1
    } else {
      Process.drop(&inherited)
    }
  }
  unsafe process.pointee.control = -1
  unsafe process.pointee.greeting = false
  unsafe process.pointee.unanswered = 0
  unsafe process.pointee.lastAttempt = 0
  for index in 0..<(unsafe process.pointee.channelCount) {
    unsafe process.pointee.channels[index].inherited = true
  }
  // The threads that waited are the parent's.
  unsafe process.pointee.sockets.forEach { socket in
    guard unsafe socket.pointee.waiters != 0 else { return }
    unsafe socket.pointee.waiters = 1
    unsafe Socket.letGo(socket)
  }
}
