/// An IPv4 address in host byte order, as people write it.
public struct IPv4Address: Hashable, Sendable, CustomStringConvertible {
  public let value: UInt32

  public init(_ value: UInt32) { self.value = value }

  /// Four decimal numbers, 0...255 each, without leading zeros (which some readers take for octal).
  public init?(_ text: some StringProtocol) {
    let parts = text.split(separator: ".", omittingEmptySubsequences: false)
    guard parts.count == 4 else { return nil }
    var value: UInt32 = 0
    for part in parts {
      guard let byte = decimal(part, in: 0...255), part.count == 1 || part.first != "0" else { return nil }
      value = value << 8 | UInt32(byte)
    }
    self.value = value
  }

  public var description: String {
    "\(value >> 24).\(value >> 16 & 255).\(value >> 8 & 255).\(value & 255)"
  }
}

/// An address and a prefix length, `10.0.1.4/24`.
public struct IPv4Prefix: Hashable, Sendable, CustomStringConvertible {
  public let address: IPv4Address
  /// Bits, 0...32.
  public let length: Int

  public init(address: IPv4Address, length: Int) {
    precondition(length >= 0 && length <= 32)
    self.address = address
    self.length = length
  }

  public var mask: UInt32 { length == 0 ? 0 : UInt32.max << UInt32(32 - length) }
  public var network: UInt32 { address.value & mask }
  public var description: String { "\(address)/\(length)" }

  /// Whether the two prefixes have an address in common.
  public func overlaps(_ other: IPv4Prefix) -> Bool {
    let common = mask & other.mask
    return address.value & common == other.address.value & common
  }
}

/// One side of a flow rule: which addresses and which ports.
public struct AddressPattern: Hashable, Sendable, CustomStringConvertible {
  public var prefix: IPv4Prefix
  public var ports: ClosedRange<UInt16>

  public static let any = AddressPattern(prefix: IPv4Prefix(address: IPv4Address(0), length: 0), ports: 0...UInt16.max)

  public var description: String {
    let host =
      switch prefix.length {
      case 0: "*"
      case 32: "\(prefix.address)"
      default: "\(prefix)"
      }
    if ports == 0...UInt16.max { return host }
    return ports.count == 1 ? "\(host):\(ports.lowerBound)" : "\(host):\(ports.lowerBound)-\(ports.upperBound)"
  }

  /// What is wrong with a pattern: what was expected, and which part of the text was found instead.
  public struct Mistake: Error, Equatable {
    public let expected: String
    public let found: String
  }

  /// Reads `HOST[:PORTS]`: HOST is `*`, `ADDR` or `ADDR/LEN`; PORTS is `*`, `PORT` or `LOW-HIGH`.
  public init(parsing text: String) throws(Mistake) {
    let halves = text.split(separator: ":", omittingEmptySubsequences: false)
    guard halves.count <= 2 else {
      throw Mistake(expected: "an IPv4 address pattern such as *:53, 10.0.1.9 or 10.0.1.0/24:5000-5999", found: text)
    }
    self.prefix = try Self.host(halves[0])
    self.ports = halves.count == 2 ? try Self.ports(halves[1]) : 0...UInt16.max
  }

  init(prefix: IPv4Prefix, ports: ClosedRange<UInt16>) {
    self.prefix = prefix
    self.ports = ports
  }

  private static func host(_ text: Substring) throws(Mistake) -> IPv4Prefix {
    if text == "*" { return IPv4Prefix(address: IPv4Address(0), length: 0) }
    let parts = text.split(separator: "/", omittingEmptySubsequences: false)
    guard let first = parts.first, let address = IPv4Address(first), parts.count <= 2 else {
      throw Mistake(expected: "an IPv4 address, ADDR/LEN or *", found: String(text))
    }
    guard parts.count == 2 else { return IPv4Prefix(address: address, length: 32) }
    guard let length = decimal(parts[1], in: 0...32) else {
      throw Mistake(expected: "a prefix length from 0 to 32", found: String(parts[1]))
    }
    let prefix = IPv4Prefix(address: address, length: length)
    guard prefix.network == address.value else {
      throw Mistake(expected: "a network address such as \(IPv4Address(prefix.network))/\(length)", found: String(text))
    }
    return prefix
  }

  private static func ports(_ text: Substring) throws(Mistake) -> ClosedRange<UInt16> {
    if text == "*" { return 0...UInt16.max }
    let ends = text.split(separator: "-", omittingEmptySubsequences: false)
    guard ends.count <= 2, let low = decimal(ends[0], in: 1...65535),
      let high = ends.count == 2 ? decimal(ends[1], in: 1...65535) : low
    else {
      throw Mistake(expected: "a port from 1 to 65535, LOW-HIGH or *", found: String(text))
    }
    guard low <= high else {
      throw Mistake(expected: "a port range whose first port is not above its last", found: String(text))
    }
    return UInt16(low)...UInt16(high)
  }
}

/// Plain decimal digits and nothing else (`Int.init` would take a sign).
func decimal(_ text: some StringProtocol, in range: ClosedRange<Int>) -> Int? {
  guard !text.isEmpty, text.utf8.allSatisfy({ $0 >= 48 && $0 <= 57 }), let value = Int(text), range.contains(value)
  else { return nil }
  return value
}
