/// Protocol numbers of IPv4 (IANA).
public enum IPProtocol {
  @inlinable @inline(__always) public static var icmp: UInt8 { @_noLocks get { 1 } }
  @inlinable @inline(__always) public static var udp: UInt8 { @_noLocks get { 17 } }
}

/// A received IPv4 packet (RFC 791). Options are stepped over. Addresses in host byte order.
@safe
public struct IPv4Packet: BitwiseCopyable {
  /// Safety: `length` bytes from here can be read.
  public let base: UnsafeRawPointer
  /// Bytes of header and payload, padding of the frame excluded: 20...65,535.
  public let length: Int
  /// Bytes of the header with its options: 20...60, at most `length`.
  public let headerLength: Int

  /// Checks lengths, version, header checksum and fragment bounds.
  ///
  /// Safety: `length` bytes at `base` can be read for as long as the view is in use. They may be more than the packet.
  ///
  /// - Throws: any `WireFault` but `.unsupported`.
  @inlinable @_noLocks
  public init(unsafe base: UnsafeRawPointer, length: Int) throws(WireFault) {
    let headerLength = try unsafe Self.checkHeader(base, length: length)
    let totalLength = Int(unsafe base.field16(2))
    guard totalLength >= IPv4Header.length else { throw .badTotalLength }
    guard totalLength >= headerLength else { throw .badHeaderLength }
    guard totalLength <= length else { throw .truncated }
    var sum = Checksum()
    unsafe sum.add(base, length: headerLength)
    guard sum.isIntact else { throw .badChecksum }
    unsafe self.base = base
    self.length = totalLength
    self.headerLength = headerLength
    guard !isFragment else {
      let end = fragmentOffset &+ payloadLength
      // The datagram put together has a header too, and 65,535 bytes in all (RFC 791, section 3.2).
      guard end &+ headerLength <= 65535 else { throw .badFragment }
      guard !moreFragments || (payloadLength & 7 == 0 && payloadLength != 0) else { throw .badFragment }
      return
    }
  }

  /// A packet as an ICMP error quotes it: its header whole, its payload cut off anywhere (RFC 792). The checksum is
  /// not looked at, as routers quote headers that they have changed; the ICMP checksum covers the quote.
  ///
  /// Safety: `length` bytes at `base` can be read for as long as the view is in use.
  ///
  /// - Throws: `.truncated`, `.badVersion`, `.badHeaderLength`.
  @inlinable @_noLocks
  public init(unsafeQuoted base: UnsafeRawPointer, length: Int) throws(WireFault) {
    let headerLength = try unsafe Self.checkHeader(base, length: length)
    guard headerLength <= length else { throw .truncated }
    unsafe self.base = base
    self.length = Swift.min(length, Swift.max(headerLength, Int(unsafe base.field16(2))))
    self.headerLength = headerLength
  }

  /// - Returns: the header's length, 20...60; not yet compared with the packet's.
  @unsafe @inlinable @inline(__always) @_noLocks
  static func checkHeader(_ base: UnsafeRawPointer, length: Int) throws(WireFault) -> Int {
    guard length >= IPv4Header.length else { throw .truncated }
    let first = unsafe base.field8(0)
    guard first &>> 4 == 4 else { throw .badVersion }
    let headerLength = Int(first & 15) &* 4
    guard headerLength >= IPv4Header.length else { throw .badHeaderLength }
    return headerLength
  }

  /// Type of service: DSCP and ECN.
  @inlinable @inline(__always)
  public var tos: UInt8 { @_noLocks get { unsafe base.field8(1) } }

  @inlinable @inline(__always)
  public var identification: UInt16 { @_noLocks get { unsafe base.field16(4) } }

  @inlinable @inline(__always)
  public var dontFragment: Bool { @_noLocks get { unsafe base.field16(6) & 0x4000 != 0 } }

  @inlinable @inline(__always)
  public var moreFragments: Bool { @_noLocks get { unsafe base.field16(6) & 0x2000 != 0 } }

  /// Where the payload belongs in the whole datagram, bytes: 0...65,528.
  @inlinable @inline(__always)
  public var fragmentOffset: Int { @_noLocks get { Int(unsafe base.field16(6) & 0x1FFF) &* 8 } }

  @inlinable @inline(__always)
  public var isFragment: Bool { @_noLocks get { unsafe base.field16(6) & 0x3FFF != 0 } }

  @inlinable @inline(__always)
  public var ttl: UInt8 { @_noLocks get { unsafe base.field8(8) } }

  /// An `IPProtocol`.
  @inlinable @inline(__always)
  public var protocolNumber: UInt8 { @_noLocks get { unsafe base.field8(9) } }

  @inlinable @inline(__always)
  public var source: UInt32 { @_noLocks get { unsafe base.field32(12) } }

  @inlinable @inline(__always)
  public var destination: UInt32 { @_noLocks get { unsafe base.field32(16) } }

  @inlinable @inline(__always)
  public var payload: UnsafeRawPointer { @_noLocks get { unsafe base + headerLength } }

  /// Bytes that are there.
  @inlinable @inline(__always)
  public var payloadLength: Int { @_noLocks get { length &- headerLength } }
}

/// An IPv4 header without options, to send. Addresses in host byte order.
public struct IPv4Header: Sendable, BitwiseCopyable {
  /// Bytes, without options.
  @inlinable @inline(__always) public static var length: Int { @_noLocks get { 20 } }
  /// Bytes of the largest payload behind a header without options.
  @inlinable @inline(__always) public static var payloadMaximum: Int { @_noLocks get { 65515 } }

  public var source: UInt32
  public var destination: UInt32
  /// An `IPProtocol`.
  public var protocolNumber: UInt8
  public var ttl: UInt8
  public var tos: UInt8
  public var identification: UInt16
  public var dontFragment: Bool
  public var moreFragments = false
  /// Bytes, a multiple of 8: 0...65,528.
  public var fragmentOffset = 0

  @inlinable @inline(__always) @_noLocks
  public init(
    source: UInt32, destination: UInt32, protocolNumber: UInt8, ttl: UInt8 = 64, tos: UInt8 = 0,
    identification: UInt16 = 0, dontFragment: Bool = false
  ) {
    self.source = source
    self.destination = destination
    self.protocolNumber = protocolNumber
    self.ttl = ttl
    self.tos = tos
    self.identification = identification
    self.dontFragment = dontFragment
  }

  /// Writes the header with its checksum.
  ///
  /// Safety: `IPv4Header.length` bytes at `base` can be written.
  ///
  /// - Parameter payloadLength: bytes behind the header: 0...`payloadMaximum`.
  @unsafe @inlinable @_noLocks
  public func write(to base: UnsafeMutableRawPointer, payloadLength: Int) {
    precondition(payloadLength >= 0 && payloadLength <= Self.payloadMaximum)
    precondition(fragmentOffset & 7 == 0 && fragmentOffset >= 0 && fragmentOffset <= 65528)
    let totalLength = UInt16(truncatingIfNeeded: Self.length &+ payloadLength)
    let fragment =
      UInt16(truncatingIfNeeded: fragmentOffset &>> 3) | (dontFragment ? 0x4000 : 0) | (moreFragments ? 0x2000 : 0)
    unsafe base.setField16(0, 0x4500 | UInt16(tos))
    unsafe base.setField16(2, totalLength)
    unsafe base.setField16(4, identification)
    unsafe base.setField16(6, fragment)
    unsafe base.setField16(8, UInt16(ttl) << 8 | UInt16(protocolNumber))
    unsafe base.setField16(10, 0)
    unsafe base.setField32(12, source)
    unsafe base.setField32(16, destination)
    var sum = Checksum()
    unsafe sum.add(base, length: Self.length)
    unsafe base.setField16(10, sum.value)
  }
}
