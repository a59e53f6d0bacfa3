import CMachnetABI
import EngineBench
import MachnetChannel
import MachnetWire
import Testing

@testable import MachnetEngine

/// Builds a frame with the given layers, right in every checksum.
func udpFrame(
  to mac: UInt64 = macB, from: UInt64 = macA, source: UInt32 = addressA, destination: UInt32 = addressB,
  sourcePort: UInt16 = 1000, destinationPort: UInt16 = 2000, payload: [UInt8], options: Int = 0, padding: Int = 0,
  checksum: Bool = true
) -> [UInt8] {
  let length = 8 + payload.count
  let headerLength = 20 + options
  var data = [UInt8](repeating: 0, count: 14 + headerLength + length + padding)
  unsafe data.withUnsafeMutableBytes { raw in
    let bytes = unsafe Bytes(unsafe: raw.baseAddress!, count: raw.count)
    EthernetFrame.emit(into: bytes, destination: mac, source: from, type: EtherType.ipv4)
    let header = IPv4Header(
      totalLength: headerLength + length, ipProtocol: IPProtocol.udp, source: source, destination: destination)
    header.emit(into: bytes.slice(14))
    if options > 0 {
      bytes.set8(14, UInt8(0x40 | headerLength / 4))
      for at in 0..<options { bytes.set8(34 + at, 1) }
      bytes.set16(24, 0)
      var sum = Checksum()
      sum.add(bytes.slice(14, to: 14 + headerLength))
      bytes.set16(24, sum.value)
    }
    let at = 14 + headerLength
    for (index, byte) in payload.enumerated() { bytes.set8(at + 8 + index, byte) }
    var sum = UDPDatagram.pseudoHeader(source: source, destination: destination, length: length)
    sum.add(bytes.slice(at + 8, to: at + length))
    UDPDatagram.emit(
      into: bytes.slice(at), sourcePort: sourcePort, destinationPort: destinationPort, length: length, sum: sum)
    if !checksum { bytes.set16(at + 6, 0) }
  }
  return data
}

@Suite struct OverTheWire {
  @Test func `datagrams of every interesting length cross, both ways, whole`() {
    for mtu in [576, 1500] {
      let pair = Pair(mtu: mtu)
      let alice = pair.a.open(0, 0, 1000)
      let bob = pair.b.open(0, addressB, 2000)
      for length in [0, 1, 2, 17, 63, 64, 547, 548, 549, 1471, 1472, 1473, 2953, 9000, 65_506, 65_507] {
        let payload = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ length) }
        #expect(alice.send(payload, to: addressB, 2000, ttl: 7, tos: 0x10))
        pair.settle()
        let got = bob.receive()
        #expect(got?.payload == payload, "length \(length)")
        #expect(got?.remote == addressA && got?.remotePort == 1000 && got?.local == addressB && got?.ttl == 7)
        #expect(got?.tos == 0x10)
        #expect(bob.send(payload, to: addressA, 1000))
        pair.settle()
        #expect(alice.receive()?.payload == payload, "length \(length)")
      }
      #expect(pair.there.seen.allSatisfy { $0.count <= mtu + 14 })
      #expect(pair.a.control.counters().drops.isEmpty && pair.b.control.counters().drops.isEmpty)
      #expect(pair.a.end() && pair.b.end())
    }
  }

  @Test func `a datagram of exactly the MTU is one frame and one byte more is two`() {
    for (length, frames) in [(1472, 1), (1473, 2), (65_507, 45)] {
      let pair = Pair()
      let alice = pair.a.open(0, 0, 1000)
      let bob = pair.b.open(0, 0, 2000)
      #expect(alice.send([1], to: addressB, 2000))
      pair.settle()
      pair.there.seen = []
      #expect(alice.send([UInt8](repeating: 1, count: length), to: addressB, 2000))
      pair.settle()
      #expect(pair.there.seen.count == frames)
      #expect(bob.receive() != nil && bob.receive()?.payload.count == length)
    }
  }

  @Test func `padding, options and a missing UDP checksum are accepted`() {
    let pair = Pair()
    let bob = pair.b.open(0, 0, 2000)
    pair.there.frames = [
      udpFrame(payload: [1, 2, 3], padding: 15), udpFrame(payload: [4], options: 8),
      udpFrame(payload: [5], options: 40, padding: 3), udpFrame(payload: [6], checksum: false),
      udpFrame(to: ethernetBroadcast, payload: [7]),
    ]
    pair.b.settle()
    #expect([bob.receive(), bob.receive(), bob.receive(), bob.receive(), bob.receive()].map { $0?.payload }
      == [[1, 2, 3], [4], [5], [6], [7]])
    #expect(pair.b.control.counters().drops.isEmpty)
  }

  @Test func `each kind of bad frame has its own name`() {
    func change(_ frame: [UInt8], _ at: Int, _ value: UInt8) -> [UInt8] {
      var frame = frame
      frame[at] = value
      return frame
    }
    let good = udpFrame(payload: [1, 2, 3])
    let cases: [([UInt8], DropReason)] = [
      ([], .frameTruncated), (Array(good.prefix(13)), .frameTruncated),
      (udpFrame(to: macA, payload: []), .frameNotForUs),
      (change(good, 13, 0xFF), .etherTypeUnknown), (change(good, 12, 0x86), .etherTypeUnknown),
      (Array(good.prefix(14)), .ipMalformed), (Array(good.prefix(33)), .ipMalformed),
      (change(good, 14, 0x65), .ipMalformed), (change(good, 14, 0x44), .ipMalformed),
      (Array(good.dropLast()), .ipMalformed),
      (change(good, 24, good[24] ^ 1), .ipChecksum),
      (udpFrame(destination: ip(10, 0, 0, 3), payload: []), .ipNotForUs),
      (udpFrame(source: loopback, payload: []), .ipMartian), (udpFrame(source: 0, payload: []), .ipMartian),
      (udpFrame(source: addressB, payload: []), .ipMartian), (udpFrame(source: ip(224, 0, 0, 1), payload: []), .ipMartian),
      (change(good, 39, 200), .udpMalformed), (change(good, 39, 7), .udpMalformed),
      (change(good, 42, 9), .udpChecksum),
      (udpFrame(destinationPort: 2001, payload: []), .udpNoReceiver),
      ([0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2, 0, 0, 0, 0, 9, 8, 6] + [UInt8](repeating: 0, count: 28), .arpMalformed),
    ]
    for (number, (frame, reason)) in cases.enumerated() {
      let pair = Pair()
      let bob = pair.b.open(0, 0, 2000)
      pair.b.settle()
      pair.there.frames = [frame]
      pair.b.settle()
      #expect(bob.receive() == nil)
      #expect(pair.b.control.counters().drops.map(\.reason) == [reason], "case \(number)")
    }
  }

  @Test func `an ICMP echo is answered`() {
    let pair = Pair()
    pair.a.settle()
    pair.b.settle()
    pair.back.frames = []
    var frame = udpFrame(payload: [1, 2, 3, 4, 5])
    unsafe frame.withUnsafeMutableBytes { raw in
      let bytes = unsafe Bytes(unsafe: raw.baseAddress!, count: raw.count)
      var header = IPv4Header(totalLength: 33, ipProtocol: IPProtocol.icmp, source: addressA, destination: addressB)
      header.ttl = 1
      header.emit(into: bytes.slice(14))
      bytes.set32(34, 0x0800_0000)
      var sum = Checksum()
      sum.add(bytes.slice(34))
      bytes.set16(36, sum.value)
    }
    pair.there.frames = [frame]
    pair.b.settle()
    #expect(pair.back.frames.count == 1)
    var reply = pair.back.frames.first ?? []
    #expect(reply.count == frame.count)
    unsafe reply.withUnsafeMutableBytes { raw in
      let bytes = unsafe Bytes(unsafe: raw.baseAddress!, count: raw.count)
      let ethernet = EthernetFrame(bytes)!
      #expect(ethernet.destination == macA && ethernet.source == macB)
      let packet = IPv4Packet(ethernet.payload)!
      #expect(packet.isChecksumRight && packet.source == addressB && packet.destination == addressA && packet.ttl == 64)
      let message = ICMPMessage(packet.payload)!
      #expect(message.isChecksumRight && message.type == ICMPMessage.echoReply && message.payload.u8(4) == 5)
    }
  }

  @Test func `a connected sender hears that nobody listens, others do not`() {
    let pair = Pair()
    let connected = pair.a.open(0, addressA, 1000, peer: (addressB, 2000))
    let loose = pair.a.open(1, addressA, 1001)
    #expect(connected.send([1], to: addressB, 2000))
    #expect(loose.send([1], to: addressB, 2000))
    pair.settle()
    #expect(pair.b.control.counters()[.unreachablesSent] == 2)
    #expect(pair.a.control.counters()[.unreachablesReceived] == 2)
    #expect(connected.takeError() == 111)
    #expect(loose.takeError() == 0)
  }

  @Test func `port unreachables are limited`() {
    let pair = Pair()
    pair.b.settle()
    pair.there.frames = (0..<500).map { udpFrame(sourcePort: UInt16($0 + 1), payload: []) }
    pair.b.settle()
    let counters = pair.b.control.counters()
    #expect(counters[.udpNoReceiver] == 500)
    #expect(counters[.unreachablesSent] >= 50 && counters[.unreachablesSent] < 250)
    #expect(counters[.unreachablesSent] + counters[.unreachableRateLimited] == 500)
  }

  @Test func `DF and too long is EMSGSIZE`() {
    let pair = Pair()
    let alice = pair.a.open(0, 0, 1000)
    let bob = pair.b.open(0, 0, 2000)
    #expect(alice.send([UInt8](repeating: 1, count: 1473), to: addressB, 2000, dontFragment: true))
    #expect(alice.send([UInt8](repeating: 1, count: 1472), to: addressB, 2000, dontFragment: true))
    pair.settle()
    #expect(alice.takeError() == 90)
    #expect(bob.receive()?.payload.count == 1472)
    #expect(bob.receive() == nil)
    #expect(pair.there.seen.last.map { $0[20] & 0x40 } == 0x40)
  }

  @Test func `what is not on the link goes to the gateway`() {
    let wire = Cable()
    let host = Host(interface(addressA, macA, gateway: ip(10, 0, 0, 254)), inbound: Cable(), outbound: wire)
    let alice = host.open(0, 0, 1000)
    #expect(alice.send([1], to: ip(192, 0, 2, 9), 2000))
    #expect(alice.send([1], to: ip(10, 0, 0, 255), 2000))
    host.settle()
    let asked = wire.seen.filter { $0[12] == 8 && $0[13] == 6 }.map { Array($0[38..<42]) }
    // First the announcement of ourselves, then the question for the gateway.
    #expect(asked.contains([10, 0, 0, 254]) && !asked.contains([192, 0, 2, 9]))
    host.inbound.frames.append(arpReply(from: ip(10, 0, 0, 254), 0x0200_0000_00FE, to: addressA, macA))
    host.settle()
    #expect(wire.seen.last.map { Array($0[0..<6]) } == [2, 0, 0, 0, 0, 0xFE])
    #expect(wire.seen.last.map { Array($0[30..<34]) } == [192, 0, 2, 9])
    #expect(host.control.counters()[.destinationRefused] == 1)
    #expect(
      host.control.neighbours(port: 0).map { [$0.address, UInt32($0.mac & 0xFF)] } == [[ip(10, 0, 0, 254), 0xFE]])
  }

  @Test func `a port that takes nothing holds senders for a while, then frames are dropped, then it goes on`() {
    let pair = Pair()
    let alice = pair.a.open(0, 0, 1000)
    let bob = pair.b.open(0, 0, 2000)
    #expect(alice.send([0], to: addressB, 2000))
    pair.settle()
    #expect(bob.receive()?.payload == [0])
    pair.there.capacity = 0
    var sent = 0
    while pair.a.control.counters()[.portStalled] < 1000 {
      if alice.send([1], to: addressB, 2000) { sent += 1 }
      _ = pair.a.step()
    }
    pair.there.capacity = Int.max
    pair.settle()
    while bob.receive() != nil {}
    #expect(alice.send([2], to: addressB, 2000))
    pair.settle()
    #expect(bob.receive()?.payload == [2])
    #expect(pair.a.end() && pair.b.end())
  }

  @Test func `an empty pool holds senders back and loses nothing`() {
    let pair = Pair()
    pair.a.pool.limit = 3
    let alice = pair.a.open(0, 0, 1000)
    let bob = pair.b.open(0, 0, 2000)
    for number in 0..<200 { #expect(alice.send([UInt8(number)], to: addressB, 2000)) }
    pair.settle()
    var got: [UInt8] = []
    while let datagram = bob.receive() { got += datagram.payload }
    #expect(got == (0..<200).map { UInt8($0) })
    #expect(pair.a.end())
  }

  @Test func `segments cross as datagrams`() {
    let pair = Pair()
    let alice = pair.a.open(0, 0, 1000)
    let bob = pair.b.open(0, 0, 2000)
    let payload = (0..<60_000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
    #expect(alice.send(payload, to: addressB, 2000, segment: 1400))
    pair.settle()
    var got: [UInt8] = []
    while let datagram = bob.receive() {
      #expect(datagram.payload.count <= 1400)
      got += datagram.payload
    }
    #expect(got.count == payload.count && got.elementsEqual(payload))
  }
}

func arpReply(from: UInt32, _ mac: UInt64, to: UInt32, _ toMac: UInt64) -> [UInt8] {
  var frame = [UInt8](repeating: 0, count: 60)
  unsafe frame.withUnsafeMutableBytes { raw in
    let bytes = unsafe Bytes(unsafe: raw.baseAddress!, count: raw.count)
    EthernetFrame.emit(into: bytes, destination: toMac, source: mac, type: EtherType.arp)
    ARPPacket.emit(
      into: bytes.slice(14), operation: ARPPacket.reply, senderHardware: mac, senderProtocol: from,
      targetHardware: toMac, targetProtocol: to)
  }
  return frame
}

@Suite struct Fuzz {
  @Test func `random and mutated frames are delivered, answered or counted, and never trap`() {
    let seed = UInt64.random(in: 1...UInt64.max)
    print("SEED=\(seed)")
    var state = seed
    func next(_ bound: Int) -> Int {
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return Int(state >> 33) % bound
    }
    let pair = Pair()
    let bob = pair.b.open(0, 0, 2000)
    let connected = pair.b.open(1, addressB, 2001, peer: (addressA, 1001))
    pair.b.settle()
    // What a real sender makes, to be mutated.
    let alice = pair.a.open(0, 0, 1000)
    #expect(alice.send([UInt8](repeating: 5, count: 100), to: addressB, 2000))
    pair.settle()
    #expect(alice.send([UInt8](repeating: 5, count: 4000), to: addressB, 2000))
    while pair.a.step() {}
    var corpus = pair.there.seen + [
      udpFrame(payload: [1, 2, 3]), udpFrame(payload: [], options: 12), arpReply(from: addressA, macA, to: addressB, macB),
      udpFrame(sourcePort: 1001, destinationPort: 2001, payload: [9]), udpFrame(destinationPort: 9, payload: [9]),
    ]
    pair.there.frames = []
    // An unreachable about a datagram of `connected`.
    var unreachable = udpFrame(payload: [UInt8](repeating: 0, count: 28))
    let quoted = udpFrame(
      source: addressB, destination: addressA, sourcePort: 2001, destinationPort: 1001, payload: [])
    unsafe unreachable.withUnsafeMutableBytes { raw in
      let bytes = unsafe Bytes(unsafe: raw.baseAddress!, count: raw.count)
      IPv4Header(totalLength: 56, ipProtocol: IPProtocol.icmp, source: addressA, destination: addressB)
        .emit(into: bytes.slice(14))
      for index in 0..<28 { bytes.set8(42 + index, quoted[14 + index]) }
      ICMPMessage.emitUnreachable(into: bytes.slice(34, to: 70), code: 3)
    }
    corpus.append(unreachable)
    // The canary: the corpus as it is does something.
    pair.there.frames = corpus
    pair.b.settle()
    #expect(bob.receive() != nil && connected.receive() != nil && connected.takeError() == 111)
    while bob.receive() != nil {}
    pair.back.frames = []

    func events() -> UInt64 {
      let counters = pair.b.control.counters()
      return counters.drops.reduce(0) { $0 + $1.count } + counters[.echoReplies] + counters[.unreachablesReceived]
        + counters[.fragmentsReceived] + pair.b.control.counters(of: bob.reference)!.rxDatagrams
        + pair.b.control.counters(of: connected.reference)!.rxDatagrams
    }
    for round in 0..<20_000 {
      var frame = corpus[next(corpus.count)]
      switch next(8) {
      case 0:
        frame = (0..<next(120)).map { _ in UInt8(next(256)) }
      case 1:
        frame = Array(frame.prefix(next(frame.count + 1)))
      default:
        for _ in 0...next(4) { frame[next(frame.count)] = UInt8(next(256)) }
      }
      // Half of them with a right IP header checksum, so that the layers above see something.
      if frame.count >= 34 && next(2) == 0 {
        unsafe frame.withUnsafeMutableBytes { raw in
          let bytes = unsafe Bytes(unsafe: raw.baseAddress!, count: raw.count)
          let length = min(Int(bytes.u8(14) & 15) * 4, raw.count - 14)
          bytes.set16(24, 0)
          var sum = Checksum()
          sum.add(bytes.slice(14, to: 14 + length))
          bytes.set16(24, sum.value)
        }
      }
      let before = events()
      pair.there.frames = [frame]
      _ = pair.b.step()
      let isARP = frame.count >= 14 && frame[12] == 8 && frame[13] == 6
      #expect(isARP || events() > before, "round \(round), seed \(seed), frame \(frame)")
      while bob.receive() != nil {}
      while connected.receive() != nil {}
      pair.back.frames = []
    }
    #expect(pair.b.end())
  }
}
