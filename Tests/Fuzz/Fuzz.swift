import Glibc
import MachnetMemory
@testable import MachnetTransport
import MachnetWire

// What a stranger, or a peer that lies, can put on the wire: libFuzzer's side of it. `Scripts/fuzz` builds and runs this.
// (ChannelFuzz.swift and ControlFuzz.swift are about programs that lie.)
//
// An input is a conversation between two transports, a and b, and somebody who writes packets into it. It is a list of steps; a
// step begins with a byte, whose three low bits say which (`Step`), and whose bit 3 says for whom it is (1: a). What a
// step lacks at the input's end is zeros. After each step the books of both transports must balance.

enum Step: UInt8 {
  /// Length (2 bytes), and as many: the UDP payload of a packet.
  case packet
  /// The same: an Ethernet frame. What it holds for sessions goes the same way.
  case frame
  /// A count (1), and as many pairs of offset and value: what is changed in the next packet that the other side really sends.
  case changed
  /// Time that passes: units of 16 us (2 bytes).
  case time
  /// The other side sends a message of this length (2 bytes).
  case message
  /// Both sides' packets are carried until neither has one.
  case carry
  /// A number relative to the one expected, an acknowledgement relative to the oldest unacknowledged (signed bytes), length
  /// (2), and as many bytes: a packet whose tag, number and acknowledgement are made right by these.
  case inSession
  /// The next packet that the other side sends gets lost.
  case lose
}

/// What is fuzzed: by MACHNET_FUZZ_TARGET.
private enum Target: String { case packets, channel, control }
private let target: Target = {
  guard let name = unsafe getenv("MACHNET_FUZZ_TARGET") else { return .packets }
  return unsafe Target(rawValue: String(cString: name))!
}()

@c(LLVMFuzzerTestOneInput)
public func fuzz(_ base: UnsafePointer<UInt8>, _ count: Int) -> CInt {
  let input = unsafe Input(base, count)
  switch target {
  case .packets:
    let conversation = Conversation()
    for _ in 0..<Conversation.stepMax where !input.isEmpty {
      conversation.take(input)
      conversation.check()
    }
    conversation.end()
  case .channel:
    let liar = Liar()
    for _ in 0..<Liar.stepMax where !input.isEmpty { liar.take(input) }
    liar.end()
  case .control:
    let clients = Clients()
    for _ in 0..<Clients.stepMax where !input.isEmpty { clients.take(input) }
    clients.end()
  }
  return 0
}

/// What must be so. (`precondition` is silent in an optimised build.)
func require(_ isSo: Bool, _ otherwise: @autoclosure () -> String) {
  if isSo { return }
  print(otherwise())
  fflush(nil)
  preconditionFailure()
}

@safe
final class Input {
  /// Safety: `count` bytes, for as long as the call lasts.
  private let base: UnsafePointer<UInt8>
  private let count: Int
  private var offset = 0

  init(_ base: UnsafePointer<UInt8>, _ count: Int) {
    unsafe self.base = base
    self.count = count
  }

  var isEmpty: Bool { offset >= count }

  func byte() -> UInt8 {
    if isEmpty { return 0 }
    offset += 1
    return unsafe base[offset - 1]
  }

  func word() -> UInt16 { UInt16(byte()) << 8 | UInt16(byte()) }

  /// As many as there are, at most.
  func bytes(_ wanted: Int) -> [UInt8] { (0..<min(wanted, count - offset)).map { _ in byte() } }
}

@safe
final class Conversation {
  static let stepMax = 256
  static let addressA: UInt32 = 0x0A00_0001
  static let addressB: UInt32 = 0x0A00_0002
  private static let datagramMax = 1472
  private static let ports = PortPair(source: 62_000, destination: 62_001)

  private var a: Transport
  private var b: Transport
  private var now: UInt64 = 1_000_000_000
  /// Safety: of this size, until the end.
  private let room = UnsafeMutableRawPointer.allocate(byteCount: 2048, alignment: 64)
  /// Of the last message's bytes, so that they are read.
  private(set) var sum: UInt64 = 0

  init() {
    func made(_ epoch: UInt64) -> Transport {
      var options = TransportOptions(engine: 0, engines: 1, epoch: epoch, seed: (7, epoch))
      options.sessions = 4
      options.buffers = 96
      options.assemblies = 8
      options.largeAssemblies = 1
      return Transport(options)
    }
    a = made(11)
    b = made(22)
  }

  deinit { unsafe room.deallocate() }

  private func reach<T>(_ isA: Bool, _ body: (inout Transport) -> T) -> T { isA ? body(&a) : body(&b) }
  private var bytes: Bytes { unsafe Bytes(unsafe: room, count: 2048) }

  func take(_ input: Input) {
    let head = input.byte()
    let toA = head & 8 != 0
    switch Step(rawValue: head & 7)! {
    case .packet:
      give(input.bytes(Int(input.word())), Conversation.ports, toA: toA)
    case .frame:
      giveFrame(input.bytes(Int(input.word())), toA: toA)
    case .changed:
      let edits = (0..<input.byte()).map { _ in (Int(input.byte()), input.byte()) }
      guard let (original, ports) = next(fromA: !toA) else { return }
      var payload = original
      for (offset, value) in edits where offset < payload.count { payload[offset] = value }
      give(payload, ports, toA: toA)
    case .time:
      now += UInt64(input.word()) << 14
      for isA in [true, false] {
        reach(isA) { $0.expire(now: now) }
        hear(ofA: isA)
      }
    case .message:
      send(Int(input.word()), fromA: !toA)
    case .carry:
      carry()
    case .inSession:
      let number = Int8(bitPattern: input.byte())
      let acknowledgement = Int8(bitPattern: input.byte())
      var payload = input.bytes(Int(input.word()))
      place(into: &payload, number, acknowledgement, toA: toA)
      give(payload, Conversation.ports, toA: toA)
    case .lose:
      _ = next(fromA: !toA)
    }
  }

  private func next(fromA: Bool) -> ([UInt8], PortPair)? {
    guard let it = reach(fromA, { $0.pollTransmit(into: bytes, now: now) }) else { return nil }
    return ((0..<it.length).map { bytes.u8($0) }, it.ports)
  }

  /// The payload in memory of its own length, where the address sanitizer sees what reads beyond it.
  private func give(_ payload: [UInt8], _ ports: PortPair, toA: Bool, from: UInt32? = nil, to: UInt32? = nil) {
    let copy = UnsafeMutableRawPointer.allocate(byteCount: max(1, payload.count), alignment: 1)
    defer { unsafe copy.deallocate() }
    unsafe copy.copyMemory(from: payload, byteCount: payload.count)
    let arrival = Transport.Arrival(
      localAddress: to ?? (toA ? Conversation.addressA : Conversation.addressB),
      remoteAddress: from ?? (toA ? Conversation.addressB : Conversation.addressA), ports: ports,
      datagramMax: Conversation.datagramMax)
    let packet = unsafe Bytes(unsafe: copy, count: payload.count)
    if let (_, content) = reach(toA, { $0.handle(packet, arrival, now: now) }) { read(content) }
    hear(ofA: toA)
  }

  private func hear(ofA: Bool) {
    while let event = reach(ofA, { $0.pollEvent() }) {
      if case .message(_, let content) = event { read(content) }
    }
  }

  private func read(_ content: Bytes) { for offset in 0..<content.count { sum &+= UInt64(content.u8(offset)) } }

  private func carry() {
    for _ in 0..<64 {
      var any = false
      for fromA in [true, false] {
        while let (payload, ports) = next(fromA: fromA) {
          give(payload, ports, toA: !fromA)
          any = true
        }
      }
      if !any { return }
      now += 10_000
      for isA in [true, false] {
        reach(isA) { $0.expire(now: now) }
        hear(ofA: isA)
      }
    }
  }

  private func send(_ size: Int, fromA: Bool) {
    let (local, remote) =
      fromA ? (Conversation.addressA, Conversation.addressB) : (Conversation.addressB, Conversation.addressA)
    let content = UnsafeMutableRawPointer.allocate(byteCount: max(1, size), alignment: 1)
    defer { unsafe content.deallocate() }
    unsafe content.initializeMemory(as: UInt8.self, repeating: 7, count: size)
    let message = unsafe Bytes(unsafe: content, count: size)
    reach(fromA) {
      let ready = $0.session(
        localAddress: local, remoteAddress: remote, datagramMax: Conversation.datagramMax, now: now)
      guard case .open(let session) = ready else { return }
      _ = $0.send(session, message, localPort: 1, remotePort: 2, ttl: 64, tos: 0, progress: nil, now: now)
    }
  }

  /// Writes what a session of the receiver wants to see.
  private func place(into payload: inout [UInt8], _ number: Int8, _ acknowledgement: Int8, toA: Bool) {
    let wanted: (UInt64, UInt32, UInt32)? = reach(toA) {
      for slot in 0..<UInt32($0.sessions.count) where $0.sessions[slot].state != .free {
        return ($0.sessions[slot].localTag, $0.sessions[slot].expected, $0.sessions[slot].base)
      }
      return nil
    }
    guard let (tag, expected, base) = wanted, payload.count >= MachnetPacket.headerLength else { return }
    func put(_ value: UInt64, _ offset: Int, _ size: Int) {
      for index in 0..<size { payload[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * (size - 1 - index))) }
    }
    put(tag, 4, 8)
    put(UInt64(expected &+ UInt32(truncatingIfNeeded: Int(number))), 12, 4)
    put(UInt64(base &+ UInt32(truncatingIfNeeded: Int(acknowledgement))), 16, 4)
  }

  /// As an engine takes a frame apart (`Core.receive`), every accessor of every view.
  private func giveFrame(_ content: [UInt8], toA: Bool) {
    let copy = UnsafeMutableRawPointer.allocate(byteCount: max(1, content.count), alignment: 1)
    defer { unsafe copy.deallocate() }
    unsafe copy.copyMemory(from: content, byteCount: content.count)
    let bytes = unsafe Bytes(unsafe: copy, count: content.count)
    guard let frame = EthernetFrame(bytes) else { return }
    sum &+= frame.destination ^ frame.source ^ UInt64(frame.type)
    if let arp = ARPPacket(frame.payload) {
      sum &+= UInt64(arp.operation) ^ arp.senderHardware ^ UInt64(arp.senderProtocol) ^ arp.targetHardware
        ^ UInt64(arp.targetProtocol)
    }
    guard let ip = IPv4Packet(frame.payload) else { return }
    sum &+= UInt64(ip.tos) ^ UInt64(ip.identification) ^ UInt64(ip.fragmentOffset) ^ UInt64(ip.ttl)
    sum &+= UInt64(ip.whole.count) ^ (ip.isChecksumRight ? 1 : 0) ^ (ip.isFragment || ip.moreFragments || ip.dontFragment ? 2 : 0)
    if let icmp = ICMPMessage(ip.payload) {
      sum &+= UInt64(icmp.type) ^ UInt64(icmp.code) ^ (icmp.isChecksumRight ? 1 : 0)
      if let quoted = icmp.quoted {
        reach(toA) {
          $0.unreachable(
            localAddress: quoted.source, remoteAddress: quoted.destination,
            ports: PortPair(source: quoted.sourcePort, destination: quoted.destinationPort), now: now)
        }
        hear(ofA: toA)
      }
      if icmp.type == ICMPMessage.echoRequest { icmp.turnIntoReply() }
    }
    guard let datagram = UDPDatagram(ip.payload) else { return }
    sum &+= datagram.isChecksumRight(source: ip.source, destination: ip.destination) ? 1 : 0
    sum &+= UInt64(datagram.checksum)
    let payload = datagram.payload
    give(
      (0..<payload.count).map { payload.u8($0) },
      PortPair(source: datagram.sourcePort, destination: datagram.destinationPort), toA: toA, from: ip.source,
      to: ip.destination)
  }

  // MARK: The books

  func check() {
    for isA in [true, false] { reach(isA) { Conversation.balance($0) } }
  }

  private static func balance(_ transport: borrowing Transport) {
    var held = 0
    var contexts = 0
    var largeContexts = 0
    var inUse = 0
    for slot in 0..<UInt32(transport.sessions.count) {
      let session = transport.sessions[slot]
      if session.state == .free {
        inUse += session.isReady ? 1 : 0
        continue
      }
      inUse += 1
      contexts += Int(session.assemblies)
      largeContexts += Int(session.largeAssemblies)
      let sent = distance(session.base, session.nextNumber)
      let all = distance(session.base, session.staged)
      require(sent >= 0 && all >= sent && all <= Transport.windowMax, "\(sent) of \(all) packets are sent")
      var inFlight: Int32 = 0
      var lost: Int32 = 0
      var messages: UInt32 = 0
      for index in 0..<all {
        let it = transport.slots[transport.place(slot, session.base &+ UInt32(index))]
        require((it.state == .staged) == (index >= sent), "packet \(index) of \(sent) is \(it.state)")
        require(it.state != .acknowledged || it.buffer == none, "an acknowledged packet has a buffer")
        inFlight += it.state == .inFlight ? 1 : 0
        lost += it.state == .lost ? 1 : 0
        messages += it.state == .acknowledged ? 0 : UInt32(it.messages)
        held += it.buffer == none ? 0 : 1
      }
      require(inFlight == session.inFlight && lost == session.lost, "\(session.inFlight) in flight, \(session.lost) lost")
      require(messages == session.pendingMessages, "\(session.pendingMessages) messages are pending, \(messages) are")
      precondition(session.congestion.window >= CongestionControl.least && session.congestion.window <= CongestionControl.most)
    }
    require(inUse == transport.sessionCount, "\(transport.sessionCount) sessions, \(inUse) are in use")
    require(held + transport.freeBufferCount == transport.options.buffers, "\(held) buffers are held")
    var used = 0
    var large = 0
    for index in 0..<UInt32(transport.assembly.contexts.count) where transport.assembly.contexts[index].isUsed {
      used += 1
      large += Int(index) < transport.assembly.small ? 0 : 1
    }
    require(
      used == contexts && large == largeContexts,
      "\(used) assemblies are in use and \(large) of them are large, \(contexts) and \(largeContexts) by sessions")
  }

  func end() {
    for isA in [true, false] {
      reach(isA) { $0.closeAll() }
      hear(ofA: isA)
      while next(fromA: isA) != nil {}
      reach(isA) {
        require($0.sessionCount == 0 && $0.freeBufferCount == $0.options.buffers, "something is left of dead sessions")
      }
    }
  }
}
