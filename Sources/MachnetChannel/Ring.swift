public import CMachnetABI

/// What a look at a ring found.
public enum RingItem {
  /// A datagram: its record header (64 bytes, then `length` bytes of payload, all inside the ring).
  case record(Record)
  case empty
  /// The other side wrote an index or a length that cannot be. The channel is to be reset, nothing is to be trusted.
  case damaged
}

/// A record in a ring whose length has been loaded once and checked against the ring's bounds.
@safe
public struct Record {
  /// Safety: `MN_RECORD_HEADER + length` bytes from here lie inside the mapped ring. The other side may still
  /// change their content at any time; every field is to be loaded once.
  public let base: UnsafeMutableRawPointer
  public let length: Int

  @inlinable @inline(__always)
  public init(unsafe base: UnsafeMutableRawPointer, length: Int) {
    unsafe self.base = base
    self.length = length
  }

  /// The header, for field-by-field access.
  @inlinable @inline(__always)
  public var header: UnsafeMutablePointer<mn_record> {
    unsafe base.assumingMemoryBound(to: mn_record.self)
  }

  @inlinable @inline(__always)
  public var payload: UnsafeMutableRawPointer { unsafe base + Int(MN_RECORD_HEADER) }

  /// Bytes from this record to the next.
  @inlinable @inline(__always)
  public var stride: UInt64 { ringStride(UInt64(length)) }
}

/// Bytes that a record with `length` bytes of payload takes: header and payload, rounded up to a cache line.
@inlinable @inline(__always) @_noLocks
public func ringStride(_ length: UInt64) -> UInt64 {
  // length is at most 2^32, so the sum cannot wrap.
  (UInt64(MN_RECORD_HEADER) &+ length &+ 63) & ~63
}

/// The writing side of a `mn_ring`. Records become visible to the reader at `publish`, all at once.
///
/// The writer keeps its own tail and a copy of the reader's head. Where several threads or processes take turns
/// (the app side, under the endpoint's lock), each turn starts with `resume`, and they keep the tail in a word of their own
/// (`mn_endpoint.tx_tail`): the ring's is on a line that the reader polls, and to load it is to fetch that line from another core.
@safe
public struct RingWriter {
  @usableFromInline let ring: UnsafeMutablePointer<mn_ring>
  @usableFromInline let data: UnsafeMutableRawPointer
  @usableFromInline let capacity: UInt64
  @usableFromInline var tail: UInt64
  @usableFromInline var head: UInt64

  /// Safety: `ring` points to a mapped `mn_ring` followed by `capacity` bytes (a power of two, at least
  /// `MN_RING_MIN`), mapped for as long as the writer is in use; nobody else writes its tail at the same time.
  @inlinable
  public init(unsafe ring: UnsafeMutableRawPointer, capacity: UInt32) {
    precondition(capacity >= MN_RING_MIN && capacity & (capacity &- 1) == 0)
    unsafe self.ring = ring.assumingMemoryBound(to: mn_ring.self)
    unsafe self.data = ring + MemoryLayout<mn_ring>.size
    self.capacity = UInt64(capacity)
    self.tail = unsafe mn_load_relaxed_u64(ring) & ~63
    self.head = unsafe mn_load_acquire_u64(ring + 64)
  }

  /// Takes over from whoever wrote last. The head's copy may be old, which is only careful.
  ///
  /// - Parameter word: where those who take turns keep the tail.
  @inlinable @inline(__always) @_noLocks
  public mutating func resume(at word: UnsafeRawPointer) {
    tail = unsafe mn_load_relaxed_u64(word) & ~63
  }

  /// The charges that the reader says it has taken (`mn_ring.charge_taken`).
  @inlinable @inline(__always)
  public var chargeTaken: UInt64 {
    @_noLocks get { unsafe mn_load_relaxed_u64(UnsafeRawPointer(ring) + Int(MN_OFFSET_RING_CHARGE_TAKEN)) }
  }

  /// Room for a record with `length` bytes of payload; nil when the ring is full (or its head is a lie: then it looks
  /// full for ever, which harms only the side that lied).
  ///
  /// - Parameter length: 0...`MN_DATAGRAM_MAX`.
  /// - Returns: the record; the caller fills header and payload, then calls `commit` with it. `kind` and `length`
  ///   are already set.
  @inlinable @inline(__always) @_noLocks
  public mutating func reserve(_ length: Int) -> Record? {
    precondition(length >= 0 && length <= Int(MN_DATAGRAM_MAX))
    let stride = ringStride(UInt64(length))
    let offset = tail & (capacity &- 1)
    let room = capacity &- offset
    let needed = stride <= room ? stride : room &+ stride
    var used = tail &- head
    if used > capacity || capacity &- used < needed {
      // Acquire: pairs with the reader's publish, which released the bytes before it.
      head = unsafe mn_load_acquire_u64(UnsafeRawPointer(ring) + 64)
      used = tail &- head
      if used > capacity || capacity &- used < needed { return nil }
    }
    var at = offset
    if stride > room {
      let pad = unsafe (data + Int(offset)).assumingMemoryBound(to: mn_record.self)
      unsafe pad.pointee.length = UInt32(truncatingIfNeeded: room &- UInt64(MN_RECORD_HEADER))
      unsafe pad.pointee.kind = UInt16(MN_RECORD_PAD)
      tail = tail &+ room
      at = 0
    }
    let record = unsafe Record(unsafe: data + Int(at), length: length)
    unsafe record.header.pointee.length = UInt32(truncatingIfNeeded: length)
    unsafe record.header.pointee.kind = UInt16(MN_RECORD_DATAGRAM)
    return record
  }

  /// As `resume` and `reserve`, where the copy of the reader's head shows room and the record fits before the ring's end;
  /// nil where that is not so and `reserve` is to be asked. Writes nothing. `publishAhead` completes the record.
  ///
  /// - Parameters:
  ///   - length: 0...`MN_DATAGRAM_MAX`.
  ///   - word: as for `resume`.
  @inlinable @inline(__always) @_noLocks
  public func reserveAhead(_ length: Int, at word: UnsafeRawPointer) -> (record: Record, next: UInt64)? {
    let tail = unsafe mn_load_relaxed_u64(word) & ~63
    let stride = ringStride(UInt64(truncatingIfNeeded: length))
    let offset = tail & (capacity &- 1)
    let next = tail &+ stride
    // A copy of the head that is old shows less room than there is; one that lies makes the difference large.
    if next &- head > capacity || offset &+ stride > capacity { return nil }
    return unsafe (Record(unsafe: data + Int(truncatingIfNeeded: offset), length: length), next)
  }

  /// As `commit` and `publish`.
  @inlinable @inline(__always) @_noLocks
  public mutating func publishAhead(_ next: UInt64, at word: UnsafeMutableRawPointer) {
    tail = next
    unsafe publish(at: word)
  }

  /// The record that `reserve` gave is complete. Not yet visible.
  @inlinable @inline(__always) @_noLocks
  public mutating func commit(_ record: Record) {
    tail = tail &+ record.stride
  }

  /// Makes everything committed visible. Release: pairs with the reader's acquire of the tail in `peek`.
  @inlinable @inline(__always) @_noLocks
  public func publish() {
    unsafe mn_store_release_u64(ring, tail)
  }

  /// A reader of what this writer has published, for a writer whose reader has died.
  @inlinable
  public var reader: RingReader { unsafe RingReader(unsafe: ring, capacity: UInt32(truncatingIfNeeded: capacity)) }

  /// As `publish`, where others may be next. Their word is first: of who ends in between, nothing is overwritten.
  @inlinable @inline(__always) @_noLocks
  public func publish(at word: UnsafeMutableRawPointer) {
    unsafe mn_store_release_u64(word, tail)
    publish()
  }

  /// An upper bound of `pending` from the copy of the reader's head: touches no foreign line.
  @inlinable
  public var written: UInt64 { @_noLocks get { tail &- head } }

  /// As `pending`, and until the reader has taken that much more, `written` is as good.
  @inlinable @_noLocks
  public mutating func measure() -> UInt64 {
    head = unsafe mn_load_acquire_u64(UnsafeRawPointer(ring) + 64)
    return written
  }

  /// Bytes written and not yet released by the reader (SIOCOUTQ's measure, headers included).
  @inlinable
  public var pending: UInt64 {
    @_noLocks get {
      let read = unsafe mn_load_acquire_u64(UnsafeRawPointer(ring) + 64)
      return tail &- read
    }
  }
}

/// The reading side of a `mn_ring`. Bytes are handed back to the writer at `publish`.
@safe
public struct RingReader {
  @usableFromInline let ring: UnsafeMutablePointer<mn_ring>
  @usableFromInline let data: UnsafeMutableRawPointer
  @usableFromInline let capacity: UInt64
  @usableFromInline var head: UInt64
  @usableFromInline var tail: UInt64

  /// Safety: as for `RingWriter`, with the sides exchanged.
  @inlinable
  public init(unsafe ring: UnsafeMutableRawPointer, capacity: UInt32) {
    precondition(capacity >= MN_RING_MIN && capacity & (capacity &- 1) == 0)
    unsafe self.ring = ring.assumingMemoryBound(to: mn_ring.self)
    unsafe self.data = ring + MemoryLayout<mn_ring>.size
    self.capacity = UInt64(capacity)
    self.head = unsafe mn_load_relaxed_u64(ring + 64) & ~63
    self.tail = self.head
  }

  /// Takes over from whoever read last: the head as published.
  @inlinable @inline(__always) @_noLocks
  public mutating func resume() {
    head = unsafe mn_load_relaxed_u64(UnsafeRawPointer(ring) + 64) & ~63
    // The copy of the tail may lie behind the head now; then it is looked at again.
    if Int64(bitPattern: tail &- head) < 0 { tail = head }
  }

  /// The next record, without taking it.
  @inlinable @inline(__always) @_noLocks
  public mutating func peek() -> RingItem {
    while true {
      if head == tail {
        // Acquire: pairs with the writer's publish.
        let published = unsafe mn_load_acquire_u64(ring)
        if published == head { return .empty }
        if published & 63 != 0 || published &- head > capacity { return .damaged }
        tail = published
      }
      let offset = head & (capacity &- 1)
      let base = unsafe data + Int(offset)
      let length = UInt64(unsafe mn_load_relaxed_u32(base))
      let kind = unsafe base.load(fromByteOffset: 4, as: UInt16.self)
      let stride = ringStride(length)
      if stride > tail &- head || stride > capacity &- offset { return .damaged }
      if kind == UInt16(MN_RECORD_DATAGRAM) {
        if length > UInt64(MN_DATAGRAM_MAX) { return .damaged }
        return unsafe .record(Record(unsafe: base, length: Int(length)))
      }
      // A pad reaches to the ring's end, so a ring of pads cannot keep this loop going: two in a row are a lie.
      if kind != UInt16(MN_RECORD_PAD) || offset &+ stride != capacity || offset == 0 { return .damaged }
      head = head &+ stride
    }
  }

  /// Adds to `mn_ring.charge_taken`, before the record is given back.
  @inlinable @inline(__always) @_noLocks
  public func take(charge: UInt64) {
    let word = unsafe UnsafeMutableRawPointer(ring) + Int(MN_OFFSET_RING_CHARGE_TAKEN)
    unsafe mn_store_relaxed_u64(word, mn_load_relaxed_u64(word) &+ charge)
  }

  /// As `resume` and `peek`, where the next thing is a datagram; nil where that is not so and `peek` is to be asked.
  /// `publishAhead` takes it.
  @inlinable @inline(__always) @_noLocks
  public mutating func peekAhead() -> (record: Record, next: UInt64)? {
    let head = unsafe mn_load_relaxed_u64(UnsafeRawPointer(ring) + 64) & ~63
    var readable = tail &- head
    // None, or the copy of the tail lies behind the head.
    if readable &- 1 >= capacity {
      // Acquire: pairs with the writer's publish.
      let published = unsafe mn_load_acquire_u64(ring)
      readable = published &- head
      if readable &- 1 >= capacity || published & 63 != 0 { return nil }
      tail = published
    }
    let offset = head & (capacity &- 1)
    let base = unsafe data + Int(truncatingIfNeeded: offset)
    // Length and kind, one look.
    let first = unsafe mn_load_relaxed_u64(base)
    let length = first & 0xffff_ffff
    let stride = ringStride(length)
    if UInt16(truncatingIfNeeded: first >> 32) != UInt16(MN_RECORD_DATAGRAM) || length > UInt64(MN_DATAGRAM_MAX)
      || stride > readable || offset &+ stride > capacity
    {
      return nil
    }
    return unsafe (Record(unsafe: base, length: Int(truncatingIfNeeded: length)), head &+ stride)
  }

  /// As `advance` and `publish`.
  @inlinable @inline(__always) @_noLocks
  public mutating func publishAhead(_ next: UInt64) {
    head = next
    unsafe mn_store_release_u64(UnsafeMutableRawPointer(ring) + 64, next)
  }

  /// Whether the record that `peek` gave, of this length, is the last that was published when it last looked.
  @inlinable @inline(__always) @_noLocks
  public func isLast(length: Int) -> Bool { tail &- head == ringStride(UInt64(length)) }

  /// Steps over the record that `peek` gave. The writer sees it at `publish`.
  @inlinable @inline(__always) @_noLocks
  public mutating func advance(_ record: Record) {
    head = head &+ record.stride
  }

  /// Gives everything stepped over back to the writer. Release: pairs with the acquire of the head in `reserve`.
  @inlinable @inline(__always) @_noLocks
  public func publish() {
    unsafe mn_store_release_u64(UnsafeMutableRawPointer(ring) + 64, head)
  }

  /// Whether nothing is published beyond what has been read. A lie reads as "not empty"; `peek` then names it.
  @inlinable @inline(__always)
  public var isEmpty: Bool {
    @_noLocks get {
      let published = unsafe mn_load_acquire_u64(ring)
      return head == tail && published == head
    }
  }

  /// The writer's tail as published; changes exactly when something arrives.
  @inlinable @inline(__always)
  public var published: UInt64 { @_noLocks get { unsafe mn_load_acquire_u64(ring) } }

  /// Where the reader stands.
  @inlinable @inline(__always)
  public var position: UInt64 { @_noLocks get { head } }
}
