/// How the transport of one engine is to work. Times in nanoseconds.
public struct TransportOptions: Sendable {
  /// Number of this engine at its host, and how many there are.
  public var engine: UInt8
  public var engines: UInt8
  /// Drawn at the daemon's start; never 0.
  public var epoch: UInt64
  /// All randomness of the transport: tags, ports, first numbers, the cookie's secret.
  public var seed: (UInt64, UInt64)

  /// The UDP ports of session packets: `portCount` of them, from `portBase` on.
  public var portBase: UInt16 = 62_000
  public var portCount: UInt16 = 256
  /// Largest UDP payload of any interface, bytes; sizes the packet buffers.
  public var datagramMax = 1472

  // Limits.
  /// A power of two.
  public var sessions = 1024
  /// Packets that are on their way or about to be, of all sessions.
  public var buffers = 8192
  /// Messages in several pieces that are being put together: to 64 KiB, and to 8 MiB.
  public var assemblies = 256
  public var largeAssemblies = 4

  /// SYN-ACKs per second, and at once: what a flood of SYNs can make an engine send.
  public var answerRate: UInt64 = 20_000
  public var answerBurst: UInt64 = 512

  /// Between two waves of SYNs or SYN-ACKs, at first; it grows by an eighth each time. Shorter ones set sessions up sooner
  /// and leave more packets on their way when one has landed.
  public var synInterval: UInt64 = 100_000
  public var synAckInterval: UInt64 = 60_000
  /// After this long without an answer the peer is taken to be without Machnet, for `refusedFor`.
  public var connectTimeout: UInt64 = 500_000_000
  public var refusedFor: UInt64 = 1_000_000_000

  /// How long an acknowledgement may wait for company.
  public var ackDelay: UInt64 = 100_000
  public var minimumTimeout: UInt64 = 1_000_000
  public var maximumTimeout: UInt64 = 200_000_000
  /// A session without any progress for this long is dead.
  public var deadAfter: UInt64 = 3_000_000_000
  /// A message in several pieces that stands still for this long may be taken from its session, which then ends: by then its
  /// sender has sent a piece, or has found that the session is dead.
  var assemblyPatience: UInt64 { deadAfter + 2 * maximumTimeout }
  public var keepaliveAfter: UInt64 = 10_000_000_000
  /// A session without messages for this long is closed by the side that opened it.
  public var idleAfter: UInt64 = 60_000_000_000

  /// What a probe waits for beyond two round trips and the delay of an acknowledgement.
  static var probeSlack: UInt64 { @_noLocks get { 50_000 } }
  /// No timeout and no probe comes sooner after what it counts from.
  @inline(__always)
  var leastWait: UInt64 { @_noLocks get { min(minimumTimeout, ackDelay &+ TransportOptions.probeSlack) } }

  /// Queueing delay that congestion control aims at.
  public var targetDelay: UInt64 = 100_000

  public init(engine: UInt8, engines: UInt8, epoch: UInt64, seed: (UInt64, UInt64)) {
    self.engine = engine
    self.engines = engines
    self.epoch = epoch
    self.seed = seed
  }

  /// Bytes that a transport with these limits can come to use. Memory that was never needed costs nothing.
  public var memory: Int {
    let session = MemoryLayout<Session>.stride + Transport.windowMax * MemoryLayout<Slot>.stride
    // Beside the tables that its limits size, there are the events.
    return sessions * (session + 7 * MemoryLayout<UInt32>.stride)
      + buffers * (bufferSize + MemoryLayout<UInt32>.stride) + assemblies * TransportOptions.smallAssembly
      + largeAssemblies * TransportOptions.messageMax + Transport.eventMax * MemoryLayout<Transport.Event>.stride
  }

  /// A packet's chunks, in whole cache lines.
  var bufferSize: Int { (datagramMax + 63) & ~63 }

  /// Bytes of the largest message.
  public static let messageMax = 8 << 20
  static let smallAssembly = 65_536
}
