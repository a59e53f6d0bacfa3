/// One frame in one buffer of a port's pool. Plain data: whoever holds it last hands it to `transmit` or `free`.
@safe
public struct Packet: BitwiseCopyable {
  /// The pool's own name of the buffer.
  public let handle: UnsafeMutableRawPointer
  /// Where the frame starts (with its Ethernet header).
  public let data: UnsafeMutableRawPointer
  /// Bytes of the frame, at most `capacity`.
  public var length: Int32
  /// Bytes that may be written from `data` on.
  public let capacity: Int32

  /// Safety: `capacity` bytes at `data` belong to the holder of the packet until it is transmitted or freed.
  @inlinable @inline(__always)
  public init(unsafe handle: UnsafeMutableRawPointer, data: UnsafeMutableRawPointer, length: Int, capacity: Int) {
    unsafe self.handle = handle
    unsafe self.data = data
    self.length = Int32(truncatingIfNeeded: length)
    self.capacity = Int32(truncatingIfNeeded: capacity)
  }
}

/// Most packets that one call moves.
@inlinable public var packetBurst: Int { @_noLocks get { 32 } }

/// Packet I/O of one queue of one port: the least common denominator of cloud NICs, and nothing else.
///
/// The engine calls everything in bursts, from one thread. A burst is memory of the engine's; `count` and `capacity`
/// are 0...`packetBurst`.
public protocol PacketIO: ~Copyable {
  /// Takes what has arrived. The engine owns the packets then.
  ///
  /// - Returns: how many of `burst` were filled, in order of arrival.
  mutating func receive(into burst: UnsafeMutablePointer<Packet>, capacity: Int) -> Int

  /// Hands frames to the queue, in order. Never blocks.
  ///
  /// - Returns: how many, from the front, the queue took; the rest stays the engine's.
  mutating func transmit(_ burst: UnsafeMutablePointer<Packet>, count: Int) -> Int

  /// Takes empty packets from the pool.
  ///
  /// - Returns: how many of `burst` were filled: fewer than `count` when the pool is exhausted.
  mutating func allocate(into burst: UnsafeMutablePointer<Packet>, count: Int) -> Int

  /// Gives packets back.
  mutating func free(_ burst: UnsafeMutablePointer<Packet>, count: Int)

  /// Whether frames can leave now. Asked now and then, not per burst.
  mutating func isLinkUp() -> Bool

  /// A descriptor that becomes readable when a packet arrives while the interrupt is armed, or -1: then a sleeping
  /// engine looks at the queue at a bounded interval.
  var wakeDescriptor: Int32 { get }

  mutating func armInterrupt()
  mutating func disarmInterrupt()
}

/// The packet I/O of an engine without ports.
public struct NoPackets: PacketIO, ~Copyable {
  public func receive(into burst: UnsafeMutablePointer<Packet>, capacity: Int) -> Int { 0 }
  public func transmit(_ burst: UnsafeMutablePointer<Packet>, count: Int) -> Int { count }
  public func allocate(into burst: UnsafeMutablePointer<Packet>, count: Int) -> Int { 0 }
  public func free(_ burst: UnsafeMutablePointer<Packet>, count: Int) {}
  public func isLinkUp() -> Bool { false }
  public var wakeDescriptor: Int32 { -1 }
  public func armInterrupt() {}
  public func disarmInterrupt() {}
}
