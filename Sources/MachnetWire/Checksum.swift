/// The Internet checksum (RFC 1071) over any number of buffers, in any order of lengths.
///
/// Words are summed as they lie in memory, since the one's complement sum does not depend on byte order (RFC 1071, 2B),
/// and 32 bits at a time into 64, deferring carries (2A, C).
public struct Checksum: BitwiseCopyable {
  /// Congruent, modulo 0xFFFF, to the sum so far of 16-bit words in the machine's order; at most 2^33.
  @usableFromInline var sum: UInt64 = 0
  /// Whether an odd number of bytes was added: then the next buffer's words are shifted by a byte.
  @usableFromInline var isOdd = false

  @inlinable @inline(__always) @_noLocks
  public init() {}

  /// Adds a buffer of at most 2^25 bytes.
  @inlinable @_noLocks
  public mutating func add(_ bytes: Bytes) {
    let base = unsafe UnsafeRawPointer(bytes.base)
    let count = bytes.count
    // Two sums keep the adders busy. They stay below 2^55 together.
    var partial: UInt64 = 0
    var other: UInt64 = 0
    var offset = 0
    while count &- offset >= 16 {
      let first = unsafe base.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
      let second = unsafe base.loadUnaligned(fromByteOffset: offset &+ 8, as: UInt64.self)
      partial = partial &+ (first & 0xFFFF_FFFF) &+ (first &>> 32)
      other = other &+ (second & 0xFFFF_FFFF) &+ (second &>> 32)
      offset = offset &+ 16
    }
    partial = partial &+ other
    if count &- offset >= 8 {
      let word = unsafe base.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
      partial = partial &+ (word & 0xFFFF_FFFF) &+ (word &>> 32)
      offset = offset &+ 8
    }
    if count &- offset >= 4 {
      partial = partial &+ UInt64(unsafe base.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
      offset = offset &+ 4
    }
    if count &- offset >= 2 {
      partial = partial &+ UInt64(unsafe base.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
      offset = offset &+ 2
    }
    if count &- offset >= 1 {
      // The last byte is the first of a word whose other byte is 0.
      partial = partial &+ UInt64(UInt16(littleEndian: UInt16(bytes.u8(offset))))
    }
    // Behind an odd number of bytes, every byte sits in the other half of its word: modulo 0xFFFF, that is times 2^8.
    accumulate(isOdd ? partial &<< 8 : partial)
    if count & 1 != 0 { isOdd.toggle() }
  }

  /// Adds a word that stands at an even offset, given in host byte order.
  @inlinable @inline(__always) @_noLocks
  public mutating func add(_ word: UInt16) { accumulate(UInt64(word.bigEndian)) }

  @inlinable @inline(__always) @_noLocks
  public mutating func add(_ word: UInt32) { accumulate(UInt64(word.bigEndian)) }

  /// The checksum to write (host byte order). Over data that contain a right checksum it is 0.
  @inlinable @inline(__always)
  public var value: UInt16 { @_noLocks get { UInt16(bigEndian: ~Checksum.fold(sum)) } }

  /// - Parameter partial: below 2^63.
  @inlinable @inline(__always) @_noLocks
  mutating func accumulate(_ partial: UInt64) {
    let wide = sum &+ partial
    sum = (wide & 0xFFFF_FFFF) &+ (wide &>> 32)
  }

  @inlinable @inline(__always) @_noLocks
  static func fold(_ sum: UInt64) -> UInt16 {
    // 34 -> at most 19 -> at most 17 -> 16 bits.
    var sum = (sum & 0xFFFF) &+ (sum >> 16)
    sum = (sum & 0xFFFF) &+ (sum >> 16)
    sum = (sum & 0xFFFF) &+ (sum >> 16)
    return UInt16(truncatingIfNeeded: sum)
  }

  /// What a checksum becomes when one of its words changes (RFC 1624, equation 3).
  @inlinable @_noLocks
  public static func adjust(_ checksum: UInt16, from old: UInt16, to new: UInt16) -> UInt16 {
    let sum = UInt64(~checksum) &+ UInt64(~old) &+ UInt64(new)
    return ~fold(sum)
  }
}
