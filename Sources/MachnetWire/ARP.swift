/// A received ARP packet for IPv4 over Ethernet (RFC 826).
@safe
public struct ARPPacket: BitwiseCopyable {
  /// Safety: `ARPMessage.length` bytes from here can be read.
  public let base: UnsafeRawPointer

  /// Safety: `length` bytes at `base` can be read for as long as the view is in use.
  ///
  /// - Throws: `.truncated`, or `.unsupported` for another hardware or protocol.
  @inlinable @_noLocks
  public init(unsafe base: UnsafeRawPointer, length: Int) throws(WireFault) {
    guard length >= ARPMessage.length else { throw .truncated }
    let kinds = unsafe base.field32(0)
    let lengths = unsafe base.field16(4)
    guard kinds == 0x0001_0800, lengths == 0x0604 else { throw .unsupported }
    unsafe self.base = base
  }

  /// An `ARPOperation`, or one that means nothing to us.
  @inlinable @inline(__always)
  public var operation: UInt16 { @_noLocks get { unsafe base.field16(6) } }

  @inlinable @inline(__always)
  public var senderHardware: EthernetAddress { @_noLocks get { unsafe EthernetAddress(base.field48(8)) } }

  @inlinable @inline(__always)
  public var sender: UInt32 { @_noLocks get { unsafe base.field32(14) } }

  @inlinable @inline(__always)
  public var targetHardware: EthernetAddress { @_noLocks get { unsafe EthernetAddress(base.field48(18)) } }

  @inlinable @inline(__always)
  public var target: UInt32 { @_noLocks get { unsafe base.field32(24) } }

  /// Announces the sender's own address (RFC 5227, section 3), asked for by nobody.
  @inlinable @inline(__always)
  public var isGratuitous: Bool { @_noLocks get { sender == target } }
}

public enum ARPOperation {
  @inlinable @inline(__always) public static var request: UInt16 { @_noLocks get { 1 } }
  @inlinable @inline(__always) public static var reply: UInt16 { @_noLocks get { 2 } }
}

/// An ARP packet to send. Addresses in host byte order.
public struct ARPMessage: Sendable, BitwiseCopyable {
  /// Bytes.
  @inlinable @inline(__always) public static var length: Int { @_noLocks get { 28 } }

  /// An `ARPOperation`.
  public var operation: UInt16
  public var senderHardware: EthernetAddress
  public var sender: UInt32
  /// 0 in a request: that is the question.
  public var targetHardware: EthernetAddress
  public var target: UInt32

  @inlinable @inline(__always) @_noLocks
  public init(
    operation: UInt16, senderHardware: EthernetAddress, sender: UInt32, targetHardware: EthernetAddress, target: UInt32
  ) {
    self.operation = operation
    self.senderHardware = senderHardware
    self.sender = sender
    self.targetHardware = targetHardware
    self.target = target
  }

  /// Safety: `ARPMessage.length` bytes at `base` can be written.
  @unsafe @inlinable @_noLocks
  public func write(to base: UnsafeMutableRawPointer) {
    unsafe base.setField32(0, 0x0001_0800)
    unsafe base.setField16(4, 0x0604)
    unsafe base.setField16(6, operation)
    unsafe base.setField48(8, senderHardware.rawValue)
    unsafe base.setField32(14, sender)
    unsafe base.setField48(18, targetHardware.rawValue)
    unsafe base.setField32(24, target)
  }
}
