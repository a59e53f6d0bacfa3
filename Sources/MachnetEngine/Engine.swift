import CLinux
import CMachnetABI
import MachnetChannel
import MachnetMemory
import MachnetTransport

/// One polling thread's work: packets of its ports on one side, the rings of applications on the other.
///
/// Made and run on the engine's own thread; everything else talks to it through its `EngineControl`. This is the shell:
/// it moves bursts between the packet I/O of its ports and the `Core`, and decides when to rest.
@safe
public struct Engine<IO: PacketIO & ~Copyable>: ~Copyable {
  private let control: EngineControl
  private let polling: Polling
  private let sharesCore: Bool
  private let idleLimit: UInt64
  private let epoll: Int32
  var core: Core
  /// Safety: room for `EngineLimits.ports`; the first `portCount` are initialised. Owned by the engine.
  private let ports: UnsafeMutablePointer<IO>
  private(set) var portCount = 0
  private var courtesy = Courtesy()
  private var interrupts = InterruptTrust()
  /// Ports (bits) that have brought something since a sleep began.
  private var arrived: UInt64 = 0
  /// In this round.
  private var framesSent = 0
  private var idleSince: UInt64 = 0
  private var nextTick: UInt64 = 0
  private var nextCalibration: UInt64 = 0

  public init(control: EngineControl) {
    self.control = control
    polling = control.options.polling
    sharesCore = control.options.sharesCore
    idleLimit = UInt64(max(0, control.options.idleMicroseconds)) * 1000
    epoll = control.epoll
    core = Core(control: control)
    unsafe ports = .allocate(capacity: EngineLimits.ports)
  }

  deinit {
    unsafe ports.deinitialize(count: portCount)
    unsafe ports.deallocate()
  }

  /// Gives the engine the queue of the next interface of its options.
  public mutating func add(port: consuming IO) {
    precondition(portCount < control.options.interfaces.count, "more ports than interfaces")
    if port.wakeDescriptor >= 0 { _ = mn_linux_epoll_add(epoll, port.wakeDescriptor, 1 << UInt64(portCount)) }
    core.addPort(control.options.interfaces[portCount])
    unsafe (ports + portCount).initialize(to: port)
    portCount += 1
  }

  /// Works until `EngineControl.stop`, then gives every packet back.
  public mutating func run() {
    idleSince = core.clock.now()
    while !isStopped {
      if iterate() {
        idleSince = core.now
        core.mailbox.count(.busyIterations)
        if sharesCore && core.wokeSomebody {
          mn_linux_yield()
        } else if core.hasDelivered {
          // Answers may be on their way.
          courtesy.stay()
        } else if framesSent > 0 && framesSent < packetBurst / 4 {
          // A few frames for somebody who may be waiting for this very core: the engine at a memif's other end.
          courtesy.make()
        }
        continue
      }
      switch polling {
      case .busy:
        mn_pause()
      case .yield:
        courtesy.yield()
      case .adaptive:
        if core.now &- idleSince < idleLimit {
          courtesy.yield()
        } else {
          sleep()
          idleSince = core.clock.now()
        }
      }
    }
    finish()
  }

  public var isStopped: Bool { core.mailbox.load(Mailbox.stop) != 0 }

  /// One round: orders, arrivals, senders, departures, timers.
  ///
  /// - Returns: whether there was anything to do.
  public mutating func iterate() -> Bool {
    core.begin()
    framesSent = 0
    var progress = core.takeCommands()
    if portCount != 0 && receive() { progress = true }
    core.scanReady(all: false)
    if core.serveActive() { progress = true }
    if portCount != 0 {
      core.pumpSessions()
      if transmit() { progress = true }
    }
    if core.now >= nextTick { tick() }
    return progress
  }

  /// For who steps an engine in virtual time and leaves out the rounds that would find nothing: there were some until `time`.
  public mutating func idled(until time: UInt64) { core.now = max(core.now, time) }

  /// When an idle engine has to look at its timers, ns of its clock.
  public var nextTimeout: UInt64 { min(nextTick, core.sessionTimeout) }

  /// Whether another round may find something to do, though nothing new has come: orders, senders that wait, frames that
  /// the port did not take.
  public mutating func hasWork() -> Bool {
    for port in 0..<portCount where core.ports[port].queued != 0 || core.transports[port].hasReady { return true }
    return core.hasWork()
  }

  /// The slow tick: timers of the core, and now and then the clock itself.
  private mutating func tick() {
    nextTick = core.now + 10_000_000
    if core.now >= nextCalibration {
      nextCalibration = core.now + 1_000_000_000
      core.clock.calibrate()
    }
    if portCount == 0 { return }
    for port in 0..<portCount {
      let isUp = unsafe ports[port].isLinkUp()
      if isUp && !core.ports[port].isUp { core.announce(UInt32(port)) }
      core.ports[port].isUp = isUp
    }
    core.tickPorts()
    core.tickSessions()
    core.pumpSessions()
    _ = transmit()
  }

  /// One burst of every port.
  private mutating func receive() -> Bool {
    if core.siblingCount != 0 { core.hearSiblings() }
    var progress = false
    var isFull = false
    for port in 0..<portCount {
      if core.ports[port].stashCount <= Port.stashMax - packetBurst { fillStash(port) }
      let count = unsafe ports[port].receive(into: core.ports[port].burst.base, capacity: packetBurst)
      if count == 0 { continue }
      core.receive(UInt32(port), count: count)
      arrived |= 1 << UInt64(port)
      progress = true
      if count == packetBurst { isFull = true }
    }
    if core.catchUpRounds != 0 { core.catchUp(isMore: isFull) }
    return progress
  }

  private mutating func fillStash(_ port: Int) {
    while core.ports[port].stashCount <= Port.stashMax - packetBurst {
      let at = core.ports[port].stashCount
      let count = unsafe ports[port].allocate(into: core.ports[port].stash.base + at, count: packetBurst)
      core.ports[port].stashCount = at + count
      if count < packetBurst { return }
    }
  }

  /// Hands over what is queued, and gives back what is spent.
  private mutating func transmit() -> Bool {
    var progress = false
    for port in 0..<portCount {
      while core.ports[port].queued != 0 {
        let first = core.ports[port].queueHead & (Port.queueMax - 1)
        let count = min(core.ports[port].queued, packetBurst, Port.queueMax - first)
        // The frames are the port's once it has taken them: their lengths are looked at before.
        var bytes = 0
        for index in first..<first + count { bytes += Int(core.ports[port].queue[index].length) }
        if core.capture.isOn { core.captureQueued(UInt32(port), count: count) }
        let taken = unsafe ports[port].transmit(core.ports[port].queue.base + first, count: count)
        for index in first + taken..<first + count { bytes -= Int(core.ports[port].queue[index].length) }
        core.departed(taken, bytes: bytes, UInt32(port))
        framesSent += taken
        if taken != 0 { progress = true }
        if taken < count { break }
      }
      freeSpent(port)
    }
    return progress
  }

  private mutating func freeSpent(_ port: Int) {
    var at = 0
    let end = core.ports[port].spentCount
    while at < end {
      let count = min(packetBurst, end - at)
      unsafe ports[port].free(core.ports[port].spent.base + at, count: count)
      at += count
    }
    core.ports[port].spentCount = 0
  }

  // MARK: Rest

  /// Sleeps until somebody has work. Nobody who publishes work can miss that the engine sleeps: it says so, then looks
  /// everywhere once more. A port without an interrupt (`InterruptTrust`) is looked at from time to time.
  private mutating func sleep() {
    let word = unsafe core.directory.engineWord(core.index)
    unsafe mn_store_relaxed_u32(word, 1)
    // Pairs with the fence between an application's publish and its look at this word.
    mn_fence()
    for port in 0..<portCount { unsafe ports[port].armInterrupt() }
    core.mailbox.count(.sleeps)
    let start = core.clock.now()
    var interval = Rest.pollMin
    var hasSlept = false
    arrived = 0
    while !core.hasWork() {
      if portCount != 0 {
        core.readClock()
        if receive() {
          if hasSlept { interrupts.missed(arrived & interrupts.trusted) }
          break
        }
        if core.now >= nextTick { tick() }
        core.pumpSessions()
        _ = transmit()
      }
      var told: UInt64 = 0
      if unsafe mn_linux_epoll_wait(epoll, restLimit(interval), &told) > 0 {
        interrupts.told(told)
        break
      }
      hasSlept = true
      interval = min(interval + interval / Rest.pollGrowth, Rest.pollMax)
    }
    for port in 0..<portCount { unsafe ports[port].disarmInterrupt() }
    unsafe mn_store_relaxed_u32(word, 0)
    core.mailbox.count(.sleepNanoseconds, Int(core.clock.now() &- start))
  }

  /// How long the engine may sleep at a stretch, ns; negative: until it is woken.
  private func restLimit(_ interval: Int64) -> Int64 {
    if portCount == 0 { return -1 }
    let due = core.sessionTimeout
    let limit = due == .max ? Rest.timers : min(Rest.timers, Int64(due > core.now ? due - core.now : 1))
    for port in 0..<portCount {
      if interrupts.trusted & 1 << UInt64(port) == 0 || core.ports[port].queued != 0 { return min(limit, interval) }
      // The answer that packets wait for may come to another engine.
      if core.siblingCount != 0 && core.ports[port].neighbours.waitingCount != 0 { return min(limit, interval) }
    }
    return limit
  }

  /// Gives back every packet that the engine still holds.
  private mutating func finish() {
    // Peers hear that their sessions are over.
    core.now = core.clock.now()
    while core.closeSessions() { if !transmit() { break } }
    for port in 0..<portCount {
      let number = UInt32(port)
      while core.ports[port].queued != 0 {
        core.spend(core.ports[port].queue[core.ports[port].queueHead & (Port.queueMax - 1)], number)
        core.ports[port].queueHead += 1
      }
      freeSpent(port)
      while core.ports[port].stashCount != 0 { core.spend(core.takePacket(number), number) }
      freeSpent(port)
      for entry in 0..<UInt32(EngineLimits.neighbours) {
        while let packet = core.ports[port].neighbours.takeWaiting(entry) { core.spend(packet, number) }
        freeSpent(port)
      }
    }
  }
}

/// How an engine rests, ns.
/// Giving the core to whoever else wants it. What a yield costs is what it tells: one that comes back at once had no taker,
/// and then the next few empty rounds do without, because a system call costs more than a round.
private struct Courtesy {
  /// The quickest yield so far, cycles: one without a taker.
  private var quickest = UInt64.max
  /// The last one.
  private var last: UInt64 = 0
  private var keepUntil: UInt64 = 0
  /// Rounds (some 150 cycles each) that an engine alone on its core does between two yields, in cycles.
  private static var alone: UInt64 { 4_000 }
  /// The longest stay after a delivery, cycles: about what two context switches cost.
  private static var longest: UInt64 { 8_000 }

  private var isAlone: Bool { last / 2 < quickest }

  /// After an empty round.
  mutating func yield() {
    let start = mn_cycles()
    if start < keepUntil {
      mn_pause()
      return
    }
    mn_linux_yield()
    let end = mn_cycles()
    last = end &- start
    quickest = min(quickest, last)
    if isAlone { keepUntil = end &+ Courtesy.alone }
  }

  /// Looks on for about as long as a context switch takes: giving the core away just before an answer costs two of them.
  mutating func stay() {
    keepUntil = mn_cycles() &+ min(last / 2, Courtesy.longest)
  }

  /// Gives the core away at once, if anybody took it the last time.
  mutating func make() {
    if isAlone { return }
    keepUntil = 0
    yield()
  }
}

private enum Rest {
  /// Between two looks at a port that cannot wake us: a sixteenth longer each time, so that only an engine that has
  /// been idle for 15 ms takes its time (1 ms: about 1% of a core, and a session is set up within it).
  static let pollMin: Int64 = 100_000
  static let pollMax: Int64 = 1_000_000
  static let pollGrowth: Int64 = 16
  /// Where only timers are due.
  static let timers: Int64 = 100_000_000
}
