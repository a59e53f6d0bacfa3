/// Which ports' interrupts end a sleep. Drivers and devices differ, and one that only says that it has interrupts would have its packets
/// wait for the engine's timers. So an interrupt is relied on once it has come, and no more after packets were found that none had told of;
/// until then the engine looks at the port as at one without.
struct InterruptTrust {
  /// Of each port: above 0, its interrupt is relied on.
  private var scores = InlineArray<16, Int8>(repeating: 0)
  /// Ports (bits) whose interrupt is relied on.
  private(set) var trusted: UInt64 = 0

  /// Interrupts in a row that make up for one that did not come.
  static let toRegain: Int8 = 8

  /// An interrupt of each of these ports (bits) has ended a sleep.
  mutating func told(_ ports: UInt64) { move(ports, by: 1) }

  /// Packets were there after a sleep, and no interrupt of these ports had told of them.
  mutating func missed(_ ports: UInt64) { move(ports, by: -InterruptTrust.toRegain) }

  private mutating func move(_ ports: UInt64, by step: Int8) {
    var left = ports
    while left != 0 {
      let port = left.trailingZeroBitCount
      left &= left &- 1
      if port >= scores.count { return }
      scores[port] = max(-InterruptTrust.toRegain, min(1, scores[port] + step))
      if scores[port] > 0 { trusted |= 1 << UInt64(port) } else { trusted &= ~(1 << UInt64(port)) }
    }
  }
}
