import EngineBench
import MachnetEngine
import MachnetSimulation
import MachnetWire
import Testing

@Suite struct WordsOutOfOrder {
  /// Words of a session arrive in any order: a resume that was sent later may be there first.
  @Test func `a pause that comes behind its resume does not hold a sender for ever`() {
    let world = SimulatedWorld(seed: 7)
    let (a, b) = (world.addHost(engines: 1), world.addHost(engines: 1))
    let (alice, bob) = (a.open(port: 1000), b.open(port: 2000))
    var pauses = 0
    world.network.filter = { frame, from in
      guard from == b.number, frame.count >= 94, frame.u16(12) == EtherType.ipv4, frame.u8(23) == IPProtocol.udp else {
        return .pass
      }
      // The first chunk behind header and SACK words; 1 is a pause.
      let chunk = 42 + MachnetPacket.headerLength + 8 * Int(frame.u8(44))
      guard chunk + MachnetChunk.headerLength <= frame.count, frame.u16(chunk + 12) >> 14 == 1 else { return .pass }
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
}
