import MachnetTransport
import MachnetWire
import Testing

/// Two transports and no network: the test carries the packets, and changes them.
@safe
final class Exchange {
  var a: Transport
  var b: Transport
  static let addressA: UInt32 = 0x0A00_0001
  static let addressB: UInt32 = 0x0A00_0002
  var now: UInt64 = 1_000_000
  let memory = UnsafeMutableRawPointer.allocate(byteCount: 2048, alignment: 64)
  var received: [Int] = []
  var closed = 0
  /// Messages that sessions took with them when they died.
  var lost = 0

  init(seed: UInt64) {
    func made(_ epoch: UInt64) -> Transport {
      var options = TransportOptions(engine: 0, engines: 1, epoch: epoch, seed: (seed, epoch))
      options.sessions = 16
      options.buffers = 512
      options.assemblies = 8
      options.largeAssemblies = 1
      return Transport(options)
    }
    a = made(11)
    b = made(22)
  }

  deinit { unsafe memory.deallocate() }

  var room: Bytes { unsafe Bytes(unsafe: memory, count: 2048) }

  /// The next packet of one side, with its ports; nil: it has none.
  func next(fromA: Bool) -> (payload: [UInt8], ports: PortPair)? {
    let transmission = fromA ? a.pollTransmit(into: room, now: now) : b.pollTransmit(into: room, now: now)
    guard let transmission else { return nil }
    return ((0..<transmission.length).map { room.u8($0) }, transmission.ports)
  }

  func give(_ payload: [UInt8], _ ports: PortPair, toA: Bool, from: UInt32? = nil) {
    var copy = payload
    unsafe copy.withUnsafeMutableBytes { raw in
      // An allocation of its own, so that the address sanitizer sees every byte beyond the end.
      let bytes = unsafe Bytes(unsafe: raw.baseAddress ?? memory, count: payload.count)
      let arrival = Transport.Arrival(
        localAddress: toA ? Exchange.addressA : Exchange.addressB,
        remoteAddress: from ?? (toA ? Exchange.addressB : Exchange.addressA), ports: ports, datagramMax: 1472)
      let message = toA ? a.handle(bytes, arrival, now: now) : b.handle(bytes, arrival, now: now)
      if let (_, content) = message { received.append(content.count) }
      hear(ofA: toA)
    }
  }

  func hear(ofA: Bool) {
    while let event = ofA ? a.pollEvent() : b.pollEvent() {
      switch event {
      case .message(_, let content): received.append(content.count)
      case .closed(_, _, _, _, let count):
        closed += 1
        lost += count
      default: break
      }
    }
  }

  /// Carries everything until both are silent.
  func settle(_ change: (inout [UInt8], Bool) -> Bool = { _, _ in true }) {
    for _ in 0..<200 {
      var any = false
      for fromA in [true, false] {
        while let packet = next(fromA: fromA) {
          any = true
          var payload = packet.payload
          if change(&payload, fromA) { give(payload, packet.ports, toA: !fromA) }
        }
      }
      if !any { return }
      now += 10_000
      a.expire(now: now)
      b.expire(now: now)
    }
  }

  func send(_ size: Int) -> Bool {
    guard case .open(let session) = a.session(
      localAddress: Exchange.addressA, remoteAddress: Exchange.addressB, datagramMax: 1472, now: now)
    else { return false }
    var content = [UInt8](repeating: 7, count: max(1, size))
    return unsafe content.withUnsafeMutableBytes { raw in
      let bytes = unsafe Bytes(unsafe: raw.baseAddress!, count: size)
      if case .done = a.send(session, bytes, localPort: 1, remotePort: 2, ttl: 64, tos: 0, progress: nil, now: now) {
        return true
      }
      return false
    }
  }

  /// Begins a message, or goes on with it.
  ///
  /// - Returns: nil: it is accepted.
  func send(_ size: Int, _ progress: Transport.Progress?) -> Transport.Progress? {
    guard case .open(let session) = a.session(
      localAddress: Exchange.addressA, remoteAddress: Exchange.addressB, datagramMax: 1472, now: now)
    else { return nil }
    var content = [UInt8](repeating: 7, count: size)
    return unsafe content.withUnsafeMutableBytes { raw in
      let bytes = unsafe Bytes(unsafe: raw.baseAddress!, count: size)
      let sent = a.send(session, bytes, localPort: 1, remotePort: 2, ttl: 64, tos: 0, progress: progress, now: now)
      if case .blocked(let progress) = sent { return progress }
      return nil
    }
  }

  /// Opens a session.
  func open() {
    _ = send(1)
    settle()
    precondition(send(1))
    settle()
    received = []
  }
}

/// xorshift64*: enough to pick bytes.
struct Dice {
  var state: UInt64
  mutating func below(_ bound: Int) -> Int {
    state ^= state >> 12
    state ^= state << 25
    state ^= state >> 27
    return Int((state &* 0x2545_F491_4F6C_DD1D) >> 33) % bound
  }
}

@Suite struct Hostile {
  @Test func `every prefix of every packet of a conversation is a counted drop, and the conversation goes on`() {
    let it = Exchange(seed: runSeed)
    _ = it.send(1)
    it.settle { payload, fromA in
      for length in 0..<payload.count {
        it.give(Array(payload[..<length]), PortPair(source: 62_000, destination: 62_000), toA: !fromA)
      }
      return true
    }
    #expect(it.send(3000))
    it.settle { payload, fromA in
      for length in 0..<payload.count {
        it.give(Array(payload[..<length]), PortPair(source: 62_000, destination: 62_000), toA: !fromA)
      }
      return true
    }
    // Prefixes of a packet with chunks that end between two of them are packets themselves; then the rest is a duplicate, and
    // this message is lost to the lie. Nothing is worse than that.
    #expect(it.received.count <= 1 && it.closed == 0)
    #expect(it.b.value(.malformed) + it.b.value(.chunkMalformed) > 100)
    #expect(it.send(10))
    it.settle()
    #expect(it.received.last == 10)
  }

  @Test func `changed and invented packets: no crash, no message that was not sent whole`() {
    for round in 0..<200 as Range<UInt64> {
      let seed = runSeed &+ round
      let it = Exchange(seed: seed)
      var dice = Dice(state: seed | 1)
      it.open()
      for _ in 0..<20 {
        _ = it.send([0, 1, 64, 1420, 1421, 9000, 65_507][dice.below(7)])
        it.settle { payload, fromA in
          var changed = payload
          for _ in 0...dice.below(4) {
            switch dice.below(4) {
            case 0: changed[dice.below(changed.count)] = UInt8(dice.below(256))
            case 1: changed[dice.below(min(52, changed.count))] ^= UInt8(1 << dice.below(8))
            case 2: changed.removeLast(dice.below(changed.count))
            default: changed += (0..<dice.below(64)).map { _ in UInt8(dice.below(256)) }
            }
            if changed.isEmpty { changed = [0] }
          }
          it.give(changed, PortPair(source: 62_001, destination: 62_002), toA: !fromA)
          if dice.below(8) == 0 { it.give(payload, PortPair(source: 62_001, destination: 62_002), toA: fromA) }
          return dice.below(4) != 0
        }
        it.now += 5_000_000
        it.a.expire(now: it.now)
        it.b.expire(now: it.now)
      }
    }
  }

  @Test func `acknowledgements of what was never sent, and SACKs beyond the window, are ignored and counted`() {
    let it = Exchange(seed: runSeed)
    it.open()
    // A pure acknowledgement of b's, taken as the mould.
    #expect(it.send(64))
    var mould: [UInt8] = []
    it.now += 200_000
    it.settle { payload, fromA in
      if !fromA { mould = payload }
      return true
    }
    it.b.expire(now: it.now + 1_000_000)
    it.now += 1_000_000
    it.settle { payload, fromA in
      if !fromA { mould = payload }
      return true
    }
    #expect(mould.count >= 32)
    var lie = mould
    let ack = mould[16..<20].reduce(0) { $0 << 8 | UInt32($1) } &+ 10_000
    for at in 0..<4 { lie[16 + at] = UInt8(truncatingIfNeeded: ack >> UInt32(24 - 8 * at)) }
    it.give(lie, PortPair(source: 62_000, destination: 62_000), toA: true)
    #expect(it.a.value(.ackInvalid) == 1)
    // With something in flight, a SACK of packets that were never sent.
    #expect(it.send(64))
    _ = it.next(fromA: true)
    lie = Array(mould[..<32]) + [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]
    lie[2] = 1
    it.give(lie, PortPair(source: 62_000, destination: 62_000), toA: true)
    #expect(it.a.value(.sackInvalid) == 1)
    #expect(it.closed == 0)
  }

  @Test func `a reset without the session's secret, or from somebody else, is ignored and counted`() {
    let it = Exchange(seed: runSeed)
    it.open()
    var dice = Dice(state: runSeed | 1)
    for flags in [0, 32] as [UInt8] {
      for _ in 0..<1000 {
        var reset = [UInt8](repeating: 0, count: 32)
        reset[0] = 0x14
        reset[1] = flags
        for at in 4..<12 { reset[at] = UInt8(dice.below(256)) }
        it.give(reset, PortPair(source: 62_000, destination: 62_000), toA: true)
      }
    }
    #expect(it.a.value(.resetIgnored) == 2000)
    // The right tag from a wrong address.
    #expect(it.send(64))
    guard let (packet, ports) = it.next(fromA: true) else { return #expect(Bool(false), "nothing was sent") }
    var reset = Array(packet[..<32])
    reset[0] = 0x14
    reset[1] = 0
    it.give(reset, ports, toA: false, from: 0x0A00_0063)
    #expect(it.b.value(.resetIgnored) == 1 && it.closed == 0)
    it.give(packet, ports, toA: false)
    #expect(it.received == [64])
    // And from the right one.
    it.give(reset, ports, toA: false)
    #expect(it.closed == 1)
  }

  @Test func `a flood of SYNs fills nothing: a session is still to be had, and the answers are limited`() {
    let it = Exchange(seed: runSeed)
    var dice = Dice(state: runSeed | 1)
    var answers = 0
    for _ in 0..<20_000 {
      var syn = [UInt8](repeating: 0, count: 56)
      syn[0] = 0x11
      for at in 4..<12 { syn[at] = UInt8(dice.below(256)) }
      syn[32 + 13] = 1
      syn[32 + 14] = 5
      it.give(
        syn, PortPair(source: 62_000, destination: 62_001), toA: false, from: UInt32(dice.below(1 << 30)))
      it.now += 1000
      while it.next(fromA: false) != nil { answers += 1 }
    }
    // 20 ms at 20,000 a second, and the burst.
    #expect(answers <= 400 + 512 + 64)
    #expect(it.b.value(.synLimited) > 10_000 && it.b.sessionCount == 0)
    it.now += 100_000_000
    while it.next(fromA: false) != nil {}
    it.open()
    #expect(it.b.sessionCount == 1)
  }

  @Test func `an old confirmation does not start a session again, and a forged one none at all`() {
    let it = Exchange(seed: runSeed)
    var confirmation: ([UInt8], PortPair)?
    _ = it.send(1)
    for _ in 0..<20 {
      for fromA in [true, false] {
        while let (payload, ports) = it.next(fromA: fromA) {
          if fromA && payload[0] & 15 == 3 && payload[1] & 16 != 0 { confirmation = (payload, ports) }
          it.give(payload, ports, toA: !fromA)
        }
      }
      it.now += 10_000
    }
    guard let confirmation else { return #expect(Bool(false), "no confirmation was seen") }
    #expect(it.b.sessionCount == 1)
    it.b.closeAll()
    while it.next(fromA: false) != nil {}
    it.give(confirmation.0, confirmation.1, toA: false)
    #expect(it.b.sessionCount == 0 && it.b.value(.cookieWrong) == 1)
    for at in 0..<confirmation.0.count {
      var forged = confirmation.0
      forged[at] ^= 0x10
      it.give(forged, confirmation.1, toA: false)
      #expect(it.b.sessionCount == 0, "byte \(at)")
    }
  }

  @Test func `packets of another version are refused by name`() {
    let it = Exchange(seed: runSeed)
    it.open()
    it.give([0x23] + [UInt8](repeating: 0, count: 60), PortPair(source: 62_000, destination: 62_001), toA: true)
    #expect(it.a.value(.otherVersion) == 1 && it.a.value(.malformed) == 0)
  }

  @Test func `packet numbers and message numbers wrap`() {
    // They start at most 1024 and 64 before it.
    let it = Exchange(seed: runSeed)
    it.open()
    var sent = 2
    for _ in 0..<3000 {
      if it.send(1400) { sent += 1 }
      it.settle()
      it.now += 1000
    }
    #expect(it.received.count == sent - 2)
  }
}
