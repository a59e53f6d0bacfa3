import CMachnetABI
import MachnetChannel
import MachnetMemory
import MachnetTransport
import MachnetWire

/// From frames to endpoints. Whatever a frame holds, it ends as a datagram, as an answer, or as a counted drop.
extension Core {
  /// Takes the port's burst of `count` packets.
  @_noLocks
  mutating func receive(_ port: UInt32, count: Int) {
    if capture.isOn { captureReceived(port, count: count) }
    var bytes = 0
    var index = 0
    while index < count {
      let packet = ports[port].burst[index]
      bytes &+= Int(packet.length)
      if !take(packet, port) { spend(packet, port) }
      index &+= 1
    }
    mailbox.count(.rxPackets, count)
    mailbox.count(.rxBytes, bytes)
    flushTouched()
  }

  /// - Returns: whether the packet is in use (it became an answer).
  @inline(__always) @_noLocks
  private mutating func take(_ packet: Packet, _ port: UInt32) -> Bool {
    guard let frame = EthernetFrame(unsafe Bytes(unsafe: packet.data, count: Int(packet.length))) else {
      mailbox.drop(.frameTruncated)
      return false
    }
    let destination = frame.destination
    if destination != ports[port].mac && destination != ethernetBroadcast {
      mailbox.drop(.frameNotForUs)
      return false
    }
    if frame.type == EtherType.ipv4 { return takeIPv4(frame, packet, port) }
    if frame.type == EtherType.arp { takeARP(frame, port) } else { mailbox.drop(.etherTypeUnknown) }
    return false
  }

  @inline(__always) @_noLocks
  private mutating func takeIPv4(_ frame: EthernetFrame, _ packet: Packet, _ port: UInt32) -> Bool {
    guard let ip = IPv4Packet(frame.payload) else {
      mailbox.drop(.ipMalformed)
      return false
    }
    if !ip.isChecksumRight {
      mailbox.drop(.ipChecksum)
      return false
    }
    if ip.destination != ports[port].address {
      mailbox.drop(.ipNotForUs)
      return false
    }
    // RFC 1122, 3.2.1.3: addresses that never send; and nobody but us sends as us.
    let source = ip.source
    if source >> 24 == 0 || source >> 24 == 127 || source >> 28 >= 0xE || source == ports[port].address {
      mailbox.drop(.ipMartian)
      return false
    }
    if ip.ipProtocol == IPProtocol.udp {
      if ip.isFragment {
        takeFragment(ip, port)
      } else {
        takeUDP(ip.payload, ip, ttl: ip.ttl, tos: ip.tos, frame, port)
      }
      return false
    }
    if ip.ipProtocol == IPProtocol.icmp { return takeICMP(ip, frame, packet, port) }
    mailbox.drop(.ipProtocolUnknown)
    return false
  }

  /// Takes the payload of a whole IPv4 datagram.
  ///
  /// - Parameter frame: the frame that it came in, if it came in one.
  @inline(__always) @_noLocks
  private mutating func takeUDP(
    _ payload: Bytes, _ ip: IPv4Packet, ttl: UInt8, tos: UInt8, _ frame: EthernetFrame?, _ port: UInt32
  ) {
    guard let datagram = UDPDatagram(payload) else {
      mailbox.drop(.udpMalformed)
      return
    }
    if !datagram.isChecksumRight(source: ip.source, destination: ip.destination) {
      mailbox.drop(.udpChecksum)
      return
    }
    if transports[port].owns(port: datagram.destinationPort) && transports[port].owns(port: datagram.sourcePort) {
      takeSessionPacket(datagram, ip, port)
      return
    }
    let receiver = demultiplexer.receiver(
      world: Demultiplexer.wire, netns: 0, address: ip.destination, port: datagram.destinationPort,
      peerAddress: ip.source, peerPort: datagram.sourcePort, endpoints)
    if receiver == none {
      mailbox.drop(.udpNoReceiver)
      if let frame { sendUnreachable(ip, frame, port) }
      return
    }
    let envelope = Envelope(
      source: ip.source, destination: ip.destination, sourcePort: datagram.sourcePort,
      destinationPort: datagram.destinationPort, ttl: ttl, tos: tos)
    let content = datagram.payload
    let limit = receiveLimit(of: receiver)
    if limit != 0 && !fits(content.count, limit, receiver) {
      dropReceived(.receiveRingFull, receiver)
      return
    }
    let isTaken = unsafe deliver(
      content.base, content.count, envelope, interface: ports[port].interface, to: receiver)
    if !isTaken { dropReceived(.receiveRingFull, receiver) }
  }

  @inline(never) @_noLocks
  private mutating func takeFragment(_ ip: IPv4Packet, _ port: UInt32) {
    mailbox.count(.fragmentsReceived)
    let key = Reassembly.Key(
      source: ip.source, destination: ip.destination, identification: ip.identification, ipProtocol: ip.ipProtocol)
    switch reassembly.add(
      key, offset: ip.fragmentOffset, more: ip.moreFragments, ip.payload, ttl: ip.ttl, tos: ip.tos, now: now)
    {
    case .incomplete:
      break
    case .dropped(let reason):
      mailbox.drop(reason)
    case .complete(let payload, let ttl, let tos):
      mailbox.count(.reassembled)
      takeUDP(payload, ip, ttl: ttl, tos: tos, nil, port)
    }
  }

  // MARK: ARP

  /// RFC 826's "packet reception", with the update of known senders first.
  @inline(never) @_noLocks
  private mutating func takeARP(_ frame: EthernetFrame, _ port: UInt32) {
    guard let packet = ARPPacket(frame.payload) else {
      mailbox.drop(.arpMalformed)
      return
    }
    let sender = packet.senderProtocol
    let mac = packet.senderHardware
    // A group address is nobody's (its first octet's lowest bit).
    if mac == 0 || mac >> 40 & 1 != 0 {
      mailbox.drop(.arpMalformed)
      return
    }
    if sender == ports[port].address {
      // Somebody else claims our address: counted, and not believed.
      if mac != ports[port].mac { mailbox.drop(.arpConflict) }
      return
    }
    let isForUs = packet.targetProtocol == ports[port].address
    let isOnLink = (sender ^ ports[port].address) & ports[port].mask == 0
    // Sender 0 probes for a free address (RFC 5227): it is answered, not remembered.
    if sender != 0 {
      learn(sender, mac, create: isForUs && isOnLink, port)
      if siblingCount != 0 {
        mailbox.tell(
          Heard(
            interface: ports[port].address, address: sender, detail: mac,
            kind: isForUs && isOnLink ? .neighbourForUs : .neighbour))
      }
    }
    if isForUs && packet.operation == ARPPacket.request {
      emitARP(port, ARPPacket.reply, to: mac, targetHardware: mac, targetProtocol: sender)
      mailbox.count(.arpRepliesSent)
    }
  }

  @_noLocks
  private mutating func learn(_ said: Heard, _ port: UInt32) {
    switch said.kind {
    case .neighbour, .neighbourForUs:
      learn(said.address, said.detail, create: said.kind == .neighbourForUs, port)
    case .unreachable:
      takeUnreachable(
        to: said.address,
        PortPair(
          source: UInt16(truncatingIfNeeded: said.detail >> 16), destination: UInt16(truncatingIfNeeded: said.detail)), port)
    }
  }

  @_noLocks
  private mutating func learn(_ address: UInt32, _ mac: UInt64, create: Bool, _ port: UInt32) {
    let entry = ports[port].neighbours.learn(address, mac, create: create, now: now)
    if entry == none { return }
    sendWaiting(port, entry)
    showNeighbour(port, entry)
  }

  /// Whether they have said something to the daemon's other engines.
  @_noLocks
  func hasNews() -> Bool {
    var index = 0
    while index < siblingCount {
      if siblings[index].mailbox.load(Mailbox.heardTail) != siblings[index].heard { return true }
      index &+= 1
    }
    return false
  }

  /// Learns what ARP packets and ICMP messages have said to the daemon's other engines.
  @_noLocks
  mutating func hearSiblings() {
    var index = 0
    while index < siblingCount {
      let tail = siblings[index].mailbox.load(Mailbox.heardTail)
      if tail != siblings[index].heard { hear(index, until: tail) }
      index &+= 1
    }
  }

  @inline(never) @_noLocks
  private mutating func hear(_ index: Int, until tail: UInt64) {
    var number = siblings[index].heard
    if tail &- number > UInt64(EngineLimits.heard) { number = tail &- UInt64(EngineLimits.heard) }
    while number != tail {
      if let said = siblings[index].mailbox.heard(number) {
        var port: UInt32 = 0
        while Int(port) < portCount {
          if ports[port].address == said.interface { learn(said, port) }
          port &+= 1
        }
      }
      number &+= 1
    }
    siblings[index].heard = tail
  }

  // MARK: ICMP

  @inline(never) @_noLocks
  private mutating func takeICMP(_ ip: IPv4Packet, _ frame: EthernetFrame, _ packet: Packet, _ port: UInt32) -> Bool {
    guard !ip.isFragment, let message = ICMPMessage(ip.payload) else {
      mailbox.drop(ip.isFragment ? .icmpIgnored : .icmpMalformed)
      return false
    }
    if !message.isChecksumRight {
      mailbox.drop(.icmpChecksum)
      return false
    }
    switch message.type {
    case ICMPMessage.echoRequest:
      return answerEcho(message, ip, frame, packet, port)
    case ICMPMessage.unreachable:
      takeUnreachable(message, port)
    default:
      mailbox.drop(.icmpIgnored)
    }
    return false
  }

  /// Sends an echo request back as its reply, in its own packet. Options are not sent back: such requests are rare, and
  /// their routes would be wrong.
  @_noLocks
  private mutating func answerEcho(
    _ message: ICMPMessage, _ ip: IPv4Packet, _ frame: EthernetFrame, _ packet: Packet, _ port: UInt32
  ) -> Bool {
    if ports[port].room == 0 || ip.headerLength != IPv4Packet.headerMin || frame.destination == ethernetBroadcast {
      mailbox.drop(.icmpIgnored)
      return false
    }
    message.turnIntoReply()
    var header = IPv4Header(
      totalLength: ip.totalLength, ipProtocol: IPProtocol.icmp, source: ip.destination, destination: ip.source)
    header.tos = ip.tos
    identification &+= 1
    header.identification = identification
    let bytes = unsafe Bytes(unsafe: packet.data, count: Int(packet.capacity))
    let peer = frame.source
    header.emit(into: bytes.slice(EthernetFrame.headerLength))
    EthernetFrame.emit(into: bytes, destination: peer, source: ports[port].mac, type: EtherType.ipv4)
    var reply = packet
    reply.length = Int32(truncatingIfNeeded: EthernetFrame.headerLength &+ Int(header.totalLength))
    enqueue(reply, port)
    mailbox.count(.echoReplies)
    return true
  }

  /// Somebody could not deliver what one of our endpoints sent.
  @_noLocks
  private mutating func takeUnreachable(_ message: ICMPMessage, _ port: UInt32) {
    guard let quoted = message.quoted, quoted.source == ports[port].address else {
      mailbox.drop(.icmpIgnored)
      return
    }
    mailbox.count(.unreachablesReceived)
    let error = Core.error(ofUnreachable: message.code)
    if error == 0 { return }
    if transports[port].owns(port: quoted.sourcePort) {
      if error != 111 { return }
      takeUnreachable(
        to: quoted.destination, PortPair(source: quoted.sourcePort, destination: quoted.destinationPort), port)
      // The packet may have been another engine's: RSS does not know to which flow an ICMP message belongs.
      if siblingCount != 0 && mayTellUnreachable() {
        mailbox.tell(
          Heard(
            interface: ports[port].address, address: quoted.destination,
            detail: UInt64(quoted.sourcePort) << 16 | UInt64(quoted.destinationPort), kind: .unreachable))
      }
      return
    }
    // Only a connected socket hears of it, as in the kernel without IP_RECVERR.
    let slot = demultiplexer.exact(
      Demultiplexer.wire, quoted.source, quoted.sourcePort, quoted.destination, quoted.destinationPort, endpoints)
    if slot != none { report(error: error, to: slot) }
  }

  /// Nobody listens at the ports of a packet that an engine of ours sent for a session.
  @_noLocks
  private mutating func takeUnreachable(to address: UInt32, _ pair: PortPair, _ port: UInt32) {
    transports[port].unreachable(localAddress: ports[port].address, remoteAddress: address, ports: pair, now: now)
  }

  /// The errno value of an unreachable code, or 0 for those that the kernel deems transient (RFC 1122, 3.2.2.1).
  @_noLocks
  static func error(ofUnreachable code: UInt8) -> Int32 {
    switch code {
    case 2: 92 /* ENOPROTOOPT */
    case 3: 111 /* ECONNREFUSED */
    case 4: 90 /* EMSGSIZE */
    case 5: 95 /* EOPNOTSUPP */
    case 6, 9: 101 /* ENETUNREACH */
    case 7: 112 /* EHOSTDOWN */
    case 8: 64 /* ENONET */
    case 10, 13, 14, 15: 113 /* EHOSTUNREACH */
    default: 0
    }
  }

  /// Takes a token for one more word about a port where nobody listens.
  @_noLocks
  mutating func mayTellUnreachable() -> Bool {
    let earned = (now &- unreachableRefilled) / (1_000_000_000 / Core.unreachableRate)
    if earned != 0 {
      unreachableTokens = min(Core.unreachableBurst, unreachableTokens &+ earned)
      unreachableRefilled = now
    }
    if unreachableTokens == 0 { return false }
    unreachableTokens &-= 1
    return true
  }

  /// Tells a sender that nobody listens (RFC 1122, 4.1.3.1), so many times a second.
  @inline(never) @_noLocks
  private mutating func sendUnreachable(_ ip: IPv4Packet, _ frame: EthernetFrame, _ port: UInt32) {
    // RFC 1122, 3.2.2: never about what was broadcast.
    if frame.destination == ethernetBroadcast { return }
    if ports[port].stashCount == 0 || ports[port].room == 0 || !mayTellUnreachable() {
      mailbox.drop(.unreachableRateLimited)
      return
    }
    // RFC 1812, 4.3.2.3: as much of the packet as fits into 576 bytes.
    let quote = ip.whole.slice(0, to: min(ip.totalLength, 576 &- 28))
    var packet = takePacket(port)
    let bytes = unsafe Bytes(unsafe: packet.data, count: Int(packet.capacity))
    let message = bytes.slice(Core.udpHeader, to: Core.udpHeader &+ ICMPMessage.headerLength &+ quote.count)
    message.copy(quote, to: ICMPMessage.headerLength)
    ICMPMessage.emitUnreachable(into: message, code: ICMPMessage.codePort)
    var header = IPv4Header(
      totalLength: IPv4Packet.headerMin &+ message.count, ipProtocol: IPProtocol.icmp, source: ip.destination,
      destination: ip.source)
    identification &+= 1
    header.identification = identification
    header.emit(into: bytes.slice(EthernetFrame.headerLength))
    EthernetFrame.emit(into: bytes, destination: frame.source, source: ports[port].mac, type: EtherType.ipv4)
    packet.length = Int32(truncatingIfNeeded: Core.udpHeader &+ message.count)
    enqueue(packet, port)
    mailbox.count(.unreachablesSent)
  }
}
