/// Protocol numbers (RFC 790 and its successors).
public enum IPProtocol {
  @inlinable public static var icmp: UInt8 { @_noLocks get { 1 } }
  @inlinable public static var udp: UInt8 { @_noLocks get { 17 } }
}

/// An IPv4 packet (RFC 791) whose version and lengths have been checked. Addresses in host byte order.
public struct IPv4Packet: BitwiseCopyable {
  @usableFromInline let bytes: Bytes
  public let headerLength: Int
  /// Header and payload; what the frame holds beyond is padding.
  public let totalLength: Int
  @inlinable public static var headerMin: Int { @_noLocks get { 20 } }

  /// - Returns: nil when the version is not 4, or header, total length and buffer do not fit into each other.
  @inlinable @inline(__always) @_noLocks
  public init?(_ bytes: Bytes) {
    if bytes.count < IPv4Packet.headerMin { return nil }
    let first = bytes.u8(0)
    if first >> 4 != 4 { return nil }
    let headerLength = Int(first & 15) &* 4
    let totalLength = Int(bytes.u16(2))
    if headerLength < IPv4Packet.headerMin || headerLength > totalLength || totalLength > bytes.count { return nil }
    self.bytes = bytes
    self.headerLength = headerLength
    self.totalLength = totalLength
  }

  @inlinable public var tos: UInt8 { @_noLocks get { bytes.u8(1) } }
  @inlinable public var identification: UInt16 { @_noLocks get { bytes.u16(4) } }
  @inlinable public var dontFragment: Bool { @_noLocks get { bytes.u8(6) & 0x40 != 0 } }
  @inlinable public var moreFragments: Bool { @_noLocks get { bytes.u8(6) & 0x20 != 0 } }
  /// Of the payload in the whole datagram's, bytes: 0...65,528.
  @inlinable public var fragmentOffset: Int { @_noLocks get { Int(bytes.u16(6) & 0x1FFF) &* 8 } }
  @inlinable public var isFragment: Bool { @_noLocks get { bytes.u16(6) & 0x3FFF != 0 } }
  @inlinable public var ttl: UInt8 { @_noLocks get { bytes.u8(8) } }
  @inlinable public var ipProtocol: UInt8 { @_noLocks get { bytes.u8(9) } }
  @inlinable public var source: UInt32 { @_noLocks get { bytes.u32(12) } }
  @inlinable public var destination: UInt32 { @_noLocks get { bytes.u32(16) } }
  @inlinable public var header: Bytes { @_noLocks get { bytes.slice(0, to: headerLength) } }
  /// Without the frame's padding.
  @inlinable public var payload: Bytes { @_noLocks get { bytes.slice(headerLength, to: totalLength) } }
  /// Header and payload, without the frame's padding.
  @inlinable public var whole: Bytes { @_noLocks get { bytes.slice(0, to: totalLength) } }

  @inlinable
  public var isChecksumRight: Bool {
    @_noLocks get {
      var checksum = Checksum()
      if headerLength == IPv4Packet.headerMin { checksum.addHeader(bytes) } else { checksum.add(header) }
      return checksum.value == 0
    }
  }
}

/// The fields of an IPv4 header without options, to be written.
public struct IPv4Header: BitwiseCopyable {
  public var tos: UInt8 = 0
  public var totalLength: Int
  public var identification: UInt16 = 0
  public var dontFragment = false
  public var moreFragments = false
  /// Bytes, a multiple of 8.
  public var fragmentOffset = 0
  public var ttl: UInt8 = 64
  public var ipProtocol: UInt8
  public var source: UInt32
  public var destination: UInt32

  @inlinable @inline(__always) @_noLocks
  public init(totalLength: Int, ipProtocol: UInt8, source: UInt32, destination: UInt32) {
    self.totalLength = totalLength
    self.ipProtocol = ipProtocol
    self.source = source
    self.destination = destination
  }

  /// Writes the header with its checksum at the front of `bytes`, which hold at least 20.
  @inlinable @inline(__always) @_noLocks
  public func emit(into bytes: Bytes) {
    let flags: UInt16 = (dontFragment ? 0x4000 : 0) | (moreFragments ? 0x2000 : 0)
    let bytes = bytes.slice(0, to: IPv4Packet.headerMin)
    bytes.set8(0, 0x45)
    bytes.set8(1, tos)
    bytes.set16(2, UInt16(truncatingIfNeeded: totalLength))
    bytes.set16(4, identification)
    bytes.set16(6, flags | UInt16(truncatingIfNeeded: fragmentOffset / 8))
    bytes.set8(8, ttl)
    bytes.set8(9, ipProtocol)
    bytes.set16(10, 0)
    bytes.set32(12, source)
    bytes.set32(16, destination)
    var checksum = Checksum()
    checksum.addHeader(bytes)
    bytes.set16(10, checksum.value)
  }
}
