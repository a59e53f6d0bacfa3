// The packets of the machnet transport, version 1: the payload of UDP datagrams between two engines. The byte tables
// are in ARCHITECTURE.md. All numbers are in network byte order.

/// The fixed head of every packet: 32 bytes, then what its type and flags announce.
public struct MachnetPacket: BitwiseCopyable {
  public let bytes: Bytes

  @inlinable public static var headerLength: Int { @_noLocks get { 32 } }
  @inlinable public static var version: UInt8 { @_noLocks get { 1 } }

  // Types.
  @inlinable public static var syn: UInt8 { @_noLocks get { 1 } }
  @inlinable public static var synAck: UInt8 { @_noLocks get { 2 } }
  @inlinable public static var data: UInt8 { @_noLocks get { 3 } }
  @inlinable public static var reset: UInt8 { @_noLocks get { 4 } }

  // Flags.
  /// The packet has a number of its own, and is to be acknowledged.
  @inlinable public static var numbered: UInt8 { @_noLocks get { 1 } }
  /// The sender waits for the acknowledgement.
  @inlinable public static var ackNow: UInt8 { @_noLocks get { 2 } }
  /// The echoed timestamp is one.
  @inlinable public static var echo: UInt8 { @_noLocks get { 4 } }
  /// The sender has received a packet twice since its last acknowledgement.
  @inlinable public static var duplicate: UInt8 { @_noLocks get { 8 } }
  /// A `MachnetConfirmation` follows the SACK words.
  @inlinable public static var confirm: UInt8 { @_noLocks get { 16 } }
  /// RESET: the tag is the one that the sender of the reset does not know, not the receiver's.
  @inlinable public static var unknownTag: UInt8 { @_noLocks get { 32 } }

  /// - Returns: nil when the packet is too short for its head and its SACK words, or of no known version or type.
  @inlinable @inline(__always) @_noLocks
  public init?(_ bytes: Bytes) {
    if bytes.count < MachnetPacket.headerLength { return nil }
    let first = bytes.u8(0)
    if first >> 4 != MachnetPacket.version || first & 15 == 0 || first & 15 > MachnetPacket.reset { return nil }
    let words = Int(bytes.u8(2))
    if words > 4 || MachnetPacket.headerLength &+ 8 &* words > bytes.count { return nil }
    self.bytes = bytes
  }

  /// Whether a packet too strange for `init` is one of another version of the protocol.
  @inlinable @_noLocks
  public static func isOtherVersion(_ bytes: Bytes) -> Bool {
    bytes.count > 0 && bytes.u8(0) >> 4 != MachnetPacket.version
  }

  @inlinable public var type: UInt8 { @_noLocks get { bytes.u8(0) & 15 } }
  @inlinable public var flags: UInt8 { @_noLocks get { bytes.u8(1) } }
  /// 64-bit words of the SACK bitmap: 0...4.
  @inlinable public var sackWords: Int { @_noLocks get { Int(bytes.u8(2)) } }
  /// Number of the sending engine at its host.
  @inlinable public var engine: UInt8 { @_noLocks get { bytes.u8(3) } }
  @inlinable public var tag: UInt64 { @_noLocks get { bytes.u64(4) } }
  /// Of this packet; of the next one where it is not numbered.
  @inlinable public var number: UInt32 { @_noLocks get { bytes.u32(12) } }
  /// The next number that the sender expects.
  @inlinable public var ack: UInt32 { @_noLocks get { bytes.u32(16) } }
  /// When it was sent, units of 64 ns.
  @inlinable public var timestamp: UInt32 { @_noLocks get { bytes.u32(20) } }
  /// The last timestamp that the sender received, plus the time since then.
  @inlinable public var echoed: UInt32 { @_noLocks get { bytes.u32(24) } }
  /// Packets from `ack` on for which the sender has room.
  @inlinable public var window: UInt16 { @_noLocks get { bytes.u16(28) } }
  /// How long the packet whose timestamp is echoed may have waited before its receiver ran again, units of 1,024 ns;
  /// 65,535: that, or longer.
  @inlinable public var waited: UInt16 { @_noLocks get { bytes.u16(30) } }

  /// Bit i: the packet `ack + 1 + i` has been received.
  @inlinable @inline(__always) @_noLocks
  public func sack(_ word: Int) -> UInt64 {
    word < sackWords ? bytes.u64(MachnetPacket.headerLength &+ 8 &* word) : 0
  }

  /// What follows head and SACK words.
  @inlinable public var rest: Bytes {
    @_noLocks get { bytes.slice(MachnetPacket.headerLength &+ 8 &* sackWords) }
  }
}

/// The head of a packet to be written.
public struct MachnetHeader: BitwiseCopyable {
  public var type: UInt8
  public var flags: UInt8 = 0
  public var engine: UInt8
  public var tag: UInt64
  public var number: UInt32 = 0
  public var ack: UInt32 = 0
  public var timestamp: UInt32 = 0
  public var echoed: UInt32 = 0
  public var window: UInt16 = 0
  public var waited: UInt16 = 0

  @inlinable @inline(__always) @_noLocks
  public init(type: UInt8, engine: UInt8, tag: UInt64) {
    self.type = type
    self.engine = engine
    self.tag = tag
  }

  /// Writes the head into the first 32 of `bytes`; `sackWords` words are to be written behind it.
  @inlinable @inline(__always) @_noLocks
  public func emit(into bytes: Bytes, sackWords: Int = 0) {
    // Checked once.
    let bytes = bytes.slice(0, to: MachnetPacket.headerLength)
    bytes.set8(0, MachnetPacket.version << 4 | type)
    bytes.set8(1, flags)
    bytes.set8(2, UInt8(truncatingIfNeeded: sackWords))
    bytes.set8(3, engine)
    bytes.set64(4, tag)
    bytes.set32(12, number)
    bytes.set32(16, ack)
    bytes.set32(20, timestamp)
    bytes.set32(24, echoed)
    bytes.set16(28, window)
    bytes.set16(30, waited)
  }
}

/// What a SYN says of the engine that opens a session (24 bytes).
public struct MachnetOffer: BitwiseCopyable {
  /// Random, drawn at the daemon's start: another one means that the peer has been restarted.
  public var epoch: UInt64
  /// Number of its first packet.
  public var first: UInt32
  /// The engine that it wants; the receiver takes it modulo its own count.
  public var wanted: UInt8
  public var engines: UInt8
  /// Bytes of each piece but the last of a message in several pieces.
  public var piece: UInt16

  @inlinable public static var length: Int { @_noLocks get { 24 } }

  @inlinable @_noLocks
  public init(epoch: UInt64, first: UInt32, wanted: UInt8, engines: UInt8, piece: UInt16) {
    self.epoch = epoch
    self.first = first
    self.wanted = wanted
    self.engines = engines
    self.piece = piece
  }

  @inlinable @_noLocks
  public init?(_ bytes: Bytes) {
    if bytes.count < MachnetOffer.length { return nil }
    epoch = bytes.u64(0)
    first = bytes.u32(8)
    wanted = bytes.u8(12)
    engines = bytes.u8(13)
    piece = bytes.u16(14)
  }

  @inlinable @_noLocks
  public func emit(into bytes: Bytes) {
    bytes.set64(0, epoch)
    bytes.set32(8, first)
    bytes.set8(12, wanted)
    bytes.set8(13, engines)
    bytes.set16(14, piece)
    bytes.set64(16, 0)
  }
}

/// What a SYN-ACK says of the engine that answers (40 bytes).
public struct MachnetAnswer: BitwiseCopyable {
  /// The tag that the answering engine wants to see.
  public var tag: UInt64
  /// To be given back: the answering engine keeps nothing.
  public var cookie: UInt64
  public var epoch: UInt64
  public var first: UInt32
  /// The ports of the SYN that reached it.
  public var sourcePort: UInt16
  public var destinationPort: UInt16
  public var engines: UInt8
  public var cookieTime: UInt8
  public var piece: UInt16

  @inlinable public static var length: Int { @_noLocks get { 36 } }

  @inlinable @_noLocks
  public init(
    tag: UInt64, cookie: UInt64, epoch: UInt64, first: UInt32, sourcePort: UInt16, destinationPort: UInt16,
    engines: UInt8, cookieTime: UInt8, piece: UInt16
  ) {
    self.tag = tag
    self.cookie = cookie
    self.epoch = epoch
    self.first = first
    self.sourcePort = sourcePort
    self.destinationPort = destinationPort
    self.engines = engines
    self.cookieTime = cookieTime
    self.piece = piece
  }

  @inlinable @_noLocks
  public init?(_ bytes: Bytes) {
    if bytes.count < MachnetAnswer.length { return nil }
    tag = bytes.u64(0)
    cookie = bytes.u64(8)
    epoch = bytes.u64(16)
    first = bytes.u32(24)
    sourcePort = bytes.u16(28)
    destinationPort = bytes.u16(30)
    engines = bytes.u8(32)
    cookieTime = bytes.u8(33)
    piece = bytes.u16(34)
  }

  @inlinable @_noLocks
  public func emit(into bytes: Bytes) {
    bytes.set64(0, tag)
    bytes.set64(8, cookie)
    bytes.set64(16, epoch)
    bytes.set32(24, first)
    bytes.set16(28, sourcePort)
    bytes.set16(30, destinationPort)
    bytes.set8(32, engines)
    bytes.set8(33, cookieTime)
    bytes.set16(34, piece)
  }
}

/// The third step: everything that the answering engine needs to make the session, and the proof that it offered it.
public struct MachnetConfirmation: BitwiseCopyable {
  public var tag: UInt64
  public var cookie: UInt64
  public var epoch: UInt64
  /// First packet number of the opening and of the answering engine.
  public var first: UInt32
  public var peerFirst: UInt32
  /// The ports, as sent, of the SYN-ACK that arrived.
  public var sourcePort: UInt16
  public var destinationPort: UInt16
  public var engines: UInt8
  public var cookieTime: UInt8
  public var piece: UInt16

  @inlinable public static var length: Int { @_noLocks get { 40 } }

  @inlinable @_noLocks
  public init(
    tag: UInt64, cookie: UInt64, epoch: UInt64, first: UInt32, peerFirst: UInt32, sourcePort: UInt16,
    destinationPort: UInt16, engines: UInt8, cookieTime: UInt8, piece: UInt16
  ) {
    self.tag = tag
    self.cookie = cookie
    self.epoch = epoch
    self.first = first
    self.peerFirst = peerFirst
    self.sourcePort = sourcePort
    self.destinationPort = destinationPort
    self.engines = engines
    self.cookieTime = cookieTime
    self.piece = piece
  }

  @inlinable @_noLocks
  public init?(_ bytes: Bytes) {
    if bytes.count < MachnetConfirmation.length { return nil }
    tag = bytes.u64(0)
    cookie = bytes.u64(8)
    epoch = bytes.u64(16)
    first = bytes.u32(24)
    peerFirst = bytes.u32(28)
    sourcePort = bytes.u16(32)
    destinationPort = bytes.u16(34)
    engines = bytes.u8(36)
    cookieTime = bytes.u8(37)
    piece = bytes.u16(38)
  }

  @inlinable @_noLocks
  public func emit(into bytes: Bytes) {
    bytes.set64(0, tag)
    bytes.set64(8, cookie)
    bytes.set64(16, epoch)
    bytes.set32(24, first)
    bytes.set32(28, peerFirst)
    bytes.set16(32, sourcePort)
    bytes.set16(34, destinationPort)
    bytes.set8(36, engines)
    bytes.set8(37, cookieTime)
    bytes.set16(38, piece)
  }
}

/// A message, or a piece of one, or a word about a socket, inside a packet: a head of 20 bytes and its bytes.
public struct MachnetChunk: BitwiseCopyable {
  /// Of the message among all of its sender in the session.
  public var message: UInt32
  /// Bytes of the whole message, and where these lie in it.
  public var total: UInt32
  public var offset: UInt32
  public var kind: UInt8
  /// Bytes that follow.
  public var length: Int
  /// The logical UDP ports; the addresses are the packet's.
  public var sourcePort: UInt16
  public var destinationPort: UInt16
  public var ttl: UInt8
  public var tos: UInt8

  @inlinable public static var headerLength: Int { @_noLocks get { 20 } }
  /// Bytes of a datagram.
  @inlinable public static var piece: UInt8 { @_noLocks get { 0 } }
  /// The sender's socket at `sourcePort` has no room; it has again; there is none.
  @inlinable public static var pause: UInt8 { @_noLocks get { 1 } }
  @inlinable public static var resume: UInt8 { @_noLocks get { 2 } }
  @inlinable public static var unreachable: UInt8 { @_noLocks get { 3 } }

  @inlinable @inline(__always) @_noLocks
  public init(
    message: UInt32, total: UInt32, offset: UInt32, kind: UInt8, length: Int, sourcePort: UInt16,
    destinationPort: UInt16, ttl: UInt8, tos: UInt8
  ) {
    self.message = message
    self.total = total
    self.offset = offset
    self.kind = kind
    self.length = length
    self.sourcePort = sourcePort
    self.destinationPort = destinationPort
    self.ttl = ttl
    self.tos = tos
  }

  /// Reads the head at the front of `bytes`.
  ///
  /// - Returns: nil when head or bytes do not fit, or the piece does not fit into its message.
  @inlinable @inline(__always) @_noLocks
  public init?(_ bytes: Bytes) {
    if bytes.count < MachnetChunk.headerLength { return nil }
    message = bytes.u32(0)
    total = bytes.u32(4)
    offset = bytes.u32(8)
    let word = bytes.u16(12)
    kind = UInt8(truncatingIfNeeded: word >> 14)
    length = Int(word & 0x3FFF)
    sourcePort = bytes.u16(14)
    destinationPort = bytes.u16(16)
    ttl = bytes.u8(18)
    tos = bytes.u8(19)
    if length > bytes.count &- MachnetChunk.headerLength { return nil }
    if UInt64(offset) &+ UInt64(length) > UInt64(total) { return nil }
  }

  /// Reads the head of a whole message that is all there is in `bytes`.
  ///
  /// - Returns: nil when that is not so.
  @inlinable @inline(__always) @_noLocks
  public init?(lone bytes: Bytes) {
    let length = bytes.count &- MachnetChunk.headerLength
    // (The upper bits of the third word are the kind, of which a message's is 0.)
    if length < 0 || length > 0x3FFF || Int(bytes.u16(12)) != length || Int(bytes.u32(4)) != length || bytes.u32(8) != 0 {
      return nil
    }
    self.init(
      message: bytes.u32(0), total: UInt32(truncatingIfNeeded: length), offset: 0, kind: MachnetChunk.piece, length: length,
      sourcePort: bytes.u16(14), destinationPort: bytes.u16(16), ttl: bytes.u8(18), tos: bytes.u8(19))
  }

  @inlinable @inline(__always) @_noLocks
  public func emit(into bytes: Bytes) {
    let bytes = bytes.slice(0, to: MachnetChunk.headerLength)
    bytes.set32(0, message)
    bytes.set32(4, total)
    bytes.set32(8, offset)
    bytes.set16(12, UInt16(kind) << 14 | UInt16(truncatingIfNeeded: length & 0x3FFF))
    bytes.set16(14, sourcePort)
    bytes.set16(16, destinationPort)
    bytes.set8(18, ttl)
    bytes.set8(19, tos)
  }
}
