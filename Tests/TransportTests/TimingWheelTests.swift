import Testing

@testable import MachnetTransport

/// Against a list of times that is searched from one end to the other.
@Suite("Timing wheel")
struct TimingWheelTests {
  private static let bucket: UInt64 = 1 << 13
  private static let turn: UInt64 = 2047 << 13

  @Test("no timer goes off too late, none is forgotten, none goes off twice")
  func everyTimerGoesOff() {
    print("seed \(runSeed)")
    var dice = Dice(state: runSeed | 1)
    let count: UInt32 = 40
    var wheel = TimingWheel(count: Int(count))
    defer { wheel.release() }
    /// What each timer was last set for; nil: off.
    var wanted = [UInt64?](repeating: nil, count: Int(count))
    var now: UInt64 = 5_000_000_000
    var fired = 0
    for _ in 0..<200_000 {
      let slot = UInt32(dice.below(Int(count)))
      switch dice.below(8) {
      case 0...3:
        // Near, far, and beyond the wheel's turn.
        let distances = [1, 50_000, 1_000_000, 30_000_000, 10_000_000_000]
        let time = now + UInt64(dice.below(distances[dice.below(5)]))
        wheel.set(slot, time)
        wanted[Int(slot)] = min(wanted[Int(slot)] ?? .max, time)
      case 4:
        wheel.cancel(slot)
        wanted[Int(slot)] = nil
      default:
        now += UInt64(dice.below(dice.below(100) == 0 ? 60_000_000 : 40_000))
        while true {
          let slot = wheel.next(now: now)
          if slot == UInt32.max { break }
          fired += 1
          guard let time = wanted[Int(slot)] else {
            Issue.record("timer \(slot) is off, and goes off at \(now)")
            continue
          }
          // Too soon is allowed at the end of a turn: whoever sees it sets it again.
          wanted[Int(slot)] = time > now ? time : nil
          if time > now { wheel.set(slot, time) }
        }
        for (slot, time) in wanted.enumerated() {
          guard let time else { continue }
          #expect(time + TimingWheelTests.bucket > now, "timer \(slot) for \(time) has not gone off at \(now)")
          #expect(wheel.due <= min(time, now + TimingWheelTests.turn) + TimingWheelTests.bucket)
        }
      }
    }
    #expect(fired > 10_000)
  }

  @Test("a timer that is set for later stays where it is, one for sooner moves")
  func soonestWins() {
    var wheel = TimingWheel(count: 2)
    defer { wheel.release() }
    wheel.set(0, 1_000_000)
    let due = wheel.due
    #expect(due > 1_000_000 && due <= 1_000_000 + TimingWheelTests.bucket)
    wheel.set(0, 3_000_000)
    #expect(wheel.due == due && wheel.isSet(0, by: due) && !wheel.isSet(0, by: due - 1))
    wheel.set(0, 500_000)
    #expect(wheel.due < due)
    #expect(wheel.next(now: 600_000) == 0)
    #expect(wheel.next(now: 20_000_000) == UInt32.max && wheel.due == TimingWheel.off)
  }
}
