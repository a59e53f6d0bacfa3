/// xoshiro256** (Blackman and Vigna, 2018): fast, and all of it from one seed.
struct Random: BitwiseCopyable {
  private var a: UInt64
  private var b: UInt64
  private var c: UInt64
  private var d: UInt64

  init(_ seed: (UInt64, UInt64)) {
    // SplitMix64 fills the state, as its authors advise.
    var state = seed.0
    func next() -> UInt64 {
      state &+= 0x9E37_79B9_7F4A_7C15
      var z = state
      z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
      z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
      return z ^ (z >> 31)
    }
    a = next()
    b = next() ^ seed.1
    c = next()
    d = next() | 1
  }

  @inline(__always) @_noLocks
  private func rotate(_ x: UInt64, _ k: UInt64) -> UInt64 { x << k | x >> (64 &- k) }

  @_noLocks
  mutating func next() -> UInt64 {
    let result = rotate(b &* 5, 7) &* 9
    let t = b << 17
    c ^= a
    d ^= b
    b ^= c
    a ^= d
    c ^= t
    d = rotate(d, 45)
    return result
  }

  /// A number in 0..<bound, bound at most 2^32.
  @_noLocks
  mutating func below(_ bound: UInt64) -> UInt64 { ((next() >> 32) &* bound) >> 32 }
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012) over whole 64-bit words.
struct SipHash: BitwiseCopyable {
  private var v0: UInt64
  private var v1: UInt64
  private var v2: UInt64
  private var v3: UInt64
  private var length: UInt64 = 0

  @_noLocks
  init(_ key: (UInt64, UInt64)) {
    v0 = key.0 ^ 0x736f_6d65_7073_6575
    v1 = key.1 ^ 0x646f_7261_6e64_6f6d
    v2 = key.0 ^ 0x6c79_6765_6e65_7261
    v3 = key.1 ^ 0x7465_6462_7974_6573
  }

  @inline(__always) @_noLocks
  private func rotate(_ x: UInt64, _ k: UInt64) -> UInt64 { x << k | x >> (64 &- k) }

  @inline(__always) @_noLocks
  private mutating func round() {
    v0 = v0 &+ v1
    v1 = rotate(v1, 13) ^ v0
    v0 = rotate(v0, 32)
    v2 = v2 &+ v3
    v3 = rotate(v3, 16) ^ v2
    v0 = v0 &+ v3
    v3 = rotate(v3, 21) ^ v0
    v2 = v2 &+ v1
    v1 = rotate(v1, 17) ^ v2
    v2 = rotate(v2, 32)
  }

  @_noLocks
  mutating func add(_ word: UInt64) {
    v3 ^= word
    round()
    round()
    v0 ^= word
    length &+= 8
  }

  @_noLocks
  mutating func finish() -> UInt64 {
    add(length << 56)
    v2 ^= 0xFF
    round()
    round()
    round()
    round()
    return v0 ^ v1 ^ v2 ^ v3
  }
}
