import CLinux
import CMachnetABI
import EngineBench
import MachnetChannel
import Testing

@testable import MachnetEngine

let loopback = ip(127, 0, 0, 1)

/// One daemon without ports, stepped by the test.
@safe final class House {
  let directory: TestDirectory
  let control: EngineControl
  let channel: TestChannel
  private var engine: Engine<NoPackets>
  /// Safety: what the engine's clock reads, if it stands still; owned.
  private let time: UnsafeMutablePointer<UInt64>

  /// - Parameter standsStill: time does not pass, however slow the machine is.
  init(
    hostAddresses: [UInt32] = [], stallMicroseconds: Int = 1000, endpoints: UInt32 = 8, standsStill: Bool = false
  ) {
    unsafe time = .allocate(capacity: 1)
    unsafe time.initialize(to: 1_000_000)
    directory = TestDirectory(hostAddresses: hostAddresses)
    var options = EngineOptions(index: 0, directory: directory.directory)
    options.localStallMicroseconds = stallMicroseconds
    if standsStill { unsafe options.virtualTime = UnsafePointer(time) }
    control = EngineControl(options: options)!
    channel = TestChannel(identifier: 7, endpoints: endpoints)
    engine = Engine<NoPackets>(control: control)
    _ = try! unsafe control.addChannel(
      identifier: 7, base: channel.base, size: channel.size, doorbell: channel.doorbell)
  }

  deinit { unsafe time.deallocate() }

  /// One iteration; whether there was anything to do.
  func step() -> Bool { engine.iterate() }
  var activeCount: Int { engine.core.activeCount }
  var liveCount: Int { engine.core.liveCount }

  func open(
    _ index: UInt32, _ address: UInt32, _ port: UInt16, netns: UInt16 = 0, peer: (UInt32, UInt16)? = nil,
    reusePort: Bool = false
  ) -> Application {
    let application = Application(channel, index, directory.directory)
    var identity = EndpointIdentity(address, port, application, netns: netns, peer: peer)
    identity.reusePort = reusePort
    _ = try! control.openEndpoint(application.reference, identity)
    return application
  }
}

@Suite struct LocalDelivery {
  @Test func `a datagram to a loopback address reaches the endpoint bound there`() {
    let house = House()
    let alice = house.open(0, 0, 1000)
    let bob = house.open(1, loopback, 2000)
    _ = house.step()
    #expect(alice.send([1, 2, 3], to: loopback, 2000, ttl: 9, tos: 4))
    #expect(house.step())
    #expect(
      bob.receive()
        == Received(
          payload: [1, 2, 3], remote: loopback, remotePort: 1000, local: loopback, localPort: 2000, ttl: 9, tos: 4,
          interface: 1))
    #expect(bob.receive() == nil)
    #expect(house.control.counters(of: alice.reference)?.txDatagrams == 1)
    #expect(house.control.counters(of: bob.reference)?.rxBytes == 3)
  }

  @Test func `every length arrives whole`() {
    let house = House()
    let alice = house.open(0, loopback, 1000)
    let bob = house.open(1, 0, 2000)
    for length in Array(0...260) + [1471, 1472, 1473, 9000, 65_506, 65_507] {
      let payload = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ length) }
      #expect(alice.send(payload, to: loopback, 2000))
      _ = house.step()
      #expect(bob.receive()?.payload == payload, "length \(length)")
    }
  }

  @Test func `a connected endpoint comes before one bound to the address, and that before the wildcard`() {
    let house = House()
    let sender = house.open(0, loopback, 1000)
    let other = house.open(1, loopback, 1001)
    let wildcard = house.open(2, 0, 2000)
    let bound = house.open(3, loopback, 2000)
    let connected = house.open(4, loopback, 2000, peer: (loopback, 1000))
    _ = house.step()
    #expect(sender.send([1], to: loopback, 2000))
    #expect(other.send([2], to: loopback, 2000))
    #expect(other.send([3], to: ip(127, 0, 0, 2), 2000))
    _ = house.step()
    #expect(connected.receive()?.payload == [1])
    #expect(bound.receive()?.payload == [2])
    #expect(wildcard.receive()?.payload == [3])
    // Each got its one datagram and no other.
    #expect(connected.receive() == nil && bound.receive() == nil && wildcard.receive() == nil)
    // Disconnected, it is the latest of two with one address and gets what the other got.
    _ = try! house.control.connectEndpoint(connected.reference, peerAddress: 0, peerPort: 0, localAddress: loopback)
    _ = house.step()
    #expect(other.send([4], to: loopback, 2000))
    _ = house.step()
    #expect(connected.receive()?.payload == [4])
  }

  @Test func `a REUSEPORT group shares flows and keeps each flow at one member`() {
    let house = House(endpoints: 16)
    let members = (0..<4).map { house.open($0, loopback, 2000, reusePort: true) }
    let senders = (4..<16).map { house.open($0, loopback, UInt16(3000 + 17 * $0)) }
    _ = house.step()
    for _ in 0..<2 { for sender in senders { #expect(sender.send([1], to: loopback, 2000)) } }
    _ = house.step()
    var seen: [UInt16: Set<Int>] = [:]
    for (number, member) in members.enumerated() {
      while let datagram = member.receive() { seen[datagram.remotePort, default: []].insert(number) }
    }
    #expect(seen.count == senders.count)
    #expect(seen.values.allSatisfy { $0.count == 1 })
    #expect(Set(seen.values.flatMap { $0 }).count > 1)
  }

  @Test func `loopback does not cross network namespaces`() {
    let house = House(hostAddresses: [ip(10, 1, 1, 1)])
    let inside = house.open(0, loopback, 2000, netns: 1)
    let outside = house.open(1, 0, 2000, netns: 0)
    let sender = house.open(2, loopback, 1000, netns: 1)
    let host = house.open(3, 0, 1000, netns: 0)
    _ = house.step()
    #expect(sender.send([1], to: loopback, 2000))
    #expect(host.send([2], to: loopback, 2000))
    #expect(host.send([3], to: ip(10, 1, 1, 1), 2000))
    #expect(sender.send([4], to: ip(10, 1, 1, 1), 2000))
    _ = house.step()
    #expect(inside.receive()?.payload == [1])
    #expect(outside.receive()?.payload == [2])
    let third = outside.receive()
    #expect(third?.payload == [3] && third?.remote == ip(10, 1, 1, 1))
    #expect(inside.receive() == nil && outside.receive() == nil)
    #expect(house.control.counters()[.noRoute] == 1)
  }

  @Test func `a connected sender to nobody is told ECONNREFUSED`() {
    let house = House()
    let alice = house.open(0, loopback, 1000, peer: (loopback, 2000))
    let bob = house.open(1, loopback, 1001)
    _ = house.step()
    #expect(alice.send([1], to: loopback, 2000))
    #expect(bob.send([1], to: loopback, 2000))
    _ = house.step()
    #expect(alice.takeError() == 111)
    #expect(bob.takeError() == 0)
    #expect(house.control.counters()[.noLocalReceiver] == 2)
  }

  @Test func `addresses that are not the sender's are refused, others are used`() {
    let house = House(hostAddresses: [ip(10, 1, 1, 1)])
    let alice = house.open(0, 0, 1000)
    let bob = house.open(1, 0, 2000)
    _ = house.step()
    #expect(alice.send([1], to: loopback, 2000, source: ip(8, 8, 8, 8)))
    #expect(alice.send([2], to: loopback, 2000, source: ip(127, 0, 0, 9)))
    #expect(alice.send([3], to: ip(224, 0, 0, 1), 2000))
    #expect(alice.send([4], to: ip(255, 255, 255, 255), 2000))
    #expect(alice.send([5], to: loopback, 0))
    _ = house.step()
    #expect(bob.receive()?.remote == ip(127, 0, 0, 9))
    #expect(bob.receive() == nil)
    #expect(house.control.counters()[.sourceRefused] == 1)
    #expect(house.control.counters()[.destinationRefused] == 3)
  }

  /// A record of 65,507 bytes in segments of 1 would be work for a tenth of a second, at each visit.
  @Test func `a record with more segments than the kernel takes is dropped`() {
    let house = House()
    let alice = house.open(0, loopback, 1000)
    let bob = house.open(1, loopback, 2000)
    _ = house.step()
    #expect(alice.send([UInt8](repeating: 1, count: 129), to: loopback, 2000, segment: 1))
    #expect(alice.send([UInt8](repeating: 2, count: 65_507), to: ip(10, 99, 0, 1), 2000, segment: 1))
    #expect(alice.send([UInt8](repeating: 3, count: 128), to: loopback, 2000, segment: 1))
    _ = house.step()
    var got = 0
    while let datagram = bob.receive() {
      #expect(datagram.payload == [3])
      got += 1
    }
    #expect(got == 128 && house.control.counters().drops.map(\.reason) == [.messageTooLong])
    #expect(house.control.counters()[.messageTooLong] == 2)
  }

  @Test func `segments become datagrams`() {
    let house = House()
    let alice = house.open(0, loopback, 1000)
    let bob = house.open(1, loopback, 2000)
    let payload = (0..<1000).map { UInt8(truncatingIfNeeded: $0) }
    #expect(alice.send(payload, to: loopback, 2000, segment: 300))
    _ = house.step()
    var lengths: [Int] = []
    var together: [UInt8] = []
    while let datagram = bob.receive() {
      lengths.append(datagram.payload.count)
      together += datagram.payload
    }
    #expect(lengths == [300, 300, 300, 100])
    #expect(together == payload)
  }

  @Test func `segments come in one piece to a receiver that asks for it`() {
    let house = House()
    let alice = house.open(0, loopback, 1000)
    let bob = house.open(1, loopback, 2000)
    bob.want(together: true)
    _ = house.step()
    let payload = (0..<1000).map { UInt8(truncatingIfNeeded: $0) }
    #expect(alice.send(payload, to: loopback, 2000, segment: 300))
    #expect(alice.send([1, 2], to: loopback, 2000, segment: 300))
    _ = house.step()
    #expect(bob.nextSegment == 300)
    #expect(bob.receive()?.payload == payload)
    #expect(bob.nextSegment == 0)
    #expect(bob.receive()?.payload == [1, 2])
    #expect(bob.receive() == nil)
  }

  @Test func `a receive limit holds what the kernel's buffer would, and what is taken makes room`() {
    let house = House()
    let alice = house.open(0, loopback, 1000)
    let bob = house.open(1, loopback, 2000)
    // As Linux 6.x: 832 bytes for the smallest datagram, 2304 for one of 1400 bytes.
    bob.want(limit: 8192)
    _ = house.step()
    for (length, fitting) in [(1, 9), (1400, 3)] {
      for _ in 0..<20 { #expect(alice.send([UInt8](repeating: 7, count: length), to: loopback, 2000)) }
      while house.step() {}
      var count = 0
      while bob.receive() != nil { count += 1 }
      #expect(count == fitting, "of \(length) bytes")
    }
    #expect(bob.rxDrops == 11 + 17)
    // Without a limit the ring is the limit again.
    bob.want()
    for _ in 0..<20 { #expect(alice.send([1], to: loopback, 2000)) }
    while house.step() {}
    var count = 0
    while bob.receive() != nil { count += 1 }
    #expect(count == 20)
  }

  @Test func `a receiver that lies about what it took harms itself alone`() {
    let house = House()
    let alice = house.open(0, loopback, 1000)
    let bob = house.open(1, loopback, 2000)
    let carol = house.open(2, loopback, 2001)
    bob.want(limit: 2304)
    // (What the word says when the endpoint is opened is where the engine begins.)
    _ = house.step()
    bob.claim(taken: 1 << 40)
    #expect(alice.send([1], to: loopback, 2000))
    #expect(alice.send([2], to: loopback, 2001))
    while house.step() {}
    #expect(bob.receive() == nil)
    #expect(carol.receive()?.payload == [2])
  }

  @Test func `segments that find a full ring go on where they stopped`() {
    let house = House(stallMicroseconds: 60_000_000)
    let alice = house.open(0, loopback, 1000)
    let bob = house.open(1, loopback, 2000)
    // More datagrams than the ring has room for, in the middle of a record.
    let payload = (0..<25 * 2560).map { UInt8(truncatingIfNeeded: $0 >> 5) }
    for record in 0..<25 { #expect(alice.send(Array(payload[record * 2560..<(record + 1) * 2560]), to: loopback, 2000, segment: 20)) }
    var together: [UInt8] = []
    for _ in 0..<100 where together.count < payload.count {
      _ = house.step()
      for _ in 0..<50 { together += bob.receive()?.payload ?? [] }
    }
    #expect(together == payload)
  }

  @Test func `what was sent before a close arrives`() {
    // A close waits for two milliseconds at most.
    let house = House(standsStill: true)
    let alice = house.open(0, loopback, 1000)
    let bob = house.open(1, loopback, 2000)
    _ = house.step()
    for number in 0..<100 { #expect(alice.send([UInt8(number)], to: loopback, 2000)) }
    let ticket = try! house.control.closeEndpoint(alice.reference)
    var rounds = 0
    while !house.control.isDone(ticket) && rounds < 20 {
      _ = house.step()
      rounds += 1
    }
    #expect(house.control.isDone(ticket))
    for number in 0..<100 { #expect(bob.receive()?.payload == [UInt8(number)]) }
    #expect(house.control.counters(of: alice.reference) == nil)
    // Its bit in the ready map means nothing now.
    alice.announce()
    #expect(!house.step())
  }

  @Test func `what a program sent before its end arrives`() {
    let house = House(standsStill: true)
    let bob = house.open(1, loopback, 2000)
    let other = TestChannel(identifier: 8)
    _ = try! unsafe house.control.addChannel(identifier: 8, base: other.base, size: other.size, doorbell: other.doorbell)
    let senders = [Application(other, 0, house.directory.directory), Application(other, 1, house.directory.directory)]
    for (index, sender) in senders.enumerated() {
      _ = try! house.control.openEndpoint(sender.reference, EndpointIdentity(loopback, UInt16(3000 + index), sender))
    }
    _ = house.step()
    for number in 0..<100 {
      for sender in senders { #expect(sender.send([UInt8(number)], to: loopback, 2000)) }
    }
    let ticket = try! house.control.removeChannel(identifier: 8)
    var rounds = 0
    while !house.control.isDone(ticket) && rounds < 20 {
      _ = house.step()
      rounds += 1
    }
    #expect(house.control.isDone(ticket))
    var counts = [Int](repeating: 0, count: 100)
    while let datagram = bob.receive() { counts[Int(datagram.payload[0])] += 1 }
    #expect(counts == [Int](repeating: 2, count: 100))
  }
}

@Suite struct BackPressure {
  @Test func `a full receiver holds its sender back and nobody else, and nothing is lost`() {
    let house = House(stallMicroseconds: 60_000_000)
    let alice = house.open(0, loopback, 1000)
    let slow = house.open(1, loopback, 2000)
    let carol = house.open(2, loopback, 1001)
    let quick = house.open(3, loopback, 2001)
    let total = 5000
    var sent = 0
    var received = 0
    var refused = false
    for round in 0..<100_000 where received < total {
      while sent < total && alice.send([UInt8(truncatingIfNeeded: sent), UInt8(sent >> 8)], to: loopback, 2000) { sent += 1 }
      if sent < total { refused = true }
      #expect(carol.send([9], to: loopback, 2001))
      _ = house.step()
      #expect(quick.receive()?.payload == [9])
      // The receiver wakes up late.
      if round > 200, let datagram = slow.receive() {
        #expect(datagram.payload == [UInt8(truncatingIfNeeded: received), UInt8(received >> 8)])
        received += 1
      }
    }
    #expect(received == total && refused)
    #expect(house.control.counters().drops.isEmpty)
  }

  @Test func `a receiver that never reads costs its sender one stall, then drops at once until it is half empty`() {
    let house = House(stallMicroseconds: 0)
    let alice = house.open(0, loopback, 1000)
    let dead = house.open(1, loopback, 2000)
    _ = house.step()
    let capacity = Int(TestChannel.rxCapacity) / 128
    for _ in 0..<3 * capacity {
      while !alice.send([1], to: loopback, 2000) { _ = house.step() }
    }
    while house.step() {}
    let drops = house.control.counters()
    #expect(drops[.receiverStalled] == 1)
    #expect(drops[.receiverSlow] == UInt64(2 * capacity - 1))
    #expect(dead.rxDrops == UInt64(2 * capacity))
    // Not yet half empty: still slow.
    for _ in 0..<capacity / 2 - 1 { #expect(dead.receive() != nil) }
    #expect(alice.send([2], to: loopback, 2000))
    _ = house.step()
    #expect(dead.rxDrops == UInt64(2 * capacity + 1))
    #expect(dead.receive() != nil)
    #expect(alice.send([3], to: loopback, 2000))
    _ = house.step()
    #expect(dead.rxDrops == UInt64(2 * capacity + 1))
    var last: [UInt8] = []
    while let datagram = dead.receive() { last = datagram.payload }
    #expect(last == [3])
  }

  @Test func `a sender that waits for room is woken once its ring is half empty`() {
    let house = House()
    let alice = house.open(0, loopback, 1000)
    let bob = house.open(1, loopback, 2000)
    _ = house.step()
    while alice.send([1], to: loopback, 2000) {}
    let word = unsafe alice.channel.block(0) + Int(MN_OFFSET_ENDPOINT_TX_WAIT)
    _ = unsafe mn_exchange_u32(word, UInt32(MN_WAIT_ARMED))
    var visits = 0
    while unsafe mn_load_relaxed_u32(word) == UInt32(MN_WAIT_ARMED) && visits < 1000 {
      _ = house.step()
      while bob.receive() != nil {}
      visits += 1
    }
    #expect(unsafe mn_load_relaxed_u32(word) == UInt32(MN_WAIT_SIGNALLED))
    #expect(mn_linux_eventfd_take(alice.eventDescriptor) == 1)
    // 2,048 records of 128 bytes: half of them, 32 a visit.
    #expect(visits == 32)
  }

  @Test func `a sleeping receiver is woken once for many datagrams`() {
    let house = House()
    let alice = house.open(0, loopback, 1000)
    let bob = house.open(1, loopback, 2000)
    _ = house.step()
    for _ in 0..<100 { #expect(alice.send([1], to: loopback, 2000)) }
    _ = unsafe mn_exchange_u32(bob.channel.block(1) + Int(MN_OFFSET_ENDPOINT_RX_WAIT), UInt32(MN_WAIT_ARMED))
    while house.step() {}
    #expect(mn_linux_eventfd_take(bob.eventDescriptor) == 1)
    #expect(house.control.counters()[.wakeups] == 1)
  }
}

@Suite struct DamagedChannels {
  @Test func `lies in a TX ring end the channel and nothing else`() {
    let lies: [(Application) -> Void] = [
      { unsafe mn_store_release_u64($0.channel.txRing(0), 1) },  // not a multiple of 64
      { unsafe mn_store_release_u64($0.channel.txRing(0), 1 << 40) },  // more than the ring holds
      {
        // A length that reaches over the tail.
        let record = $0.writer.reserve(10)!
        unsafe record.header.pointee.length = 100_000
        $0.writer.commit(record)
      },
      {
        let record = $0.writer.reserve(10)!
        unsafe record.header.pointee.kind = 77
        $0.writer.commit(record)
      },
    ]
    for (number, lie) in lies.enumerated() {
      let house = House()
        let liar = house.open(0, loopback, 1000)
      let other = TestChannel(identifier: 8)
      _ = try! unsafe house.control.addChannel(
        identifier: 8, base: other.base, size: other.size, doorbell: other.doorbell)
      let alice = Application(other, 0, house.directory.directory)
      let bob = Application(other, 1, house.directory.directory)
      _ = try! house.control.openEndpoint(alice.reference, EndpointIdentity(loopback, 3000, alice))
      _ = try! house.control.openEndpoint(bob.reference, EndpointIdentity(loopback, 3001, bob))
      _ = house.step()
      let before = unsafe mn_load_relaxed_u64(liar.channel.txRing(0))
      lie(liar)
      let isIndexLie = unsafe mn_load_relaxed_u64(liar.channel.txRing(0)) != before
      if isIndexLie {
        _ = unsafe mn_fetch_or_u64(liar.channel.ready(), 1)
      } else {
        liar.announce()
      }
      _ = house.step()
      #expect(house.channel.isDamaged, "lie \(number)")
      #expect(house.control.nextFault() == .channelDamaged(7))
      #expect(house.control.nextFault() == nil)
      #expect(alice.send([5], to: loopback, 3001))
      #expect(alice.send([6], to: loopback, 1000))
      _ = house.step()
      #expect(bob.receive()?.payload == [5])
      #expect(liar.receive() == nil)
      #expect(!other.isDamaged)
      let ticket = try! house.control.removeChannel(identifier: 7)
      _ = house.step()
      #expect(house.control.isDone(ticket))
    }
  }

  @Test func `a receiver whose head is a lie only hurts itself`() {
    let house = House(stallMicroseconds: 0)
    let alice = house.open(0, loopback, 1000)
    let liar = house.open(1, loopback, 2000)
    let bob = house.open(2, loopback, 2001)
    _ = house.step()
    unsafe mn_store_release_u64(liar.channel.rxRing(1) + 64, 1 << 50)
    for _ in 0..<4000 {
      while !alice.send([1], to: loopback, 2000) { _ = house.step() }
    }
    while house.step() {}
    #expect(alice.send([2], to: loopback, 2001))
    while house.step() {}
    #expect(bob.receive()?.payload == [2])
    #expect(!house.channel.isDamaged)
  }

  @Test func `a header that does not describe the mapping is refused`() {
    let house = House()
    let channel = TestChannel(identifier: 9)
    #expect(throws: EngineControl.Refusal.badChannel) {
      try unsafe house.control.addChannel(
        identifier: 9, base: channel.base, size: channel.size - 4096, doorbell: channel.doorbell)
    }
    #expect(throws: EngineControl.Refusal.unknown) { try house.control.removeChannel(identifier: 9) }
  }
}

@Suite struct ManyEndpoints {
  @Test func `idle endpoints are not looked at and active ones are found in any channel`() {
    let house = House()
    let channels = (100..<140).map { TestChannel(identifier: $0, endpoints: 2) }
    var applications: [Application] = []
    for channel in channels {
      _ = try! unsafe house.control.addChannel(
        identifier: channel.identifier, base: channel.base, size: channel.size, doorbell: channel.doorbell)
      for index in 0..<UInt32(2) {
        let application = Application(channel, index, house.directory.directory)
        _ = try! house.control.openEndpoint(
          application.reference, EndpointIdentity(loopback, UInt16(5000 + applications.count), application))
        applications.append(application)
      }
    }
    _ = house.step()
    #expect(house.activeCount == 0)
    for number in applications.indices {
      let next = (number + 1) % applications.count
      #expect(applications[number].send([7], to: loopback, UInt16(5000 + next)))
      // Every channel is looked at once in (channels / 8) iterations.
      for _ in 0..<6 { _ = house.step() }
      #expect(applications[next].receive()?.payload == [7])
    }
    // More than 32 are active, so they are let go soon.
    for _ in 0..<200 { _ = house.step() }
    #expect(house.activeCount <= 32)
    for channel in channels { _ = try! house.control.removeChannel(identifier: channel.identifier) }
    _ = house.step()
    #expect(house.activeCount == 0 && house.liveCount == 1)
  }
}
