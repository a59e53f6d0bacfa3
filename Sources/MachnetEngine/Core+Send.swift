import CMachnetABI
import MachnetChannel
import MachnetMemory
import MachnetWire

/// What became of a datagram.
enum Sent {
  /// It went, or it was dropped and counted: the record is used up.
  case done
  /// It cannot go now; the record stays where it is.
  case wait
}

/// From TX rings to receivers.
extension Core {
  /// Visits one endpoint: sends up to `visitMax` records of its TX ring.
  ///
  /// - Returns: whether any record was used up.
  @_noLocks
  mutating func serve(_ slot: UInt32) -> Bool {
    var taken = 0
    var damaged = false
    visit: while taken < Core.visitMax {
      switch endpoints[slot].reader.peek() {
      case .empty:
        break visit
      case .damaged:
        damaged = true
        break visit
      case .record(let record):
        if send(record, from: slot) == .wait { break visit }
        endpoints[slot].reader.advance(record)
        taken &+= 1
      }
    }
    if taken == 0 {
      if touchedCount != 0 { flushTouched() }
      if damaged { return reportDamage(slot) }
      // A visit that was refused is a visit that found something; the end of some waits is seen without visits.
      if endpoints[slot].stalledSince == 0 {
        endpoints[slot].emptyVisits &+= 1
      } else {
        endpoints[slot].emptyVisits = endpoints[slot].isToHold ? .max : 0
      }
      return false
    }
    endpoints[slot].emptyVisits = 0
    // Receivers first: a sender whose TX ring is empty may rely on its datagrams having arrived.
    publishTouched()
    endpoints[slot].reader.publish()
    // One fence for both: our publishes come before the looks at who sleeps.
    mn_fence()
    wakeTouched()
    wakeSender(slot)
    if damaged { return reportDamage(slot) }
    return true
  }

  @inline(never) @_noLocks
  private mutating func reportDamage(_ slot: UInt32) -> Bool {
    fault(channel: endpoints[slot].channel)
    return true
  }

  /// Tells a sender that found its ring full that there is room, once it is half empty: sooner it would fall asleep
  /// again after a few datagrams.
  @inline(__always) @_noLocks
  private mutating func wakeSender(_ slot: UInt32) {
    let word = unsafe endpoints[slot].block + Int(MN_OFFSET_ENDPOINT_TX_WAIT)
    guard unsafe mn_load_relaxed_u32(word) == UInt32(MN_WAIT_ARMED) else { return }
    let pending = endpoints[slot].reader.published &- endpoints[slot].reader.position
    if pending <= UInt64(endpoints[slot].txCapacity / 2) { wake(slot, Int(MN_OFFSET_ENDPOINT_TX_WAIT)) }
  }

  /// Sends one record: every word of it is loaded once, here.
  @inline(__always) @_noLocks
  private mutating func send(_ record: Record, from slot: UInt32) -> Sent {
    let header = unsafe UnsafeRawPointer(record.base)
    let flags = unsafe header.load(fromByteOffset: 6, as: UInt16.self)
    let port = unsafe header.load(fromByteOffset: 8, as: UInt16.self)
    let segment = unsafe Int(header.load(fromByteOffset: 12, as: UInt16.self))
    let prefix = unsafe header.load(fromByteOffset: 32, as: UInt64.self)
    let mapped = unsafe header.load(fromByteOffset: 40, as: UInt32.self)
    let address = unsafe UInt32(bigEndian: header.load(fromByteOffset: 44, as: UInt32.self))
    guard prefix == 0, mapped == Core.mappedPrefix, port != 0 else {
      abandonSending(slot)
      mailbox.drop(.destinationRefused, endpoint: slot)
      return .done
    }
    var route: Route
    if flags & UInt16(MN_RECORD_LOCAL_ADDRESS) == 0 {
      if endpoints[slot].routeAddress == address && endpoints[slot].routePort == port
        && endpoints[slot].routeGeneration == generation
      {
        route = endpoints[slot].route
      } else {
        route = self.route(from: slot, to: address, port, source: 0)
        endpoints[slot].routeAddress = address
        endpoints[slot].routePort = port
        endpoints[slot].routeGeneration = generation
        endpoints[slot].route = route
      }
    } else {
      let source = unsafe UInt32(bigEndian: header.load(fromByteOffset: 60, as: UInt32.self))
      route = self.route(from: slot, to: address, port, source: source)
    }
    var envelope = Envelope(
      source: route.source, destination: address, sourcePort: endpoints[slot].localPort, destinationPort: port)
    if flags & UInt16(MN_RECORD_TTL) != 0 { envelope.ttl = unsafe header.load(fromByteOffset: 14, as: UInt8.self) }
    if flags & UInt16(MN_RECORD_TOS) != 0 { envelope.tos = unsafe header.load(fromByteOffset: 15, as: UInt8.self) }
    envelope.dontFragment = flags & UInt16(MN_RECORD_DONT_FRAGMENT) != 0
    envelope.isReliable = flags & UInt16(MN_RECORD_MACHNET) != 0
    // Its way has changed in the middle of it.
    if endpoints[slot].sending != nil && (route.kind != .port || !envelope.isReliable) { abandonSending(slot) }

    if segment == 0 || record.length <= segment {
      return unsafe sendOne(record.payload, record.length, envelope, route, from: slot)
    }
    return sendSegments(record, segment, envelope, route, from: slot)
  }

  /// UDP_SEGMENT: one record, many datagrams. What is sent already is remembered when the rest has to wait.
  @_noLocks
  private mutating func sendSegments(
    _ record: Record, _ segment: Int, _ envelope: Envelope, _ route: Route, from slot: UInt32
  ) -> Sent {
    // As the kernel (UDP_MAX_SEGMENTS); the shim asks for no more.
    if record.length > segment &* Core.segmentsMax {
      abandonSending(slot)
      endpoints[slot].progress = 0
      mailbox.drop(.messageTooLong, endpoint: slot)
      return .done
    }
    var offset = Int(endpoints[slot].progress)
    if offset == 0 && route.kind == .local && takesTogether(route.target) {
      var whole = envelope
      whole.segment = UInt16(truncatingIfNeeded: segment)
      return unsafe sendLocal(record.payload, record.length, whole, route, from: slot)
    }
    while offset < record.length {
      let length = min(segment, record.length &- offset)
      if unsafe sendOne(record.payload + offset, length, envelope, route, from: slot) == .wait {
        endpoints[slot].progress = UInt32(truncatingIfNeeded: offset)
        return .wait
      }
      offset &+= length
    }
    endpoints[slot].progress = 0
    return .done
  }

  /// UDP_GRO: whether a receiver wants the segments of one send in one piece.
  @_noLocks
  private func takesTogether(_ receiver: UInt32) -> Bool {
    unsafe mn_load_relaxed_u32(endpoints[receiver].block + Int(MN_OFFSET_ENDPOINT_RECEIVE_TOGETHER)) == 1
  }

  @inline(__always) @_noLocks
  private mutating func sendOne(
    _ payload: UnsafeMutableRawPointer, _ length: Int, _ envelope: Envelope, _ route: Route, from slot: UInt32
  ) -> Sent {
    switch route.kind {
    case .local:
      return unsafe sendLocal(payload, length, envelope, route, from: slot)
    case .port:
      if envelope.isReliable { return unsafe sendToSession(payload, length, envelope, route, from: slot) }
      return unsafe sendToPort(payload, length, envelope, route, from: slot)
    case .refused:
      refuse(route.reason, from: slot)
      return .done
    case .tapped:
      return unsafe sendTapped(payload, length, envelope, route, from: slot)
    }
  }

  /// A local delivery while somebody captures.
  @inline(never) @_noLocks
  private mutating func sendTapped(
    _ payload: UnsafeMutableRawPointer, _ length: Int, _ envelope: Envelope, _ route: Route, from slot: UInt32
  ) -> Sent {
    let sent = unsafe sendLocal(payload, length, envelope, route, from: slot)
    // A datagram that was dropped was on the way, too, as on a loopback interface.
    if sent == .done {
      capture.addLocal(
        unsafe Bytes(unsafe: payload, count: length), envelope, identification: identification, at: clock.realtime(at: now))
      identification &+= 1
    }
    return sent
  }

  /// A datagram without a way: counted, and told to a connected sender as the kernel's loopback would.
  @inline(never) @_noLocks
  private mutating func refuse(_ reason: DropReason, from slot: UInt32) {
    mailbox.drop(reason, endpoint: slot)
    if reason == .noLocalReceiver && endpoints[slot].peerPort != 0 { report(error: 111 /* ECONNREFUSED */, to: slot) }
  }

  /// Copies a datagram into the RX ring of an endpoint of this daemon.
  @inline(__always) @_noLocks
  private mutating func sendLocal(
    _ payload: UnsafeMutableRawPointer, _ length: Int, _ envelope: Envelope, _ route: Route, from slot: UInt32
  ) -> Sent {
    let receiver = route.target
    let limit = receiveLimit(of: receiver)
    if limit != 0 && !fits(length, limit, receiver) {
      // A full receive buffer: the kernel drops at once, and so do we.
      dropReceived(.receiveRingFull, receiver)
    } else if unsafe deliver(payload, length, envelope, interface: route.interface, to: receiver) {
      endpoints[slot].stalledSince = 0
      mailbox.count(.localDatagrams)
      mailbox.count(.localBytes, length)
    } else if isWorthWaiting(for: receiver, from: slot) {
      return .wait
    }
    mailbox.countSent(endpoint: slot, datagrams: 1, bytes: UInt64(truncatingIfNeeded: length))
    return .done
  }

  /// A receiver's ring is full: its sender waits for a while, unless the receiver has let one wait in vain already.
  @inline(never) @_noLocks
  private mutating func isWorthWaiting(for receiver: UInt32, from slot: UInt32) -> Bool {
    var reason = DropReason.receiverSlow
    if !endpoints[receiver].isSlow {
      if endpoints[slot].stalledSince == 0 { endpoints[slot].stalledSince = max(1, now) }
      if now &- endpoints[slot].stalledSince < localStall { return true }
      endpoints[receiver].isSlow = true
      reason = .receiverStalled
    }
    endpoints[slot].stalledSince = 0
    dropReceived(reason, receiver)
    return false
  }

  /// Counts a datagram that its receiver had no room for, also where the receiver can see it (SO_RXQ_OVFL).
  @_noLocks
  mutating func dropReceived(_ reason: DropReason, _ receiver: UInt32) {
    mailbox.drop(reason, endpoint: receiver)
    _ = unsafe mn_fetch_add_u64(endpoints[receiver].block + Int(MN_OFFSET_ENDPOINT_RX_DROPS), 1)
  }

  /// SO_RCVBUF, where the receiver's program has set it; else 0.
  @inline(__always) @_noLocks
  func receiveLimit(of receiver: UInt32) -> UInt32 {
    unsafe mn_load_relaxed_u32(endpoints[receiver].block + Int(MN_OFFSET_ENDPOINT_RECEIVE_LIMIT))
  }

  /// Whether a datagram keeps within its receiver's SO_RCVBUF, by the kernel's accounting.
  @inline(never) @_noLocks
  func fits(_ length: Int, _ limit: UInt32, _ receiver: UInt32) -> Bool {
    let waiting = endpoints[receiver].charged &- endpoints[receiver].writer.chargeTaken
    // What a receiver says that it took more than it got is a lie, and harms itself alone: then nothing fits.
    return waiting &+ mn_charge(UInt32(truncatingIfNeeded: length)) <= UInt64(limit)
  }

  /// Puts a datagram into an RX ring; published with the burst.
  ///
  /// - Returns: false when there is no room (or the receiver is marked slow).
  @inline(__always) @_noLocks
  mutating func deliver(
    _ payload: UnsafeMutableRawPointer, _ length: Int, _ envelope: Envelope, interface: UInt32, to receiver: UInt32
  ) -> Bool {
    if endpoints[receiver].isSlow {
      if endpoints[receiver].writer.pending > UInt64(endpoints[receiver].rxCapacity / 2) { return false }
      endpoints[receiver].isSlow = false
    }
    guard let record = endpoints[receiver].writer.reserve(length) else { return false }
    unsafe fill(record, payload, envelope, interface: interface)
    if receiveLimit(of: receiver) != 0 { charge(record, length, receiver) }
    endpoints[receiver].writer.commit(record)
    count(length, deliveredTo: receiver)
    return true
  }

  /// Counts a record for an RX ring against its receiver's SO_RCVBUF.
  @inline(__always) @_noLocks
  mutating func charge(_ record: Record, _ length: Int, _ receiver: UInt32) {
    let flags = Core.receiveFlags | UInt16(truncatingIfNeeded: MN_RECORD_CHARGED)
    unsafe record.base.storeBytes(of: flags, toByteOffset: 6, as: UInt16.self)
    endpoints[receiver].charged &+= mn_charge(UInt32(truncatingIfNeeded: length))
  }

  /// Counts a datagram that was put into an RX ring, to be published with the burst.
  @inline(__always) @_noLocks
  mutating func count(_ length: Int, deliveredTo receiver: UInt32) {
    endpoints[receiver].burstDatagrams &+= 1
    endpoints[receiver].burstBytes &+= UInt32(truncatingIfNeeded: length)
    touch(receiver)
  }

  /// Writes a record as the application reads it; its length says how much of `payload` there is.
  @inline(__always) @_noLocks
  func fill(_ record: Record, _ payload: UnsafeMutableRawPointer, _ envelope: Envelope, interface: UInt32) {
    // `reserve` has set the length and the kind: the first six bytes.
    let header = unsafe record.base
    unsafe header.storeBytes(of: Core.receiveFlags, toByteOffset: 6, as: UInt16.self)
    unsafe header.storeBytes(of: envelope.sourcePort, toByteOffset: 8, as: UInt16.self)
    unsafe header.storeBytes(of: envelope.destinationPort, toByteOffset: 10, as: UInt16.self)
    unsafe header.storeBytes(of: envelope.segment, toByteOffset: 12, as: UInt16.self)
    unsafe header.storeBytes(of: envelope.ttl, toByteOffset: 14, as: UInt8.self)
    unsafe header.storeBytes(of: envelope.tos, toByteOffset: 15, as: UInt8.self)
    unsafe header.storeBytes(of: interface, toByteOffset: 16, as: UInt32.self)
    unsafe header.storeBytes(of: 0, toByteOffset: 20, as: UInt32.self)
    unsafe header.storeBytes(of: clock.realtime(at: now), toByteOffset: 24, as: UInt64.self)
    unsafe header.storeBytes(of: 0, toByteOffset: 32, as: UInt64.self)
    unsafe header.storeBytes(of: Core.mappedPrefix, toByteOffset: 40, as: UInt32.self)
    unsafe header.storeBytes(of: envelope.source.bigEndian, toByteOffset: 44, as: UInt32.self)
    unsafe header.storeBytes(of: 0, toByteOffset: 48, as: UInt64.self)
    unsafe header.storeBytes(of: Core.mappedPrefix, toByteOffset: 56, as: UInt32.self)
    unsafe header.storeBytes(of: envelope.destination.bigEndian, toByteOffset: 60, as: UInt32.self)
    unsafe record.payload.copyMemory(from: payload, byteCount: record.length)
  }

  /// The third word of a v4-mapped address, as it lies in memory (RFC 4291, 2.5.5.2).
  @inline(__always)
  static var mappedPrefix: UInt32 { @_noLocks get { (0x0000_FFFF as UInt32).bigEndian } }
  @inline(__always)
  static var receiveFlags: UInt16 {
    @_noLocks get { UInt16(truncatingIfNeeded: MN_RECORD_LOCAL_ADDRESS | MN_RECORD_TTL | MN_RECORD_TOS) }
  }

  // MARK: Routes

  /// Where an endpoint's datagrams to `address:port` go.
  ///
  /// - Parameter source: the address that the sender asks for, or 0.
  @inline(never) @_noLocks
  func route(from slot: UInt32, to address: UInt32, _ port: UInt16, source asked: UInt32) -> Route {
    let netns = endpoints[slot].netns
    var source = asked != 0 ? asked : endpoints[slot].localAddress
    if asked != 0 && asked != endpoints[slot].localAddress && !isOwn(asked, netns: netns) {
      return .refused(.sourceRefused)
    }
    // Multicast, broadcast and "this network" (RFC 1122, 3.2.1.3) are the kernel's.
    if address >> 24 == 0 || address >> 28 >= 0xE { return .refused(.destinationRefused) }
    let isHost = directory.isHostAddress(address, netns: netns)
    let isEngines = directory.isEngineAddress(address)
    let isForeignHost = separateHosts && isEngines && source != address && directory.isEngineAddress(source)
    if (isHost || isEngines) && !isForeignHost {
      // RFC 1122, 3.2.1.3: loopback addresses stay inside; and nothing else comes from them.
      if source == 0 { source = address >> 24 == 127 ? 0x7F00_0001 : address }
      let receiver = demultiplexer.receiver(
        world: isEngines ? Demultiplexer.wire : netns, netns: isEngines ? 0 : netns, address: address, port: port,
        peerAddress: source, peerPort: endpoints[slot].localPort, endpoints)
      if receiver == none { return .refused(.noLocalReceiver) }
      return Route(kind: capture.isOn ? .tapped : .local, reason: .noRoute, target: receiver, source: source, interface: isEngines ? 0 : 1)
    }
    return routeToPort(from: slot, to: address, source: source)
  }

  /// Whether senders of a network namespace may call `address` theirs.
  @_noLocks
  private func isOwn(_ address: UInt32, netns: UInt16) -> Bool {
    directory.isHostAddress(address, netns: netns) || (netns == 0 && directory.isEngineAddress(address))
  }
}

/// What a datagram's headers say. Host byte order.
struct Envelope: BitwiseCopyable {
  var source: UInt32
  var destination: UInt32
  var sourcePort: UInt16
  var destinationPort: UInt16
  /// RFC 1700's default, and the kernel's.
  var ttl: UInt8 = 64
  var tos: UInt8 = 0
  var dontFragment = false
  /// Goes over a session.
  var isReliable = false
  /// Bytes of a segment where several datagrams are delivered in one piece (UDP_GRO); 0: it is one.
  var segment: UInt16 = 0
}
