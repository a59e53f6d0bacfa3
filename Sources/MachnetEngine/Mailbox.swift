import CLinux
import CMachnetABI
import MachnetTransport

/// Limits of one engine's tables. Memory is reserved at start and costs nothing until it is used.
enum EngineLimits {
  static let endpoints = 65_536
  static let channels = 2_048
  static let ports = 16
  static let commands = 1_024
  static let faults = 256
  static let neighbours = 512
  /// ARP packets and ICMP messages that the daemon's other engines have not heard of yet; those behind miss some.
  static let heard = 256
  /// Sessions of an engine that `machnet status` shows at most.
  static let shownSessions = 256
}

/// One order of the control thread. Slots are numbers that the control side hands out, so that the engine need
/// not search.
struct Command: BitwiseCopyable {
  enum Kind: UInt8 {
    case addChannel, removeChannel, open, connect, close, capture
  }
  var kind: Kind
  /// Of the channel (add, remove) or of the endpoint.
  var slot: UInt32
  // addChannel
  var channel = ChannelDescription()
  // open: where it lives
  var channelSlot: UInt32 = 0
  var index: UInt32 = 0
  // capture: what to keep, and where; nowhere: the end of it
  var capture = CaptureOrder()
  // open, connect
  var identity = EndpointIdentity(localPort: 0, eventDescriptor: -1)
}

/// An engine's own copy of what a channel's header says: the application can write the header.
@safe
struct ChannelDescription: BitwiseCopyable {
  var identifier: UInt32 = 0
  /// Safety: mapped by the control thread until the ticket of `removeChannel` is done.
  var base: UnsafeMutableRawPointer? = nil
  var endpointCapacity: UInt32 = 0
  var engineCount: UInt32 = 0
  var txCapacity: UInt32 = 0
  var rxCapacity: UInt32 = 0
}

/// The memory through which a control thread and one engine thread talk: a command ring one way, a fault ring the
/// other, and words that the engine counts in and the control thread reads. No locks; every index has one writer.
@safe
struct Mailbox: @unchecked Sendable {
  /// Safety: one zeroed mapping, made by `init` and unmapped by `release`, divided by the offsets below.
  let base: UnsafeMutableRawPointer

  static let commandTail = 0  // control writes
  static let commandHead = 64  // engine writes
  static let faultTail = 128  // engine writes
  static let faultHead = 192  // control writes
  static let stop = 256  // control writes
  static let running = 320  // engine writes: 1 from its first iteration to its last
  static let heardTail = 328  // engine writes
  static let counters = 384  // engine writes
  static let drops = counters + 64 * 8
  static let commands = 4096
  static let faults = commands + EngineLimits.commands * MemoryLayout<Command>.stride
  static let neighbours = (faults + EngineLimits.faults * 8 + 4095) & ~4095
  static let heard = neighbours + EngineLimits.ports * EngineLimits.neighbours * 16
  static let endpoints = heard + EngineLimits.heard * 16
  static let endpointStride = 192
  static let transport = endpoints + EngineLimits.endpoints * endpointStride
  static let sums = transport + 64 * 8
  static let sessions = sums + 64 * 8
  static let size = sessions + EngineLimits.shownSessions * sessionStride
  static let sessionStride = 72

  /// Drops that are counted per endpoint: `receiveRingFull`...`peerPaused`, after its four counters.
  static var endpointDropFirst: Int { DropReason.receiveRingFull.ordinal }
  static var endpointDropCount: Int { DropReason.peerPaused.ordinal - endpointDropFirst + 1 }

  init?() {
    precondition(Mailbox.endpointDropCount <= 20 && DropReason.allCases.count <= 64)
    precondition(EngineCounter.allCases.count <= 64)
    guard let memory = unsafe mn_linux_map(Mailbox.size) else { return nil }
    unsafe base = memory
  }

  func release() { unsafe mn_linux_unmap(base, Mailbox.size) }

  @inline(__always) @_noLocks
  func load(_ offset: Int) -> UInt64 { unsafe mn_load_acquire_u64(base + offset) }

  @inline(__always) @_noLocks
  func store(_ offset: Int, _ value: UInt64) { unsafe mn_store_release_u64(base + offset, value) }

  func commandSlot(_ number: UInt64) -> UnsafeMutablePointer<Command> {
    unsafe (base + Mailbox.commands).assumingMemoryBound(to: Command.self)
      + Int(number % UInt64(EngineLimits.commands))
  }

  // MARK: Counting: the engine is the only writer of these words, the control thread reads them at any time.

  @inline(__always) @_noLocks
  func add(_ offset: Int, _ amount: UInt64) {
    unsafe mn_store_relaxed_u64(base + offset, mn_load_relaxed_u64(base + offset) &+ amount)
  }

  @inline(__always) @_noLocks
  func count(_ counter: EngineCounter, _ amount: Int = 1) {
    add(Mailbox.counters + counter.ordinal * 8, UInt64(truncatingIfNeeded: amount))
  }

  @inline(__always) @_noLocks
  func drop(_ reason: DropReason, _ amount: Int = 1) {
    add(Mailbox.drops + reason.ordinal * 8, UInt64(truncatingIfNeeded: amount))
  }

  /// A drop that is also told to the endpoint's owner.
  @inline(__always) @_noLocks
  func drop(_ reason: DropReason, endpoint: UInt32) {
    drop(reason)
    let index = reason.ordinal - Mailbox.endpointDropFirst
    if index >= 0 && index < Mailbox.endpointDropCount { add(endpointBlock(endpoint) + 32 + index * 8, 1) }
  }

  @inline(__always) @_noLocks
  func countReceived(endpoint: UInt32, datagrams: UInt64, bytes: UInt64) {
    let block = endpointBlock(endpoint)
    add(block, datagrams)
    add(block &+ 8, bytes)
  }

  @inline(__always) @_noLocks
  func countSent(endpoint: UInt32, datagrams: UInt64, bytes: UInt64) {
    let block = endpointBlock(endpoint)
    add(block &+ 16, datagrams)
    add(block &+ 24, bytes)
  }

  @inline(__always) @_noLocks
  func clearCounters(endpoint: UInt32) {
    var offset = 0
    while offset < Mailbox.endpointStride {
      unsafe mn_store_relaxed_u64(base + endpointBlock(endpoint) + offset, 0)
      offset &+= 8
    }
  }

  @inline(__always) @_noLocks
  func endpointBlock(_ slot: UInt32) -> Int { Mailbox.endpoints + Int(slot) * Mailbox.endpointStride }

  func relaxed(_ offset: Int) -> UInt64 { unsafe mn_load_relaxed_u64(base + offset) }

  // MARK: Faults

  /// Tells the control thread; false when it has not listened for too long.
  @_noLocks
  func post(damaged identifier: UInt32) -> Bool {
    let tail = load(Mailbox.faultTail)
    if tail &- load(Mailbox.faultHead) >= UInt64(EngineLimits.faults) { return false }
    let offset = Mailbox.faults + Int(tail % UInt64(EngineLimits.faults)) * 8
    unsafe mn_store_relaxed_u64(base + offset, UInt64(identifier))
    store(Mailbox.faultTail, tail &+ 1)
    return true
  }

  // MARK: The neighbour table as others see it: address and state in one word, the Ethernet address in the next.

  @inline(__always) @_noLocks
  func neighbour(port: Int, _ index: Int) -> Int {
    Mailbox.neighbours + (port * EngineLimits.neighbours + index) * 16
  }

  @_noLocks
  func showNeighbour(port: Int, _ index: Int, address: UInt32, state: UInt8, mac: UInt64) {
    let offset = neighbour(port: port, index)
    // The state goes first and comes last, so that a reader never pairs an address with another one's MAC.
    store(offset, 0)
    store(offset + 8, mac)
    store(offset, UInt64(address) << 32 | UInt64(state))
  }

  // MARK: What ARP packets and ICMP messages have said, for the daemon's other engines

  @_noLocks
  func tell(_ said: Heard) {
    let tail = load(Mailbox.heardTail)
    let offset = Mailbox.heard &+ Int(tail % UInt64(EngineLimits.heard)) &* 16
    store(offset, UInt64(said.interface) << 32 | UInt64(said.address))
    store(offset &+ 8, said.detail | UInt64(said.kind.ordinal) << 48)
    store(Mailbox.heardTail, tail &+ 1)
  }

  /// What was told as number `number`; nil: the engine has meanwhile told so much that it may be gone.
  @_noLocks
  func heard(_ number: UInt64) -> Heard? {
    let offset = Mailbox.heard &+ Int(number % UInt64(EngineLimits.heard)) &* 16
    let who = load(offset)
    let what = load(offset &+ 8)
    // The place is written again just before the tail gets a full turn ahead.
    if load(Mailbox.heardTail) &- number >= UInt64(EngineLimits.heard) { return nil }
    return Heard(
      interface: UInt32(truncatingIfNeeded: who >> 32), address: UInt32(truncatingIfNeeded: who),
      detail: what & 0xFFFF_FFFF_FFFF, kind: what >> 48 == 0 ? .neighbour : what >> 48 == 1 ? .neighbourForUs : .unreachable)
  }

  // MARK: The transport, as others see it: sums over the ports, and a block of nine words per session.

  @_noLocks
  func beginTransport() {
    var counter = 0
    while counter < 64 {
      unsafe mn_store_relaxed_u64(base + Mailbox.sums + counter * 8, 0)
      counter &+= 1
    }
  }

  @_noLocks
  func addTransport(_ transport: borrowing Transport) {
    var counter = 0
    while counter < Transport.counterCount {
      add(Mailbox.sums + counter * 8, transport.value(at: counter))
      counter &+= 1
    }
  }

  @_noLocks
  func show(session: Int, _ it: Transport.SessionSnapshot, port: UInt32) {
    let block = Mailbox.sessions + session * Mailbox.sessionStride
    // The addresses go first and come last, as with neighbours.
    store(block, 0)
    store(block + 8, UInt64(port) << 32 | UInt64(it.remoteEngine) << 8 | (it.isOpen ? 1 : 0))
    store(block + 16, it.smoothedRTT)
    store(block + 24, it.minimumRTT)
    store(block + 32, UInt64(it.congestionWindow * 1000) << 32 | UInt64(truncatingIfNeeded: it.inFlight))
    store(block + 40, it.packetsSent)
    store(block + 48, it.packetsReceived)
    store(block + 56, it.retransmissions)
    store(block + 64, it.setUpTime)
    store(block, UInt64(it.localAddress) << 32 | UInt64(it.remoteAddress))
  }

  /// The first `count` blocks are sessions; the sums are complete.
  @_noLocks
  func endSessions(_ count: Int) {
    if count < EngineLimits.shownSessions { store(Mailbox.sessions + count * Mailbox.sessionStride, 0) }
    var counter = 0
    while counter < Transport.counterCount {
      unsafe mn_store_relaxed_u64(
        base + Mailbox.transport + counter * 8, mn_load_relaxed_u64(base + Mailbox.sums + counter * 8))
      counter &+= 1
    }
  }
}

/// What an ARP packet has said, or an ICMP message about a packet of a session.
struct Heard: BitwiseCopyable {
  enum Kind: UInt8 {
    /// A neighbour's addresses; and the packet asks for us, or answers us.
    case neighbour, neighbourForUs
    /// Nobody listens at the ports of a packet that was sent to `address`.
    case unreachable

    @inline(__always)
    var ordinal: UInt8 { @_noLocks get { unsafe unsafeBitCast(self, to: UInt8.self) } }
  }

  /// The address of ours on whose port it came.
  var interface: UInt32
  var address: UInt32
  /// 48 bits: the Ethernet address; or source and destination port.
  var detail: UInt64
  var kind: Kind
}

/// Another engine of the daemon.
struct Sibling: BitwiseCopyable {
  var mailbox: Mailbox
  /// How much of what it tells has been heard.
  var heard: UInt64
}
