/// Types of ICMP messages (RFC 792) that an engine knows.
public enum ICMPType {
  @inlinable @inline(__always) public static var echoReply: UInt8 { @_noLocks get { 0 } }
  @inlinable @inline(__always) public static var unreachable: UInt8 { @_noLocks get { 3 } }
  @inlinable @inline(__always) public static var echoRequest: UInt8 { @_noLocks get { 8 } }
  @inlinable @inline(__always) public static var timeExceeded: UInt8 { @_noLocks get { 11 } }
  @inlinable @inline(__always) public static var parameterProblem: UInt8 { @_noLocks get { 12 } }
}

/// Codes of `ICMPType.unreachable` (RFC 792, RFC 1122 section 3.2.2.1).
public enum UnreachableCode {
  @inlinable @inline(__always) public static var network: UInt8 { @_noLocks get { 0 } }
  @inlinable @inline(__always) public static var host: UInt8 { @_noLocks get { 1 } }
  @inlinable @inline(__always) public static var protocolNumber: UInt8 { @_noLocks get { 2 } }
  @inlinable @inline(__always) public static var port: UInt8 { @_noLocks get { 3 } }
  @inlinable @inline(__always) public static var fragmentationNeeded: UInt8 { @_noLocks get { 4 } }
}

/// A received ICMP message.
@safe
public struct ICMPMessage: BitwiseCopyable {
  /// Safety: `length` bytes from here can be read, at least `ICMPHeader.length` of them.
  public let base: UnsafeRawPointer
  /// Bytes of header and body.
  public let length: Int

  /// Safety: `length` bytes at `base` can be read for as long as the view is in use. They are the whole payload of an
  /// IPv4 packet: ICMP has no length of its own.
  ///
  /// - Throws: `.truncated`, `.badChecksum`.
  @inlinable @_noLocks
  public init(unsafe base: UnsafeRawPointer, length: Int) throws(WireFault) {
    guard length >= ICMPHeader.length else { throw .truncated }
    var sum = Checksum()
    unsafe sum.add(base, length: length)
    guard sum.isIntact else { throw .badChecksum }
    unsafe self.base = base
    self.length = length
  }

  /// An `ICMPType`.
  @inlinable @inline(__always)
  public var type: UInt8 { @_noLocks get { unsafe base.field8(0) } }

  @inlinable @inline(__always)
  public var code: UInt8 { @_noLocks get { unsafe base.field8(1) } }

  /// The second word of the header: identifier and sequence number of an echo.
  @inlinable @inline(__always)
  public var rest: UInt32 { @_noLocks get { unsafe base.field32(4) } }

  /// Of `fragmentationNeeded`, bytes; 0 from routers older than RFC 1191.
  @inlinable @inline(__always)
  public var nextHopMTU: UInt16 { @_noLocks get { unsafe base.field16(6) } }

  /// Data of an echo, quote of an error.
  @inlinable @inline(__always)
  public var body: UnsafeRawPointer { @_noLocks get { unsafe base + ICMPHeader.length } }

  @inlinable @inline(__always)
  public var bodyLength: Int { @_noLocks get { length &- ICMPHeader.length } }

  /// Reports that a datagram could not be delivered, and quotes it.
  @inlinable @inline(__always)
  public var isError: Bool {
    @_noLocks get {
      let type = self.type
      return type == ICMPType.unreachable || type == ICMPType.timeExceeded || type == ICMPType.parameterProblem
    }
  }

  /// The UDP datagram that an error is about. Only for messages with `isError`.
  ///
  /// - Throws: the fault of the quote; `.unsupported` where it quotes another protocol, or a fragment without ports.
  @inlinable @_noLocks
  public func quotedDatagram() throws(WireFault) -> QuotedDatagram {
    let packet = try unsafe IPv4Packet(unsafeQuoted: body, length: bodyLength)
    guard packet.protocolNumber == IPProtocol.udp, packet.fragmentOffset == 0 else { throw .unsupported }
    // Every error quotes at least 8 bytes behind the header (RFC 792).
    guard packet.payloadLength >= UDPHeader.length else { throw .truncated }
    let udp = unsafe packet.payload
    return QuotedDatagram(
      source: packet.source, destination: packet.destination, sourcePort: unsafe udp.field16(0),
      destinationPort: unsafe udp.field16(2))
  }
}

/// Whose datagram an ICMP error is about: addresses and ports as the datagram had them, host byte order.
public struct QuotedDatagram: Equatable, Sendable, BitwiseCopyable {
  public let source: UInt32
  public let destination: UInt32
  public let sourcePort: UInt16
  public let destinationPort: UInt16

  @inlinable @inline(__always) @_noLocks
  init(source: UInt32, destination: UInt32, sourcePort: UInt16, destinationPort: UInt16) {
    self.source = source
    self.destination = destination
    self.sourcePort = sourcePort
    self.destinationPort = destinationPort
  }
}

/// An ICMP header to send.
public struct ICMPHeader: Sendable, BitwiseCopyable {
  /// Bytes.
  @inlinable @inline(__always) public static var length: Int { @_noLocks get { 8 } }
  /// Bytes that an error quotes at most, so that its packet has no more than 576 (RFC 1812, section 4.3.2.3).
  @inlinable @inline(__always) public static var quoteMaximum: Int { @_noLocks get { 548 } }

  /// An `ICMPType`.
  public var type: UInt8
  public var code: UInt8
  /// The second word.
  public var rest: UInt32

  @inlinable @inline(__always) @_noLocks
  public init(type: UInt8, code: UInt8 = 0, rest: UInt32 = 0) {
    self.type = type
    self.code = code
    self.rest = rest
  }

  /// Writes the header with the checksum in front of a body that is in place already.
  ///
  /// Safety: `ICMPHeader.length` bytes at `base` can be written, and `bodyLength` bytes behind them read.
  @unsafe @inlinable @_noLocks
  public func write(to base: UnsafeMutableRawPointer, bodyLength: Int) {
    unsafe base.setField16(0, UInt16(type) << 8 | UInt16(code))
    unsafe base.setField16(2, 0)
    unsafe base.setField32(4, rest)
    var sum = Checksum()
    unsafe sum.add(base, length: Self.length &+ bodyLength)
    unsafe base.setField16(2, sum.value)
  }

  /// Writes the answer to an echo request.
  ///
  /// Safety: `request.length` bytes at `base` can be written; they do not overlap the request.
  @unsafe @inlinable @_noLocks
  public static func writeEchoReply(to base: UnsafeMutableRawPointer, request: ICMPMessage) {
    unsafe (base + length).copyMemory(from: request.body, byteCount: request.bodyLength)
    unsafe ICMPHeader(type: ICMPType.echoReply, rest: request.rest).write(to: base, bodyLength: request.bodyLength)
  }

  /// Writes an error about `packet`, with as much of it as fits.
  ///
  /// Safety: `ICMPHeader.length + quoteMaximum` bytes at `base` can be written; they do not overlap the packet.
  ///
  /// - Returns: bytes written, 28...556.
  @unsafe @inlinable @_noLocks
  public func writeError(to base: UnsafeMutableRawPointer, about packet: IPv4Packet) -> Int {
    let quote = Swift.min(packet.length, Self.quoteMaximum)
    unsafe (base + Self.length).copyMemory(from: packet.base, byteCount: quote)
    unsafe write(to: base, bodyLength: quote)
    return Self.length &+ quote
  }
}
