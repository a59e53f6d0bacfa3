import MachnetWire
import Testing

@Suite struct ChecksumTests {
  private func sum(_ bytes: ArraySlice<UInt8>) -> Checksum {
    let memory = GuardedBytes(bytes)
    var sum = Checksum()
    unsafe sum.add(memory.base, length: memory.count)
    return sum
  }

  @Test func theExampleOfRFC1071() {
    // Section 3: 0001 f203 f4f5 f6f7 sums to ddf2.
    #expect(sum([0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7]).value == ~0xDDF2)
  }

  @Test func everyLengthAndAlignmentAgreesWithThePlainSum() {
    let seed = seed()
    print("SEED=\(seed)")
    var random = Random(state: seed)
    let bytes = (0..<300).map { _ in UInt8.random(in: 0...255, using: &random) }
    for start in 0..<9 {
      for end in start...bytes.count {
        // The end of the piece, not its start, lies at the guard: every alignment of the start comes up.
        #expect(sum(bytes[start..<end]).value == plainChecksum(bytes[start..<end]), "\(start)..<\(end)")
      }
    }
  }

  @Test func carriesOfTheLargestPacket() {
    for filler: UInt8 in [0x00, 0x01, 0x7F, 0xFF] {
      let bytes = [UInt8](repeating: filler, count: 65535)
      #expect(sum(bytes[...]).value == plainChecksum(bytes))
    }
  }

  @Test func piecesAddUpToTheWhole() {
    let seed = seed()
    print("SEED=\(seed)")
    var random = Random(state: seed)
    let bytes = (0..<23).map { _ in UInt8.random(in: 0...255, using: &random) }
    let whole = plainChecksum(bytes)
    for first in 0...bytes.count {
      for second in first...bytes.count {
        var pieces = sum(bytes[..<first])
        pieces.add(sum(bytes[first..<second]))
        pieces.add(sum(bytes[second...]))
        #expect(pieces.value == whole, "cut at \(first) and \(second)")
      }
    }
  }

  @Test func fieldsCountAsTheirBytes() {
    var fields = Checksum()
    fields.add(0x0A01_00FF as UInt32)
    fields.add(0x8001 as UInt16)
    #expect(fields.value == plainChecksum([0x0A, 0x01, 0x00, 0xFF, 0x80, 0x01]))
  }
}
