public import MachnetEngine
public import MachnetWire

/// UDP datagrams for code that has no engine: from the sender's to the receiver's address as the hosts' options say.
extension SimulatedNetwork {
  private static var headers: Int { EthernetFrame.headerLength + IPv4Packet.headerMin + UDPDatagram.headerLength }

  /// Where a packet's UDP payload goes.
  public func udpRoom(_ packet: Packet) -> Bytes {
    unsafe Bytes(unsafe: packet.data, count: Int(packet.capacity)).slice(SimulatedNetwork.headers)
  }

  /// Writes the headers around the first `payload` bytes of `udpRoom`, and puts the frame into a TX queue.
  ///
  /// - Returns: false: the queue was full, and the packet was given back.
  public func transmitUDP(
    _ packet: Packet, payload: Int, from host: Int, queue: Int = 0, to peer: Int, sourcePort: UInt16,
    destinationPort: UInt16
  ) -> Bool {
    let frame = unsafe Bytes(unsafe: packet.data, count: Int(packet.capacity))
    let (sender, receiver) = (options(of: host), options(of: peer))
    let length = UDPDatagram.headerLength + payload
    var header = IPv4Header(
      totalLength: IPv4Packet.headerMin + length, ipProtocol: IPProtocol.udp, source: sender.address,
      destination: receiver.address)
    header.dontFragment = true
    header.emit(into: frame.slice(EthernetFrame.headerLength))
    var sum = UDPDatagram.pseudoHeader(source: sender.address, destination: receiver.address, length: length)
    sum.add(frame.slice(SimulatedNetwork.headers, to: SimulatedNetwork.headers + payload))
    UDPDatagram.emit(
      into: frame.slice(EthernetFrame.headerLength + IPv4Packet.headerMin), sourcePort: sourcePort,
      destinationPort: destinationPort, length: length, sum: sum)
    EthernetFrame.emit(into: frame, destination: receiver.mac, source: sender.mac, type: EtherType.ipv4)
    var packet = packet
    packet.length = Int32(SimulatedNetwork.headers + payload)
    if transmit(packet, from: host, queue: queue) { return true }
    free(packet, of: host)
    return false
  }

  /// Sends a copy of a payload.
  ///
  /// - Returns: false: the queue was full, or there was no buffer.
  public func sendUDP(
    _ payload: Bytes, from host: Int, queue: Int = 0, to peer: Int, sourcePort: UInt16, destinationPort: UInt16
  ) -> Bool {
    guard let packet = allocate(for: host) else { return false }
    udpRoom(packet).copy(payload, to: 0)
    return transmitUDP(
      packet, payload: payload.count, from: host, queue: queue, to: peer, sourcePort: sourcePort,
      destinationPort: destinationPort)
  }
}

/// A UDP datagram whose lengths and checksums are right. Addresses and ports in host byte order.
public struct UDPArrival {
  public let payload: Bytes
  public let source: UInt32
  public let destination: UInt32
  public let sourcePort: UInt16
  public let destinationPort: UInt16
}

extension Arrival {
  /// The whole UDP datagram in the frame; nil: there is none, or it is one that any receiver drops.
  public var udp: UDPArrival? {
    guard let ethernet = EthernetFrame(frame), ethernet.type == EtherType.ipv4, let ip = IPv4Packet(ethernet.payload),
      ip.isChecksumRight, ip.ipProtocol == IPProtocol.udp, !ip.isFragment, let datagram = UDPDatagram(ip.payload),
      datagram.isChecksumRight(source: ip.source, destination: ip.destination)
    else { return nil }
    return UDPArrival(
      payload: datagram.payload, source: ip.source, destination: ip.destination, sourcePort: datagram.sourcePort,
      destinationPort: datagram.destinationPort)
  }
}
