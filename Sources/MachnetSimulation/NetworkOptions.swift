/// The cable between a host and the switch, the same in both directions.
public struct LinkOptions: Sendable, Equatable {
  /// Bits per second; 0: unlimited.
  public var bandwidth: UInt64 = 10_000_000_000
  /// Of this cable, ns: from host to host a frame passes two, and a round trip four.
  public var delay: UInt64 = 12_500
  /// A frame's own extra delay is 0...`jitter` ns. The order stays.
  public var jitter: UInt64 = 0
  /// Bytes that may wait in the switch to leave for the host (`overhead` of each frame included).
  public var queueLimit = 1 << 20
  /// Bytes that every frame takes on the wire beside its own: preamble 8, check sequence 4, gap 12 (IEEE 802.3).
  public var overhead = 24

  public init() {}
}

/// A host with one least-common-denominator NIC.
public struct HostOptions: Sendable {
  /// In the 48 low bits. 0: the switch learns it from what the host sends, and the NIC takes every frame.
  public var mac: UInt64
  /// IPv4, host byte order; only for frames that the network is asked to make.
  public var address: UInt32
  /// Pairs of an RX and a TX queue: 1...64.
  public var queues: Int
  /// Of each queue.
  public var descriptors = 256
  /// Buffers that the host may hold at a time; 0: all that there are.
  public var packets = 0
  public var link = LinkOptions()

  public init(mac: UInt64 = 0, address: UInt32 = 0, queues: Int = 1) {
    self.mac = mac
    self.address = address
    self.queues = queues
  }
}

/// What became of frames. What happens before the switch's egress is counted at the sender, the rest at the receiver.
public struct NetworkCounters: Sendable, Equatable {
  // At the sender.
  public var sent: UInt64 = 0
  public var sentBytes: UInt64 = 0
  /// Refused because the TX queue was full: the sender still has the frame.
  public var txFull: UInt64 = 0
  public var lost: UInt64 = 0
  public var duplicated: UInt64 = 0
  public var reordered: UInt64 = 0
  public var corrupted: UInt64 = 0
  /// Dropped by the test's filter.
  public var filtered: UInt64 = 0
  public var unknownDestination: UInt64 = 0
  /// Copies made because a frame was for several hosts, or for nobody knows whom.
  public var flooded: UInt64 = 0
  /// Copies that could not be made because there was no buffer left.
  public var noBuffer: UInt64 = 0
  // At the receiver.
  public var partitioned: UInt64 = 0
  /// No room in the switch's egress queue.
  public var queueDrops: UInt64 = 0
  /// No free RX descriptor.
  public var overflowed: UInt64 = 0
  /// Frames for another address: the NIC does not take them.
  public var foreign: UInt64 = 0
  public var delivered: UInt64 = 0
  public var deliveredBytes: UInt64 = 0
  // At either.
  public var linkDown: UInt64 = 0

  public init() {}

  static func += (a: inout NetworkCounters, b: NetworkCounters) {
    a.sent += b.sent
    a.sentBytes += b.sentBytes
    a.txFull += b.txFull
    a.lost += b.lost
    a.duplicated += b.duplicated
    a.reordered += b.reordered
    a.corrupted += b.corrupted
    a.filtered += b.filtered
    a.unknownDestination += b.unknownDestination
    a.flooded += b.flooded
    a.noBuffer += b.noBuffer
    a.partitioned += b.partitioned
    a.queueDrops += b.queueDrops
    a.overflowed += b.overflowed
    a.foreign += b.foreign
    a.delivered += b.delivered
    a.deliveredBytes += b.deliveredBytes
    a.linkDown += b.linkDown
  }
}

/// What a test's filter says of a frame.
public enum Verdict: Sendable, Equatable {
  case pass
  case drop
  /// Nanoseconds more than it would have taken; others may overtake it.
  case delay(UInt64)
  /// It arrives twice.
  case duplicate
}
