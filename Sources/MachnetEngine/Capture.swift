import CMachnetABI
import MachnetMemory
import MachnetWire

/// What the control thread wants captured.
@safe
struct CaptureOrder: BitwiseCopyable {
  /// Safety: `MN_PAGE + MN_CAPTURE_DATA` bytes, mapped by the control thread until the ticket of the next order is done.
  var base: UnsafeMutableRawPointer? = nil
  var address: UInt32 = 0
  var port: UInt16 = 0
  var snap = 0
}

/// Copies frames into the memory of a capture. The engine is the only writer of all but `head`, and goes by its own copies.
///
/// Off, it costs a branch per burst; local deliveries know by their route.
@safe
struct Capture {
  /// Safety: of the order. nil: off.
  private let base: UnsafeMutableRawPointer?
  private let address: UInt32
  private let port: UInt16
  private let snap: Int
  private var tail: UInt64 = 0

  init(_ order: CaptureOrder) {
    unsafe base = order.base
    address = order.address
    port = order.port
    snap = order.snap
  }

  @inline(__always)
  var isOn: Bool { @_noLocks get { unsafe base != nil } }

  private static var recordHeader: Int { @_noLocks get { 32 } }
  private static var data: Int { @_noLocks get { Int(MN_PAGE) } }
  private static var capacity: Int { @_noLocks get { Int(MN_CAPTURE_DATA) } }
  private static var tailOffset: Int { @_noLocks get { 64 } }
  private static var headOffset: Int { @_noLocks get { 128 } }
  private static var seenOffset: Int { @_noLocks get { 192 } }
  private static var droppedOffset: Int { @_noLocks get { 192 &+ 8 &* Int(MN_CAPTURE_INTERFACES) } }

  /// Keeps a frame if the filter lets it through.
  @_noLocks
  mutating func add(_ frame: Bytes, interface: Int, direction: Int, at timestamp: UInt64) {
    if !isWanted(frame) { return }
    guard let place = reserve(min(frame.count, snap), original: frame.count, interface, direction, timestamp) else { return }
    put(frame.slice(0, to: min(frame.count, snap)), at: place)
    publish(min(frame.count, snap))
  }

  /// Keeps a datagram that no NIC has seen, as the frame that it would have been. Ethernet addresses and the UDP checksum
  /// are 0, as on a loopback interface and as RFC 768 has them for "none".
  @_noLocks
  mutating func addLocal(_ payload: Bytes, _ envelope: Envelope, identification: UInt16, at timestamp: UInt64) {
    if address != 0 && envelope.source != address && envelope.destination != address { return }
    if port != 0 && envelope.sourcePort != port && envelope.destinationPort != port { return }
    let headers = 42
    let original = headers &+ payload.count
    let length = min(original, snap)
    guard let place = reserve(length, original: original, Int(MN_CAPTURE_LOCAL), Int(MN_CAPTURE_OUT), timestamp) else { return }
    var room: InlineArray<6, UInt64> = .init(repeating: 0)
    unsafe withUnsafeMutableBytes(of: &room) { room in
      let frame = unsafe Bytes(unsafe: room.baseAddress!, count: headers)
      EthernetFrame.emit(into: frame, destination: 0, source: 0, type: EtherType.ipv4)
      var header = IPv4Header(
        totalLength: original &- EthernetFrame.headerLength, ipProtocol: IPProtocol.udp, source: envelope.source,
        destination: envelope.destination)
      header.tos = envelope.tos
      header.ttl = envelope.ttl
      header.identification = identification
      header.dontFragment = envelope.dontFragment
      header.emit(into: frame.slice(EthernetFrame.headerLength))
      let udp = frame.slice(34)
      udp.set16(0, envelope.sourcePort)
      udp.set16(2, envelope.destinationPort)
      udp.set16(4, UInt16(truncatingIfNeeded: payload.count &+ 8))
      udp.set16(6, 0)
      put(frame.slice(0, to: min(headers, length)), at: place)
    }
    if length > headers { put(payload.slice(0, to: length &- headers), at: place &+ UInt64(headers)) }
    publish(length)
  }

  // MARK: The ring

  /// Makes room for a record and writes its header.
  ///
  /// - Returns: where its bytes go, a free-running number; nil: the ring is full, which is counted.
  @_noLocks
  private mutating func reserve(_ length: Int, original: Int, _ interface: Int, _ direction: Int, _ timestamp: UInt64) -> UInt64? {
    guard let base = unsafe base else { return nil }
    unsafe count(base + Capture.seenOffset + interface * 8)
    // Acquire: pairs with the reader's release when it has copied what was there. A reader that lies only loses frames.
    let used = unsafe tail &- mn_load_acquire_u64(base + Capture.headOffset)
    let size = UInt64(stride(length))
    guard used <= UInt64(Capture.capacity), UInt64(Capture.capacity) &- used >= size else {
      unsafe count(base + Capture.droppedOffset + interface * 8)
      return nil
    }
    let header = unsafe base + Capture.data + Int(tail & UInt64(Capture.capacity &- 1))
    unsafe header.storeBytes(of: UInt32(truncatingIfNeeded: length), toByteOffset: 0, as: UInt32.self)
    unsafe header.storeBytes(of: UInt32(truncatingIfNeeded: original), toByteOffset: 4, as: UInt32.self)
    unsafe header.storeBytes(of: timestamp, toByteOffset: 8, as: UInt64.self)
    unsafe header.storeBytes(of: UInt16(truncatingIfNeeded: interface), toByteOffset: 16, as: UInt16.self)
    unsafe header.storeBytes(of: UInt16(truncatingIfNeeded: direction), toByteOffset: 18, as: UInt16.self)
    return tail &+ UInt64(Capture.recordHeader)
  }

  @_noLocks
  private func put(_ bytes: Bytes, at place: UInt64) {
    guard let base = unsafe base else { return }
    let at = Int(place & UInt64(Capture.capacity &- 1))
    let first = min(bytes.count, Capture.capacity &- at)
    unsafe (base + Capture.data + at).copyMemory(from: bytes.base, byteCount: first)
    if first < bytes.count {
      unsafe (base + Capture.data).copyMemory(from: bytes.base + first, byteCount: bytes.count &- first)
    }
  }

  @_noLocks
  private mutating func publish(_ length: Int) {
    guard let base = unsafe base else { return }
    tail &+= UInt64(stride(length))
    // Release: pairs with the reader's acquire before it reads the records.
    unsafe mn_store_release_u64(base + Capture.tailOffset, tail)
  }

  @_noLocks
  private func stride(_ length: Int) -> Int { (Capture.recordHeader &+ length &+ 31) & ~31 }

  @_noLocks
  private func count(_ word: UnsafeMutableRawPointer) {
    unsafe mn_store_relaxed_u64(word, mn_load_relaxed_u64(word) &+ 1)
  }

  // MARK: The filter

  /// Fragments after the first have no ports: where a port is asked for, they are not wanted.
  @_noLocks
  private func isWanted(_ frame: Bytes) -> Bool {
    if address == 0 && port == 0 { return true }
    guard let ethernet = EthernetFrame(frame) else { return false }
    let inside = ethernet.payload
    if ethernet.type == EtherType.arp {
      // Sender's and target's protocol addresses (RFC 826).
      return port == 0 && inside.count >= 28 && (inside.u32(14) == address || inside.u32(24) == address)
    }
    guard ethernet.type == EtherType.ipv4, let ip = IPv4Packet(inside) else { return false }
    if address != 0 && ip.source != address && ip.destination != address { return false }
    if port == 0 { return true }
    let payload = ip.payload
    guard ip.ipProtocol == IPProtocol.udp, inside.u16(6) & 0x1fff == 0, payload.count >= 4 else { return false }
    return payload.u16(0) == port || payload.u16(2) == port
  }
}

extension Core {
  @inline(never) @_noLocks
  mutating func captureReceived(_ port: UInt32, count: Int) {
    var index = 0
    while index < count {
      let packet = ports[port].burst[index]
      capture.add(
        unsafe Bytes(unsafe: packet.data, count: Int(packet.length)), interface: Int(port), direction: Int(MN_CAPTURE_IN),
        at: clock.realtime(at: now))
      index &+= 1
    }
  }

  /// The next `count` frames of the queue, but for those that were seen before.
  @inline(never) @_noLocks
  mutating func captureQueued(_ port: UInt32, count: Int) {
    let end = ports[port].queueHead &+ count
    var place = max(ports[port].queueHead, ports[port].queueCaptured)
    while place < end {
      let packet = ports[port].queue[place & (Port.queueMax &- 1)]
      capture.add(
        unsafe Bytes(unsafe: packet.data, count: Int(packet.length)), interface: Int(port), direction: Int(MN_CAPTURE_OUT),
        at: clock.realtime(at: now))
      place &+= 1
    }
    ports[port].queueCaptured = max(ports[port].queueCaptured, end)
  }
}
