public import CMachnetABI
public import CTrampoline
import ShimChannel
import Synchronization

/// One registration of one of our sockets in one of the program's epolls.
///
/// The program's epfd stays a kernel epfd. It holds the shadow with the program's own event, and beside it the
/// endpoint's eventfd with a tag that leads here. So even a wait that is not intercepted (an outer epoll, a poll on the
/// epfd) wakes up; the intercepted wait turns the tag into the program's event, or drops it when it is stale.
///
/// Changed under the process's lock, looked at without it.
@safe
struct Watch: ~Copyable {
  /// Counts the changes, in steps of 4. Bit 0: one is under way. Bit 1: a one-shot watch that has fired.
  let state: Atomic<UInt32>
  @Shared var active: Bool
  @Shared var fd: Int32
  private let socketWord: Atomic<SocketPointer?>
  private let epollWord: Atomic<EpollPointer?>
  @Shared var events: UInt32
  @Shared var data: UInt64
  /// `Socket.arrivals` when an edge-triggered watch was last reported.
  let seen: Atomic<UInt64>
  /// The kernel's epoll holds the eventfd.
  @Shared var attached: Bool
  var nextOfSocket: UnsafeMutablePointer<Watch>?
  var nextFree: UnsafeMutablePointer<Watch>?

  static let tag: UInt64 = 0x4d4e << 48
  static let tagMask: UInt64 = 0xffff << 48
  static let changing: UInt32 = 1
  static let fired: UInt32 = 2

  var socket: SocketPointer {
    get { unsafe socketWord.load(ordering: .relaxed).unsafelyUnwrapped }
    nonmutating set { unsafe socketWord.store(newValue, ordering: .relaxed) }
  }
  var epoll: EpollPointer {
    get { unsafe epollWord.load(ordering: .relaxed).unsafelyUnwrapped }
    nonmutating set { unsafe epollWord.store(newValue, ordering: .relaxed) }
  }

  /// What it watches, and how, is about to change (`endChange`); it may fire again then.
  @inline(never)
  func beginChange() { state.bitwiseOr(Watch.changing, ordering: .sequentiallyConsistent) }

  @inline(never)
  func endChange() { state.store((state.load(ordering: .relaxed) & ~3) &+ 4, ordering: .releasing) }
}

typealias WatchPointer = UnsafeMutablePointer<Watch>

/// What the shim knows of an epoll that watches at least one of our sockets.
///
/// Changed under the process's lock, looked at without it; `hot` and `turn` are any waiter's.
@safe
struct Epoll: ~Copyable {
  @Shared var kind: UInt32
  /// Where a socket's `mn_head` says what its trampolines may do alone: nothing.
  @Shared var alone: UInt32
  @Shared var descriptors: UInt32
  /// The descriptor by which it was first seen, or another one that it still has; `hidden` when there is none.
  @Shared var epfd: Int32
  /// Calls that wait in it (`hold`), and the thread that was the last to begin.
  let waiters: Atomic<UInt32>
  @Shared var waiter: UInt32
  /// A descriptor of ours, since the program has closed its last while a call waits; else negative.
  @Shared var hidden: Int32
  /// Watches on sockets that have an endpoint.
  @Shared var attached: Int32
  /// Counts the epolls that have been here: a call that does not hold its own yet may go on after that was closed.
  @Shared var generation: UInt32
  /// Those that were ready lately: looked at without a system call. All others are found through the kernel.
  let hot: InlineArray<16, Atomic<WatchPointer?>>
  let hotNext: Atomic<UInt32>
  @Shared var turn: UInt32
  var nextFree: UnsafeMutablePointer<Epoll>?
}

typealias EpollPointer = UnsafeMutablePointer<Epoll>

/// Pools of watches and epolls: memory that stays what it is, so that a stale tag leads to a watch that says so. Watches are used
/// again in the order in which they ended, and after some others: a wait may be at one still.
private nonisolated(unsafe) var freeWatches: WatchPointer? = nil
private nonisolated(unsafe) var lastFreeWatch: WatchPointer? = nil
private nonisolated(unsafe) var freeWatchCount = 0
private nonisolated(unsafe) var freeEpolls: EpollPointer? = nil

extension Watch {
  /// See `SocketSlab.forget`.
  static func forgetFree() {
    unsafe freeWatches = nil
    unsafe freeWatchCount = 0
    unsafe freeEpolls = nil
  }

  @inline(never)
  private static func free(_ watch: WatchPointer) {
    unsafe watch.pointee.nextFree = nil
    if unsafe freeWatches == nil { unsafe freeWatches = watch } else { unsafe lastFreeWatch.unsafelyUnwrapped.pointee.nextFree = watch }
    unsafe lastFreeWatch = watch
    unsafe freeWatchCount += 1
  }
}

extension Epoll {
  /// The caller holds the process's lock.
  static func make(_ epfd: Int32) -> EpollPointer? {
    let epoll: EpollPointer
    if let free = unsafe freeEpolls {
      unsafe freeEpolls = free.pointee.nextFree
      unsafe epoll = free
    } else {
      // (Zeros are a valid one.)
      guard let raw = unsafe mn_sys_map((MemoryLayout<Epoll>.stride + 4095) & ~4095) else { return nil }
      unsafe epoll = raw.bindMemory(to: Epoll.self, capacity: 1)
    }
    unsafe epoll.pointee.alone = UInt32(MN_RECEIVE_ASK)
    unsafe epoll.pointee.descriptors = 1
    unsafe epoll.pointee.epfd = epfd
    unsafe epoll.pointee.hidden = -1
    unsafe epoll.pointee.attached = 0
    unsafe epoll.pointee.turn = 0
    for index in 0..<16 { unsafe epoll.pointee.hot[index].store(nil, ordering: .relaxed) }
    unsafe epoll.pointee.kind = Kind.epoll
    if unsafe !mn_table_set(epfd, epoll) {
      unsafe epoll.pointee.nextFree = freeEpolls
      unsafe freeEpolls = epoll
      return nil
    }
    unsafe findTwins(epoll)
    return unsafe epoll
  }

  /// Other descriptors of an epoll that the program made before there was anything of ours in it.
  private static func findTwins(_ epoll: EpollPointer) {
    let entry = UnsafeMutableRawPointer(epoll)
    var found = true
    while found {
      found = false
      for index in 0..<mn_twin_count() {
        var from: Int32 = -1
        var to: Int32 = -1
        guard unsafe mn_twin_get(index, &from, &to) else { continue }
        let isFrom = unsafe mn_table_get(from) == entry
        let other = isFrom ? to : from
        // (A twin of a twin is found in the next round.)
        guard unsafe isFrom || mn_table_get(to) == entry, unsafe mn_table_get(other) == nil, unsafe mn_table_set(other, entry)
        else { continue }
        unsafe epoll.pointee.descriptors = epoll.pointee.descriptors &+ 1
        found = true
      }
    }
  }

  /// The program is about to close `fd`, which is no longer in the table. The caller holds the process's lock.
  static func leaving(_ epoll: EpollPointer, _ fd: Int32) {
    guard unsafe epoll.pointee.epfd == fd else { return }
    // (Another thread may be closing the other one.)
    let other = unsafe epoll.pointee.descriptors == 1 ? -1 : otherDescriptor(epoll)
    if other >= 0 {
      unsafe epoll.pointee.epfd = other
    } else if unsafe isWaitedOn(epoll) {
      let hidden = Process.copy(fd)
      unsafe epoll.pointee.hidden = hidden
      unsafe epoll.pointee.epfd = hidden
    }
  }

  /// The program has closed an epfd. Its watches end with the last descriptor, and the last call that waits. The caller holds the
  /// process's lock.
  static func closed(_ epoll: EpollPointer, _ process: ProcessPointer) {
    unsafe epoll.pointee.descriptors = epoll.pointee.descriptors &- 1
    // The descriptor is gone before the waiters are looked at: pairs with `letGo`. One of the two ends the epoll.
    mn_fence()
    if unsafe epoll.pointee.descriptors == 0 && !isWaitedOn(epoll) { unsafe end(epoll, process) }
  }

  /// No descriptor is left, and no call waits. The caller holds the process's lock.
  @inline(never)
  private static func end(_ epoll: EpollPointer, _ process: ProcessPointer) {
    unsafe process.pointee.sockets.forEach { socket in
      var at = unsafe socket.pointee.watches
      while let watch = unsafe at {
        unsafe at = watch.pointee.nextOfSocket
        if unsafe watch.pointee.epoll == epoll { unsafe Watch.remove(watch) }
      }
    }
    Process.drop(unsafe epoll.pointee.hidden)
    unsafe epoll.pointee.kind = Kind.free
    unsafe epoll.pointee.generation = epoll.pointee.generation &+ 1
    unsafe epoll.pointee.nextFree = freeEpolls
    unsafe freeEpolls = epoll
  }

  /// Another descriptor of an epoll that has one.
  private static func otherDescriptor(_ epoll: EpollPointer) -> Int32 {
    for fd in 0..<Int32(bitPattern: mn_table_used()) where unsafe mn_table_get(fd) == UnsafeMutableRawPointer(epoll) { return fd }
    return -1
  }

  @inline(never)
  func warm(_ watch: WatchPointer) {
    for index in 0..<16 where unsafe hot[index].load(ordering: .relaxed) == watch { return }
    let place = hotNext.wrappingAdd(1, ordering: .relaxed).oldValue
    unsafe hot[Int(place & 15)].store(watch, ordering: .relaxed)
  }

  @inline(never)
  func cool(_ watch: WatchPointer) {
    for index in 0..<16 where unsafe hot[index].load(ordering: .relaxed) == watch { unsafe hot[index].store(nil, ordering: .relaxed) }
  }
}

/// Calls that wait, as those on a socket (`Socket.hold`). They ask by the program's number as long as it is the epoll's, so that
/// a wait costs no system call more; by a hidden one only when that has been closed.
extension Epoll {
  /// A call on `epfd` begins to wait; signals are blocked. Until `letGo` the epoll stays what it is, closed or not.
  ///
  /// - Returns: false when `epfd` has been closed before, and nothing is held.
  @inline(never)
  static func hold(_ epoll: EpollPointer, _ epfd: Int32) -> Bool {
    unsafe epoll.pointee.waiters.wrappingAdd(1, ordering: .relaxed)
    unsafe epoll.pointee.waiter = mn_thread_id()
    // The waiter is counted before the table is looked at: pairs with the fence of `leaving`. One of the two sees the other.
    mn_fence()
    if unsafe mn_table_get(epfd) == UnsafeMutableRawPointer(epoll) { return true }
    unsafe letGo(epoll)
    return false
  }

  /// Whether some call waits. (One of this very thread does not: see `Socket.isWaitedOn`.)
  private static func isWaitedOn(_ epoll: EpollPointer) -> Bool {
    let count = unsafe epoll.pointee.waiters.load(ordering: .relaxed)
    return unsafe count > 1 || count == 1 && epoll.pointee.waiter != mn_thread_id()
  }

  /// The number by which a call that holds the epoll asks the kernel.
  @inline(never)
  static func number(_ epoll: EpollPointer, _ epfd: Int32) -> Int32 {
    unsafe mn_table_get(epfd) == UnsafeMutableRawPointer(epoll) ? epfd : epoll.pointee.epfd
  }

  /// A call waits no more. Also what runs when its thread is cancelled.
  @inline(never)
  static func letGo(_ epoll: EpollPointer) {
    let before = unsafe epoll.pointee.waiters.wrappingSubtract(1, ordering: .releasing).oldValue
    // (Pairs with `closed`.)
    mn_fence()
    guard unsafe before == 1 && epoll.pointee.descriptors == 0, let process = unsafe process, unsafe Lock.acquire(process) else { return }
    defer { unsafe Lock.release(process) }
    guard unsafe epoll.pointee.kind == Kind.epoll && epoll.pointee.descriptors == 0 else { return }
    if unsafe epoll.pointee.waiters.load(ordering: .relaxed) == 0 { unsafe end(epoll, process) }
  }

  /// In a forked child: the threads that waited in the epolls of a socket are the parent's.
  static func forgetWaiters(_ socket: SocketPointer) {
    var at = unsafe socket.pointee.watches
    while let watch = unsafe at {
      // (One that `letGo` ends still leads to the next.)
      unsafe at = watch.pointee.nextOfSocket
      let epoll = unsafe watch.pointee.epoll
      while unsafe epoll.pointee.waiters.load(ordering: .relaxed) != 0 { unsafe letGo(epoll) }
    }
  }
}

@c(mn_hook_epoll_cancelled)
public func epollCancelled(_ epoll: UnsafeMutableRawPointer) { unsafe Epoll.letGo(epoll.assumingMemoryBound(to: Epoll.self)) }

extension Watch {
  /// The caller holds the process's lock.
  static func make(_ socket: SocketPointer, _ epoll: EpollPointer, _ fd: Int32, _ events: UInt32, _ data: UInt64) -> WatchPointer? {
    let count = 64
    if unsafe freeWatchCount <= count / 2 {
      // (Zeros are a valid one.)
      guard let raw = unsafe mn_sys_map(count * MemoryLayout<Watch>.stride) else { return nil }
      let block = unsafe raw.bindMemory(to: Watch.self, capacity: count)
      for index in 0..<count { unsafe free(block + index) }
    }
    let watch = unsafe freeWatches.unsafelyUnwrapped
    unsafe freeWatches = watch.pointee.nextFree
    unsafe freeWatchCount -= 1
    unsafe watch.pointee.beginChange()
    unsafe watch.pointee.fd = fd
    unsafe watch.pointee.socket = socket
    unsafe watch.pointee.epoll = epoll
    unsafe watch.pointee.events = events
    unsafe watch.pointee.data = data
    unsafe watch.pointee.attached = false
    unsafe watch.pointee.active = true
    unsafe watch.pointee.endChange()
    unsafe watch.pointee.nextOfSocket = socket.pointee.watches
    unsafe socket.pointee.watches = watch
    if unsafe socket.pointee.hasLiveRings { unsafe attach(watch) }
    return unsafe watch
  }

  static func find(_ socket: SocketPointer, _ epoll: EpollPointer, _ fd: Int32) -> WatchPointer? {
    var at = unsafe socket.pointee.watches
    while let watch = unsafe at {
      if unsafe watch.pointee.epoll == epoll && watch.pointee.fd == fd { return unsafe watch }
      unsafe at = watch.pointee.nextOfSocket
    }
    return nil
  }

  /// The eventfd joins the shadow in the kernel's epoll, armed from the start.
  private static func attach(_ watch: WatchPointer) {
    let socket = unsafe watch.pointee.socket
    let epoll = unsafe watch.pointee.epoll
    let epfd = unsafe descriptor(of: epoll)
    unsafe withEvent(MN_POLLIN | Int(watch.pointee.events & UInt32(MN_EPOLLEXCLUSIVE)), tag | UInt64(UInt(bitPattern: watch))) {
      // EEXIST: another descriptor of the same socket is in this epoll; its watch serves both.
      _ = unsafe mn_sys_epoll_ctl(epfd, Int32(MN_EPOLL_CTL_ADD), socket.pointee.event, $0)
    }
    if unsafe epoll.pointee.attached == 0, let process = unsafe process {
      // The daemon's end must wake the program: a connection that hangs up is always reported.
      unsafe withEvent(0, tag) {
        _ = unsafe mn_sys_epoll_ctl(epfd, Int32(MN_EPOLL_CTL_ADD), Process.connection(process), $0)
      }
    }
    // A watch is reported for what is there already, edge-triggered or not.
    unsafe watch.pointee.seen.store(Socket.arrivals(socket) &- 1, ordering: .relaxed)
    unsafe watch.pointee.attached = true
    unsafe epoll.pointee.attached = epoll.pointee.attached &+ 1
    unsafe epoll.pointee.warm(watch)
    if unsafe !Wait.arm(socket, true) {
      unsafe Wait.signal(socket, Socket.word(socket, Int(MN_OFFSET_ENDPOINT_RX_WAIT)))
    }
  }

  /// A socket that epolls watch already has got its endpoint.
  static func attached(_ socket: SocketPointer) {
    var at = unsafe socket.pointee.watches
    while let watch = unsafe at {
      unsafe attach(watch)
      unsafe at = watch.pointee.nextOfSocket
    }
  }

  /// A socket has lost its engine, and its rings are empty: the shadow alone is watched.
  static func leave(_ socket: SocketPointer) {
    var at = unsafe socket.pointee.watches
    while let watch = unsafe at {
      unsafe detach(watch)
      unsafe at = watch.pointee.nextOfSocket
    }
  }

  @inline(never)
  private static func detach(_ watch: WatchPointer) {
    let epoll = unsafe watch.pointee.epoll
    unsafe epoll.pointee.cool(watch)
    guard unsafe watch.pointee.attached else { return }
    unsafe watch.pointee.attached = false
    unsafe epoll.pointee.attached = epoll.pointee.attached &- 1
    _ = unsafe mn_sys_epoll_ctl(descriptor(of: epoll), Int32(MN_EPOLL_CTL_DEL), watch.pointee.socket.pointee.event, nil)
  }

  /// The caller holds the process's lock.
  @inline(never)
  static func remove(_ watch: WatchPointer) {
    let socket = unsafe watch.pointee.socket
    if unsafe socket.pointee.watches == watch {
      unsafe socket.pointee.watches = watch.pointee.nextOfSocket
    } else {
      var at = unsafe socket.pointee.watches
      while let other = unsafe at {
        if unsafe other.pointee.nextOfSocket == watch { unsafe other.pointee.nextOfSocket = watch.pointee.nextOfSocket }
        unsafe at = other.pointee.nextOfSocket
      }
    }
    unsafe detach(watch)
    unsafe watch.pointee.beginChange()
    unsafe watch.pointee.active = false
    unsafe watch.pointee.endChange()
    unsafe free(watch)
  }

  /// The program closes `descriptor`. A registration lasts as long as its open file (epoll(7)): it ends with the last
  /// descriptor. One whose own descriptor is gone can no longer be modified, here as on the kernel.
  static func closed(_ socket: SocketPointer, descriptor: Int32, last: Bool) {
    var at = unsafe socket.pointee.watches
    while let watch = unsafe at {
      unsafe at = watch.pointee.nextOfSocket
      if last {
        unsafe remove(watch)
      } else if unsafe watch.pointee.fd == descriptor {
        unsafe watch.pointee.fd = -1
      }
    }
  }

  /// Sends say EAGAIN: the kernel, whose own send buffer is empty, must not report EPOLLOUT meanwhile.
  static func blockOutput(_ socket: SocketPointer) { unsafe showOutput(socket, false) }

  /// There is room again. Changing the registration makes the kernel report the edge anew.
  static func unblockOutput(_ socket: SocketPointer) { unsafe showOutput(socket, true) }

  @inline(never)
  private static func showOutput(_ socket: SocketPointer, _ shown: Bool) {
    if unsafe socket.pointee.watches == nil { return }
    guard let process = unsafe process else { return }
    // (Already held: by a caller, or by what a signal handler has interrupted, and then the list is whole at every instruction.)
    let locked = unsafe Lock.acquire(process)
    defer { if locked { unsafe Lock.release(process) } }
    var at = unsafe socket.pointee.watches
    while let watch = unsafe at {
      if unsafe watch.pointee.events & UInt32(MN_POLLOUT) != 0 && watch.pointee.state.load(ordering: .relaxed) & fired == 0 {
        unsafe withEvent(Int(shown ? watch.pointee.events : watch.pointee.events & ~UInt32(MN_POLLOUT)), watch.pointee.data) {
          _ = unsafe mn_sys_epoll_ctl(descriptor(of: watch.pointee.epoll), Int32(MN_EPOLL_CTL_MOD), watch.pointee.fd, $0)
        }
      }
      unsafe at = watch.pointee.nextOfSocket
    }
  }

  /// A one-shot watch has fired: neither shadow nor eventfd report until it is modified.
  static func silence(_ watch: WatchPointer) {
    let epfd = unsafe descriptor(of: watch.pointee.epoll)
    unsafe withEvent(0, watch.pointee.data) {
      _ = unsafe mn_sys_epoll_ctl(epfd, Int32(MN_EPOLL_CTL_MOD), watch.pointee.fd, $0)
      _ = unsafe mn_sys_epoll_ctl(epfd, Int32(MN_EPOLL_CTL_MOD), watch.pointee.socket.pointee.event, $0)
    }
  }

  /// The program modified the registration: armed and reported afresh.
  static func modify(_ watch: WatchPointer, _ events: UInt32, _ data: UInt64) {
    let socket = unsafe watch.pointee.socket
    let hadFired = unsafe watch.pointee.state.load(ordering: .relaxed) & fired != 0
    unsafe watch.pointee.beginChange()
    unsafe watch.pointee.events = events
    unsafe watch.pointee.data = data
    if unsafe watch.pointee.attached { unsafe watch.pointee.seen.store(Socket.arrivals(socket) &- 1, ordering: .relaxed) }
    unsafe watch.pointee.endChange()
    guard unsafe watch.pointee.attached else { return }
    if hadFired {
      unsafe withEvent(MN_POLLIN, tag | UInt64(UInt(bitPattern: watch))) {
        _ = unsafe mn_sys_epoll_ctl(descriptor(of: watch.pointee.epoll), Int32(MN_EPOLL_CTL_MOD), socket.pointee.event, $0)
      }
    }
    unsafe watch.pointee.epoll.pointee.warm(watch)
  }

  private static func withEvent(_ bits: Int, _ data: UInt64, _ body: (UnsafeMutableRawPointer) -> Void) {
    var event: (UInt64, UInt64) = (0, 0)
    unsafe withUnsafeMutableBytes(of: &event) {
      unsafe mn_epoll_event_set($0.baseAddress!, UInt32(truncatingIfNeeded: bits), data)
      unsafe body($0.baseAddress!)
    }
  }

  /// A descriptor by which the kernel knows the epoll.
  private static func descriptor(of epoll: EpollPointer) -> Int32 { unsafe epoll.pointee.epfd }
}

@c(mn_hook_epoll_ctl)
public func epollControl(
  _ entry: UnsafeMutableRawPointer, _ epfd: Int32, _ operation: Int32, _ fd: Int32, _ event: UnsafeMutableRawPointer?
) -> Int32 {
  let result = unsafe mn_real_epoll_ctl(epfd, operation, fd, event)
  guard result == 0, let process = unsafe process, let socket = unsafe Socket.from(entry) else { return result }
  guard unsafe Lock.acquire(process) else { return result }
  defer { unsafe Lock.release(process) }
  // Another thread may have closed the socket meanwhile, or added the first one to this epoll.
  guard unsafe mn_table_get(fd) == entry else { return result }
  var known: EpollPointer? = nil
  if let epollEntry = unsafe mn_table_get(epfd), UInt(bitPattern: epollEntry) > 1,
    unsafe mn_load_relaxed_u32(epollEntry) == Kind.epoll
  {
    unsafe known = epollEntry.assumingMemoryBound(to: Epoll.self)
  }
  var bits: UInt32 = 0
  var data: UInt64 = 0
  if let event = unsafe event { unsafe mn_epoll_event_get(event, &bits, &data) }
  switch Int(operation) {
  case MN_EPOLL_CTL_ADD:
    guard let epoll = unsafe known ?? Epoll.make(epfd) else { return result }
    _ = unsafe Watch.make(socket, epoll, fd, bits, data)
  case MN_EPOLL_CTL_MOD:
    if let epoll = unsafe known, let watch = unsafe Watch.find(socket, epoll, fd) { unsafe Watch.modify(watch, bits, data) }
  case MN_EPOLL_CTL_DEL:
    if let epoll = unsafe known, let watch = unsafe Watch.find(socket, epoll, fd) { unsafe Watch.remove(watch) }
  default:
    break
  }
  return result
}

/// One epoll_wait of the program.
@safe
private struct EpollWait {
  let epoll: EpollPointer
  let epfd: Int32
  var generation: UInt32
  let events: UnsafeMutableRawPointer
  let capacity: Int32
  var count: Int32 = 0
  /// Which of the first 64 events came from a watch: the shadow's own event of that socket may join them.
  private var ours: UInt64 = 0

  init(epoll: EpollPointer, epfd: Int32, events: UnsafeMutableRawPointer, capacity: Int32) {
    unsafe self.epoll = epoll
    self.epfd = epfd
    generation = unsafe epoll.pointee.generation
    unsafe self.events = events
    self.capacity = capacity
  }

  /// Asks the kernel; the call holds the epoll.
  ///
  /// - Returns: as epoll_pwait2(2).
  @inline(never)
  func ask(_ timeout: Int64, _ mask: UnsafeRawPointer?) -> Int32 {
    while true {
      let number = unsafe Epoll.number(epoll, epfd)
      let reported = unsafe mn_epoll_sleep(number, events, capacity, timeout, mask, epoll)
      // (Closed just before the kernel looked.)
      if unsafe reported >= 0 || mn_get_errno() != Int32(MN_EBADF) || Epoll.number(epoll, epfd) == number { return reported }
    }
  }

  func event(_ index: Int32) -> UnsafeMutableRawPointer { unsafe mn_epoll_event_at(events, index) }

  /// What a watch has to report, and by which name; nil: nothing. What is to be told once is told to one waiter.
  @inline(never)
  func report(_ watch: WatchPointer) -> (bits: UInt32, data: UInt64)? {
    // Acquire: what is read below is of this state, if it is the state still at the end.
    let state = unsafe watch.pointee.state.load(ordering: .acquiring)
    guard state & (Watch.changing | Watch.fired) == 0, unsafe watch.pointee.active && watch.pointee.epoll == epoll else { return nil }
    let socket = unsafe watch.pointee.socket
    let events = unsafe watch.pointee.events
    let data = unsafe watch.pointee.data
    let seen = unsafe watch.pointee.seen.load(ordering: .relaxed)
    guard unsafe Socket.hasInput(socket) else { return nil }
    let arrivals = unsafe Socket.arrivals(socket)
    let isEdgeTriggered = events & MN_EPOLLET != 0
    if isEdgeTriggered && arrivals == seen { return nil }
    var bits = events & UInt32(MN_POLLIN | MN_POLLRDNORM)
    // An event tells everything that is so and was asked for, room included.
    let room = events & UInt32(MN_POLLOUT | MN_POLLWRNORM | MN_POLLWRBAND)
    if unsafe room != 0 && socket.pointee.isOffloaded && Socket.hasRoom(socket) { bits |= room }
    // EPOLLERR is always reported.
    if unsafe mn_load_relaxed_u32(Socket.word(socket, Int(MN_OFFSET_ENDPOINT_ERROR))) != 0 { bits |= UInt32(MN_POLLERR) }
    if bits == 0 { return nil }
    // Another thread may have removed it, and added another registration in its place, or may have reported it: then it is the other's.
    if events & UInt32(MN_EPOLLONESHOT) != 0 {
      guard unsafe isCurrent && watch.pointee.state.compareExchange(
        expected: state, desired: state | Watch.fired, ordering: .acquiringAndReleasing).exchanged
      else { return nil }
      unsafe Watch.silence(watch)
      return (bits, data)
    }
    atomicMemoryFence(ordering: .acquiring)
    guard isCurrent, unsafe watch.pointee.state.load(ordering: .relaxed) == state else { return nil }
    if isEdgeTriggered, unsafe !watch.pointee.seen.compareExchange(expected: seen, desired: arrivals, ordering: .relaxed).exchanged {
      return nil
    }
    return (bits, data)
  }

  /// Whether the epoll is the one that is waited on: another thread may have closed it since, and its place is another's.
  private var isCurrent: Bool { unsafe epoll.pointee.generation == generation }

  @inline(never)
  mutating func emit(_ bits: UInt32, _ data: UInt64) {
    unsafe mn_epoll_event_set(event(count), bits, data)
    if count < 64 { ours |= 1 << UInt64(count) }
    count += 1
  }

  /// Looks at the hot watches, starting where the last look ended, so that a small capacity starves nobody.
  mutating func collect() {
    let start = unsafe Int(epoll.pointee.turn & 15)
    for step in 0..<16 {
      if count == capacity { return }
      guard let watch = unsafe epoll.pointee.hot[(start + step) & 15].load(ordering: .relaxed) else { continue }
      if let (bits, data) = unsafe report(watch) { emit(bits, data) }
    }
  }

  /// Turns what the kernel reported behind the first `count` events into the program's events.
  @inline(never)
  mutating func translate(_ reported: Int32, _ process: ProcessPointer) {
    let own = count
    for index in 0..<reported {
      var bits: UInt32 = 0
      var data: UInt64 = 0
      unsafe mn_epoll_event_get(event(own + index), &bits, &data)
      if data == Watch.tag {
        _ = unsafe Loss.check(process)
      } else if data & Watch.tagMask == Watch.tag {
        // (A tag that another thread's close has overtaken may lead to the watch of another socket by now.)
        guard let watch = unsafe WatchPointer(bitPattern: UInt(data & ~Watch.tagMask)),
          unsafe watch.pointee.attached && watch.pointee.epoll == epoll
        else { continue }
        unsafe woken(watch)
      } else {
        // The shadow's event joins the one that its rings gave.
        var merged = false
        for earlier in 0..<count where earlier >= 64 || ours >> UInt64(earlier) & 1 != 0 {
          var earlierBits: UInt32 = 0
          var earlierData: UInt64 = 0
          unsafe mn_epoll_event_get(event(earlier), &earlierBits, &earlierData)
          if earlierData == data {
            unsafe mn_epoll_event_set(event(earlier), earlierBits | bits, data)
            merged = true
            break
          }
        }
        if !merged {
          unsafe mn_epoll_event_set(event(count), bits, data)
          count += 1
        }
      }
    }
  }

  func hasTag(_ reported: Int32) -> Bool {
    for index in 0..<reported {
      var bits: UInt32 = 0
      var data: UInt64 = 0
      unsafe mn_epoll_event_get(event(index), &bits, &data)
      if data & Watch.tagMask == Watch.tag { return true }
    }
    return false
  }

  /// The eventfd of a watched socket is readable.
  private mutating func woken(_ watch: WatchPointer) {
    let socket = unsafe watch.pointee.socket
    unsafe epoll.pointee.warm(watch)
    unsafe Wait.roomSignalled(socket)
    let word = unsafe Socket.word(socket, Int(MN_OFFSET_ENDPOINT_RX_WAIT))
    if unsafe watch.pointee.events & MN_EPOLLET != 0 {
      // One edge, one wake-up: armed again whether or not the program has drained the ring.
      _ = unsafe Wait.drain(socket)
      _ = unsafe mn_exchange_u32(word, UInt32(MN_WAIT_ARMED))
    } else if unsafe Wait.arm(socket, true) {
      // Stale: the program has taken everything since. If only room was signalled, the eventfd may still be readable.
      _ = unsafe Wait.drain(socket)
      if unsafe !Socket.hasInput(socket) { return }
      unsafe Wait.signal(socket, word)
    }
    guard let (bits, data) = unsafe report(watch) else { return }
    for index in 0..<count {
      var earlierBits: UInt32 = 0
      var earlierData: UInt64 = 0
      unsafe mn_epoll_event_get(event(index), &earlierBits, &earlierData)
      if earlierData == data {
        unsafe mn_epoll_event_set(event(index), earlierBits | bits, earlierData)
        return
      }
    }
    emit(bits, data)
  }
}

/// The kernel has told of `told` events of an epoll that had nothing of ours when it was asked, and has now.
///
/// - Returns: as epoll_wait. (Where nothing is left of them, the time begins anew.)
@c(mn_hook_epoll_told)
public func epollTold(
  _ entry: UnsafeMutableRawPointer, _ epfd: Int32, _ events: UnsafeMutableRawPointer, _ capacity: Int32, _ told: Int32, _ timeout: Int64,
  _ mask: UnsafeRawPointer?
) -> Int32 {
  guard unsafe mn_load_relaxed_u32(entry) == Kind.epoll, let process = unsafe process else { return told }
  var wait = unsafe EpollWait(epoll: entry.assumingMemoryBound(to: Epoll.self), epfd: epfd, events: events, capacity: capacity)
  if !wait.hasTag(told) { return told }
  unsafe wait.translate(told, process)
  return wait.count > 0 ? wait.count : unsafe epollWait(entry, epfd, events, capacity, timeout, mask)
}

@c(mn_hook_epoll_wait)
public func epollWait(
  _ entry: UnsafeMutableRawPointer, _ epfd: Int32, _ events: UnsafeMutableRawPointer?, _ capacity: Int32, _ timeout: Int64,
  _ mask: UnsafeRawPointer?
) -> Int32 {
  guard unsafe mn_load_relaxed_u32(entry) == Kind.epoll, let process = unsafe process, capacity > 0,
    let events = unsafe events, let directory = unsafe process.pointee.directory
  else { return unsafe mn_real_epoll_wait(epfd, events, capacity, timeout, mask) }
  let call = Handled()
  let epoll = unsafe entry.assumingMemoryBound(to: Epoll.self)
  Loss.reattach()
  if unsafe epoll.pointee.attached == 0 && process.pointee.lostSockets.load(ordering: .relaxed) == 0 {
    let told = unsafe mn_real_epoll_wait(epfd, events, capacity, timeout, mask)
    return unsafe told > 0 ? epollTold(entry, epfd, events, capacity, told, timeout, mask) : told
  }

  var wait = unsafe EpollWait(epoll: epoll, epfd: epfd, events: events, capacity: capacity)
  unsafe epoll.pointee.turn = epoll.pointee.turn &+ 1
  let saved = mn_get_errno()
  // Descriptors of the kernel, and sockets that are not hot, get their turn under any load: the kernel, which knows of
  // all of them and serves them in turn, is asked first now and then. (What it does not tell is told below.)
  if unsafe epoll.pointee.turn & 7 == 0 {
    let reported = unsafe mn_real_epoll_wait(epfd, events, capacity, 0, nil)
    if reported > 0 { unsafe wait.translate(reported, process) }
    mn_set_errno(saved)
    if wait.count > 0 { return wait.count }
  }
  wait.collect()
  if wait.count > 0 { return wait.count }
  if timeout == 0 {
    Wait.letLand()
    wait.collect()
    if wait.count > 0 { return wait.count }
    while true {
      let reported = unsafe mn_real_epoll_wait(epfd, events, capacity, 0, mask)
      if reported <= 0 { return reported }
      unsafe wait.translate(reported, process)
      // Where there is little room, an eventfd that had nothing to say may have taken it.
      if wait.count > 0 || reported < capacity {
        mn_set_errno(saved)
        return wait.count
      }
    }
  }

  let deadline = timeout < 0 ? UInt64.max : mn_sys_nanoseconds() &+ UInt64(timeout)
  var spinner = Spinner(directory, deadline: deadline)
  var signals = unsafe Signals(since: call, areBlocked: mask != nil)
  var isHeld = false
  defer {
    if isHeld { unsafe Epoll.letGo(epoll) }
    signals.restore()
  }
  while true {
    let step = spinner.step()
    wait.collect()
    if wait.count > 0 { return wait.count }
    if signals.haveCome(last: step != .look) {
      mn_set_errno(Int32(MN_EINTR))
      return -1
    }
    if step != .look && !isHeld {
      isHeld = unsafe Epoll.hold(epoll, epfd)
      // Closed meanwhile: as a call that begins only now, whatever file the number means.
      if !isHeld {
        return unsafe withUnsafePointer(to: signals.mask) { open in
          let mask = unsafe mask ?? UnsafeRawPointer(open)
          guard let entry = unsafe mn_table_get(epfd), UInt(bitPattern: entry) > 1 else {
            return unsafe mn_real_epoll_wait(epfd, events, capacity, timeout, mask)
          }
          return unsafe epollWait(entry, epfd, events, capacity, timeout, mask)
        }
      }
      // (By the same number another epoll may have taken the place of a closed one: then it is that which is held.)
      unsafe wait.generation = epoll.pointee.generation
    }
    if step == .over { break }
    if step == .lookAtKernel {
      let reported = unsafe wait.ask(0, nil)
      if reported > 0 { unsafe wait.translate(reported, process) }
      if wait.count > 0 { return wait.count }
    }
  }
  while true {
    var left: Int64 = -1
    if deadline != UInt64.max {
      let now = mn_sys_nanoseconds()
      left = now >= deadline ? 0 : Int64(deadline - now)
    }
    // Every watched endpoint is armed, or its eventfd is readable and this returns at once.
    let reported = unsafe withUnsafePointer(to: &signals.mask) { open in
      unsafe wait.ask(Loss.limit(left), mask ?? UnsafeRawPointer(open))
    }
    if reported < 0 { return reported }
    unsafe wait.translate(reported, process)
    Loss.reattach()
    // Only when the kernel had nothing: a socket is reported once per call.
    if wait.count == 0 { wait.collect() }
    if wait.count > 0 || left == 0 {
      mn_set_errno(saved)
      return wait.count
    }
  }
}
