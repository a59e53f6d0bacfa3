/// An ICMP message (RFC 792), at least 8 bytes long.
public struct ICMPMessage: BitwiseCopyable {
  @usableFromInline let bytes: Bytes
  @inlinable public static var headerLength: Int { @_noLocks get { 8 } }
  @inlinable public static var echoReply: UInt8 { @_noLocks get { 0 } }
  @inlinable public static var unreachable: UInt8 { @_noLocks get { 3 } }
  @inlinable public static var echoRequest: UInt8 { @_noLocks get { 8 } }
  @inlinable public static var codePort: UInt8 { @_noLocks get { 3 } }

  /// - Returns: nil when it is shorter than its header.
  @inlinable @_noLocks
  public init?(_ bytes: Bytes) {
    if bytes.count < ICMPMessage.headerLength { return nil }
    self.bytes = bytes
  }

  @inlinable public var type: UInt8 { @_noLocks get { bytes.u8(0) } }
  @inlinable public var code: UInt8 { @_noLocks get { bytes.u8(1) } }
  /// What follows the header: an echo's data, or the packet that an error is about.
  @inlinable public var payload: Bytes { @_noLocks get { bytes.slice(8) } }

  @inlinable
  public var isChecksumRight: Bool {
    @_noLocks get {
      var checksum = Checksum()
      checksum.add(bytes)
      return checksum.value == 0
    }
  }

  /// The addresses of the UDP datagram that an error is about.
  @inlinable
  public var quoted: QuotedDatagram? { @_noLocks get { QuotedDatagram(payload) } }

  /// Turns an echo request into its reply, in place.
  @inlinable @_noLocks
  public func turnIntoReply() {
    let old = UInt16(bytes.u8(0)) << 8 | UInt16(bytes.u8(1))
    bytes.set8(0, ICMPMessage.echoReply)
    bytes.set16(2, Checksum.adjust(bytes.u16(2), from: old, to: old & 0xFF))
  }

  /// Writes an unreachable message (the quoted packet already lies at `bytes[8...]`) over all of `bytes`.
  @inlinable @_noLocks
  public static func emitUnreachable(into bytes: Bytes, code: UInt8) {
    bytes.set8(0, unreachable)
    bytes.set8(1, code)
    bytes.set16(2, 0)
    bytes.set32(4, 0)
    var checksum = Checksum()
    checksum.add(bytes)
    bytes.set16(2, checksum.value)
  }
}

/// The start of a UDP datagram inside an ICMP error: its IPv4 header and 8 bytes (RFC 792), often no more.
public struct QuotedDatagram: BitwiseCopyable {
  public let source: UInt32
  public let destination: UInt32
  public let sourcePort: UInt16
  public let destinationPort: UInt16

  /// - Returns: nil when it is cut off before the ports, not UDP, or not a first fragment.
  @inlinable @_noLocks
  init?(_ bytes: Bytes) {
    if bytes.count < IPv4Packet.headerMin || bytes.u8(0) >> 4 != 4 { return nil }
    let headerLength = Int(bytes.u8(0) & 15) &* 4
    if headerLength < IPv4Packet.headerMin || bytes.count < headerLength &+ 8 { return nil }
    if bytes.u8(9) != IPProtocol.udp || bytes.u16(6) & 0x1FFF != 0 { return nil }
    source = bytes.u32(12)
    destination = bytes.u32(16)
    sourcePort = bytes.u16(headerLength)
    destinationPort = bytes.u16(headerLength &+ 2)
  }
}
