/// Congestion control by delay, after Swift (Kumar et al., SIGCOMM 2020, section 3): additive increase below a target
/// delay, multiplicative decrease by how far the delay exceeds it, at most once per round trip. The increase is in proportion
/// to what is left to the target (RFC 6817, 2.4.2): when many flows that see the same delay add a whole packet each per round
/// trip until they are past it, large packets make that an overshoot of as much again.
///
/// Where Swift has NIC timestamps and a known topology, this has neither: the delay is the round trip less the least
/// one of the last seconds, and its smallest sample per round trip counts. Swift tells the delay of the network from that of the
/// hosts by timestamps of the NIC; here both engines know when they did not run, and a round trip in which one of them was away
/// says only that there is no delay that goes beyond that: what is known from other samples stands, and growth goes on once
/// per round trip of that length. How busy an engine is while it runs counts as delay: a smaller window helps then. Loss alone is no congestion signal (clouds lose packets for other reasons) unless a round
/// loses more than an eighth.
struct CongestionControl: BitwiseCopyable {
  /// Packets in flight that are allowed; a fraction below 1 means pauses between packets.
  private(set) var window: Double
  private var isStarting: Bool
  /// The smallest delay of this round trip and of the one before, ns.
  private var roundDelay: UInt64
  private var lastRoundDelay: UInt64
  private var roundEnds: UInt64
  private var decreasedAt: UInt64
  private var roundAcked: UInt32
  private var roundLost: UInt32
  /// Before the first of the timeouts that may have been for nothing.
  private var windowBefore: Double
  private let target: UInt64

  static var initial: Double { @_noLocks get { 16 } }
  static var least: Double { @_noLocks get { 0.25 } }
  static var most: Double { @_noLocks get { 256 } }
  /// Packets per round trip where there is no delay.
  private static var increase: Double { @_noLocks get { 1 } }
  private static var beta: Double { @_noLocks get { 0.8 } }
  private static var maximumDecrease: Double { @_noLocks get { 0.5 } }
  /// Targets of delay beyond which windows below 1 are used.
  private static var crowd: Double { @_noLocks get { 8 } }
  /// Flow scaling (Swift, 3.2): smaller windows may wait longer, so that many flows find equal shares.
  private static var scalingRange: Double { @_noLocks get { 0.5 } }

  @_noLocks
  init(target: UInt64) {
    window = CongestionControl.initial
    isStarting = true
    roundDelay = .max
    lastRoundDelay = .max
    roundEnds = 0
    decreasedAt = 0
    roundAcked = 0
    roundLost = 0
    windowBefore = 0
    self.target = target
  }

  /// The target for this window, ns: at least as much as the path takes anyhow, since longer paths vary more; half as
  /// much again for windows of 1.
  @inline(__always) @_noLocks
  private func scaledTarget(_ minimum: UInt64) -> Double {
    Double(max(target, minimum))
      * (1 + CongestionControl.scalingRange * CongestionControl.inverseRoot(max(window, 1)))
  }

  /// 1 / sqrt(x), within a hundredth of a percent, for x from 1 to 2^20: an estimate from the bits, and Newton's steps.
  @inline(__always) @_noLocks
  private static func inverseRoot(_ x: Double) -> Double {
    let x = Float(x)
    var y = Float(bitPattern: 0x5F37_59DF &- x.bitPattern >> 1)
    y *= 1.5 - 0.5 * x * y * y
    y *= 1.5 - 0.5 * x * y * y
    return Double(y)
  }

  /// `count` packets were acknowledged; the latest took `rtt`, of which an end may have been away for `waited`; the least known
  /// is `minimum`, ns.
  @_noLocks
  mutating func acknowledged(_ count: Int, rtt: UInt64, waited: UInt64, minimum: UInt64, now: UInt64) {
    // At least that much of it is certain.
    let rtt = rtt > minimum &+ waited ? rtt &- waited : min(rtt, minimum)
    let delay = rtt &- min(rtt, minimum)
    if waited == 0 { roundDelay = min(roundDelay, delay) }
    roundAcked &+= UInt32(truncatingIfNeeded: count)
    if now >= roundEnds {
      lastRoundDelay = roundDelay
      roundDelay = .max
      roundEnds = now &+ rtt
      if roundLost &* 8 > roundAcked &+ roundLost && roundLost > 4 { decrease(0.7, now) }
      roundAcked = 0
      roundLost = 0
    }
    let known = min(roundDelay, lastRoundDelay)
    let filtered = Double(known == .max ? delay : known)
    let target = scaledTarget(minimum)
    if filtered < target {
      if isStarting {
        if filtered < target / 2 {
          window += Double(count)
        } else {
          isStarting = false
        }
      } else if window >= 1 {
        window += CongestionControl.increase * (target - filtered) / target / window * Double(count)
      } else {
        window += CongestionControl.increase * Double(count)
      }
    } else {
      isStarting = false
      if now &- decreasedAt >= rtt {
        let factor = 1 - CongestionControl.beta * (filtered - target) / filtered
        // One packet may wait for longer than the target on a slow link, and nothing less than one helps then; only a queue
        // of many others makes a flow send less often than once per round trip.
        let least = filtered > CongestionControl.crowd * target ? CongestionControl.least : min(window, 1)
        decrease(max(factor, 1 - CongestionControl.maximumDecrease), now)
        window = max(window, least)
      }
    }
    window = min(window, CongestionControl.most)
  }

  @_noLocks
  mutating func lost(_ count: Int) { roundLost &+= UInt32(truncatingIfNeeded: count) }

  /// Nothing came back for a whole timeout.
  @_noLocks
  mutating func timedOut(_ now: UInt64, isFirst: Bool) {
    if isFirst { windowBefore = window }
    isStarting = false
    window = max(window / 2, 1)
    decreasedAt = now
  }

  /// The timeouts since the last progress were for nothing.
  @_noLocks
  mutating func undoTimeout() { window = max(window, windowBefore) }

  @_noLocks
  private mutating func decrease(_ factor: Double, _ now: UInt64) {
    isStarting = false
    window = max(window * factor, CongestionControl.least)
    decreasedAt = now
  }
}
