public import CMachnetABI
public import CTrampoline
import ShimChannel
import Synchronization

/// What a descriptor in the table is: sockets and epolls share the table, told apart by their first word.
enum Kind {
  static let free = UInt32(MN_KIND_FREE)
  static let socket = UInt32(MN_KIND_SOCKET)
  static let epoll = UInt32(MN_KIND_EPOLL)
}

/// A UDP socket of this process that may leave the kernel. The program's descriptor is its shadow.
///
/// Memory of sockets is never unmapped and reused only after many other closes and some time, because a thread may still be
/// inside a call on a socket that another one closes. Fields are written under the process's lock, unless they say
/// otherwise, and read without it.
@safe
struct Socket: ~Copyable {
  /// What the trampolines see; a table entry starts with it.
  var head: mn_head
  /// Descriptors of this process that name it (dup).
  @Shared var descriptors: UInt32
  @Shared var domain: Int32
  /// A descriptor of it, to show the daemon when it comes back; -1 when that one was closed.
  @Shared var fd: Int32
  /// The eventfd that the engine signals; -1 until there is an endpoint.
  @Shared var event: Int32
  /// The eventfd may be readable although the endpoint is armed: an edge has been told.
  @Shared var isLoud: Bool
  /// Wakes those who wait on the shadow alone when the socket gets its endpoint meanwhile; -1 while nobody does.
  @Shared var kick: Int32
  /// Calls that wait on it (`hold`), and the thread that was the last to begin.
  let waiters: Atomic<UInt32>
  @Shared var waiter: UInt32
  /// A descriptor of the shadow that only those calls know; -1 while none needs it.
  @Shared var hidden: Int32
  /// The kernel's name for the shadow (SO_COOKIE): tells whether a number still means it.
  @Shared var cookie: UInt64
  /// Neither bound nor connected by the program: its next send may lead it to Machnet.
  @Shared var undecided: Bool
  /// A slow daemon is still to be asked for its endpoint, or to be told of its new peer.
  @Shared var awaits: Bool
  /// Whether `mn_watched_count` counts it.
  @Shared var watched: Bool
  /// nil: a candidate, on the kernel so far.
  private let endpointWord: Atomic<UnsafeMutablePointer<mn_endpoint>?>
  /// The channel that its block is in (48 bits), and the block's number there.
  @Shared private var place: UInt64
  @Shared var home: UInt32
  @Shared var netns: UInt16
  /// The engine is gone: what its rings still hold is delivered, everything else goes to the shadow.
  @Shared var engineLost: Bool
  /// The daemon refused an endpoint; not asked again until the rules change.
  @Shared var refused: Bool
  @Shared var refusedGeneration: UInt32
  /// Why it may not have an endpoint (any more), whatever the rules say.
  @Shared var retired: Retirement
  /// The endpoint was another process's before, and the daemon counts this one's part in it.
  @Shared var hasJoined: Bool
  /// The daemon keeps the block of its old endpoint for it, to read what the rings hold.
  @Shared var holdsBlock: Bool
  /// The engine is gone, and the rings were not empty then: they are looked at by waits, too.
  @Shared var hasOldInput: Bool
  /// The kernel holds a part of a datagram back (UDP_CORK, MSG_MORE): what follows must go there, too.
  @Shared var corked: Bool
  /// The program has set SO_RCVBUF.
  @Shared var hasReceiveLimit: Bool
  /// What the program has shut down, as the endpoint's flags say it.
  let shut: Atomic<UInt32>
  /// SO_RCVTIMEO was set to less than nothing: a receive that would wait says EAGAIN. (The kernel shows it as "none".)
  @Shared var impatient: Bool
  /// When the datagram arrived that was taken last from a ring, CLOCK_REALTIME ns (SIOCGSTAMP).
  @Shared var stamp: UInt64
  /// As granted by the daemon (address 0: the wildcard).
  @Shared var local: Name
  /// The last flow that was classified, and the outcome (`Judgement`); written by any call.
  @Shared var judgement: UInt64
  /// The rules' generation that it was made by, and `attachments`.
  @Shared var judgedBy: UInt64
  /// Moves on when what a judgement or a plan relies on changes: before (odd where others may meet the change half done) and after.
  let attachments: Atomic<UInt32>
  /// Moves on when the program has changed an option or a flag of the file.
  let settings: Atomic<UInt32>
  /// Where the last datagram went, for the short way.
  var plan: Plan
  /// Datagrams took one way until lately, and take the other now: their order is kept (`Socket.takeSettling`), until that time,
  /// CLOCK_MONOTONIC ns; 0: not known yet.
  @Shared var isSettling: Bool
  @Shared var settlesUntil: UInt64
  /// When it last sent by the shadow since it was passed on, likewise.
  @Shared var sentPassed: UInt64
  /// Counts receives, so that the shadow is looked at now and then while the rings are busy.
  @Shared var turn: UInt32
  /// The RX ring that is looked at first.
  @Shared var firstReader: Int
  /// RX rings: engines of the channel.
  @Shared var readerCount: Int
  /// When the engine last took something from the TX ring, by the cycle counter, and how far it was.
  @Shared var progress: UInt64
  @Shared var progressHead: UInt64
  /// The epolls that watch it.
  private let watchesWord: Atomic<UnsafeMutablePointer<Watch>?>
  /// Its own for ever, as the memory of the socket is.
  fileprivate(set) var writer: UnsafeMutablePointer<RingWriter>
  fileprivate(set) var readers: UnsafeMutablePointer<RingReader>
  var next: UnsafeMutablePointer<Socket>?

  /// Release and acquire: who finds an endpoint finds the channel, and what else was set before.
  var endpoint: UnsafeMutablePointer<mn_endpoint>? {
    @inline(__always) get { unsafe endpointWord.load(ordering: .acquiring) }
    @inline(__always) nonmutating set { unsafe endpointWord.store(newValue, ordering: .releasing) }
  }
  /// One word, so that a number never goes with another channel.
  var location: (channel: UnsafeMutablePointer<Channel>?, index: UInt32) {
    let place = place
    return unsafe (UnsafeMutablePointer(bitPattern: UInt(place & 0xffff_ffff_ffff)), UInt32(place >> 48))
  }
  func move(to channel: UnsafeMutablePointer<Channel>?, _ index: UInt32) {
    place = UInt64(UInt(bitPattern: channel)) | UInt64(index) << 48
  }
  var channel: UnsafeMutablePointer<Channel>? { unsafe location.channel }
  var index: UInt32 { unsafe location.index }
  var watches: UnsafeMutablePointer<Watch>? {
    @inline(__always) get { unsafe watchesWord.load(ordering: .relaxed) }
    @inline(__always) nonmutating set { unsafe watchesWord.store(newValue, ordering: .relaxed) }
  }
  var isOffloaded: Bool { unsafe endpoint != nil && !engineLost }
  /// Whether engines fill its rings, or may do so again at any moment.
  var hasLiveRings: Bool { isOffloaded || retired == .passed }
}

typealias SocketPointer = UnsafeMutablePointer<Socket>

/// What the trampolines see, too (`mn_head`).
extension UnsafeMutablePointer where Pointee == Socket {
  var kind: UInt32 {
    get { unsafe mn_load_relaxed_u32(self) }
    nonmutating set { unsafe mn_store_relaxed_u32(self, newValue) }
  }
  /// The last datagram came by the shadow: it is looked at before a wait, else within one.
  var byShadow: Bool {
    get { unsafe mn_head_by_shadow(self) }
    nonmutating set { unsafe mn_head_set_by_shadow(self, newValue) }
  }
}

/// A socket that has left Machnet by its own doing, and is its shadow from then on.
enum Retirement: UInt8, Word {
  case no
  /// Its port was the kernel's choice and went with its peer (connect to AF_UNSPEC): it may come back under another.
  case portless
  /// A descriptor of it went to another process: it comes back where that one shows it to the daemon (`Socket.rejoin`).
  case passed
  /// It wants something that only the kernel does (`Socket.isKernelsAlone`).
  case forGood
}

extension Socket {
  /// A new socket, on the kernel so far.
  fileprivate static func start(_ socket: SocketPointer, _ fd: Int32, _ domain: Int32) {
    // From head to writer (in the order of their declaration). Word by word: a call on the one that was here before may not have ended.
    let words = unsafe MemoryLayout<mn_head>.stride / 8
    unsafe mn_zero(UnsafeMutableRawPointer(socket) + words * 8, MemoryLayout<Socket>.size / 8 - 3 - words)
    unsafe socket.pointee.descriptors = 1
    unsafe socket.pointee.domain = domain
    unsafe socket.pointee.fd = fd
    unsafe socket.pointee.event = -1
    unsafe socket.pointee.kick = -1
    unsafe socket.pointee.hidden = -1
    unsafe socket.pointee.cookie = Socket.cookie(of: fd)
    unsafe socket.pointee.undecided = true
    unsafe mn_head_start(socket, UInt32(bitPattern: domain))
  }

  static func word(_ socket: SocketPointer, _ offset: Int) -> UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(socket.pointee.endpoint.unsafelyUnwrapped) + offset
  }

  static func flags(_ socket: SocketPointer) -> UInt32 {
    unsafe mn_load_relaxed_u32(word(socket, Int(MN_OFFSET_ENDPOINT_FLAGS)))
  }

  static func setFlag(_ socket: SocketPointer, _ flag: Int, _ on: Bool) {
    let at = unsafe word(socket, Int(MN_OFFSET_ENDPOINT_FLAGS))
    if on {
      _ = unsafe mn_fetch_or_u32(at, UInt32(flag))
    } else {
      _ = unsafe mn_fetch_and_u32(at, ~UInt32(flag))
    }
  }

  static func isNonblocking(_ socket: SocketPointer, _ flags: Int32) -> Bool {
    unsafe flags & Int32(MN_MSG_DONTWAIT) != 0 || self.flags(socket) & UInt32(MN_SOCKET_NONBLOCK) != 0
  }

  /// Whether some RX ring holds something. Lock-free: a hint that is exact when nobody else reads.
  @inline(never)
  static func hasInput(_ socket: SocketPointer) -> Bool {
    guard let endpoint = unsafe socket.pointee.endpoint else { return false }
    let (known, index) = unsafe socket.pointee.location
    let channel = unsafe known.unsafelyUnwrapped
    var engine = 0
    let count = unsafe Int(channel.pointee.engineCount)
    while engine < count {
      let ring = unsafe channel.pointee.reader(index, engine)
      // Acquire: pairs with the engine's publish.
      let tail = unsafe mn_load_acquire_u64(ring)
      if unsafe tail != mn_load_relaxed_u64(ring + 64) { return true }
      engine += 1
    }
    return unsafe mn_load_relaxed_u32(UnsafeRawPointer(endpoint) + Int(MN_OFFSET_ENDPOINT_ERROR)) != 0
  }

  /// Sum of the engines' tails: changes exactly when something arrives (the edge of edge-triggered waiting).
  static func arrivals(_ socket: SocketPointer) -> UInt64 {
    let (channel, index) = unsafe socket.pointee.location
    guard let channel = unsafe channel else { return 0 }
    var sum: UInt64 = 0
    for engine in 0..<(unsafe Int(channel.pointee.engineCount)) {
      sum &+= unsafe mn_load_acquire_u64(channel.pointee.reader(index, engine))
    }
    return sum
  }

  /// Whether a datagram of any size would be taken now. A full TX ring is a full send buffer.
  static func hasRoom(_ socket: SocketPointer) -> Bool {
    // The largest record and the largest pad before it: whatever is sent next will fit.
    let largest = 2 * ringStride(UInt64(MN_DATAGRAM_MAX))
    return unsafe unsent(socket) <= UInt64(socket.pointee.channel.unsafelyUnwrapped.pointee.txCapacity) &- largest
  }

  /// Bytes of the TX ring that the engine has not delivered or sent yet (it publishes what it delivers before it gives the TX ring
  /// back).
  @inline(never)
  static func unsent(_ socket: SocketPointer) -> UInt64 {
    let (channel, index) = unsafe socket.pointee.location
    let ring = unsafe channel.unsafelyUnwrapped.pointee.writer(index)
    return unsafe mn_load_relaxed_u64(ring) &- mn_load_acquire_u64(ring + 64)
  }

  static func hasUnsent(_ socket: SocketPointer) -> Bool { unsafe unsent(socket) != 0 }

  /// Points the socket at its rings in the channel.
  static func bindRings(_ socket: SocketPointer) {
    let (channel, index) = unsafe socket.pointee.location
    let count = unsafe Int(channel.unsafelyUnwrapped.pointee.engineCount)
    unsafe socket.pointee.writer.initialize(
      to: RingWriter(unsafe: channel.unsafelyUnwrapped.pointee.writer(index), capacity: channel.unsafelyUnwrapped.pointee.txCapacity))
    for engine in 0..<count {
      unsafe (socket.pointee.readers + engine).initialize(
        to: RingReader(
          unsafe: channel.unsafelyUnwrapped.pointee.reader(index, engine), capacity: channel.unsafelyUnwrapped.pointee.rxCapacity))
    }
    unsafe socket.pointee.readerCount = count
  }

  /// The locks of an endpoint's rings, as far as they are had.
  @safe
  struct Held {
    var rx: UnsafeMutableRawPointer? = nil
    var tx: UnsafeMutableRawPointer? = nil

    @inline(never)
    func release() {
      if let tx = unsafe tx { unsafe Lock.release(tx) }
      if let rx = unsafe rx { unsafe Lock.release(rx) }
    }
  }

  /// From here on no other thread is at the socket's rings by the locks of the endpoint that it has now. One that does not let go
  /// within 20 ms is not waited for: a signal handler may have interrupted it, and wait for us.
  @inline(never)
  static func holdRings(_ socket: SocketPointer) -> Held {
    guard let endpoint = unsafe socket.pointee.endpoint else { return Held() }
    let rx = unsafe UnsafeMutableRawPointer(endpoint) + Int(MN_OFFSET_ENDPOINT_RX_LOCK)
    let tx = unsafe UnsafeMutableRawPointer(endpoint) + Int(MN_OFFSET_ENDPOINT_TX_LOCK)
    return unsafe Held(rx: Lock.acquireSoon(rx) ? rx : nil, tx: Lock.acquireSoon(tx) ? tx : nil)
  }

  /// The short way of sends is not to be gone until the next datagram has gone the long one; none is under way when this returns.
  @inline(never)
  static func forgetPlan(_ socket: SocketPointer) {
    // Before: a call that is at it now does not make a plan.
    unsafe socket.pointee.attachments.wrappingAdd(2, ordering: .sequentiallyConsistent)
    guard unsafe socket.pointee.endpoint != nil else { return }
    let lock = unsafe word(socket, Int(MN_OFFSET_ENDPOINT_TX_LOCK))
    let locked = unsafe Lock.acquireSoon(lock)
    unsafe socket.pointee.plan.block = nil
    if locked { unsafe Lock.release(lock) }
  }

  /// What the rings hold is nobody's any more.
  private static func unbindRings(_ socket: SocketPointer) {
    let held = unsafe holdRings(socket)
    unsafe socket.pointee.plan.block = nil
    for engine in 0..<(unsafe socket.pointee.readerCount) {
      unsafe (socket.pointee.readers + engine).initialize(to: RingReader(unsafe: mn_no_ring(), capacity: UInt32(MN_RING_MIN)))
    }
    held.release()
  }
}

/// Where sockets come from: blocks of memory that are never given back, and a queue of closed ones. Under the process's lock but
/// for `forEach`.
@safe
struct SocketSlab: ~Copyable {
  private let oldest: Atomic<SocketPointer?>
  private let newest: Atomic<SocketPointer?>
  @Shared private var waiting: Int
  private let blocks: Atomic<UnsafeMutableRawPointer?>
  private let usedInBlock: Atomic<Int>

  private static let perBlock = 256
  /// How many closes lie between a socket's end and its next use, and how much time, ns.
  private static let quarantine = 1024
  private static let rest: UInt64 = 100_000_000
  private static var stride: Int {
    let size = MemoryLayout<Socket>.stride + MemoryLayout<RingWriter>.stride + 16 * MemoryLayout<RingReader>.stride
    return (size + 63) & ~63
  }
  /// A block starts with the address of the block before it. The first socket lies amid the page (see `mn_at_hand`).
  private static var blockHeader: Int { 1024 }

  func allocate() -> SocketPointer? {
    if waiting > SocketSlab.quarantine, let socket = unsafe oldest.load(ordering: .relaxed), unsafe mn_sys_nanoseconds() &- socket.pointee.stamp > SocketSlab.rest {
      unsafe oldest.store(socket.pointee.next, ordering: .relaxed)
      waiting = waiting - 1
      return unsafe socket
    }
    var used = usedInBlock.load(ordering: .relaxed)
    var block = unsafe blocks.load(ordering: .relaxed)
    if unsafe block == nil || used == SocketSlab.perBlock {
      let before = unsafe block
      unsafe block = mn_sys_map(SocketSlab.blockHeader + SocketSlab.perBlock * SocketSlab.stride)
      guard let block = unsafe block else { return nil }
      unsafe block.storeBytes(of: before, as: UnsafeMutableRawPointer?.self)
      unsafe blocks.store(block, ordering: .releasing)
      // After the block: `forEach` never takes it for the count of the one before.
      used = 0
      usedInBlock.store(0, ordering: .releasing)
    }
    let raw = unsafe block.unsafelyUnwrapped + SocketSlab.blockHeader + used * SocketSlab.stride
    usedInBlock.store(used + 1, ordering: .relaxed)
    let socket = unsafe raw.bindMemory(to: Socket.self, capacity: 1)
    let writer = unsafe (raw + MemoryLayout<Socket>.stride).bindMemory(to: RingWriter.self, capacity: 1)
    // (All else is zeros until `start`, which is a valid one.)
    unsafe socket.pointee.writer = writer
    unsafe socket.pointee.readers = (UnsafeMutableRawPointer(writer) + MemoryLayout<RingWriter>.stride)
      .bindMemory(to: RingReader.self, capacity: 16)
    return unsafe socket
  }

  func free(_ socket: SocketPointer) {
    unsafe socket.kind = Kind.free
    unsafe socket.pointee.stamp = mn_sys_nanoseconds()
    unsafe socket.pointee.next = nil
    if let newest = unsafe newest.load(ordering: .relaxed), waiting > 0 {
      unsafe newest.pointee.next = socket
    } else {
      unsafe oldest.store(socket, ordering: .relaxed)
    }
    unsafe newest.store(socket, ordering: .relaxed)
    waiting = waiting + 1
  }

  /// A fork came in the middle of a change that another thread made: what was closed before is never used again.
  func forget() {
    unsafe oldest.store(nil, ordering: .relaxed)
    unsafe newest.store(nil, ordering: .relaxed)
    waiting = 0
  }

  func forEach(_ body: (SocketPointer) -> Void) {
    // Acquire, in this order: pairs with the releases above.
    var count = usedInBlock.load(ordering: .acquiring)
    var block = unsafe blocks.load(ordering: .acquiring)
    while let base = unsafe block {
      for index in 0..<count {
        let socket = unsafe (base + SocketSlab.blockHeader + index * SocketSlab.stride).assumingMemoryBound(to: Socket.self)
        if unsafe socket.kind == Kind.socket { unsafe body(socket) }
      }
      unsafe block = base.load(as: UnsafeMutableRawPointer?.self)
      count = SocketSlab.perBlock
    }
  }
}

/// Sockets come and go.
@c(mn_hook_socket_made)
public func socketMade(_ fd: Int32, _ domain: Int32, _ type: Int32, _ protocolNumber: Int32) {
  guard let process = unsafe process, mn_is_at_home() else { return }
  guard protocolNumber == 0 || protocolNumber == Int32(MN_IPPROTO_UDP) else { return }
  guard unsafe Lock.acquire(process) else { return }
  defer { unsafe Lock.release(process) }
  guard unsafe Control.finishGreeting(process) else { return }
  unsafe Process.refreshMask(process)
  guard unsafe process.pointee.programMask.mask.pointee.leadsToMachnet, unsafe Socket.make(process, fd, domain) != nil else {
    unsafe mn_log(3, "socket %: no rule names this program", Int64(fd), 0)
    return
  }
}

/// A descriptor that was open before the program began (exec), or that another process has passed to it: the socket may have
/// been on Machnet, and have datagrams that nobody has received yet.
@c(mn_hook_inherited)
public func inherited(_ fd: Int32) {
  guard let process = unsafe process, mn_is_at_home(), Socket.option(fd, MN_SO_TYPE) == Int32(MN_SOCK_DGRAM),
    Socket.option(fd, MN_SO_PROTOCOL) == Int32(MN_IPPROTO_UDP), unsafe Lock.acquire(process)
  else { return }
  var made: SocketPointer?
  if unsafe Control.finishGreeting(process) {
    unsafe Process.refreshMask(process)
    let cookie = Socket.cookie(of: fd)
    var twin: SocketPointer?
    unsafe process.pointee.sockets.forEach { if unsafe $0.pointee.cookie == cookie { unsafe twin = $0 } }
    if let twin = unsafe twin {
      if unsafe mn_table_set(fd, twin) { unsafe twin.pointee.descriptors = twin.pointee.descriptors &+ 1 }
    } else {
      unsafe made = Socket.make(process, fd, Socket.option(fd, MN_SO_DOMAIN))
    }
  }
  unsafe Lock.release(process)
  guard let socket = unsafe made else { return }
  unsafe socket.pointee.isSettling = true
  // The last program may have set SO_RCVBUF (SOCK_RCVBUF_LOCK of Linux).
  unsafe socket.pointee.hasReceiveLimit = Socket.option(fd, MN_SO_BUF_LOCK) & 2 != 0
  unsafe Socket.attachBound(socket, fd, process, inherited: true)
}

extension Socket {
  @inline(never)
  static func option(_ fd: Int32, _ name: Int) -> Int32 {
    var value: Int32 = 0
    var length: UInt32 = 4
    _ = unsafe mn_sys_getsockopt(fd, Int32(MN_SOL_SOCKET), Int32(name), &value, &length)
    return value
  }

  /// Puts a socket into the table, on the kernel so far. The caller holds the process's lock.
  @inline(never)
  static func make(_ process: ProcessPointer, _ fd: Int32, _ domain: Int32) -> SocketPointer? {
    guard unsafe Process.openTable(process), UInt32(bitPattern: fd) < mn_table_size(),
      let socket = unsafe process.pointee.sockets.allocate()
    else { return nil }
    unsafe start(socket, fd, domain)
    unsafe Socket.countWatched(socket)
    _ = unsafe mn_table_set(fd, socket)
    return unsafe socket
  }
}

/// The program is about to close `fd`.
@c(mn_hook_closing)
public func closing(_ entry: UnsafeMutableRawPointer, _ fd: Int32) {
  if unsafe leaving(entry, fd) { unsafe left(entry, fd, false) }
}

/// - Returns: nil when the number means another file by now.
@c(mn_hook_checked)
public func checked(_ entry: UnsafeMutableRawPointer, _ fd: Int32) -> UnsafeMutableRawPointer? {
  guard let socket = unsafe Socket.from(entry), unsafe Socket.isStale(socket, fd) else { return unsafe entry }
  unsafe closing(entry, fd)
  return nil
}

/// The program is about to close `fd`, or to put another file in its place: from now on the number is the kernel's, so that
/// no moment comes in which it means one file there and another here.
///
/// - Returns: whether the number was the entry's: another thread may be closing it, too. Then `left` follows.
@c(mn_hook_leaving)
@inline(never)
public func leaving(_ entry: UnsafeMutableRawPointer, _ fd: Int32) -> Bool {
  // (The child of a vfork closes descriptors of its own; the table is its parent's.)
  guard let process = unsafe process, mn_is_at_home() else { return false }
  let locked = unsafe Lock.acquire(process)
  defer { if locked { unsafe Lock.release(process) } }
  guard unsafe mn_table_get(fd) == entry else { return false }
  _ = mn_table_set(fd, nil)
  // The entry is gone before the waiters are looked at: pairs with `hold`.
  mn_fence()
  if let socket = unsafe Socket.from(entry) {
    if unsafe Socket.isWaitedOn(socket) { _ = unsafe Socket.pinned(socket, fd) }
  }
  return true
}

/// The program has closed `fd` (after `leaving`), or replaced it.
///
/// - Parameter restored: it has not; the call failed.
@c(mn_hook_left)
@inline(never)
public func left(_ entry: UnsafeMutableRawPointer, _ fd: Int32, _ restored: Bool) {
  guard let process = unsafe process else { return }
  let locked = unsafe Lock.acquire(process)
  defer { if locked { unsafe Lock.release(process) } }
  if restored {
    _ = unsafe mn_table_set(fd, entry)
    return
  }
  if locked { unsafe closed(entry, fd, process) } else { unsafe Deferred.add(entry, fd) }
}

/// `fd` is no longer a name of the entry. The caller holds the process's lock.
@inline(never)
func closed(_ entry: UnsafeMutableRawPointer, _ fd: Int32, _ process: ProcessPointer) {
  guard let socket = unsafe Socket.from(entry) else {
    unsafe Epoll.closed(entry.assumingMemoryBound(to: Epoll.self), process)
    return
  }
  unsafe socket.pointee.descriptors = socket.pointee.descriptors &- 1
  unsafe Watch.closed(socket, descriptor: fd, last: false)
  if unsafe socket.pointee.fd == fd { unsafe socket.pointee.fd = socket.pointee.hidden }
  // The descriptor is gone before the waiters are looked at: pairs with `letGo`. One of the two ends the socket.
  mn_fence()
  if unsafe socket.pointee.descriptors == 0 && !Socket.isWaitedOn(socket) { unsafe Socket.end(socket, process) }
}

/// `to` is now another name of `from`'s socket or epoll.
@c(mn_hook_duplicated)
public func duplicated(_ entry: UnsafeMutableRawPointer, _ from: Int32, _ to: Int32) {
  guard let process = unsafe process, mn_is_at_home(), unsafe Lock.acquire(process) else { return }
  defer { unsafe Lock.release(process) }
  guard unsafe mn_table_get(from) == entry, unsafe mn_table_set(to, entry) else { return }
  if unsafe mn_load_relaxed_u32(entry) == Kind.epoll {
    let epoll = unsafe entry.assumingMemoryBound(to: Epoll.self)
    unsafe epoll.pointee.descriptors = epoll.pointee.descriptors &+ 1
  } else {
    let socket = unsafe entry.assumingMemoryBound(to: Socket.self)
    unsafe socket.pointee.descriptors = socket.pointee.descriptors &+ 1
  }
}

extension Socket {
  /// The socket is a candidate, has an endpoint, has lost it or is closed: tells the trampolines, and brings
  /// `mn_watched_count` up to date (sockets that poll and select cannot leave to the kernel).
  static func countWatched(_ socket: SocketPointer) {
    unsafe showHead(socket)
    let watched = unsafe socket.pointee.undecided || socket.pointee.hasLiveRings || socket.pointee.hasOldInput
    if unsafe watched == socket.pointee.watched { return }
    unsafe socket.pointee.watched = watched
    mn_watched_add(watched ? 1 : -1)
  }

  private static func showHead(_ socket: SocketPointer) {
    let receive: Int
    if unsafe socket.pointee.engineLost {
      receive = MN_RECEIVE_ASK
    } else if unsafe socket.pointee.endpoint == nil {
      receive = unsafe socket.pointee.undecided ? MN_RECEIVE_CANDIDATE : MN_RECEIVE_KERNEL
    } else if let channel = unsafe socket.pointee.channel {
      unsafe mn_head_show(
        socket, UInt32(MN_RECEIVE_LOOK), socket.pointee.endpoint, channel.pointee.reader(socket.pointee.index, 0),
        mn_ring_stride(UInt64(channel.pointee.rxCapacity)), channel.pointee.engineCount, channel.pointee.txCapacity)
      return
    } else {
      receive = MN_RECEIVE_ASK
    }
    unsafe mn_head_show(socket, UInt32(receive), nil, nil, 0, 0, 0)
  }

  /// The program bound or connected the socket, and no endpoint came of it: the kernel's, as far as waiting goes.
  static func decide(_ socket: SocketPointer) {
    unsafe socket.pointee.undecided = socket.pointee.awaits
    unsafe countWatched(socket)
  }

  /// This process lets go of the endpoint; the last holder tells the daemon. The caller holds the process's lock.
  ///
  /// - Parameter hadEngine: the engine served it until now.
  private static func release(_ socket: SocketPointer, _ process: ProcessPointer, _ hadEngine: Bool, _ hadRings: Bool) {
    let references = unsafe word(socket, Int(MN_OFFSET_ENDPOINT_REFERENCES))
    let left = unsafe mn_fetch_add_u32(references, UInt32.max)
    if left == 1 {
      if hadEngine { unsafe giveBack(socket, process) }
      unsafe leaveOldBlock(socket, process)
    } else if unsafe socket.pointee.hasJoined && hadRings {
      unsafe close(socket, process, keeping: false)
    }
    unsafe dropEvent(socket)
    // `endpoint` stays: a thread inside a call on this socket still reads the block, which stays mapped.
  }

  @inline(never)
  static func dropEvent(_ socket: SocketPointer) {
    let event = unsafe socket.pointee.event
    unsafe socket.pointee.event = -1
    Process.drop(event)
  }

  private static func dropKick(_ socket: SocketPointer) {
    let kick = unsafe socket.pointee.kick
    unsafe socket.pointee.kick = -1
    Process.drop(kick)
  }

  private static func dropHidden(_ socket: SocketPointer) {
    let hidden = unsafe socket.pointee.hidden
    unsafe socket.pointee.hidden = -1
    Process.drop(hidden)
  }

  /// No descriptor is left, and no call waits. The caller holds the process's lock.
  @inline(never)
  static func end(_ socket: SocketPointer, _ process: ProcessPointer) {
    unsafe Watch.closed(socket, descriptor: -1, last: true)
    unsafe socket.pointee.undecided = false
    unsafe socket.pointee.awaits = false
    if unsafe process.pointee.unansweredSocket == socket { unsafe process.pointee.unansweredSocket = nil }
    if unsafe socket.pointee.endpoint != nil {
      let hadEngine = unsafe !socket.pointee.engineLost
      let hadRings = unsafe socket.pointee.hasLiveRings
      unsafe socket.pointee.engineLost = true
      // A call on it that another thread has begun is at an end, or finds nothing to do: the block is another socket's soon.
      unsafe unbindRings(socket)
      unsafe release(socket, process, hadEngine, hadRings)
    }
    unsafe socket.pointee.engineLost = true
    unsafe socket.pointee.hasOldInput = false
    unsafe countWatched(socket)
    unsafe dropKick(socket)
    unsafe dropHidden(socket)
    unsafe process.pointee.sockets.free(socket)
  }

  /// Tells the daemon that nobody uses the endpoint any more. The caller holds the process's lock.
  @inline(never)
  static func close(_ socket: SocketPointer, _ process: ProcessPointer, keeping: Bool) {
    var flags = 0
    if keeping { flags = unsafe process.pointee.leaver == mn_thread_id() ? MN_CLOSE_KEEPING | MN_CLOSE_LEAVING : MN_CLOSE_KEEPING }
    if unsafe keeping && socket.pointee.retired == .passed { flags |= MN_CLOSE_PASSING }
    unsafe close(socket.pointee.channel.unsafelyUnwrapped, socket.pointee.index, process, flags)
  }

  /// - Parameter how: MN_CLOSE_*.
  static func close(_ channel: UnsafeMutablePointer<Channel>, _ index: UInt32, _ process: ProcessPointer, _ how: Int) {
    var request = mn_request()
    if unsafe process.pointee.control < 0 { _ = unsafe Control.finishGreeting(process) }
    unsafe Control.fill(&request, kind: MN_REQUEST_CLOSE, process)
    request.channel = unsafe channel.pointee.identifier
    request.endpoint = index
    request.token = unsafe channel.pointee.token
    request.flags = UInt32(how)
    // (What a slow daemon has no room for, it finds out by itself.)
    let flags = unsafe process.pointee.unanswered != 0 ? Int32(MN_MSG_DONTWAIT) : 0
    if unsafe process.pointee.control >= 0 { _ = unsafe Control.send(process.pointee.control, &request, passing: -1, flags: flags) }
    unsafe channel.pointee.full = false
  }

  /// The endpoint ends, here and with the daemon. The caller holds the process's lock.
  ///
  /// - Parameter keeping: its rings are read on; `leaveOldBlock` ends that.
  static func giveBack(_ socket: SocketPointer, _ process: ProcessPointer, keeping: Bool = false) {
    unsafe close(socket, process, keeping: keeping)
    // On the kernel nothing reaches a socket that is closed. The daemon needs a moment to take the address out of the
    // table of local endpoints; until then this process, which knows, leaves its datagrams for it to the kernel.
    let local = unsafe socket.pointee.local
    let key = unsafe mn_local_key(socket.pointee.netns, local.address, local.port)
    unsafe process.pointee.departed[process.pointee.departedNext & 7].store(key, ordering: .relaxed)
    unsafe process.pointee.departedNext = process.pointee.departedNext &+ 1
    mn_departed_begin(mn_sys_nanoseconds() &+ Process.departure)
  }

  /// Whether a local endpoint that the table still shows is one that this process has just closed.
  @inline(never)
  static func hasDeparted(_ process: ProcessPointer, netns: UInt16, _ name: Name) -> Bool {
    let until = mn_departed_until()
    if mn_sys_nanoseconds() > until {
      // (Unless another thread has just given up one more.)
      mn_departed_end(until)
      return false
    }
    for index in 0..<8 {
      let key = unsafe process.pointee.departed[index].load(ordering: .relaxed)
      if key == mn_local_key(netns, name.address, name.port) || key == mn_local_key(netns, 0, name.port) { return true }
    }
    return false
  }
}

/// Calls that wait. The kernel's own hold the open file; ours go by its number, which the program may close meanwhile, or
/// give to another file. So a call that waits is counted, and what it asks of the shadow it asks by a hidden descriptor.
extension Socket {
  /// A call on `fd` begins to wait; `letGo` follows in any case. Until then the socket stays what it is, closed or not.
  ///
  /// - Parameter mask: the thread's mask; all signals are blocked from here on. (Who closes a descriptor under a blocked
  ///   thread and then signals it must not find it between the two.)
  /// - Returns: false when `fd` has been closed before.
  @inline(never)
  static func hold(_ socket: SocketPointer, _ fd: Int32, _ mask: inout UInt64) -> Bool {
    unsafe mn_sys_signals_block(&mask)
    unsafe socket.pointee.waiters.wrappingAdd(1, ordering: .relaxed)
    unsafe socket.pointee.waiter = mn_thread_id()
    // The waiter is counted before the table is looked at: pairs with the fence of `leaving`. One of the two sees the other.
    mn_fence()
    return unsafe mn_table_get(fd) == UnsafeMutableRawPointer(socket)
  }

  /// Whether some call waits. One of this very thread does not: its signal handler closes what it waits for, and the call
  /// finds nothing when it goes on; or the handler has jumped out of it.
  static func isWaitedOn(_ socket: SocketPointer) -> Bool {
    let count = unsafe socket.pointee.waiters.load(ordering: .relaxed)
    return unsafe count > 1 || count == 1 && socket.pointee.waiter != mn_thread_id()
  }

  /// The number by which a call that holds the socket asks its shadow.
  ///
  /// - Returns: -1: closed by a signal handler of this thread, or by a way that we did not see.
  @inline(never)
  static func pin(_ socket: SocketPointer, _ fd: Int32) -> Int32 {
    guard let process = unsafe process, unsafe Lock.acquire(process) else { return fd }
    defer { unsafe Lock.release(process) }
    if unsafe socket.pointee.hidden >= 0 { return unsafe socket.pointee.hidden }
    return unsafe mn_table_get(fd) != UnsafeMutableRawPointer(socket) || isStale(socket, fd) ? -1 : pinned(socket, fd)
  }

  static func cookie(of fd: Int32) -> UInt64 {
    var cookie: UInt64 = 0
    var length: UInt32 = 8
    _ = unsafe mn_sys_getsockopt(fd, Int32(MN_SOL_SOCKET), Int32(MN_SO_COOKIE), &cookie, &length)
    return cookie
  }

  /// Whether the number has been closed by a way that we did not see (a raw system call, io_uring), and means another file.
  @inline(never)
  static func isStale(_ socket: SocketPointer, _ fd: Int32) -> Bool { unsafe cookie(of: fd) != socket.pointee.cookie }

  /// The caller holds the process's lock. Where there is no descriptor left, the program's own must do.
  @inline(never)
  static func pinned(_ socket: SocketPointer, _ fd: Int32) -> Int32 {
    if unsafe socket.pointee.hidden < 0 { unsafe socket.pointee.hidden = Process.copy(fd) }
    return unsafe socket.pointee.hidden < 0 ? fd : socket.pointee.hidden
  }

  static func letGo(_ socket: SocketPointer, _ mask: UInt64) {
    unsafe letGo(socket)
    unsafe withUnsafePointer(to: mask) { unsafe mn_sys_signals_restore($0) }
  }

  /// A call waits no more. Also what runs when its thread is cancelled.
  @inline(never)
  static func letGo(_ socket: SocketPointer) {
    let before = unsafe socket.pointee.waiters.wrappingSubtract(1, ordering: .releasing).oldValue
    // (Pairs with `closed`.)
    mn_fence()
    guard unsafe before == 1 && (socket.pointee.hidden >= 0 || socket.pointee.descriptors == 0), let process = unsafe process,
      unsafe Lock.acquire(process)
    else { return }
    defer { unsafe Lock.release(process) }
    guard unsafe socket.kind == Kind.socket && socket.pointee.waiters.load(ordering: .relaxed) == 0 else { return }
    if unsafe socket.pointee.descriptors == 0 {
      unsafe end(socket, process)
    } else {
      if unsafe socket.pointee.fd == socket.pointee.hidden { unsafe socket.pointee.fd = -1 }
      unsafe dropHidden(socket)
    }
  }
}

@c(mn_hook_cancelled)
public func cancelled(_ socket: UnsafeMutableRawPointer) { unsafe Socket.letGo(socket.assumingMemoryBound(to: Socket.self)) }
