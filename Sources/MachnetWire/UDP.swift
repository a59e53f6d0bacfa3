/// A received UDP datagram (RFC 768), whole and contiguous.
@safe
public struct UDPDatagram: BitwiseCopyable {
  /// Safety: `length` bytes from here can be read.
  public let base: UnsafeRawPointer
  /// Bytes of header and payload: 8...65,535.
  public let length: Int

  /// Checks the length and, where the sender has given one, the checksum.
  ///
  /// Safety: `length` bytes at `base` can be read for as long as the view is in use. They may be more than the datagram.
  ///
  /// - Parameters:
  ///   - source: of the IPv4 header, host order, as is `destination`: the checksum covers both.
  /// - Throws: `.truncated`, `.badTotalLength`, `.badChecksum`.
  @inlinable @_noLocks
  public init(
    unsafe base: UnsafeRawPointer, length: Int, source: UInt32, destination: UInt32
  ) throws(WireFault) {
    guard length >= UDPHeader.length else { throw .truncated }
    let own = unsafe base.field16(4)
    guard Int(own) >= UDPHeader.length else { throw .badTotalLength }
    guard Int(own) <= length else { throw .truncated }
    // 0: the sender has not computed one (RFC 768).
    if unsafe base.field16(6) != 0 {
      var sum = UDPHeader.pseudoHeader(source: source, destination: destination, length: own)
      unsafe sum.add(base, length: Int(own))
      guard sum.isIntact else { throw .badChecksum }
    }
    unsafe self.base = base
    self.length = Int(own)
  }

  @inlinable @inline(__always)
  public var sourcePort: UInt16 { @_noLocks get { unsafe base.field16(0) } }

  @inlinable @inline(__always)
  public var destinationPort: UInt16 { @_noLocks get { unsafe base.field16(2) } }

  @inlinable @inline(__always)
  public var payload: UnsafeRawPointer { @_noLocks get { unsafe base + UDPHeader.length } }

  @inlinable @inline(__always)
  public var payloadLength: Int { @_noLocks get { length &- UDPHeader.length } }
}

/// A UDP header to send.
public struct UDPHeader: Sendable, BitwiseCopyable {
  /// Bytes.
  @inlinable @inline(__always) public static var length: Int { @_noLocks get { 8 } }
  /// Bytes of the largest payload in IPv4.
  @inlinable @inline(__always) public static var payloadMaximum: Int { @_noLocks get { 65507 } }

  public var sourcePort: UInt16
  public var destinationPort: UInt16

  @inlinable @inline(__always) @_noLocks
  public init(sourcePort: UInt16, destinationPort: UInt16) {
    self.sourcePort = sourcePort
    self.destinationPort = destinationPort
  }

  /// Writes the header in front of a payload that is in place already.
  ///
  /// Safety: `UDPHeader.length` bytes at `base` can be written, and `payloadLength` bytes behind them read.
  ///
  /// - Parameters:
  ///   - payloadLength: bytes: 0...`payloadMaximum`.
  ///   - source: of the IPv4 header, host order, as is `destination`.
  @unsafe @inlinable @inline(__always) @_noLocks
  public func write(to base: UnsafeMutableRawPointer, payloadLength: Int, source: UInt32, destination: UInt32) {
    var payload = Checksum()
    unsafe payload.add(base + Self.length, length: payloadLength)
    unsafe write(
      to: base, payloadLength: payloadLength, payloadSum: payload, source: source, destination: destination)
  }

  /// Writes the header of a payload that lies elsewhere (in fragments, say) and has been summed there.
  ///
  /// Safety: `UDPHeader.length` bytes at `base` can be written.
  @unsafe @inlinable @_noLocks
  public func write(
    to base: UnsafeMutableRawPointer, payloadLength: Int, payloadSum: Checksum, source: UInt32, destination: UInt32
  ) {
    precondition(payloadLength >= 0 && payloadLength <= Self.payloadMaximum)
    let length = UInt16(truncatingIfNeeded: Self.length &+ payloadLength)
    var sum = Self.pseudoHeader(source: source, destination: destination, length: length)
    sum.add(sourcePort)
    sum.add(destinationPort)
    sum.add(length)
    sum.add(payloadSum)
    let checksum = sum.value
    unsafe base.setField16(0, sourcePort)
    unsafe base.setField16(2, destinationPort)
    unsafe base.setField16(4, length)
    // 0 would say that there is none; 0xFFFF is the same number in one's complement (RFC 768).
    unsafe base.setField16(6, checksum == 0 ? 0xFFFF : checksum)
  }

  /// The sum over the fields of the IPv4 header that a UDP checksum covers (RFC 768).
  @inlinable @inline(__always) @_noLocks
  static func pseudoHeader(source: UInt32, destination: UInt32, length: UInt16) -> Checksum {
    var sum = Checksum()
    sum.add(source)
    sum.add(destination)
    sum.add(UInt16(IPProtocol.udp))
    sum.add(length)
    return sum
  }
}
