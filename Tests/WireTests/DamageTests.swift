import MachnetWire
import Testing

/// Frames that are not what they should be: named faults, never a read beyond the end.
@Suite struct DamageTests {
  @Test func aFrameCutOffAnywhereIsTruncated() {
    for frame in Known.frames {
      for length in 0..<frame.count {
        #expect(throws: WireFault.truncated, "\(length) of \(frame.count) bytes") { try dissect(frame[..<length]) }
      }
    }
  }

  @Test func aQuoteCutOffAnywhereIsTruncated() throws {
    for frame in [Known.portUnreachable, Known.portUnreachableOptions] {
      let headers = frame[42] == 0x45 ? 28 : 32
      for length in 0..<(frame.count - 42) {
        // The ICMP message around the short quote is a good one.
        let memory = GuardedBytes(frame[34..<(42 + length)])
        unsafe ICMPHeader(type: ICMPType.unreachable, code: UnreachableCode.port).write(
          to: memory.base, bodyLength: length)
        let message = try unsafe ICMPMessage(unsafe: memory.base, length: memory.count)
        if length < headers {
          #expect(throws: WireFault.truncated) { try message.quotedDatagram() }
        } else {
          #expect(try message.quotedDatagram().destinationPort == 7777)
        }
      }
    }
  }

  @Test func everyFlippedBitOfAnIPv4HeaderIsCaught() {
    for frame in [Known.udp, Known.udpOptions, Known.echoRequest] {
      let headerLength = Int(frame[14] & 15) * 4
      for bit in 0..<(headerLength * 8) {
        var damaged = frame
        damaged[14 + bit / 8] ^= 1 << (bit % 8)
        let fault = fault(of: damaged)
        let expected: [WireFault] =
          switch bit / 8 {
          case 0 where bit % 8 >= 4: [.badVersion]
          case 0: [.badHeaderLength, .truncated, .badChecksum]
          case 2, 3: [.badTotalLength, .badHeaderLength, .truncated, .badChecksum]
          default: [.badChecksum]
          }
        #expect(fault.map(expected.contains) == true, "bit \(bit): \(String(describing: fault))")
      }
    }
  }

  @Test func everyFlippedBitOfAUDPDatagramIsCaught() {
    for frame in [Known.udp, Known.udpOdd] {
      for bit in 0..<((frame.count - 34) * 8) {
        var damaged = frame
        damaged[34 + bit / 8] ^= 1 << (bit % 8)
        let fault = fault(of: damaged)
        let expected: [WireFault] =
          bit / 8 == 4 || bit / 8 == 5 ? [.badTotalLength, .truncated, .badChecksum] : [.badChecksum]
        #expect(fault.map(expected.contains) == true, "bit \(bit): \(String(describing: fault))")
      }
    }
  }

  @Test func everyFlippedBitOfAnICMPMessageIsCaught() {
    for frame in [Known.echoRequest, Known.echoReply, Known.portUnreachable] {
      for bit in 0..<((frame.count - 34) * 8) {
        var damaged = frame
        damaged[34 + bit / 8] ^= 1 << (bit % 8)
        #expect(throws: WireFault.badChecksum, "bit \(bit)") { try dissect(damaged) }
      }
    }
  }

  @Test func aChangedAddressIsCaughtByTheUDPChecksumToo() throws {
    let memory = GuardedBytes(Known.udp[34...])
    for bit in 0..<32 {
      for side in 0..<2 {
        #expect(throws: WireFault.badChecksum) {
          try unsafe UDPDatagram(
            unsafe: memory.base, length: memory.count, source: Known.address1 ^ (side == 0 ? 1 << bit : 0),
            destination: Known.address2 ^ (side == 1 ? 1 << bit : 0))
        }
      }
    }
  }

  @Test func aDatagramWithoutAChecksumIsAccepted() throws {
    var frame = Known.udp
    frame[40] = 0
    frame[41] = 0
    #expect(try dissect(frame) == dissect(Known.udp))
  }

  @Test func aChecksumThatComesOutAsZeroIsSentAsAllOnes() throws {
    let memory = GuardedBytes([UInt8](repeating: 0, count: 10))
    var allOnes = 0
    for payload in UInt16.min...UInt16.max {
      unsafe memory.base.storeBytes(of: payload, toByteOffset: 8, as: UInt16.self)
      unsafe UDPHeader(sourcePort: 9, destinationPort: 10).write(
        to: memory.base, payloadLength: 2, source: 0x0102_0304, destination: 0x0506_0708)
      let stored = unsafe memory.base.load(fromByteOffset: 6, as: UInt16.self)
      if stored == 0 { Issue.record("payload \(payload) goes without a checksum") }
      if stored == 0xFFFF { allOnes += 1 }
      _ = try unsafe UDPDatagram(unsafe: memory.base, length: 10, source: 0x0102_0304, destination: 0x0506_0708)
    }
    #expect(allOnes == 1)
  }

  @Test(arguments: [
    (offset: 0, more: true, length: 12, fault: WireFault.badFragment),
    (0, true, 0, .badFragment),
    (0, true, 16, nil),
    (8, false, 3, nil),
    (65504, true, 8, nil),
    (65504, false, 11, nil),
    (65504, false, 12, .badFragment),
    (65512, true, 8, .badFragment),
    (65528, false, 1, .badFragment),
  ])
  func fragmentsMustFitInto65535Bytes(offset: Int, more: Bool, length: Int, fault: WireFault?) throws {
    var header = IPv4Header(source: 1, destination: 2, protocolNumber: IPProtocol.udp)
    header.fragmentOffset = offset
    header.moreFragments = more
    let frame = unsafe written(34 + length) { base in
      unsafe EthernetHeader(destination: Known.hardware1, source: Known.hardware2, type: EtherType.ipv4).write(to: base)
      unsafe header.write(to: base + 14, payloadLength: length)
    }
    if let fault {
      #expect(throws: fault) { try dissect(frame) }
    } else {
      #expect(try dissect(frame) == .fragment(offset: offset, length: length, more: more))
    }
  }

  @Test func anARPPacketForAnotherKindOfNetworkIsUnsupported() {
    for (offset, value) in [(14, 1), (15, 6), (16, 0x86), (17, 0xDD), (18, 8), (19, 16)] as [(Int, UInt8)] {
      var frame = Known.arpRequest
      frame[offset] = value
      #expect(throws: WireFault.unsupported) { try dissect(frame) }
    }
  }

  @Test func anErrorAboutAnotherProtocolOrALaterFragmentHasNoPorts() throws {
    for change in [(51, 6), (49, 1)] as [(Int, UInt8)] {
      var frame = Known.portUnreachable
      frame[change.0] = change.1
      let memory = GuardedBytes(frame[34...])
      unsafe ICMPHeader(type: ICMPType.unreachable, code: UnreachableCode.port).write(
        to: memory.base, bodyLength: memory.count - 8)
      let message = try unsafe ICMPMessage(unsafe: memory.base, length: memory.count)
      #expect(throws: WireFault.unsupported) { try message.quotedDatagram() }
    }
  }

  @Test func randomDamageIsNeverReadBeyondTheEnd() {
    let seed = seed()
    print("SEED=\(seed)")
    var random = Random(state: seed)
    var faults: Set<WireFault> = []
    var sound = 0
    for _ in 0..<30_000 {
      var frame = Known.frames.randomElement(using: &random)!
      for _ in 0..<Int.random(in: 0...4, using: &random) {
        frame[Int.random(in: 0..<frame.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
      }
      frame.removeLast(max(0, Int.random(in: -20...10, using: &random)))
      // A sender of lies can add up: half of the frames get good checksums, so that what is behind them is reached.
      if Bool.random(using: &random) { mend(&frame) }
      do throws(WireFault) {
        _ = try dissect(frame)
        sound += 1
      } catch {
        faults.insert(error)
      }
    }
    // Neither everything nor nothing gets through, and no fault is out of reach (fragments need too much luck).
    #expect(sound > 1000 && faults.isSuperset(of: Set(WireFault.allCases).subtracting([.badFragment])))
  }

  @Test func noiseIsNeverReadBeyondTheEnd() {
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
      _ = fault(of: frame)
    }
  }

  private func fault(of frame: [UInt8]) -> WireFault? {
    do throws(WireFault) {
      _ = try dissect(frame)
      return nil
    } catch {
      return error
    }
  }

  /// Makes header checksum and ICMP checksum right, and takes the UDP checksum away.
  private func mend(_ frame: inout [UInt8]) {
    guard frame.count >= 42, frame[12] == 8, frame[13] == 0 else { return }
    let payload = 14 + max(20, Int(frame[14] & 15) * 4)
    guard payload + 8 <= frame.count else { return }
    put(&frame, 24, plainChecksum, 14..<payload)
    let end = max(payload + 8, min(frame.count, 14 + Int(frame[16]) << 8 + Int(frame[17])))
    switch frame[23] {
    case IPProtocol.icmp: put(&frame, payload + 2, plainChecksum, payload..<end)
    case IPProtocol.udp: (frame[payload + 6], frame[payload + 7]) = (0, 0)
    default: break
    }
  }

  private func put(
    _ frame: inout [UInt8], _ offset: Int, _ checksum: (ArraySlice<UInt8>) -> UInt16, _ range: Range<Int>
  ) {
    (frame[offset], frame[offset + 1]) = (0, 0)
    let value = checksum(frame[range])
    (frame[offset], frame[offset + 1]) = (UInt8(value >> 8), UInt8(value & 0xFF))
  }
}
