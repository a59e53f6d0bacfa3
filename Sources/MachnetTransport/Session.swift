/// "No slot": ends chains and lists.
@inline(__always)
var none: UInt32 { @_noLocks get { 0xFFFF_FFFF } }

/// How far `b` lies ahead of `a`, packet numbers being serial numbers (RFC 1982).
@inline(__always) @_noLocks
func distance(_ a: UInt32, _ b: UInt32) -> Int { Int(Int32(bitPattern: b &- a)) }

/// The UDP ports of packets of one direction, as on the wire. Host byte order.
public struct PortPair: BitwiseCopyable, Equatable, Sendable {
  public var source: UInt16
  public var destination: UInt16

  @_noLocks
  public init(source: UInt16, destination: UInt16) {
    self.source = source
    self.destination = destination
  }

  @inlinable @_noLocks
  public static func == (a: PortPair, b: PortPair) -> Bool { a.source == b.source && a.destination == b.destination }
}

/// A packet in a session's window.
struct Slot: BitwiseCopyable {
  enum State: UInt8 { case staged, inFlight, lost, acknowledged }
  /// What a packet holds of a message in several pieces: of one at most.
  enum Part: UInt8 { case none, begun, end }
  var sentAt: UInt64
  /// Of the buffer pool; `none`: the packet carries no chunks.
  var buffer: UInt32
  /// Bytes of chunks.
  var length: UInt16
  var state: State
  /// How often it was sent, to 255.
  var transmissions: UInt8
  /// Messages that end in it.
  var messages: UInt16
  var part = Part.none
  /// Whose part that is.
  var message: UInt32 = 0

  @inline(__always) @_noLocks
  init(buffer: UInt32) {
    sentAt = 0
    self.buffer = buffer
    length = 0
    state = .staged
    transmissions = 0
    messages = 0
  }
}

/// Everything about one pair of engines, but for the slots of its window (a table of the transport's).
struct Session: BitwiseCopyable {
  enum State: UInt8 {
    case free = 0
    /// We spray SYNs and wait for a SYN-ACK.
    case opening
    /// We have one, and repeat the confirmation until something comes back.
    case confirming
    case open
  }
  var state: State
  var isClient: Bool
  var isReady: Bool
  var remoteEngine: UInt8
  var remoteEngines: UInt8
  var localAddress: UInt32
  var remoteAddress: UInt32
  /// What the peer writes into packets for us, and what we write into those for it.
  var localTag: UInt64
  var remoteTag: UInt64
  var remoteEpoch: UInt64
  var ports: PortPair
  var datagramMax: UInt16
  /// Bytes of a piece: ours, the peer's.
  var piece: UInt16
  var remotePiece: UInt16
  /// The next session with the same peer.
  var next: UInt32
  /// Counts the uses of this slot.
  var generation: UInt32

  // Opening.
  var openedAt: UInt64
  /// From the first SYN to the first word of the peer's that it has the session, ns; 0 at the answering side.
  var setUpTime: UInt64
  var waveAt: UInt64
  var waveInterval: UInt64
  var waveLeft: UInt16
  var sprayed: UInt32
  var confirmPorts: PortPair
  var cookie: UInt64
  var cookieTime: UInt8

  // Sending: [base, next) is sent and not acknowledged in order, [next, staged) is to be sent.
  var base: UInt32
  var nextNumber: UInt32
  var staged: UInt32
  /// When the latest new packet was sent.
  var launchedAt: UInt64
  var inFlight: Int32
  var lost: Int32
  /// No lost packet comes before this one.
  var lostHint: UInt32
  var peerWindow: UInt32
  var nextMessage: UInt32
  /// Messages whose last packet is not acknowledged.
  var pendingMessages: UInt32
  /// The message in several pieces of which not all are staged: one at a time, so that what the oldest packets belong to can
  /// always be sent to its end within the window.
  var isStaging: Bool
  var stagingMessage: UInt32
  var stagingTotal: UInt32
  /// Where its sender has given it up; 0: it has not.
  var abandonedAt: UInt32
  /// Words about sockets are numbered: the next of ours, and the latest of the peer's that let us go on.
  var nextWord: UInt32
  var latestResume: UInt32

  // Recovery.
  var smoothedRTT: UInt64
  var varianceRTT: UInt64
  var minimumRTT: UInt64
  /// The minimum being worked out for the next period, and when that ends.
  var nextMinimumRTT: UInt64
  var minimumUntil: UInt64
  var latestRTT: UInt64
  /// How much of that one of the two ends may have been away, ns.
  var latestWait: UInt64
  /// When the latest-sent packet that is known to have arrived was sent (RACK, RFC 8985).
  var rackSentAt: UInt64
  /// Reordering window: this many eighths of the round trip.
  var reorderEighths: UInt32
  var reorderUntil: UInt64
  var backoff: UInt32
  var progressAt: UInt64
  /// What timeouts count from: progress, or the last timeout.
  var timerFrom: UInt64
  /// The first of the timeouts since the last progress.
  var timedOutAt: UInt64
  var probeSent: Bool
  var wantsProbe: Bool

  // Congestion control.
  var congestion: CongestionControl

  // Receiving.
  var expected: UInt32
  var received: (UInt64, UInt64, UInt64, UInt64)
  /// Whether any of those bits is set: something has come before what is expected.
  var hasGap: Bool
  var ackPending: UInt32
  var ackNow: Bool
  var sawDuplicate: Bool
  var echoTimestamp: UInt32
  var echoArrival: UInt64
  var hasEcho: Bool
  /// How long that packet may have waited for us, units of 1,024 ns.
  var echoWaited: UInt16
  /// Messages of the peer's in several pieces that are being put together, and how many of them are large ones.
  var assemblies: UInt16
  var largeAssemblies: UInt16
  /// The one that began last in a packet that was the next in order: where it is put together (`none`: there was none yet), and its
  /// number.
  var begunAssembly: UInt32
  var begunMessage: UInt32
  /// A packet was refused because there was no assembly for its message: the window is closed until there is one.
  var isShort: Bool

  // Timers: absolute, 0: off.
  var ackAt: UInt64
  var lossAt: UInt64
  var paceAt: UInt64
  var heardAt: UInt64
  var messageAt: UInt64
  var pingNext: Bool

  // For those who look.
  var sentPackets: UInt64
  var receivedPackets: UInt64
  var retransmissions: UInt64
}
