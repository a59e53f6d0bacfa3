import MachnetWire

/// A host as the network sees it: a least-common-denominator NIC and its cable.
struct SimulatedNIC {
  let options: HostOptions
  var link: Link
  var isUp = true
  /// In the 48 low bits; 0: not known yet.
  var mac: UInt64
  var counters = NetworkCounters()
  var queueing = DelayHistogram()
  /// Buffers that the host's software has.
  var held = 0

  // To the switch.
  /// When the cable is free again, in 1024ths of a nanosecond: whole ones would make a 10 Gbit/s link of 64-byte frames
  /// 1% slow.
  var txFree: UInt64 = 0
  /// When the latest frame reaches the switch: none of those behind it is earlier.
  var txArrival: UInt64 = 0
  var transmitQueues: [TransmitQueue]
  var faults: Dice
  var isLosing = false
  var random: RandomStream

  // From the switch.
  var rxFree: UInt64 = 0
  var rxArrival: UInt64 = 0
  var receiveQueues: [BufferList]
  var toeplitz: Toeplitz
  var rssRandom: RandomStream

  init(_ options: HostOptions, number: Int, seed: UInt64, faults: Faults) {
    precondition((1...64).contains(options.queues) && options.descriptors > 0 && options.mac >> 48 == 0)
    self.options = options
    link = Link(options.link)
    mac = options.mac
    random = RandomStream(seed: seed, name: "faults of host \(number)")
    rssRandom = RandomStream(seed: seed, name: "RSS key of host \(number)")
    toeplitz = Toeplitz(random: &rssRandom)
    transmitQueues = (0..<options.queues).map { _ in TransmitQueue(descriptors: options.descriptors) }
    receiveQueues = [BufferList](repeating: BufferList(), count: options.queues)
    self.faults = Dice(faults)
  }

  // MARK: RSS

  /// Places of the indirection table.
  static var indirections: UInt32 { 128 }

  /// The table is what drivers set up by default: queues in turn.
  func queue(ofHash hash: UInt32) -> Int { Int(hash % SimulatedNIC.indirections) % options.queues }

  /// Where RSS puts a frame: UDP by addresses and ports, other IPv4 and fragments by addresses, the rest into queue 0.
  func queue(of frame: Bytes) -> Int {
    if options.queues == 1 { return 0 }
    guard let ethernet = EthernetFrame(frame), ethernet.type == EtherType.ipv4,
      let ip = IPv4Packet(ethernet.payload)
    else { return 0 }
    if ip.ipProtocol == IPProtocol.udp && !ip.isFragment, ip.payload.count >= 4 {
      let ports = ip.payload
      return queue(
        ofHash: toeplitz.hash(
          source: ip.source, destination: ip.destination, sourcePort: ports.u16(0), destinationPort: ports.u16(2)))
    }
    return queue(ofHash: toeplitz.hash(source: ip.source, destination: ip.destination))
  }
}

/// When the descriptors in use will be free again: a frame keeps its own until it is on the wire.
struct TransmitQueue {
  private var done: [UInt64]
  private var head = 0
  private var used = 0

  init(descriptors: Int) { done = [UInt64](repeating: 0, count: descriptors) }

  /// Descriptors that are free now.
  mutating func room(at now: UInt64) -> Int {
    while used > 0 && done[head] <= now {
      head = head + 1 == done.count ? 0 : head + 1
      used -= 1
    }
    return done.count - used
  }

  mutating func put(until time: UInt64) {
    let place = head + used
    done[place < done.count ? place : place - done.count] = time
    used += 1
  }

  mutating func clear() { used = 0 }
}

/// A cable's options made ready.
struct Link {
  let options: LinkOptions
  /// How long the bytes of a full egress queue take to leave, 1024ths of a nanosecond.
  let queueTime: UInt64

  init(_ options: LinkOptions) {
    precondition(options.queueLimit >= 0 && options.queueLimit <= 1 << 30 && options.overhead >= 0)
    self.options = options
    queueTime = options.bandwidth == 0 ? 0 : Link.time(UInt64(options.queueLimit), options.bandwidth)
  }

  /// Bytes of a frame on the wire: short ones are padded to 60 (IEEE 802.3).
  private func size(_ length: Int) -> UInt64 { UInt64(max(60, length) + options.overhead) }

  /// How long a frame takes, 1024ths of a nanosecond.
  func time(_ length: Int) -> UInt64 { options.bandwidth == 0 ? 0 : Link.time(size(length), options.bandwidth) }

  private static func time(_ bytes: UInt64, _ bandwidth: UInt64) -> UInt64 {
    let (high, low) = bytes.multipliedFullWidth(by: 8 * 1024 * 1_000_000_000)
    precondition(high < bandwidth)
    return bandwidth.dividingFullWidth((high, low)).quotient
  }

  /// The bytes that take that long.
  func bytes(_ time: UInt64) -> Int {
    let (high, low) = time.multipliedFullWidth(by: options.bandwidth)
    return Int((8 * 1024 * 1_000_000_000 as UInt64).dividingFullWidth((high, low)).quotient)
  }
}

/// Faults made ready.
struct Dice {
  let faults: Faults
  /// That a run of losses begins with the next frame, and that it ends with it.
  let beginLoss: Chance
  let endLoss: Chance
  let duplication: Chance
  let reordering: Chance
  let corruption: Chance

  init(_ faults: Faults) {
    precondition(faults.lossBurst >= 1)
    self.faults = faults
    if faults.loss == 0 || faults.loss == 1 || faults.lossBurst <= 1 / (1 - faults.loss) {
      beginLoss = Chance(faults.loss)
      endLoss = Chance(1 - faults.loss)
    } else {
      // Of a two-state chain with leaving probability e, entering probability b: runs of 1/e, losses b / (b + e).
      endLoss = Chance(1 / faults.lossBurst)
      beginLoss = Chance(min(1, faults.loss / (faults.lossBurst * (1 - faults.loss))))
    }
    duplication = Chance(faults.duplication)
    reordering = Chance(faults.reordering)
    corruption = Chance(faults.corruption)
  }
}
