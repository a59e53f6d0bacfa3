/// How long things waited, ns: counts in buckets that are at most 1/32 of their value wide.
public struct DelayHistogram: Sendable, Equatable {
  private var buckets: [UInt64] = []
  public private(set) var count: UInt64 = 0
  public private(set) var max: UInt64 = 0
  private var sum: UInt64 = 0

  private static var steps: Int { 32 }

  public init() {}

  public var mean: UInt64 { count == 0 ? 0 : sum / count }

  public mutating func record(_ delay: UInt64) {
    if buckets.isEmpty { buckets = [UInt64](repeating: 0, count: 61 * DelayHistogram.steps) }
    buckets[DelayHistogram.bucket(delay)] += 1
    count += 1
    sum &+= delay
    if delay > max { max = delay }
  }

  /// The delay that `percent` (0...100) of all were not above, rounded up to the end of its bucket; 0: there were none.
  public func percentile(_ percent: Double) -> UInt64 {
    precondition(percent >= 0 && percent <= 100)
    if count == 0 { return 0 }
    let wanted = Swift.max(1, UInt64((Double(count) * percent / 100).rounded(.up)))
    var seen: UInt64 = 0
    for index in buckets.indices {
      seen += buckets[index]
      if seen >= wanted { return min(DelayHistogram.end(index), max) }
    }
    return max
  }

  private static func bucket(_ value: UInt64) -> Int {
    if value < UInt64(steps) { return Int(value) }
    let exponent = 63 - value.leadingZeroBitCount
    return (exponent - 4) * steps + Int(value >> UInt64(exponent - 5)) - steps
  }

  /// The largest value in a bucket.
  private static func end(_ bucket: Int) -> UInt64 {
    if bucket < steps { return UInt64(bucket) }
    let shift = UInt64(bucket / steps - 1)
    let base = UInt64(bucket % steps + steps)
    return base << shift | (1 << shift - 1)
  }
}
