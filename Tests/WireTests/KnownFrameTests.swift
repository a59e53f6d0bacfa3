import MachnetWire
import Testing

/// Frames of a Linux kernel, read and written.
@Suite struct KnownFrames {
  @Test func `what the kernel sent is read`() throws {
    let found = try Known.frames.map { frame throws in try dissect(frame) }
    #expect(
      found == [
        .arp(operation: ARPPacket.request, sender: Known.address1, target: Known.address2),
        .arp(operation: ARPPacket.reply, sender: Known.address2, target: Known.address1),
        .udp(sourcePort: 33333, destinationPort: 7777, length: 14, sum: total("hello machnet\n")),
        .udp(sourcePort: 33333, destinationPort: 7777, length: 3, sum: total("odd")),
        .udp(sourcePort: 55264, destinationPort: 7777, length: 7, sum: total("options")),
        .unreachable(code: ICMPMessage.codePort, sourcePort: 33333, destinationPort: 7777),
        .unreachable(code: ICMPMessage.codePort, sourcePort: 55264, destinationPort: 7777),
        .echo(type: ICMPMessage.echoRequest, length: 10),
        .echo(type: ICMPMessage.echoReply, length: 10),
      ])
  }

  @Test func `options are stepped over`() throws {
    let memory = GuardedBytes(Known.udpOptions)
    let frame = try #require(EthernetFrame(memory.bytes))
    let packet = try #require(IPv4Packet(frame.payload))
    #expect(packet.headerLength == 24 && packet.totalLength == 39 && packet.payload.count == 15)
    #expect(packet.ttl == 9 && packet.identification == 0x60D7 && packet.dontFragment)
  }

  @Test func `a frame padded to the minimum is read as if it were not`() throws {
    for frame in Known.frames where frame.count < 60 {
      #expect(try dissect(frame + [UInt8](repeating: 0xEE, count: 60 - frame.count)) == dissect(frame))
    }
  }

  @Test func `our bytes are the kernel's`() {
    let request = bytes(42) { frame in
      EthernetFrame.emit(
        into: frame, destination: ethernetBroadcast, source: Known.hardware1, type: EtherType.arp)
      ARPPacket.emit(
        into: frame.slice(14), operation: ARPPacket.request, senderHardware: Known.hardware1,
        senderProtocol: Known.address1, targetHardware: 0, targetProtocol: Known.address2)
    }
    #expect(request == Known.arpRequest)

    for (known, text, identification) in [
      (Known.udp, "hello machnet\n", 0x60D5 as UInt16), (Known.udpOdd, "odd", 0x60D6),
    ] {
      let payload = GuardedBytes(text.utf8)
      let ours = bytes(known.count) { frame in
        EthernetFrame.emit(
          into: frame, destination: Known.hardware2, source: Known.hardware1, type: EtherType.ipv4)
        var header = IPv4Header(
          totalLength: 28 + payload.count, ipProtocol: IPProtocol.udp, source: Known.address1,
          destination: Known.address2)
        header.identification = identification
        header.dontFragment = true
        header.emit(into: frame.slice(14))
        frame.copy(payload.bytes, to: 42)
        var sum = UDPDatagram.pseudoHeader(
          source: Known.address1, destination: Known.address2, length: 8 + payload.count)
        sum.add(payload.bytes)
        UDPDatagram.emit(
          into: frame.slice(34), sourcePort: 33333, destinationPort: 7777, length: 8 + payload.count, sum: sum)
      }
      #expect(ours == known)
    }
  }

  @Test func `our echo reply is the kernel's`() throws {
    let memory = GuardedBytes(Known.echoRequest[34...])
    try #require(ICMPMessage(memory.bytes)).turnIntoReply()
    #expect((0..<memory.count).map { memory.bytes.u8($0) } == Array(Known.echoReply[34...]))
  }

  @Test func `our port unreachable is the kernel's`() throws {
    for (datagram, answer) in [
      (Known.udp, Known.portUnreachable), (Known.udpOptions, Known.portUnreachableOptions),
    ] {
      // Padding of the frame must not get into the quote.
      let memory = GuardedBytes(datagram[14...] + [0xEE, 0xEE])
      let packet = try #require(IPv4Packet(memory.bytes))
      let error = bytes(8 + packet.totalLength) { message in
        message.copy(packet.whole, to: 8)
        ICMPMessage.emitUnreachable(into: message, code: ICMPMessage.codePort)
      }
      #expect(error == Array(answer[34...]))
    }
  }

  private func total(_ text: String) -> UInt64 { text.utf8.reduce(0) { $0 + UInt64($1) } }
}
