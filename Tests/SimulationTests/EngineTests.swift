import EngineBench
import MachnetEngine
import MachnetSimulation
import Testing

/// A run in which two daemons send each other datagrams of all sizes, seen from outside.
final class DatagramRun {
  let world: SimulatedWorld
  var ledgers = [Ledger(), Ledger()]
  var sockets: [[Application]] = []

  init(seed: UInt64, engines: (Int, Int), faults: Faults) {
    var link = LinkOptions()
    link.jitter = 3_000
    world = SimulatedWorld(seed: seed)
    let hosts = [world.addHost(engines: engines.0, link: link), world.addHost(engines: engines.1, link: link)]
    world.network.faults = faults
    var random = RandomStream(seed: seed, name: "applications")
    var ports: [[UInt16]]
    repeat {
      // Neighbouring ports may well share a queue.
      ports = (0..<2).map { _ in (0..<8).map { UInt16(2000 + 1000 * UInt64($0) + random.below(1000)) } }
    } while !reachEveryEngine(of: hosts[0], ports[0], from: hosts[1], ports[1])
      || !reachEveryEngine(of: hosts[1], ports[1], from: hosts[0], ports[0])
    for (host, ports) in zip(hosts, ports) { sockets.append(ports.map { host.open(port: $0) }) }
    let lengths = [4, 64, 500, 1472, 1473, 3000, 9000, 65_507]
    world.run(for: 40_000_000, every: 100_000) {
      for side in 0..<2 {
        let from = sockets[side][Int(random.below(8))]
        let length = random.below(20) == 0 ? 65_507 : lengths[Int(random.below(7))]
        let to = ports[1 - side][Int(random.below(8))]
        #expect(from.send(ledgers[1 - side].next(length), to: hosts[1 - side].address, to))
      }
      collect()
    }
    world.network.faults = .none
    #expect(world.settle(), "seed \(seed)")
    collect()
  }

  /// Whether RSS shows each engine of a host more than next to nothing of the flows between these ports.
  private func reachEveryEngine(
    of host: SimulatedHost, _ ports: [UInt16], from sender: SimulatedHost, _ senderPorts: [UInt16]
  ) -> Bool {
    var flows = [Int](repeating: 0, count: host.controls.count)
    for port in ports {
      for senderPort in senderPorts {
        flows[
          world.network.queue(
            of: host.number, source: sender.address, destination: host.address, sourcePort: senderPort,
            destinationPort: port)] += 1
      }
    }
    return flows.allSatisfy { $0 >= 10 }
  }

  private func collect() {
    for side in 0..<2 {
      for socket in sockets[side] {
        while let datagram = socket.receive() { ledgers[side].take(datagram.payload) }
      }
    }
  }
}

@Suite struct EnginesInVirtualTime {
  @Test func `several engines on each side lose nothing where nothing is lost`() {
    for engines in [(1, 1), (2, 4), (4, 2), (3, 3)] {
      let run = DatagramRun(seed: runSeed, engines: engines, faults: .none)
      for ledger in run.ledgers {
        #expect(ledger.broken == [] && ledger.arrivals.count == Int(ledger.sent), "seed \(runSeed), \(engines)")
        #expect(ledger.arrivals.values.allSatisfy { $0 == 1 })
      }
      for host in run.world.hosts {
        #expect(host.drops.isEmpty, "\(host.drops), seed \(runSeed), \(engines)")
        #expect(host.count(.reassembled) > 0)
        // RSS has spread the flows.
        #expect(
          host.controls.allSatisfy { $0.counters()[.rxPackets] > 10 && $0.counters()[.txPackets] > 10 },
          "seed \(runSeed), \(engines)")
      }
      #expect(run.world.end(), "seed \(runSeed), \(engines)")
    }
  }

  @Test func `what arrives under loss, duplication and reordering is whole`() {
    let faults = Faults(loss: 0.01, duplication: 0.1, reordering: 0.1)
    let run = DatagramRun(seed: runSeed, engines: (2, 4), faults: faults)
    let counters = run.world.network.counters
    #expect(counters.lost > 0 && counters.duplicated > 0 && counters.reordered > 0)
    for ledger in run.ledgers {
      #expect(ledger.broken == [], "seed \(runSeed)")
      #expect(ledger.arrivals.count > Int(ledger.sent) / 2, "\(ledger.arrivals.count) of \(ledger.sent), seed \(runSeed)")
      #expect(ledger.arrivals.count < Int(ledger.sent))
      // A datagram in one frame that is doubled comes twice, as on any network.
      #expect(ledger.arrivals.values.max()! == 2, "seed \(runSeed)")
    }
    #expect(run.world.end(), "seed \(runSeed)")
  }

  @Test func `the same seed gives the same run`() {
    let faults = Faults(loss: 0.02, duplication: 0.02, reordering: 0.05)
    func run(_ seed: UInt64) -> (UInt64, [[UInt32: Int]], NetworkCounters) {
      let run = DatagramRun(seed: seed, engines: (2, 4), faults: faults)
      defer { #expect(run.world.end()) }
      return (run.world.network.traceHash, run.ledgers.map(\.arrivals), run.world.network.counters)
    }
    let (first, second, other) = (run(runSeed), run(runSeed), run(runSeed &+ 1))
    #expect(first.0 == second.0 && first.1 == second.1 && first.2 == second.2, "seed \(runSeed)")
    #expect(first.0 != other.0)
  }

  @Test func `corrupted datagrams are dropped and counted`() {
    let world = SimulatedWorld(seed: runSeed)
    let (a, b) = (world.addHost(engines: 2), world.addHost(engines: 2))
    let alice = a.open(port: 1000)
    let bob = b.open(port: 2000)
    var ledger = Ledger()
    #expect(alice.send(ledger.next(100), to: b.address, 2000))
    #expect(world.settle())
    world.network.faults.corruption = 0.2
    world.run(for: 20_000_000, every: 10_000) {
      #expect(alice.send(ledger.next(100), to: b.address, 2000))
      while let datagram = bob.receive() { ledger.take(datagram.payload) }
    }
    #expect(world.settle())
    while let datagram = bob.receive() { ledger.take(datagram.payload) }
    #expect(ledger.broken == [] && ledger.arrivals.count < Int(ledger.sent))
    #expect(b.count(.udpChecksum) > 0 && b.count(.ipChecksum) > 0)
    #expect(world.end())
  }

  @Test func `every engine finds neighbours, though RSS shows ARP to one of them`() {
    let world = SimulatedWorld(seed: runSeed)
    let (a, b) = (world.addHost(engines: 4), world.addHost(engines: 4))
    let senders = (0..<4).map { a.open(port: UInt16(1000 + $0), home: $0) }
    let bob = b.open(port: 2000)
    for sender in senders { #expect(sender.send([1], to: b.address, 2000)) }
    // Well before a question is repeated (100 ms).
    world.run(for: 1_000_000)
    var got = 0
    while bob.receive() != nil { got += 1 }
    #expect(got == 4)
    for control in a.controls {
      #expect(control.neighbours(port: 0).map(\.mac) == [b.interface.mac])
      #expect(control.neighbours(port: 0).allSatisfy { $0.state == .reachable })
    }
    // When the answers are old, the neighbour is asked while its address is in use, and every engine hears the answer.
    for _ in 0..<4 {
      world.run(for: 20_000_000_000)
      for sender in senders { #expect(sender.send([2], to: b.address, 2000)) }
      world.run(for: 10_000_000)
    }
    while bob.receive() != nil { got += 1 }
    #expect(got == 20 && a.drops.isEmpty, "\(a.drops)")
    #expect(a.count(.arpRequestsSent) > 4)
    #expect(a.controls.allSatisfy { $0.neighbours(port: 0).allSatisfy { $0.state == .reachable } })
    #expect(world.end())
  }

  @Test func `a daemon that dies takes no packet with it, and its successor works`() {
    let world = SimulatedWorld(seed: runSeed)
    let (a, b) = (world.addHost(engines: 2), world.addHost(engines: 2))
    let alice = a.open(port: 1000)
    var bob = b.open(port: 2000)
    for round in 0..<5 {
      for _ in 0..<40 { #expect(alice.send([UInt8](repeating: 1, count: 3000), to: b.address, 2000)) }
      if round > 0 {
        world.run(for: 60_000)
        b.restart()
        bob = b.open(port: 2000)
      }
      #expect(world.settle())
      var got = 0
      while bob.receive() != nil { got += 1 }
      #expect(round > 0 || got == 40)
      #expect(alice.send([9], to: b.address, 2000))
      #expect(world.settle())
      #expect(bob.receive()?.payload == [9])
    }
    #expect(world.end())
  }
}
