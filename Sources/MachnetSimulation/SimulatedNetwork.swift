public import MachnetEngine
public import MachnetWire

/// Hosts with least-common-denominator NICs around a switch, in virtual time: the same seed and the same sends give the
/// same run, bit by bit.
///
/// Time, in nanoseconds from 0, moves only in `next` and `advance`; whoever ties them to a real clock has a network in
/// real time. One thread uses it. Hosts are numbers, in the order in which they were added.
public final class SimulatedNetwork {
  private var core: NetworkCore
  /// What `next` has shown: its buffer + 1.
  private var shown: UInt32 = 0

  /// Scripted faults: sees every frame before it leaves its host, after which the network's own dice are rolled. It must
  /// not call the network.
  public var filter: ((_ frame: Bytes, _ from: Int) -> Verdict)? = nil

  /// - Parameters:
  ///   - buffers: for all frames of all hosts; they cost memory when they are first used.
  ///   - bufferSize: bytes of the largest frame, up to 65,535.
  public init(seed: UInt64, buffers: Int = 65_536, bufferSize: Int = 2048) {
    core = NetworkCore(seed: seed, buffers: buffers, bufferSize: bufferSize)
  }

  public var seed: UInt64 { core.seed }
  public var now: UInt64 { core.now }
  public var hostCount: Int { core.nics.count }

  // MARK: What it is made of

  public func addHost(_ options: HostOptions) -> Int { core.addHost(options) }

  public func options(of host: Int) -> HostOptions { core.nics[host].options }

  /// Of what every host sends from now on.
  public var faults: Faults {
    get { core.faults }
    set {
      core.faults = newValue
      for host in core.nics.indices { core.nics[host].faults = Dice(newValue) }
    }
  }

  /// Of what one host sends from now on.
  public func setFaults(_ faults: Faults, from host: Int) { core.nics[host].faults = Dice(faults) }

  /// What is under way keeps the times that it has.
  public func setLink(_ link: LinkOptions, of host: Int) { core.nics[host].link = Link(link) }

  /// A link that is down loses what comes from either side.
  public func setLinkUp(_ isUp: Bool, of host: Int) { core.nics[host].isUp = isUp }
  public func isLinkUp(of host: Int) -> Bool { core.nics[host].isUp }

  /// Cuts one direction between two hosts, or mends it.
  public func setPartition(_ isCut: Bool, from: Int, to: Int) { core.setCut(isCut, from: from, to: to) }

  /// Ends all partitions, `runPartitions` included.
  public func healPartitions() { core.healAll() }

  /// Cuts random pairs of hosts off from each other, both ways; at `until` all is whole again.
  public func runPartitions(_ schedule: Schedule, until: UInt64) { core.runPartitions(schedule, until: until) }

  /// The host loses its memory: every buffer that it holds and all that is in its rings is taken back, and its NIC starts
  /// with another RSS key. What is under way to it still arrives.
  public func restart(_ host: Int) { core.restart(host) }

  // MARK: Packets of a host

  /// An empty packet; nil: the pool is exhausted, or the host holds as many as it may.
  public func allocate(for host: Int) -> Packet? {
    let limit = core.nics[host].options.packets
    if limit != 0 && core.nics[host].held >= limit { return nil }
    guard let index = core.pool.take(for: Int32(host)) else { return nil }
    core.nics[host].held += 1
    return core.pool.packet(index)
  }

  /// Gives a packet back that the host holds.
  public func free(_ packet: Packet, of host: Int) {
    let index = core.pool.index(packet)
    precondition(core.pool[index].holder == Int32(host), "a packet that the host does not hold")
    core.pool.give(index)
    core.nics[host].held -= 1
  }

  /// Puts a frame into a TX queue, now.
  ///
  /// - Returns: false: the queue is full, and the host still has the packet.
  public func transmit(_ packet: Packet, from host: Int, queue: Int = 0) -> Bool {
    guard core.canTransmit(from: host, queue: queue) else { return false }
    let index = core.pool.index(packet)
    var verdict = Verdict.pass
    if let filter { verdict = filter(core.pool.frame(index), host) }
    core.transmit(index, from: host, queue: queue, verdict)
    return true
  }

  /// Free descriptors of a TX queue, now.
  public func room(from host: Int, queue: Int) -> Int { core.nics[host].transmitQueues[queue].room(at: core.now) }

  /// Sends a copy of a frame, now.
  ///
  /// - Returns: false: the queue is full, or there is no buffer.
  public func send(_ frame: Bytes, from host: Int, queue: Int = 0) -> Bool {
    guard var packet = allocate(for: host) else { return false }
    let room = unsafe Bytes(unsafe: packet.data, count: Int(packet.capacity))
    room.copy(frame, to: 0)
    packet.length = Int32(frame.count)
    if transmit(packet, from: host, queue: queue) { return true }
    free(packet, of: host)
    return false
  }

  /// The oldest packet of an RX ring; the host holds it then.
  public func receivePacket(host: Int, queue: Int) -> Packet? {
    guard let index = core.takeStored(host, queue) else { return nil }
    core.inFlight -= 1
    core.nics[host].held += 1
    core.pool[index].holder = Int32(host)
    return core.pool.packet(index)
  }

  /// The oldest frame of an RX ring; its bytes are good until the next call of `receive`, `next` or `advance`.
  public func receive(host: Int, queue: Int) -> Arrival? {
    putAway()
    guard let index = core.takeStored(host, queue) else { return nil }
    return show(index, host, queue)
  }

  /// Frames in an RX ring.
  public func waiting(host: Int, queue: Int) -> Int { core.nics[host].receiveQueues[queue].count }

  // MARK: Time

  /// When something will happen next; `UInt64.max`: nothing is under way.
  public var nextEventTime: UInt64 { core.events.nextTime }

  /// Lets time pass until the next frame reaches a host, and at most until `limit`. The frame does not go through the RX
  /// ring; its bytes are good until the next call of `next`, `receive` or `advance`.
  ///
  /// - Returns: nil: no frame by then; `now` is `limit`, unless that is `UInt64.max`.
  public func next(until limit: UInt64) -> Arrival? {
    putAway()
    while core.events.nextTime <= limit && core.events.count > 0 {
      if case .arrived(let index, let host, let queue) = core.step() {
        core.countDelivered(index, host, queue)
        return show(index, host, queue)
      }
    }
    if limit != UInt64.max { core.now = max(core.now, limit) }
    return nil
  }

  /// Lets time pass; frames that reach hosts go into their RX rings.
  public func advance(to time: UInt64) {
    putAway()
    while core.events.nextTime <= time && core.events.count > 0 {
      if case .arrived(let index, let host, let queue) = core.step() { core.store(index, host, queue) }
    }
    core.now = max(core.now, time)
  }

  private func show(_ index: UInt32, _ host: Int, _ queue: Int) -> Arrival {
    shown = index + 1
    return Arrival(host: host, queue: queue, time: core.now, frame: core.pool.frame(index))
  }

  private func putAway() {
    if shown != 0 {
      core.discard(shown - 1)
      shown = 0
    }
  }

  // MARK: To look at from outside

  /// Of all hosts together.
  public var counters: NetworkCounters {
    var sum = NetworkCounters()
    for host in core.nics.indices { sum += core.nics[host].counters }
    return sum
  }

  public func counters(of host: Int) -> NetworkCounters { core.nics[host].counters }

  /// How long frames have waited in the switch to leave for a host.
  public func queueingDelay(to host: Int) -> DelayHistogram { core.nics[host].queueing }
  public func resetQueueingDelay(to host: Int) { core.nics[host].queueing = DelayHistogram() }

  /// Bytes that wait in the switch to leave for a host.
  public func backlog(to host: Int) -> Int {
    let now = core.now << 10
    return core.nics[host].rxFree > now ? core.nics[host].link.bytes(core.nics[host].rxFree - now) : 0
  }

  /// Buffers that a host's software has.
  public func held(by host: Int) -> Int { core.nics[host].held }
  /// Buffers in cables, queues and RX rings.
  public var inFlight: Int { core.inFlight }
  /// Whether every buffer is somewhere.
  public var isConserved: Bool {
    core.pool.free + core.inFlight + core.nics.reduce(0) { $0 + $1.held } == core.pool.count
  }

  /// Of all that arrived and was dropped, where and when.
  public var traceHash: UInt64 { core.traceHash }

  /// The queue that RSS chooses for a UDP flow towards a host: for tests only, no engine can know.
  public func queue(
    of host: Int, source: UInt32, destination: UInt32, sourcePort: UInt16, destinationPort: UInt16
  ) -> Int {
    core.nics[host].queue(
      ofHash: core.nics[host].toeplitz.hash(
        source: source, destination: destination, sourcePort: sourcePort, destinationPort: destinationPort))
  }
}

/// A frame that has reached a host.
public struct Arrival {
  public let host: Int
  public let queue: Int
  public let time: UInt64
  public let frame: Bytes
}
