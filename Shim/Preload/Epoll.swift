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
/// What is to be told once (EPOLLONESHOT) has a tag at the shadow, too: whichever way is told first, the other must know.
///
/// Changed under the process's lock, looked at without it.
@safe
struct Watch: ~Copyable {
  /// Counts the changes, in steps of 4. Bit 0: one is under way. Bit 1: a one-shot watch that has fired.
  let state: Atomic<UInt32>
  @Shared var active: Bool
  /// How often the process had been forked from another when it was made: what is registered from before is another's, too.
  @Shared var forks: UInt32
  @Shared var fd: Int32
  private let socketWord: Atomic<SocketPointer?>
  private let epollWord: Atomic<EpollPointer?>
  @Shared var events: UInt32
  @Shared var data: UInt64
  /// `Socket.arrivals` when an edge-triggered watch was last reported.
  let seen: Atomic<UInt64>
  /// Not reported since it was registered or modified: the kernel has an edge of its own to tell with the first.
  @Shared var isFresh: Bool
  /// The kernel's epoll holds the eventfd.
  @Shared var attached: Bool
  private let nextWord: Atomic<UnsafeMutablePointer<Watch>?>
  var nextFree: UnsafeMutablePointer<Watch>?

  /// With the watch's address below it, and where it is the shadow's 1 and the count of changes (bits 1 and 2).
  private static let tag = UInt64(MN_EPOLL_TAG) << 48
  private static let tagMask: UInt64 = 0xffff << 48
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

  var nextOfSocket: WatchPointer? {
    get { unsafe nextWord.load(ordering: .relaxed) }
    nonmutating set { unsafe nextWord.store(newValue, ordering: .relaxed) }
  }

  /// Told once for each arrival, if at all.
  var isEdge: Bool { events & MN_EPOLLET != 0 || events & UInt32(MN_POLLIN | MN_POLLRDNORM) == 0 }

  /// What it watches, and how, is about to change (`endChange`); it may fire again then.
  @inline(never)
  func beginChange() { state.bitwiseOr(Watch.changing, ordering: .sequentiallyConsistent) }

  @inline(never)
  func endChange() { state.store((state.load(ordering: .relaxed) & ~3) &+ 4, ordering: .releasing) }

  /// The data of the shadow's event.
  ///
  /// - Parameter changes: how many are still to come before it is registered.
  static func shadowData(_ watch: WatchPointer, _ events: UInt32, _ data: UInt64, changes: UInt32) -> UInt64 {
    if events & UInt32(MN_EPOLLONESHOT) == 0 { return data }
    unsafe mn_epoll_tag(watch.pointee.epoll)
    return unsafe tag | UInt64(UInt(bitPattern: watch)) | UInt64((watch.pointee.state.load(ordering: .relaxed) >> 1 &+ changes &* 2) & 6) | 1
  }

  /// What leads to the daemon's connection.
  static func tag(of process: ProcessPointer) -> UInt64 { tag | UInt64(UInt(bitPattern: process)) }

  /// The watch that an event of the kernel's leads to; nil: the data are the program's own.
  static func from(_ data: UInt64) -> WatchPointer? {
    guard data & tagMask == tag, let process = unsafe process else { return nil }
    let address = UInt(data & ~tagMask & ~7)
    for index in 0..<Watch.blocks {
      guard let block = unsafe process.pointee.watchBlocks[index].load(ordering: .relaxed) else { return nil }
      let offset = address &- UInt(bitPattern: block)
      if offset < UInt(blockSize(index)) && offset % UInt(MemoryLayout<Watch>.stride) == 0 { return unsafe WatchPointer(bitPattern: address) }
    }
    return nil
  }

  /// Blocks double.
  static var blocks: Int { 20 }
  private static func blockSize(_ index: Int) -> Int { (64 * MemoryLayout<Watch>.stride) << index }
}

typealias WatchPointer = UnsafeMutablePointer<Watch>

/// What the shim knows of an epoll, since the program waits in it or has one of our sockets watched by it.
///
/// Changed under the process's lock, looked at without it; `hot` and `turn` are any waiter's. The trampolines see the first words
/// (`mn_epoll`).
@safe
struct Epoll: ~Copyable {
  @Shared var kind: UInt32
  /// Where a socket's `mn_head` says what its trampolines may do alone: nothing. (Both for good.)
  @Shared var quick: UInt32
  @Shared var receive: UInt32
  /// Whether an event that leads to a watch has ever been registered, for this epoll or one that was here before (`mn_epoll_tag`): never
  /// taken back, so that who finds 0 behind a call knows that none was told by it.
  @Shared var tagged: UInt32
  /// Calls that wait in it (`hold`), and the thread that was the last to begin.
  let waiters: Atomic<UInt32>
  @Shared var waiter: UInt32
  @Shared var descriptors: UInt32
  @Shared var idle: UInt32
  /// Watches on sockets that have an endpoint.
  @Shared var attached: Int32
  /// A descriptor of ours, which nobody else closes: by it the kernel is asked.
  @Shared var hidden: Int32
  /// Counts the epolls that have been here: a call that does not hold its own yet may go on after that was closed.
  @Shared var generation: UInt32
  /// Those that were ready lately: looked at without a system call. All others are found through the kernel.
  let hot: InlineArray<16, Atomic<WatchPointer?>>
  let hotNext: Atomic<UInt32>
  @Shared var turn: UInt32
  var nextFree: UnsafeMutablePointer<Epoll>?
  var nextOfAll: UnsafeMutablePointer<Epoll>?
}

typealias EpollPointer = UnsafeMutablePointer<Epoll>

/// Pools of watches and epolls: memory that stays what it is, so that a stale tag leads to a watch that says so. Watches are used
/// again in the order in which they ended, and after some others: a wait may be at one still.
private nonisolated(unsafe) var freeWatches: WatchPointer? = nil
private nonisolated(unsafe) var lastFreeWatch: WatchPointer? = nil
private nonisolated(unsafe) var freeWatchCount = 0
private nonisolated(unsafe) var freeEpolls: EpollPointer? = nil
private nonisolated(unsafe) var allEpolls: EpollPointer? = nil

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
  /// The epoll that a number means: one that is known, perhaps by another number, or a new one. All that the process knows hold the
  /// marker, so that one call tells. The caller holds the process's lock.
  ///
  /// - Returns: nil when it is no epoll, or no memory or descriptor is left.
  @inline(never)
  static func meet(_ epfd: Int32, _ process: ProcessPointer) -> EpollPointer? {
    if let entry = unsafe mn_table_get(epfd) { return unsafe from(entry) }
    guard UInt32(bitPattern: epfd) < mn_table_size() else { return nil }
    let marker = unsafe process.pointee.marker
    let result = mn_sys_epoll_ctl(epfd, Int32(MN_EPOLL_CTL_DEL), marker, 0, 0)
    var at = unsafe allEpolls
    while result == 0, let epoll = unsafe at {
      // It has lost the marker.
      if unsafe epoll.pointee.kind == Kind.epoll && mark(epoll, process) == 0 {
        if unsafe !mn_table_set(epfd, epoll) { return nil }
        unsafe epoll.pointee.descriptors = epoll.pointee.descriptors &+ 1
        return unsafe epoll
      }
      unsafe at = epoll.pointee.nextOfAll
    }
    if result != 0 && result != -2 /* ENOENT */ { return nil }

    if unsafe freeEpolls == nil {
      // (Zeros are a valid one.)
      guard let raw = unsafe mn_sys_map(4096) else { return nil }
      let count = 4096 / MemoryLayout<Epoll>.stride
      let block = unsafe raw.bindMemory(to: Epoll.self, capacity: count)
      for index in 0..<count {
        unsafe block[index].nextOfAll = allEpolls
        unsafe block[index].nextFree = freeEpolls
        unsafe allEpolls = block + index
        unsafe freeEpolls = block + index
      }
    }
    let hidden = Process.copy(epfd)
    if hidden < 0 { return nil }
    let epoll = unsafe freeEpolls.unsafelyUnwrapped
    unsafe freeEpolls = epoll.pointee.nextFree
    unsafe epoll.pointee.receive = UInt32(MN_RECEIVE_ASK)
    unsafe epoll.pointee.descriptors = 1
    unsafe epoll.pointee.hidden = hidden
    unsafe epoll.pointee.attached = 0
    unsafe epoll.pointee.turn = 0
    for index in 0..<16 { unsafe epoll.pointee.hot[index].store(nil, ordering: .relaxed) }
    unsafe epoll.pointee.kind = Kind.epoll
    if unsafe mark(epoll, process) == 0 && mn_table_set(epfd, epoll) { return unsafe epoll }
    unsafe free(epoll)
    return nil
  }

  private static func mark(_ epoll: EpollPointer, _ process: ProcessPointer) -> Int32 {
    unsafe Watch.control(epoll, MN_EPOLL_CTL_ADD, process.pointee.marker, 0, Watch.tag(of: process))
  }

  private static func free(_ epoll: EpollPointer) {
    Process.drop(unsafe epoll.pointee.hidden)
    unsafe epoll.pointee.kind = Kind.free
    unsafe epoll.pointee.generation = epoll.pointee.generation &+ 1
    unsafe epoll.pointee.nextFree = freeEpolls
    unsafe freeEpolls = epoll
  }

  /// A table entry as an epoll; nil for a socket.
  @inline(never)
  static func from(_ entry: UnsafeMutableRawPointer) -> EpollPointer? {
    unsafe UInt(bitPattern: entry) > 1 && mn_load_relaxed_u32(entry) == Kind.epoll ? entry.assumingMemoryBound(to: Epoll.self) : nil
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
        // (What it held goes with it, or is another process's, too.)
        if unsafe watch.pointee.epoll == epoll { unsafe Watch.remove(watch, isTold: false) }
      }
    }
    unsafe free(epoll)
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

/// Calls that ask the kernel, as those on a socket (`Socket.hold`).
extension Epoll {
  /// A call on `epfd` is about to ask. Until `letGo` the epoll stays what it is, closed or not.
  ///
  /// - Returns: false when `epfd` has been closed before, and nothing is held.
  @inline(never)
  static func hold(_ epoll: EpollPointer, _ epfd: Int32) -> Bool {
    unsafe epoll.pointee.waiters.wrappingAdd(1, ordering: .relaxed)
    unsafe epoll.pointee.waiter = mn_thread_id()
    // The waiter is counted before the table is looked at: pairs with the fence of `closed`. One of the two sees the other.
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

  /// In a forked child: the threads that waited are the parent's.
  static func forgetWaiters() {
    var at = unsafe allEpolls
    while let epoll = unsafe at {
      unsafe at = epoll.pointee.nextOfAll
      guard unsafe epoll.pointee.waiters.load(ordering: .relaxed) != 0 else { continue }
      unsafe epoll.pointee.waiters.store(1, ordering: .relaxed)
      unsafe letGo(epoll)
    }
  }
}

@c(mn_hook_epoll_cancelled)
public func epollCancelled(_ epoll: UnsafeMutableRawPointer) { unsafe Epoll.letGo(epoll.assumingMemoryBound(to: Epoll.self)) }

extension Watch {
  /// The caller holds the process's lock.
  static func make(_ socket: SocketPointer, _ epoll: EpollPointer, _ fd: Int32, _ events: UInt32, _ data: UInt64) -> WatchPointer? {
    if unsafe freeWatchCount <= 32 {
      guard let process = unsafe process else { return nil }
      var index = 0
      while unsafe process.pointee.watchBlocks[index].load(ordering: .relaxed) != nil {
        index += 1
        if index == blocks { return nil }
      }
      // (Zeros are a valid one.)
      guard let raw = unsafe mn_sys_map(blockSize(index)) else { return nil }
      unsafe process.pointee.watchBlocks[index].store(raw, ordering: .relaxed)
      let count = 64 << index
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
    if let process = unsafe process { unsafe watch.pointee.forks = process.pointee.forks }
    unsafe watch.pointee.isFresh = true
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
  @inline(never)
  private static func attach(_ watch: WatchPointer) {
    let socket = unsafe watch.pointee.socket
    let epoll = unsafe watch.pointee.epoll
    if unsafe epoll.pointee.attached == 0, let process = unsafe process {
      // The daemon's end must wake the program: a connection that hangs up is always reported.
      _ = unsafe control(epoll, MN_EPOLL_CTL_ADD, Process.connection(process), 0, tag(of: process))
    }
    // A watch is reported for what is there already, edge-triggered or not.
    unsafe watch.pointee.seen.store(Socket.arrivals(socket) &- 1, ordering: .relaxed)
    unsafe watch.pointee.attached = true
    unsafe epoll.pointee.attached = epoll.pointee.attached &+ 1
    unsafe showInput(watch)
    unsafe epoll.pointee.warm(watch)
    if unsafe !Wait.arm(socket, true) { unsafe Wait.signal(socket, Socket.word(socket, Int(MN_OFFSET_ENDPOINT_RX_WAIT))) }
  }

  /// The socket has one eventfd, for all its watches in the epoll: it leads to one that is still to be told, and is silent when all
  /// have fired.
  @inline(never)
  private static func showInput(_ watch: WatchPointer) {
    let socket = unsafe watch.pointee.socket
    let epoll = unsafe watch.pointee.epoll
    let event = unsafe socket.pointee.event
    unsafe mn_epoll_tag(epoll)
    var speaker: WatchPointer?
    var bits: UInt32 = 0
    var at = unsafe socket.pointee.watches
    while let other = unsafe at {
      if unsafe other.pointee.epoll == epoll && other.pointee.attached {
        let isEdge = unsafe other.pointee.isEdge
        if unsafe other.pointee.state.load(ordering: .relaxed) & fired == 0 && (bits == 0 || !isEdge) {
          unsafe speaker = other
          bits = unsafe UInt32(MN_POLLIN) | other.pointee.events & UInt32(MN_EPOLLEXCLUSIVE) | (isEdge ? MN_EPOLLET : 0)
        }
        if unsafe speaker == nil { unsafe speaker = other }
      }
      unsafe at = other.pointee.nextOfSocket
    }
    let data = tag | UInt64(UInt(bitPattern: speaker))
    if unsafe speaker != nil && control(epoll, MN_EPOLL_CTL_MOD, event, bits, data) == 0 { return }
    // (What is exclusive cannot be modified.)
    _ = unsafe control(epoll, MN_EPOLL_CTL_DEL, event, 0, 0)
    if unsafe speaker != nil { _ = unsafe control(epoll, MN_EPOLL_CTL_ADD, event, bits, data) }
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
      unsafe detach(watch, isTold: true)
      unsafe at = watch.pointee.nextOfSocket
    }
  }

  @inline(never)
  private static func detach(_ watch: WatchPointer, isTold: Bool) {
    let epoll = unsafe watch.pointee.epoll
    unsafe epoll.pointee.cool(watch)
    guard unsafe watch.pointee.attached else { return }
    unsafe watch.pointee.attached = false
    unsafe epoll.pointee.attached = epoll.pointee.attached &- 1
    if isTold { unsafe showInput(watch) }
  }

  /// The caller holds the process's lock.
  ///
  /// - Parameter isTold: whether the kernel is told.
  @inline(never)
  static func remove(_ watch: WatchPointer, isTold: Bool) {
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
    unsafe detach(watch, isTold: isTold)
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
        unsafe remove(watch, isTold: watch.pointee.forks == process?.pointee.forks)
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
        unsafe showShadow(watch, shown ? watch.pointee.events : watch.pointee.events & ~UInt32(MN_POLLOUT))
      }
      unsafe at = watch.pointee.nextOfSocket
    }
  }

  /// What the kernel is to tell of the shadow.
  fileprivate static func showShadow(_ watch: WatchPointer, _ bits: UInt32) {
    _ = unsafe control(watch.pointee.epoll, MN_EPOLL_CTL_MOD, watch.pointee.fd, bits, shadowData(watch, watch.pointee.events, watch.pointee.data, changes: 0))
  }

  /// A one-shot watch has fired: neither shadow nor eventfd report until it is modified.
  ///
  /// - Parameter state: what it is since.
  @inline(never)
  static func silence(_ watch: WatchPointer, _ state: UInt32) {
    guard let process = unsafe process else { return }
    let locked = unsafe Lock.acquire(process)
    defer { if locked { unsafe Lock.release(process) } }
    // (Another thread may have modified it since.)
    guard unsafe watch.pointee.state.load(ordering: .relaxed) == state else { return }
    // An error or a hang-up is always told, but once, and then it is dropped.
    unsafe showShadow(watch, UInt32(MN_EPOLLONESHOT))
    unsafe showInput(watch)
  }

  /// The program modified the registration: armed and reported afresh.
  static func modify(_ watch: WatchPointer, _ events: UInt32, _ data: UInt64) {
    let socket = unsafe watch.pointee.socket
    let wasEdge = unsafe watch.pointee.isEdge
    let hadFired = unsafe watch.pointee.state.load(ordering: .relaxed) & fired != 0
    unsafe watch.pointee.beginChange()
    unsafe watch.pointee.events = events
    unsafe watch.pointee.data = data
    unsafe watch.pointee.isFresh = true
    if unsafe watch.pointee.attached { unsafe watch.pointee.seen.store(Socket.arrivals(socket) &- 1, ordering: .relaxed) }
    unsafe watch.pointee.endChange()
    guard unsafe watch.pointee.attached else { return }
    let isEdge = unsafe watch.pointee.isEdge
    if hadFired || wasEdge != isEdge { unsafe showInput(watch) }
    unsafe watch.pointee.epoll.pointee.warm(watch)
    // What is there already is to be told to a thread that sleeps as well.
    let word = unsafe Socket.word(socket, Int(MN_OFFSET_ENDPOINT_RX_WAIT))
    if unsafe Socket.hasInput(socket) && (isEdge || mn_load_relaxed_u32(word) != UInt32(MN_WAIT_SIGNALLED)) { unsafe Wait.signal(socket, word) }
  }

  /// What an epoll is asked by the shim itself.
  fileprivate static func control(_ epoll: EpollPointer, _ operation: Int, _ fd: Int32, _ bits: UInt32, _ data: UInt64) -> Int32 {
    unsafe mn_sys_epoll_ctl(epoll.pointee.hidden, Int32(operation), fd, bits, data)
  }
}

@c(mn_hook_epoll_ctl)
public func epollControl(
  _ entry: UnsafeMutableRawPointer, _ epfd: Int32, _ operation: Int32, _ fd: Int32, _ event: UnsafeMutableRawPointer?
) -> Int32 {
  guard let process = unsafe process, let socket = unsafe Socket.from(entry), unsafe Lock.acquire(process) else {
    return unsafe mn_real_epoll_ctl(epfd, operation, fd, event)
  }
  var isWatched = true
  // Under the lock: what another thread is told of a one-shot registration while it changes, it looks up when it has changed.
  let result = unsafe control(process, entry, socket, epfd, operation, fd, event, &isWatched)
  unsafe Lock.release(process)
  // What cannot be watched here, the kernel can.
  if !isWatched { unsafe Socket.retire(socket, .forGood, fd) }
  return result
}

private func control(
  _ process: ProcessPointer, _ entry: UnsafeMutableRawPointer, _ socket: SocketPointer, _ epfd: Int32, _ operation: Int32, _ fd: Int32,
  _ event: UnsafeMutableRawPointer?, _ isWatched: inout Bool
) -> Int32 {
  let known = unsafe Epoll.meet(epfd, process)
  var watch: WatchPointer?
  if let known = unsafe known { unsafe watch = Watch.find(socket, known, fd) }
  var bits: UInt32 = 0
  var data: UInt64 = 0
  if let event = unsafe event, operation != Int32(MN_EPOLL_CTL_DEL) { unsafe mn_epoll_event_get(event, &bits, &data) }
  // What is to be told once leads to its watch, and is armed when there is one.
  let isOnce = bits & UInt32(MN_EPOLLONESHOT | MN_EPOLLEXCLUSIVE) == UInt32(MN_EPOLLONESHOT)
  let isNew = operation == Int32(MN_EPOLL_CTL_ADD)
  let asked = unsafe isOnce && watch != nil && !isNew ? Watch.shadowData(watch.unsafelyUnwrapped, bits, data, changes: 1) : data
  let result = unsafe event == nil
    ? mn_real_epoll_ctl(epfd, operation, fd, nil) : mn_real_epoll_ctl_of(epfd, operation, fd, isOnce && isNew ? 0 : bits, asked)
  // Another thread may have closed the socket meanwhile.
  guard unsafe result == 0 && mn_table_get(fd) == entry else { return result }
  if isNew {
    if let epoll = unsafe known, let watch = unsafe Watch.make(socket, epoll, fd, bits, data) {
      if isOnce { unsafe Watch.showShadow(watch, bits) }
    } else {
      isWatched = false
      if isOnce { return unsafe mn_real_epoll_ctl(epfd, Int32(MN_EPOLL_CTL_MOD), fd, event) }
    }
  } else if let watch = unsafe watch {
    if operation == Int32(MN_EPOLL_CTL_MOD) { unsafe Watch.modify(watch, bits, data) } else { unsafe Watch.remove(watch, isTold: true) }
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
  private var isHeld = false
  /// A watch that has just been reported has an edge with the kernel, too.
  private var hasEdge = false

  @inline(never)
  init(_ epoll: EpollPointer, _ epfd: Int32, _ events: UnsafeMutableRawPointer, _ capacity: Int32) {
    unsafe self.epoll = epoll
    self.epfd = epfd
    generation = unsafe epoll.pointee.generation
    unsafe self.events = events
    self.capacity = capacity
  }

  /// The call stays with this epoll from here on.
  ///
  /// - Returns: false when the number has been closed before.
  @inline(never)
  mutating func hold() -> Bool {
    if isHeld { return true }
    isHeld = unsafe Epoll.hold(epoll, epfd)
    // (By the same number another epoll may have taken the place of a closed one: then it is that which is held.)
    generation = unsafe epoll.pointee.generation
    return isHeld
  }

  func letGo() { if isHeld { unsafe Epoll.letGo(epoll) } }

  /// What the kernel has to tell now; the call holds the epoll. It comes behind what is there already.
  @inline(never)
  mutating func look(_ process: ProcessPointer) {
    unsafe translate(mn_sys_epoll_look(epoll.pointee.hidden, event(count), capacity - count), process)
  }

  /// Asks the kernel; the call holds the epoll.
  ///
  /// - Returns: as epoll_pwait2(2).
  @inline(never)
  mutating func ask(_ timeout: Int64, _ mask: UnsafeRawPointer?, _ process: ProcessPointer) -> Int32 {
    mn_has_unwind_tables()
    let reported = unsafe mn_epoll_sleep(epoll.pointee.hidden, events, capacity, timeout, mask, epoll)
    unsafe translate(reported, process)
    return reported
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
    let shut = unsafe socket.pointee.shut.load(ordering: .relaxed)
    if shut & UInt32(MN_SOCKET_SHUTDOWN_READ) != 0 {
      bits |= events & UInt32(MN_POLLRDHUP)
      if shut & UInt32(MN_SOCKET_SHUTDOWN_WRITE) != 0 { bits |= UInt32(MN_POLLHUP) }
    }
    // EPOLLERR is always reported.
    if unsafe mn_load_relaxed_u32(Socket.word(socket, Int(MN_OFFSET_ENDPOINT_ERROR))) != 0 { bits |= UInt32(MN_POLLERR) }
    if bits == 0 { return nil }
    // Another thread may have removed it, and added another registration in its place, or may have reported it: then it is the other's.
    if events & UInt32(MN_EPOLLONESHOT) != 0 { return unsafe isCurrent && fire(watch, state) ? (bits, data) : nil }
    atomicMemoryFence(ordering: .acquiring)
    guard isCurrent, unsafe watch.pointee.state.load(ordering: .relaxed) == state else { return nil }
    if isEdgeTriggered, unsafe !watch.pointee.seen.compareExchange(expected: seen, desired: arrivals, ordering: .relaxed).exchanged {
      return nil
    }
    return (bits, data)
  }

  /// - Returns: false when another thread was faster.
  @inline(never)
  private func fire(_ watch: WatchPointer, _ state: UInt32) -> Bool {
    guard unsafe watch.pointee.state.compareExchange(
      expected: state, desired: state | Watch.fired, ordering: .acquiringAndReleasing).exchanged
    else { return false }
    unsafe Watch.silence(watch, state | Watch.fired)
    return true
  }

  /// The kernel has told of the shadow of a one-shot watch, and does not tell again.
  ///
  /// - Returns: the program's data; nil: its rings have been told of.
  @inline(never)
  private func once(_ watch: WatchPointer, _ tag: UInt64, _ process: ProcessPointer) -> UInt64? {
    // What has been told while it was registered is looked up when that is done.
    let locked = unsafe Lock.acquire(process)
    defer { if locked { unsafe Lock.release(process) } }
    guard unsafe watch.pointee.active && watch.pointee.epoll == epoll else { return nil }
    let data = unsafe watch.pointee.data
    // (Modified since: it was told of what was before, and is armed.)
    if unsafe tag != Watch.shadowData(watch, UInt32(MN_EPOLLONESHOT), 0, changes: 0) { return data }
    let state = unsafe watch.pointee.state.load(ordering: .relaxed)
    return unsafe state & Watch.fired == 0 && fire(watch, state) ? data : nil
  }

  /// Whether the epoll is the one that is waited on: another thread may have closed it since, and its place is another's.
  private var isCurrent: Bool { unsafe epoll.pointee.generation == generation }

  /// What is told of one socket twice is one event.
  ///
  /// - Parameter limit: of the events before it, those that may be the same.
  @inline(never)
  private mutating func emit(_ bits: UInt32, _ data: UInt64, joining: UInt64) {
    for earlier in 0..<count where earlier >= 64 || joining >> UInt64(earlier) & 1 != 0 {
      var earlierBits: UInt32 = 0
      var earlierData: UInt64 = 0
      unsafe mn_epoll_event_get(event(earlier), &earlierBits, &earlierData)
      if earlierData == data {
        unsafe mn_epoll_event_set(event(earlier), earlierBits | bits, data)
        return
      }
    }
    unsafe mn_epoll_event_set(event(count), bits, data)
    count += 1
  }

  /// What a watch has to report.
  private mutating func emit(_ watch: WatchPointer, joining: UInt64) {
    let place = count
    guard let (bits, data) = unsafe report(watch) else { return }
    emit(bits, data, joining: joining)
    if count > place && place < 64 { ours |= 1 << UInt64(place) }
    if unsafe watch.pointee.isFresh {
      unsafe watch.pointee.isFresh = false
      if unsafe watch.pointee.events & MN_EPOLLET != 0 { hasEdge = true }
    }
  }

  /// Looks at the hot watches, starting where the last look ended, so that a small capacity starves nobody.
  mutating func collect() {
    let start = unsafe Int(epoll.pointee.turn & 15)
    for step in 0..<16 {
      if count == capacity { return }
      guard let watch = unsafe epoll.pointee.hot[(start + step) & 15].load(ordering: .relaxed) else { continue }
      unsafe emit(watch, joining: 0)
    }
  }

  /// Turns what the kernel reported behind the first `count` events into the program's events.
  @inline(never)
  mutating func translate(_ reported: Int32, _ process: ProcessPointer) {
    let own = count
    for index in 0..<max(reported, 0) {
      var bits: UInt32 = 0
      var data: UInt64 = 0
      unsafe mn_epoll_event_get(event(own + index), &bits, &data)
      if unsafe data == Watch.tag(of: process) {
        _ = unsafe Loss.check(process)
        continue
      }
      if let watch = unsafe Watch.from(data) {
        // (A tag that another thread's close has overtaken may lead to the watch of another socket by now.)
        if data & 1 == 0 {
          if unsafe watch.pointee.attached && watch.pointee.epoll == epoll { unsafe woken(watch) }
          continue
        }
        guard let known = unsafe once(watch, data, process) else { continue }
        data = known
      }
      // The shadow's event joins the one that its rings gave.
      emit(bits, data, joining: ours)
    }
  }

  /// The eventfd of a watched socket is readable.
  private mutating func woken(_ watch: WatchPointer) {
    let socket = unsafe watch.pointee.socket
    // (The eventfd is that of all its watches here.)
    var at = unsafe socket.pointee.watches
    while let other = unsafe at {
      if unsafe other.pointee.epoll == epoll { unsafe epoll.pointee.warm(other) }
      unsafe at = other.pointee.nextOfSocket
    }
    unsafe Wait.roomSignalled(socket)
    let word = unsafe Socket.word(socket, Int(MN_OFFSET_ENDPOINT_RX_WAIT))
    if unsafe watch.pointee.isEdge {
      // One edge, one wake-up: armed again whether or not the program has drained the ring. The kernel, too, tells each signal once; the
      // eventfd stays as it is, for those who sleep elsewhere.
      unsafe socket.pointee.isLoud = true
      _ = unsafe mn_exchange_u32(word, UInt32(MN_WAIT_ARMED))
    } else if unsafe Wait.arm(socket, true) {
      // Stale: the program has taken everything since. If only room was signalled, the eventfd may still be readable.
      _ = unsafe Wait.drain(socket)
      // (It may have stood for what another thread has taken since.)
      if unsafe Wait.arm(socket, true) { return }
      unsafe Wait.signal(socket, word)
    }
    unsafe emit(watch, joining: ~0)
  }

  /// - Returns: as epoll_pwait2(2).
  @inline(never)
  mutating func run(_ timeout: Int64, _ mask: UnsafeRawPointer?, _ process: ProcessPointer, _ directory: Directory) -> Int32 {
    let call = Handled.atBegin
    Loss.reattach()
    let saved = mn_get_errno()
    let isIdle = unsafe epoll.pointee.attached == 0 && process.pointee.lostSockets.load(ordering: .relaxed) == 0
    if !isIdle {
      unsafe epoll.pointee.turn = epoll.pointee.turn &+ 1
      // Descriptors of the kernel, and sockets that are not hot, get their turn under any load: the kernel, which knows of
      // all of them and serves them in turn, is asked first now and then. (What it does not tell is told below.)
      if unsafe epoll.pointee.turn & 7 == 0 {
        if !hold() { return unsafe mn_epoll_begin(epfd, events, capacity, timeout, mask) }
        unsafe look(process)
        if count > 0 { return count }
      }
      collect()
      if count == 0 && timeout == 0 {
        Wait.letLand()
        collect()
      }
      if hasEdge && count < capacity && hold() { unsafe look(process) }
      if count > 0 { return count }
    }
    var turns = 0
    while isIdle || timeout == 0 {
      turns += 1
      if !hold() { return unsafe mn_epoll_begin(epfd, events, capacity, timeout, mask) }
      // A handler that has run since the kernel was looked at must not let the call wait.
      if timeout != 0 && call.isChanged {
        mn_set_errno(Int32(MN_EINTR))
        return -1
      }
      let reported = unsafe ask(timeout, mask, process)
      if reported <= 0 { return reported }
      // Where there is little room, an eventfd that had nothing to say may have taken it.
      if count > 0 || timeout == 0 && (reported < capacity || turns == 16) {
        mn_set_errno(saved)
        return count
      }
      // (The first socket has come meanwhile. The time begins anew.)
      if timeout != 0 { break }
    }

    let deadline = timeout < 0 ? UInt64.max : mn_sys_nanoseconds() &+ UInt64(timeout)
    var spinner = Spinner(directory, deadline: deadline)
    var signals = unsafe Signals(since: call, areBlocked: mask != nil)
    defer { signals.restore() }
    while true {
      let step = spinner.step()
      collect()
      if count > 0 { return count }
      if signals.haveCome(last: step != .look) {
        mn_set_errno(Int32(MN_EINTR))
        return -1
      }
      if step != .look && !hold() { return unsafe withUnsafePointer(to: signals.mask) { unsafe mn_epoll_begin(epfd, events, capacity, timeout, mask ?? UnsafeRawPointer($0)) } }
      if step == .over { break }
      if step == .lookAtKernel {
        unsafe look(process)
        if count > 0 { return count }
      }
    }
    while true {
      var left: Int64 = -1
      if deadline != UInt64.max {
        let now = mn_sys_nanoseconds()
        left = now >= deadline ? 0 : Int64(deadline - now)
      }
      // Every watched endpoint is armed, or its eventfd is readable and this returns at once.
      let open = signals.mask
      let reported = unsafe withUnsafePointer(to: open) { unsafe ask(Loss.limit(left), mask ?? UnsafeRawPointer($0), process) }
      if reported < 0 { return reported }
      Loss.reattach()
      // Only when the kernel had nothing: a socket is reported once per call.
      if count == 0 { collect() }
      if count > 0 || left == 0 {
        mn_set_errno(saved)
        return count
      }
    }
  }
}

/// A call on a number that the table does not have.
@c(mn_hook_epoll_met)
public func epollMet(_ epfd: Int32) -> UnsafeMutableRawPointer? {
  guard let process = unsafe process, mn_is_at_home(), unsafe Lock.acquire(process) else { return nil }
  defer { unsafe Lock.release(process) }
  return unsafe UnsafeMutableRawPointer(Epoll.meet(epfd, process))
}

/// The kernel has told of `told` events of an epoll of which nothing was known when it was asked. Another thread may have put a socket
/// into it meanwhile: then its tags are among them.
///
/// - Returns: as epoll_wait. (Where nothing is left of them, the time begins anew.)
@c(mn_hook_epoll_told)
public func epollTold(
  _ epfd: Int32, _ events: UnsafeMutableRawPointer, _ capacity: Int32, _ told: Int32, _ timeout: Int64, _ mask: UnsafeRawPointer?
) -> Int32 {
  guard let process = unsafe process else { return told }
  for index in 0..<told {
    var bits: UInt32 = 0
    var data: UInt64 = 0
    unsafe mn_epoll_event_get(mn_epoll_event_at(events, index), &bits, &data)
    guard let watch = unsafe Watch.from(data) else { continue }
    var wait = unsafe EpollWait(watch.pointee.epoll, epfd, events, capacity)
    unsafe wait.translate(told, process)
    return wait.count > 0 ? wait.count : unsafe mn_epoll_begin(epfd, events, capacity, timeout, mask)
  }
  return told
}

@c(mn_hook_epoll_wait)
public func epollWait(
  _ entry: UnsafeMutableRawPointer, _ epfd: Int32, _ events: UnsafeMutableRawPointer?, _ capacity: Int32, _ timeout: Int64,
  _ mask: UnsafeRawPointer?
) -> Int32 {
  guard let epoll = unsafe Epoll.from(entry), let process = unsafe process, let events = unsafe events,
    let directory = unsafe process.pointee.directory, capacity > 0 && capacity <= Int32.max / Int32(mn_epoll_event_size())
  else { return unsafe mn_real_epoll_wait(epfd, events, capacity, timeout, mask) }
  var wait = unsafe EpollWait(epoll, epfd, events, capacity)
  defer { wait.letGo() }
  return unsafe wait.run(timeout, mask, process, directory)
}
