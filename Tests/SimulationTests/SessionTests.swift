import CMachnetABI
import EngineBench
import MachnetChannel
import MachnetEngine
import MachnetSimulation
import MachnetTransport
import MachnetWire
import Testing

/// The transport machnet inside real engines, in virtual time.
@Suite struct SessionsOfEngines {
  private func world(_ seed: UInt64 = runSeed, engines: Int = 1) -> (SimulatedWorld, SimulatedHost, SimulatedHost) {
    let world = SimulatedWorld(seed: seed)
    return (world, world.addHost(engines: engines), world.addHost(engines: engines))
  }

  private func count(_ host: SimulatedHost, _ counter: TransportCounter) -> UInt64 {
    host.controls.reduce(0) { sum, control in
      sum + control.transportCounters().reduce(0) { $1.counter == counter ? $0 + $1.count : $0 }
    }
  }

  /// Everything that can be had of a socket.
  private func drain(_ socket: Application, _ ledger: inout Ledger) {
    while let datagram = socket.receive() { ledger.take(datagram.payload) }
  }

  @Test func `a datagram crosses whole, with its addresses, and comes back`() {
    let (world, a, b) = world()
    let alice = a.open(port: 1000)
    let bob = b.open(port: 2000)
    for length in [0, 1, 64, 1420, 1421, 9000, 65_507] {
      let payload = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ length) }
      #expect(alice.send(payload, to: b.address, 2000, ttl: 9, tos: 0x20, machnet: true))
      world.run(for: 10_000_000)
      let got = bob.receive()
      #expect(got?.payload == payload, "length \(length)")
      #expect(got?.remote == a.address && got?.remotePort == 1000 && got?.local == b.address && got?.ttl == 9)
      #expect(got?.tos == 0x20)
      #expect(bob.send(payload, to: a.address, 1000, machnet: true))
      world.run(for: 10_000_000)
      #expect(alice.receive()?.payload == payload, "length \(length)")
    }
    #expect(count(a, .sessionsOpened) == 1, "one session for both directions")
    #expect(a.drops.isEmpty && b.drops.isEmpty, "\(a.drops) \(b.drops)")
    #expect(world.end())
  }

  @Test func `loss, duplication and reordering: nothing is missing and nothing comes twice`() {
    for (engines, offset) in [(1, 0), (2, 1), (4, 2)] as [(Int, UInt64)] {
      let seed = runSeed &+ offset
      let (world, a, b) = world(seed, engines: engines)
      world.network.faults = Faults(loss: 0.05, duplication: 0.02, reordering: 0.05, corruption: 0.01)
      let senders = (0..<8).map { a.open(port: UInt16(1000 + $0)) }
      let receivers = (0..<8).map { b.open(port: UInt16(2000 + $0)) }
      var ledger = Ledger()
      var random = RandomStream(seed: seed, name: "applications")
      world.run(for: 20_000_000, every: 50_000) {
        let length = random.below(20) == 0 ? 65_507 : 4 + Int(random.below(3000))
        let sender = senders[Int(random.below(8))]
        let payload = Ledger.payload(ledger.sent, length)
        if sender.send(payload, to: b.address, UInt16(2000 + random.below(8)), machnet: true) { ledger.sent += 1 }
        for socket in receivers { drain(socket, &ledger) }
      }
      world.network.faults = .none
      world.run(for: 200_000_000, every: 1_000_000) { for socket in receivers { drain(socket, &ledger) } }
      #expect(ledger.broken.isEmpty, "seed \(seed): \(ledger.broken)")
      #expect(ledger.arrivals.count == Int(ledger.sent), "seed \(seed), \(engines) engines")
      #expect(ledger.arrivals.values.allSatisfy { $0 == 1 }, "seed \(seed)")
      #expect(world.end(), "seed \(seed)")
    }
  }

  /// Its ICMP messages all come to one queue: two addresses are all that RSS can go by.
  @Test func `a peer that is no Machnet refuses, whichever engine asks and whichever hears it`() {
    let world = SimulatedWorld(seed: runSeed)
    let a = world.addHost(engines: 4)
    let stranger = world.addHost(engines: 1) { $0.transport.portBase = 50_000 }
    let sockets = (0..<4).map {
      a.open(port: UInt16(1000 + $0), address: a.address, peer: (stranger.address, 2000), home: $0)
    }
    for socket in sockets { #expect(socket.send([1, 2, 3], to: stranger.address, 2000, machnet: true)) }
    world.run(for: 100_000_000)
    for (engine, socket) in sockets.enumerated() { #expect(socket.takeError() == 111, "engine \(engine), seed \(runSeed)") }
    #expect(world.end())
  }

  @Test func `a peer that is no Machnet refuses, and the sender hears of it`() {
    let (world, a, _) = world()
    // There is a host at 10.0.0.2 whose engine answers to other session ports only: what it gets is for nobody.
    let stranger = world.addHost(engines: 1) {
      $0.transport.portBase = 50_000
    }
    let alice = a.open(port: 1000, address: a.address, peer: (stranger.address, 2000))
    #expect(alice.send([1, 2, 3], to: stranger.address, 2000, machnet: true))
    world.run(for: 100_000_000)
    #expect(alice.takeError() == 111)
    #expect(a.count(.peerRefused) == 1 && count(a, .connectsRefused) == 1)
    #expect(world.end())
  }

  @Test func `a peer that does not answer costs a sender half a second, once`() {
    let (world, a, b) = world()
    let alice = a.open(port: 1000)
    let carol = b.open(port: 2000)
    _ = carol
    // So that its neighbour is known and its engine is not heard any more.
    #expect(alice.send([1], to: b.address, 2000))
    world.run(for: 10_000_000)
    world.network.setPartition(true, from: b.number, to: a.number)
    for _ in 0..<100 { #expect(alice.send([1, 2, 3], to: b.address, 2000, machnet: true)) }
    world.run(for: 600_000_000)
    #expect(a.count(.peerRefused) == 100 && count(a, .connectsFailed) == 1)
    world.network.setPartition(false, from: b.number, to: a.number)
    world.run(for: 1_100_000_000)
    while carol.receive() != nil {}
    #expect(alice.send([4], to: b.address, 2000, machnet: true))
    world.run(for: 50_000_000)
    #expect(carol.receive()?.payload == [4])
    #expect(world.end())
  }

  @Test func `a host that was restarted is reached again, and what died with it is counted`() {
    let (world, a, b) = world()
    let alice = a.open(port: 1000)
    var bob = b.open(port: 2000)
    #expect(alice.send([1], to: b.address, 2000, machnet: true))
    world.run(for: 10_000_000)
    #expect(bob.receive()?.payload == [1])
    b.restart()
    bob = b.open(port: 2000)
    // The first word to the new daemon is about a session that it does not know: its reset ends the old one.
    #expect(alice.send([2], to: b.address, 2000, machnet: true))
    world.run(for: 300_000_000)
    #expect(count(a, .sessionsReset) == 1 && a.count(.sessionLost) == 1)
    #expect(bob.receive() == nil)
    #expect(alice.send([3], to: b.address, 2000, machnet: true))
    world.run(for: 50_000_000)
    #expect(bob.receive()?.payload == [3])
    #expect(world.end())
  }

  @Test func `a restarted host that speaks first is believed at once`() {
    let (world, a, b) = world()
    let alice = a.open(port: 1000)
    var bob = b.open(port: 2000)
    #expect(alice.send([1], to: b.address, 2000, machnet: true))
    world.run(for: 10_000_000)
    b.restart()
    bob = b.open(port: 2000)
    #expect(bob.send([7], to: a.address, 1000, machnet: true))
    world.run(for: 50_000_000)
    #expect(alice.receive()?.payload == [7])
    #expect(count(a, .sessionsRestarted) == 1)
    #expect(alice.send([8], to: b.address, 2000, machnet: true))
    world.run(for: 50_000_000)
    #expect(bob.receive()?.payload == [8])
    #expect(world.end())
  }

  @Test func `a socket that is not there is reported to a connected sender`() {
    let (world, a, b) = world()
    let alice = a.open(port: 1000, address: a.address, peer: (b.address, 2001))
    #expect(alice.send([1], to: b.address, 2001, machnet: true))
    world.run(for: 20_000_000)
    #expect(alice.takeError() == 111 && b.count(.udpNoReceiver) == 1)
    #expect(world.end())
  }

  @Test func `a socket that never reads pauses its senders only`() {
    let (world, a, b) = world()
    let toSlow = a.open(port: 1000)
    let toFast = a.open(port: 1001)
    let slow = b.open(port: 2000)
    let fast = b.open(port: 2001)
    var fastCount = 0
    func run(alone: Bool) -> Int {
      fastCount = 0
      world.run(for: 20_000_000, every: 20_000) {
        if !alone { while toSlow.send([UInt8](repeating: 1, count: 1000), to: b.address, 2000, machnet: true) {} }
        while toFast.send([UInt8](repeating: 2, count: 1000), to: b.address, 2001, machnet: true) {}
        while fast.receive() != nil { fastCount += 1 }
      }
      return fastCount
    }
    let alone = run(alone: true)
    let beside = run(alone: false)
    #expect(alone > 1000)
    // While the slow one's ring still takes something, both share the way; then the fast one has it alone.
    let after = run(alone: false)
    #expect(after * 100 >= alone * 95, "alone \(alone), beside \(beside), then \(after)")
    #expect(b.count(.receiveRingFull) == 0, "the pause came too late")
    // It reads again: what waited arrives.
    var slowCount = 0
    world.run(for: 50_000_000, every: 50_000) {
      while slow.receive() != nil { slowCount += 1 }
      while fast.receive() != nil {}
    }
    #expect(slowCount > 300, "\(slowCount) \(a.drops) \(b.drops) \(count(b, .acksSent))")
    #expect(world.end())
  }

  /// One program has 400 sockets that it does not read; three hosts send to them, and to one that another program reads.
  @Test func `a program with hundreds of sockets that never read pauses its senders only`() {
    let world = SimulatedWorld(seed: runSeed)
    // What a sender's ring holds waits there as long as this test takes.
    func configure(_ options: inout EngineOptions) { options.pauseMilliseconds = 10_000 }
    let b = world.addHost(engines: 1, configure: configure)
    let others = (0..<3).map { _ in world.addHost(engines: 1, configure: configure) }
    let fast = b.open(port: 2000)
    let toFast = others.map { $0.open(port: 1000) }
    var slow: [Application] = []
    var toSlow: [Application] = []
    for _ in 0..<2 {
      let program = b.attach(endpoints: 200)
      let senders = others.map { $0.attach(endpoints: 200) }
      for number in 0..<200 {
        let port = UInt16(3000 + slow.count)
        slow.append(b.open(port: port, in: program))
        toSlow.append(others[number % 3].open(port: port, in: senders[number % 3]))
      }
    }
    var fastCount = 0
    var sent = [UInt32](repeating: 0, count: slow.count)
    var got = sent
    var wrong = 0
    var payload = [UInt8](repeating: 1, count: 1400)
    func run(for span: UInt64, isFastSent: Bool = true, isSlowSent: Bool = false, isSlowRead: Bool = false) -> Int {
      fastCount = 0
      world.run(for: span, every: 20_000) {
        for sender in toFast where isFastSent { while sender.send([UInt8](repeating: 2, count: 1000), to: b.address, 2000, machnet: true) {} }
        while fast.receive() != nil { fastCount += 1 }
        for (number, sender) in toSlow.enumerated() where isSlowSent && sender.writer.pending < 4_000 {
          payload[0] = UInt8(truncatingIfNeeded: sent[number])
          payload[1] = UInt8(truncatingIfNeeded: sent[number] >> 8)
          if sender.send(payload, to: b.address, UInt16(3000 + number), machnet: true) { sent[number] += 1 }
        }
        for (number, socket) in slow.enumerated() where isSlowRead {
          while let datagram = socket.receive() {
            // Nothing is lost on the way, so they come in order.
            let next = [UInt8(truncatingIfNeeded: got[number]), UInt8(truncatingIfNeeded: got[number] >> 8)]
            if Array(datagram.payload.prefix(2)) != next || datagram.payload.count != 1400 { wrong += 1 }
            got[number] += 1
          }
        }
      }
      return fastCount
    }
    let alone = run(for: 20_000_000)
    // Until their rings take no more.
    _ = run(for: 100_000_000, isFastSent: false, isSlowSent: true)
    let beside = run(for: 20_000_000, isSlowSent: true)
    #expect(alone > 1000 && beside * 100 >= alone * 95, "seed \(runSeed): alone \(alone), then \(beside)")
    #expect(b.drops.isEmpty && others.allSatisfy { $0.drops.isEmpty }, "seed \(runSeed): \(b.drops) \(others.map(\.drops))")
    // They read again.
    _ = run(for: 20_000_000, isSlowRead: true)
    #expect(wrong == 0 && got == sent, "seed \(runSeed): \(got.reduce(0, +)) of \(sent.reduce(0, +))")
    #expect(world.end())
  }

  /// SO_RCVBUF keeps what comes out of the ring, so that it waits in the engine.
  @Test func `a program whose messages all wait in the engine leaves others room to wait, and loses none within its share`() {
    let world = SimulatedWorld(seed: runSeed)
    let (a, b) = (world.addHost(engines: 1), world.addHost(engines: 1))
    var hoard: [Application] = []
    var hoardSenders: [Application] = []
    /// Another program, to whose sockets somebody sends more than they take.
    func addProgram(_ count: Int) {
      let (program, senders) = (b.attach(endpoints: UInt32(count)), a.attach(endpoints: UInt32(count)))
      for _ in 0..<count {
        let port = UInt16(3000 + hoard.count)
        hoard.append(b.open(port: port, in: program))
        hoard.last!.want(limit: 4096)
        hoardSenders.append(a.open(port: port, in: senders))
        for _ in 0..<8 { #expect(hoardSenders.last!.send([UInt8](repeating: 1, count: 1400), to: b.address, port, machnet: true)) }
        world.run(for: 100_000)
      }
      world.run(for: 10_000_000)
    }
    // Less than half of what there is.
    addProgram(100)
    #expect(b.drops.isEmpty, "\(b.drops)")
    // All of it, by programs enough.
    for _ in 0..<20 { addProgram(20) }
    #expect(b.count(.receiveRingFull) > 0, "there was room for all")
    // A newcomer.
    let sender = a.open(port: 1000)
    let bob = b.open(port: 2000)
    bob.want(limit: 4096)
    for number in 0..<200 as Range<UInt8> {
      #expect(sender.send([number] + [UInt8](repeating: 0, count: 1000), to: b.address, 2000, machnet: true))
    }
    var got: [UInt8] = []
    world.run(for: 200_000_000, every: 200_000) { while let datagram = bob.receive() { got.append(datagram.payload[0]) } }
    #expect(got == Array(0..<200) && bob.rxDrops == 0 && a.drops.isEmpty, "\(got) \(a.drops) \(b.drops)")
    #expect(world.end())
  }

  @Test func `orders do not wait for each of many sockets that are closed with datagrams nobody takes`() {
    let (world, a, b) = world()
    let program = a.attach()
    let sockets = (0..<60).map { a.open(port: UInt16(1000 + $0), in: program) }
    let carol = b.open(port: 2000)
    #expect(sockets[0].send([1], to: b.address, 2000))
    world.run(for: 10_000_000)
    #expect(carol.receive() != nil)
    // A session that does not come to be.
    world.network.setPartition(true, from: b.number, to: a.number)
    for socket in sockets { #expect(socket.send([1], to: b.address, 2000, machnet: true)) }
    let reader = a.open(port: 3001)
    world.run(for: 1_000_000)
    for socket in sockets { _ = try! a.controls[0].closeEndpoint(socket.reference) }
    let last = a.open(port: 3002)
    #expect(last.send([3], to: a.address, 3001))
    world.run(for: 5_000_000)
    #expect(reader.receive()?.payload == [3], "the order to open waits")
    #expect(a.count(.closedUnsent) == 60)
    #expect(world.end())
  }

  /// What a program can write while the engine waits for room: (offset in the record's header, bytes).
  @Test(arguments: [
    ("a shorter length", 0, [100, 0]), ("no length", 0, [0, 0]), ("a longer length", 0, [0x40, 0xF0]),
    ("segments", 12, [0xE8, 3]), ("no session", 6, [0, 0]), ("a refused destination", 44, [224, 0, 0, 1]),
    ("another host", 44, [10, 0, 0, 77]), ("a local socket", 44, [10, 0, 0, 1]), ("another port", 8, [1, 0]),
    ("port 0", 8, [0, 0]), ("nonsense", 4, [77, 0]),
  ] as [(String, Int, [UInt8])])
  func `a datagram that its program changes while a session takes it harms nobody else`(_ name: String, _ offset: Int, _ bytes: [UInt8]) {
    let (world, a, b) = world()
    let alice = a.open(port: 1000)
    let bob = b.open(port: 2000)
    #expect(alice.send([1], to: b.address, 2000, machnet: true))
    world.run(for: 10_000_000)
    #expect(bob.receive() != nil)
    // Another program, the same engine and session.
    let mallory = a.open(port: 1001, in: a.attach())
    #expect(mallory.send([UInt8](repeating: 2, count: 60_000), to: b.address, 2000, machnet: true))
    let before = world.network.counters.sent
    while world.network.counters.sent == before { world.run(for: 1_000) }
    #expect(world.network.counters.sent - before < 43, "it is all sent already")
    for (place, byte) in bytes.enumerated() {
      unsafe mallory.channel.txRing(mallory.index).storeBytes(
        of: byte, toByteOffset: MemoryLayout<mn_ring>.size + offset + place, as: UInt8.self)
    }
    world.run(for: 10_000_000)
    #expect(alice.send([UInt8](repeating: 3, count: 60_000), to: b.address, 2000, machnet: true))
    #expect(alice.send([4], to: b.address, 2000, machnet: true))
    world.run(for: 600_000_000)
    var got: [Received] = []
    while let datagram = bob.receive() { if datagram.remotePort == 1000 { got.append(datagram) } }
    #expect(got.map(\.payload) == [[UInt8](repeating: 3, count: 60_000), [4]], "\(got.count) \(a.drops) \(b.drops)")
    #expect(count(a, .sessionsOpened) == 1 && count(b, .chunkMalformed) == 0)
    #expect(world.end())
  }

  /// No socket has port 0 (RFC 768 gives it another meaning), and no honest engine sends for one.
  @Test func `a message from port 0, or for it, is dropped and counted, alone or beside others, and the session goes on`() {
    // Where the two ports are in a chunk.
    for port in [14, 16] {
      for isAlone in [true, false] {
        let (world, a, b) = world()
        let alice = a.open(port: 1000)
        let bob = b.open(port: 2000)
        #expect(alice.send([1], to: b.address, 2000, machnet: true))
        world.run(for: 10_000_000)
        #expect(bob.receive()?.payload == [1])
        var changed = 0
        world.network.filter = { frame, from in
          let chunk = 42 + MachnetPacket.headerLength
          guard changed == 0, from == a.number, frame.count >= chunk + MachnetChunk.headerLength + 2,
            frame.u16(12) == EtherType.ipv4, frame.u16(chunk + 16) == 2000
          else { return .pass }
          // What is taken from the port is added to the payload, whose first word is 0: the checksum stays right.
          frame.set16(chunk + MachnetChunk.headerLength, frame.u16(chunk + port))
          frame.set16(chunk + port, 0)
          changed += 1
          return .pass
        }
        #expect(alice.send([0, 0, 2, 2], to: b.address, 2000, machnet: true))
        if !isAlone { #expect(alice.send([3], to: b.address, 2000, machnet: true)) }
        world.run(for: 10_000_000)
        #expect(alice.send([4], to: b.address, 2000, machnet: true))
        world.run(for: 10_000_000)
        #expect(changed == 1 && b.drops == [.udpMalformed: 1], "\(b.drops)")
        var got: [[UInt8]] = []
        while let datagram = bob.receive() { got.append(datagram.payload) }
        #expect(got == (isAlone ? [[4]] : [[3], [4]]), "\(got)")
        #expect(count(a, .sessionsOpened) == 1 && count(a, .retransmissions) == 0 && count(b, .malformed) == 0)
        #expect(world.end())
      }
    }
  }

  /// Many hosts with datagrams of 43 packets, and a receiver that can put 8 together at a time.
  @Test func `a receiver out of assemblies is not flooded, and everything arrives`() {
    let world = SimulatedWorld(seed: runSeed)
    func configure(_ options: inout EngineOptions) { options.transport.assemblies = 8 }
    let b = world.addHost(engines: 1, configure: configure)
    let others = (0..<14).map { _ in world.addHost(engines: 1, configure: configure) }
    let receiver = b.open(port: 2000)
    let small = b.open(port: 2001)
    var ledger = Ledger()
    func read() {
      drain(receiver, &ledger)
      drain(small, &ledger)
    }
    for host in others { #expect(host.open(port: 900).send(ledger.next(8), to: b.address, 2001, machnet: true)) }
    world.run(for: 20_000_000, every: 50_000, read)
    // The sessions are there; all at once.
    for host in others {
      for sender in 0..<12 {
        let socket = host.open(port: UInt16(1000 + sender))
        #expect(socket.send(ledger.next(60_000), to: b.address, 2000, machnet: true))
        if sender % 3 == 0 { #expect(socket.send(ledger.next(100), to: b.address, 2001, machnet: true)) }
      }
    }
    let start = world.now
    while ledger.arrivals.count < Int(ledger.sent) && world.now < start + 2_000_000_000 {
      world.run(for: 50_000)
      read()
    }
    let sent = others.reduce(0) { $0 + count($1, .packetsSent) }
    let again = others.reduce(0) { $0 + count($1, .retransmissions) }
    #expect(ledger.arrivals.count == Int(ledger.sent) && ledger.arrivals.values.allSatisfy { $0 == 1 }, "seed \(runSeed)")
    // 168 messages of 43 packets: a third of them again at most, though there was room for 8 messages of 14 hosts.
    #expect(count(b, .assemblyFull) > 0 && again < 168 * 43 / 2, "seed \(runSeed): \(again) of \(sent)")
    #expect(world.end())
  }

  /// What 4 senders get across in `span` ns, bytes; the engines' absences as given.
  private func carried(_ seed: UInt64, _ span: UInt64, _ absences: Schedule?) -> (bytes: Int, counts: String) {
    let (world, a, b) = world(seed)
    let senders = (0..<4).map { a.open(port: UInt16(1000 + $0)) }
    let receivers = (0..<4).map { b.open(port: UInt16(2000 + $0)) }
    let payload = [UInt8](repeating: 7, count: 8000)
    // The session is open and knows its way before anybody is absent.
    #expect(senders[0].send(payload, to: b.address, 2000, machnet: true))
    world.run(for: 5_000_000)
    world.absences = absences
    var bytes = 0
    world.run(for: span, every: 50_000) {
      for (number, sender) in senders.enumerated() {
        while sender.send(payload, to: b.address, UInt16(2000 + number), machnet: true) {}
      }
      for receiver in receivers { while let got = receiver.receive() { bytes += got.payload.count } }
    }
    let all: [TransportCounter] = [.packetsSent, .retransmissions, .spuriousRetransmissions, .timeouts, .spuriousTimeouts, .probes]
    let counts = all.map { "\($0) \(count(a, $0))" }.joined(separator: ", ")
    #expect(world.end())
    return (bytes, counts + ", window \(a.controls[0].sessions().map(\.congestionWindow)) \(b.drops) \(a.drops)")
  }

  /// Other work takes an engine's core whenever it yields: it runs for a moment, and is away for milliseconds.
  @Test func `an engine that is off its core is not taken for a queue in the network`() {
    for seed in runSeed..<runSeed &+ 3 {
      let it = carried(seed, 500_000_000, Schedule(interval: 20_000...300_000, duration: 1_000_000...5_000_000))
      // Some 0.5 Gbit/s: a window of 256 packets each time that both have run. Taken for delay, absences left 0.003.
      #expect(it.bytes * 8 >= 500_000_000 / 10, "seed \(seed): \(it)")
    }
  }

  @Test func `a queue in the network is seen although engines are off their cores`() {
    let world = SimulatedWorld(seed: runSeed)
    var slow = LinkOptions()
    slow.bandwidth = 1_000_000_000
    slow.queueLimit = 8 << 20
    let sink = world.addHost(engines: 1, link: slow)
    let senders = (0..<4).map { _ in world.addHost(engines: 1).open(port: 1000) }
    let receivers = (0..<4).map { sink.open(port: UInt16(2000 + $0)) }
    let payload = [UInt8](repeating: 7, count: 8000)
    for sender in senders { #expect(sender.send(payload, to: sink.address, 2000, machnet: true)) }
    world.run(for: 5_000_000)
    world.absences = Schedule(interval: 5_000_000...60_000_000, duration: 1_000_000...20_000_000)
    var bytes = 0
    func work() {
      for (number, sender) in senders.enumerated() {
        while sender.send(payload, to: sink.address, UInt16(2000 + number), machnet: true) {}
      }
      for receiver in receivers { while let got = receiver.receive() { bytes += got.payload.count } }
    }
    world.run(for: 50_000_000, every: 50_000, work)
    world.network.resetQueueingDelay(to: sink.number)
    world.run(for: 300_000_000, every: 50_000, work)
    let delay = world.network.queueingDelay(to: sink.number)
    // The target is 100 us.
    #expect(delay.percentile(50) < 200_000 && delay.percentile(99) < 400_000, "seed \(runSeed): \(delay.percentile(99))")
    #expect(bytes > 0 && world.end())
  }

  /// The kernel would drop what goes beyond SO_RCVBUF; a session has promised to deliver it.
  @Test func `a receive limit holds messages back, drops none, and lets one in that never fits`() {
    let (world, a, b) = world()
    let alice = a.open(port: 1000)
    let bob = b.open(port: 2000)
    let carol = b.open(port: 2001)
    // Three datagrams of 1400 bytes by the kernel's accounting.
    bob.want(limit: 8192)
    for number in 0..<20 as Range<UInt8> {
      #expect(alice.send([UInt8](repeating: number, count: 1400), to: b.address, 2000, machnet: true))
    }
    #expect(alice.send([UInt8](repeating: 20, count: 30_000), to: b.address, 2000, machnet: true))
    world.run(for: 20_000_000)
    var got: [UInt8] = []
    while let datagram = bob.receive() { got.append(datagram.payload[0]) }
    #expect(got == [0, 1, 2] && bob.rxDrops == 0, "\(got)")
    // The session goes on for others.
    #expect(a.open(port: 1001).send([1], to: b.address, 2001, machnet: true))
    world.run(for: 20_000_000)
    #expect(carol.receive()?.payload == [1])
    world.run(for: 200_000_000, every: 1_000_000) {
      var now = 0
      while let datagram = bob.receive() {
        got.append(datagram.payload[0])
        now += 1
      }
      #expect(now <= 3)
    }
    #expect(got == Array(0...20) && bob.rxDrops == 0 && b.drops.isEmpty && a.drops.isEmpty, "\(got) \(a.drops) \(b.drops)")
    #expect(world.end())
  }

  @Test func `sessions of several engines stay on the engines where their packets land`() {
    let (world, a, b) = world(engines: 4)
    let senders = (0..<4).map { a.open(port: UInt16(1000 + $0), home: $0) }
    let bob = b.open(port: 2000)
    for (number, sender) in senders.enumerated() {
      #expect(sender.send([UInt8(number)], to: b.address, 2000, machnet: true))
    }
    world.run(for: 100_000_000)
    var got: Set<UInt8> = []
    while let datagram = bob.receive() { got.insert(datagram.payload[0]) }
    #expect(got == [0, 1, 2, 3])
    for control in a.controls {
      #expect(control.sessions().count == 1)
      #expect(control.sessions().allSatisfy { Int($0.remoteEngine) == Int(control.options.index) })
    }
    #expect(count(a, .unknownTag) == 0 && count(b, .unknownTag) == 0)
    #expect(world.end())
  }
}
