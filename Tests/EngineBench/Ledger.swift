/// Datagrams that say themselves what they are, and who has got which.
package struct Ledger {
  /// By number of the datagram: how often it arrived.
  package var arrivals: [UInt32: Int] = [:]
  package var sent: UInt32 = 0
  package var broken: [String] = []

  package init() {}

  /// The content follows from number and length, at least 4 bytes.
  package static func payload(_ number: UInt32, _ length: Int) -> [UInt8] {
    precondition(length >= 4)
    var bytes = [UInt8](repeating: 0, count: length)
    for index in 0..<4 { bytes[index] = UInt8(truncatingIfNeeded: number >> UInt32(24 - 8 * index)) }
    var state = number &* 2_654_435_761 &+ UInt32(truncatingIfNeeded: length)
    for index in 4..<length {
      state = state &* 1_664_525 &+ 1_013_904_223
      bytes[index] = UInt8(state >> 24)
    }
    return bytes
  }

  package mutating func next(_ length: Int) -> [UInt8] {
    sent += 1
    return Ledger.payload(sent - 1, length)
  }

  /// - Returns: the number of a datagram that is as it was sent.
  @discardableResult
  package mutating func take(_ payload: [UInt8]) -> UInt32? {
    guard payload.count >= 4 else {
      broken.append("\(payload.count) bytes")
      return nil
    }
    let number = payload.prefix(4).reduce(0) { $0 << 8 | UInt32($1) }
    if number >= sent || payload != Ledger.payload(number, payload.count) {
      broken.append("number \(number), \(payload.count) bytes")
      return nil
    }
    arrivals[number, default: 0] += 1
    return number
  }
}
