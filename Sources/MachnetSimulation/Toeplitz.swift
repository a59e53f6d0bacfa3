/// The hash by which NICs spread flows over queues (Microsoft, "RSS Hashing Functions"): over IPv4 addresses, and ports
/// where there are any. Addresses and ports in host byte order.
public struct Toeplitz: Sendable {
  public static let keyLength = 40
  /// What each value of each of the 12 input bytes adds.
  private let table: [UInt32]

  /// - Parameter key: 40 bytes.
  public init(key: [UInt8]) {
    precondition(key.count == Toeplitz.keyLength)
    var table = [UInt32](repeating: 0, count: 12 * 256)
    for byte in 0..<12 {
      // The 32 bits of the key from each bit of the input on.
      var window: UInt64 = 0
      for index in byte..<byte + 8 { window = window << 8 | UInt64(key[index]) }
      for bit in 0..<8 {
        let part = UInt32(truncatingIfNeeded: window >> UInt64(32 - bit))
        for value in 0..<256 where value & 0x80 >> bit != 0 { table[byte * 256 + value] ^= part }
      }
    }
    self.table = table
  }

  init(random: inout RandomStream) {
    self.init(key: (0..<Toeplitz.keyLength).map { _ in UInt8(random.below(256)) })
  }

  public func hash(source: UInt32, destination: UInt32) -> UInt32 {
    word(source, 0) ^ word(destination, 4)
  }

  public func hash(source: UInt32, destination: UInt32, sourcePort: UInt16, destinationPort: UInt16) -> UInt32 {
    word(source, 0) ^ word(destination, 4) ^ word(UInt32(sourcePort) << 16 | UInt32(destinationPort), 8)
  }

  @inline(__always)
  private func word(_ value: UInt32, _ byte: Int) -> UInt32 {
    table[byte * 256 + Int(value >> 24)] ^ table[byte * 256 + 256 + Int(value >> 16 & 255)]
      ^ table[byte * 256 + 512 + Int(value >> 8 & 255)] ^ table[byte * 256 + 768 + Int(value & 255)]
  }
}
