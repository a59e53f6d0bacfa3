/// EtherType (IEEE 802).
public enum EtherType {
  @inlinable public static var ipv4: UInt16 { @_noLocks get { 0x0800 } }
  @inlinable public static var arp: UInt16 { @_noLocks get { 0x0806 } }
}

/// The Ethernet broadcast address.
@inlinable public var ethernetBroadcast: UInt64 { @_noLocks get { 0xFFFF_FFFF_FFFF } }

/// A frame without its check sequence, at least 14 bytes long. Addresses are in the 48 low bits.
public struct EthernetFrame: BitwiseCopyable {
  @usableFromInline let bytes: Bytes
  @inlinable public static var headerLength: Int { @_noLocks get { 14 } }

  /// - Returns: nil when the frame is shorter than its header.
  @inlinable @inline(__always) @_noLocks
  public init?(_ bytes: Bytes) {
    if bytes.count < EthernetFrame.headerLength { return nil }
    self.bytes = bytes
  }

  @inlinable public var destination: UInt64 { @_noLocks get { bytes.u48(0) } }
  @inlinable public var source: UInt64 { @_noLocks get { bytes.u48(6) } }
  @inlinable public var type: UInt16 { @_noLocks get { bytes.u16(12) } }
  /// All that follows the header: padding included.
  @inlinable public var payload: Bytes { @_noLocks get { bytes.slice(14) } }

  /// Writes a header at the front of `bytes`, which hold at least 14.
  @inlinable @inline(__always) @_noLocks
  public static func emit(into bytes: Bytes, destination: UInt64, source: UInt64, type: UInt16) {
    bytes.set48(0, destination)
    bytes.set48(6, source)
    bytes.set16(12, type)
  }
}
