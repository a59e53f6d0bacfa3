import MachnetWire
import Testing

/// Frames of a Linux kernel, read and written.
@Suite struct KnownFrameTests {
  @Test func whatTheKernelSentIsRead() throws {
    let quote = try datagramQuoted(Known.portUnreachable)
    #expect(quote.source == Known.address1 && quote.sourcePort == 33333)
    #expect(quote.destination == Known.address2 && quote.destinationPort == 7777)

    let found = try Known.frames.map { frame throws in try dissect(frame) }
    #expect(
      found == [
        .arp(operation: ARPOperation.request, sender: Known.address1, target: Known.address2),
        .arp(operation: ARPOperation.reply, sender: Known.address2, target: Known.address1),
        .udp(sourcePort: 33333, destinationPort: 7777, payload: 14, sum: total("hello machnet\n")),
        .udp(sourcePort: 33333, destinationPort: 7777, payload: 3, sum: total("odd")),
        .udp(sourcePort: 55264, destinationPort: 7777, payload: 7, sum: total("options")),
        .error(type: ICMPType.unreachable, code: UnreachableCode.port, quote),
        .error(
          type: ICMPType.unreachable, code: UnreachableCode.port, try datagramQuoted(Known.portUnreachableOptions)),
        .echo(type: ICMPType.echoRequest, rest: 0x1234_0007, length: 10),
        .echo(type: ICMPType.echoReply, rest: 0x1234_0007, length: 10),
      ])
  }

  @Test func everyFieldOfAHeaderIsRead() throws {
    let memory = GuardedBytes(Known.udpOptions)
    let frame = try unsafe EthernetFrame(unsafe: memory.base, length: memory.count)
    #expect(frame.destination == Known.hardware2 && frame.source == Known.hardware1)
    let packet = try unsafe IPv4Packet(unsafe: frame.payload, length: frame.payloadLength)
    #expect(packet.headerLength == 24 && packet.length == 39 && packet.payloadLength == 15)
    #expect(packet.tos == 0 && packet.ttl == 9 && packet.identification == 0x60D7)
    #expect(packet.dontFragment && !packet.moreFragments && packet.fragmentOffset == 0 && !packet.isFragment)
    #expect(packet.source == Known.address1 && packet.destination == Known.address2)
  }

  @Test func aFramePaddedToTheMinimumIsReadAsIfItWereNot() throws {
    for frame in Known.frames where frame.count < EthernetHeader.frameMinimum {
      let padding = [UInt8](repeating: 0xEE, count: EthernetHeader.frameMinimum - frame.count)
      #expect(try dissect(frame + padding) == dissect(frame))
    }
  }

  @Test func ourBytesAreTheKernels() {
    let request = ARPMessage(
      operation: ARPOperation.request, senderHardware: Known.hardware1, sender: Known.address1,
      targetHardware: EthernetAddress(0), target: Known.address2)
    let frame = unsafe written(42) { base in
      unsafe EthernetHeader(destination: .broadcast, source: Known.hardware1, type: EtherType.arp).write(to: base)
      unsafe request.write(to: base + 14)
    }
    #expect(frame == Known.arpRequest)

    for (known, payload, identification) in [
      (Known.udp, "hello machnet\n", 0x60D5 as UInt16), (Known.udpOdd, "odd", 0x60D6),
    ] {
      let payload = Array(payload.utf8)
      let frame = unsafe written(known.count) { base in
        unsafe EthernetHeader(destination: Known.hardware2, source: Known.hardware1, type: EtherType.ipv4)
          .write(to: base)
        unsafe IPv4Header(
          source: Known.address1, destination: Known.address2, protocolNumber: IPProtocol.udp,
          identification: identification, dontFragment: true
        ).write(to: base + 14, payloadLength: UDPHeader.length + payload.count)
        unsafe UnsafeMutableRawBufferPointer(start: base + 42, count: payload.count).copyBytes(from: payload)
        unsafe UDPHeader(sourcePort: 33333, destinationPort: 7777).write(
          to: base + 34, payloadLength: payload.count, source: Known.address1, destination: Known.address2)
      }
      #expect(frame == known)
    }
  }

  @Test func ourEchoReplyIsTheKernels() throws {
    let memory = GuardedBytes(Known.echoRequest[34...])
    let request = try unsafe ICMPMessage(unsafe: memory.base, length: memory.count)
    let reply = unsafe written(memory.count) { base in unsafe ICMPHeader.writeEchoReply(to: base, request: request) }
    #expect(reply == Array(Known.echoReply[34...]))
  }

  @Test(arguments: [
    (Known.udp, Known.portUnreachable), (Known.udpOptions, Known.portUnreachableOptions),
  ])
  func ourPortUnreachableIsTheKernels(datagram: [UInt8], answer: [UInt8]) throws {
    // Padding of the frame must not get into the quote.
    let memory = GuardedBytes(datagram[14...] + [0xEE, 0xEE])
    let packet = try unsafe IPv4Packet(unsafe: memory.base, length: memory.count)
    let header = ICMPHeader(type: ICMPType.unreachable, code: UnreachableCode.port)
    var count = 0
    let error = unsafe written(ICMPHeader.length + packet.length) { base in
      count = unsafe header.writeError(to: base, about: packet)
    }
    #expect(error == Array(answer[34...]) && count == error.count)
  }

  @Test func anErrorAboutALargePacketFitsInto576Bytes() throws {
    let memory = GuardedBytes([UInt8](repeating: 0, count: 1500))
    unsafe IPv4Header(source: 1, destination: 2, protocolNumber: IPProtocol.udp).write(
      to: memory.base, payloadLength: 1480)
    unsafe UDPHeader(sourcePort: 3, destinationPort: 4).write(
      to: memory.base + 20, payloadLength: 1472, source: 1, destination: 2)
    let packet = try unsafe IPv4Packet(unsafe: memory.base, length: memory.count)
    let header = ICMPHeader(
      type: ICMPType.unreachable, code: UnreachableCode.fragmentationNeeded, rest: 1400)
    let error = unsafe written(556) { base in
      let count = unsafe header.writeError(to: base, about: packet)
      #expect(count == 556)
    }
    let copy = GuardedBytes(error)
    let message = try unsafe ICMPMessage(unsafe: copy.base, length: copy.count)
    #expect(message.nextHopMTU == 1400)
    let quote = try message.quotedDatagram()
    #expect(quote.source == 1 && quote.destination == 2 && quote.sourcePort == 3 && quote.destinationPort == 4)
  }

  @Test func ethernetAddressesHaveKinds() {
    #expect(EthernetAddress.broadcast.isGroup && EthernetAddress.broadcast.isBroadcast)
    #expect(EthernetAddress(0x0100_5E00_0001).isGroup && !EthernetAddress(0x0100_5E00_0001).isBroadcast)
    #expect(Known.hardware1.isUnicast && !EthernetAddress(0).isUnicast && !EthernetAddress.broadcast.isUnicast)
    #expect(EthernetAddress(0xFFFF_0A0B_0C0D_0E0F).description == "0a:0b:0c:0d:0e:0f")
  }

  private func total(_ text: String) -> UInt64 { text.utf8.reduce(0) { $0 + UInt64($1) } }

  private func datagramQuoted(_ frame: [UInt8]) throws -> QuotedDatagram {
    let memory = GuardedBytes(frame[34...])
    return try unsafe ICMPMessage(unsafe: memory.base, length: memory.count).quotedDatagram()
  }
}
