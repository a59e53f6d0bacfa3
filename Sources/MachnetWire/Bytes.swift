/// A stretch of memory that belongs to somebody else, read and written in network byte order. Offsets are checked: a
/// mistake traps, it never reads beyond the end.
@safe
public struct Bytes: BitwiseCopyable {
  /// Safety: `count` bytes from here are readable and writable for as long as the value is in use.
  public let base: UnsafeMutableRawPointer
  public let count: Int

  @inlinable @inline(__always) @_noLocks
  public init(unsafe base: UnsafeMutableRawPointer, count: Int) {
    precondition(count >= 0)
    unsafe self.base = base
    self.count = count
  }

  @inlinable @inline(__always) @_noLocks
  func check(_ offset: Int, _ size: Int) {
    // Sizes are small, so the difference cannot overflow.
    precondition(offset >= 0 && offset <= count &- size)
  }

  @inlinable @inline(__always) @_noLocks
  public func u8(_ offset: Int) -> UInt8 {
    check(offset, 1)
    return unsafe base.loadUnaligned(fromByteOffset: offset, as: UInt8.self)
  }

  @inlinable @inline(__always) @_noLocks
  public func u16(_ offset: Int) -> UInt16 {
    check(offset, 2)
    return unsafe UInt16(bigEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
  }

  @inlinable @inline(__always) @_noLocks
  public func u32(_ offset: Int) -> UInt32 {
    check(offset, 4)
    return unsafe UInt32(bigEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
  }

  @inlinable @inline(__always) @_noLocks
  public func u64(_ offset: Int) -> UInt64 {
    check(offset, 8)
    return unsafe UInt64(bigEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
  }

  /// Six octets, in the 48 low bits.
  @inlinable @inline(__always) @_noLocks
  public func u48(_ offset: Int) -> UInt64 {
    UInt64(u16(offset)) << 32 | UInt64(u32(offset &+ 2))
  }

  @inlinable @inline(__always) @_noLocks
  public func set8(_ offset: Int, _ value: UInt8) {
    check(offset, 1)
    unsafe base.storeBytes(of: value, toByteOffset: offset, as: UInt8.self)
  }

  @inlinable @inline(__always) @_noLocks
  public func set16(_ offset: Int, _ value: UInt16) {
    check(offset, 2)
    unsafe base.storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt16.self)
  }

  @inlinable @inline(__always) @_noLocks
  public func set32(_ offset: Int, _ value: UInt32) {
    check(offset, 4)
    unsafe base.storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt32.self)
  }

  @inlinable @inline(__always) @_noLocks
  public func set64(_ offset: Int, _ value: UInt64) {
    check(offset, 8)
    unsafe base.storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt64.self)
  }

  @inlinable @inline(__always) @_noLocks
  public func set48(_ offset: Int, _ value: UInt64) {
    set16(offset, UInt16(truncatingIfNeeded: value >> 32))
    set32(offset &+ 2, UInt32(truncatingIfNeeded: value))
  }

  /// The bytes from `offset` to `end`.
  @inlinable @inline(__always) @_noLocks
  public func slice(_ offset: Int, to end: Int) -> Bytes {
    precondition(offset >= 0 && offset <= end && end <= count)
    return unsafe Bytes(unsafe: base + offset, count: end &- offset)
  }

  @inlinable @inline(__always) @_noLocks
  public func slice(_ offset: Int) -> Bytes { slice(offset, to: count) }

  /// Copies all of `other` to `offset`.
  @inlinable @inline(__always) @_noLocks
  public func copy(_ other: Bytes, to offset: Int) {
    check(offset, other.count)
    unsafe (base + offset).copyMemory(from: other.base, byteCount: other.count)
  }
}
