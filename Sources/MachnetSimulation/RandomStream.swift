/// A stream of pseudo-random numbers that a seed and a name decide: xoshiro256** (Blackman and Vigna, "Scrambled Linear
/// Pseudorandom Number Generators", 2018), its state filled by SplitMix64.
///
/// Whatever needs numbers has a stream of its own, so that one more number drawn in one place changes nothing in another.
public struct RandomStream: RandomNumberGenerator, Sendable {
  private var state: (UInt64, UInt64, UInt64, UInt64)

  /// Streams of one seed with different names are independent.
  public init(seed: UInt64, name: String) {
    // FNV-1a of the name; SplitMix64 below spreads what is alike.
    var hash: UInt64 = 0xCBF2_9CE4_8422_2325
    for byte in name.utf8 { hash = (hash ^ UInt64(byte)) &* 0x0000_0100_0000_01B3 }
    var mixer = SplitMix64(state: seed)
    mixer.state = mixer.next() ^ hash
    // SplitMix64 never gives four zeros in a row, the one state that xoshiro must not have.
    state = (mixer.next(), mixer.next(), mixer.next(), mixer.next())
  }

  /// - Parameter state: not four zeros.
  init(state: (UInt64, UInt64, UInt64, UInt64)) { self.state = state }

  public mutating func next() -> UInt64 {
    let product = state.1 &* 5
    let result = (product << 7 | product >> 57) &* 9
    let shifted = state.1 << 17
    state.2 ^= state.0
    state.3 ^= state.1
    state.1 ^= state.2
    state.0 ^= state.3
    state.2 ^= shifted
    state.3 = state.3 << 45 | state.3 >> 19
    return result
  }

  /// 0..<`bound`, for a bound of at least 1. (By multiplication: off from uniform by less than `bound` in 2^64.)
  public mutating func below(_ bound: UInt64) -> UInt64 {
    precondition(bound > 0)
    return next().multipliedFullWidth(by: bound).high
  }

  public mutating func uniform(_ range: ClosedRange<UInt64>) -> UInt64 {
    let width = range.upperBound - range.lowerBound
    return width == UInt64.max ? next() : range.lowerBound + below(width + 1)
  }

  /// Whether something of that probability (0...1) happens.
  public mutating func chance(_ probability: Double) -> Bool { roll(Chance(probability)) }

  /// No number is drawn for what never happens.
  @inline(__always)
  mutating func roll(_ chance: Chance) -> Bool { chance.threshold != 0 && next() >> 11 < chance.threshold }
}

/// A probability made ready: how many of 2^53 numbers stand for "yes".
struct Chance {
  let threshold: UInt64

  init(_ probability: Double) {
    precondition(probability >= 0 && probability <= 1, "a probability of \(probability)")
    threshold = UInt64(probability * 9_007_199_254_740_992)
  }
}

/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
private struct SplitMix64 {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }
}
