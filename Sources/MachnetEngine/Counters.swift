/// What an engine counts. Names are what `machnet status` prints.
public enum EngineCounter: Int, CaseIterable, Sendable, BitwiseCopyable {
  case iterations
  case sleeps
  /// Eventfds written because somebody slept.
  case wakeups
  case rxPackets, rxBytes
  case txPackets, txBytes
  case localDatagrams, localBytes
  case commands
  case arpRequestsSent, arpRepliesSent
  case echoReplies
  case unreachablesSent, unreachablesReceived
  case fragmentsSent, fragmentsReceived
  case reassembled
  /// Iterations that found something to do.
  case busyIterations
  /// Time in which the engine slept, up to the end of its last sleep.
  case sleepNanoseconds
}

/// Why something was dropped: every drop has one of these names.
public enum DropReason: Int, CaseIterable, Sendable, BitwiseCopyable {
  // Frames from the wire.
  case frameTruncated, frameNotForUs, etherTypeUnknown
  case arpMalformed, arpConflict
  case ipMalformed, ipChecksum, ipNotForUs, ipMartian, ipProtocolUnknown
  case fragmentMalformed, fragmentOverlap, fragmentTimeout, fragmentLimit
  case icmpMalformed, icmpChecksum, icmpIgnored
  case udpMalformed, udpChecksum, udpNoReceiver
  // Between the engine and a receiver.
  case receiveRingFull, receiverStalled, receiverSlow, noLocalReceiver
  // Datagrams that cannot leave.
  case destinationRefused, sourceRefused, noRoute, messageTooLong
  case neighbourUnresolved, neighbourQueueFull, portStalled, closedUnsent
  // Messages for hosts that open no session; that a session took with it when it died; for sockets that have no room.
  case peerRefused, sessionLost, peerPaused
  // Session packets without a UDP checksum.
  case sessionChecksum
  // Limits.
  case unreachableRateLimited, faultsLost
}

/// A snapshot of an engine's counters. The numbers were not all read at the same instant.
public struct EngineCounters: Sendable {
  var values: [UInt64]
  var dropped: [UInt64]

  public subscript(counter: EngineCounter) -> UInt64 { values[counter.rawValue] }
  public subscript(reason: DropReason) -> UInt64 { dropped[reason.rawValue] }
  /// Reasons that occurred, with how often.
  public var drops: [(reason: DropReason, count: UInt64)] {
    DropReason.allCases.filter { self[$0] != 0 }.map { ($0, self[$0]) }
  }
}

/// A snapshot of what one endpoint did at one engine.
public struct EndpointCounters: Sendable {
  public var rxDatagrams: UInt64 = 0
  public var rxBytes: UInt64 = 0
  public var txDatagrams: UInt64 = 0
  public var txBytes: UInt64 = 0
  /// Drops of what it sent and of what was meant for it, by reason.
  public var drops: [(reason: DropReason, count: UInt64)] = []
}

/// One line of a port's neighbour table.
public struct NeighbourSnapshot: Sendable {
  public enum State: UInt8, Sendable { case incomplete = 1, reachable, stale }
  /// Host byte order.
  public var address: UInt32
  /// In the 48 low bits; meaningless while incomplete.
  public var mac: UInt64
  public var state: State
}

/// One session of the transport `machnet`, as it was a hundredth of a second ago.
public struct SessionStatus: Sendable {
  /// Place in `EngineOptions.interfaces`.
  public var port: Int
  /// Host byte order.
  public var localAddress: UInt32
  public var remoteAddress: UInt32
  public var remoteEngine: UInt8
  public var isOpen: Bool
  /// How long it took to open, ns; 0: it is not open yet, or the peer opened it.
  public var setUpTime: UInt64
  /// ns; 0: not measured yet.
  public var smoothedRTT: UInt64
  public var minimumRTT: UInt64
  /// Packets.
  public var congestionWindow: Double
  public var inFlight: Int
  public var packetsSent: UInt64
  public var packetsReceived: UInt64
  public var retransmissions: UInt64
}

/// Something that an engine wants its control thread to deal with.
public enum EngineFault: Equatable, Sendable {
  /// A word in the channel cannot be: its application is broken or hostile. The engine has let go of it.
  case channelDamaged(UInt32)
}

// A derived `rawValue` is a switch in a function of its own; an enumeration of fewer than 257 plain cases is stored as
// its ordinal, and that is all that counting needs.
extension EngineCounter {
  @inline(__always)
  var ordinal: Int { @_noLocks get { unsafe Int(unsafeBitCast(self, to: UInt8.self)) } }
}

extension DropReason {
  @inline(__always)
  var ordinal: Int { @_noLocks get { unsafe Int(unsafeBitCast(self, to: UInt8.self)) } }
}
