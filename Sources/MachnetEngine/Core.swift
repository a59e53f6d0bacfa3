import CLinux
import CMachnetABI
import MachnetChannel
import MachnetMemory
import MachnetTransport

/// Everything an engine knows and does between its ports and its channels, without any packet I/O of its own: the
/// shell (`Engine`) feeds it bursts and carries its frames away.
///
/// Not generic, so that the hot path is compiled once, here. All memory is taken at start.
struct Core: ~Copyable {
  let mailbox: Mailbox
  let directory: Directory
  let index: UInt32
  let localStall: UInt64
  let separateHosts: Bool
  let faultDescriptor: Int32
  var waker: mn_linux_waker

  var clock: Clock
  /// The time of this iteration, ns of `clock`.
  var now: UInt64 = 0
  /// Rounds that what has waited during an absence may take; 0: all that comes is new.
  var catchUpRounds = 0

  let channels = Table<Channel>(count: EngineLimits.channels)
  let endpoints = Table<Endpoint>(count: EngineLimits.endpoints)
  /// Slot of the endpoint in each block of each channel; valid where the channel's `open` bit is set.
  let blocks = Table<UInt32>(count: EngineLimits.channels * Int(MN_CHANNEL_ENDPOINTS_MAX))
  var demultiplexer = Demultiplexer()
  /// Moves on whenever an endpoint comes, goes or changes its address: then remembered routes are stale.
  var generation: UInt32 = 1

  /// Slots of live channels, and where this iteration's look at the idle ones starts.
  let live = Table<UInt32>(count: EngineLimits.channels)
  var liveCount = 0
  var scanNext = 0
  /// Slots of endpoints whose TX ring is looked at in every iteration.
  let active = Table<UInt32>(count: EngineLimits.endpoints)
  var activeCount = 0
  var serveFirst = 0
  /// Slots of endpoints whose RX ring has something that is not yet published.
  let touched = Table<UInt32>(count: Core.touchedMax)
  var touchedCount = 0
  /// Whether this iteration put anything into an RX ring.
  var hasDelivered = false
  /// Whether this iteration woke somebody.
  var wokeSomebody = false
  let ports = Table<Port>(count: EngineLimits.ports)
  var portCount = 0
  var reassembly = Reassembly()
  var capture = Capture(CaptureOrder())
  /// The daemon's other engines.
  let siblings: Table<Sibling>
  var siblingCount = 0
  /// The transport `machnet`, one per port; the first `portCount` are made.
  let transports = Table<Transport>(count: EngineLimits.ports)
  private let transportOptions: TransportOptions
  let pauseLimit: UInt64
  /// Our sockets that have no room; for each port, which sessions were told so.
  let full = Table<Full>(count: EngineLimits.endpoints)
  var fullCount = 0
  var fullNext = 0
  let told = Table<PortSets>(count: EngineLimits.ports)
  /// Messages whose receivers have no room, and those receivers.
  let lots: Table<Lot>
  let lotMemory: Table<UInt8>
  var freeLot: UInt32 = 0
  var freeLotCount: Int
  let parked: Table<UInt32>
  var parkedCount = 0
  var parkedNext = 0
  /// When more than a few of those are looked at again.
  var lookAt: UInt64 = 0
  /// For each port, which remote sockets have no room; how many there are.
  let paused = Table<PortSets>(count: EngineLimits.ports)
  var pausedCount = 0
  /// Active endpoints that wait for one of those.
  let held = Table<UInt32>(count: EngineLimits.endpoints)
  var heldCount = 0
  var heldNext = 0
  /// The next IPv4 identification.
  var identification: UInt16
  /// Port unreachables that may be sent at once, and when that was worked out.
  var unreachableTokens = Core.unreachableBurst
  var unreachableRefilled: UInt64 = 0

  /// Orders done so far, and since when the next one has been waiting to be possible.
  var commandsDone: UInt64 = 0
  var commandHeldSince: UInt64 = 0
  var lingerAgain: UInt64 = 0

  /// Records that one visit of an endpoint takes at most.
  static var visitMax: Int { 32 }
  /// Receivers that one burst can touch: each datagram of a visit may have another one, segments share one.
  static var touchedMax: Int { 64 }
  /// Datagrams that one record can hold (UDP_MAX_SEGMENTS, linux/udp.h).
  static var segmentsMax: Int { @_noLocks get { 128 } }
  /// Idle channels whose ready words one iteration looks at.
  static var scanMax: Int { 8 }
  /// Port unreachables per second, and how many at once (as net.ipv4.icmp_msgs_per_sec and icmp_msgs_burst).
  static var unreachableRate: UInt64 { 1000 }
  static var unreachableBurst: UInt64 { 50 }
  /// Longer between two looks, ns, is more than a round takes: the engine was away.
  static var absenceLeast: UInt64 { 50_000 }
  /// Full bursts that an RX ring of 256 descriptors holds.
  static var catchUpMax: Int { 8 }
  /// Ends the linger of a closed endpoint's unsent datagrams, ns.
  static var lingerMax: UInt64 { 2_000_000 }
  /// After a linger that was in vain nobody lingers for this long, ns: all orders wait behind one that does.
  static var lingerPause: UInt64 { 20_000_000 }
  /// Visits that a closed endpoint gets at once then.
  static var lingerVisits: Int { 4 }
  /// Orders that are carried out in one iteration: they are not all for nothing, and traffic waits meanwhile.
  static var commandsMax: Int { 64 }

  init(control: EngineControl) {
    let options = control.options
    mailbox = control.mailbox
    directory = options.directory
    index = options.index
    localStall = UInt64(max(0, options.localStallMicroseconds)) * 1000
    separateHosts = options.separateHosts
    faultDescriptor = control.faultDescriptor
    transportOptions = options.transport
    pauseLimit = UInt64(max(0, options.pauseMilliseconds)) * 1_000_000
    freeLotCount = options.parkings * Core.lotsOfParking
    lots = Table(count: freeLotCount)
    lotMemory = Table(count: freeLotCount * Core.lotSize)
    parked = Table(count: freeLotCount)
    for lot in 0..<freeLotCount { lots[lot] = Lot(next: UInt32(lot + 1), read: 0, written: 0) }
    waker = control.waker
    clock = unsafe Clock(virtual: options.virtualTime)
    now = clock.now()
    identification = unsafe options.virtualTime == nil ? UInt16(truncatingIfNeeded: mn_cycles()) : 0
    siblings = Table<Sibling>(count: Int(MN_ENGINES_MAX))
    for mailbox in control.siblings {
      siblings[siblingCount] = Sibling(mailbox: mailbox, heard: mailbox.load(Mailbox.heardTail))
      siblingCount += 1
    }
  }

  deinit {
    reassembly.release()
    for port in 0..<portCount {
      ports[port].release()
      unsafe (transports.base + port).deinitialize(count: 1)
      told[port].release()
      paused[port].release()
    }
    transports.release()
    full.release()
    told.release()
    lots.release()
    lotMemory.release()
    parked.release()
    paused.release()
    held.release()
    ports.release()
    channels.release()
    endpoints.release()
    blocks.release()
    demultiplexer.release()
    live.release()
    active.release()
    touched.release()
    siblings.release()
  }

  /// Starts an iteration.
  @_noLocks
  mutating func begin() {
    readClock()
    wokeSomebody = false
    hasDelivered = false
    mailbox.count(.iterations)
  }

  /// Sets the time. Where nobody has looked at the ports for long (other work had the core, or the engine slept), what they
  /// have may have waited all that time.
  @inline(__always) @_noLocks
  mutating func readClock() {
    let time = clock.now()
    if time &- now > Core.absenceLeast { noteAbsence(until: time) }
    now = time
  }

  @inline(never) @_noLocks
  private mutating func noteAbsence(until time: UInt64) {
    catchUpRounds = Core.catchUpMax
    var port = 0
    while port < portCount {
      transports[port].absent(from: now, until: time)
      port &+= 1
    }
  }

  /// A round after an absence is over.
  ///
  /// - Parameter isMore: a port gave a full burst, so that more may have waited.
  @inline(never) @_noLocks
  mutating func catchUp(isMore: Bool) {
    catchUpRounds = isMore ? catchUpRounds &- 1 : 0
    if catchUpRounds != 0 { return }
    var port = 0
    while port < portCount {
      transports[port].caughtUp()
      port &+= 1
    }
  }

  mutating func addPort(_ options: InterfaceOptions) {
    ports[portCount] = Port(options, sessions: transportOptions.sessions)
    var transport = transportOptions
    transport.engine = UInt8(options.queue)
    transport.engines = UInt8(options.queues)
    transport.datagramMax = EngineOptions.sessionDatagram(mtu: options.mtu)
    // Ports of one daemon draw other numbers each.
    transport.seed.1 ^= UInt64(options.address) << 32 | UInt64(index) << 16 | UInt64(portCount) << 8 | UInt64(options.queue)
    unsafe (transports.base + portCount).initialize(to: Transport(transport))
    told[portCount] = PortSets(sessions: transport.sessions)
    paused[portCount] = PortSets(sessions: transport.sessions)
    portCount += 1
  }

  // MARK: Finding work

  /// Moves endpoints with their ready bit set to the active list, looking at some of the channels.
  ///
  /// - Parameter all: looks at every channel: before the engine sleeps.
  @_noLocks
  mutating func scanReady(all: Bool) {
    var remaining = all ? liveCount : min(liveCount, Core.scanMax)
    while remaining > 0 {
      if scanNext >= liveCount { scanNext = 0 }
      activateReady(live[scanNext])
      scanNext &+= 1
      remaining &-= 1
    }
  }

  @inline(__always) @_noLocks
  private mutating func activateReady(_ slot: UInt32) {
    guard let base = unsafe channels[slot].description.base else { return }
    let words = unsafe base + Int(MN_CHANNEL_READY) + Int(index) * MemoryLayout<mn_ready>.size
    // Relaxed: what the bit announces is read from the ring with acquire. Bits of blocks that are not open here mean
    // nothing (an endpoint that was closed meanwhile).
    let new0 = unsafe mn_load_relaxed_u64(words) & channels[slot].open.0 & ~channels[slot].active.0
    let new1 = unsafe mn_load_relaxed_u64(words + 8) & channels[slot].open.1 & ~channels[slot].active.1
    let new2 = unsafe mn_load_relaxed_u64(words + 16) & channels[slot].open.2 & ~channels[slot].active.2
    let new3 = unsafe mn_load_relaxed_u64(words + 24) & channels[slot].open.3 & ~channels[slot].active.3
    if new0 | new1 | new2 | new3 == 0 { return }
    activate(slot, new0, 0)
    activate(slot, new1, 64)
    activate(slot, new2, 128)
    activate(slot, new3, 192)
  }

  @_noLocks
  private mutating func activate(_ channel: UInt32, _ bits: UInt64, _ first: Int) {
    var bits = bits
    while bits != 0 {
      let block = first &+ bits.trailingZeroBitCount
      bits &= bits &- 1
      activate(blocks[Int(channel) &* Int(MN_CHANNEL_ENDPOINTS_MAX) &+ block])
    }
  }

  @_noLocks
  mutating func activate(_ slot: UInt32) {
    let channel = endpoints[slot].channel
    setBit(&channels[channel].active, endpoints[slot].index)
    endpoints[slot].isActive = true
    endpoints[slot].emptyVisits = 0
    appendActive(slot)
  }

  @_noLocks
  mutating func appendActive(_ slot: UInt32) {
    endpoints[slot].place = activeCount
    active[activeCount] = slot
    activeCount &+= 1
  }

  /// Visits every active endpoint once.
  ///
  /// - Returns: whether anything was sent.
  @_noLocks
  mutating func serveActive() -> Bool {
    if heldCount != 0 { lookAtHeld() }
    // Each time another one is the first: where a session or a port has room for few, it is not always the same who
    // finds it full.
    serveFirst = serveFirst &+ 1 < activeCount ? serveFirst &+ 1 : 0
    let first = serveFirst
    var progress = serveActive(from: first, to: activeCount)
    if first != 0 && serveActive(from: 0, to: min(first, activeCount)) { progress = true }
    return progress
  }

  /// Visits the active endpoints at these places, or what stands there after some have left.
  @inline(__always) @_noLocks
  private mutating func serveActive(from first: Int, to end: Int) -> Bool {
    var progress = false
    var place = first
    // With few active endpoints a look costs nothing worth saving; with many, the idle ones must leave soon.
    let patience: UInt32 = activeCount <= 32 ? 16_384 : 64
    while place < min(end, activeCount) {
      let slot = active[place]
      if serve(slot) { progress = true }
      // A fault in `serve` may have emptied the place.
      if place >= activeCount || active[place] != slot { continue }
      if endpoints[slot].emptyVisits > patience && deactivate(slot, at: place) { continue }
      place &+= 1
    }
    return progress
  }

  /// Takes an idle endpoint off the active list, unless it has just become busy.
  @_noLocks
  private mutating func deactivate(_ slot: UInt32, at place: Int) -> Bool {
    if endpoints[slot].emptyVisits == .max {
      endpoints[slot].isToHold = false
      hold(slot, at: place)
      return true
    }
    clearReady(slot)
    endpoints[slot].emptyVisits = 0
    if !endpoints[slot].reader.isEmpty { return false }
    takeOff(slot, at: place)
    return true
  }

  /// From here on an application that sends sets the bit again. Pairs with its "publish, fence, look at the bit": either it sees the
  /// bit clear, or we see its tail after this.
  @_noLocks
  func clearReady(_ slot: UInt32) {
    let block = endpoints[slot].index
    guard let base = unsafe channels[endpoints[slot].channel].description.base else { return }
    let word = unsafe base + Int(MN_CHANNEL_READY) + Int(index) * MemoryLayout<mn_ready>.size + Int(block >> 6) * 8
    _ = unsafe mn_fetch_and_u64(word, ~(1 << UInt64(block & 63)))
    mn_fence()
  }

  /// Removes a place of the active list; the last one moves there.
  @_noLocks
  func takeOffBits(_ slot: UInt32) {
    clearBit(&channels[endpoints[slot].channel].active, endpoints[slot].index)
    endpoints[slot].isActive = false
  }

  @_noLocks
  mutating func removeActive(_ place: Int) {
    activeCount &-= 1
    let moved = active[activeCount]
    active[place] = moved
    endpoints[moved].place = place
  }

  @_noLocks
  mutating func takeOff(_ slot: UInt32, at place: Int) {
    takeOffBits(slot)
    removeActive(place)
  }

  /// Whether an active endpoint has something to send, or a ready bit is set anywhere: the last look before sleep.
  @_noLocks
  mutating func hasWork() -> Bool {
    if mailbox.load(Mailbox.commandTail) != commandsDone || mailbox.load(Mailbox.stop) != 0 || hasNews() { return true }
    if heldCount != 0 { return true }
    scanReady(all: true)
    var port = 0
    while port < portCount {
      if transports[port].hasReady { return true }
      port &+= 1
    }
    var place = 0
    while place < activeCount {
      if !endpoints[active[place]].reader.isEmpty { return true }
      place &+= 1
    }
    return false
  }

  // MARK: Telling receivers

  /// Notes that an endpoint's RX ring has a record to publish.
  @inline(__always) @_noLocks
  mutating func touch(_ slot: UInt32) {
    if endpoints[slot].isTouched { return }
    if touchedCount == Core.touchedMax { flushTouched() }
    endpoints[slot].isTouched = true
    touched[touchedCount] = slot
    touchedCount &+= 1
  }

  /// Publishes what this burst has put into RX rings: all of it, then one fence, then a look at who sleeps.
  @_noLocks
  mutating func flushTouched() {
    if touchedCount == 0 { return }
    publishTouched()
    mn_fence()
    wakeTouched()
  }

  @inline(__always) @_noLocks
  func publishTouched() {
    var place = 0
    while place < touchedCount {
      endpoints[touched[place]].writer.publish()
      place &+= 1
    }
  }

  @inline(__always) @_noLocks
  mutating func wakeTouched() {
    if touchedCount != 0 { hasDelivered = true }
    var place = 0
    while place < touchedCount {
      let slot = touched[place]
      endpoints[slot].isTouched = false
      mailbox.countReceived(
        endpoint: slot, datagrams: UInt64(endpoints[slot].burstDatagrams), bytes: UInt64(endpoints[slot].burstBytes))
      endpoints[slot].burstDatagrams = 0
      endpoints[slot].burstBytes = 0
      wake(slot, Int(MN_OFFSET_ENDPOINT_RX_WAIT))
      place &+= 1
    }
    touchedCount = 0
  }

  /// Writes the endpoint's eventfd if its owner sleeps, or is about to, on the given wait word. After a fence.
  @inline(__always) @_noLocks
  mutating func wake(_ slot: UInt32, _ offset: Int) {
    // Pairs with the application's exchange to ARMED and its look at the ring after that.
    if unsafe mn_load_relaxed_u32(endpoints[slot].block + offset) == UInt32(MN_WAIT_ARMED) { signal(slot, offset) }
  }

  @inline(never) @_noLocks
  private mutating func signal(_ slot: UInt32, _ offset: Int) {
    let word = unsafe endpoints[slot].block + offset
    if unsafe mn_compare_exchange_u32(word, UInt32(MN_WAIT_ARMED), UInt32(MN_WAIT_SIGNALLED)) {
      unsafe mn_linux_waker_signal(&waker, endpoints[slot].eventDescriptor)
      mailbox.count(.wakeups)
      wokeSomebody = true
    }
  }

  /// Leaves an error for the endpoint's owner to find (SO_ERROR) and wakes it as a datagram would.
  @_noLocks
  mutating func report(error: Int32, to slot: UInt32) {
    unsafe mn_store_relaxed_u32(
      endpoints[slot].block + Int(MN_OFFSET_ENDPOINT_ERROR), UInt32(truncatingIfNeeded: error))
    mn_fence()
    wake(slot, Int(MN_OFFSET_ENDPOINT_RX_WAIT))
  }

  // MARK: Bits and maps of a channel

  @inline(__always) @_noLocks
  func setBit(_ words: inout (UInt64, UInt64, UInt64, UInt64), _ bit: UInt32) {
    let mask: UInt64 = 1 << UInt64(bit & 63)
    switch bit >> 6 {
    case 0: words.0 |= mask
    case 1: words.1 |= mask
    case 2: words.2 |= mask
    default: words.3 |= mask
    }
  }

  @inline(__always) @_noLocks
  func clearBit(_ words: inout (UInt64, UInt64, UInt64, UInt64), _ bit: UInt32) {
    let mask: UInt64 = ~(1 << UInt64(bit & 63))
    switch bit >> 6 {
    case 0: words.0 &= mask
    case 1: words.1 &= mask
    case 2: words.2 &= mask
    default: words.3 &= mask
    }
  }
}
