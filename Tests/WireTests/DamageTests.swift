import MachnetWire
import Testing

/// Frames that are not what they should be are refused where they are wrong, and never read beyond their end.
@Suite struct Damage {
  @Test func `a frame cut off anywhere is refused for its length`() {
    for frame in Known.frames {
      for length in 0..<frame.count {
        let fault = fault(frame[..<length])
        let expected: Fault = length < 14 ? .frame : frame[13] == 6 ? .arp : .ip
        #expect(fault == expected, "\(length) of \(frame.count) bytes")
      }
    }
  }

  @Test func `every flipped bit of an IPv4 header is caught`() {
    for frame in [Known.udp, Known.udpOptions, Known.echoRequest] {
      let headerLength = Int(frame[14] & 15) * 4
      for bit in 0..<(headerLength * 8) {
        let fault = fault(flipped(frame, 14, bit))
        // Version, header length and total length may not even fit; all else is the checksum's.
        let isLength = [0, 2, 3].contains(bit / 8)
        #expect(fault == .ipChecksum || (isLength && fault == .ip), "bit \(bit): \(String(describing: fault))")
      }
    }
  }

  @Test func `every flipped bit of a UDP datagram is caught`() {
    for frame in [Known.udp, Known.udpOdd] {
      for bit in 0..<((frame.count - 34) * 8) {
        let fault = fault(flipped(frame, 34, bit))
        let isLength = [4, 5].contains(bit / 8)
        #expect(fault == .udpChecksum || (isLength && fault == .udp), "bit \(bit): \(String(describing: fault))")
      }
    }
  }

  @Test func `every flipped bit of an ICMP message is caught`() {
    for frame in [Known.echoRequest, Known.echoReply, Known.portUnreachable] {
      for bit in 0..<((frame.count - 34) * 8) {
        #expect(fault(flipped(frame, 34, bit)) == .icmpChecksum, "bit \(bit)")
      }
    }
  }

  @Test func `a changed address is caught by the UDP checksum too`() throws {
    let memory = GuardedBytes(Known.udp[34...])
    let datagram = try #require(UDPDatagram(memory.bytes))
    #expect(datagram.isChecksumRight(source: Known.address1, destination: Known.address2))
    for bit in 0..<32 {
      #expect(!datagram.isChecksumRight(source: Known.address1 ^ 1 << bit, destination: Known.address2))
      #expect(!datagram.isChecksumRight(source: Known.address1, destination: Known.address2 ^ 1 << bit))
    }
  }

  @Test func `a datagram without a checksum is accepted`() throws {
    var frame = Known.udp
    (frame[40], frame[41]) = (0, 0)
    #expect(try dissect(frame) == dissect(Known.udp))
  }

  @Test func `random damage is never read beyond the end`() {
    let seed = seed()
    print("SEED=\(seed)")
    var random = Random(state: seed)
    var faults: Set<Fault> = []
    var sound = 0
    for _ in 0..<30_000 {
      var frame = Known.frames.randomElement(using: &random)!
      for _ in 0..<Int.random(in: 0...4, using: &random) {
        frame[Int.random(in: 0..<frame.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
      }
      frame.removeLast(max(0, Int.random(in: -20...10, using: &random)))
      if Int.random(in: 0..<50, using: &random) == 0 { frame.removeLast(min(frame.count, 45)) }
      // A sender of lies can add up: half of the frames get good checksums, so that what is behind them is reached.
      if Bool.random(using: &random) { mend(&frame) }
      if let fault = fault(frame) { faults.insert(fault) } else { sound += 1 }
    }
    // Neither everything nor nothing gets through, and no check is out of reach.
    #expect(sound > 1000)
    #expect(faults.union([.icmp]) == Set(Fault.allCases))
  }

  @Test func `noise is never read beyond the end`() {
    let seed = seed()
    print("SEED=\(seed)")
    var random = Random(state: seed)
    for _ in 0..<10_000 {
      var frame = (0..<Int.random(in: 0...100, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
      if frame.count > 14 {
        frame[12] = 8
        frame[13] = Bool.random(using: &random) ? 0 : 6
        frame[14] = 0x40 | frame[14] & 15
      }
      mend(&frame)
      _ = fault(frame)
    }
  }

  private func fault(_ data: some Collection<UInt8>) -> Fault? {
    do throws(Fault) {
      _ = try dissect(data)
      return nil
    } catch {
      return error
    }
  }

  private func flipped(_ frame: [UInt8], _ start: Int, _ bit: Int) -> [UInt8] {
    var frame = frame
    frame[start + bit / 8] ^= 1 << (bit % 8)
    return frame
  }

  /// Makes header checksum and ICMP checksum right, and takes the UDP checksum away.
  private func mend(_ frame: inout [UInt8]) {
    guard frame.count >= 42, frame[12] == 8, frame[13] == 0 else { return }
    let payload = 14 + max(20, Int(frame[14] & 15) * 4)
    guard payload + 8 <= frame.count else { return }
    sum(&frame, at: 24, over: 14..<payload)
    let end = max(payload + 8, min(frame.count, 14 + Int(frame[16]) << 8 + Int(frame[17])))
    switch frame[23] {
    case IPProtocol.icmp: sum(&frame, at: payload + 2, over: payload..<end)
    case IPProtocol.udp: (frame[payload + 6], frame[payload + 7]) = (0, 0)
    default: break
    }
  }

  private func sum(_ frame: inout [UInt8], at offset: Int, over range: Range<Int>) {
    (frame[offset], frame[offset + 1]) = (0, 0)
    let value = plainChecksum(Array(frame[range]))
    (frame[offset], frame[offset + 1]) = (UInt8(value >> 8), UInt8(value & 0xFF))
  }
}
