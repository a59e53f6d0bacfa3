import CMachnetABI
import MachnetChannel
import MachnetMemory
import MachnetTransport
import MachnetWire

/// Between the transport `machnet` and everything else: its packets in frames, its messages in rings. What becomes of those that
/// find no room, is in `Core+Holding.swift`.
extension Core {
  /// IPv4 and UDP headers, bytes.
  static var datagramOverhead: Int { @_noLocks get { IPv4Packet.headerMin &+ UDPDatagram.headerLength } }
  /// Largest UDP payload of a session packet, bytes: what the length of a chunk can say, and more than any cloud's MTU.
  static var sessionDatagramMax: Int { @_noLocks get { 9216 } }

  // MARK: Out

  /// Hands a datagram to the session with its destination's host.
  @inline(__always) @_noLocks
  mutating func sendToSession(
    _ payload: UnsafeMutableRawPointer, _ length: Int, _ envelope: Envelope, _ route: Route, from slot: UInt32
  ) -> Sent {
    // Nearly always: there is one, and nobody waits for anything.
    if endpoints[slot].sending == nil
      && (pausedCount == 0 || !isPaused(route.target, endpoints[slot].session, envelope.destinationPort))
    {
      let bytes = unsafe Bytes(unsafe: payload, count: length)
      if sendAlone(bytes, envelope, route, from: slot)
        || transports[route.target].sendWhole(
          endpoints[slot].session, bytes, localAddress: route.source, remoteAddress: envelope.destination,
          localPort: envelope.sourcePort, remotePort: envelope.destinationPort, ttl: envelope.ttl, tos: envelope.tos, now: now)
      {
        endpoints[slot].stalledSince = 0
        mailbox.countSent(endpoint: slot, datagrams: 1, bytes: UInt64(truncatingIfNeeded: length))
        return .done
      }
    }
    return unsafe sendToAnySession(payload, length, envelope, route, from: slot)
  }

  /// Sends a datagram behind which its sender has no other, and before which nothing waits.
  @inline(__always) @_noLocks
  private mutating func sendAlone(_ bytes: Bytes, _ envelope: Envelope, _ route: Route, from slot: UInt32) -> Bool {
    let port = route.target
    if !endpoints[slot].reader.isLast(length: bytes.count) || transports[port].hasReady || ports[port].stashCount < 2
      || ports[port].room < 2
    {
      return false
    }
    let packet = ports[port].stash[ports[port].stashCount &- 1]
    let frame = unsafe Bytes(unsafe: packet.data, count: Int(packet.capacity))
    guard
      let transmission = transports[port].sendAlone(
        endpoints[slot].session, bytes, localAddress: route.source, remoteAddress: envelope.destination,
        localPort: envelope.sourcePort, remotePort: envelope.destinationPort, ttl: envelope.ttl, tos: envelope.tos,
        into: frame.slice(Core.udpPayload), now: now)
    else { return false }
    ports[port].stashCount &-= 1
    depart(packet, frame, transmission, port)
    return true
  }

  @inline(never) @_noLocks
  private mutating func sendToAnySession(
    _ payload: UnsafeMutableRawPointer, _ length: Int, _ envelope: Envelope, _ route: Route, from slot: UInt32
  ) -> Sent {
    let port = route.target
    // Its program can write another datagram over the one that is half sent.
    if endpoints[slot].sending != nil
      && (endpoints[slot].sendingLength != UInt32(truncatingIfNeeded: length)
        || endpoints[slot].sendingDestination != envelope.destination || endpoints[slot].sendingPort != port)
    {
      abandonSending(slot)
    }
    let readiness = transports[port].session(
      localAddress: route.source, remoteAddress: envelope.destination,
      datagramMax: ports[port].mtu &- Core.datagramOverhead, now: now)
    switch readiness {
    case .opening:
      return .wait
    case .refused(let reason):
      abandonSending(slot)
      mailbox.drop(.peerRefused, endpoint: slot)
      if reason == .unreachable && endpoints[slot].peerPort != 0 { report(error: 111 /* ECONNREFUSED */, to: slot) }
      return .done
    case .open(let session):
      endpoints[slot].session = session
      if pausedCount != 0 && endpoints[slot].sending == nil && isPaused(port, session, envelope.destinationPort) {
        return waitForPaused(slot, port, envelope.destinationPort)
      }
      let bytes = unsafe Bytes(unsafe: payload, count: length)
      switch transports[port].send(
        session, bytes, localPort: envelope.sourcePort, remotePort: envelope.destinationPort, ttl: envelope.ttl,
        tos: envelope.tos, progress: endpoints[slot].sending, now: now)
      {
      case .done:
        endpoints[slot].sending = nil
        endpoints[slot].stalledSince = 0
        mailbox.countSent(endpoint: slot, datagrams: 1, bytes: UInt64(truncatingIfNeeded: length))
        return .done
      case .blocked(let progress):
        endpoints[slot].sending = progress
        endpoints[slot].sendingPort = port
        endpoints[slot].sendingLength = UInt32(truncatingIfNeeded: length)
        endpoints[slot].sendingDestination = envelope.destination
        return .wait
      case .lost:
        endpoints[slot].sending = nil
        mailbox.drop(.sessionLost, endpoint: slot)
        return .done
      }
    }
  }

  /// Gives up the datagram of which a session has accepted the beginning.
  @inline(never) @_noLocks
  mutating func abandonSending(_ slot: UInt32) {
    guard let progress = endpoints[slot].sending else { return }
    endpoints[slot].sending = nil
    transports[endpoints[slot].sendingPort].abandon(progress, now: now)
  }

  /// Waits for a remote socket without room, for a limited time: then it is the sender's other peers' turn.
  @inline(never) @_noLocks
  private mutating func waitForPaused(_ slot: UInt32, _ port: UInt32, _ remotePort: UInt16) -> Sent {
    if endpoints[slot].stalledSince == 0 { endpoints[slot].stalledSince = max(1, now) }
    if now &- endpoints[slot].stalledSince < pauseLimit {
      endpoints[slot].isToHold = true
      endpoints[slot].heldPort = port
      endpoints[slot].heldRemotePort = remotePort
      return .wait
    }
    // `stalledSince` stays: what follows for a paused socket does not wait again, until something gets through.
    mailbox.drop(.peerPaused, endpoint: slot)
    return .done
  }

  /// Sends what the transports have to send, as far as there are packets for it.
  @_noLocks
  mutating func pumpSessions() {
    if parkedCount != 0 || fullCount != 0 { lookForRoom() }
    var port: UInt32 = 0
    while Int(port) < portCount {
      if transports[port].nextTimeout <= now && !transports[port].isCatchingUp {
        transports[port].expire(now: now)
        takeEvents(port)
      }
      // One more than is needed, since a question for a neighbour takes one, too.
      while transports[port].hasReady && ports[port].stashCount > 1 && ports[port].room > 1 {
        if !emitSessionPacket(port) { break }
      }
      port &+= 1
    }
  }

  @inline(__always) @_noLocks
  private mutating func emitSessionPacket(_ port: UInt32) -> Bool {
    let packet = ports[port].stash[ports[port].stashCount &- 1]
    let frame = unsafe Bytes(unsafe: packet.data, count: Int(packet.capacity))
    guard let it = transports[port].pollTransmit(into: frame.slice(Core.udpPayload), now: now) else { return false }
    ports[port].stashCount &-= 1
    depart(packet, frame, it, port)
    return true
  }

  /// Makes a frame of a session packet's payload and queues it; there is room.
  @inline(__always) @_noLocks
  private mutating func depart(_ packet: Packet, _ frame: Bytes, _ it: Transport.Transmission, _ port: UInt32) {
    let isOnLink = (it.remoteAddress ^ ports[port].address) & ports[port].mask == 0
    guard let link = link(port, isOnLink ? it.remoteAddress : ports[port].gateway) else {
      mailbox.drop(.neighbourUnresolved)
      spend(packet, port)
      return
    }
    identification &+= 1
    var packet = packet
    packet.length = Int32(truncatingIfNeeded: Core.udpPayload &+ it.length)
    let session = Int(it.session)
    if link.entry == none && session < ports[port].heads.count
      && ports[port].heads[session].begins(
        destination: link.mac, from: it.localAddress, it.ports.source, to: it.remoteAddress, it.ports.destination)
    {
      ports[port].heads[session].emit(into: frame, payload: it.length, identification: identification)
      append(packet, port)
    } else {
      departFirst(packet, frame, it, link)
    }
  }

  /// The same where it is not known yet how the frame begins.
  @inline(never) @_noLocks
  private mutating func departFirst(_ packet: Packet, _ frame: Bytes, _ it: Transport.Transmission, _ link: Link) {
    let length = UDPDatagram.headerLength &+ it.length
    var sum = UDPDatagram.pseudoHeader(source: it.localAddress, destination: it.remoteAddress, length: length)
    sum.add(frame.slice(Core.udpPayload, to: Core.udpPayload &+ it.length))
    UDPDatagram.emit(
      into: frame.slice(Core.udpHeader), sourcePort: it.ports.source, destinationPort: it.ports.destination,
      length: length, sum: sum)
    let envelope = Envelope(
      source: it.localAddress, destination: it.remoteAddress, sourcePort: it.ports.source,
      destinationPort: it.ports.destination)
    ipHeader(envelope, IPv4Packet.headerMin &+ length).emit(into: frame.slice(EthernetFrame.headerLength))
    depart(packet, link)
    if link.entry == none && it.session != none { ports[link.port].heads[it.session] = FrameHead(of: frame) }
  }

  /// Closes sessions, as many as can be told at once.
  ///
  /// - Returns: whether there are frames to send for it.
  @_noLocks
  mutating func closeSessions() -> Bool {
    var any = false
    var port: UInt32 = 0
    while Int(port) < portCount {
      transports[port].closeAll()
      takeEvents(port)
      while transports[port].hasReady && ports[port].stashCount > 1 && ports[port].room > 1 {
        if !emitSessionPacket(port) { break }
        any = true
      }
      port &+= 1
    }
    return any
  }

  // MARK: In

  /// A packet between two session ports.
  @inline(__always) @_noLocks
  mutating func takeSessionPacket(_ datagram: UDPDatagram, _ ip: IPv4Packet, _ port: UInt32) {
    // Others may do without one (RFC 768), sessions do not.
    if datagram.checksum == 0 {
      mailbox.drop(.sessionChecksum)
      return
    }
    let arrival = Transport.Arrival(
      localAddress: ip.destination, remoteAddress: ip.source,
      ports: PortPair(source: datagram.sourcePort, destination: datagram.destinationPort),
      datagramMax: ports[port].mtu &- Core.datagramOverhead)
    if let (message, payload) = transports[port].handle(datagram.payload, arrival, now: now) {
      take(message, payload, port)
    } else if transports[port].hasEvents {
      takeEvents(port)
    }
  }

  @inline(never) @_noLocks
  private mutating func takeEvents(_ port: UInt32) {
    while let event = transports[port].pollEvent() {
      switch event {
      case .message(let message, let payload):
        take(message, payload, port)
      case .word(let word, let session, let localPort, let remotePort):
        take(word, session, localPort, remotePort, port)
      case .closed(let session, _, _, _, let lost):
        mailbox.drop(.sessionLost, lost)
        forgetPaused(port, session)
      case .opened, .refused:
        break
      }
    }
  }

  @inline(__always) @_noLocks
  private mutating func take(_ message: Transport.Message, _ payload: Bytes, _ port: UInt32) {
    if payload.count > Int(MN_DATAGRAM_MAX) || message.localPort == 0 || message.remotePort == 0 {
      mailbox.drop(.udpMalformed)
      return
    }
    let receiver = demultiplexer.receiver(
      world: Demultiplexer.wire, netns: 0, address: message.localAddress, port: message.localPort,
      peerAddress: message.remoteAddress, peerPort: message.remotePort, endpoints)
    if receiver == none {
      answerUnreachable(message, port)
      return
    }
    let envelope = Envelope(
      source: message.remoteAddress, destination: message.localAddress, sourcePort: message.remotePort,
      destinationPort: message.localPort, ttl: message.ttl, tos: message.tos)
    let interface = ports[port].interface
    // What waits already comes first.
    if unsafe endpoints[receiver].parking == none
      && (receiveLimit(of: receiver) == 0 || isWithinLimit(payload.count, receiver))
      && deliver(payload.base, payload.count, envelope, interface: interface, to: receiver)
    {
      if endpoints[receiver].writer.written <= UInt64(endpoints[receiver].rxCapacity / 2) { return }
    } else {
      park(payload, envelope, interface: interface, for: receiver)
    }
    pause(receiver, message.session, port)
  }

  /// Tells a message's sender that nobody has its port.
  @inline(never) @_noLocks
  private mutating func answerUnreachable(_ message: Transport.Message, _ port: UInt32) {
    mailbox.drop(.udpNoReceiver)
    if !mayTellUnreachable() { return }
    _ = transports[port].tell(
      message.session, .unreachable, localPort: message.localPort, remotePort: message.remotePort, now: now)
  }

  /// Whether a message keeps within its receiver's SO_RCVBUF. One that never could is let in alone: what a session has taken
  /// arrives, and waits where the kernel would drop.
  @inline(never) @_noLocks
  func isWithinLimit(_ length: Int, _ receiver: UInt32) -> Bool {
    let limit = receiveLimit(of: receiver)
    return limit == 0 || fits(length, limit, receiver)
      || endpoints[receiver].charged == endpoints[receiver].writer.chargeTaken
  }

  @inline(never) @_noLocks
  private mutating func take(
    _ word: Transport.Word, _ session: UInt32, _ localPort: UInt16, _ remotePort: UInt16, _ port: UInt32
  ) {
    switch word {
    case .unreachable:
      // As an ICMP port unreachable: only a connected socket hears of it.
      guard let peer = transports[port].snapshot(session) else { return }
      let slot = demultiplexer.exact(
        Demultiplexer.wire, peer.localAddress, localPort, peer.remoteAddress, remotePort, endpoints)
      if slot != none { report(error: 111 /* ECONNREFUSED */, to: slot) }
    case .pause:
      note(isPaused: true, port, session, remotePort)
    case .resume:
      note(isPaused: false, port, session, remotePort)
    }
  }

  // MARK: For timers and those who look

  /// When the next timer of a session is due, ns; `UInt64.max`: there is none.
  var sessionTimeout: UInt64 {
    @_noLocks get {
      var due = fullCount != 0 || parkedCount != 0 ? now &+ Core.lookInterval : UInt64.max
      var port = 0
      while port < portCount {
        due = min(due, transports[port].nextTimeout)
        port &+= 1
      }
      return due
    }
  }

  /// Copies counters, and now and then the sessions, to where the control thread can see them.
  @_noLocks
  mutating func tickSessions() {
    mailbox.beginTransport()
    var shown = 0
    var port: UInt32 = 0
    while Int(port) < portCount {
      mailbox.addTransport(transports[port])
      var slot: UInt32 = 0
      if transports[port].sessionCount != 0 {
        while Int(slot) < transports[port].sessionCapacity && shown < EngineLimits.shownSessions {
          if let it = transports[port].snapshot(slot) {
            mailbox.show(session: shown, it, port: port)
            shown &+= 1
          }
          slot &+= 1
        }
      }
      port &+= 1
    }
    mailbox.endSessions(shown)
  }
}
