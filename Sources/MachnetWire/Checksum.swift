/// The Internet checksum (RFC 1071) over any number of buffers, in any order of lengths.
///
/// Words are summed as they lie in memory, since the one's complement sum does not depend on byte order (RFC 1071, 2B),
/// and 32 bits at a time, deferring carries (2A, C).
public struct Checksum: BitwiseCopyable {
  @usableFromInline var sum: UInt64 = 0
  /// Whether an odd number of bytes was added: then the next buffer's words are shifted by a byte.
  @usableFromInline var isOdd = false

  @inlinable @inline(__always) @_noLocks
  public init() {}

  /// Adds a buffer of at most 2^31 bytes.
  @inlinable @_noLocks
  public mutating func add(_ bytes: Bytes) {
    var partial: UInt64 = 0
    var offset = 0
    let count = bytes.count
    while offset &+ 8 <= count {
      let word = unsafe bytes.base.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
      partial &+= (word & 0xFFFF_FFFF) &+ (word >> 32)
      offset &+= 8
    }
    while offset &+ 2 <= count {
      partial &+= unsafe UInt64(bytes.base.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
      offset &+= 2
    }
    if offset < count {
      // The last byte is the first of a word whose other byte is 0.
      let last = UInt16(bytes.u8(offset))
      partial &+= UInt64(UInt16(littleEndian: last))
    }
    let folded = Checksum.fold(partial)
    sum &+= UInt64(isOdd ? folded.byteSwapped : folded)
    if count & 1 != 0 { isOdd.toggle() }
  }

  /// Adds a word that stands at an even offset, given in host byte order.
  @inlinable @inline(__always) @_noLocks
  public mutating func add(_ word: UInt16) { sum &+= UInt64(word.bigEndian) }

  @inlinable @inline(__always) @_noLocks
  public mutating func add(_ word: UInt32) {
    add(UInt16(truncatingIfNeeded: word >> 16))
    add(UInt16(truncatingIfNeeded: word))
  }

  /// The checksum to write (host byte order). Over data that contain a right checksum it is 0.
  @inlinable @inline(__always)
  public var value: UInt16 { @_noLocks get { UInt16(bigEndian: ~Checksum.fold(sum)) } }

  @inlinable @inline(__always) @_noLocks
  static func fold(_ sum: UInt64) -> UInt16 {
    var sum = (sum & 0xFFFF_FFFF) &+ (sum >> 32)
    sum = (sum & 0xFFFF) &+ (sum >> 16)
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
