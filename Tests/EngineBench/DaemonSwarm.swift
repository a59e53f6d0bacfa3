import MachnetEngine
import MachnetSimulation

/// Whole daemons under the faults that a seed draws: real engines and both transports. What becomes of every datagram is
/// watched from outside:
///
/// - whatever arrives is whole and where it belongs;
/// - what went over sessions arrives once; or, where there were partitions or restarts, or frames were lost so often that no session
///   may have been had or kept, an engine has counted its loss (a restarted host's own losses are excused);
/// - when the faults have stopped, every host reaches every other;
/// - every packet of every pool comes back.
///
/// In one run of four, engines share their cores with other work, and do not run for milliseconds.
package final class DaemonSwarm {
  /// A fault behind the engines' backs, which the watcher must see.
  package enum Canary: String, CaseIterable, Sendable {
    /// The network changes a payload and makes its checksum right.
    case damage
    /// A delivered datagram is taken away before the application sees it.
    case theft
    /// A delivered datagram is given to the application twice.
    case repetition
  }

  package struct Outcome: Sendable {
    package var seed: UInt64
    /// What went wrong, in words.
    package var faults: [String]
    package var sent: Int
    package var delivered: Int
    /// Losses over sessions that an engine has counted, or a restart excuses.
    package var lost: Int
    package var frames: UInt64
    /// Of the run's frames, in order: the same in every run of the seed.
    package var traceHash: UInt64
    /// ns.
    package var virtualTime: UInt64
    package var description: String
  }

  private struct Letter {
    var from: Int
    var to: Int
    /// Over a session.
    var isReliable: Bool
    var arrivals = 0
    var isExcused = false
  }

  private let seed: UInt64
  private let canary: Canary?
  private var isCanaryDone = false
  private let swarm: Swarm
  private let world: SimulatedWorld
  private var random: RandomStream
  private var ledger = Ledger()
  private var letters: [Letter] = []
  private let ports: [[UInt16]]
  private var sockets: [[Application]] = []
  /// Counted by daemons that are no more.
  private var reportedBefore: UInt64 = 0
  /// Every host knew every other's Ethernet address before frames were lost.
  private var isGreeted = false
  private var restarts = 0
  /// Other work has the engines' cores now and then.
  private var isShared = false
  private var faults: [String] = []

  package static func run(seed: UInt64, canary: Canary? = nil) -> Outcome {
    let run = DaemonSwarm(seed: seed, canary: canary)
    return run.play()
  }

  private init(seed: UInt64, canary: Canary?) {
    self.seed = seed
    self.canary = canary
    // A canary is seen, or not, with nothing to hide behind.
    var swarm = Swarm(seed: seed)
    if canary != nil {
      swarm.faults = .none
      swarm.link = LinkOptions()
      swarm.partitions = nil
      swarm.restarts = nil
    }
    self.swarm = swarm
    var random = RandomStream(seed: seed, name: "daemons")
    func one<T>(_ values: [T]) -> T { values[Int(random.below(UInt64(values.count)))] }
    let world = SimulatedWorld(seed: seed)
    world.roundTime = one([300, 1_000, 5_000])
    let mtu = one([576, 1500, 1500])
    let count = one([2, 2, 3])
    for _ in 0..<count { world.addHost(engines: one([1, 2, 2, 4]), link: swarm.link, mtu: mtu) }
    ports = (0..<count).map { _ in (0..<4).map { UInt16(2000 + 1000 * UInt64($0) + random.below(1000)) } }
    self.world = world
    self.random = random
    for host in 0..<count { sockets.append(open(host)) }
  }

  private func open(_ host: Int) -> [Application] { ports[host].map { world.hosts[host].open(port: $0) } }

  private func play() -> Outcome {
    // Neighbours are known before ARP can be lost: its questions are a tenth of a second apart and more.
    isGreeted = random.below(2) == 0
    if isGreeted { greet() }
    world.network.faults = swarm.faults
    if canary == .damage {
      world.network.faults.corruption = 0.2
      world.network.faults.repairsChecksum = true
    }
    // Short runs are many; the long ones see sessions die and peers come back.
    let isLong = random.below(8) == 0
    let span: UInt64 = isLong ? 4_000_000_000 : [5_000_000, 20_000_000, 60_000_000][Int(random.below(3))]
    var absences = RandomStream(seed: seed, name: "absences")
    isShared = canary == nil && absences.below(4) == 0
    if isShared {
      let often: UInt64 = [100_000, 3_000_000, 30_000_000][Int(absences.below(3))]
      world.absences = Schedule(interval: often / 10...often, duration: 1_000_000...20_000_000)
    }
    let interval: UInt64 = isLong ? 10_000_000 : [20_000, 100_000, 400_000][Int(random.below(3))]
    // The swarm says whether there are partitions and restarts; how often, follows from the run's length.
    let often = Schedule(interval: span / 16...span / 3, duration: span / 100...span / 2)
    if swarm.partitions != nil { world.network.runPartitions(often, until: world.now + span) }
    var nextRestart = swarm.restarts == nil ? UInt64.max : world.now + random.uniform(often.interval)
    let longest: UInt64 = [200, 1_400, 9_000, 65_507][Int(random.below(4))]
    world.run(for: span, every: interval) {
      for _ in 0...random.below(4) { post(4 + random.below(longest - 3)) }
      collect()
      if world.now >= nextRestart {
        restart(Int(random.below(UInt64(sockets.count))))
        nextRestart = world.now + random.uniform(often.interval)
      }
    }
    world.network.faults = .none
    world.network.healPartitions()
    world.absences = nil
    finish()
    return outcome()
  }

  /// A plain datagram to everybody.
  private func greet() {
    for from in sockets.indices {
      for to in sockets.indices where to != from { send(from, to, isReliable: false, 4) }
    }
    world.run(for: 10_000_000)
    collect()
  }

  private func post(_ length: UInt64) {
    let from = Int(random.below(UInt64(sockets.count)))
    let to = (from + 1 + Int(random.below(UInt64(sockets.count - 1)))) % sockets.count
    send(from, to, isReliable: random.below(4) != 0, Int(length))
  }

  private func send(_ from: Int, _ to: Int, isReliable: Bool, _ length: Int) {
    // Two wrong bits in one datagram can hide from a checksum, and a datagram of many frames may well have two.
    let length = isReliable || swarm.faults.corruption == 0 ? length : min(length, 500)
    let socket = sockets[from][Int(random.below(4))]
    let port = ports[to][Int(random.below(4))]
    let payload = Ledger.payload(ledger.sent, length)
    // A full ring takes nothing: the program hears of it.
    guard socket.send(payload, to: world.hosts[to].address, port, machnet: isReliable) else { return }
    ledger.sent += 1
    letters.append(Letter(from: from, to: to, isReliable: isReliable))
  }

  private func collect() {
    for host in sockets.indices {
      for socket in sockets[host] {
        while let datagram = socket.receive() { take(datagram, at: host) }
      }
    }
  }

  private func take(_ datagram: Received, at host: Int) {
    guard let number = ledger.take(datagram.payload) else { return note("damaged: \(ledger.broken.last!)") }
    var letter = letters[Int(number)]
    if letter.isReliable && letter.arrivals == 0 && !isCanaryDone {
      if canary == .theft {
        isCanaryDone = true
        return
      }
      if canary == .repetition {
        isCanaryDone = true
        letter.arrivals += 1
      }
    }
    if letter.to != host { note("number \(number) is for host \(letter.to) and came to \(host)") }
    if world.hosts[letter.from].address != datagram.remote { note("number \(number) came under another's name") }
    letter.arrivals += 1
    if letter.isReliable && letter.arrivals > 1 { note("number \(number) came twice") }
    letters[Int(number)] = letter
  }

  /// What a host had taken, and what had not been taken from it, dies with it.
  private func restart(_ host: Int) {
    collect()
    reportedBefore += reported(host)
    for index in letters.indices where letters[index].arrivals == 0 {
      if letters[index].from == host || letters[index].to == host { letters[index].isExcused = true }
    }
    world.hosts[host].restart()
    sockets[host] = open(host)
    restarts += 1
  }

  /// Losses of messages that a daemon has counted.
  private func reported(_ host: Int) -> UInt64 {
    counted(host, [.peerRefused, .sessionLost, .peerPaused, .receiveRingFull, .udpNoReceiver, .closedUnsent])
  }

  private func counted(_ host: Int, _ reasons: [DropReason]) -> UInt64 {
    reasons.reduce(0) { $0 + world.hosts[host].count($1) }
  }

  private var missing: Int { letters.count { $0.isReliable && $0.arrivals == 0 && !$0.isExcused } }
  private var allReported: UInt64 { world.hosts.indices.reduce(reportedBefore) { $0 + reported($1) } }

  /// Losses that may be: sessions end where a peer is not to be reached, or has forgotten them.
  private var allowed: UInt64 {
    if swarm.partitions != nil || restarts != 0 { return allReported }
    var reasons: [DropReason] = []
    // Half a second, and the peer is taken to be without Machnet: three questions for its Ethernet address, and all may get lost.
    if !isGreeted && swarm.faults.loss + swarm.faults.corruption > 0 { reasons.append(.peerRefused) }
    // Three seconds without progress, and a session is dead: some twenty packets, or three runs of losses.
    if swarm.faults.loss >= 0.2 && swarm.faults.lossBurst > 1 { reasons.append(.sessionLost) }
    return world.hosts.indices.reduce(0) { $0 + counted($1, reasons) }
  }

  /// The faults have stopped.
  private func finish() {
    // A session that died shows within seconds, and a peer that was given up is asked again after one.
    let end = world.now + 30_000_000_000
    while UInt64(missing) > allowed && world.now < end {
      world.run(for: 5_000_000)
      collect()
    }
    if UInt64(missing) > allowed {
      let numbers = letters.indices.filter { letters[$0].isReliable && letters[$0].arrivals == 0 && !letters[$0].isExcused }
      note("\(missing) messages are missing (\(numbers.prefix(8))), \(allReported) losses were counted")
      for host in world.hosts { note("host \(host.number) drops \(host.drops.map { "\($0): \($1)" }.sorted())") }
    }
    for from in sockets.indices {
      for to in sockets.indices where to != from { reach(from, to) }
    }
    _ = world.settle()
    collect()
    if !world.end() { note("packets are missing") }
  }

  /// Sends until something arrives: once, if nobody remembers that the peer was not there.
  private func reach(_ from: Int, _ to: Int) {
    for _ in 0..<10 {
      let number = letters.count
      send(from, to, isReliable: true, 64)
      // Faults of sessions that died earlier still have to be noticed; a ring that is full of what waits for one, to be emptied.
      for _ in 0..<600 where number == letters.count || letters[number].arrivals == 0 {
        world.run(for: 1_000_000)
        collect()
      }
      if number < letters.count && letters[number].arrivals > 0 { return }
      if number < letters.count { letters[number].isExcused = true }
    }
    note("host \(from) does not reach host \(to) after the faults have stopped")
  }

  private func note(_ fault: String) {
    if faults.count < 20 { faults.append("\(world.now) ns: \(fault)") }
  }

  private func outcome() -> Outcome {
    Outcome(
      seed: seed, faults: faults, sent: letters.count, delivered: letters.count { $0.arrivals > 0 },
      lost: letters.count { $0.isReliable && $0.arrivals == 0 }, frames: world.network.counters.sent,
      traceHash: world.network.traceHash, virtualTime: world.now,
      description: "engines \(world.hosts.map(\.engineCount)), MTU \(world.hosts[0].interface.mtu), \(restarts) restarts, "
        + (isShared ? "shared cores, " : "")
        + "\(swarm)")
  }
}
