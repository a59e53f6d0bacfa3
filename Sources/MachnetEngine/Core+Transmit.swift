import CMachnetABI
import MachnetChannel
import MachnetMemory
import MachnetWire

/// From datagrams to frames.
extension Core {
  /// The port through which an endpoint reaches an address outside.
  ///
  /// - Parameter source: the address that the sender asks for or is bound to, or 0.
  @_noLocks
  func routeToPort(from slot: UInt32, to address: UInt32, source: UInt32) -> Route {
    // What leaves carries an address that engines own; without one of its own, only the daemon's own network
    // namespace may use the interface's.
    if source == 0 ? endpoints[slot].netns != 0 : !directory.isEngineAddress(source) {
      return .refused(portCount == 0 ? .noRoute : .sourceRefused)
    }
    var best = none
    var bestRank = 0
    var index: UInt32 = 0
    while Int(index) < portCount {
      let isOnLink = (address ^ ports[index].address) & ports[index].mask == 0
      if isOnLink || ports[index].gateway != 0 {
        // On the link comes before a gateway, the port of the source address before another.
        let rank = (isOnLink ? 3 : 1) &+ (source == ports[index].address ? 1 : 0)
        if rank > bestRank { (best, bestRank) = (index, rank) }
      }
      index &+= 1
    }
    if best == none { return .refused(.noRoute) }
    let mask = ports[best].mask
    let isOnLink = bestRank >= 3
    // The link's own broadcast and network addresses (RFC 1122, 3.2.1.3; not on links of two, RFC 3021).
    if isOnLink && mask < 0xFFFF_FFFE && (address | mask == 0xFFFF_FFFF || address & ~mask == 0) {
      return .refused(.destinationRefused)
    }
    return Route(
      kind: .port, reason: .noRoute, target: best, hop: isOnLink ? address : ports[best].gateway,
      source: source == 0 ? ports[best].address : source)
  }

  /// Makes a datagram's frames and queues them; what waits for an address is queued there.
  @inline(never) @_noLocks
  mutating func sendToPort(
    _ payload: UnsafeMutableRawPointer, _ length: Int, _ envelope: Envelope, _ route: Route, from slot: UInt32
  ) -> Sent {
    let port = route.target
    let mtu = ports[port].mtu
    let size = IPv4Packet.headerMin &+ UDPDatagram.headerLength &+ length
    var frames = 1
    if size > mtu {
      if envelope.dontFragment {
        mailbox.drop(.messageTooLong, endpoint: slot)
        report(error: 90 /* EMSGSIZE */, to: slot)
        return .done
      }
      let chunk = (mtu &- IPv4Packet.headerMin) & ~7
      frames = (size &- IPv4Packet.headerMin &+ chunk &- 1) / chunk
    }
    if ports[port].isBlocked && ports[port].queued != 0 {
      mailbox.drop(.portStalled, endpoint: slot)
      return .done
    }
    if ports[port].stashCount < frames || ports[port].room < frames { return .wait }
    guard let link = link(port, route.hop) else {
      mailbox.drop(.neighbourUnresolved, endpoint: slot)
      return .done
    }
    // Asking for the neighbour may have taken one.
    if ports[port].stashCount < frames { return .wait }
    let bytes = unsafe Bytes(unsafe: payload, count: length)
    identification &+= 1
    if frames == 1 { emitDatagram(bytes, envelope, link) } else { emitFragments(bytes, envelope, link) }
    mailbox.countSent(endpoint: slot, datagrams: 1, bytes: UInt64(truncatingIfNeeded: length))
    return .done
  }

  /// Where frames go: straight to an Ethernet address, or into a neighbour's queue.
  struct Link {
    var port: UInt32
    var mac: UInt64
    /// The neighbour whose answer is awaited, or `none`.
    var entry: UInt32
  }

  /// The way to a neighbour, which is asked for its Ethernet address if need be.
  ///
  /// - Returns: nil when it does not answer, or the table is full.
  @inline(__always) @_noLocks
  mutating func link(_ port: UInt32, _ hop: UInt32) -> Link? {
    guard let answer = ports[port].neighbours.resolve(hop, now: now) else { return nil }
    switch answer {
    case .send(let mac):
      return Link(port: port, mac: mac, entry: none)
    case .sendAndProbe(let mac):
      askForAddress(port, hop, at: mac)
      return Link(port: port, mac: mac, entry: none)
    case .wait(let entry):
      return Link(port: port, mac: 0, entry: entry)
    case .waitAndAsk(let entry):
      askForAddress(port, hop, at: ethernetBroadcast)
      showNeighbour(port, entry)
      return Link(port: port, mac: 0, entry: entry)
    }
  }

  @inline(__always) @_noLocks
  private mutating func emitDatagram(_ payload: Bytes, _ envelope: Envelope, _ link: Link) {
    var packet = takePacket(link.port)
    let frame = unsafe Bytes(unsafe: packet.data, count: Int(packet.capacity))
    let length = UDPDatagram.headerLength &+ payload.count
    var header = ipHeader(envelope, IPv4Packet.headerMin &+ length)
    header.dontFragment = envelope.dontFragment
    // The sum is of the copy: the sender can still change the original.
    frame.copy(payload, to: Core.udpPayload)
    var sum = UDPDatagram.pseudoHeader(source: envelope.source, destination: envelope.destination, length: length)
    sum.add(frame.slice(Core.udpPayload, to: Core.udpPayload &+ payload.count))
    UDPDatagram.emit(
      into: frame.slice(Core.udpHeader), sourcePort: envelope.sourcePort, destinationPort: envelope.destinationPort,
      length: length, sum: sum)
    header.emit(into: frame.slice(EthernetFrame.headerLength))
    packet.length = Int32(truncatingIfNeeded: Core.udpPayload &+ payload.count)
    depart(packet, link)
  }

  /// RFC 791, 2.3: pieces of 8-byte blocks with one identification. The first carries the UDP header, whose checksum
  /// is known when all pieces have been copied.
  @inline(never) @_noLocks
  private mutating func emitFragments(_ payload: Bytes, _ envelope: Envelope, _ link: Link) {
    let length = UDPDatagram.headerLength &+ payload.count
    let chunk = (ports[link.port].mtu &- IPv4Packet.headerMin) & ~7
    var sum = UDPDatagram.pseudoHeader(source: envelope.source, destination: envelope.destination, length: length)
    let base = ports[link.port].stashCount
    // First pass: copy and sum. Packets are taken from the stash's end, the first piece first.
    var offset = 0
    var piece = 0
    while offset < length {
      let end = min(offset &+ chunk, length)
      let from = max(offset, UDPDatagram.headerLength)
      let packet = ports[link.port].stash[base &- 1 &- piece]
      let frame = unsafe Bytes(unsafe: packet.data, count: Int(packet.capacity))
      let at = Core.udpHeader &+ from &- offset
      frame.copy(payload.slice(from &- UDPDatagram.headerLength, to: end &- UDPDatagram.headerLength), to: at)
      sum.add(frame.slice(at, to: at &+ end &- from))
      offset = end
      piece &+= 1
    }
    // Second pass: headers.
    offset = 0
    while offset < length {
      let end = min(offset &+ chunk, length)
      var packet = takePacket(link.port)
      let frame = unsafe Bytes(unsafe: packet.data, count: Int(packet.capacity))
      if offset == 0 {
        UDPDatagram.emit(
          into: frame.slice(Core.udpHeader), sourcePort: envelope.sourcePort,
          destinationPort: envelope.destinationPort, length: length, sum: sum)
      }
      var header = ipHeader(envelope, IPv4Packet.headerMin &+ end &- offset)
      header.fragmentOffset = offset
      header.moreFragments = end < length
      header.emit(into: frame.slice(EthernetFrame.headerLength))
      packet.length = Int32(truncatingIfNeeded: Core.udpHeader &+ end &- offset)
      mailbox.count(.fragmentsSent)
      depart(packet, link)
      offset = end
    }
  }

  @inline(__always) @_noLocks
  func ipHeader(_ envelope: Envelope, _ totalLength: Int) -> IPv4Header {
    var header = IPv4Header(
      totalLength: totalLength, ipProtocol: IPProtocol.udp, source: envelope.source, destination: envelope.destination)
    header.tos = envelope.tos
    header.ttl = envelope.ttl
    header.identification = identification
    return header
  }

  /// Where a UDP header, and its payload, lie in a frame of ours.
  @inline(__always)
  static var udpHeader: Int { @_noLocks get { 34 } }
  @inline(__always)
  static var udpPayload: Int { @_noLocks get { 42 } }

  /// Writes a frame's Ethernet header and queues it, or lets it wait for its neighbour.
  @inline(__always) @_noLocks
  mutating func depart(_ packet: Packet, _ link: Link) {
    let frame = unsafe Bytes(unsafe: packet.data, count: Int(packet.capacity))
    EthernetFrame.emit(into: frame, destination: link.mac, source: ports[link.port].mac, type: EtherType.ipv4)
    if link.entry == none {
      enqueue(packet, link.port)
    } else if let given = ports[link.port].neighbours.wait(packet, in: link.entry) {
      mailbox.drop(.neighbourQueueFull)
      spend(given, link.port)
    }
  }

  // MARK: Packets of a port

  /// An empty packet; the caller has made sure that there is one.
  @inline(__always) @_noLocks
  mutating func takePacket(_ port: UInt32) -> Packet {
    ports[port].stashCount &-= 1
    return ports[port].stash[ports[port].stashCount]
  }

  /// Queues a frame; the caller has made sure that there is room, or does not mind its loss.
  @inline(__always) @_noLocks
  mutating func enqueue(_ packet: Packet, _ port: UInt32) {
    if ports[port].room == 0 {
      mailbox.drop(.portStalled)
      spend(packet, port)
      return
    }
    append(packet, port)
  }

  /// The same where there is room.
  @inline(__always) @_noLocks
  mutating func append(_ packet: Packet, _ port: UInt32) {
    ports[port].queue[ports[port].queueTail & (Port.queueMax &- 1)] = packet
    ports[port].queueTail &+= 1
  }

  /// Gives a packet back, or keeps it as an empty one.
  @inline(__always) @_noLocks
  mutating func spend(_ packet: Packet, _ port: UInt32) {
    ports[port].spent[ports[port].spentCount] = packet
    ports[port].spentCount &+= 1
  }

  /// The port has taken `count` frames of what was queued (possibly none).
  @_noLocks
  mutating func departed(_ count: Int, bytes: Int, _ port: UInt32) {
    if count != 0 {
      ports[port].queueHead &+= count
      ports[port].blockedSince = 0
      ports[port].isBlocked = false
      mailbox.count(.txPackets, count)
      mailbox.count(.txBytes, bytes)
      return
    }
    if ports[port].queued == 0 { return }
    if ports[port].blockedSince == 0 { ports[port].blockedSince = max(1, now) }
    if now &- ports[port].blockedSince < Port.blockedMax { return }
    // A link that is down, or a peer that does not read: old frames help nobody. One is kept, to see when it goes on.
    ports[port].isBlocked = true
    while ports[port].queued > 1 {
      spend(ports[port].queue[ports[port].queueHead & (Port.queueMax &- 1)], port)
      ports[port].queueHead &+= 1
      mailbox.drop(.portStalled)
    }
  }

  // MARK: ARP

  /// Asks who has an address: everybody, or the one who had it.
  @inline(never) @_noLocks
  mutating func askForAddress(_ port: UInt32, _ address: UInt32, at mac: UInt64) {
    emitARP(port, ARPPacket.request, to: mac, targetHardware: 0, targetProtocol: address)
    mailbox.count(.arpRequestsSent)
  }

  @_noLocks
  mutating func emitARP(
    _ port: UInt32, _ operation: UInt16, to mac: UInt64, targetHardware: UInt64, targetProtocol: UInt32
  ) {
    if ports[port].stashCount == 0 || ports[port].room == 0 { return }
    var packet = takePacket(port)
    let frame = unsafe Bytes(unsafe: packet.data, count: Int(packet.capacity))
    EthernetFrame.emit(into: frame, destination: mac, source: ports[port].mac, type: EtherType.arp)
    ARPPacket.emit(
      into: frame.slice(EthernetFrame.headerLength), operation: operation, senderHardware: ports[port].mac,
      senderProtocol: ports[port].address, targetHardware: targetHardware, targetProtocol: targetProtocol)
    packet.length = Int32(truncatingIfNeeded: EthernetFrame.headerLength &+ ARPPacket.length)
    enqueue(packet, port)
  }

  /// Tells everybody where we are (RFC 5227, 3): when a link comes up.
  @_noLocks
  mutating func announce(_ port: UInt32) {
    emitARP(port, ARPPacket.request, to: ethernetBroadcast, targetHardware: 0, targetProtocol: ports[port].address)
  }

  /// Sends what has waited for a neighbour.
  @_noLocks
  mutating func sendWaiting(_ port: UInt32, _ entry: UInt32) {
    let mac = ports[port].neighbours.entries[entry].mac
    while let packet = ports[port].neighbours.takeWaiting(entry) {
      let frame = unsafe Bytes(unsafe: packet.data, count: Int(packet.capacity))
      frame.set48(0, mac)
      enqueue(packet, port)
    }
  }

  /// Copies an entry to where the control thread can see it.
  @_noLocks
  func showNeighbour(_ port: UInt32, _ entry: UInt32) {
    let it = ports[port].neighbours.entries[entry]
    mailbox.showNeighbour(
      port: Int(port), Int(entry), address: it.address, state: unsafe unsafeBitCast(it.state, to: UInt8.self),
      mac: it.mac)
  }

  // MARK: Timers

  /// The slow tick of all ports: neighbours and fragments.
  @_noLocks
  mutating func tickPorts() {
    let expired = reassembly.expire(now: now)
    if expired != 0 { mailbox.drop(.fragmentTimeout, expired) }
    if reassembly.evicted != 0 {
      mailbox.drop(.fragmentLimit, reassembly.evicted)
      reassembly.evicted = 0
    }
    var port: UInt32 = 0
    while Int(port) < portCount {
      var entry: UInt32 = 0
      while Int(entry) < EngineLimits.neighbours {
        if let event = ports[port].neighbours.tick(entry, now: now) { handle(event, port, entry) }
        entry &+= 1
      }
      port &+= 1
    }
  }

  @_noLocks
  private mutating func handle(_ event: Neighbours.Event, _ port: UInt32, _ entry: UInt32) {
    switch event {
    case .ask(_, let address):
      askForAddress(port, address, at: ethernetBroadcast)
    case .probe(let address, let mac):
      askForAddress(port, address, at: mac)
    case .unresolved(let entry):
      while let packet = ports[port].neighbours.takeWaiting(entry) {
        mailbox.drop(.neighbourUnresolved)
        spend(packet, port)
      }
    }
    showNeighbour(port, entry)
  }
}
