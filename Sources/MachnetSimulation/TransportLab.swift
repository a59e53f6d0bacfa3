public import MachnetTransport
import MachnetEngine
import MachnetMemory
import MachnetWire

/// Hosts with some engines each, every engine a bare `Transport`, on a simulated network: the transport without
/// anything around it. Watches from outside what every message becomes.
public final class TransportLab {
  public struct Options: Sendable {
    public var seed: UInt64
    public var hosts = 2
    /// Of each host.
    public var engines = 1
    /// Of the IP layer, bytes.
    public var mtu = 1500
    public var link = LinkOptions()
    public var targetDelay: UInt64 = 100_000

    public init(seed: UInt64) { self.seed = seed }
  }

  /// What went wrong, in words.
  public private(set) var faults: [String] = []
  public let network: SimulatedNetwork
  public let options: Options
  var engines: [LabEngine] = []
  private var epochs: [UInt64]
  private var random: RandomStream
  /// By identifier, from 1.
  private var messages: [Letter] = [Letter()]
  private var isDirty: [Bool]
  private var dirty: [Int] = []
  /// Messages not delivered yet, of which nobody has said that they are lost.
  public private(set) var outstanding = 0
  public private(set) var delivered = 0
  public private(set) var deliveredBytes: UInt64 = 0
  public private(set) var excused = 0
  /// Called when a message is delivered: engine, identifier.
  public var onDelivery: ((Int, Int) -> Void)?
  /// Called when a host's engine knows that a session is dead.
  public var onClose: ((Int, Transport.CloseReason) -> Void)?
  /// Canary: damages this delivered message before it is checked.
  public var canary = 0

  struct Letter {
    var size = 0
    /// Engine that it was given to, and whose session accepted it (all but the last piece may still be with the engine).
    var engine = 0
    var session: UInt32 = 0
    var generation: UInt32 = 0
    var state = State.waiting
    enum State { case waiting, accepted, delivered, excused }
  }

  @safe final class LabEngine {
    let host: Int
    let queue: Int
    var transport: Transport
    /// Identifiers and destinations, oldest first.
    var outbox: [(message: Int, host: Int)] = []
    var head = 0
    var progress: Transport.Progress?
    /// Messages accepted and not known to be delivered or lost.
    var accepted: [Int] = []
    let scratch: UnsafeMutableRawPointer
    var scratchHolds = 0

    init(host: Int, queue: Int, transport: consuming Transport) {
      self.host = host
      self.queue = queue
      self.transport = transport
      unsafe scratch = .allocate(byteCount: TransportOptions.messageMax + 8, alignment: 64)
    }

    deinit { unsafe scratch.deallocate() }
  }

  public init(_ options: Options) {
    self.options = options
    network = SimulatedNetwork(seed: options.seed, buffers: 32_768, bufferSize: options.mtu <= 1500 ? 2048 : 10_240)
    random = RandomStream(seed: options.seed, name: "lab")
    epochs = []
    isDirty = Array(repeating: false, count: options.hosts * options.engines)
    for host in 0..<options.hosts {
      var description = HostOptions(
        mac: 0x0200_0000_0001 + UInt64(host), address: address(host), queues: options.engines)
      description.link = options.link
      // The transport drains what comes at once, and its window limits what goes.
      description.descriptors = 1024
      _ = network.addHost(description)
      epochs.append(random.next() | 1)
      for queue in 0..<options.engines {
        engines.append(LabEngine(host: host, queue: queue, transport: makeTransport(host, queue)))
      }
    }
  }

  public func address(_ host: Int) -> UInt32 { 0x0A00_0001 + UInt32(host) }
  public var now: UInt64 { network.now }

  private func makeTransport(_ host: Int, _ queue: Int) -> Transport {
    var made = TransportOptions(
      engine: UInt8(queue), engines: UInt8(options.engines), epoch: epochs[host], seed: (random.next(), random.next()))
    made.datagramMax = options.mtu - 28
    made.targetDelay = options.targetDelay
    made.sessions = 64
    made.buffers = 4096
    return Transport(made)
  }

  /// Counter of all engines together.
  public func count(_ counter: TransportCounter) -> UInt64 {
    engines.reduce(0) { $0 + $1.transport.value(counter) }
  }

  public func snapshot(engine: Int) -> [Transport.SessionSnapshot] {
    (0..<UInt32(64)).compactMap { engines[engine].transport.snapshot($0) }
  }

  // MARK: Messages

  /// Gives an engine (of `host`) a message for another host; at least 8 bytes.
  ///
  /// - Returns: its identifier.
  @discardableResult
  public func post(from host: Int, queue: Int = 0, to peer: Int, size: Int) -> Int {
    precondition(size >= 8 && size <= TransportOptions.messageMax && peer != host)
    let index = host * options.engines + queue
    var letter = Letter()
    letter.size = size
    letter.engine = index
    messages.append(letter)
    engines[index].outbox.append((messages.count - 1, peer))
    outstanding += 1
    touch(index)
    return messages.count - 1
  }

  /// Messages that an engine has been given and not yet handed to its transport.
  public func waiting(host: Int, queue: Int = 0) -> Int {
    let engine = engines[host * options.engines + queue]
    return engine.outbox.count - engine.head
  }

  private func touch(_ index: Int) {
    if isDirty[index] { return }
    isDirty[index] = true
    dirty.append(index)
  }

  /// The words of a message: the first is its identifier, the others follow from it and their place.
  @inline(__always)
  private func word(_ identifier: Int, _ index: Int) -> UInt64 {
    UInt64(identifier) &+ UInt64(index) &* 0x9E37_79B9_7F4A_7C15
  }

  private func fill(_ engine: LabEngine, _ identifier: Int) -> Bytes {
    let size = messages[identifier].size
    if engine.scratchHolds != identifier {
      engine.scratchHolds = identifier
      for index in 0..<(size + 7) / 8 {
        unsafe engine.scratch.storeBytes(of: word(identifier, index), toByteOffset: index * 8, as: UInt64.self)
      }
    }
    return unsafe Bytes(unsafe: engine.scratch, count: size)
  }

  private func check(_ payload: Bytes, at index: Int) {
    guard payload.count >= 8 else { return note("a message of \(payload.count) bytes that nobody sent") }
    let identifier = Int(truncatingIfNeeded: unsafe payload.base.loadUnaligned(as: UInt64.self))
    guard identifier > 0, identifier < messages.count else { return note("a message that nobody sent") }
    if identifier == canary { payload.set8(payload.count - 1, payload.u8(payload.count - 1) ^ 0x55) }
    let letter = messages[identifier]
    guard letter.size == payload.count else {
      return note("message \(identifier) has \(payload.count) bytes instead of \(letter.size)")
    }
    for at in 0..<payload.count / 8 {
      if unsafe payload.base.loadUnaligned(fromByteOffset: at * 8, as: UInt64.self) != word(identifier, at) {
        return note("message \(identifier) is damaged at byte \(at * 8)")
      }
    }
    let tail = payload.count & ~7
    let last = word(identifier, tail / 8)
    for at in tail..<payload.count where payload.u8(at) != UInt8(truncatingIfNeeded: last >> UInt64((at - tail) * 8)) {
      return note("message \(identifier) is damaged at byte \(at)")
    }
    switch letter.state {
    case .delivered:
      return note("message \(identifier) was delivered twice")
    case .excused:
      // Said to be lost, and yet it came: allowed, once.
      excused -= 1
    case .waiting, .accepted:
      outstanding -= 1
    }
    messages[identifier].state = .delivered
    delivered += 1
    deliveredBytes += UInt64(payload.count)
    onDelivery?(index, identifier)
  }

  private func note(_ fault: String) {
    if faults.count < 20 { faults.append("seed \(options.seed), \(network.now) ns: \(fault)") }
  }

  private func excuse(_ identifier: Int) {
    guard messages[identifier].state == .accepted || messages[identifier].state == .waiting else { return }
    messages[identifier].state = .excused
    outstanding -= 1
    excused += 1
  }

  // MARK: Running

  /// Runs until `end`, or until `isDone`.
  public func run(until end: UInt64, isDone: () -> Bool = { false }) {
    while true {
      pump()
      if isDone() { return }
      var limit = end
      for engine in engines { limit = min(limit, engine.transport.nextTimeout) }
      if let arrival = network.next(until: max(limit, network.now)) {
        let index = arrival.host * options.engines + arrival.queue
        if let udp = arrival.udp {
          let arrival = Transport.Arrival(
            localAddress: udp.destination, remoteAddress: udp.source,
            ports: PortPair(source: udp.sourcePort, destination: udp.destinationPort), datagramMax: options.mtu - 28)
          if let (_, payload) = engines[index].transport.handle(udp.payload, arrival, now: network.now) {
            check(payload, at: index)
          }
          takeEvents(index)
        }
        touch(index)
      } else if network.now >= end {
        return
      }
      for index in engines.indices where engines[index].transport.nextTimeout <= network.now {
        engines[index].transport.expire(now: network.now)
        takeEvents(index)
        touch(index)
      }
    }
  }

  private func takeEvents(_ index: Int) {
    while let event = engines[index].transport.pollEvent() {
      switch event {
      case .message(_, let payload): check(payload, at: index)
      case .closed(let session, _, _, let reason, _):
        onClose?(index, reason)
        let engine = engines[index]
        engine.accepted.removeAll { identifier in
          // Sessions are told apart by the transport's own generation when the message was accepted.
          guard messages[identifier].session == session else { return messages[identifier].state != .accepted }
          excuse(identifier)
          return true
        }
      case .word, .opened, .refused: break
      }
    }
  }

  /// Lets every engine that may have something to do do it.
  private func pump() {
    while let index = dirty.popLast() {
      isDirty[index] = false
      let engine = engines[index]
      var sent = true
      while sent {
        sent = false
        while engine.head < engine.outbox.count {
          if !handOver(engine) { break }
          sent = true
        }
        while let packet = engine.transport.hasReady ? network.allocate(for: engine.host) : nil {
          guard let it = engine.transport.pollTransmit(into: network.udpRoom(packet), now: network.now) else {
            network.free(packet, of: engine.host)
            break
          }
          let peer = Int(it.remoteAddress - address(0))
          _ = network.transmitUDP(
            packet, payload: it.length, from: engine.host, queue: engine.queue, to: peer,
            sourcePort: it.ports.source, destinationPort: it.ports.destination)
          sent = true
        }
      }
      if engine.head > 1024 {
        engine.outbox.removeFirst(engine.head)
        engine.head = 0
      }
    }
  }

  /// Hands the engine's next message to its transport.
  ///
  /// - Returns: whether it is done with it.
  private func handOver(_ engine: LabEngine) -> Bool {
    let (identifier, peer) = engine.outbox[engine.head]
    switch engine.transport.session(
      localAddress: address(engine.host), remoteAddress: address(peer), datagramMax: options.mtu - 28,
      now: network.now)
    {
    case .opening:
      return false
    case .refused:
      // The sender of a datagram may give up or try again; this one tries again when there is something to do.
      if let progress = engine.progress, progress.offset != 0 {
        engine.progress = nil
        excuse(identifier)
        engine.head += 1
        return true
      }
      return false
    case .open(let session):
      let bytes = fill(engine, identifier)
      messages[identifier].session = session
      switch engine.transport.send(
        session, bytes, localPort: 1000, remotePort: 2000, ttl: 64, tos: 0, progress: engine.progress,
        now: network.now)
      {
      case .done:
        engine.progress = nil
        if messages[identifier].state == .waiting { messages[identifier].state = .accepted }
        engine.accepted.append(identifier)
        if engine.accepted.count > 4096 { engine.accepted.removeAll { messages[$0].state != .accepted } }
      case .blocked(let progress):
        engine.progress = progress
        return false
      case .lost:
        engine.progress = nil
        excuse(identifier)
      }
      engine.head += 1
      return true
    }
  }

  /// A host dies and comes back at once with nothing of what it knew. What it had accepted is lost.
  public func restart(_ host: Int) {
    network.restart(host)
    epochs[host] = random.next() | 1
    for queue in 0..<options.engines {
      let index = host * options.engines + queue
      let old = engines[index]
      let made = LabEngine(host: host, queue: queue, transport: makeTransport(host, queue))
      for identifier in old.accepted { excuse(identifier) }
      if let progress = old.progress, progress.offset != 0 {
        excuse(old.outbox[old.head].message)
        old.head += 1
      }
      made.outbox = Array(old.outbox[old.head...])
      engines[index] = made
      touch(index)
    }
  }

  /// Ends every session on both sides, and lets the news arrive.
  public func closeAll() {
    for index in engines.indices {
      engines[index].transport.closeAll()
      touch(index)
    }
    run(until: now + 1_000_000)
  }

  /// Wakes every engine: refusals may have run out.
  public func touchAll() { for index in engines.indices { touch(index) } }
}
