/// The Internet checksum (RFC 1071) over any number of buffers, in any order of lengths.
///
/// Words are summed as they lie in memory, since the one's complement sum does not depend on byte order (RFC 1071, 2B), and
/// as many at a time as a register holds (2C).
public struct Checksum: BitwiseCopyable {
  /// Congruent, modulo 0xFFFF, to the sum so far of 16-bit words in the machine's order. Each summand is below 2^42, so there
  /// may be two million.
  @usableFromInline var sum: UInt64 = 0
  /// Whether an odd number of bytes was added: then the next buffer's words are shifted by a byte.
  @usableFromInline var isOdd = false

  @inlinable @inline(__always) @_noLocks
  public init() {}

  @inlinable @inline(__always) @_noLocks
  init(sum: UInt64) { self.sum = sum }

  /// Adds a buffer.
  @inlinable @inline(__always) @_noLocks
  public mutating func add(_ bytes: Bytes) {
    let partial = Checksum.sum(of: bytes)
    // Behind an odd number of bytes, every byte sits in the other half of its word: modulo 0xFFFF, that is times 2^8.
    sum = sum &+ (isOdd ? partial &<< 8 : partial)
    if bytes.count & 1 != 0 { isOdd.toggle() }
  }

  /// The sum of a buffer's words, below 2^33.
  @inlinable @inline(never) @_noLocks
  static func sum(of bytes: Bytes) -> UInt64 {
    let base = unsafe UnsafeRawPointer(bytes.base)
    let count = bytes.count
    // 64 bits at a time, the carry added back in: modulo 2^64 - 1, of which 0xFFFF is a divisor (RFC 1071, 2C).
    var partial: UInt64 = 0
    var offset = 0
    while count &- offset >= 32 {
      partial = unsafe Checksum.sum(partial, base.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
      partial = unsafe Checksum.sum(partial, base.loadUnaligned(fromByteOffset: offset &+ 8, as: UInt64.self))
      partial = unsafe Checksum.sum(partial, base.loadUnaligned(fromByteOffset: offset &+ 16, as: UInt64.self))
      partial = unsafe Checksum.sum(partial, base.loadUnaligned(fromByteOffset: offset &+ 24, as: UInt64.self))
      offset = offset &+ 32
    }
    if count & 16 != 0 {
      partial = unsafe Checksum.sum(partial, base.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
      partial = unsafe Checksum.sum(partial, base.loadUnaligned(fromByteOffset: offset &+ 8, as: UInt64.self))
      offset = offset &+ 16
    }
    if count & 8 != 0 {
      partial = unsafe Checksum.sum(partial, base.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
      offset = offset &+ 8
    }
    if count & 4 != 0 {
      partial = unsafe Checksum.sum(partial, UInt64(base.loadUnaligned(fromByteOffset: offset, as: UInt32.self)))
      offset = offset &+ 4
    }
    if count & 2 != 0 {
      partial = unsafe Checksum.sum(partial, UInt64(base.loadUnaligned(fromByteOffset: offset, as: UInt16.self)))
      offset = offset &+ 2
    }
    if count & 1 != 0 {
      // The last byte is the first of a word whose other byte is 0.
      partial = Checksum.sum(partial, UInt64(UInt16(littleEndian: UInt16(bytes.u8(offset)))))
    }
    return (partial & 0xFFFF_FFFF) &+ (partial &>> 32)
  }

  /// Adds the first 20 bytes of a buffer, an IPv4 header's, at an even offset.
  @inlinable @inline(__always) @_noLocks
  public mutating func addHeader(_ bytes: Bytes) {
    let head = bytes.slice(0, to: 20)
    let base = unsafe UnsafeRawPointer(head.base)
    var partial = unsafe Checksum.sum(
      base.loadUnaligned(as: UInt64.self), base.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
    partial = unsafe Checksum.sum(partial, UInt64(base.loadUnaligned(fromByteOffset: 16, as: UInt32.self)))
    sum = sum &+ (partial & 0xFFFF_FFFF) &+ (partial &>> 32)
  }

  /// One's complement: the carry comes in at the other end.
  @inlinable @inline(__always) @_noLocks
  static func sum(_ a: UInt64, _ b: UInt64) -> UInt64 {
    let (sum, carry) = a.addingReportingOverflow(b)
    return sum &+ (carry ? 1 : 0)
  }

  /// Adds a word that stands at an even offset, given in host byte order.
  @inlinable @inline(__always) @_noLocks
  public mutating func add(_ word: UInt16) { sum = sum &+ UInt64(word.bigEndian) }

  @inlinable @inline(__always) @_noLocks
  public mutating func add(_ word: UInt32) { sum = sum &+ UInt64(word.bigEndian) }

  /// The checksum to write (host byte order). Over data that contain a right checksum it is 0.
  @inlinable @inline(__always)
  public var value: UInt16 { @_noLocks get { UInt16(bigEndian: ~Checksum.fold(sum)) } }

  @inlinable @inline(__always) @_noLocks
  static func fold(_ sum: UInt64) -> UInt16 {
    // Both halves, each added to the other: the upper one has the carry that comes in at the other end.
    let half = UInt32(truncatingIfNeeded: (sum &+ (sum &<< 32 | sum &>> 32)) &>> 32)
    return UInt16(truncatingIfNeeded: (half &+ (half &<< 16 | half &>> 16)) &>> 16)
  }

  /// What a checksum becomes when one of its words changes (RFC 1624, equation 3).
  @inlinable @_noLocks
  public static func adjust(_ checksum: UInt16, from old: UInt16, to new: UInt16) -> UInt16 {
    let sum = UInt64(~checksum) &+ UInt64(~old) &+ UInt64(new)
    return ~fold(sum)
  }
}
