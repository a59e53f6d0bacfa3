import CLinux
import CMachnetABI

/// Time from the cycle counter: no system call, about 10 ns. Nanoseconds since the clock was made, and CLOCK_REALTIME.
/// Or a time that somebody else sets.
@safe
struct Clock: BitwiseCopyable {
  /// Safety: of `EngineOptions.virtualTime`.
  private let virtual: UnsafePointer<UInt64>?
  private let start: UInt64
  private let startMonotonic: UInt64
  /// Nanoseconds per cycle, times 2^32.
  private var scale: UInt64
  /// CLOCK_REALTIME minus this clock.
  private var realtimeOffset: UInt64

  /// Measures the counter against the system's clock for `milliseconds`.
  init(milliseconds: UInt64 = 2, virtual: UnsafePointer<UInt64>? = nil) {
    unsafe self.virtual = virtual
    start = mn_cycles()
    startMonotonic = mn_linux_monotonic()
    scale = 1 << 32
    realtimeOffset = 0
    if unsafe virtual != nil { return }
    while mn_linux_monotonic() - startMonotonic < milliseconds * 1_000_000 {}
    calibrate()
  }

  /// Measures again, over all the time since the start, and follows steps of CLOCK_REALTIME. For the slow tick.
  mutating func calibrate() {
    if unsafe virtual != nil { return }
    let cycles = mn_cycles() &- start
    let nanoseconds = mn_linux_monotonic() &- startMonotonic
    // Dividing (ns << 32) by cycles; the high word is smaller than the divisor for any counter above 1 Hz.
    let (high, low) = (nanoseconds >> 32, nanoseconds << 32)
    if high < cycles { scale = cycles.dividingFullWidth((high, low)).quotient }
    realtimeOffset = mn_linux_realtime() &- now()
  }

  /// Nanoseconds since the start.
  @inline(__always) @_noLocks
  func now() -> UInt64 {
    if let virtual = unsafe virtual { return unsafe virtual.pointee }
    let product = (mn_cycles() &- start).multipliedFullWidth(by: scale)
    return product.high << 32 | product.low >> 32
  }

  @inline(__always) @_noLocks
  func realtime(at now: UInt64) -> UInt64 { now &+ realtimeOffset }
}
