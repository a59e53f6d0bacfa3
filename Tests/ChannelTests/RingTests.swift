import CMachnetABI
import MachnetChannel
import Testing

/// A ring in ordinary memory, both indices starting at `start`, and the word of those who take turns at writing it.
final class RingMemory {
  let base: UnsafeMutableRawPointer
  let word: UnsafeMutableRawPointer
  let capacity: UInt32

  init(capacity: UInt32 = MN_RING_MIN, start: UInt64 = 0) {
    self.capacity = capacity
    let size = MemoryLayout<mn_ring>.size + Int(capacity)
    base = .allocate(byteCount: size, alignment: 64)
    base.initializeMemory(as: UInt8.self, repeating: 0xa5, count: size)
    base.storeBytes(of: start, as: UInt64.self)
    base.storeBytes(of: start, toByteOffset: 64, as: UInt64.self)
    word = .allocate(byteCount: 64, alignment: 64)
    word.storeBytes(of: start, as: UInt64.self)
  }
  deinit {
    base.deallocate()
    word.deallocate()
  }

  var writer: RingWriter { unsafe RingWriter(unsafe: base, capacity: capacity) }
  var reader: RingReader { unsafe RingReader(unsafe: base, capacity: capacity) }
  var data: UnsafeMutableRawPointer { base + MemoryLayout<mn_ring>.size }

  func setTail(_ value: UInt64) { base.storeBytes(of: value, as: UInt64.self) }
  func setHead(_ value: UInt64) { base.storeBytes(of: value, toByteOffset: 64, as: UInt64.self) }
}

extension RingWriter {
  /// Writes a datagram of `length` bytes, each of value `fill`; false when the ring is full.
  mutating func put(_ length: Int, _ fill: UInt8, turns word: UnsafeMutableRawPointer? = nil) -> Bool {
    guard let record = reserve(length) else { return false }
    record.payload.initializeMemory(as: UInt8.self, repeating: fill, count: length)
    commit(record)
    if let word { unsafe publish(at: word) } else { publish() }
    return true
  }
}

extension RingReader {
  /// Takes a datagram: its length and whether every byte is `fill`.
  mutating func get(_ fill: UInt8) -> (length: Int, whole: Bool)? {
    guard case .record(let record) = peek() else { return nil }
    let bytes = UnsafeRawBufferPointer(start: record.payload, count: record.length)
    let whole = bytes.allSatisfy { $0 == fill }
    advance(record)
    publish()
    return (record.length, whole)
  }
}

extension RingItem {
  var isDamaged: Bool { if case .damaged = self { true } else { false } }
  var isEmpty: Bool { if case .empty = self { true } else { false } }
}

@Suite struct RingTests {
  /// Every place in the ring at which a record can start, for the sizes around a cache line and the extremes, with the
  /// free-running indices just below their wrap.
  @Test(arguments: [0, 1, 63, 64, 65, 1472, 9000, 65506, 65507])
  func aRecordSurvivesAtEveryOffset(length: Int) {
    let memory = RingMemory()
    for offset in stride(from: UInt64(0), to: UInt64(MN_RING_MIN), by: 64) {
      let start = UInt64.max - UInt64(MN_RING_MIN) + 1 &+ offset
      memory.setTail(start)
      memory.setHead(start)
      var writer = memory.writer
      var reader = memory.reader
      let wrote = writer.put(length, UInt8(truncatingIfNeeded: offset >> 6))
      #expect(wrote, "offset \(offset)")
      let got = reader.get(UInt8(truncatingIfNeeded: offset >> 6))
      #expect(got?.length == length && got?.whole == true, "offset \(offset)")
      do { let result = reader.peek(); #expect((result.isEmpty)) }
    }
  }

  /// The short forms do what `reserve` and `peek` do, or nothing: at every place of the ring, with every amount in it.
  @Test(arguments: [0, 64, 1472, 65507])
  func theShortFormsAgreeWithTheLongOnes(length: Int) {
    let memory = RingMemory()
    var short = 0
    for offset in stride(from: UInt64(0), to: UInt64(MN_RING_MIN), by: 64 * 7) {
      for unread in stride(from: UInt64(0), through: UInt64(MN_RING_MIN), by: 64 * 251) {
        let tail = UInt64.max - UInt64(MN_RING_MIN) + 1 &+ offset
        memory.setTail(tail)
        memory.word.storeBytes(of: tail, as: UInt64.self)
        memory.setHead(tail &- unread)
        var writer = memory.writer
        var other = memory.writer
        let ahead = writer.reserveAhead(length, at: memory.word)
        let record = other.reserve(length)
        guard let ahead else {
          // Refused where the long form steps over the ring's end, or has no room.
          let isAtEnd = offset + ringStride(UInt64(length)) > UInt64(MN_RING_MIN)
          #expect(record == nil || isAtEnd)
          continue
        }
        short += 1
        #expect(ahead.record.base == record?.base && ahead.record.length == length)
        other.commit(record!)
        other.publish()
        let published = memory.base.load(as: UInt64.self)
        memory.setTail(tail)
        writer.publishAhead(ahead.next, at: memory.word)
        #expect(memory.base.load(as: UInt64.self) == published && memory.word.load(as: UInt64.self) == published)
        // The record alone, for the reader.
        memory.setHead(tail)
        var reader = memory.reader
        let seen = reader.peekAhead()
        #expect(seen?.record.base == record?.base && seen?.record.length == length)
        reader.publishAhead(seen?.next ?? 0)
        #expect(memory.base.load(fromByteOffset: 64, as: UInt64.self) == published)
        do { let isEmpty = reader.peekAhead() == nil; #expect(isEmpty) }
      }
    }
    #expect(short > 100)
  }

  @Test func aFullRingRefusesAndTakesAgainWhatWasRead() {
    let memory = RingMemory(start: UInt64.max - 127)
    var writer = memory.writer
    var reader = memory.reader
    var written = 0
    while writer.put(1000, UInt8(truncatingIfNeeded: written)) { written += 1 }
    // 1088 bytes a record.
    #expect(written == Int(MN_RING_MIN) / 1088)
    for index in 0..<written {
      do { let result = reader.get(UInt8(truncatingIfNeeded: index)); #expect((result?.whole == true)) }
    }
    do { let result = reader.peek(); #expect((result.isEmpty)) }
    do { let result = writer.put(65507, 1); #expect(result) }
    do { let result = reader.get(1); #expect((result?.length == 65507)) }
  }

  @Test func whatIsMeasuredIsWritten() {
    let memory = RingMemory()
    var writer = memory.writer
    var reader = memory.reader
    for _ in 0..<10 { do { let result = writer.put(1000, 1); #expect(result) } }
    for _ in 0..<4 { do { let result = reader.get(1); #expect(result?.whole == true) } }
    #expect(writer.written == 10 * 1088 && writer.pending == 6 * 1088)
    do { let measured = writer.measure(); #expect(measured == 6 * 1088) }
    #expect(writer.written == 6 * 1088)
    do { let result = writer.put(1000, 1); #expect(result) }
    #expect(writer.written == 7 * 1088)
  }

  @Test func nothingIsSeenBeforePublish() {
    let memory = RingMemory()
    var writer = memory.writer
    var reader = memory.reader
    let record = writer.reserve(10)!
    writer.commit(record)
    do { let result = reader.peek(); #expect((result.isEmpty)) }
    writer.publish()
    do { let result = reader.peek(); #expect(!(result.isEmpty)) }
  }

  /// Two writers and two readers that take turns, as threads of a program do under the endpoint's locks.
  @Test func turnsAreTakenOverWhereTheOtherEnded() {
    let memory = RingMemory(start: UInt64.max &- 1023)
    var writers = [memory.writer, memory.writer]
    var readers = [memory.reader, memory.reader]
    var random = SystemRandomNumberGenerator()
    var sent = 0
    var received = 0
    for _ in 0..<20_000 {
      if Bool.random(using: &random) {
        let turn = Int.random(in: 0...1)
        // What the reader polls is not read by who writes it next.
        let published = memory.base.load(as: UInt64.self)
        memory.setTail(.random(in: 0...(.max), using: &random))
        writers[turn].resume(at: memory.word)
        memory.setTail(published)
        if writers[turn].put(sent % 3000, UInt8(truncatingIfNeeded: sent), turns: memory.word) { sent += 1 }
      } else {
        let turn = Int.random(in: 0...1)
        readers[turn].resume()
        if let got = readers[turn].get(UInt8(truncatingIfNeeded: received)) {
          #expect(got.length == received % 3000 && got.whole)
          received += 1
        }
      }
    }
    #expect(received <= sent && received > 1000)
  }

  /// A process was killed after it had said where the next record begins and before it published its last one.
  @Test func whatOneLeftUnpublishedTheNextPublishes() {
    let memory = RingMemory()
    var first = memory.writer
    first.resume(at: memory.word)
    do { let result = first.put(100, 1, turns: memory.word); #expect(result) }
    let published = memory.base.load(as: UInt64.self)
    do { let result = first.put(200, 2, turns: memory.word); #expect(result) }
    memory.setTail(published)
    var second = memory.writer
    second.resume(at: memory.word)
    do { let result = second.put(300, 3, turns: memory.word); #expect(result) }
    var reader = memory.reader
    for (length, fill) in [(100, 1), (200, 2), (300, 3)] as [(Int, UInt8)] {
      let got = reader.get(fill)
      #expect(got?.length == length && got?.whole == true)
    }
  }

  @Suite struct Lies {
    /// A tail that cannot be: unaligned, more than a ring ahead, or behind the head.
    @Test(arguments: [1, 63, UInt64(MN_RING_MIN) + 64, UInt64.max - 63, 1 << 63])
    func aTailThatCannotBeIsDamage(tail: UInt64) {
      let memory = RingMemory()
      var reader = memory.reader
      memory.setTail(tail)
      do { let result = reader.peek(); #expect((result.isDamaged)) }
    }

    /// Every length that reaches beyond what is published, or beyond a datagram.
    @Test(arguments: [1, 64, 65508, 0x7fff_ffff, 0xffff_ffff, 0xffff_ffc0])
    func aLengthThatCannotBeIsDamage(length: UInt32) {
      let memory = RingMemory()
      var reader = memory.reader
      memory.data.storeBytes(of: length, as: UInt32.self)
      memory.data.storeBytes(of: UInt16(MN_RECORD_DATAGRAM), toByteOffset: 4, as: UInt16.self)
      memory.setTail(64)
      do { let result = reader.peek(); #expect((result.isDamaged)) }
    }

    @Test func aRecordBeyondTheRingsEndIsDamage() {
      let start = UInt64(MN_RING_MIN) - 64
      let memory = RingMemory(start: start)
      var reader = memory.reader
      (memory.data + Int(start)).storeBytes(of: UInt32(100), as: UInt32.self)
      (memory.data + Int(start)).storeBytes(of: UInt16(MN_RECORD_DATAGRAM), toByteOffset: 4, as: UInt16.self)
      memory.setTail(start + 192)
      do { let result = reader.peek(); #expect((result.isDamaged)) }
    }

    @Test(arguments: [0, 3, 0xffff])
    func anUnknownKindIsDamage(kind: UInt16) {
      let memory = RingMemory()
      var reader = memory.reader
      memory.data.storeBytes(of: UInt32(0), as: UInt32.self)
      memory.data.storeBytes(of: kind, toByteOffset: 4, as: UInt16.self)
      memory.setTail(64)
      do { let result = reader.peek(); #expect((result.isDamaged)) }
    }

    /// A ring that consists of pads only must not keep the reader busy.
    @Test func padsAreOnlyBelievedAtTheEnd() {
      let memory = RingMemory()
      for offset in stride(from: 0, to: Int(MN_RING_MIN), by: 64) {
        (memory.data + offset).storeBytes(of: UInt32(0), as: UInt32.self)
        (memory.data + offset).storeBytes(of: UInt16(MN_RECORD_PAD), toByteOffset: 4, as: UInt16.self)
      }
      var reader = memory.reader
      memory.setTail(UInt64(MN_RING_MIN))
      do { let result = reader.peek(); #expect((result.isDamaged)) }
    }

    @Test(arguments: [1 << 20, UInt64.max, 64])
    func aHeadThatCannotBeLooksFull(head: UInt64) {
      let memory = RingMemory()
      var writer = memory.writer
      do { let result = writer.put(65507, 1); #expect(result) }
      memory.setHead(head &+ 1 << 40)
      // The copy of the head is still believed while it leaves room; then the lie is met.
      while writer.put(1000, 2) {}
      do { let result = writer.put(60_000, 2); #expect(!result) }
    }

    /// Random words in every place that the other side may write: never a trap, never an access outside.
    @Test func randomRingsNeverTrap() {
      let seed = UInt64.random(in: 0 ... .max)
      print("SEED=\(seed)")
      var random = SplitMix(state: seed)
      let memory = RingMemory()
      for _ in 0..<50_000 {
        let at = Int(random.next() % (UInt64(MN_RING_MIN) / 64)) * 64
        memory.setHead(UInt64(at))
        var reader = memory.reader
        memory.setTail(random.next() & 1 == 0 ? random.next() : UInt64(at) + random.next() % 4096 / 64 * 64)
        (memory.data + at).storeBytes(of: UInt32(truncatingIfNeeded: random.next() >> (random.next() & 63)), as: UInt32.self)
        (memory.data + at).storeBytes(of: UInt16(random.next() & 3), toByteOffset: 4, as: UInt16.self)
        var short = memory.reader
        if let ahead = short.peekAhead() {
          let end = ahead.record.base + Int(MN_RECORD_HEADER) + ahead.record.length
          #expect(ahead.record.base >= memory.data && end <= memory.data + Int(MN_RING_MIN))
        }
        for _ in 0..<4 {
          guard case .record(let record) = reader.peek() else { break }
          let end = record.base + Int(MN_RECORD_HEADER) + record.length
          #expect(record.base >= memory.data && end <= memory.data + Int(MN_RING_MIN))
          reader.advance(record)
        }
      }
    }
  }
}

/// A small generator with a seed that can be printed (Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", 2014).
struct SplitMix: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
}
