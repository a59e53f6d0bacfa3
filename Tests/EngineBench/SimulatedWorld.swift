package import MachnetEngine
package import MachnetSimulation
import MachnetTransport

/// Daemons on a simulated network: real engines, stepped in virtual time on one thread. The test is the applications, the
/// control threads, and the judge.
@safe
package final class SimulatedWorld {
  package let network: SimulatedNetwork
  package private(set) var hosts: [SimulatedHost] = []
  /// How long a round of an engine takes, ns: what arrives meanwhile waits in the RX ring.
  package var roundTime: UInt64 = 1_000
  /// How often, and for how long, an engine does not get to run: other work has its core. Each engine has a fate of its own.
  package var absences: Schedule? {
    didSet { for host in hosts { host.absences = absences } }
  }
  /// Safety: what the engines' clocks read; owned.
  private let time: UnsafeMutablePointer<UInt64>
  private var random: RandomStream

  package init(seed: UInt64, buffers: Int = 65_536, bufferSize: Int = 2048) {
    network = SimulatedNetwork(seed: seed, buffers: buffers, bufferSize: bufferSize)
    random = RandomStream(seed: seed, name: "order of engines")
    unsafe time = .allocate(capacity: 1)
    unsafe time.initialize(to: 0)
  }

  deinit { unsafe time.deallocate() }

  package var now: UInt64 { network.now }

  /// A daemon with an interface 10.0.0.(number + 1)/16 and a queue for each of its engines.
  ///
  /// - Parameter configure: changes the options of each engine.
  @discardableResult
  package func addHost(
    engines: Int, link: LinkOptions = LinkOptions(), mtu: Int = 1500,
    configure: @escaping (inout EngineOptions) -> Void = { _ in }
  ) -> SimulatedHost {
    let number = hosts.count
    let mac = 0x0200_0000_0000 | UInt64(number + 1)
    let address = ip(10, 0, UInt32(number + 1) >> 8, UInt32(number + 1) & 255)
    var options = HostOptions(mac: mac, address: address, queues: engines)
    options.link = link
    precondition(network.addHost(options) == number)
    let interface = InterfaceOptions(name: "net0", address: address, mask: 0xFFFF_0000, mtu: mtu, mac: mac)
    let host = unsafe SimulatedHost(network, number, interface, engines, time: time, configure: configure)
    host.absences = absences
    hosts.append(host)
    return host
  }

  /// Lets time pass until `limit`; the engines work whenever there is something for them.
  package func run(until limit: UInt64) {
    // Applications may have sent, control threads may have ordered.
    for host in hosts { host.wake(at: now) }
    while true {
      var next = min(limit, network.nextEventTime)
      for host in hosts { next = min(next, host.nextRound) }
      network.advance(to: next)
      unsafe time.pointee = next
      if next >= limit { return }
      // None of them is always the first.
      let first = Int(random.below(UInt64(hosts.count)))
      for offset in hosts.indices { hosts[(first + offset) % hosts.count].step(at: next, roundTime: roundTime) }
    }
  }

  package func run(for duration: UInt64) { run(until: now + duration) }

  /// Runs for `duration`, and every `interval` ns lets the applications do something.
  package func run(for duration: UInt64, every interval: UInt64, _ applications: () -> Void) {
    let end = now + duration
    while now < end {
      applications()
      run(until: min(end, now + interval))
    }
  }

  /// Runs until nothing is under way and no engine has anything to do but wait, at most for `duration`.
  ///
  /// - Returns: false: something still is.
  package func settle(for duration: UInt64 = 1_000_000_000) -> Bool {
    let end = now + duration
    while now < end {
      run(for: 100_000)
      if network.inFlight == 0 && hosts.allSatisfy({ $0.isIdle }) { return true }
    }
    return false
  }

  /// Ends every engine.
  ///
  /// - Returns: whether every packet has come back.
  package func end() -> Bool {
    for host in hosts { host.end() }
    while network.inFlight > 0 {
      network.advance(to: max(now, min(network.nextEventTime, now + 1_000_000)))
      for host in hosts {
        for queue in 0..<host.engineCount { while network.receive(host: host.number, queue: queue) != nil {} }
      }
      // What was shown last is still counted.
      network.advance(to: now)
    }
    return network.isConserved && hosts.allSatisfy { network.held(by: $0.number) == 0 }
  }
}

/// A daemon with one interface, some engines and one attached process; `attach` makes more of those.
@safe
package final class SimulatedHost {
  package let number: Int
  package let interface: InterfaceOptions
  package let engineCount: Int
  package private(set) var directory: TestDirectory
  package private(set) var channel: TestChannel
  package private(set) var controls: [EngineControl] = []
  private var engines: [SteppedEngine] = []
  /// By channel.
  private var nextBlock: [UInt32: UInt32] = [:]
  private var epoch: UInt64
  private let network: SimulatedNetwork
  /// Safety: of the world.
  private let time: UnsafeMutablePointer<UInt64>
  private let configure: (inout EngineOptions) -> Void
  package static let endpoints: UInt32 = 64

  init(
    _ network: SimulatedNetwork, _ number: Int, _ interface: InterfaceOptions, _ engineCount: Int,
    time: UnsafeMutablePointer<UInt64>, configure: @escaping (inout EngineOptions) -> Void
  ) {
    self.network = network
    self.number = number
    self.interface = interface
    self.engineCount = engineCount
    unsafe self.time = time
    self.configure = configure
    epoch = network.seed << 16 | UInt64(number) << 8 | 1
    directory = TestDirectory(interfaces: [interface])
    channel = TestChannel(identifier: 1, endpoints: SimulatedHost.endpoints, engineCount: UInt32(engineCount))
    start()
  }

  package var address: UInt32 { interface.address }

  private func start() {
    controls = (0..<engineCount).map { index in
      var options = EngineOptions(index: UInt32(index), directory: directory.directory)
      var interface = interface
      interface.queue = index
      interface.queues = engineCount
      options.interfaces = [interface]
      unsafe options.virtualTime = UnsafePointer(time)
      options.transport = TransportOptions(engine: 0, engines: 1, epoch: epoch, seed: (epoch, UInt64(index)))
      configure(&options)
      return EngineControl(options: options)!
    }
    EngineControl.introduce(controls)
    engines = controls.enumerated().map { index, control in
      let port = SimulatedPort(network, host: number, queue: index)
      let fate = RandomStream(seed: network.seed, name: "absences of engine \(index) of host \(number)")
      return SteppedEngine(control, port, fate, readyAt: network.now)
    }
    for engine in engines { engine.schedule(absences, now: network.now) }
    add(channel)
  }

  private func add(_ channel: TestChannel) {
    nextBlock[channel.identifier] = 0
    for control in controls {
      _ = try! unsafe control.addChannel(
        identifier: channel.identifier, base: channel.base, size: channel.size, doorbell: channel.doorbell)
    }
  }

  /// Another process, until the daemon restarts, or another channel of it.
  package func attach(endpoints: UInt32 = SimulatedHost.endpoints) -> TestChannel {
    let made = TestChannel(
      identifier: UInt32(nextBlock.count + 1), endpoints: endpoints, engineCount: UInt32(engineCount))
    add(made)
    return made
  }

  /// The control thread takes a process's channel away. Its memory stays until the engines have been told, and have run.
  package func detach(_ channel: TestChannel) {
    for control in controls { _ = try! control.removeChannel(identifier: channel.identifier) }
  }

  /// The daemon dies without a word and comes back: sockets have to be opened again, the network takes back its packets.
  package func restart() {
    engines = []
    network.restart(number)
    nextBlock = [:]
    epoch += 2
    directory = TestDirectory(interfaces: [interface])
    channel = TestChannel(identifier: 1, endpoints: SimulatedHost.endpoints, engineCount: UInt32(engineCount))
    start()
  }

  /// Opens a socket: at every engine, as the daemon does.
  ///
  /// - Parameters:
  ///   - address: 0: the wildcard.
  ///   - home: the engine that serves its TX ring; nil: engines in turn.
  ///   - owner: of `attach`; nil: the first process.
  package func open(
    port: UInt16, address: UInt32 = 0, peer: (UInt32, UInt16)? = nil, home: Int? = nil, in owner: TestChannel? = nil
  ) -> Application {
    let channel = owner ?? channel
    let block = nextBlock[channel.identifier]!
    precondition(block < channel.endpoints)
    let application = Application(channel, block, directory.directory, home: UInt32(home ?? Int(block) % engineCount))
    nextBlock[channel.identifier] = block + 1
    for control in controls {
      _ = try! control.openEndpoint(application.reference, EndpointIdentity(address, port, application, peer: peer))
    }
    return application
  }

  // MARK: Work

  var absences: Schedule? {
    didSet { for engine in engines { engine.schedule(absences, now: network.now) } }
  }

  var nextRound: UInt64 { engines.reduce(UInt64.max) { min($0, $1.wakeAt) } }
  var isIdle: Bool { engines.allSatisfy { $0.isIdle } }

  func wake(at now: UInt64) { for engine in engines { engine.wakeAt = max(now, engine.readyAt) } }

  func step(at now: UInt64, roundTime: UInt64) {
    for (queue, engine) in engines.enumerated() {
      if network.waiting(host: number, queue: queue) > 0 { engine.wakeAt = min(engine.wakeAt, engine.readyAt) }
      if engine.wakeAt <= now { engine.step(at: now, roundTime: roundTime) }
    }
    // One engine may have something for another.
    for engine in engines where engine.isIdle { engine.look() }
  }

  func end() {
    for engine in engines { engine.end() }
    engines = []
  }

  // MARK: To look at

  package func count(_ counter: EngineCounter) -> UInt64 { controls.reduce(0) { $0 + $1.counters()[counter] } }
  package func count(_ reason: DropReason) -> UInt64 { controls.reduce(0) { $0 + $1.counters()[reason] } }
  /// Reasons for drops at any engine, with how often.
  package var drops: [DropReason: UInt64] {
    var sum: [DropReason: UInt64] = [:]
    for control in controls { for (reason, count) in control.counters().drops { sum[reason, default: 0] += count } }
    return sum
  }
}

/// An engine whose rounds somebody else calls for.
private final class SteppedEngine {
  private let control: EngineControl
  private var engine: Engine<SimulatedPort>
  /// When its last round is over.
  var readyAt: UInt64
  /// When the next one is due.
  var wakeAt: UInt64
  /// It only waits for its timers.
  var isIdle = false
  private var absences: Schedule?
  private var fate: RandomStream
  /// The next time, or the one under way, that it does not run.
  private var absentFrom = UInt64.max
  private var absentUntil = UInt64.max

  init(_ control: EngineControl, _ port: consuming SimulatedPort, _ fate: RandomStream, readyAt: UInt64) {
    self.control = control
    self.fate = fate
    engine = Engine<SimulatedPort>(control: control)
    engine.add(port: port)
    self.readyAt = readyAt
    wakeAt = readyAt
  }

  func schedule(_ absences: Schedule?, now: UInt64) {
    self.absences = absences
    drawAbsence(from: now)
  }

  private func drawAbsence(from now: UInt64) {
    guard let absences else {
      (absentFrom, absentUntil) = (.max, .max)
      return
    }
    absentFrom = now + fate.uniform(absences.interval)
    absentUntil = absentFrom + fate.uniform(absences.duration)
  }

  func step(at now: UInt64, roundTime: UInt64) {
    // An idle engine has looked all the time that nobody stepped it.
    if isIdle { engine.idled(until: min(absentFrom, max(readyAt, now) - roundTime)) }
    if now >= absentFrom {
      if now < absentUntil {
        readyAt = absentUntil
        wakeAt = absentUntil
        return
      }
      drawAbsence(from: now)
    }
    let progress = engine.iterate()
    isIdle = !progress && !engine.hasWork()
    readyAt = now + roundTime
    wakeAt = isIdle ? max(readyAt, engine.nextTimeout) : readyAt
  }

  /// Looks whether there is work after all.
  func look() {
    isIdle = !engine.hasWork()
    if !isIdle { wakeAt = readyAt }
  }

  func end() {
    control.stop()
    engine.run()
  }
}
