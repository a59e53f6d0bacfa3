import MachnetMemory
public import MachnetWire

/// The machnet transport of one engine: reliable messages to engines of other hosts, over UDP datagrams that it neither
/// sends nor receives itself.
///
/// Sans I/O: time, packets and messages come in, packets and events come out; there is no clock and no randomness but
/// the seed, and all memory is taken at start. In this order, as often as there is something:
///
/// 1. `handle` for each packet that arrived, which may give back a message, and after each `pollEvent` until it returns nil
///    (messages point into the packet);
/// 2. `session` and `send` for what is to be sent;
/// 3. `expire` when `nextTimeout` has come;
/// 4. `pollTransmit` until it returns nil.
///
/// Paper: "Fast Userspace Networking for the Rest of Us", sections on RSS-- and the LCD.
@safe
public struct Transport: ~Copyable {
  public let options: TransportOptions
  let sessions: Table<Session>
  let slots: Table<Slot>
  /// Chunks of packets that are not yet acknowledged.
  let buffers: Table<UInt8>
  let bufferSize: Int
  let freeBuffers: Table<UInt32>
  var freeBufferCount: Int
  let freeSessions: Table<UInt32>
  var freeSessionCount: Int
  /// Open addressing by tag: slot + 1, or 0.
  let tags: Table<UInt32>
  /// Chains by pair of hosts: slot + 1 of the first, or 0.
  let peers: Table<UInt32>
  /// Peers that did not answer.
  let refusals: Table<Refusal>
  let halfOpen: Table<HalfOpen>
  /// Tags of ours whose sessions have ended, so that an old confirmation does not start one again.
  let ended: Table<UInt64>
  var endedNext: UInt32 = 0

  /// Sessions with something to send: a ring of slots.
  let ready: Table<UInt32>
  var readyHead: UInt32 = 0
  var readyTail: UInt32 = 0
  /// Resets to send.
  let resets: Table<PendingReset>
  var resetHead: UInt32 = 0
  var resetTail: UInt32 = 0

  var assembly: Assembly
  /// Sessions whose window is closed, and where the search for the next one to open begins.
  var shortCount = 0
  var shortNext: UInt32 = 0
  let counters: Table<UInt64>
  var random: Random
  let secret: (UInt64, UInt64)

  var wheel: TimingWheel
  var halfOpenDue: UInt64 = .max
  /// Whether some half-open entry has SYN-ACKs to send.
  var halfOpenReady = false

  /// Tokens for SYN-ACKs and resets.
  var answerTokens: UInt64
  var answerRefilled: UInt64

  /// The last time that the engine did not run, ns.
  var absentFrom: UInt64 = 0
  var absentUntil: UInt64 = 0
  /// How long what is handled now may have waited for the engine, units of 1,024 ns; 0: it looks all the time.
  var waited: UInt16 = 0

  // Events.
  let events: Table<Event>
  var eventHead: UInt32 = 0
  var eventTail: UInt32 = 0
  /// The packet that was handled last, as far as its chunks are not yet told.
  var chunks: Bytes?
  var chunkSession: UInt32 = none
  /// The assembly whose message was told last: to be freed.
  var toldAssembly: UInt32 = none

  /// What a session's death or birth looks like from outside, and what packets bring.
  public enum Event {
    /// A whole message; `payload` is valid until the next call.
    case message(Message, Bytes)
    /// Word of the peer's socket at `remotePort`.
    case word(Word, session: UInt32, localPort: UInt16, remotePort: UInt16)
    case opened(session: UInt32)
    /// The session is dead; `lost` messages that it had accepted may not have arrived.
    case closed(session: UInt32, localAddress: UInt32, remoteAddress: UInt32, reason: CloseReason, lost: Int)
    /// No session could be had with this host.
    case refused(localAddress: UInt32, remoteAddress: UInt32, reason: CloseReason)
  }

  /// What one engine tells another about a socket.
  public enum Word: UInt8, Sendable, BitwiseCopyable {
    /// It has no room: send no more messages for it.
    case pause = 1
    /// It has room again.
    case resume = 2
    /// There is no such socket.
    case unreachable = 3
  }

  public enum CloseReason: UInt8, Sendable, BitwiseCopyable {
    /// We closed it, or the daemon ends.
    case closed
    /// The peer reset it.
    case reset
    /// The peer does not answer any more, or never did.
    case timedOut
    /// The peer was started again.
    case restarted
    /// Nobody listens at the peer's ports (ICMP).
    case unreachable
  }

  /// Addresses and ports of a message. Host byte order.
  public struct Message: BitwiseCopyable {
    public var session: UInt32
    public var localAddress: UInt32
    public var remoteAddress: UInt32
    public var localPort: UInt16
    public var remotePort: UInt16
    public var ttl: UInt8
    public var tos: UInt8

    @inlinable @inline(__always) @_noLocks
    public init(
      session: UInt32, localAddress: UInt32, remoteAddress: UInt32, localPort: UInt16, remotePort: UInt16, ttl: UInt8,
      tos: UInt8
    ) {
      self.session = session
      self.localAddress = localAddress
      self.remoteAddress = remoteAddress
      self.localPort = localPort
      self.remotePort = remotePort
      self.ttl = ttl
      self.tos = tos
    }
  }

  /// Where a packet came from, as the layers below have checked it. Host byte order.
  public struct Arrival: BitwiseCopyable {
    public var localAddress: UInt32
    public var remoteAddress: UInt32
    public var ports: PortPair
    /// Largest UDP payload of the interface, bytes.
    public var datagramMax: Int

    @inlinable @inline(__always) @_noLocks
    public init(localAddress: UInt32, remoteAddress: UInt32, ports: PortPair, datagramMax: Int) {
      self.localAddress = localAddress
      self.remoteAddress = remoteAddress
      self.ports = ports
      self.datagramMax = datagramMax
    }
  }

  /// A packet to send: `length` bytes of UDP payload.
  public struct Transmission: BitwiseCopyable {
    /// The session, below `sessionCapacity`, or `none`: whose packets go between the same addresses and ports while it lives.
    public var session: UInt32
    public var localAddress: UInt32
    public var remoteAddress: UInt32
    public var ports: PortPair
    public var length: Int
  }

  struct Refusal: BitwiseCopyable {
    var localAddress: UInt32
    var remoteAddress: UInt32
    var until: UInt64
    var reason: CloseReason
  }

  struct PendingReset: BitwiseCopyable {
    var localAddress: UInt32
    var remoteAddress: UInt32
    var ports: PortPair
    var tag: UInt64
    var isUnknown: Bool
  }

  public init(_ options: TransportOptions) {
    precondition(options.sessions & (options.sessions - 1) == 0 && options.sessions <= 65_536)
    precondition(options.epoch != 0 && options.portCount > 0 && options.engines > 0 && options.engine < options.engines)
    precondition(Int(options.portBase) + Int(options.portCount) <= 65_536)
    precondition(options.datagramMax >= Transport.datagramLeast && options.datagramMax <= 16_000)
    self.options = options
    sessions = Table(count: options.sessions)
    slots = Table(count: options.sessions * Transport.windowMax)
    bufferSize = options.bufferSize
    buffers = Table(count: options.buffers * bufferSize)
    freeBuffers = Table(count: options.buffers)
    freeBufferCount = options.buffers
    for index in 0..<options.buffers { freeBuffers[index] = UInt32(options.buffers - 1 - index) }
    freeSessions = Table(count: options.sessions)
    freeSessionCount = options.sessions
    for index in 0..<options.sessions { freeSessions[index] = UInt32(options.sessions - 1 - index) }
    tags = Table(count: options.sessions * 4)
    peers = Table(count: options.sessions)
    refusals = Table(count: Transport.refusalMax)
    halfOpen = Table(count: Transport.halfOpenMax)
    ended = Table(count: Transport.endedMax)
    ready = Table(count: options.sessions)
    resets = Table(count: Transport.resetMax)
    assembly = Assembly(
      small: options.assemblies, large: options.largeAssemblies, patience: options.assemblyPatience)
    counters = Table(count: TransportCounter.allCases.count)
    random = Random(options.seed)
    secret = (random.next(), random.next())
    wheel = TimingWheel(count: options.sessions)
    answerTokens = options.answerBurst
    answerRefilled = 0
    events = Table(count: Transport.eventMax)
  }

  deinit {
    sessions.release()
    slots.release()
    buffers.release()
    freeBuffers.release()
    freeSessions.release()
    tags.release()
    peers.release()
    refusals.release()
    halfOpen.release()
    ended.release()
    ready.release()
    resets.release()
    assembly.release()
    counters.release()
    wheel.release()
    events.release()
  }

  /// Packets between the oldest that is not acknowledged and the newest: what 256 bits of SACK can tell.
  public static var windowMax: Int { @_noLocks get { 256 } }
  /// The least UDP payload that an interface must carry (IPv4's 576, RFC 791).
  public static var datagramLeast: Int { @_noLocks get { 548 } }
  static var refusalMax: Int { @_noLocks get { 64 } }
  static var halfOpenMax: Int { @_noLocks get { 128 } }
  static var endedMax: Int { @_noLocks get { 1024 } }
  static var resetMax: Int { @_noLocks get { 64 } }
  static var eventMax: Int { @_noLocks get { 4096 } }

  @inline(__always) @_noLocks
  func count(_ counter: TransportCounter, _ amount: Int = 1) {
    counters[counter.ordinal] &+= UInt64(truncatingIfNeeded: amount)
  }

  public static var counterCount: Int { @_noLocks get { TransportCounter.messagesLost.ordinal &+ 1 } }

  /// The value of the counter with this number.
  @_noLocks
  public func value(at number: Int) -> UInt64 { counters[number] }

  @_noLocks
  public func value(_ counter: TransportCounter) -> UInt64 { counters[counter.ordinal] }

  /// Whether a UDP port belongs to sessions.
  @inline(__always) @_noLocks
  public func owns(port: UInt16) -> Bool { port &- options.portBase < options.portCount }

  // MARK: Events

  @_noLocks
  mutating func post(_ event: Event) {
    // A full ring loses the news, not the state: sessions are looked up again by those who use them.
    if eventTail &- eventHead == UInt32(Transport.eventMax) { return }
    events[eventTail & UInt32(Transport.eventMax &- 1)] = event
    eventTail &+= 1
  }

  /// Whether `pollEvent` has anything to tell, or to tidy up.
  @inline(__always)
  public var hasEvents: Bool {
    @_noLocks get { eventHead != eventTail || chunks != nil || toldAssembly != none }
  }

  /// What has happened, oldest first; nil: nothing more. Messages are told once, and are valid until the next call of
  /// anything.
  @_noLocks
  public mutating func pollEvent() -> Event? {
    if toldAssembly != none {
      release(assembly: toldAssembly)
      toldAssembly = none
    }
    if eventHead != eventTail {
      let event = events[eventHead & UInt32(Transport.eventMax &- 1)]
      eventHead &+= 1
      return event
    }
    return nextChunk()
  }

  // MARK: Absences

  /// The engine did not run for a while, and packets may have waited for it all that time: those that are handled until
  /// `caughtUp`. No time that an end was away is taken for delay of the network (Swift, 3.1, tells the two apart by the
  /// NIC's timestamps, which there are none of here).
  @_noLocks
  public mutating func absent(from start: UInt64, until end: UInt64) {
    absentFrom = start
    absentUntil = end
    waited = UInt16(truncatingIfNeeded: min((end &- start) >> 10 &+ 1, 0xFFFF))
  }

  /// Everything that came during the absence has been handled.
  @_noLocks
  public mutating func caughtUp() { waited = 0 }

  /// Whether packets may still wait: too early to say what has not come.
  @inline(__always)
  public var isCatchingUp: Bool { @_noLocks get { waited != 0 } }

  // MARK: Sessions in tables

  @inline(__always)
  private var tagMask: UInt32 { @_noLocks get { UInt32(truncatingIfNeeded: tags.count &- 1) } }

  /// The session with a tag of ours; `none`: there is none.
  @inline(__always) @_noLocks
  func find(tag: UInt64) -> UInt32 {
    var at = UInt32(truncatingIfNeeded: tag) & tagMask
    while tags[at] != 0 {
      let slot = tags[at] &- 1
      if sessions[slot].localTag == tag { return slot }
      at = (at &+ 1) & tagMask
    }
    return none
  }

  @_noLocks
  private func insert(tag slot: UInt32) {
    var at = UInt32(truncatingIfNeeded: sessions[slot].localTag) & tagMask
    while tags[at] != 0 { at = (at &+ 1) & tagMask }
    tags[at] = slot &+ 1
  }

  /// Removes without leaving a mark: what was pushed on by the place that becomes free moves there.
  @_noLocks
  private func remove(tag slot: UInt32) {
    var hole = UInt32(truncatingIfNeeded: sessions[slot].localTag) & tagMask
    while tags[hole] != slot &+ 1 {
      if tags[hole] == 0 { return }
      hole = (hole &+ 1) & tagMask
    }
    tags[hole] = 0
    var at = (hole &+ 1) & tagMask
    while tags[at] != 0 {
      let home = UInt32(truncatingIfNeeded: sessions[tags[at] &- 1].localTag) & tagMask
      if ((at &- home) & tagMask) >= ((at &- hole) & tagMask) {
        tags[hole] = tags[at]
        tags[at] = 0
        hole = at
      }
      at = (at &+ 1) & tagMask
    }
  }

  @inline(__always) @_noLocks
  func peerBucket(_ local: UInt32, _ remote: UInt32) -> UInt32 {
    let key = (UInt64(local) << 32 | UInt64(remote)) &* 0x9E37_79B9_7F4A_7C15
    return UInt32(truncatingIfNeeded: key >> 40) & UInt32(truncatingIfNeeded: peers.count &- 1)
  }

  /// Takes a free session and puts it into both tables; the caller has filled in `made`, but for what is done here.
  ///
  /// - Returns: `none` when all are in use.
  @_noLocks
  mutating func add(_ made: Session) -> UInt32 {
    if freeSessionCount == 0 {
      count(.tableFull)
      return none
    }
    freeSessionCount &-= 1
    let slot = freeSessions[freeSessionCount]
    let generation = sessions[slot].generation &+ 1
    sessions[slot] = made
    sessions[slot].generation = generation
    let bucket = peerBucket(made.localAddress, made.remoteAddress)
    sessions[slot].next = peers[bucket] &- 1
    peers[bucket] = slot &+ 1
    insert(tag: slot)
    return slot
  }

  /// Takes a session out of every table and gives back what it holds.
  @_noLocks
  mutating func forget(_ slot: UInt32) {
    wheel.cancel(slot)
    remove(tag: slot)
    let bucket = peerBucket(sessions[slot].localAddress, sessions[slot].remoteAddress)
    if peers[bucket] == slot &+ 1 {
      peers[bucket] = sessions[slot].next &+ 1
    } else {
      var at = peers[bucket] &- 1
      while at != none && sessions[at].next != slot { at = sessions[at].next }
      if at != none { sessions[at].next = sessions[slot].next }
    }
    var number = sessions[slot].base
    while number != sessions[slot].staged {
      give(buffer: slots[place(slot, number)].buffer)
      number &+= 1
    }
    if sessions[slot].isShort {
      sessions[slot].isShort = false
      shortCount &-= 1
    }
    if sessions[slot].assemblies != 0 {
      assembly.forget(session: slot)
      openWindow()
    }
    if chunkSession == slot { chunks = nil }
    ended[endedNext] = sessions[slot].localTag
    endedNext = (endedNext &+ 1) & UInt32(Transport.endedMax &- 1)
    sessions[slot].state = .free
    sessions[slot].localTag = 0
    // A place in the ready ring stays; it is skipped when its turn comes, and only then may the slot be used again.
    if !sessions[slot].isReady {
      freeSessions[freeSessionCount] = slot
      freeSessionCount &+= 1
    }
  }

  @_noLocks
  func hasEnded(tag: UInt64) -> Bool {
    var index = 0
    while index < Transport.endedMax {
      if ended[index] == tag { return true }
      index &+= 1
    }
    return false
  }

  @inline(__always) @_noLocks
  func place(_ slot: UInt32, _ number: UInt32) -> Int {
    Int(slot) &* Transport.windowMax &+ Int(number & UInt32(Transport.windowMax &- 1))
  }

  /// The caller has made sure that there is one.
  @inline(__always) @_noLocks
  mutating func takeBuffer() -> UInt32 {
    freeBufferCount &-= 1
    return freeBuffers[freeBufferCount]
  }

  @inline(__always) @_noLocks
  mutating func give(buffer: UInt32) {
    if buffer == none { return }
    freeBuffers[freeBufferCount] = buffer
    freeBufferCount &+= 1
  }

  @inline(__always) @_noLocks
  func buffer(_ index: UInt32) -> Bytes {
    precondition(Int(index) < options.buffers)
    return unsafe Bytes(unsafe: buffers.base + Int(index) &* bufferSize, count: bufferSize)
  }

  /// Puts a session on the list of those with something to send.
  @inline(__always) @_noLocks
  mutating func makeReady(_ slot: UInt32) {
    if sessions[slot].isReady { return }
    sessions[slot].isReady = true
    ready[readyTail & UInt32(truncatingIfNeeded: ready.count &- 1)] = slot
    readyTail &+= 1
  }

  /// Whether `pollTransmit` has anything to look at.
  @inline(__always)
  public var hasReady: Bool {
    @_noLocks get { readyHead != readyTail || resetHead != resetTail || halfOpenReady }
  }

  // MARK: Timers

  /// When `expire` is to be called, ns; `UInt64.max`: there is no timer.
  @inline(__always)
  public var nextTimeout: UInt64 { @_noLocks get { min(wheel.due, halfOpenDue) } }

  /// Does what is due.
  @_noLocks
  public mutating func expire(now: UInt64) {
    if now >= halfOpenDue { expireHalfOpen(now) }
    while true {
      let slot = wheel.next(now: now)
      if slot == none { return }
      tick(slot, now)
    }
  }
}
