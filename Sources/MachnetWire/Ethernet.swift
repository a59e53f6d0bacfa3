/// An Ethernet address: 48 bits, the first octet on the wire is the highest.
public struct EthernetAddress: Hashable, Sendable, BitwiseCopyable {
  public let rawValue: UInt64

  /// - Parameter rawValue: the 16 highest bits are ignored.
  @inlinable @inline(__always) @_noLocks
  public init(_ rawValue: UInt64) { self.rawValue = rawValue & 0xFFFF_FFFF_FFFF }

  @inlinable @inline(__always)
  public static var broadcast: EthernetAddress { @_noLocks get { EthernetAddress(0xFFFF_FFFF_FFFF) } }

  /// Multicast or broadcast.
  @inlinable @inline(__always)
  public var isGroup: Bool { @_noLocks get { rawValue & 0x0100_0000_0000 != 0 } }

  @inlinable @inline(__always)
  public var isBroadcast: Bool { @_noLocks get { rawValue == 0xFFFF_FFFF_FFFF } }

  /// A single station's address: what may stand in an ARP cache.
  @inlinable @inline(__always)
  public var isUnicast: Bool { @_noLocks get { !isGroup && rawValue != 0 } }
}

extension EthernetAddress: CustomStringConvertible {
  /// Six pairs of hexadecimal digits between colons.
  public var description: String {
    (0..<6).map { octet in
      let value = UInt8(truncatingIfNeeded: rawValue >> (40 - 8 * octet))
      return (value < 16 ? "0" : "") + String(value, radix: 16)
    }.joined(separator: ":")
  }
}

/// What an Ethernet frame carries (IEEE 802 numbers).
public enum EtherType {
  @inlinable @inline(__always) public static var ipv4: UInt16 { @_noLocks get { 0x0800 } }
  @inlinable @inline(__always) public static var arp: UInt16 { @_noLocks get { 0x0806 } }
}

/// A received Ethernet II frame, without its check sequence.
///
/// The payload may be longer than the packet in it: short frames are padded to 60 bytes.
@safe
public struct EthernetFrame: BitwiseCopyable {
  /// Safety: `length` bytes from here can be read, at least `EthernetHeader.length` of them.
  public let base: UnsafeRawPointer
  public let length: Int

  /// Safety: `length` bytes at `base` can be read for as long as the view is in use.
  ///
  /// - Throws: `.truncated`.
  @inlinable @inline(__always) @_noLocks
  public init(unsafe base: UnsafeRawPointer, length: Int) throws(WireFault) {
    guard length >= EthernetHeader.length else { throw .truncated }
    unsafe self.base = base
    self.length = length
  }

  @inlinable @inline(__always)
  public var destination: EthernetAddress { @_noLocks get { unsafe EthernetAddress(base.field48(0)) } }

  @inlinable @inline(__always)
  public var source: EthernetAddress { @_noLocks get { unsafe EthernetAddress(base.field48(6)) } }

  /// An `EtherType`; below 1536 it is a length (IEEE 802.3), and nothing of ours.
  @inlinable @inline(__always)
  public var type: UInt16 { @_noLocks get { unsafe base.field16(12) } }

  @inlinable @inline(__always)
  public var payload: UnsafeRawPointer { @_noLocks get { unsafe base + EthernetHeader.length } }

  @inlinable @inline(__always)
  public var payloadLength: Int { @_noLocks get { length &- EthernetHeader.length } }
}

/// An Ethernet II header to send.
public struct EthernetHeader: Sendable, BitwiseCopyable {
  /// Bytes.
  @inlinable @inline(__always) public static var length: Int { @_noLocks get { 14 } }
  /// Bytes of the shortest frame, without its check sequence.
  @inlinable @inline(__always) public static var frameMinimum: Int { @_noLocks get { 60 } }

  public var destination: EthernetAddress
  public var source: EthernetAddress
  /// An `EtherType`.
  public var type: UInt16

  @inlinable @inline(__always) @_noLocks
  public init(destination: EthernetAddress, source: EthernetAddress, type: UInt16) {
    self.destination = destination
    self.source = source
    self.type = type
  }

  /// Safety: `EthernetHeader.length` bytes at `base` can be written.
  @unsafe @inlinable @inline(__always) @_noLocks
  public func write(to base: UnsafeMutableRawPointer) {
    unsafe base.setField48(0, destination.rawValue)
    unsafe base.setField48(6, source.rawValue)
    unsafe base.setField16(12, type)
  }
}
