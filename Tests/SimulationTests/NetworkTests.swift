import MachnetEngine
import MachnetWire
import Testing

@testable import MachnetSimulation

@Suite struct Numbers {
  @Test func `xoshiro256** gives its published numbers`() {
    var random = RandomStream(state: (1, 2, 3, 4))
    #expect((0..<4).map { _ in random.next() } == [11520, 0, 1_509_978_240, 1_215_971_899_390_074_240])
  }

  @Test func `streams of one seed with different names differ, with the same name they do not`() {
    func first(_ seed: UInt64, _ name: String) -> [UInt64] {
      var random = RandomStream(seed: seed, name: name)
      return (0..<8).map { _ in random.next() }
    }
    #expect(first(1, "a") == first(1, "a"))
    #expect(first(1, "a") != first(1, "b"))
    #expect(first(1, "a") != first(2, "a"))
    #expect(first(0, "") != first(1, ""))
  }

  @Test func `ranges are kept and reached`() {
    var random = RandomStream(seed: runSeed, name: "ranges")
    var seen = Set<UInt64>()
    for _ in 0..<1000 { seen.insert(random.uniform(10...13)) }
    #expect(seen == [10, 11, 12, 13])
    #expect(random.uniform(7...7) == 7)
    _ = random.uniform(0...UInt64.max)
    var hits: UInt64 = 0
    for _ in 0..<10_000 where random.chance(0.25) { hits += 1 }
    #expect(isLikely(hits, of: 10_000, 0.25))
    #expect(!random.chance(0) && random.chance(1))
  }

  @Test func `events come by time, and in order of insertion at the same time`() {
    var random = RandomStream(seed: runSeed, name: "events")
    var queue = EventQueue<UInt32>(capacity: 4)
    var model: [(time: UInt64, number: UInt32)] = []
    var number: UInt32 = 0
    var now: UInt64 = 0
    for _ in 0..<20_000 {
      if random.below(5) < 3 || model.isEmpty {
        let time = now + random.below(20)
        queue.push(number, at: time)
        // The model keeps a sorted list: behind all that are not later.
        model.insert((time, number), at: model.firstIndex { $0.time > time } ?? model.count)
        number += 1
      } else {
        let expected = model.removeFirst()
        #expect(queue.nextTime == expected.time)
        let event = queue.pop()
        #expect(event?.time == expected.time && event?.event == expected.number)
        now = expected.time
      }
      #expect(queue.count == model.count)
    }
    while queue.pop() != nil {}
    #expect(queue.nextTime == UInt64.max)
  }

  @Test func `a delay histogram is right within a thirty-second`() {
    var random = RandomStream(seed: runSeed, name: "delays")
    var histogram = DelayHistogram()
    #expect(histogram.percentile(99) == 0)
    var all: [UInt64] = []
    for _ in 0..<10_000 {
      let delay = random.next() >> (random.below(64))
      histogram.record(delay)
      all.append(delay)
    }
    all.sort()
    for percent in [0, 1, 50, 90, 99, 99.9, 100] {
      let exact = all[max(0, Int((Double(all.count) * percent / 100).rounded(.up)) - 1)]
      let got = histogram.percentile(percent)
      #expect(got >= exact && got - exact <= exact / 32, "p\(percent): \(got), exactly \(exact)")
    }
    #expect(histogram.max == all.last && histogram.count == 10_000)
  }
}

@Suite struct RSS {
  /// Microsoft, "Verifying the RSS Hash Calculation".
  @Test func `the hash is the one of the published vectors`() {
    let key: [UInt8] = [
      0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b,
      0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac,
      0x01, 0xfa,
    ]
    let vectors: [(to: UInt32, toPort: UInt16, from: UInt32, fromPort: UInt16, addresses: UInt32, ports: UInt32)] = [
      (ip(161, 142, 100, 80), 1766, ip(66, 9, 149, 187), 2794, 0x323e_8fc2, 0x51cc_c178),
      (ip(65, 69, 140, 83), 4739, ip(199, 92, 111, 2), 14230, 0xd718_262a, 0xc626_b0ea),
      (ip(12, 22, 207, 184), 38024, ip(24, 19, 198, 95), 12898, 0xd2d0_a5de, 0x5c2b_394a),
      (ip(209, 142, 163, 6), 2217, ip(38, 27, 205, 30), 48228, 0x8298_9176, 0xafc7_327f),
      (ip(202, 188, 127, 2), 1303, ip(153, 39, 163, 191), 44251, 0x5d18_09c5, 0x10e8_28a2),
    ]
    let toeplitz = Toeplitz(key: key)
    for vector in vectors {
      #expect(toeplitz.hash(source: vector.from, destination: vector.to) == vector.addresses)
      #expect(
        toeplitz.hash(
          source: vector.from, destination: vector.to, sourcePort: vector.fromPort, destinationPort: vector.toPort)
          == vector.ports)
    }
  }

  @Test func `port pairs spread over the queues, by a key of each NIC's own`() {
    let network = network(3, queues: 8)
    var counts = [Int](repeating: 0, count: 8)
    var differs = false
    // The hash is linear: neighbouring ports may well share a queue.
    var random = RandomStream(seed: runSeed, name: "ports")
    for _ in 0..<4096 {
      let ports = (UInt16(random.below(65_536)), UInt16(random.below(65_536)))
      func queue(_ host: Int) -> Int {
        network.queue(
          of: host, source: address(2), destination: address(0), sourcePort: ports.0, destinationPort: ports.1)
      }
      counts[queue(0)] += 1
      if queue(0) != queue(1) { differs = true }
    }
    #expect(differs)
    #expect(counts.allSatisfy { $0 > 256 }, "\(counts), seed \(runSeed)")
  }

  @Test func `a flow keeps its queue, and its fragments and other frames have theirs`() {
    let network = network(2, queues: 4)
    let payload = Memory([1, 2, 3, 4])
    var queues = Set<Int>()
    var random = RandomStream(seed: runSeed, name: "ports")
    for _ in 0..<64 {
      let ports = (UInt16(random.below(65_536)), UInt16(random.below(65_536)))
      let expected = network.queue(
        of: 1, source: address(0), destination: address(1), sourcePort: ports.0, destinationPort: ports.1)
      for _ in 0..<2 {
        #expect(network.sendUDP(payload.bytes, from: 0, to: 1, sourcePort: ports.0, destinationPort: ports.1))
        let arrival = network.next(until: UInt64.max)
        #expect(arrival?.queue == expected && arrival?.host == 1)
        queues.insert(expected)
      }
    }
    #expect(queues.count == 4)
    // An ARP frame.
    let frame = Memory(60)
    EthernetFrame.emit(into: frame.bytes, destination: ethernetBroadcast, source: mac(0), type: EtherType.arp)
    #expect(network.send(frame.bytes, from: 0, queue: 3))
    #expect(network.next(until: UInt64.max)?.queue == 0)
    // Both fragments of a datagram: the second one has no ports.
    var fragments = Set<Int>()
    for offset in [0, 8] {
      var header = IPv4Header(totalLength: 28, ipProtocol: IPProtocol.udp, source: address(0), destination: address(1))
      header.fragmentOffset = offset
      header.moreFragments = offset == 0
      header.emit(into: frame.bytes.slice(14))
      EthernetFrame.emit(into: frame.bytes, destination: mac(1), source: mac(0), type: EtherType.ipv4)
      for port in 0..<16 {
        frame.bytes.set16(34, UInt16(port))
        #expect(network.send(frame.bytes, from: 0))
        fragments.insert(network.next(until: UInt64.max)!.queue)
      }
    }
    #expect(fragments.count == 1)
  }
}

@Suite struct Links {
  @Test func `a frame takes two serialisations and two delays`() throws {
    let network = network()
    // 1000 bytes and 24 of overhead at 10 Gbit/s: 819.2 ns.
    #expect(network.sendUDP(Memory(958).bytes, from: 0, to: 1, sourcePort: 1, destinationPort: 2))
    let arrival = try #require(network.next(until: 1_000_000))
    #expect(arrival.frame.count == 1000)
    #expect(arrival.time == 820 + 12_500 + 820 + 12_500)
    // The shortest frame is padded to 60: 84 bytes, 67.2 ns.
    let start = network.now
    #expect(network.sendUDP(Memory(0).bytes, from: 1, to: 0, sourcePort: 1, destinationPort: 2))
    let second = try #require(network.next(until: 1_000_000))
    #expect(second.time == start + 68 + 12_500 + 68 + 12_500)
    #expect(network.next(until: 1_000_000) == nil && network.now == 1_000_000)
  }

  @Test func `an unlimited link only delays`() {
    var link = LinkOptions()
    link.bandwidth = 0
    link.delay = 7
    let network = network(link: link)
    for _ in 0..<200 { #expect(network.sendUDP(Memory(1000).bytes, from: 0, to: 1, sourcePort: 1, destinationPort: 2)) }
    for _ in 0..<200 { #expect(network.next(until: 1_000)?.time == 14) }
  }

  @Test func `a full link carries its bandwidth, exactly`() {
    for (bandwidth, payload) in [(10_000_000_000, 18), (10_000_000_000, 1430), (1_000_000_000, 600), (25_000_000_000, 18)] {
      var link = LinkOptions()
      link.bandwidth = UInt64(bandwidth)
      let network = network(link: link)
      let memory = Memory(payload)
      var arrived = 0
      var first: UInt64 = 0
      var last: UInt64 = 0
      let count = 10_000
      var sent = 0
      while arrived < count {
        while sent < count, network.sendUDP(memory.bytes, from: 0, to: 1, sourcePort: 1, destinationPort: 2) { sent += 1 }
        guard let arrival = network.next(until: network.now + 500) else { continue }
        if arrived == 0 { first = arrival.time }
        last = arrival.time
        arrived += 1
      }
      let exact = Double(count - 1) * Double((payload + 42 + 24) * 8) * 1e9 / Double(bandwidth)
      #expect(abs(Double(last - first) - exact) < exact / 10_000 + 4, "\(bandwidth) \(payload)")
      #expect(network.counters(of: 0).txFull > 0 && network.counters(of: 1).queueDrops == 0)
    }
  }

  @Test func `a TX queue has 256 descriptors, free again when the frame is on the wire`() {
    let network = network(queues: 2)
    let memory = Memory(958)
    for _ in 0..<256 { #expect(network.sendUDP(memory.bytes, from: 0, to: 1, sourcePort: 1, destinationPort: 2)) }
    #expect(!network.sendUDP(memory.bytes, from: 0, to: 1, sourcePort: 1, destinationPort: 2))
    // The other queue has its own, behind the same cable.
    #expect(network.sendUDP(memory.bytes, from: 0, queue: 1, to: 1, sourcePort: 1, destinationPort: 2))
    network.advance(to: 819)
    #expect(!network.sendUDP(memory.bytes, from: 0, to: 1, sourcePort: 1, destinationPort: 2))
    network.advance(to: 820)
    #expect(network.sendUDP(memory.bytes, from: 0, to: 1, sourcePort: 1, destinationPort: 2))
    #expect(!network.sendUDP(memory.bytes, from: 0, to: 1, sourcePort: 1, destinationPort: 2))
    #expect(network.counters(of: 0).txFull == 3)
    #expect(network.held(by: 0) == 0)
  }

  @Test func `an RX queue has 256 descriptors, and what does not fit is dropped and counted`() {
    let network = network(queues: 1)
    let memory = Memory(4)
    for _ in 0..<300 {
      #expect(network.sendUDP(memory.bytes, from: 0, to: 1, sourcePort: 1, destinationPort: 2))
      network.advance(to: network.now + 1_000)
    }
    network.advance(to: network.now + 1_000_000)
    #expect(network.counters(of: 1).overflowed == 44 && network.counters(of: 1).delivered == 256)
    var taken = 0
    while network.receive(host: 1, queue: 0) != nil { taken += 1 }
    #expect(taken == 256)
    #expect(network.isConserved && network.inFlight == 0)
  }

  @Test func `the switch's queue towards a host is limited in bytes, and the wait in it is measured`() {
    var link = LinkOptions()
    link.queueLimit = 100_000
    let network = network(3, link: link)
    let memory = Memory(958)
    // Two senders at full speed, one receiver: what comes in is twice what goes out.
    for _ in 0..<20_000 {
      for sender in [0, 1] { _ = network.sendUDP(memory.bytes, from: sender, to: 2, sourcePort: 1, destinationPort: 2) }
      while network.next(until: network.now + 50) != nil {}
      #expect(network.backlog(to: 2) <= 100_000)
    }
    while network.next(until: UInt64.max) != nil {}
    let counters = network.counters(of: 2)
    #expect(counters.queueDrops > 0 && counters.delivered > 0)
    #expect(counters.queueDrops + counters.delivered == network.counters.sent)
    // 100,000 bytes at 10 Gbit/s: 80 us, less the frame's own.
    let delays = network.queueingDelay(to: 2)
    #expect(delays.max <= 80_000 && delays.max > 78_000, "\(delays.max)")
    #expect(delays.percentile(99) <= 80_000)
    #expect(delays.count == counters.delivered)
    network.resetQueueingDelay(to: 2)
    #expect(network.queueingDelay(to: 2).count == 0)
  }

  @Test func `jitter delays and keeps the order`() {
    var link = LinkOptions()
    link.jitter = 30_000
    let got = exchange(network(link: link), count: 5_000)
    #expect(got.map(\.number) == Array(0..<5_000))
    let delays = got.map { $0.time - UInt64($0.number) * 2_000 }
    #expect(delays.min()! >= 25_000 && delays.max()! > 60_000 && delays.max()! < 90_000)
  }
}

@Suite struct FaultRates {
  let count = 20_000

  @Test(arguments: [0.001, 0.01, 0.2, 1.0])
  func `loss`(probability: Double) {
    let network = network()
    network.faults.loss = probability
    let got = exchange(network, count: count)
    let lost = network.counters.lost
    #expect(isLikely(lost, of: count, probability), "\(lost), seed \(runSeed)")
    #expect(got.count + Int(lost) == count)
    #expect(got.map(\.number) == got.map(\.number).sorted())
  }

  @Test func `loss in bursts`() {
    let network = network()
    network.faults.loss = 0.05
    network.faults.lossBurst = 10
    let got = exchange(network, count: 50_000)
    var bursts = 0
    var previous = -1
    for (number, _) in got {
      if number != previous + 1 { bursts += 1 }
      previous = number
    }
    let lost = Double(network.counters.lost)
    #expect(lost > 50_000 * 0.03 && lost < 50_000 * 0.07, "\(lost), seed \(runSeed)")
    #expect(lost / Double(bursts) > 7 && lost / Double(bursts) < 13, "\(lost) in \(bursts), seed \(runSeed)")
  }

  @Test func `duplication`() {
    let network = network()
    network.faults.duplication = 0.05
    network.faults.duplicationDelay = 100_000...200_000
    let got = exchange(network, count: count)
    let duplicated = network.counters.duplicated
    #expect(isLikely(duplicated, of: count, 0.05), "\(duplicated), seed \(runSeed)")
    #expect(got.count == count + Int(duplicated))
    var first: [Int: UInt64] = [:]
    for (number, time) in got {
      if let before = first[number] { #expect(time - before >= 100_000 && time - before < 210_000) } else { first[number] = time }
    }
    #expect(first.count == count)
  }

  @Test func `reordering`() {
    let network = network()
    network.faults.reordering = 0.02
    network.faults.reorderingDelay = 50_000...60_000
    let got = exchange(network, count: count)
    let reordered = network.counters.reordered
    #expect(isLikely(reordered, of: count, 0.02), "\(reordered), seed \(runSeed)")
    var overtaken: UInt64 = 0
    var highest = -1
    for (number, _) in got {
      if number < highest { overtaken += 1 }
      highest = max(highest, number)
    }
    #expect(overtaken >= reordered - 30 && overtaken <= reordered, "\(overtaken) of \(reordered)")
    #expect(Set(got.map(\.number)).count == count)
  }

  @Test func `corruption of one bit is seen by checksums, or the frame goes nowhere`() {
    let network = network()
    network.faults.corruption = 0.1
    let got = exchange(network, count: count)
    let counters = network.counters
    #expect(isLikely(counters.corrupted, of: count, 0.1), "\(counters.corrupted), seed \(runSeed)")
    let seen = UInt64(got.count { $0.number < 0 })
    // A bit of 48 that say to whom: to nobody, or (a group bit) to everybody. Those that say from whom nobody checks.
    #expect(seen > counters.corrupted / 2 && seen <= counters.corrupted)
    let numbers = got.map(\.number).filter { $0 >= 0 }
    #expect(numbers == numbers.sorted() && numbers.allSatisfy { $0 < count })
    #expect(numbers.count + Int(seen + counters.unknownDestination) >= count)
  }

  @Test func `the canary corrupts what no checksum can see`() {
    let network = network()
    network.faults.corruption = 0.5
    network.faults.repairsChecksum = true
    let memory = Memory(100)
    var wrong = 0
    for _ in 0..<1000 {
      #expect(network.sendUDP(memory.bytes, from: 0, to: 1, sourcePort: 1, destinationPort: 2))
      let payload = network.next(until: UInt64.max)?.udp?.payload
      #expect(payload?.count == 100)
      if array(payload!).contains(where: { $0 != 0 }) { wrong += 1 }
    }
    #expect(wrong == network.counters.corrupted && isLikely(UInt64(wrong), of: 1000, 0.5))
  }

  @Test func `faults of one host are its own, and stop when told`() {
    let network = network()
    network.setFaults(Faults(loss: 1), from: 0)
    let memory = Memory(4)
    func answers(from: Int, to: Int) -> Bool {
      #expect(network.sendUDP(memory.bytes, from: from, to: to, sourcePort: 1, destinationPort: 2))
      return network.next(until: UInt64.max)?.host == to
    }
    #expect(!answers(from: 0, to: 1) && answers(from: 1, to: 0))
    network.faults = .none
    #expect(answers(from: 0, to: 1) && answers(from: 1, to: 0))
  }

  @Test func `a filter drops, delays and doubles exactly what it names`() {
    let network = network()
    var seen = 0
    network.filter = { frame, from in
      seen += 1
      switch (from, frame.u32(42)) {
      case (0, 3): return .drop
      case (0, 5): return .delay(100_000)
      case (0, 7): return .duplicate
      default: return .pass
      }
    }
    network.faults.duplicationDelay = 0...0
    let got = exchange(network, count: 10).map(\.number)
    #expect(got == [0, 1, 2, 4, 6, 7, 7, 8, 9, 5])
    #expect(seen == 10 && network.counters.filtered == 1)
  }
}

@Suite struct Topologies {
  @Test func `a partition cuts one direction until it is mended`() {
    let network = network(3)
    let memory = Memory(4)
    func reaches(_ from: Int, _ to: Int) -> Bool {
      #expect(network.sendUDP(memory.bytes, from: from, to: to, sourcePort: 1, destinationPort: 2))
      return network.next(until: UInt64.max)?.host == to
    }
    network.setPartition(true, from: 0, to: 1)
    #expect(!reaches(0, 1) && reaches(1, 0) && reaches(0, 2) && reaches(2, 1))
    #expect(network.counters(of: 1).partitioned == 1)
    network.setPartition(true, from: 1, to: 0)
    #expect(!reaches(0, 1) && !reaches(1, 0))
    network.setPartition(false, from: 0, to: 1)
    #expect(reaches(0, 1) && !reaches(1, 0))
    network.healPartitions()
    #expect(reaches(0, 1) && reaches(1, 0))
  }

  @Test func `partitions that come by themselves also end`() {
    let network = network(4)
    network.runPartitions(Schedule(interval: 10_000...20_000, duration: 50_000...100_000), until: 2_000_000)
    let memory = Memory(4)
    var sent: UInt64 = 0
    while network.now < 2_000_000 {
      for from in 0..<4 {
        for to in 0..<4 where to != from {
          if network.sendUDP(memory.bytes, from: from, to: to, sourcePort: 1, destinationPort: 2) { sent += 1 }
        }
      }
      while network.next(until: network.now + 3_000) != nil {}
    }
    while network.next(until: UInt64.max) != nil {}
    let cut = network.counters.partitioned
    #expect(cut > sent / 10 && cut < sent / 10 * 9, "\(cut) of \(sent)")
    for from in 0..<4 {
      for to in 0..<4 where to != from {
        #expect(network.sendUDP(memory.bytes, from: from, to: to, sourcePort: 1, destinationPort: 2))
        #expect(network.next(until: UInt64.max)?.host == to)
      }
    }
    #expect(network.counters.partitioned == cut && network.nextEventTime == UInt64.max)
  }

  @Test func `broadcasts reach all others, and nobody's address nobody`() {
    let network = network(4)
    let frame = Memory(60)
    EthernetFrame.emit(into: frame.bytes, destination: ethernetBroadcast, source: mac(1), type: EtherType.arp)
    #expect(network.send(frame.bytes, from: 1))
    var hosts: [Int] = []
    while let arrival = network.next(until: UInt64.max) { hosts.append(arrival.host) }
    #expect(hosts == [0, 2, 3])
    EthernetFrame.emit(into: frame.bytes, destination: 0x0200_0000_00FF, source: mac(1), type: EtherType.arp)
    #expect(network.send(frame.bytes, from: 1))
    #expect(network.next(until: UInt64.max) == nil)
    #expect(network.send(Memory(5).bytes, from: 1))
    #expect(network.next(until: UInt64.max) == nil)
    #expect(network.counters.unknownDestination == 2 && network.counters.flooded == 3)
    #expect(network.isConserved && network.inFlight == 0)
  }

  @Test func `addresses are learned from what hosts send`() {
    let network = SimulatedNetwork(seed: runSeed)
    for _ in 0..<3 { _ = network.addHost(HostOptions()) }
    let frame = Memory(60)
    func receivers(_ from: Int, _ source: UInt64, _ destination: UInt64) -> [Int] {
      EthernetFrame.emit(into: frame.bytes, destination: destination, source: source, type: 0x88B5)
      #expect(network.send(frame.bytes, from: from))
      var hosts: [Int] = []
      while let arrival = network.next(until: UInt64.max) { hosts.append(arrival.host) }
      return hosts
    }
    #expect(receivers(0, mac(0), mac(1)) == [1, 2])
    #expect(receivers(1, mac(1), mac(0)) == [0])
    #expect(receivers(0, mac(0), mac(1)) == [1])
    // Host 2 has not said anything.
    #expect(receivers(0, mac(0), mac(2)) == [2])
    #expect(receivers(2, mac(2), mac(0)) == [0])
    #expect(receivers(0, mac(0), mac(9)) == [])
    // A daemon that comes back may have another address, or have moved.
    #expect(receivers(2, mac(7), mac(0)) == [0])
    #expect(receivers(0, mac(0), mac(7)) == [2])
    #expect(receivers(1, mac(7), mac(0)) == [0])
    #expect(receivers(0, mac(0), mac(7)) == [1])
  }

  @Test func `a link that is down loses both ways`() {
    let network = network()
    let memory = Memory(4)
    network.setLinkUp(false, of: 1)
    #expect(network.sendUDP(memory.bytes, from: 0, to: 1, sourcePort: 1, destinationPort: 2))
    #expect(network.sendUDP(memory.bytes, from: 1, to: 0, sourcePort: 1, destinationPort: 2))
    #expect(network.next(until: UInt64.max) == nil)
    #expect(network.counters.linkDown == 2 && network.isConserved && network.inFlight == 0)
  }

  @Test func `a restart takes back what the host held, and changes its RSS key`() {
    let network = network(queues: 8)
    let memory = Memory(4)
    var held: [Packet] = []
    for _ in 0..<10 { held.append(network.allocate(for: 1)!) }
    for port in 0..<20 {
      #expect(network.sendUDP(memory.bytes, from: 0, to: 1, sourcePort: UInt16(port), destinationPort: 2))
    }
    network.advance(to: 1_000_000)
    func queues() -> [Int] {
      (0..<64).map {
        network.queue(of: 1, source: address(0), destination: address(1), sourcePort: UInt16($0), destinationPort: 1)
      }
    }
    let before = queues()
    #expect(network.held(by: 1) == 10 && network.inFlight == 20)
    network.restart(1)
    #expect(network.held(by: 1) == 0 && network.inFlight == 0 && network.isConserved)
    #expect(queues() != before)
  }

  @Test func `a host holds no more packets than it may`() {
    let network = SimulatedNetwork(seed: runSeed, buffers: 64)
    var options = HostOptions(mac: mac(0))
    options.packets = 10
    _ = network.addHost(options)
    _ = network.addHost(HostOptions(mac: mac(1)))
    func take(_ host: Int) -> [Packet] {
      var packets: [Packet] = []
      while let packet = network.allocate(for: host) { packets.append(packet) }
      return packets
    }
    let few = take(0)
    let rest = take(1)
    #expect(few.count == 10 && rest.count == 54)
    for packet in few { network.free(packet, of: 0) }
    for packet in rest { network.free(packet, of: 1) }
    #expect(network.isConserved && network.held(by: 0) == 0 && network.held(by: 1) == 0)
  }
}

@Suite struct Determinism {
  /// Everything at once: four hosts that send to each other under every fault.
  func run(_ seed: UInt64) -> SimulatedNetwork {
    var link = LinkOptions()
    link.jitter = 2_000
    link.queueLimit = 4_000
    let network = network(4, queues: 4, seed: seed, buffers: 4096, link: link)
    network.faults = Faults(loss: 0.02, duplication: 0.02, reordering: 0.05, corruption: 0.02)
    network.runPartitions(Schedule(interval: 100_000...400_000, duration: 50_000...200_000), until: 3_000_000)
    var random = RandomStream(seed: seed, name: "senders")
    let memory = Memory(1400)
    while network.now < 4_000_000 {
      let from = Int(random.below(4))
      // Most of it goes to one host, whose cable is too narrow for it.
      let to = from != 0 && random.below(2) == 0 ? 0 : (from + 1 + Int(random.below(3))) % 4
      let payload = memory.bytes.slice(0, to: 4 + Int(random.below(1396)))
      payload.set32(0, UInt32(truncatingIfNeeded: random.next()))
      _ = network.sendUDP(
        payload, from: from, queue: Int(random.below(4)), to: to, sourcePort: UInt16(random.below(1000)),
        destinationPort: 2)
      network.advance(to: network.now + random.below(600))
      let host = Int(random.below(4))
      while network.receive(host: host, queue: Int(random.below(4))) != nil {}
      if random.below(2_000) == 0 { network.restart(host) }
    }
    network.advance(to: 10_000_000)
    return network
  }

  @Test func `the same seed gives the same run, another one another`() {
    let first = run(runSeed)
    let second = run(runSeed)
    #expect(first.traceHash == second.traceHash && first.counters == second.counters)
    #expect(run(runSeed &+ 1).traceHash != first.traceHash)
    let counters = first.counters
    #expect(counters.lost > 0 && counters.duplicated > 0 && counters.reordered > 0 && counters.corrupted > 0)
    #expect(counters.partitioned > 0 && counters.queueDrops > 0, "\(counters)")
  }

  @Test(arguments: 0..<8)
  func `every buffer is somewhere, and every frame has become something`(number: Int) {
    let network = run(runSeed &+ UInt64(number))
    #expect(network.isConserved, "seed \(runSeed)")
    for host in 0..<4 {
      #expect(network.held(by: host) == 0)
      for queue in 0..<4 { while network.receive(host: host, queue: queue) != nil {} }
    }
    network.advance(to: network.now)
    #expect(network.inFlight == 0)
    let c = network.counters
    #expect(
      c.sent + c.duplicated + c.flooded == c.lost + c.filtered + c.unknownDestination + c.partitioned + c.queueDrops
        + c.overflowed + c.foreign + c.delivered + c.linkDown + floods(c), "seed \(runSeed)")
  }

  /// A frame that was flooded is replaced by its copies.
  private func floods(_ counters: NetworkCounters) -> UInt64 { counters.flooded / 3 }

  @Test func `options of a swarm vary with the seed`() {
    let swarms = (0..<200).map { Swarm(seed: runSeed &+ $0) }
    #expect(Swarm(seed: runSeed) == swarms[0])
    for isOn: (Swarm) -> Bool in [
      { $0.faults.loss > 0 }, { $0.faults.duplication > 0 }, { $0.faults.reordering > 0 }, { $0.faults.corruption > 0 },
      { $0.link.jitter > 0 }, { $0.partitions != nil }, { $0.restarts != nil },
    ] {
      let count = swarms.count { isOn($0) }
      #expect(count > 20 && count < 180)
    }
  }
}

@Suite struct OwnershipTraps {
  @Test func `a packet that is freed twice, or freed after it was sent, traps`() async {
    await #expect(processExitsWith: .failure) {
      let network = SimulatedNetwork(seed: 1)
      let host = network.addHost(HostOptions())
      let packet = network.allocate(for: host)!
      network.free(packet, of: host)
      network.free(packet, of: host)
    }
    await #expect(processExitsWith: .failure) {
      let network = SimulatedNetwork(seed: 1)
      let host = network.addHost(HostOptions())
      let packet = network.allocate(for: host)!
      _ = network.transmit(packet, from: host)
      network.free(packet, of: host)
    }
  }
}
