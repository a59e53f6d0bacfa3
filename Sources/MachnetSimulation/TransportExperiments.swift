import MachnetTransport

/// What the transport reaches in simulated networks: the figures that ARCHITECTURE.md shows. Each is a function of the
/// seed.
public enum TransportExperiments {
  /// SYN and SYN-ACK packets that it took to set up a session.
  public struct SetUp: Sendable {
    public var engines: Int
    public var count: Int
    public var median: Int
    public var percentile95: Int
    /// The paper's: the least k1 + k2 with (1 - (1 - 1/N)^k1)(1 - (1 - 1/N)^k2) >= 0.95.
    public var theory: Double
    /// ns from the first message to the session.
    public var medianTime: UInt64
  }

  public static func setUp(engines: Int, count: Int, seed: UInt64) -> SetUp {
    var packets: [Int] = []
    var times: [UInt64] = []
    var round = 0
    while packets.count < count {
      // Every so often other NICs, with other keys.
      var options = TransportLab.Options(seed: seed &+ UInt64(round))
      options.engines = engines
      let lab = TransportLab(options)
      for number in 0..<min(100, count - packets.count) {
        let before = lab.count(.synsSent) + lab.count(.synAcksSent)
        let start = lab.now
        var opened: UInt64 = 0
        lab.post(from: 0, queue: number % engines, to: 1, size: 64)
        lab.run(until: start + 2_000_000_000) {
          if opened == 0 && lab.count(.sessionsOpened) % 2 == 0 && lab.count(.sessionsOpened) > 0
            && lab.snapshot(engine: number % engines).contains(where: \.isOpen)
          {
            opened = lab.now
          }
          return lab.outstanding == 0
        }
        // What was on its way when it succeeded counts, too.
        lab.run(until: lab.now + 2_000_000)
        packets.append(Int(lab.count(.synsSent) + lab.count(.synAcksSent) - before))
        times.append((opened == 0 ? lab.now : opened) - start)
        lab.closeAll()
      }
      precondition(lab.faults.isEmpty, "\(lab.faults)")
      round += 1
    }
    packets.sort()
    times.sort()
    return SetUp(
      engines: engines, count: count, median: packets[count / 2], percentile95: packets[count * 95 / 100],
      theory: theory(engines), medianTime: times[count / 2])
  }

  /// Of 95% certainty, both phases alike, to tenths of a packet.
  static func theory(_ engines: Int) -> Double {
    let each = 0.95.squareRoot()
    var low = 0.0
    var high = 1000.0
    let miss = 1 - 1 / Double(engines)
    for _ in 0..<60 {
      let middle = (low + high) / 2
      if 1 - power(miss, middle) < each { low = middle } else { high = middle }
    }
    return 2 * high
  }

  /// base^exponent for 0 < base < 1, by halving the exponent: without a mathematics library.
  private static func power(_ base: Double, _ exponent: Double) -> Double {
    var result = 1.0
    var whole = Int(exponent)
    var factor = base
    while whole > 0 {
      if whole & 1 == 1 { result *= factor }
      factor *= factor
      whole >>= 1
    }
    var part = exponent - exponent.rounded(.down)
    var root = base
    for _ in 0..<50 {
      root = root.squareRoot()
      part *= 2
      if part >= 1 {
        result *= root
        part -= 1
      }
    }
    return result
  }

  /// One transfer over one session.
  public struct Transfer: Sendable {
    public var goodput: Double
    /// Share of the link's bit rate, Ethernet's preamble and gap included.
    public var share: Double
    public var packets: UInt64
    public var retransmissions: UInt64
    public var spurious: UInt64
    public var timeouts: UInt64
  }

  public static func transfer(
    bytes: Int = 8 << 20, messageSize: Int = 8 << 20, mtu: Int, faults: Faults, seed: UInt64,
    link: LinkOptions = LinkOptions()
  ) -> Transfer {
    var options = TransportLab.Options(seed: seed)
    options.mtu = mtu
    options.link = link
    let lab = TransportLab(options)
    lab.post(from: 0, to: 1, size: 8)
    lab.run(until: 1_000_000_000) { lab.outstanding == 0 }
    lab.network.faults = faults
    let before = lab.count(.packetsSent)
    let start = lab.now
    var left = bytes
    while left > 0 {
      lab.post(from: 0, to: 1, size: min(left, messageSize))
      left -= messageSize
    }
    lab.run(until: start + 20_000_000_000) { lab.outstanding == 0 }
    precondition(lab.faults.isEmpty && lab.outstanding == 0, "\(lab.faults)")
    let rate = Double(bytes) * 8e9 / Double(lab.now - start)
    return Transfer(
      goodput: rate, share: rate / Double(link.bandwidth), packets: lab.count(.packetsSent) - before,
      retransmissions: lab.count(.retransmissions), spurious: lab.count(.spuriousRetransmissions),
      timeouts: lab.count(.timeouts))
  }

  /// Many senders, one receiver: its cable is the bottleneck.
  public struct Incast: Sendable {
    public var senders: Int
    /// ns in the switch's queue to the receiver.
    public var medianDelay: UInt64
    public var percentile99Delay: UInt64
    /// Jain, Chiu, Hawe (1984): 1 when all get the same.
    public var fairness: Double
    public var share: Double
    public var drops: UInt64
  }

  public static func incast(senders: Int, mtu: Int, seed: UInt64, milliseconds: UInt64 = 200) -> Incast {
    var options = TransportLab.Options(seed: seed)
    options.hosts = senders + 1
    options.mtu = mtu
    options.link.queueLimit = 8 << 20
    let lab = TransportLab(options)
    var bytes = [UInt64](repeating: 0, count: senders + 1)
    let size = 32_768
    lab.onDelivery = { _, _ in }
    var sizes: [Int: Int] = [:]
    func feed() {
      for sender in 1...senders {
        while lab.waiting(host: sender) < 2 { sizes[lab.post(from: sender, to: 0, size: size)] = sender }
      }
    }
    lab.onDelivery = { _, identifier in
      guard let sender = sizes.removeValue(forKey: identifier) else { return }
      bytes[sender] += UInt64(size)
      while lab.waiting(host: sender) < 2 { sizes[lab.post(from: sender, to: 0, size: size)] = sender }
    }
    feed()
    lab.run(until: 50_000_000)
    bytes = bytes.map { _ in 0 }
    lab.network.resetQueueingDelay(to: 0)
    let start = lab.now
    lab.run(until: start + milliseconds * 1_000_000)
    precondition(lab.faults.isEmpty, "\(lab.faults)")
    let rates = bytes[1...].map { Double($0) }
    let sum = rates.reduce(0, +)
    let squares = rates.reduce(0) { $0 + $1 * $1 }
    let delay = lab.network.queueingDelay(to: 0)
    return Incast(
      senders: senders, medianDelay: delay.percentile(50), percentile99Delay: delay.percentile(99),
      fairness: sum * sum / (Double(senders) * squares),
      share: sum * 8e9 / Double(milliseconds * 1_000_000) / Double(options.link.bandwidth),
      drops: lab.network.counters.queueDrops)
  }

  // MARK: Swarm

  /// What one run of the swarm came to.
  public struct SwarmRun: Sendable {
    public var seed: UInt64
    public var faults: [String]
    public var messages: Int
    public var delivered: Int
    public var excused: Int
    public var packets: UInt64
    public var retransmissions: UInt64
    public var sessionsLost: UInt64
    /// Of the simulated network.
    public var virtualTime: UInt64
    public var description: String
  }

  /// One run under the faults that the seed draws. When the faults have stopped, everything that was accepted must
  /// arrive or have been given up by name; nothing may arrive twice or damaged.
  ///
  /// - Parameter canary: damages one message on its way out of the transport: the run must notice.
  public static func swarm(seed: UInt64, canary: Bool = false) -> SwarmRun {
    var random = RandomStream(seed: seed, name: "workload")
    func one<T>(_ values: [T]) -> T { values[Int(random.below(UInt64(values.count)))] }
    let swarm = Swarm(seed: seed)
    var options = TransportLab.Options(seed: seed)
    options.hosts = one([2, 2, 3, 4])
    options.engines = one([1, 1, 2, 4])
    options.mtu = one([576, 1500, 1500, 9000])
    options.link = swarm.link
    options.targetDelay = one([50_000, 100_000, 500_000])
    let lab = TransportLab(options)
    lab.network.faults = swarm.faults
    let count = one([20, 100, 300])
    let sizes: [ClosedRange<UInt64>] = one([[8...200], [8...1500], [8...1500, 1000...65_507], [8...200, 8...65_507, 100_000...600_000]])
    let span = one([5_000_000, 50_000_000, 200_000_000] as [UInt64])
    var restarts = 0
    var nextRestart = UInt64.max
    if let schedule = swarm.restarts { nextRestart = random.uniform(schedule.interval) }
    if let schedule = swarm.partitions { lab.network.runPartitions(schedule, until: span) }
    if canary { lab.canary = 1 + Int(random.below(UInt64(count))) }
    var times = (0..<count).map { _ in random.below(span) }
    times.sort()
    for time in times {
      while nextRestart < time {
        lab.run(until: nextRestart)
        lab.restart(Int(random.below(UInt64(options.hosts))))
        restarts += 1
        nextRestart = lab.now + random.uniform(swarm.restarts!.interval)
      }
      lab.run(until: time)
      let from = Int(random.below(UInt64(options.hosts)))
      let to = (from + 1 + Int(random.below(UInt64(options.hosts - 1)))) % options.hosts
      let size = Int(random.uniform(one(sizes)))
      lab.post(from: from, queue: Int(random.below(UInt64(options.engines))), to: to, size: size)
    }
    lab.network.faults = .none
    lab.network.healPartitions()
    // Peers that were given up are asked again after a second; what a dead session took with it shows after three.
    let end = lab.now + 30_000_000_000
    while lab.outstanding != 0 && lab.now < end {
      lab.run(until: min(end, lab.now + 200_000_000)) { lab.outstanding == 0 }
      lab.touchAll()
    }
    var faults = lab.faults
    if lab.outstanding != 0 {
      faults.append("seed \(seed): \(lab.outstanding) messages neither arrived nor were reported lost after the faults stopped")
    }
    if !lab.network.isConserved { faults.append("seed \(seed): buffers of the network are missing") }
    return SwarmRun(
      seed: seed, faults: faults, messages: count, delivered: lab.delivered, excused: lab.excused,
      packets: lab.count(.packetsSent), retransmissions: lab.count(.retransmissions),
      sessionsLost: lab.count(.sessionsClosed), virtualTime: lab.now,
      description: "\(options.hosts) hosts x \(options.engines), mtu \(options.mtu), \(restarts) restarts, \(swarm)")
  }
}
