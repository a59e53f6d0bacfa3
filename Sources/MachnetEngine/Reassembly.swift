import MachnetMemory
import MachnetWire

/// Puts fragments of IPv4 datagrams together (RFC 791, 3.2), in memory of a fixed size: a fragment is copied to its
/// place, and a bitmap of 8-byte blocks tells what is there. Overlaps end the datagram (as RFC 5722 has it for IPv6),
/// exact repetitions are ignored.
struct Reassembly {
  struct Key: BitwiseCopyable {
    var source: UInt32
    var destination: UInt32
    var identification: UInt16
    var ipProtocol: UInt8
  }

  private struct Context {
    var isUsed: Bool
    var key: Key
    /// Bytes of the datagram's payload; 0: the last fragment has not come.
    var total: UInt32
    var received: UInt32
    /// Where the furthest fragment so far ends.
    var reach: UInt32
    var deadline: UInt64
    var ttl: UInt8
    var tos: UInt8
  }

  enum Outcome {
    /// More is to come.
    case incomplete
    /// All is here; the memory is valid until the next call.
    case complete(Bytes, ttl: UInt8, tos: UInt8)
    case dropped(DropReason)
  }

  static var contextMax: Int { 64 }
  /// Largest payload of an IPv4 packet with the shortest header.
  static var payloadMax: Int { 65_515 }
  /// RFC 791 suggests 15 s; datagrams of today's links are complete or lost much sooner.
  static var lifetime: UInt64 { 5_000_000_000 }
  private static var bufferSize: Int { 65_536 }
  private static var bitmapWords: Int { 128 }

  private let contexts = Table<Context>(count: Reassembly.contextMax)
  private let buffers = Table<UInt8>(count: Reassembly.contextMax * Reassembly.bufferSize)
  private let bitmaps = Table<UInt64>(count: Reassembly.contextMax * Reassembly.bitmapWords)
  private(set) var used = 0
  /// Datagrams that had to go for lack of room or time, since the last look.
  var evicted = 0

  func release() {
    contexts.release()
    buffers.release()
    bitmaps.release()
  }

  /// Takes one fragment.
  @_noLocks
  mutating func add(
    _ key: Key, offset: Int, more: Bool, _ payload: Bytes, ttl: UInt8, tos: UInt8, now: UInt64
  ) -> Outcome {
    let length = payload.count
    let end = offset &+ length
    if length == 0 || (more && length & 7 != 0) || end > Reassembly.payloadMax { return .dropped(.fragmentMalformed) }
    let index = context(key, now: now)
    let total = Int(contexts[index].total)
    if total != 0 && (end > total || (!more && end != total)) { return drop(index) }
    if !more && Int(contexts[index].reach) > end { return drop(index) }

    let firstBlock = offset / 8
    let blocks = (length &+ 7) / 8
    let present = presentBlocks(index, firstBlock, blocks)
    if present == blocks { return .incomplete }
    if present != 0 { return drop(index) }
    markBlocks(index, firstBlock, blocks)
    buffer(index).copy(payload, to: offset)
    if offset == 0 {
      contexts[index].ttl = ttl
      contexts[index].tos = tos
    }
    if !more { contexts[index].total = UInt32(truncatingIfNeeded: end) }
    contexts[index].received &+= UInt32(truncatingIfNeeded: length)
    contexts[index].reach = max(contexts[index].reach, UInt32(truncatingIfNeeded: end))
    if contexts[index].total == 0 || contexts[index].received != contexts[index].total { return .incomplete }
    contexts[index].isUsed = false
    used &-= 1
    return .complete(
      buffer(index).slice(0, to: Int(contexts[index].total)), ttl: contexts[index].ttl, tos: contexts[index].tos)
  }

  /// Ends datagrams whose time is over.
  ///
  /// - Returns: how many.
  @_noLocks
  mutating func expire(now: UInt64) -> Int {
    if used == 0 { return 0 }
    var expired = 0
    var index = 0
    while index < Reassembly.contextMax {
      if contexts[index].isUsed && now >= contexts[index].deadline {
        contexts[index].isUsed = false
        used &-= 1
        expired &+= 1
      }
      index &+= 1
    }
    return expired
  }

  @_noLocks
  private mutating func drop(_ index: Int) -> Outcome {
    contexts[index].isUsed = false
    used &-= 1
    return .dropped(.fragmentOverlap)
  }

  /// The datagram's context: the one in progress, else a new one, at the cost of the oldest if need be.
  @_noLocks
  private mutating func context(_ key: Key, now: UInt64) -> Int {
    var oldest = 0
    var free = -1
    var index = 0
    while index < Reassembly.contextMax {
      if contexts[index].isUsed {
        let it = contexts[index].key
        if it.identification == key.identification && it.source == key.source && it.destination == key.destination
          && it.ipProtocol == key.ipProtocol
        {
          return index
        }
        if contexts[index].deadline < contexts[oldest].deadline || !contexts[oldest].isUsed { oldest = index }
      } else if free < 0 {
        free = index
      }
      index &+= 1
    }
    if free < 0 {
      free = oldest
      evicted &+= 1
    } else {
      used &+= 1
    }
    contexts[free] = Context(
      isUsed: true, key: key, total: 0, received: 0, reach: 0, deadline: now &+ Reassembly.lifetime, ttl: 0, tos: 0)
    var word = 0
    while word < Reassembly.bitmapWords {
      bitmaps[free &* Reassembly.bitmapWords &+ word] = 0
      word &+= 1
    }
    return free
  }

  @_noLocks
  private func buffer(_ index: Int) -> Bytes {
    unsafe Bytes(
      unsafe: buffers.base + index &* Reassembly.bufferSize, count: Reassembly.bufferSize)
  }

  @_noLocks
  private func presentBlocks(_ index: Int, _ first: Int, _ count: Int) -> Int {
    var present = 0
    var block = first
    while block < first &+ count {
      let word = bitmaps[index &* Reassembly.bitmapWords &+ block >> 6]
      present &+= Int(truncatingIfNeeded: (word >> UInt64(block & 63)) & 1)
      block &+= 1
    }
    return present
  }

  @_noLocks
  private func markBlocks(_ index: Int, _ first: Int, _ count: Int) {
    var block = first
    while block < first &+ count {
      bitmaps[index &* Reassembly.bitmapWords &+ block >> 6] |= 1 << UInt64(block & 63)
      block &+= 1
    }
  }
}
