import CLinux
import CMachnetABI
import MachnetChannel
public import MachnetTransport
import Synchronization

/// The control thread's hold on one engine: orders in, faults and numbers out.
///
/// Orders take effect between two iterations of the engine, in the order in which they were given; each returns a
/// ticket that is done when it has. Any thread may call; callers take turns under a lock that the engine never sees.
public final class EngineControl: @unchecked Sendable {
  /// Names an order. Tickets of one engine are done in order.
  public struct Ticket: Sendable, Hashable {
    let number: UInt64
  }

  /// Why an order was not even taken.
  public enum Refusal: Error, Sendable {
    /// A table of the engine is full.
    case tooMany
    /// The channel's header does not describe a channel of the stated size for this engine.
    case badChannel
    /// No such channel or endpoint.
    case unknown
    /// The engine has not taken orders for a second.
    case notListening
  }

  public let options: EngineOptions
  /// Readable when `nextFault` has something to tell; stays so until `nextFault` returned nil.
  public let faultDescriptor: Int32

  let mailbox: Mailbox
  private(set) var siblings: [Mailbox] = []
  let wakeDescriptor: Int32
  /// How the engine wakes applications.
  private(set) var waker = mn_linux_waker(context: 0, ready: -1)
  let epoll: Int32

  private struct Books {
    var channels: [UInt32: (slot: UInt32, doorbell: Int32)] = [:]
    var freeChannels = SlotPool(capacity: UInt32(EngineLimits.channels))
    var endpoints: [EndpointReference: UInt32] = [:]
    var freeEndpoints = SlotPool(capacity: UInt32(EngineLimits.endpoints))
    var tail: UInt64 = 0
  }
  private let books = Mutex(Books())

  /// Channels that an engine serves at a time.
  public static var channelsMax: Int { EngineLimits.channels }

  /// - Returns: nil when the system has no memory or descriptors left.
  public init?(options: EngineOptions) {
    precondition(options.index < MN_ENGINES_MAX && options.interfaces.count <= EngineLimits.ports)
    guard let mailbox = Mailbox() else { return nil }
    self.options = options
    self.mailbox = mailbox
    wakeDescriptor = mn_linux_eventfd()
    faultDescriptor = mn_linux_eventfd()
    epoll = mn_linux_epoll_create()
    guard wakeDescriptor >= 0, faultDescriptor >= 0, mn_linux_epoll_add(epoll, wakeDescriptor, 0) == 0 else {
      return nil
    }
    unsafe mn_linux_waker_open(&waker)
  }

  /// Lets the engines of one daemon hear what ARP packets say to any of them: NICs put them all into the first queue.
  ///
  /// Before any of the engines is made; and all engines end before any of the controls goes away.
  public static func introduce(_ controls: [EngineControl]) {
    precondition(controls.count <= MN_ENGINES_MAX)
    for control in controls {
      control.siblings = controls.filter { $0 !== control }.map(\.mailbox)
    }
  }

  deinit {
    mailbox.release()
    unsafe mn_linux_waker_close(&waker)
    for descriptor in [wakeDescriptor, faultDescriptor, epoll] where descriptor >= 0 { mn_linux_close(descriptor) }
  }

  // MARK: Orders

  /// Shows the engine a channel that the application has not seen yet (its header is still the daemon's word).
  ///
  /// - Parameters:
  ///   - base: `size` mapped bytes, until the ticket of `removeChannel` is done.
  ///   - doorbell: eventfd that the application writes when the engine sleeps; the caller closes it after removal.
  public func addChannel(identifier: UInt32, base: UnsafeMutableRawPointer, size: Int, doorbell: Int32) throws(Refusal)
    -> Ticket
  {
    let header = unsafe base.assumingMemoryBound(to: mn_channel.self)
    let description = unsafe ChannelDescription(
      identifier: identifier, base: base, endpointCapacity: header.pointee.endpoint_capacity,
      engineCount: header.pointee.engine_count, txCapacity: header.pointee.tx_capacity,
      rxCapacity: header.pointee.rx_capacity)
    guard unsafe header.pointee.magic == MN_MAGIC, description.endpointCapacity <= MN_CHANNEL_ENDPOINTS_MAX,
      options.index < description.engineCount, description.engineCount <= MN_ENGINES_MAX,
      isRingCapacity(description.txCapacity), isRingCapacity(description.rxCapacity),
      mn_channel_size(
        description.endpointCapacity, description.engineCount, description.txCapacity, description.rxCapacity)
        <= UInt64(size)
    else { throw .badChannel }
    return try order { (books) throws(Refusal) in
      guard books.channels[identifier] == nil, let slot = books.freeChannels.take() else { throw .tooMany }
      // The engine is not asked to make system calls: its interest in the doorbell is registered from here.
      _ = mn_linux_epoll_add(epoll, doorbell, 0)
      books.channels[identifier] = (slot, doorbell)
      return Command(kind: .addChannel, slot: slot, channel: description)
    }
  }

  /// The engine lets go of a channel and of every endpoint in it. When the ticket is done, it may be unmapped.
  public func removeChannel(identifier: UInt32) throws(Refusal) -> Ticket {
    try order { (books) throws(Refusal) in
      guard let channel = books.channels.removeValue(forKey: identifier) else { throw .unknown }
      _ = mn_linux_epoll_remove(epoll, channel.doorbell)
      for (reference, slot) in books.endpoints where reference.channel == identifier {
        books.endpoints[reference] = nil
        books.freeEndpoints.give(slot)
      }
      books.freeChannels.give(channel.slot)
      return Command(kind: .removeChannel, slot: channel.slot)
    }
  }

  /// Starts serving an endpoint. Its block's ring indices must be 0, or as an orderly close has left them.
  public func openEndpoint(_ reference: EndpointReference, _ identity: EndpointIdentity) throws(Refusal) -> Ticket {
    try order { (books) throws(Refusal) in
      guard let channel = books.channels[reference.channel], reference.index < MN_CHANNEL_ENDPOINTS_MAX else {
        throw .unknown
      }
      guard books.endpoints[reference] == nil, let slot = books.freeEndpoints.take() else { throw .tooMany }
      books.endpoints[reference] = slot
      return Command(
        kind: .open, slot: slot, channelSlot: channel.slot, index: reference.index, identity: identity)
    }
  }

  /// Changes an endpoint's peer (port 0: none) and local address.
  public func connectEndpoint(
    _ reference: EndpointReference, peerAddress: UInt32, peerPort: UInt16, localAddress: UInt32
  ) throws(Refusal) -> Ticket {
    try order { (books) throws(Refusal) in
      guard let slot = books.endpoints[reference] else { throw .unknown }
      var identity = EndpointIdentity(localPort: 0, eventDescriptor: -1)
      identity.localAddress = localAddress
      identity.peerAddress = peerAddress
      identity.peerPort = peerPort
      return Command(kind: .connect, slot: slot, identity: identity)
    }
  }

  /// Sends what the endpoint has queued (for a bounded time), then forgets it.
  public func closeEndpoint(_ reference: EndpointReference) throws(Refusal) -> Ticket {
    try order { (books) throws(Refusal) in
      guard let slot = books.endpoints.removeValue(forKey: reference) else { throw .unknown }
      // The next use of the slot is an order behind this one, so it may be given away at once.
      books.freeEndpoints.give(slot)
      return Command(kind: .close, slot: slot)
    }
  }

  /// Copies traffic into a capture's memory (`MN_PAGE + MN_CAPTURE_DATA` zeroed bytes) from now on, or into none.
  ///
  /// When the ticket is done, the engine has let go of the memory that it had before.
  ///
  /// - Parameters:
  ///   - address: only frames from or to it, host byte order; 0: any.
  ///   - port: likewise; 0: any.
  ///   - snap: bytes of a frame that are kept.
  public func capture(into base: UnsafeMutableRawPointer?, address: UInt32 = 0, port: UInt16 = 0, snap: Int = 0) throws(Refusal)
    -> Ticket
  {
    try order { _ throws(Refusal) in
      let order = unsafe CaptureOrder(base: base, address: address, port: port, snap: snap)
      return Command(kind: .capture, slot: 0, capture: order)
    }
  }

  public func isDone(_ ticket: Ticket) -> Bool { mailbox.load(Mailbox.commandHead) >= ticket.number }

  /// Waits until an order has taken effect.
  ///
  /// - Returns: false when it has not after `milliseconds`.
  public func wait(for ticket: Ticket, milliseconds: Int = 1000) -> Bool {
    let limit = mn_linux_monotonic() + UInt64(milliseconds) * 1_000_000
    while !isDone(ticket) {
      if mn_linux_monotonic() > limit { return false }
      mn_linux_sleep(20_000)
    }
    return true
  }

  /// Asks the engine to end; its `run` returns within an iteration.
  public func stop() {
    mailbox.store(Mailbox.stop, 1)
    mn_linux_eventfd_signal(wakeDescriptor)
  }

  /// Has a sleeping engine make a round, which its counters show.
  public func prod() { mn_linux_eventfd_signal(wakeDescriptor) }

  private func order(_ make: (inout Books) throws(Refusal) -> Command) throws(Refusal) -> Ticket {
    try books.withLock { (books) throws(Refusal) in
      let limit = mn_linux_monotonic() + 1_000_000_000
      // Acquire of the head pairs with the engine's release when it has taken a command out of its place.
      while books.tail &- mailbox.load(Mailbox.commandHead) >= UInt64(EngineLimits.commands) {
        if mn_linux_monotonic() > limit { throw .notListening }
        mn_linux_sleep(20_000)
      }
      let command = try make(&books)
      unsafe mailbox.commandSlot(books.tail).pointee = command
      books.tail += 1
      mailbox.store(Mailbox.commandTail, books.tail)
      // Pairs with the engine's fence between "I sleep" and its last look at the mailbox.
      mn_fence()
      if unsafe mn_load_relaxed_u32(options.directory.engineWord(options.index)) != 0 {
        mn_linux_eventfd_signal(wakeDescriptor)
      }
      return Ticket(number: books.tail)
    }
  }

  private func isRingCapacity(_ capacity: UInt32) -> Bool {
    capacity >= MN_RING_MIN && capacity <= MN_RING_MAX && capacity & (capacity - 1) == 0
  }

  // MARK: Reports

  /// The oldest fault that was not yet told.
  public func nextFault() -> EngineFault? {
    books.withLock { _ in
      _ = mn_linux_eventfd_take(faultDescriptor)
      let head = mailbox.load(Mailbox.faultHead)
      if head == mailbox.load(Mailbox.faultTail) { return nil }
      let offset = Mailbox.faults + Int(head % UInt64(EngineLimits.faults)) * 8
      let identifier = UInt32(truncatingIfNeeded: mailbox.relaxed(offset))
      mailbox.store(Mailbox.faultHead, head + 1)
      mn_linux_eventfd_signal(faultDescriptor)
      return .channelDamaged(identifier)
    }
  }

  public func counters() -> EngineCounters {
    EngineCounters(
      values: EngineCounter.allCases.map { mailbox.relaxed(Mailbox.counters + $0.rawValue * 8) },
      dropped: DropReason.allCases.map { mailbox.relaxed(Mailbox.drops + $0.rawValue * 8) })
  }

  /// What an endpoint did at this engine; nil: it is not open.
  public func counters(of reference: EndpointReference) -> EndpointCounters? {
    guard let slot = books.withLock({ $0.endpoints[reference] }) else { return nil }
    let block = mailbox.endpointBlock(slot)
    var counters = EndpointCounters()
    counters.rxDatagrams = mailbox.relaxed(block)
    counters.rxBytes = mailbox.relaxed(block + 8)
    counters.txDatagrams = mailbox.relaxed(block + 16)
    counters.txBytes = mailbox.relaxed(block + 24)
    for reason in DropReason.allCases {
      let index = reason.rawValue - Mailbox.endpointDropFirst
      guard index >= 0 && index < Mailbox.endpointDropCount else { continue }
      let count = mailbox.relaxed(block + 32 + index * 8)
      if count != 0 { counters.drops.append((reason, count)) }
    }
    return counters
  }

  /// What the transport `machnet` has counted, up to the last hundredth of a second.
  public func transportCounters() -> [(counter: TransportCounter, count: UInt64)] {
    TransportCounter.allCases.map { ($0, mailbox.relaxed(Mailbox.transport + $0.rawValue * 8)) }
  }

  /// The sessions of the engine, at most `EngineLimits.shownSessions`.
  public func sessions() -> [SessionStatus] {
    var found: [SessionStatus] = []
    for index in 0..<EngineLimits.shownSessions {
      let block = Mailbox.sessions + index * Mailbox.sessionStride
      let addresses = mailbox.load(block)
      if addresses == 0 { break }
      let words = (1...8).map { mailbox.load(block + $0 * 8) }
      guard mailbox.load(block) == addresses else { continue }
      found.append(
        SessionStatus(
          port: Int(words[0] >> 32), localAddress: UInt32(addresses >> 32),
          remoteAddress: UInt32(truncatingIfNeeded: addresses), remoteEngine: UInt8(truncatingIfNeeded: words[0] >> 8),
          isOpen: words[0] & 1 != 0, setUpTime: words[7], smoothedRTT: words[1], minimumRTT: words[2],
          congestionWindow: Double(words[3] >> 32) / 1000, inFlight: Int(UInt32(truncatingIfNeeded: words[3])),
          packetsSent: words[4], packetsReceived: words[5], retransmissions: words[6]))
    }
    return found
  }

  /// The neighbours of a port (by its place in `EngineOptions.interfaces`).
  public func neighbours(port: Int) -> [NeighbourSnapshot] {
    precondition(port >= 0 && port < EngineLimits.ports)
    return (0..<EngineLimits.neighbours).compactMap { index in
      let offset = mailbox.neighbour(port: port, index)
      let word = mailbox.load(offset)
      let mac = mailbox.load(offset + 8)
      guard let state = NeighbourSnapshot.State(rawValue: UInt8(truncatingIfNeeded: word)),
        mailbox.load(offset) == word
      else { return nil }
      return NeighbourSnapshot(address: UInt32(word >> 32), mac: mac, state: state)
    }
  }
}

/// Numbers that are free, lowest first as long as none came back.
private struct SlotPool {
  private var returned: [UInt32] = []
  private var next: UInt32 = 0
  private let capacity: UInt32

  init(capacity: UInt32) { self.capacity = capacity }

  mutating func take() -> UInt32? {
    if let slot = returned.popLast() { return slot }
    guard next < capacity else { return nil }
    defer { next += 1 }
    return next
  }

  mutating func give(_ slot: UInt32) { returned.append(slot) }
}
