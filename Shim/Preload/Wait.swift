public import CMachnetABI
public import CTrampoline
import ShimChannel
import Synchronization

/// How a wait ended.
enum Waited {
  case ready
  /// The daemon has gone; the shadow is what is left.
  case lost
  /// A signal handler ran, and the kernel would begin the call anew, by its number; that means another file by now.
  case restarted
  /// What the call is to report: EAGAIN, time is up; EINTR, a signal handler ran, and the call is one that the kernel would
  /// not restart; EBADF, the descriptor was closed by such a handler.
  case failed(Int)
}

/// Waiting: look at the rings, yield or pause for the configured time, then publish "armed", look again, and sleep in
/// the kernel on shadow, eventfd and control connection together. Whoever waits holds the socket (`Socket.hold`).
///
/// A handler never runs unnoticed between two looks: the call ends with EINTR as the kernel's would. For the first few looks the
/// handlers count themselves (`Handled`); then (from `Socket.hold` on) signals are blocked, and let through by the system calls in
/// between (ppoll with the program's own mask).
enum Wait {
  private static let neverDeadline = UInt64.max
  /// Whether the eventfd is readable on account of input, which would end each sleep of those who wait for room alone.
  static func isDeafToRoom(_ socket: SocketPointer) -> Bool {
    unsafe mn_load_relaxed_u32(Socket.word(socket, Int(MN_OFFSET_ENDPOINT_RX_WAIT))) == UInt32(MN_WAIT_SIGNALLED)
  }

  /// The longest that a call may sleep that waits for room, ns: another thread's wait for input may swallow the signal for it; and who is
  /// deaf to it looks often.
  static func roomLimit(_ left: Int64, _ isDeaf: Bool) -> Int64 {
    let look: Int64 = isDeaf ? 100_000 : 2_000_000
    return left < 0 ? look : min(left, look)
  }

  /// Waits until a receive on the socket would not find it empty.
  ///
  /// - Parameters:
  ///   - number: the descriptor by which the program called.
  ///   - fd: the same; after a sleep the hidden one, which stays what it is.
  ///   - mask: the program's, for sleeps.
  static func readable(_ socket: SocketPointer, _ number: Int32, _ fd: inout Int32, _ mask: UInt64) -> Waited {
    let timeout = unsafe mn_endpoint_receive_timeout(socket.pointee.endpoint.unsafelyUnwrapped)
    return unsafe wait(socket, number, &fd, mask, timeout, forInput: true)
  }

  /// The first looks of a receive that has found nothing, which mostly are enough, until the kernel is to be asked as well.
  /// Nothing is held, and signals are not blocked: each of it costs more than a look.
  ///
  /// - Parameter look: whether the receive has ended.
  /// - Returns: nil when the wait goes on.
  @inline(__always)
  static func briefly(_ socket: SocketPointer, _ number: Int32, _ handled: Handled, _ look: () -> Int?) -> Int? {
    guard let process = unsafe process, let directory = unsafe process.pointee.directory else { return nil }
    var spinner = Spinner(directory, turn: 2)
    while spinner.step() == .look {
      if let result = look() { return result }
      if unsafe handled.isChanged || mn_table_get(number) != UnsafeMutableRawPointer(socket) { return nil }
    }
    return nil
  }

  /// The first look of all, of a receive that waits: whoever shares the core mostly answers before it gives it back, and then
  /// nothing of the long way has been gone through.
  ///
  /// - Returns: whether the rings have something, and the number is still the socket's.
  @inline(never)
  static func once(_ socket: SocketPointer, _ number: Int32, _ flags: Int32) -> Bool {
    guard let process = unsafe process, let directory = unsafe process.pointee.directory, Spinner(directory).givesWay,
      unsafe socket.pointee.isOffloaded && !Socket.isNonblocking(socket, flags) && !socket.pointee.impatient
    else { return false }
    let handled = Handled()
    if unsafe Socket.hasInput(socket) { return false }
    mn_look_begins()
    _ = mn_sys_yield()
    // Mostly it is there now: its tail, its lines, and those that an answer will take, fetched together, take the time of one.
    unsafe mn_head_prefetch(socket, UInt32(truncatingIfNeeded: socket.pointee.firstReader &- 1))
    if unsafe !Socket.hasInput(socket) {
      let until = mn_cycles() &+ Spinner.longest * 2 / 3
      repeat {
        mn_pause()
        if mn_cycles() > until { return false }
      } while unsafe !Socket.hasInput(socket)
    }
    return unsafe !handled.isChanged && mn_table_get(number) == UnsafeMutableRawPointer(socket)
  }

  /// Waits until the TX ring has room.
  static func writable(_ socket: SocketPointer, _ number: Int32, _ fd: inout Int32, _ mask: UInt64) -> Waited {
    let timeout = unsafe mn_endpoint_send_timeout(socket.pointee.endpoint.unsafelyUnwrapped)
    return unsafe wait(socket, number, &fd, mask, timeout, forInput: false)
  }

  /// Waits until the shadow has something (`ready`) or the socket has its endpoint (`lost`, to the kernel).
  ///
  /// - Parameter start: when the call began to wait, CLOCK_MONOTONIC ns.
  static func undecided(_ socket: SocketPointer, _ number: Int32, _ fd: inout Int32, _ mask: UInt64, since start: UInt64) -> Waited {
    unsafe fd = Socket.pin(socket, fd)
    if fd < 0 { return .failed(MN_EBADF) }
    // -1, which ppoll passes over: the kernel's for good (or closed).
    let kick = unsafe kick(socket) ?? -1
    if unsafe socket.pointee.endpoint != nil { return .lost }
    var time: (Int64, Int64) = (0, 0)
    var length: UInt32 = 16
    _ = unsafe mn_sys_getsockopt(fd, Int32(MN_SOL_SOCKET), Int32(MN_SO_RCVTIMEO), &time, &length)
    var left: Int64 = -1
    if time.0 != 0 || time.1 != 0 {
      left = max(0, time.0 * 1_000_000_000 + time.1 * 1000 - Int64(mn_sys_nanoseconds() &- start))
    }
    let asleep = Loss.limit(left)
    let handled = Handled()
    var entries: InlineArray<2, mn_pollfd> = .init(repeating: mn_pollfd(descriptor: kick, events: Int16(MN_POLLIN), returned: 0))
    entries[0] = mn_pollfd(descriptor: fd, events: Int16(MN_POLLIN | MN_POLLRDHUP), returned: 0)
    let result = unsafe withUnsafeMutableBytes(of: &entries) { entries in
      unsafe withUnsafePointer(to: mask) {
        unsafe sleep(entries.baseAddress!.assumingMemoryBound(to: mn_pollfd.self), 2, asleep, $0, holding: socket)
      }
    }
    if result == 0 {
      if asleep == left { return .failed(MN_EAGAIN) }
      Loss.reattach()
      return .ready
    }
    if result == -Int32(MN_EINTR) { return unsafe interrupted(socket, number, handled, restarts: left < 0) ?? .ready }
    unsafe noteShutdown(socket, entries[0])
    return entries[1].returned != 0 ? .lost : .ready
  }

  /// The shadow may have been shut down unseen: by another process, or by a call that was under way when it was made.
  @inline(never)
  private static func noteShutdown(_ socket: SocketPointer, _ shadow: mn_pollfd) {
    if shadow.returned & Int16(MN_POLLRDHUP) != 0 { unsafe socket.pointee.shut.bitwiseOr(UInt32(MN_SOCKET_SHUTDOWN_READ), ordering: .relaxed) }
  }

  /// The eventfd that tells those who wait on an undecided socket's shadow that it has its endpoint.
  ///
  /// - Returns: nil when it has it already.
  static func kick(_ socket: SocketPointer) -> Int32? {
    guard let process = unsafe process, unsafe Lock.acquire(process) else { return nil }
    defer { unsafe Lock.release(process) }
    if unsafe !socket.pointee.undecided { return nil }
    if unsafe socket.pointee.kick < 0 {
      let fd = mn_sys_eventfd()
      if fd >= 0 { unsafe socket.pointee.kick = Process.hide(fd) }
    }
    return unsafe socket.pointee.kick
  }

  private static func isReady(_ socket: SocketPointer, _ forInput: Bool) -> Bool {
    unsafe forInput ? Socket.hasInput(socket) : Socket.hasRoom(socket)
  }

  /// A handler has run since `handled`.
  ///
  /// - Parameter restarts: whether the kernel begins such a call anew after a handler that says SA_RESTART.
  /// - Returns: nil when the call goes on.
  @inline(never)
  static func interrupted(_ socket: SocketPointer, _ number: Int32, _ handled: Handled, restarts: Bool) -> Waited? {
    if !restarts || !handled.restarts { return .failed(MN_EINTR) }
    return unsafe mn_table_get(number) == UnsafeMutableRawPointer(socket) ? nil : .restarted
  }

  @inline(never)
  private static func wait(
    _ socket: SocketPointer, _ number: Int32, _ fd: inout Int32, _ mask: UInt64, _ timeout: UInt64, forInput: Bool
  ) -> Waited {
    guard let process = unsafe process, let directory = unsafe process.pointee.directory else { return .lost }
    var mask = mask
    let deadline = timeout == 0 ? neverDeadline : mn_sys_nanoseconds() &+ timeout
    var spinner = Spinner(directory, deadline: deadline)
    while true {
      if unsafe isReady(socket, forInput) { return .ready }
      if unsafe socket.pointee.engineLost && !forInput { return .lost }
      let step = spinner.step()
      if step == .over { break }
      if step == .lookAtKernel {
        // (Where the number has just been closed, the look is in vain; nothing is taken by it.)
        let outcome = unsafe kernelLook(socket, process, number, fd, 0, &mask, forInput, timeout)
        if let outcome { return outcome }
      }
    }
    unsafe fd = Socket.pin(socket, fd)
    while fd >= 0 {
      let wasLost = unsafe socket.pointee.engineLost
      Loss.reattach()
      if unsafe wasLost && !socket.pointee.engineLost { return .ready }
      // The caller's receive looks at the shadow itself; here it is part of the sleep.
      if unsafe !arm(socket, forInput) { return .ready }
      var left: Int64 = -1
      if deadline != neverDeadline {
        let now = mn_sys_nanoseconds()
        if now >= deadline { return .failed(MN_EAGAIN) }
        left = Int64(deadline - now)
      }
      left = Loss.limit(left)
      if !forInput { left = unsafe roomLimit(left, isDeafToRoom(socket)) }
      if let endpoint = unsafe socket.pointee.endpoint { unsafe mn_endpoint_count_wakeup(endpoint) }
      if let outcome = unsafe kernelLook(socket, process, number, fd, left, &mask, forInput, timeout) { return outcome }
      if unsafe isReady(socket, forInput) { return .ready }
      if unsafe socket.kind != Kind.socket { break }
    }
    return .failed(MN_EBADF)
  }

  /// One ppoll on everything that can end the wait.
  ///
  /// - Parameter left: 0: only a look; negative: for ever; else ns.
  /// - Returns: nil when the wait goes on.
  @inline(never)
  private static func kernelLook(
    _ socket: SocketPointer, _ process: ProcessPointer, _ number: Int32, _ fd: Int32, _ left: Int64, _ mask: UnsafePointer<UInt64>,
    _ forInput: Bool, _ timeout: UInt64
  ) -> Waited? {
    var entries: InlineArray<3, mn_pollfd> = .init(repeating: mn_pollfd(descriptor: -1, events: 0, returned: 0))
    entries[0] = mn_pollfd(descriptor: forInput ? fd : -1, events: Int16(MN_POLLIN | MN_POLLRDHUP), returned: 0)
    entries[1] = unsafe mn_pollfd(descriptor: Process.connection(process), events: 0, returned: 0)
    let handled = Handled()
    if unsafe left != 0 && (forInput || !isDeafToRoom(socket)) {
      entries[2] = unsafe mn_pollfd(descriptor: socket.pointee.event, events: Int16(MN_POLLIN), returned: 0)
    }
    let result = unsafe withUnsafeMutableBytes(of: &entries) { bytes -> Int32 in
      let entries = unsafe bytes.baseAddress!.assumingMemoryBound(to: mn_pollfd.self)
      if left == 0 {
        var none = mn_timespec(seconds: 0, nanoseconds: 0)
        return unsafe mn_sys_ppoll(entries, 2, &none, mask)
      }
      return unsafe sleep(entries, 3, left, mask, holding: socket)
    }
    // A socket with a timeout is never restarted (signal(7)).
    if result == -Int32(MN_EINTR) { return unsafe interrupted(socket, number, handled, restarts: timeout == 0) }
    if result <= 0 { return nil }
    if unsafe entries[1].returned != 0 && Loss.check(process) { return .lost }
    unsafe noteShutdown(socket, entries[0])
    return entries[0].returned != 0 ? .ready : nil
  }

  /// libc's ppoll, a cancellation point as the calls are that it stands for; errno is left alone.
  ///
  /// - Parameter socket: what the call holds, and a cancellation lets go.
  static func sleep(
    _ entries: UnsafeMutablePointer<mn_pollfd>, _ count: UInt64, _ left: Int64, _ mask: UnsafePointer<UInt64>?,
    holding socket: SocketPointer?
  ) -> Int32 {
    mn_has_unwind_tables()
    let saved = mn_get_errno()
    let result: Int32
    if left < 0 {
      result = unsafe mn_sleep(entries, count, nil, mask, socket)
    } else {
      var time = mn_timespec(seconds: left / 1_000_000_000, nanoseconds: left % 1_000_000_000)
      result = unsafe mn_sleep(entries, count, &time, mask, socket)
    }
    if result >= 0 { return result }
    let error = mn_get_errno()
    mn_set_errno(saved)
    return -error
  }

  /// Makes the engine signal the eventfd at the next arrival (or when room appears).
  ///
  /// For input, the eventfd is emptied before the word says ARMED: while it says SIGNALLED the engine writes nothing. It is emptied of
  /// the signal for room as well, which would end each sleep; not where another process has a part in the socket, whose epolls could not
  /// be told. Whoever empties it while there is input signals again, for the other
  /// threads that may sleep on it. A waiter for room leaves the eventfd as it is, because it may stand for input.
  ///
  /// - Returns: true when it is safe to sleep: armed, and nothing there yet.
  @inline(never)
  static func arm(_ socket: SocketPointer, _ forInput: Bool) -> Bool {
    let word = unsafe Socket.word(socket, Int(forInput ? MN_OFFSET_ENDPOINT_RX_WAIT : MN_OFFSET_ENDPOINT_TX_WAIT))
    if unsafe isReady(socket, forInput) { return false }
    var consumed = false
    var state = unsafe forInput && socket.pointee.isLoud ? UInt32(MN_WAIT_SIGNALLED) : mn_load_relaxed_u32(word)
    if forInput, unsafe mn_load_relaxed_u32(Socket.word(socket, Int(MN_OFFSET_ENDPOINT_TX_WAIT))) == UInt32(MN_WAIT_SIGNALLED),
      unsafe mn_load_relaxed_u32(Socket.word(socket, Int(MN_OFFSET_ENDPOINT_REFERENCES))) == 1
    {
      state = UInt32(MN_WAIT_SIGNALLED)
    }
    if forInput && state == UInt32(MN_WAIT_SIGNALLED) {
      unsafe socket.pointee.isLoud = false
      consumed = unsafe drain(socket)
      unsafe roomSignalled(socket)
    }
    // Sequentially consistent: the word is visible before the ring is looked at again; pairs with the engine's fence
    // between its publish and its look at the word.
    if state != UInt32(MN_WAIT_ARMED) { _ = unsafe mn_exchange_u32(word, UInt32(MN_WAIT_ARMED)) } else { mn_fence() }
    if unsafe !isReady(socket, forInput) { return true }
    if consumed { unsafe signal(socket, word) }
    return false
  }

  /// Empties the eventfd.
  ///
  /// - Returns: whether something was in it.
  @inline(never)
  static func drain(_ socket: SocketPointer) -> Bool {
    let event = unsafe socket.pointee.event
    var count: UInt64 = 0
    if unsafe mn_sys_read(event, &count, 8) != 8 { return false }
    if unsafe socket.pointee.event == event { return true }
    // Another thread has closed the socket, and the number may be another's by now: what it says is not ours to take.
    _ = unsafe mn_sys_write(event, &count, 8)
    return false
  }

  /// The eventfd may have stood for room in the TX ring, too: those who wait for EPOLLOUT are told by the kernel.
  static func roomSignalled(_ socket: SocketPointer) {
    let word = unsafe Socket.word(socket, Int(MN_OFFSET_ENDPOINT_TX_WAIT))
    guard unsafe mn_load_relaxed_u32(word) == UInt32(MN_WAIT_SIGNALLED) else { return }
    _ = unsafe mn_exchange_u32(word, UInt32(MN_WAIT_AWAKE))
    unsafe Watch.unblockOutput(socket)
  }

  /// On the kernel's loopback a datagram has arrived when its send returns; here the engine may still carry it. A program
  /// that sends to itself and then looks without waiting must find it: so before such a look says "nothing", what this
  /// process sent last is given the time to land. The caller looks again in any case: it may have landed just now.
  static func letLand() {
    for place in 0..<UInt32(MN_SENDERS) {
      guard let sender = unsafe mn_sender(place)?.assumingMemoryBound(to: Socket.self), unsafe sender.pointee.isOffloaded else { continue }
      var limit: UInt64 = 0
      while unsafe sender.pointee.isOffloaded && Socket.hasUnsent(sender) {
        // An engine that was asleep needs some 100 us to be there; one that is away for long is not waited for.
        let now = mn_sys_nanoseconds()
        if limit == 0 { limit = now &+ 20_000_000 } else if now > limit { return }
        _ = mn_sys_yield()
      }
    }
  }

  static func signal(_ socket: SocketPointer, _ word: UnsafeMutableRawPointer) {
    _ = unsafe mn_exchange_u32(word, UInt32(MN_WAIT_SIGNALLED))
    var one: UInt64 = 1
    _ = unsafe mn_sys_write(socket.pointee.event, &one, 8)
  }

  /// A receive is about to say EAGAIN: an eventfd that is still readable from before must not wake the program again.
  static func settle(_ socket: SocketPointer) {
    let word = unsafe Socket.word(socket, Int(MN_OFFSET_ENDPOINT_RX_WAIT))
    if unsafe mn_load_relaxed_u32(word) == UInt32(MN_WAIT_SIGNALLED) { _ = unsafe arm(socket, true) }
  }

  /// A send is about to say EAGAIN: epolls are to tell of room when there is some. (Who polls for it says so then; for nobody's sake the
  /// eventfd would stay readable, and end each sleep of those who poll for input.)
  static func armWritable(_ socket: SocketPointer) {
    if unsafe socket.pointee.watches == nil { return }
    unsafe Watch.blockOutput(socket)
    if unsafe !arm(socket, false) { unsafe Watch.unblockOutput(socket) }
  }
}

/// Which of the program's signal handlers have run on this thread.
struct Handled {
  private let before: mn_handled

  init() { before = mn_handled_now() }
  private init(_ before: mn_handled) { self.before = before }

  /// When the call began that goes on here.
  static var atBegin: Handled { Handled(mn_handled_at_begin()) }

  /// Whether one has since.
  var isChanged: Bool { mn_handled_now().all != before.all }

  /// Whether the kernel would begin a call anew that is interrupted now: all that ran say SA_RESTART. Those that were installed by
  /// a system call are not counted; where none of the others ran, all handlers that there are must say so.
  var restarts: Bool {
    let now = mn_handled_now()
    return now.interrupting == before.interrupting && (now.all != before.all || mn_sys_signals_restart())
  }
}

/// The signals during a wait that every handler ends: let through for the first few looks, then blocked, when only the system calls
/// in between let them through.
struct Signals {
  /// The thread's mask, once they are blocked.
  var mask: UInt64 = 0
  private var areBlocked = false
  private let handled: Handled

  /// - Parameters:
  ///   - call: when the call began.
  ///   - areBlocked: from the beginning, since another mask is the kernel's to put in force.
  init(since call: Handled, areBlocked: Bool) {
    handled = call
    if areBlocked { block() }
  }

  private mutating func block() {
    unsafe mn_sys_signals_block(&mask)
    areBlocked = true
  }

  func restore() { if areBlocked { unsafe withUnsafePointer(to: mask) { unsafe mn_sys_signals_restore($0) } } }

  /// Whether a handler has run.
  ///
  /// - Parameter last: whether this was the last look with signals let through.
  @inline(never)
  mutating func haveCome(last: Bool) -> Bool {
    if areBlocked { return false }
    if last { block() }
    return handled.isChanged
  }
}

/// The time between finding the rings empty and going to sleep.
struct Spinner {
  enum Step { case look, lookAtKernel, over }

  /// How long it may take, ns, and when it ends at the latest, CLOCK_MONOTONIC ns.
  private let spin: UInt64
  private var deadline: UInt64
  private var isStarted = false
  private let yields: Bool
  private var turn: UInt32
  /// The rings are looked at until then before the core is given away again, cycles.
  private var lookUntil: UInt64 = 0
  /// The longest that a yield makes us look, cycles: about what two context switches cost.
  static var longest: UInt64 { 6000 }

  /// As long as half of what a yield took, a context switch: who is waited for may need as long, and giving up too soon costs
  /// two more of them.
  static func lookUntil(_ back: UInt64, since start: UInt64) -> UInt64 { back &+ min((back &- start) / 2, longest) }

  /// - Parameter turn: 2: without the early look at the kernel, until the eighth turn.
  init(_ directory: Directory, deadline: UInt64 = .max, turn: UInt32 = 0) {
    self.turn = turn
    var spin = unsafe Int64(directory.header.pointee.spin_nanoseconds)
    var yields = unsafe directory.header.pointee.yield_while_spinning != 0
    if let process = unsafe process {
      if unsafe process.pointee.spinNanoseconds >= 0 { unsafe spin = process.pointee.spinNanoseconds }
      if unsafe process.pointee.yields >= 0 { unsafe yields = process.pointee.yields != 0 }
    }
    self.spin = UInt64(spin)
    self.deadline = deadline
    self.yields = yields
  }

  /// Whether a look begins by giving the core away.
  var givesWay: Bool { yields && spin > 0 }

  /// Whether it is over. (Mostly what is waited for is there before the clock is read at all.)
  @inline(never)
  private mutating func isOver() -> Bool {
    let now = mn_sys_nanoseconds()
    if !isStarted {
      isStarted = true
      deadline = min(deadline, now &+ spin)
    }
    return now >= deadline
  }

  /// Lets the processor go (or pauses) once.
  @inline(never)
  mutating func step() -> Step {
    if yields {
      let start = mn_cycles()
      if start < lookUntil {
        mn_pause()
        return .look
      }
      turn &+= 1
      _ = mn_sys_yield()
      lookUntil = Spinner.lookUntil(mn_cycles(), since: start)
      if turn & 3 == 0 && isOver() { return .over }
      // Soon for what has come by the shadow, then now and then.
      return turn == 2 || turn & 7 == 0 ? .lookAtKernel : .look
    }
    turn &+= 1
    for _ in 0..<8 { mn_pause() }
    if turn & 15 == 0 && isOver() { return .over }
    return turn & 63 == 0 ? .lookAtKernel : .look
  }
}

/// The daemon's end, as a process notices it.
enum Loss {
  /// How often a process without its daemon looks for a new one, ns.
  static let retry: Int64 = 1_000_000_000

  /// The longest that a call may sleep: for ever, or until the next look for a daemon.
  @inline(never)
  static func limit(_ left: Int64) -> Int64 {
    guard let process = unsafe process, unsafe process.pointee.lostSockets.load(ordering: .relaxed) > 0 else { return left }
    return left < 0 ? retry : min(left, retry)
  }

  /// Asks the control connection; if the daemon has gone, every socket goes back to its shadow.
  ///
  /// - Returns: whether the daemon is gone.
  @inline(never)
  static func check(_ process: ProcessPointer) -> Bool {
    if unsafe !hasGone(process) { return false }
    guard unsafe Lock.acquire(process) else { return true }
    defer { unsafe Lock.release(process) }
    // (Another thread may have noticed before, and have found a new daemon since.)
    if unsafe hasGone(process) { unsafe all(process) }
    return true
  }

  @inline(never)
  private static func hasGone(_ process: ProcessPointer) -> Bool {
    let connection = unsafe Process.connection(process)
    if connection < 0 { return true }
    var entry = mn_pollfd(descriptor: connection, events: 0, returned: 0)
    var none = mn_timespec(seconds: 0, nanoseconds: 0)
    return unsafe mn_sys_ppoll(&entry, 1, &none, nil) > 0 && entry.returned != 0
  }

  /// Every socket goes back to its shadow: the connection has hung up, or its daemon does not answer and must be left, which ends
  /// the channels. The caller holds the process's lock.
  @inline(never)
  static func all(_ process: ProcessPointer) {
    unsafe mn_log(2, "the daemon has gone: every socket goes on through the kernel", 0, 0)
    unsafe Control.lose(process)
    unsafe process.pointee.dropLifelines()
    unsafe process.pointee.lastAttempt = mn_sys_nanoseconds()
    for index in 0..<(unsafe process.pointee.channelCount) {
      unsafe process.pointee.channels[index].full = true
      // (A new daemon counts anew.)
      unsafe process.pointee.channels[index].identifier = 0
    }
    var lost = 0
    unsafe process.pointee.sockets.forEach { socket in
      // (The block that it kept was the old daemon's.)
      unsafe socket.pointee.holdsBlock = false
      if unsafe socket.pointee.retired == .passed {
        unsafe socket.pointee.retired = .forGood
        unsafe Socket.countWatched(socket)
      }
      guard unsafe socket.pointee.isOffloaded else { return }
      lost += 1
      unsafe Socket.flushToShadow(socket)
      unsafe Socket.lose(socket)
    }
    // (Those that an earlier loss took are still to come back.)
    unsafe process.pointee.lostSockets.wrappingAdd(lost, ordering: .relaxed)
  }

  /// A slow daemon is asked again in a second.
  @inline(never)
  static func postpone(_ process: ProcessPointer) {
    unsafe process.pointee.lastAttempt = mn_sys_nanoseconds()
    unsafe process.pointee.lostSockets.wrappingAdd(1, ordering: .relaxed)
  }

  /// Looks for a new daemon, once a second at most, and shows it the sockets that the old one served; or for the answer of a slow
  /// one, and asks it what had to wait.
  @inline(never)
  static func reattach() {
    guard let process = unsafe process, unsafe process.pointee.lostSockets.load(ordering: .relaxed) > 0,
      unsafe mn_sys_nanoseconds() &- process.pointee.lastAttempt >= 1_000_000_000,
      unsafe Lock.acquire(process)
    else { return }
    let found = unsafe Control.finishGreeting(process) && Control.hasCaughtUp(process)
    if found {
      unsafe Process.refreshMask(process)
      // Those that do not come back below count themselves again. (Under the lock: another thread counts what it loses meanwhile.)
      unsafe process.pointee.lostSockets.store(0, ordering: .relaxed)
    }
    unsafe Lock.release(process)
    if !found { return }
    unsafe mn_log(2, "the daemon is back", 0, 0)
    unsafe process.pointee.sockets.forEach { socket in
      let isLost = unsafe socket.pointee.endpoint != nil && socket.pointee.engineLost
      guard unsafe isLost || socket.pointee.awaits, unsafe socket.pointee.fd >= 0 && socket.pointee.retired == .no else { return }
      // What the old rings still hold is delivered first; the next receive tries again.
      if unsafe isLost && Socket.hasInput(socket) {
        unsafe process.pointee.lostSockets.wrappingAdd(1, ordering: .relaxed)
        return
      }
      let known = unsafe Socket.kernelName(socket.pointee.fd, socket.pointee.domain, peer: true)
      let peer = unsafe known == nil ? Socket.peer(socket) ?? .none : .none
      if unsafe socket.pointee.isOffloaded {
        unsafe Socket.reconnect(socket, socket.pointee.fd, stated: peer)
        return
      }
      if unsafe !Socket.attach(socket, socket.pointee.fd, peer: peer) && process.pointee.control < 0 {
        unsafe process.pointee.lostSockets.wrappingAdd(1, ordering: .relaxed)
      }
    }
  }
}
