/// An ARP packet for IPv4 over Ethernet (RFC 826).
public struct ARPPacket: BitwiseCopyable {
  @usableFromInline let bytes: Bytes
  @inlinable public static var length: Int { @_noLocks get { 28 } }
  @inlinable public static var request: UInt16 { @_noLocks get { 1 } }
  @inlinable public static var reply: UInt16 { @_noLocks get { 2 } }

  /// - Returns: nil when it is too short, or not about IPv4 over Ethernet, or neither request nor reply.
  @inlinable @_noLocks
  public init?(_ bytes: Bytes) {
    if bytes.count < ARPPacket.length { return nil }
    if bytes.u16(0) != 1 || bytes.u16(2) != EtherType.ipv4 || bytes.u8(4) != 6 || bytes.u8(5) != 4 { return nil }
    let operation = bytes.u16(6)
    if operation != ARPPacket.request && operation != ARPPacket.reply { return nil }
    self.bytes = bytes
  }

  @inlinable public var operation: UInt16 { @_noLocks get { bytes.u16(6) } }
  @inlinable public var senderHardware: UInt64 { @_noLocks get { bytes.u48(8) } }
  @inlinable public var senderProtocol: UInt32 { @_noLocks get { bytes.u32(14) } }
  @inlinable public var targetHardware: UInt64 { @_noLocks get { bytes.u48(18) } }
  @inlinable public var targetProtocol: UInt32 { @_noLocks get { bytes.u32(24) } }

  /// Writes a packet at the front of `bytes`, which hold at least 28.
  @inlinable @_noLocks
  public static func emit(
    into bytes: Bytes, operation: UInt16, senderHardware: UInt64, senderProtocol: UInt32, targetHardware: UInt64,
    targetProtocol: UInt32
  ) {
    bytes.set16(0, 1)
    bytes.set16(2, EtherType.ipv4)
    bytes.set8(4, 6)
    bytes.set8(5, 4)
    bytes.set16(6, operation)
    bytes.set48(8, senderHardware)
    bytes.set32(14, senderProtocol)
    bytes.set48(18, targetHardware)
    bytes.set32(24, targetProtocol)
  }
}
