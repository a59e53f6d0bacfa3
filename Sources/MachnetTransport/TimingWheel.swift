import MachnetMemory

/// One timer for each session: buckets of 2^13 ns in a ring (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels",
/// 1987, scheme 4), and bits that say which are occupied.
///
/// A timer says when somebody has to look at its session, not what for. So one that is set already, and sooner, stays as it
/// is, and one beyond the wheel's turn goes off at its end: to set a timer costs a comparison nearly always, and to put it
/// off costs nothing.
struct TimingWheel {
  private struct Timer: BitwiseCopyable {
    /// When it goes off, ns: a bucket's begin; `TimingWheel.off`; 0: it is about to.
    var due: UInt64
    /// Its neighbours in the bucket.
    var next: UInt32
    var previous: UInt32
  }

  private let timers: Table<Timer>
  /// The first timer + 1 of each bucket; 0: it is empty.
  private let buckets = Table<UInt32>(count: size)
  private let occupied = Table<UInt64>(count: size / 64)
  /// Which words of `occupied` have a bit.
  private var words: UInt32 = 0
  /// The bucket that was emptied last, counted from the clock's begin.
  private var current: UInt64 = 0
  /// The timers that are about to go off.
  private var firing = none
  /// No timer goes off before, ns.
  private(set) var due = TimingWheel.off

  /// "Never", ns.
  static var off: UInt64 { @_noLocks get { .max } }
  private static var size: Int { @_noLocks get { 2048 } }
  private static var mask: UInt64 { @_noLocks get { 2047 } }
  private static var shift: UInt64 { @_noLocks get { 13 } }

  init(count: Int) {
    timers = Table(count: count)
    for slot in 0..<count { timers[slot].due = TimingWheel.off }
  }

  func release() {
    timers.release()
    buckets.release()
    occupied.release()
  }

  /// Whether a timer goes off at `time`, ns, or before.
  @inline(__always) @_noLocks
  func isSet(_ slot: UInt32, by time: UInt64) -> Bool { timers[slot].due <= time }

  /// Sees to it that a timer goes off at `time`, ns, or before; at a bucket's end, so up to 8 us late.
  @inline(__always) @_noLocks
  mutating func set(_ slot: UInt32, _ time: UInt64) {
    if timers[slot].due &- 1 > time | ((1 << TimingWheel.shift) &- 1) { insert(slot, time) }
  }

  @inline(never) @_noLocks
  private mutating func insert(_ slot: UInt32, _ time: UInt64) {
    let tick = min(max(time >> TimingWheel.shift, current) &+ 1, current &+ TimingWheel.mask)
    if timers[slot].due <= tick << TimingWheel.shift { return }
    cancel(slot)
    let bucket = UInt32(truncatingIfNeeded: tick & TimingWheel.mask)
    let first = buckets[bucket] &- 1
    timers[slot] = Timer(due: tick << TimingWheel.shift, next: first, previous: none)
    if first != none { timers[first].previous = slot }
    buckets[bucket] = slot &+ 1
    occupied[bucket >> 6] |= 1 << UInt64(bucket & 63)
    words |= 1 << (bucket >> 6)
    due = min(due, tick << TimingWheel.shift)
  }

  @_noLocks
  mutating func cancel(_ slot: UInt32) {
    let it = timers[slot]
    if it.due == TimingWheel.off { return }
    timers[slot].due = TimingWheel.off
    if it.next != none { timers[it.next].previous = it.previous }
    if it.previous != none {
      timers[it.previous].next = it.next
    } else if it.due == 0 {
      firing = it.next
    } else {
      let bucket = UInt32(truncatingIfNeeded: it.due >> TimingWheel.shift & TimingWheel.mask)
      buckets[bucket] = it.next &+ 1
      if it.next == none { vacate(bucket) }
    }
  }

  /// The next session whose timer goes off; `none`: no more do, at `now`.
  @_noLocks
  mutating func next(now: UInt64) -> UInt32 {
    while firing == none {
      if now < due { return none }
      takeBucket(now)
    }
    let slot = firing
    firing = timers[slot].next
    if firing != none { timers[firing].previous = none }
    timers[slot].due = TimingWheel.off
    return slot
  }

  /// The bucket that is due becomes the list of those that go off.
  @_noLocks
  private mutating func takeBucket(_ now: UInt64) {
    let tick = due >> TimingWheel.shift
    // What is set from here on is ahead of now. Where that is a bucket that is still to be emptied it goes off too soon,
    // and is set again.
    current = max(current, now >> TimingWheel.shift)
    let bucket = UInt32(truncatingIfNeeded: tick & TimingWheel.mask)
    firing = buckets[bucket] &- 1
    buckets[bucket] = 0
    vacate(bucket)
    var at = firing
    while at != none {
      timers[at].due = 0
      at = timers[at].next
    }
    due = nextOccupied(tick &+ 1)
  }

  @inline(__always) @_noLocks
  private mutating func vacate(_ bucket: UInt32) {
    occupied[bucket >> 6] &= ~(1 << UInt64(bucket & 63))
    if occupied[bucket >> 6] == 0 { words &= ~(1 << (bucket >> 6)) }
  }

  /// When the first bucket from `tick` on is due that is not empty.
  @inline(__always) @_noLocks
  private func nextOccupied(_ tick: UInt64) -> UInt64 {
    let word = UInt32(truncatingIfNeeded: tick & TimingWheel.mask) >> 6
    let ahead = occupied[word] >> (tick & 63)
    if ahead != 0 { return (tick &+ UInt64(ahead.trailingZeroBitCount)) << TimingWheel.shift }
    if words == 0 { return TimingWheel.off }
    // Bit 0 becomes the word after this one; this one comes last, for its buckets of the next turn.
    let turned = words &>> (word &+ 1) | words &<< (31 &- word)
    let steps = UInt32(truncatingIfNeeded: turned.trailingZeroBitCount) &+ 1
    let first = occupied[(word &+ steps) & 31].trailingZeroBitCount
    return ((tick & ~63) &+ UInt64(steps) &* 64 &+ UInt64(first)) << TimingWheel.shift
  }
}
