import MachnetEngine
import MachnetWire

/// All buffers of a network: one stretch of memory, and who has each of them.
///
/// Every buffer has exactly one holder. Whoever gives away what it does not hold (a buffer freed twice, or transmitted
/// and kept) traps.
@safe
struct BufferPool: ~Copyable {
  /// Hosts are 0 and above.
  enum Holder {
    static let nobody: Int32 = -1
    /// A cable, a queue of the switch, an RX ring, or what `next` has shown.
    static let network: Int32 = -2
  }

  struct Record {
    var holder: Int32
    /// Where the frame starts, and how long it is.
    var offset: UInt16
    var length: UInt16
    /// In a list: the next buffer's number + 1; 0: the last.
    var next: UInt32
  }

  let count: Int
  /// Bytes of each.
  let size: Int
  /// Safety: `count * size` bytes and `count` records, owned; records below `touched` are initialised.
  private let memory: UnsafeMutableRawPointer
  private let records: UnsafeMutablePointer<Record>
  /// Buffers that were ever in use: the others cost nothing yet.
  private(set) var touched = 0
  private var firstFree: UInt32 = 0
  private(set) var free: Int

  init(count: Int, size: Int) {
    precondition(count > 0 && count < Int(UInt32.max) && size >= 128 && size <= 65_535)
    self.count = count
    self.size = (size + 63) & ~63
    free = count
    unsafe memory = .allocate(byteCount: count * self.size, alignment: 64)
    unsafe records = .allocate(capacity: count)
  }

  deinit {
    unsafe memory.deallocate()
    unsafe records.deallocate()
  }

  subscript(index: UInt32) -> Record {
    @inline(__always) unsafeAddress {
      precondition(Int(index) < touched)
      return unsafe UnsafePointer(records + Int(index))
    }
    @inline(__always) nonmutating unsafeMutableAddress {
      precondition(Int(index) < touched)
      return unsafe records + Int(index)
    }
  }

  mutating func take(for holder: Int32) -> UInt32? {
    var index = firstFree
    if index != 0 {
      index -= 1
      firstFree = self[index].next
    } else {
      if touched == count { return nil }
      index = UInt32(touched)
      touched += 1
    }
    free -= 1
    unsafe (records + Int(index)).initialize(to: Record(holder: holder, offset: 0, length: 0, next: 0))
    return index
  }

  mutating func give(_ index: UInt32) {
    precondition(self[index].holder != Holder.nobody, "a buffer is freed twice")
    self[index].holder = Holder.nobody
    self[index].next = firstFree
    firstFree = index + 1
    free += 1
  }

  /// The frame in a buffer.
  @inline(__always)
  func frame(_ index: UInt32) -> Bytes {
    let record = self[index]
    return unsafe Bytes(
      unsafe: memory + Int(index) * size + Int(record.offset), count: Int(record.length))
  }

  func packet(_ index: UInt32) -> Packet {
    let record = self[index]
    let base = unsafe memory + Int(index) * size
    return unsafe Packet(
      unsafe: base, data: base + Int(record.offset), length: Int(record.length), capacity: size - Int(record.offset))
  }

  /// The number of a packet's buffer, its frame noted.
  func index(_ packet: Packet) -> UInt32 {
    let distance = unsafe packet.handle - memory
    precondition(distance >= 0 && distance < touched * size && distance % size == 0, "not a packet of this network")
    let index = UInt32(distance / size)
    let offset = unsafe packet.data - packet.handle
    precondition(
      offset >= 0 && packet.length >= 0 && offset + Int(packet.length) <= size, "a frame outside of its buffer")
    self[index].offset = UInt16(offset)
    self[index].length = UInt16(packet.length)
    return index
  }

  /// A second buffer with the same frame.
  mutating func copy(_ index: UInt32, for holder: Int32) -> UInt32? {
    guard let new = take(for: holder) else { return nil }
    let frame = frame(index)
    self[new].length = UInt16(frame.count)
    self.frame(new).copy(frame, to: 0)
    return new
  }
}

/// Buffers in order.
struct BufferList {
  private var first: UInt32 = 0
  private var last: UInt32 = 0
  private(set) var count = 0

  mutating func append(_ index: UInt32, _ pool: borrowing BufferPool) {
    pool[index].next = 0
    if last != 0 { pool[last - 1].next = index + 1 } else { first = index + 1 }
    last = index + 1
    count += 1
  }

  mutating func takeFirst(_ pool: borrowing BufferPool) -> UInt32? {
    if first == 0 { return nil }
    let index = first - 1
    first = pool[index].next
    if first == 0 { last = 0 }
    count -= 1
    return index
  }
}
