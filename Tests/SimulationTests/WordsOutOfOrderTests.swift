import EngineBench
import MachnetEngine
import MachnetSimulation
import MachnetWire
import Testing

@Suite struct WordsOutOfOrder {
  /// The port that the first chunk behind header and SACK words is a pause for; nil: it is none.
  private func paused(_ frame: Bytes) -> UInt16? {
    guard frame.count >= 94, frame.u16(12) == EtherType.ipv4, frame.u8(23) == IPProtocol.udp else { return nil }
    let chunk = 42 + MachnetPacket.headerLength + 8 * Int(frame.u8(44))
    if chunk + MachnetChunk.headerLength > frame.count || frame.u16(chunk + 12) >> 14 != 1 { return nil }
    return frame.u16(chunk + 14)
  }

  /// Words of a session arrive in any order: a resume that was sent later may be there first.
  @Test func `a pause that comes behind its resume does not hold a sender for ever`() {
    let world = SimulatedWorld(seed: 7)
    let (a, b) = (world.addHost(engines: 1), world.addHost(engines: 1))
    let (alice, bob) = (a.open(port: 1000), b.open(port: 2000))
    var pauses = 0
    world.network.filter = { frame, from in
      guard from == b.number, paused(frame) != nil else { return .pass }
      pauses += 1
      return .delay(3_000_000)
    }
    #expect(alice.send([1], to: b.address, 2000, machnet: true))
    world.run(for: 5_000_000)
    for _ in 0..<6 { #expect(alice.send([UInt8](repeating: 1, count: 40_000), to: b.address, 2000, machnet: true)) }
    // The receiver asks for a pause; then the application reads everything at once.
    while pauses == 0 && world.now < 1_000_000_000 { world.run(for: 1_000) }
    var got = 0
    world.run(for: 3_000_000_000, every: 1_000_000) { while bob.receive() != nil { got += 1 } }
    for _ in 0..<5 { #expect(alice.send([2], to: b.address, 2000, machnet: true)) }
    world.run(for: 2_000_000_000, every: 1_000_000) { while bob.receive() != nil { got += 1 } }
    #expect(pauses > 0 && got == 12 && a.count(.peerPaused) == 0, "\(got) of 12, \(a.count(.peerPaused)) given up")
    #expect(world.end())
  }

  @Test func `a pause that comes behind another socket's is heard`() {
    let world = SimulatedWorld(seed: 7)
    func configure(_ options: inout EngineOptions) { options.pauseMilliseconds = 10_000 }
    let (a, b) = (world.addHost(engines: 1, configure: configure), world.addHost(engines: 1, configure: configure))
    let (alice, carol) = (a.open(port: 1000), a.open(port: 1001))
    let (bob, dave) = (b.open(port: 2000), b.open(port: 2001))
    var pauses: Set<UInt16> = []
    world.network.filter = { frame, from in
      guard from == b.number, let port = paused(frame) else { return .pass }
      pauses.insert(port)
      return port == 2000 ? .delay(2_000_000) : .pass
    }
    let payload = [UInt8](repeating: 1, count: 1400)
    var sent = 0
    func send(_ sender: Application, _ port: UInt16) {
      if sender.send(payload, to: b.address, port, machnet: true) { sent += 1 }
    }
    while pauses.isEmpty && world.now < 1_000_000_000 {
      send(alice, 2000)
      world.run(for: 5_000)
    }
    while !pauses.contains(2001) && world.now < 1_000_000_000 {
      send(carol, 2001)
      world.run(for: 5_000)
    }
    // Nobody who has heard it sends now what would be 3 MiB.
    world.run(for: 9_000_000, every: 3_000) { send(alice, 2000) }
    var got = 0
    world.run(for: 100_000_000, every: 100_000) { for socket in [bob, dave] { while socket.receive() != nil { got += 1 } } }
    #expect(got == sent && b.drops.isEmpty && a.drops.isEmpty, "\(got) of \(sent), \(b.drops)")
    #expect(world.end())
  }
}
