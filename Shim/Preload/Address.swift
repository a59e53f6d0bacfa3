public import CMachnetABI
public import CTrampoline
import Synchronization

/// An IPv4 address and a UDP port, host byte order.
struct Name: Equatable {
  var address: UInt32
  var port: UInt16

  static var none: Name { Name(address: 0, port: 0) }
}

/// Shared between threads it is one word: an address never goes with another name's port.
extension Name: Word {
  typealias AtomicRepresentation = UInt64.AtomicRepresentation

  @inline(__always)
  static func encodeAtomicRepresentation(_ name: consuming Name) -> UInt64.AtomicRepresentation {
    UInt64.encodeAtomicRepresentation(UInt64(name.port) << 32 | UInt64(name.address))
  }

  @inline(__always)
  static func decodeAtomicRepresentation(_ word: consuming UInt64.AtomicRepresentation) -> Name {
    let word = UInt64.decodeAtomicRepresentation(word)
    return Name(address: UInt32(truncatingIfNeeded: word), port: UInt16(truncatingIfNeeded: word >> 32))
  }
}

/// What a `sockaddr` says to the shim.
enum ParsedName {
  case ipv4(Name)
  /// AF_UNSPEC, a native IPv6 address, another family, or too short: the kernel has the answer.
  case other
}

extension Name {
  /// Reads a caller's `sockaddr_in` (which AF_INET6 sockets send to as well), or a `sockaddr_in6` with a v4-mapped or
  /// wildcard address.
  static func parse(_ address: UnsafeRawPointer?, _ length: UInt32, domain: Int32) -> ParsedName {
    guard let address = unsafe address, length >= 16 else { return .other }
    let family = unsafe Int(address.loadUnaligned(as: UInt16.self))
    let port = unsafe UInt16(bigEndian: address.loadUnaligned(fromByteOffset: 2, as: UInt16.self))
    if family == MN_AF_INET {
      return unsafe .ipv4(
        Name(address: UInt32(bigEndian: address.loadUnaligned(fromByteOffset: 4, as: UInt32.self)), port: port))
    }
    if family == MN_AF_INET6 && domain == Int32(MN_AF_INET6) && length >= 24 {
      let high = unsafe address.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
      let prefix = unsafe UInt32(bigEndian: address.loadUnaligned(fromByteOffset: 16, as: UInt32.self))
      let low = unsafe UInt32(bigEndian: address.loadUnaligned(fromByteOffset: 20, as: UInt32.self))
      // ::ffff:a.b.c.d, or :: as a name to bind to (no datagram is sent to it).
      if high == 0 && (prefix == 0xffff || (prefix == 0 && low == 0)) { return .ipv4(Name(address: low, port: port)) }
    }
    return .other
  }

  /// Writes the name as the kernel would: cut to the caller's room, with the full size in `length`.
  func store(_ address: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?, domain: Int32) {
    guard let address = unsafe address, let length = unsafe length else { return }
    // sockaddr_in is 16 bytes, sockaddr_in6 28; built in four 64-bit words.
    var image: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    let size: UInt32
    let word = UInt64(port.bigEndian) << 16
    if domain == Int32(MN_AF_INET) {
      image.0 = UInt64(MN_AF_INET) | word | UInt64(self.address.bigEndian) << 32
      size = 16
      if unsafe length.pointee >= size {
        unsafe address.storeBytes(of: image.0, as: UInt64.self)
        unsafe address.storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
        unsafe length.pointee = size
        return
      }
    } else {
      image.0 = UInt64(MN_AF_INET6) | word
      image.2 = UInt64(UInt32(0xffff).bigEndian) | UInt64(self.address.bigEndian) << 32
      size = 28
    }
    let room = unsafe min(length.pointee, size)
    unsafe withUnsafeBytes(of: &image) { unsafe mn_copy(address, $0.baseAddress!, Int(room)) }
    unsafe length.pointee = size
  }

  /// As it stands in a record.
  var mapped: mn_address { mn_address(words: (0, 0, UInt32(0xffff).bigEndian, address.bigEndian)) }

  init(mapped: mn_address, port: UInt16) {
    address = UInt32(bigEndian: mapped.words.3)
    self.port = port
  }

  var isMulticastOrBroadcast: Bool { address >> 28 == 0xe || address == 0xffff_ffff }
}
