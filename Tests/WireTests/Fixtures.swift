import Glibc
import MachnetWire

/// Bytes that end where readable memory ends: whoever reads one too many is killed by the kernel.
@safe
struct GuardedBytes: ~Copyable {
  private let mapping: UnsafeMutableRawPointer
  private let size: Int
  private let base: UnsafeMutableRawPointer
  let count: Int

  init(_ data: some Collection<UInt8>) {
    let page = Int(sysconf(Int32(_SC_PAGESIZE)))
    count = data.count
    size = (count + page - 1) / page * page + page
    let none = unsafe MAP_FAILED
    unsafe mapping = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    precondition(unsafe mapping != none)
    precondition(unsafe mprotect(mapping + size - page, page, PROT_NONE) == 0)
    unsafe base = mapping + (size - page - count)
    for (offset, byte) in data.enumerated() { unsafe base.storeBytes(of: byte, toByteOffset: offset, as: UInt8.self) }
  }

  deinit { unsafe munmap(mapping, size) }

  var bytes: Bytes { unsafe Bytes(unsafe: base, count: count) }
}

/// Frames that a Linux kernel exchanged over a veth: other hands' bytes, against which ours are held.
///
/// 02:00:00:00:00:01 is 10.1.0.1, 02:00:00:00:00:02 is 10.1.0.2.
enum Known {
  static let arpRequest = hex(
    """
    ff ff ff ff ff ff 02 00 00 00 00 01 08 06
    00 01 08 00 06 04 00 01 02 00 00 00 00 01 0a 01 00 01 00 00 00 00 00 00 0a 01 00 02
    """)
  static let arpReply = hex(
    """
    02 00 00 00 00 01 02 00 00 00 00 02 08 06
    00 01 08 00 06 04 00 02 02 00 00 00 00 02 0a 01 00 02 02 00 00 00 00 01 0a 01 00 01
    """)
  /// 10.1.0.1:33333 to 10.1.0.2:7777, "hello machnet\n".
  static let udp = hex(
    """
    02 00 00 00 00 02 02 00 00 00 00 01 08 00
    45 00 00 2a 60 d5 40 00 40 11 c5 e9 0a 01 00 01 0a 01 00 02
    82 35 1e 61 00 16 53 fb 68 65 6c 6c 6f 20 6d 61 63 68 6e 65 74 0a
    """)
  /// The same with "odd".
  static let udpOdd = hex(
    """
    02 00 00 00 00 02 02 00 00 00 00 01 08 00
    45 00 00 1f 60 d6 40 00 40 11 c5 f3 0a 01 00 01 0a 01 00 02 82 35 1e 61 00 0b 77 d8 6f 64 64
    """)
  /// 10.1.0.1:55264 to 10.1.0.2:7777 with a router alert option, "options", ttl 9.
  static let udpOptions = hex(
    """
    02 00 00 00 00 02 02 00 00 00 00 01 08 00
    46 00 00 27 60 d7 40 00 09 11 67 e6 0a 01 00 01 0a 01 00 02 94 04 00 00
    d7 e0 1e 61 00 0f 2f 41 6f 70 74 69 6f 6e 73
    """)
  /// The kernel's answer to `udp`: no such port.
  static let portUnreachable = hex(
    """
    02 00 00 00 00 01 02 00 00 00 00 02 08 00
    45 c0 00 46 71 23 00 00 40 01 f4 cf 0a 01 00 02 0a 01 00 01
    03 03 11 29 00 00 00 00
    45 00 00 2a 60 d5 40 00 40 11 c5 e9 0a 01 00 01 0a 01 00 02
    82 35 1e 61 00 16 53 fb 68 65 6c 6c 6f 20 6d 61 63 68 6e 65 74 0a
    """)
  /// The kernel's answer to `udpOptions`.
  static let portUnreachableOptions = hex(
    """
    02 00 00 00 00 01 02 00 00 00 00 02 08 00
    45 c0 00 43 71 26 00 00 40 01 f4 cf 0a 01 00 02 0a 01 00 01
    03 03 11 22 00 00 00 00
    46 00 00 27 60 d7 40 00 09 11 67 e6 0a 01 00 01 0a 01 00 02 94 04 00 00
    d7 e0 1e 61 00 0f 2f 41 6f 70 74 69 6f 6e 73
    """)
  /// Identifier 0x1234, sequence 7, "ping data!".
  static let echoRequest = hex(
    """
    02 00 00 00 00 02 02 00 00 00 00 01 08 00
    45 00 00 26 28 bb 40 00 40 01 fe 17 0a 01 00 01 0a 01 00 02
    08 00 23 fa 12 34 00 07 70 69 6e 67 20 64 61 74 61 21
    """)
  static let echoReply = hex(
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
  static let hardware1: UInt64 = 0x0200_0000_0001
  static let hardware2: UInt64 = 0x0200_0000_0002
}

/// What a frame turned out to be.
enum Found: Equatable {
  case arp(operation: UInt16, sender: UInt32, target: UInt32)
  case fragment(offset: Int, length: Int, more: Bool)
  case echo(type: UInt8, length: Int)
  case unreachable(code: UInt8, sourcePort: UInt16, destinationPort: UInt16)
  case udp(sourcePort: UInt16, destinationPort: UInt16, length: Int, sum: UInt64)
  case other
}

/// Where reading a frame ended.
enum Fault: Error, Hashable, CaseIterable {
  case frame, arp, ip, ipChecksum, icmp, icmpChecksum, quote, udp, udpChecksum
}

/// Reads a frame to its last byte. That this compiles says that nothing on the way allocates or locks.
@_noLocks
func dissect(_ bytes: Bytes) throws(Fault) -> Found {
  guard let frame = EthernetFrame(bytes) else { throw .frame }
  switch frame.type {
  case EtherType.arp:
    guard let packet = ARPPacket(frame.payload) else { throw .arp }
    return .arp(operation: packet.operation, sender: packet.senderProtocol, target: packet.targetProtocol)
  case EtherType.ipv4:
    guard let packet = IPv4Packet(frame.payload) else { throw .ip }
    if !packet.isChecksumRight { throw .ipChecksum }
    if packet.isFragment {
      return .fragment(offset: packet.fragmentOffset, length: packet.payload.count, more: packet.moreFragments)
    }
    switch packet.ipProtocol {
    case IPProtocol.icmp:
      guard let message = ICMPMessage(packet.payload) else { throw .icmp }
      if !message.isChecksumRight { throw .icmpChecksum }
      if message.type != ICMPMessage.unreachable { return .echo(type: message.type, length: message.payload.count) }
      guard let quoted = message.quoted else { throw .quote }
      return .unreachable(
        code: message.code, sourcePort: quoted.sourcePort, destinationPort: quoted.destinationPort)
    case IPProtocol.udp:
      guard let datagram = UDPDatagram(packet.payload) else { throw .udp }
      if !datagram.isChecksumRight(source: packet.source, destination: packet.destination) { throw .udpChecksum }
      var sum: UInt64 = 0
      var offset = 0
      while offset < datagram.payload.count {
        sum = sum &+ UInt64(datagram.payload.u8(offset))
        offset = offset &+ 1
      }
      return .udp(
        sourcePort: datagram.sourcePort, destinationPort: datagram.destinationPort, length: datagram.payload.count,
        sum: sum)
    default: return .other
    }
  default: return .other
  }
}

/// The same, for bytes behind which nothing can be read.
func dissect(_ data: some Collection<UInt8>) throws(Fault) -> Found {
  let memory = GuardedBytes(data)
  return try dissect(memory.bytes)
}

/// The bytes of a hexadecimal dump.
func hex(_ text: String) -> [UInt8] {
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
