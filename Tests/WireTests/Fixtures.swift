import Glibc
import MachnetWire

/// Bytes that end where readable memory ends: whoever reads one too many is killed by the kernel.
@safe
struct GuardedBytes: ~Copyable {
  private let mapping: UnsafeMutableRawPointer
  private let size: Int
  let base: UnsafeMutableRawPointer
  let count: Int

  init(_ bytes: some Collection<UInt8>) {
    let page = Int(sysconf(Int32(_SC_PAGESIZE)))
    count = bytes.count
    size = (count + page - 1) / page * page + page
    let none = unsafe MAP_FAILED
    unsafe mapping = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    precondition(unsafe mapping != none)
    precondition(unsafe mprotect(mapping + size - page, page, PROT_NONE) == 0)
    unsafe base = mapping + (size - page - count)
    for (offset, byte) in bytes.enumerated() { unsafe base.storeBytes(of: byte, toByteOffset: offset, as: UInt8.self) }
  }

  deinit { unsafe munmap(mapping, size) }
}

/// The payload of what `write` writes into `count` bytes.
func written(_ count: Int, _ write: (UnsafeMutableRawPointer) -> Void) -> [UInt8] {
  let memory = GuardedBytes([UInt8](repeating: 0xAA, count: count))
  unsafe write(memory.base)
  return unsafe [UInt8](UnsafeRawBufferPointer(start: memory.base, count: count))
}

func copied(_ base: UnsafeRawPointer, _ count: Int) -> [UInt8] {
  unsafe [UInt8](UnsafeRawBufferPointer(start: base, count: count))
}

/// Frames that a Linux kernel exchanged over a veth: other hands' bytes, against which ours are held.
///
/// 02:00:00:00:00:01 is 10.1.0.1, 02:00:00:00:00:02 is 10.1.0.2.
enum Known {
  static let arpRequest = bytes(
    """
    ff ff ff ff ff ff 02 00 00 00 00 01 08 06
    00 01 08 00 06 04 00 01 02 00 00 00 00 01 0a 01 00 01 00 00 00 00 00 00 0a 01 00 02
    """)
  static let arpReply = bytes(
    """
    02 00 00 00 00 01 02 00 00 00 00 02 08 06
    00 01 08 00 06 04 00 02 02 00 00 00 00 02 0a 01 00 02 02 00 00 00 00 01 0a 01 00 01
    """)
  /// 10.1.0.1:33333 to 10.1.0.2:7777, "hello machnet\n".
  static let udp = bytes(
    """
    02 00 00 00 00 02 02 00 00 00 00 01 08 00
    45 00 00 2a 60 d5 40 00 40 11 c5 e9 0a 01 00 01 0a 01 00 02
    82 35 1e 61 00 16 53 fb 68 65 6c 6c 6f 20 6d 61 63 68 6e 65 74 0a
    """)
  /// The same with "odd".
  static let udpOdd = bytes(
    """
    02 00 00 00 00 02 02 00 00 00 00 01 08 00
    45 00 00 1f 60 d6 40 00 40 11 c5 f3 0a 01 00 01 0a 01 00 02 82 35 1e 61 00 0b 77 d8 6f 64 64
    """)
  /// 10.1.0.1:55264 to 10.1.0.2:7777 with a router alert option, "options", ttl 9.
  static let udpOptions = bytes(
    """
    02 00 00 00 00 02 02 00 00 00 00 01 08 00
    46 00 00 27 60 d7 40 00 09 11 67 e6 0a 01 00 01 0a 01 00 02 94 04 00 00
    d7 e0 1e 61 00 0f 2f 41 6f 70 74 69 6f 6e 73
    """)
  /// The kernel's answer to `udp`: no such port.
  static let portUnreachable = bytes(
    """
    02 00 00 00 00 01 02 00 00 00 00 02 08 00
    45 c0 00 46 71 23 00 00 40 01 f4 cf 0a 01 00 02 0a 01 00 01
    03 03 11 29 00 00 00 00
    45 00 00 2a 60 d5 40 00 40 11 c5 e9 0a 01 00 01 0a 01 00 02
    82 35 1e 61 00 16 53 fb 68 65 6c 6c 6f 20 6d 61 63 68 6e 65 74 0a
    """)
  /// The kernel's answer to `udpOptions`.
  static let portUnreachableOptions = bytes(
    """
    02 00 00 00 00 01 02 00 00 00 00 02 08 00
    45 c0 00 43 71 26 00 00 40 01 f4 cf 0a 01 00 02 0a 01 00 01
    03 03 11 22 00 00 00 00
    46 00 00 27 60 d7 40 00 09 11 67 e6 0a 01 00 01 0a 01 00 02 94 04 00 00
    d7 e0 1e 61 00 0f 2f 41 6f 70 74 69 6f 6e 73
    """)
  /// Identifier 0x1234, sequence 7, "ping data!".
  static let echoRequest = bytes(
    """
    02 00 00 00 00 02 02 00 00 00 00 01 08 00
    45 00 00 26 28 bb 40 00 40 01 fe 17 0a 01 00 01 0a 01 00 02
    08 00 23 fa 12 34 00 07 70 69 6e 67 20 64 61 74 61 21
    """)
  static let echoReply = bytes(
    """
    02 00 00 00 00 01 02 00 00 00 00 02 08 00
    45 00 00 26 71 25 00 00 40 01 f5 ad 0a 01 00 02 0a 01 00 01
    00 00 2b fa 12 34 00 07 70 69 6e 67 20 64 61 74 61 21
    """)

  static let frames = [
    arpRequest, arpReply, udp, udpOdd, udpOptions, portUnreachable, portUnreachableOptions, echoRequest, echoReply,
  ]

  static let address1: UInt32 = 0x0A01_0001
  static let address2: UInt32 = 0x0A01_0002
  static let hardware1 = EthernetAddress(0x0200_0000_0001)
  static let hardware2 = EthernetAddress(0x0200_0000_0002)
}

/// What a frame turned out to be, every accessor on the way having been called.
enum Found: Equatable {
  case arp(operation: UInt16, sender: UInt32, target: UInt32)
  case fragment(offset: Int, length: Int, more: Bool)
  case echo(type: UInt8, rest: UInt32, length: Int)
  case error(type: UInt8, code: UInt8, QuotedDatagram)
  case udp(sourcePort: UInt16, destinationPort: UInt16, payload: Int, sum: UInt64)
  case other
}

/// Reads a frame to its last byte. That this compiles says that nothing on the way allocates or locks.
@_noLocks
func dissect(_ base: UnsafeRawPointer, _ length: Int) throws(WireFault) -> Found {
  let frame = try unsafe EthernetFrame(unsafe: base, length: length)
  switch frame.type {
  case EtherType.arp:
    let packet = try unsafe ARPPacket(unsafe: frame.payload, length: frame.payloadLength)
    return .arp(operation: packet.operation, sender: packet.sender, target: packet.target)
  case EtherType.ipv4:
    let packet = try unsafe IPv4Packet(unsafe: frame.payload, length: frame.payloadLength)
    if packet.isFragment {
      return .fragment(offset: packet.fragmentOffset, length: packet.payloadLength, more: packet.moreFragments)
    }
    switch packet.protocolNumber {
    case IPProtocol.icmp:
      let message = try unsafe ICMPMessage(unsafe: packet.payload, length: packet.payloadLength)
      if message.isError { return .error(type: message.type, code: message.code, try message.quotedDatagram()) }
      return .echo(type: message.type, rest: message.rest, length: message.bodyLength)
    case IPProtocol.udp:
      let datagram = try unsafe UDPDatagram(
        unsafe: packet.payload, length: packet.payloadLength, source: packet.source, destination: packet.destination)
      var sum: UInt64 = 0
      var offset = 0
      while offset < datagram.payloadLength {
        sum = sum &+ UInt64(unsafe datagram.payload.load(fromByteOffset: offset, as: UInt8.self))
        offset = offset &+ 1
      }
      return .udp(
        sourcePort: datagram.sourcePort, destinationPort: datagram.destinationPort, payload: datagram.payloadLength,
        sum: sum)
    default: return .other
    }
  default: return .other
  }
}

/// The same, for bytes behind which nothing can be read.
func dissect(_ bytes: some Collection<UInt8>) throws(WireFault) -> Found {
  let memory = GuardedBytes(bytes)
  return try unsafe dissect(memory.base, memory.count)
}

/// The checksum in the words of RFC 1071, section 4.1: slow and plain.
func plainChecksum(_ bytes: some Collection<UInt8>) -> UInt16 {
  var sum: UInt32 = 0
  for (offset, byte) in bytes.enumerated() {
    sum += offset % 2 == 0 ? UInt32(byte) << 8 : UInt32(byte)
    if sum > 0xFFFF { sum -= 0xFFFF }
  }
  return ~UInt16(sum)
}

func bytes(_ text: String) -> [UInt8] {
  text.split(whereSeparator: \.isWhitespace).map { UInt8($0, radix: 16)! }
}

/// The seed of a random test: `SEED` from the environment, or a new one.
func seed() -> UInt64 {
  if let text = unsafe getenv("SEED"), let value = UInt64(unsafe String(cString: text)) { return value }
  return UInt64.random(in: 0...UInt64.max)
}

/// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014).
struct Random: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }
}
