import MachnetEngine
import MachnetWire

/// The state of a simulated network and the rules by which it moves.
///
/// A frame's way: TX descriptor, cable (serialised), [faults], switch, egress queue of the receiver's cable (serialised),
/// RX ring. Two events stand for it: it reaches the switch; it reaches the host.
struct NetworkCore: ~Copyable {
  struct Event: BitwiseCopyable {
    enum Kind: UInt8 { case reachesSwitch, reachesHost, cut, heal }
    var kind: Kind
    /// Of partitions that the network runs by itself: those of an earlier epoch have been healed.
    var epoch: UInt8 = 0
    /// Where it comes from, or goes to; the first host of a partition.
    var host: UInt16
    /// The buffer; the other host of a partition.
    var index: UInt32
  }

  /// A frame that has come to a host.
  enum Outcome {
    case none
    case arrived(index: UInt32, host: Int, queue: Int)
  }

  let seed: UInt64
  var now: UInt64 = 0
  var events = EventQueue<Event>()
  var pool: BufferPool
  var nics: [SimulatedNIC] = []
  var faults = Faults.none
  /// Buffers in cables, queues and rings, and the one that was shown.
  var inFlight = 0
  var traceHash: UInt64 = 0x6A09_E667_F3BC_C908

  /// MAC addresses of hosts.
  private var stations: [UInt64: Int] = [:]
  static var stationsMax: Int { 4096 }
  /// Hosts whose address is not known: they get what is for nobody known.
  private var unknownCount = 0
  /// Cuts from a host (row) to another, as counted by their causes; `manual` is the test's own.
  private var cuts: [UInt16] = []
  private var isCutAnywhere = false
  private static var manual: UInt16 { 0x8000 }
  private var partitions: (schedule: Schedule, until: UInt64)? = nil
  private var partitionEpoch: UInt8 = 0
  private var partitionRandom: RandomStream

  init(seed: UInt64, buffers: Int, bufferSize: Int) {
    self.seed = seed
    pool = BufferPool(count: buffers, size: bufferSize)
    partitionRandom = RandomStream(seed: seed, name: "partitions")
  }

  mutating func addHost(_ options: HostOptions) -> Int {
    let number = nics.count
    precondition(number < Int(UInt16.max))
    nics.append(SimulatedNIC(options, number: number, seed: seed, faults: faults))
    if options.mac == 0 {
      unknownCount += 1
    } else {
      precondition(stations.updateValue(number, forKey: options.mac) == nil, "two hosts have one MAC address")
    }
    let count = nics.count
    var larger = [UInt16](repeating: 0, count: count * count)
    for from in 0..<number {
      for to in 0..<number { larger[from * count + to] = cuts[from * number + to] }
    }
    cuts = larger
    return number
  }

  mutating func trace(_ word: UInt64) {
    // A step of a multiply-and-fold hash: order matters, every bit counts.
    let product = (traceHash ^ word).multipliedFullWidth(by: 0x9E37_79B9_7F4A_7C15)
    traceHash = product.high ^ product.low
  }

  // MARK: From a host

  mutating func canTransmit(from host: Int, queue: Int) -> Bool {
    if nics[host].transmitQueues[queue].room(at: now) > 0 { return true }
    nics[host].counters.txFull += 1
    return false
  }

  /// Takes a frame from a host that holds it, in a queue that has room.
  mutating func transmit(_ index: UInt32, from host: Int, queue: Int, _ verdict: Verdict) {
    precondition(pool[index].holder == Int32(host), "a packet that the host does not hold")
    let length = Int(pool[index].length)
    nics[host].held -= 1
    pool[index].holder = BufferPool.Holder.network
    inFlight += 1
    guard nics[host].isUp else {
      nics[host].counters.linkDown += 1
      return discard(index)
    }
    let start = max(now << 10, nics[host].txFree)
    let end = start + nics[host].link.time(length)
    nics[host].txFree = end
    let sent = (end + 1023) >> 10
    nics[host].transmitQueues[queue].put(until: sent)
    nics[host].counters.sent += 1
    nics[host].counters.sentBytes += UInt64(length)
    learn(index, host)

    var arrival = sent + nics[host].link.options.delay
    if nics[host].link.options.jitter != 0 {
      arrival += nics[host].random.uniform(0...nics[host].link.options.jitter)
    }
    arrival = max(arrival, nics[host].txArrival)
    nics[host].txArrival = arrival
    if verdict == .drop {
      nics[host].counters.filtered += 1
      return discard(index)
    }
    let isLost = nics[host].isLosing
      ? !nics[host].random.roll(nics[host].faults.endLoss) : nics[host].random.roll(nics[host].faults.beginLoss)
    nics[host].isLosing = isLost
    if isLost {
      nics[host].counters.lost += 1
      trace(now ^ 1)
      return discard(index)
    }
    if nics[host].random.roll(nics[host].faults.duplication) || verdict == .duplicate {
      let behind = nics[host].random.uniform(nics[host].faults.faults.duplicationDelay)
      if let copy = copyInFlight(index, of: host) {
        nics[host].counters.duplicated += 1
        send(copy, from: host, at: arrival + behind)
      }
    }
    if nics[host].random.roll(nics[host].faults.reordering) {
      nics[host].counters.reordered += 1
      arrival += nics[host].random.uniform(nics[host].faults.faults.reorderingDelay)
    }
    if case .delay(let extra) = verdict { arrival += extra }
    send(index, from: host, at: arrival)
  }

  /// On its way to the switch, perhaps damaged.
  private mutating func send(_ index: UInt32, from host: Int, at time: UInt64) {
    if nics[host].random.roll(nics[host].faults.corruption) { corrupt(index, host) }
    events.push(Event(kind: .reachesSwitch, host: UInt16(host), index: index), at: time)
  }

  private mutating func corrupt(_ index: UInt32, _ host: Int) {
    let frame = pool.frame(index)
    guard EthernetFrame(frame)?.type == EtherType.ipv4 else { return }
    let bits = nics[host].random.uniform(nics[host].faults.faults.corruptedBits)
    if nics[host].faults.faults.repairsChecksum {
      if !Corruption.flipUnseen(frame, bits, &nics[host].random) { return }
    } else {
      Corruption.flip(frame, bits, &nics[host].random)
    }
    nics[host].counters.corrupted += 1
  }

  private mutating func copyInFlight(_ index: UInt32, of host: Int) -> UInt32? {
    guard let copy = pool.copy(index, for: BufferPool.Holder.network) else {
      nics[host].counters.noBuffer += 1
      return nil
    }
    inFlight += 1
    return copy
  }

  mutating func discard(_ index: UInt32) {
    pool.give(index)
    inFlight -= 1
  }

  // MARK: The switch

  /// Notes where an address is, unless it is a host's that has said its own.
  private mutating func learn(_ index: UInt32, _ host: Int) {
    if nics[host].options.mac != 0 || pool[index].length < EthernetFrame.headerLength { return }
    let source = pool.frame(index).u48(6)
    // Group addresses send nothing.
    if source == nics[host].mac || source == 0 || source >> 40 & 1 != 0 { return }
    if let other = stations[source] {
      if other == host || nics[other].options.mac != 0 { return }
    } else if stations.count >= NetworkCore.stationsMax {
      return
    }
    stations[source] = host
    if nics[host].mac == 0 { unknownCount -= 1 }
    nics[host].mac = source
  }

  private mutating func reachSwitch(_ index: UInt32, from host: Int) {
    guard let frame = EthernetFrame(pool.frame(index)) else {
      nics[host].counters.unknownDestination += 1
      return discard(index)
    }
    let destination = frame.destination
    if destination >> 40 & 1 == 0, let target = stations[destination] {
      if target == host {
        nics[host].counters.unknownDestination += 1
        return discard(index)
      }
      return leaveSwitch(index, from: host, to: target)
    }
    // For all, or for nobody known: then for those whose address nobody knows yet.
    let isGroup = destination >> 40 & 1 != 0
    var copies = 0
    if isGroup || unknownCount > 0 {
      for target in nics.indices where target != host && (isGroup || nics[target].mac == 0) {
        guard let copy = copyInFlight(index, of: host) else { break }
        copies += 1
        leaveSwitch(copy, from: host, to: target)
      }
    }
    nics[host].counters.flooded += UInt64(copies)
    if copies == 0 { nics[host].counters.unknownDestination += 1 }
    discard(index)
  }

  /// Through the egress queue of a host's cable. How full it is, follows from when the cable will be free.
  private mutating func leaveSwitch(_ index: UInt32, from host: Int, to target: Int) {
    if isCutAnywhere && cuts[host * nics.count + target] != 0 {
      nics[target].counters.partitioned += 1
      return discard(index)
    }
    guard nics[target].isUp else {
      nics[target].counters.linkDown += 1
      return discard(index)
    }
    let time = nics[target].link.time(Int(pool[index].length))
    let start = max(now << 10, nics[target].rxFree)
    if nics[target].link.options.bandwidth != 0 && start - now << 10 + time > nics[target].link.queueTime {
      nics[target].counters.queueDrops += 1
      trace(now ^ 2)
      return discard(index)
    }
    nics[target].rxFree = start + time
    nics[target].queueing.record((start >> 10) - now)
    var arrival = (start + time + 1023) >> 10 + nics[target].link.options.delay
    if nics[target].link.options.jitter != 0 {
      arrival += nics[target].random.uniform(0...nics[target].link.options.jitter)
    }
    arrival = max(arrival, nics[target].rxArrival)
    nics[target].rxArrival = arrival
    events.push(Event(kind: .reachesHost, host: UInt16(target), index: index), at: arrival)
  }

  // MARK: To a host

  private mutating func reachHost(_ index: UInt32, _ host: Int) -> Outcome {
    guard nics[host].isUp else {
      nics[host].counters.linkDown += 1
      discard(index)
      return .none
    }
    let frame = pool.frame(index)
    let destination = frame.u48(0)
    if nics[host].options.mac != 0 && destination != nics[host].options.mac && destination >> 40 & 1 == 0 {
      nics[host].counters.foreign += 1
      discard(index)
      return .none
    }
    return .arrived(index: index, host: host, queue: nics[host].queue(of: frame))
  }

  /// Counts a frame that the host gets.
  mutating func countDelivered(_ index: UInt32, _ host: Int, _ queue: Int) {
    let frame = pool.frame(index)
    nics[host].counters.delivered += 1
    nics[host].counters.deliveredBytes += UInt64(frame.count)
    trace(now)
    // Ports, length and checksum of a UDP header say enough of what the frame held.
    let content = frame.count >= 42 ? UInt64(frame.u32(34)) << 32 | UInt64(frame.u32(38)) : 0
    trace(content ^ UInt64(host) << 56 ^ UInt64(queue) << 48 ^ UInt64(frame.count) << 24)
  }

  /// Into the RX ring.
  mutating func store(_ index: UInt32, _ host: Int, _ queue: Int) {
    if nics[host].receiveQueues[queue].count >= nics[host].options.descriptors {
      nics[host].counters.overflowed += 1
      trace(now ^ 3)
      return discard(index)
    }
    countDelivered(index, host, queue)
    nics[host].receiveQueues[queue].append(index, pool)
  }

  /// Out of the RX ring, the oldest first.
  mutating func takeStored(_ host: Int, _ queue: Int) -> UInt32? { nics[host].receiveQueues[queue].takeFirst(pool) }

  // MARK: Time

  /// Does what is next; there is something.
  mutating func step() -> Outcome {
    guard let (time, event) = events.pop() else { return .none }
    now = max(now, time)
    switch event.kind {
    case .reachesSwitch:
      reachSwitch(event.index, from: Int(event.host))
    case .reachesHost:
      return reachHost(event.index, Int(event.host))
    case .cut:
      beginPartition(event.epoch)
    case .heal:
      if event.epoch == partitionEpoch { heal(Int(event.host), Int(event.index)) }
    }
    return .none
  }

  // MARK: Partitions

  mutating func setCut(_ isCut: Bool, from: Int, to: Int) {
    let place = from * nics.count + to
    cuts[place] = cuts[place] & ~NetworkCore.manual | (isCut ? NetworkCore.manual : 0)
    isCutAnywhere = isCutAnywhere || isCut
  }

  mutating func healAll() {
    for place in cuts.indices { cuts[place] = 0 }
    isCutAnywhere = false
    partitionEpoch &+= 1
    partitions = nil
  }

  mutating func runPartitions(_ schedule: Schedule, until: UInt64) {
    partitionEpoch &+= 1
    partitions = (schedule, until)
    scheduleCut()
  }

  private mutating func scheduleCut() {
    guard let (schedule, until) = partitions, nics.count > 1 else { return }
    let time = now + partitionRandom.uniform(schedule.interval)
    if time < until { events.push(Event(kind: .cut, epoch: partitionEpoch, host: 0, index: 0), at: time) }
  }

  private mutating func beginPartition(_ epoch: UInt8) {
    guard epoch == partitionEpoch, let (schedule, until) = partitions else { return }
    let a = Int(partitionRandom.below(UInt64(nics.count)))
    var b = Int(partitionRandom.below(UInt64(nics.count - 1)))
    if b >= a { b += 1 }
    cuts[a * nics.count + b] += 1
    cuts[b * nics.count + a] += 1
    isCutAnywhere = true
    trace(now ^ 4 ^ UInt64(a) << 32 ^ UInt64(b) << 48)
    let end = min(until, now + partitionRandom.uniform(schedule.duration))
    events.push(Event(kind: .heal, epoch: epoch, host: UInt16(a), index: UInt32(b)), at: end)
    scheduleCut()
  }

  private mutating func heal(_ a: Int, _ b: Int) {
    cuts[a * nics.count + b] -= 1
    cuts[b * nics.count + a] -= 1
  }

  // MARK: Restart

  mutating func restart(_ host: Int) {
    for queue in nics[host].receiveQueues.indices {
      while let index = nics[host].receiveQueues[queue].takeFirst(pool) { discard(index) }
      nics[host].transmitQueues[queue].clear()
    }
    var index: UInt32 = 0
    while Int(index) < pool.touched {
      if pool[index].holder == Int32(host) { pool.give(index) }
      index += 1
    }
    nics[host].held = 0
    nics[host].toeplitz = Toeplitz(random: &nics[host].rssRandom)
    trace(now ^ 5 ^ UInt64(host) << 48)
  }
}

/// Wrong bits.
enum Corruption {
  /// Anywhere in a frame.
  static func flip(_ frame: Bytes, _ bits: UInt64, _ random: inout RandomStream) {
    for _ in 0..<bits {
      let bit = Int(random.below(UInt64(frame.count * 8)))
      frame.set8(bit / 8, frame.u8(bit / 8) ^ 1 << UInt8(bit % 8))
    }
  }

  /// In the payload of a whole UDP datagram, whose checksum is then made right.
  ///
  /// - Returns: false where the frame has no such payload.
  static func flipUnseen(_ frame: Bytes, _ bits: UInt64, _ random: inout RandomStream) -> Bool {
    guard let ethernet = EthernetFrame(frame), ethernet.type == EtherType.ipv4, let ip = IPv4Packet(ethernet.payload),
      ip.ipProtocol == IPProtocol.udp, !ip.isFragment, let datagram = UDPDatagram(ip.payload),
      datagram.payload.count > 0
    else { return false }
    flip(datagram.payload, bits, &random)
    let header = ip.payload.slice(0, to: 8)
    var sum = UDPDatagram.pseudoHeader(source: ip.source, destination: ip.destination, length: datagram.length)
    sum.add(datagram.payload)
    UDPDatagram.emit(
      into: header, sourcePort: datagram.sourcePort, destinationPort: datagram.destinationPort,
      length: datagram.length, sum: sum)
    return true
  }
}
