import MachnetWire
import Testing

/// Runs `body` over a copy of `data` behind which nothing can be read.
func withBytes<R>(_ data: [UInt8], _ body: (Bytes) -> R) -> R {
  let memory = GuardedBytes(data)
  return body(memory.bytes)
}

/// Writes into a buffer of `count` bytes and returns it.
func bytes(_ count: Int, _ body: (Bytes) -> Void) -> [UInt8] {
  withBytes([UInt8](repeating: 0xAA, count: count)) { bytes in
    body(bytes)
    return (0..<count).map { bytes.u8($0) }
  }
}

/// RFC 1071's definition, as plainly as it can be said.
func plainChecksum(_ data: [UInt8]) -> UInt16 {
  var sum: UInt32 = 0
  for index in stride(from: 0, to: data.count, by: 2) {
    sum += UInt32(data[index]) << 8 | (index + 1 < data.count ? UInt32(data[index + 1]) : 0)
    if sum > 0xFFFF { sum = (sum & 0xFFFF) + 1 }
  }
  return ~UInt16(sum)
}

@Suite struct Checksums {
  @Test func `the example of RFC 1071 comes out`() {
    withBytes([0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]) {
      var sum = Checksum()
      sum.add($0)
      #expect(sum.value == ~0xddf2)
    }
  }

  @Test func `every length agrees with the definition, whole and split at every place`() {
    let seed = seed()
    print("SEED=\(seed)")
    var state = seed
    for length in 0...70 {
      let data = (0..<length).map { _ -> UInt8 in
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        // Many 0xFF, so that carries happen.
        return state >> 60 < 6 ? 0xFF : UInt8(truncatingIfNeeded: state >> 33)
      }
      let expected = plainChecksum(data)
      for split in 0...length {
        for second in [split, (split + length) / 2, length] {
          let value = withBytes(data) { bytes in
            var sum = Checksum()
            sum.add(bytes.slice(0, to: split))
            sum.add(bytes.slice(split, to: second))
            sum.add(bytes.slice(second))
            return sum.value
          }
          #expect(value == expected, "length \(length), split \(split), \(second), seed \(seed)")
        }
      }
    }
  }

  @Test func `adjusting equals summing again`() {
    var data: [UInt8] = [0x12, 0x34, 0xFF, 0xFF, 0x00, 0x00, 0x80, 0x01]
    for new: UInt16 in [0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x1234] {
      let before = plainChecksum(data)
      let old = UInt16(data[2]) << 8 | UInt16(data[3])
      data[2] = UInt8(new >> 8)
      data[3] = UInt8(new & 0xFF)
      #expect(Checksum.adjust(before, from: old, to: new) == plainChecksum(data))
    }
  }

  @Test func `a whole datagram of the largest size does not overflow`() {
    let data = [UInt8](repeating: 0xFF, count: 65_535)
    #expect(
      withBytes(data) {
        var sum = Checksum()
        sum.add($0)
        return sum.value
      } == plainChecksum(data))
  }
}

/// A DNS query as captured: Ethernet, IPv4, UDP.
let capturedFrame: [UInt8] = [
  0x00, 0x12, 0x64, 0x01, 0x02, 0x03, 0x00, 0x12, 0x64, 0x0a, 0x0b, 0x0c, 0x08, 0x00,
  // IPv4: 192.168.0.1 to 192.168.0.2, 36 bytes, id 0x1c46, DF, ttl 64, UDP
  0x45, 0x00, 0x00, 0x24, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x11, 0x9d, 0x2f, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00, 0x02,
  // UDP: 4660 to 53, 16 bytes
  0x12, 0x34, 0x00, 0x35, 0x00, 0x10, 0x00, 0x00, 0x68, 0x65, 0x6c, 0x6c, 0x6f, 0x21, 0x21, 0x21,
  // padding to 60 bytes
  0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
]

@Suite struct Views {
  @Test func `a known frame is read field by field, its padding left out`() {
    withBytes(capturedFrame) { bytes in
      let frame = EthernetFrame(bytes)!
      #expect(frame.destination == 0x0012_6401_0203 && frame.source == 0x0012_640a_0b0c)
      #expect(frame.type == EtherType.ipv4)
      let packet = IPv4Packet(frame.payload)!
      #expect(packet.isChecksumRight)
      #expect(packet.source == 0xC0A8_0001 && packet.destination == 0xC0A8_0002)
      #expect(packet.ttl == 64 && packet.tos == 0 && packet.identification == 0x1c46)
      #expect(packet.dontFragment && !packet.moreFragments && packet.fragmentOffset == 0 && !packet.isFragment)
      #expect(packet.ipProtocol == IPProtocol.udp && packet.payload.count == 16)
      let datagram = UDPDatagram(packet.payload)!
      #expect(datagram.sourcePort == 4660 && datagram.destinationPort == 53 && datagram.payload.count == 8)
      #expect(datagram.checksum == 0 && datagram.isChecksumRight(source: packet.source, destination: packet.destination))
    }
  }

  @Test func `whatever is cut off, nothing traps and nothing reaches beyond the end`() {
    for length in 0...capturedFrame.count {
      withBytes(Array(capturedFrame.prefix(length))) { bytes in
        let frame = EthernetFrame(bytes)
        #expect((frame != nil) == (length >= 14))
        guard let frame else { return }
        _ = ARPPacket(frame.payload)
        _ = ICMPMessage(frame.payload)?.quoted
        _ = UDPDatagram(frame.payload)
        let packet = IPv4Packet(frame.payload)
        #expect((packet != nil) == (length >= 14 + 36))
        if let packet { #expect(UDPDatagram(packet.payload) != nil) }
      }
    }
  }

  @Test func `every first byte and length of an IPv4 header is taken only if it fits`() {
    for first in 0...255 {
      for total in [0, 19, 20, 23, 24, 59, 60, 61, 100, 101, 65_535] {
        var data = [UInt8](repeating: 0, count: 100)
        data[0] = UInt8(first)
        data[2] = UInt8(total >> 8)
        data[3] = UInt8(total & 255)
        let header = (first & 15) * 4
        let isGood = first >> 4 == 4 && header >= 20 && header <= total && total <= 100
        withBytes(data) {
          let packet = IPv4Packet($0)
          #expect((packet != nil) == isGood, "first \(first), total \(total)")
          if let packet { #expect(packet.payload.count == total - header) }
        }
      }
    }
  }

  @Test func `UDP lengths are taken only if they fit`() {
    for count in 0...40 {
      for length in 0...50 {
        var data = [UInt8](repeating: 0, count: count)
        if count >= 6 { data[5] = UInt8(length) }
        let stated = count >= 6 ? length : 0
        withBytes(data) {
          let datagram = UDPDatagram($0)
          #expect((datagram != nil) == (count >= 8 && stated >= 8 && stated <= count))
          if let datagram { #expect(datagram.payload.count == length - 8) }
        }
      }
    }
  }

  @Test func `an ICMP error quotes addresses only of a whole first UDP header`() {
    let packet = Array(capturedFrame[14..<50])
    for length in 0...packet.count {
      let quoted = withBytes([3, 3, 0, 0, 0, 0, 0, 0] + packet.prefix(length)) { ICMPMessage($0)!.quoted }
      #expect((quoted != nil) == (length >= 28))
      if let quoted { #expect(quoted.sourcePort == 4660 && quoted.destinationPort == 53 && quoted.source == 0xC0A8_0001) }
    }
    var tcp = packet
    tcp[9] = 6
    #expect(withBytes([3, 3, 0, 0, 0, 0, 0, 0] + tcp) { ICMPMessage($0)!.quoted } == nil)
    var fragment = packet
    fragment[7] = 1
    #expect(withBytes([3, 3, 0, 0, 0, 0, 0, 0] + fragment) { ICMPMessage($0)!.quoted } == nil)
  }
}

@Suite struct Emitters {
  @Test func `what is written reads back, with right checksums`() {
    for (offset, more, df) in [(0, false, false), (0, true, false), (1480, true, false), (65_528, false, false), (0, false, true)] {
      var header = IPv4Header(totalLength: 100, ipProtocol: 17, source: 0x0A00_0001, destination: 0x0A00_0002)
      header.identification = 0xBEEF
      header.fragmentOffset = offset
      header.moreFragments = more
      header.dontFragment = df
      header.ttl = 3
      header.tos = 0xB8
      let data = bytes(100) { header.emit(into: $0) }
      #expect(plainChecksum(Array(data[0..<20])) == 0)
      withBytes(data) {
        let packet = IPv4Packet($0)!
        #expect(packet.isChecksumRight && packet.fragmentOffset == offset && packet.moreFragments == more)
        #expect(packet.dontFragment == df && packet.ttl == 3 && packet.tos == 0xB8 && packet.identification == 0xBEEF)
        #expect(packet.source == 0x0A00_0001 && packet.destination == 0x0A00_0002 && packet.totalLength == 100)
      }
    }
  }

  @Test func `a UDP checksum is right for every length, and never 0 on the wire`() {
    var zeroes = 0
    for length in 0...64 {
      for fill in 0..<256 {
        let payload = [UInt8](repeating: UInt8(fill), count: length)
        let data = bytes(8 + length) { bytes in
          var sum = UDPDatagram.pseudoHeader(source: 0x7F00_0001, destination: 0x7F00_0001, length: 8 + length)
          withBytes(payload) {
            bytes.copy($0, to: 8)
            sum.add($0)
          }
          UDPDatagram.emit(into: bytes, sourcePort: 1, destinationPort: 2, length: 8 + length, sum: sum)
        }
        if data[6] == 0xFF && data[7] == 0xFF { zeroes += 1 }
        withBytes(data) {
          let datagram = UDPDatagram($0)!
          #expect(datagram.checksum != 0)
          #expect(datagram.isChecksumRight(source: 0x7F00_0001, destination: 0x7F00_0001))
          // One flipped bit is seen.
          $0.set8(7, $0.u8(7) ^ 4)
          #expect(!UDPDatagram($0)!.isChecksumRight(source: 0x7F00_0001, destination: 0x7F00_0001))
        }
      }
    }
    print("checksums that came out as 0: \(zeroes)")
  }

  @Test func `the payload whose sum is 0 goes out as 0xFFFF`() {
    // Pseudo-header and header sum to S; a payload of ~S makes the whole 0xFFFF, its complement 0.
    let empty = bytes(10) { bytes in
      bytes.set16(8, 0)
      var sum = UDPDatagram.pseudoHeader(source: 1, destination: 2, length: 10)
      sum.add(bytes.slice(8))
      UDPDatagram.emit(into: bytes, sourcePort: 3, destinationPort: 4, length: 10, sum: sum)
    }
    let complement = UInt16(empty[6]) << 8 | UInt16(empty[7])
    let data = bytes(10) { bytes in
      bytes.set16(8, complement)
      var sum = UDPDatagram.pseudoHeader(source: 1, destination: 2, length: 10)
      sum.add(bytes.slice(8))
      UDPDatagram.emit(into: bytes, sourcePort: 3, destinationPort: 4, length: 10, sum: sum)
    }
    #expect(data[6] == 0xFF && data[7] == 0xFF)
  }

  @Test func `ARP and ICMP read back`() {
    let data = bytes(28) {
      ARPPacket.emit(
        into: $0, operation: ARPPacket.reply, senderHardware: 0x0200_0000_0001, senderProtocol: 5,
        targetHardware: 0x0200_0000_0002, targetProtocol: 6)
    }
    withBytes(data) {
      let packet = ARPPacket($0)!
      #expect(packet.operation == ARPPacket.reply && packet.senderHardware == 0x0200_0000_0001)
      #expect(packet.senderProtocol == 5 && packet.targetHardware == 0x0200_0000_0002 && packet.targetProtocol == 6)
    }
    for (at, value) in [(1, UInt8(2)), (3, 1), (4, 8), (5, 16), (7, 3), (7, 0)] {
      var bad = data
      bad[at] = value
      #expect(withBytes(bad) { ARPPacket($0) == nil })
    }
    // An echo request with a known checksum becomes a reply with a right one.
    var request: [UInt8] = [8, 0, 0, 0, 0x12, 0x34, 0, 1, 1, 2, 3]
    let sum = plainChecksum(request)
    request[2] = UInt8(sum >> 8)
    request[3] = UInt8(sum & 255)
    withBytes(request) {
      #expect(ICMPMessage($0)!.isChecksumRight)
      ICMPMessage($0)!.turnIntoReply()
      #expect(ICMPMessage($0)!.isChecksumRight && ICMPMessage($0)!.type == ICMPMessage.echoReply)
    }
  }
}

@Suite struct FrameHeads {
  /// Ethernet, IPv4 and UDP headers as they are written one by one, before the payload's bytes.
  private func emit(_ frame: Bytes, _ payload: Int, _ identification: UInt16, _ source: UInt32, _ destination: UInt32, _ port: UInt16) {
    EthernetFrame.emit(into: frame, destination: Known.hardware2, source: Known.hardware1, type: EtherType.ipv4)
    let length = UDPDatagram.headerLength + payload
    var header = IPv4Header(
      totalLength: IPv4Packet.headerMin + length, ipProtocol: IPProtocol.udp, source: source, destination: destination)
    header.identification = identification
    header.emit(into: frame.slice(EthernetFrame.headerLength))
    var sum = UDPDatagram.pseudoHeader(source: source, destination: destination, length: length)
    sum.add(frame.slice(42, to: 42 + payload))
    UDPDatagram.emit(into: frame.slice(34), sourcePort: port, destinationPort: 31_580, length: length, sum: sum)
  }

  @Test func `a frame's head makes the next ones as if each were written by itself`() {
    let seed = seed()
    print("SEED=\(seed)")
    var random = Random(state: seed)
    for _ in 0..<2000 {
      let source = UInt32.random(in: 1...UInt32.max, using: &random)
      let destination = UInt32.random(in: 1...UInt32.max, using: &random)
      let port = UInt16.random(in: 1...UInt16.max, using: &random)
      let first = bytes(42 + 9) { emit($0, 9, 77, source, destination, port) }
      let head = withBytes(first) { FrameHead(of: $0) }
      #expect(head.begins(destination: Known.hardware2, from: source, port, to: destination, 31_580))
      #expect(!head.begins(destination: Known.hardware1, from: source, port, to: destination, 31_580))
      #expect(!head.begins(destination: Known.hardware2, from: source ^ 1, port, to: destination, 31_580))
      #expect(!head.begins(destination: Known.hardware2, from: source, port, to: destination ^ 1, 31_580))
      #expect(!head.begins(destination: Known.hardware2, from: source, port ^ 1, to: destination, 31_580))
      #expect(!head.begins(destination: Known.hardware2, from: source, port, to: destination, 31_581))
      let payload = (0..<Int.random(in: 0...200, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
      let identification = UInt16.random(in: 0...UInt16.max, using: &random)
      var frames = [[UInt8]]()
      for byHead in [false, true] {
        frames.append(
          bytes(42 + payload.count) { frame in
            for (offset, byte) in payload.enumerated() { frame.set8(42 + offset, byte) }
            if byHead {
              head.emit(into: frame, payload: payload.count, identification: identification)
            } else {
              emit(frame, payload.count, identification, source, destination, port)
            }
          })
      }
      #expect(frames[0] == frames[1], "seed \(seed)")
    }
  }

  @Test func `no head is that of a frame until one was written`() {
    let zeroes = withBytes([UInt8](repeating: 0, count: 42)) { FrameHead(of: $0) }
    #expect(!zeroes.begins(destination: 0, from: 0x0A01_0001, 31_580, to: 0x0A01_0002, 31_580))
  }
}
