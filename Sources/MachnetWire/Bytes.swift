// Fields of packets: network byte order, no alignment. The callers prove that the bytes are there.

extension UnsafeRawPointer {
  @inlinable @inline(__always) @_noLocks
  func field8(_ offset: Int) -> UInt8 {
    unsafe load(fromByteOffset: offset, as: UInt8.self)
  }

  @inlinable @inline(__always) @_noLocks
  func field16(_ offset: Int) -> UInt16 {
    let value = unsafe loadUnaligned(fromByteOffset: offset, as: UInt16.self)
    return UInt16(bigEndian: value)
  }

  @inlinable @inline(__always) @_noLocks
  func field32(_ offset: Int) -> UInt32 {
    let value = unsafe loadUnaligned(fromByteOffset: offset, as: UInt32.self)
    return UInt32(bigEndian: value)
  }

  @inlinable @inline(__always) @_noLocks
  func field48(_ offset: Int) -> UInt64 {
    let high = unsafe field16(offset)
    let low = unsafe field32(offset + 2)
    return UInt64(high) << 32 | UInt64(low)
  }
}

extension UnsafeMutableRawPointer {
  @inlinable @inline(__always) @_noLocks
  func setField8(_ offset: Int, _ value: UInt8) {
    unsafe storeBytes(of: value, toByteOffset: offset, as: UInt8.self)
  }

  @inlinable @inline(__always) @_noLocks
  func setField16(_ offset: Int, _ value: UInt16) {
    unsafe storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt16.self)
  }

  @inlinable @inline(__always) @_noLocks
  func setField32(_ offset: Int, _ value: UInt32) {
    unsafe storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt32.self)
  }

  @inlinable @inline(__always) @_noLocks
  func setField48(_ offset: Int, _ value: UInt64) {
    unsafe setField16(offset, UInt16(truncatingIfNeeded: value >> 32))
    unsafe setField32(offset + 2, UInt32(truncatingIfNeeded: value))
  }
}
