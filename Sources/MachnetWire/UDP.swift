/// A UDP datagram (RFC 768) whose length has been checked. Ports in host byte order.
public struct UDPDatagram: BitwiseCopyable {
  @usableFromInline let bytes: Bytes
  /// Header and payload.
  public let length: Int
  @inlinable public static var headerLength: Int { @_noLocks get { 8 } }

  /// - Returns: nil when header, stated length and buffer do not fit into each other.
  @inlinable @inline(__always) @_noLocks
  public init?(_ bytes: Bytes) {
    if bytes.count < UDPDatagram.headerLength { return nil }
    let length = Int(bytes.u16(4))
    if length < UDPDatagram.headerLength || length > bytes.count { return nil }
    self.bytes = bytes
    self.length = length
  }

  @inlinable public var sourcePort: UInt16 { @_noLocks get { bytes.u16(0) } }
  @inlinable public var destinationPort: UInt16 { @_noLocks get { bytes.u16(2) } }
  /// 0: the sender made none.
  @inlinable public var checksum: UInt16 { @_noLocks get { bytes.u16(6) } }
  @inlinable public var payload: Bytes { @_noLocks get { bytes.slice(8, to: length) } }

  /// Whether the checksum is right, or absent.
  @inlinable @_noLocks
  public func isChecksumRight(source: UInt32, destination: UInt32) -> Bool {
    if checksum == 0 { return true }
    var sum = UDPDatagram.pseudoHeader(source: source, destination: destination, length: length)
    sum.add(bytes.slice(0, to: length))
    return sum.value == 0
  }

  /// The sum over the pseudo-header, to which header and payload are to be added.
  @inlinable @inline(__always) @_noLocks
  public static func pseudoHeader(source: UInt32, destination: UInt32, length: Int) -> Checksum {
    var sum = Checksum()
    sum.add(source)
    sum.add(destination)
    sum.add(UInt16(IPProtocol.udp))
    sum.add(UInt16(truncatingIfNeeded: length))
    return sum
  }

  /// Writes a header at the front of `bytes` for a payload that may lie elsewhere.
  ///
  /// - Parameter sum: over the pseudo-header and the payload (whose offset in the datagram is even).
  @inlinable @inline(__always) @_noLocks
  public static func emit(into bytes: Bytes, sourcePort: UInt16, destinationPort: UInt16, length: Int, sum: Checksum) {
    bytes.set16(0, sourcePort)
    bytes.set16(2, destinationPort)
    bytes.set16(4, UInt16(truncatingIfNeeded: length))
    var sum = sum
    sum.add(sourcePort)
    sum.add(destinationPort)
    sum.add(UInt16(truncatingIfNeeded: length))
    bytes.set16(6, onWire(sum))
  }

  /// The checksum to write: 0 on the wire means that there is none, so its other form goes out (RFC 768).
  @inlinable @inline(__always) @_noLocks
  static func onWire(_ sum: Checksum) -> UInt16 { sum.value == 0 ? 0xFFFF : sum.value }
}
