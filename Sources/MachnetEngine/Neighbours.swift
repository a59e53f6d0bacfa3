import MachnetMemory

/// A port's neighbour table (ARP, RFC 826): sets of eight, so that a look-up and an eviction are bounded. Packets that
/// wait for an address are queued here.
///
/// Sans I/O: time comes in, what is to be sent comes out as an answer.
struct Neighbours {
  enum State: UInt8 { case free = 0, incomplete, reachable, stale }

  struct Entry {
    var state: State
    var attempts: UInt8
    var waiting: UInt16
    var address: UInt32
    var mac: UInt64
    /// When the neighbour last said that it is there, ns.
    var confirmed: UInt64
    /// When it was last asked, ns.
    var asked: UInt64
    /// Packets that wait for it: the first and the last place in `queue`, + 1; 0: none.
    var first: UInt16
    var last: UInt16
  }

  private struct Waiting {
    var packet: Packet
    /// The next place + 1; 0: the last.
    var next: UInt16
  }

  /// What to do with a packet for a neighbour.
  enum Answer {
    /// Send it there.
    case send(UInt64)
    /// Send it there, and ask the neighbour (at that address) whether it still is.
    case sendAndProbe(UInt64)
    /// Let it wait in this entry.
    case wait(UInt32)
    /// Let it wait in this entry, and ask for the address.
    case waitAndAsk(UInt32)
  }

  /// What the slow tick found.
  enum Event {
    case ask(UInt32, of: UInt32)
    case probe(UInt32, at: UInt64)
    /// Nobody answered: what waits in the entry is to be dropped.
    case unresolved(UInt32)
  }

  /// How long an answer is good, ns; then the neighbour is asked again while its address stays in use.
  static var reachableTime: UInt64 { 30_000_000_000 }
  /// Least time between two questions about one address, by number of the question before, ns.
  static var retransmits: (UInt64, UInt64, UInt64) { (100_000_000, 300_000_000, 1_000_000_000) }
  static var attemptsMax: UInt8 { 5 }
  /// Packets that wait for one neighbour (the oldest gives way), and for all: the first datagram to a neighbour may be
  /// of the largest size.
  static var waitingMax: UInt16 { 128 }
  static var queueMax: Int { 256 }
  private static var ways: UInt32 { 8 }

  let entries = Table<Entry>(count: EngineLimits.neighbours)
  private let queue = Table<Waiting>(count: Neighbours.queueMax)
  private var freePlace: UInt16 = 0
  /// Packets in `queue`.
  private(set) var waitingCount = 0

  init() {
    for place in 0..<Neighbours.queueMax {
      queue[place].next = place + 1 < Neighbours.queueMax ? UInt16(place + 2) : 0
    }
    freePlace = 1
  }

  func release() {
    entries.release()
    queue.release()
  }

  // MARK: Look-up

  @inline(__always) @_noLocks
  private func firstWay(_ address: UInt32) -> UInt32 {
    let sets = UInt32(EngineLimits.neighbours) / Neighbours.ways
    return ((address &* 0x9E37_79B1) >> 16) % sets &* Neighbours.ways
  }

  /// The entry of an address, or `none`.
  @inline(__always) @_noLocks
  func find(_ address: UInt32) -> UInt32 {
    let first = firstWay(address)
    var way: UInt32 = 0
    while way < Neighbours.ways {
      if entries[first &+ way].address == address && entries[first &+ way].state != .free { return first &+ way }
      way &+= 1
    }
    return none
  }

  /// Where a packet for `address` goes at time `now`.
  @inline(__always) @_noLocks
  mutating func resolve(_ address: UInt32, now: UInt64) -> Answer? {
    let index = find(address)
    if index != none && entries[index].state == .reachable && now &- entries[index].confirmed < Neighbours.reachableTime {
      return .send(entries[index].mac)
    }
    return resolveSlowly(address, index, now: now)
  }

  @inline(never) @_noLocks
  private mutating func resolveSlowly(_ address: UInt32, _ found: UInt32, now: UInt64) -> Answer? {
    var index = found
    if index == none {
      index = victim(address)
      if index == none { return nil }
      entries[index] = Entry(
        state: .incomplete, attempts: 1, waiting: 0, address: address, mac: 0, confirmed: 0, asked: now, first: 0,
        last: 0)
      return .waitAndAsk(index)
    }
    switch entries[index].state {
    case .reachable:
      entries[index].state = .stale
      entries[index].attempts = 1
      entries[index].asked = now
      return .sendAndProbe(entries[index].mac)
    case .stale:
      return .send(entries[index].mac)
    case .incomplete, .free:
      return .wait(index)
    }
  }

  /// A place for a new address: a free one, else the one that was confirmed longest ago and has nothing waiting.
  @_noLocks
  private func victim(_ address: UInt32) -> UInt32 {
    let first = firstWay(address)
    var best = none
    var way: UInt32 = 0
    while way < Neighbours.ways {
      let index = first &+ way
      if entries[index].state == .free { return index }
      if entries[index].waiting == 0 && (best == none || entries[index].confirmed < entries[best].confirmed) {
        best = index
      }
      way &+= 1
    }
    return best
  }

  /// A neighbour has said where it is.
  ///
  /// - Parameter create: also if nobody asked (it has asked for us); otherwise only known addresses are updated, so that
  ///   a stranger cannot fill the table.
  /// - Returns: the entry, whose waiting packets can go now, or `none`.
  @_noLocks
  mutating func learn(_ address: UInt32, _ mac: UInt64, create: Bool, now: UInt64) -> UInt32 {
    var index = find(address)
    if index == none {
      if !create { return none }
      index = victim(address)
      if index == none { return none }
      entries[index] = Entry(
        state: .reachable, attempts: 0, waiting: 0, address: address, mac: mac, confirmed: now, asked: 0, first: 0,
        last: 0)
      return index
    }
    entries[index].state = .reachable
    entries[index].attempts = 0
    entries[index].mac = mac
    entries[index].confirmed = now
    return index
  }

  /// One entry's timer.
  @_noLocks
  mutating func tick(_ index: UInt32, now: UInt64) -> Event? {
    let state = entries[index].state
    guard state == .incomplete || state == .stale else { return nil }
    let times = Neighbours.retransmits
    let attempts = entries[index].attempts
    if now &- entries[index].asked < (attempts <= 1 ? times.0 : attempts == 2 ? times.1 : times.2) { return nil }
    if attempts >= Neighbours.attemptsMax {
      entries[index].state = .free
      return .unresolved(index)
    }
    entries[index].attempts &+= 1
    entries[index].asked = now
    return state == .incomplete
      ? .ask(index, of: entries[index].address) : .probe(entries[index].address, at: entries[index].mac)
  }

  // MARK: The queue

  /// Lets a packet wait.
  ///
  /// - Returns: a packet that had to give way (the oldest of the entry, or this one), if any.
  @_noLocks
  mutating func wait(_ packet: Packet, in index: UInt32) -> Packet? {
    var given: Packet? = nil
    if entries[index].waiting >= Neighbours.waitingMax || freePlace == 0 {
      given = takeWaiting(index)
      if given == nil { return packet }
    }
    let place = freePlace
    freePlace = queue[place - 1].next
    queue[place - 1] = Waiting(packet: packet, next: 0)
    if entries[index].last != 0 { queue[entries[index].last - 1].next = place } else { entries[index].first = place }
    entries[index].last = place
    entries[index].waiting &+= 1
    waitingCount &+= 1
    return given
  }

  /// The oldest packet that waits in an entry.
  @_noLocks
  mutating func takeWaiting(_ index: UInt32) -> Packet? {
    let place = entries[index].first
    if place == 0 { return nil }
    entries[index].first = queue[place - 1].next
    if entries[index].first == 0 { entries[index].last = 0 }
    entries[index].waiting &-= 1
    waitingCount &-= 1
    queue[place - 1].next = freePlace
    freePlace = place
    return queue[place - 1].packet
  }
}
