/// The Internet checksum (RFC 1071), built up piece by piece.
///
/// Bytes are summed in the machine's own order, four at a time into 64 bits, and swapped once at the end: the sum is
/// independent of byte order (RFC 1071, section 2(B)).
public struct Checksum: Sendable, BitwiseCopyable {
  /// One's complement sum so far of 16-bit words in the machine's order; folded, so at most 16 bits.
  @usableFromInline var sum: UInt64 = 0
  /// An odd number of bytes has been added: the next one is the low half of a word.
  @usableFromInline var isOdd = false

  @inlinable @inline(__always) @_noLocks
  public init() {}

  /// Adds `length` bytes, 0 or more; pieces may have any length, odd ones too.
  ///
  /// Safety: `length` bytes at `bytes` can be read.
  @unsafe @inlinable @_noLocks
  public mutating func add(_ bytes: UnsafeRawPointer, length: Int) {
    // A 64-bit sum of 32-bit words cannot overflow below 2^34 bytes.
    var piece: UInt64 = 0
    var offset = 0
    while length &- offset >= 8 {
      let word = unsafe bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
      piece = piece &+ (word & 0xFFFF_FFFF) &+ (word &>> 32)
      offset = offset &+ 8
    }
    if length &- offset >= 4 {
      piece = piece &+ UInt64(unsafe bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
      offset = offset &+ 4
    }
    if length &- offset >= 2 {
      piece = piece &+ UInt64(unsafe bytes.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
      offset = offset &+ 2
    }
    if length &- offset >= 1 {
      // The last byte is the high half of a word whose low half is zero, on the wire.
      piece = piece &+ UInt64(UInt16(bigEndian: UInt16(unsafe bytes.field8(offset)) << 8))
    }
    add(Self.fold(piece), isOdd: length & 1 != 0)
  }

  /// Adds what has been summed elsewhere, as if its bytes came next.
  @inlinable @inline(__always) @_noLocks
  public mutating func add(_ next: Checksum) { add(next.sum, isOdd: next.isOdd) }

  /// Adds a field of 16 bits, given in host order. Only after an even number of bytes.
  @inlinable @inline(__always) @_noLocks
  public mutating func add(_ field: UInt16) { add(UInt64(field.bigEndian), isOdd: false) }

  /// Adds a field of 32 bits, given in host order. Only after an even number of bytes.
  @inlinable @inline(__always) @_noLocks
  public mutating func add(_ field: UInt32) { add(Self.fold(UInt64(field.bigEndian)), isOdd: false) }

  /// The checksum to put into a header whose own field counted as zero, in host order.
  @inlinable @inline(__always)
  public var value: UInt16 {
    @_noLocks get { ~UInt16(bigEndian: UInt16(truncatingIfNeeded: sum)) }
  }

  /// Whether bytes that include their checksum are intact.
  @inlinable @inline(__always)
  public var isIntact: Bool {
    // Only all zero bytes sum to 0, and those carry no valid checksum: 0xFFFF is the one good sum.
    @_noLocks get { sum == 0xFFFF }
  }

  /// Adds the folded sum of bytes that come next.
  @inlinable @inline(__always) @_noLocks
  mutating func add(_ piece: UInt64, isOdd pieceIsOdd: Bool) {
    // Behind an odd number of bytes, every byte of the piece sits in the other half of its word (RFC 1071, 2(B)).
    let word = UInt16(truncatingIfNeeded: piece)
    sum = Self.fold(sum &+ UInt64(isOdd ? word.byteSwapped : word))
    isOdd = isOdd != pieceIsOdd
  }

  /// Brings a sum down to 16 bits, carries added back in.
  @inlinable @inline(__always) @_noLocks
  static func fold(_ wide: UInt64) -> UInt64 {
    // 64 -> at most 33 -> at most 18 -> at most 17 -> 16 bits.
    var sum = (wide & 0xFFFF_FFFF) &+ (wide &>> 32)
    sum = (sum & 0xFFFF) &+ (sum &>> 16)
    sum = (sum & 0xFFFF) &+ (sum &>> 16)
    return (sum & 0xFFFF) &+ (sum &>> 16)
  }
}
