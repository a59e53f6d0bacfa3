import CLinux
import Glibc

/// What /proc says about a running process and its sockets.
public struct LiveProcess: Sendable {
  public let pid: Int
  public let executable: String
  /// Names that rules may know it by: the executable's file name, and the name it was called by.
  public let names: [String]
  /// The preload library is mapped.
  public let hasPreload: Bool
  /// LD_PRELOAD and MACHNET_SOCKET as it was started with; nil: not for us to see.
  public let environment: [String: String]?
  /// In the order of their descriptors, each once.
  public let sockets: [Socket]
  /// How many descriptors it may have, and those that it has; nil: not for us to see.
  public let descriptorLimit: Int?
  private let descriptors: [Int]
  /// Whether it lives in the caller's network namespace; nil: not for us to see.
  public let sharesNetwork: Bool?

  public struct Socket: Sendable {
    /// The lowest.
    public let descriptor: Int
    /// Others of the same socket: the program's copies, and those that the preload library keeps.
    public internal(set) var copies: [Int] = []
    public let inode: UInt64
    /// UDP, UDPv6, TCP, UNIX...; nil: not for us to see.
    public let proto: String?
    /// nil: not bound.
    public var local: Address?
    /// nil: not connected.
    public var peer: Address?

    public var isUDP: Bool { proto == "UDP" || proto == "UDPv6" }
  }

  public struct Address: Sendable, Equatable, CustomStringConvertible {
    /// Host byte order; nil: IPv6, and no v4-mapped address.
    public let ipv4: UInt32?
    public let port: UInt16
    public let description: String
  }

  /// Whether the preload library finds no number for another descriptor: it takes those from three quarters of the limit on
  /// (`Process.copy` in the shim), and leaves the rest to the program.
  public var lacksDescriptors: Bool {
    guard let limit = descriptorLimit, limit > 0 else { return false }
    let first = min(limit - limit / 4, 16384)
    return descriptors.count { $0 >= first } >= limit - first
  }

  /// The option by which a socket has asked for what only the kernel does; nil: none, or not for us to see.
  public func kernelOption(of socket: Socket) -> String? {
    var name = [CChar](repeating: 0, count: 64)
    guard unsafe mnc_kernel_option(Int32(pid), Int32(socket.descriptor), &name, name.count) == 0 else { return nil }
    return String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  /// - Throws: no such process, or one that this user may not look at.
  public init(pid: Int) throws(InspectionError) {
    let base = "/proc/\(pid)"
    func fail(_ problem: String) -> InspectionError { InspectionError("process \(pid)", problem) }
    let denied = InspectionError(
      "process \(pid)", "only root and its own user may look at it: sudo machnet explain --pid \(pid)", isDenied: true)
    guard pid > 0, unsafe access(base, F_OK) == 0 else { throw fail("there is none") }
    guard let executable = link("\(base)/exe") else {
      throw errno == ENOENT ? fail("it is a kernel's thread, or has ended") : denied
    }
    self.pid = pid
    // A program that was replaced since.
    self.executable = executable.hasSuffix(" (deleted)") ? String(executable.dropLast(10)) : executable
    var names = [lastComponent(self.executable)]
    if let called = contents(of: "\(base)/cmdline", limit: 1 << 20)?.prefix(while: { $0 != 0 }), !called.isEmpty {
      let name = lastComponent(String(decoding: called, as: UTF8.self))
      if name != names[0] { names.append(name) }
    }
    self.names = names
    let maps = contents(of: "\(base)/maps", limit: 64 << 20).map { String(decoding: $0, as: UTF8.self) } ?? ""
    hasPreload = maps.contains("/libmachnet-preload.so")
    environment = contents(of: "\(base)/environ", limit: 4 << 20).map { bytes in
      var found: [String: String] = [:]
      for setting in bytes.split(separator: 0) {
        guard let equals = setting.firstIndex(of: UInt8(ascii: "=")) else { continue }
        let name = String(decoding: setting[..<equals], as: UTF8.self)
        if ["LD_PRELOAD", "MACHNET_SOCKET", "LD_LIBRARY_PATH", "PATH"].contains(name) {
          found[name] = String(decoding: setting[(equals + 1)...], as: UTF8.self)
        }
      }
      return found
    }
    let own = link("/proc/self/ns/net"), its = link("\(base)/ns/net")
    sharesNetwork = own == nil || its == nil ? nil : own == its
    guard let descriptors = entries(of: "\(base)/fd") else { throw denied }
    self.descriptors = descriptors.compactMap(Int.init).sorted()
    descriptorLimit = contents(of: "\(base)/limits", limit: 1 << 16).flatMap { Self.descriptorLimit(String(decoding: $0, as: UTF8.self)) }
    var sockets: [Socket] = []
    var places: [UInt64: Int] = [:]
    for descriptor in self.descriptors {
      let path = "\(base)/fd/\(descriptor)"
      guard let target = link(path), target.hasPrefix("socket:["), let inode = UInt64(target.dropFirst(8).dropLast()) else {
        continue
      }
      if let known = places[inode] {
        sockets[known].copies.append(descriptor)
        continue
      }
      places[inode] = sockets.count
      sockets.append(Socket(descriptor: descriptor, inode: inode, proto: protocolName(path)))
    }
    let addresses = Self.udpAddresses(of: base)
    for index in sockets.indices {
      guard let (local, peer) = addresses[sockets[index].inode] else { continue }
      sockets[index].local = local
      sockets[index].peer = peer
    }
    self.sockets = sockets
  }

  /// The soft limit of descriptors (proc(5), /proc/PID/limits).
  static func descriptorLimit(_ limits: String) -> Int? {
    let title = "Max open files"
    let line = limits.split(separator: "\n").first { $0.hasPrefix(title) }
    return line?.dropFirst(title.count).split(separator: " ").first.flatMap { Int($0) }
  }

  /// Bound UDP sockets of the process's network namespace, by inode (proc(5), /proc/net/udp).
  private static func udpAddresses(of base: String) -> [UInt64: (local: Address, peer: Address?)] {
    var found: [UInt64: (Address, Address?)] = [:]
    for table in ["udp", "udp6"] {
      guard let bytes = contents(of: "\(base)/net/\(table)", limit: 64 << 20) else { continue }
      for line in bytes.split(separator: 10).dropFirst() {
        // sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
        let fields = line.split(separator: 32)
        guard fields.count > 9, let local = address(fields[1]), let peer = address(fields[2]),
          let inode = UInt64(String(decoding: fields[9], as: UTF8.self))
        else { continue }
        found[inode] = (local, peer.port == 0 ? nil : peer)
      }
    }
    return found
  }

  /// `0100007F:0035`: words of the address in the machine's order, each in hexadecimal.
  static func address(_ field: ArraySlice<UInt8>) -> Address? {
    let parts = String(decoding: field, as: UTF8.self).split(separator: ":")
    guard parts.count == 2, parts[0].utf8.count == 8 || parts[0].utf8.count == 32, let port = UInt16(parts[1], radix: 16)
    else { return nil }
    var words: [UInt32] = []
    var rest = parts[0]
    while !rest.isEmpty {
      guard let word = UInt32(rest.prefix(8), radix: 16) else { return nil }
      words.append(UInt32(bigEndian: word))
      rest = rest.dropFirst(8)
    }
    var ipv4: UInt32?
    if words.count == 1 {
      ipv4 = words[0]
    } else if words[0] == 0 && words[1] == 0 && words[2] == 0xffff {
      ipv4 = words[3]
    } else if words == [0, 0, 0, 0] {
      ipv4 = 0
    }
    let host: String
    switch ipv4 {
    case 0?: host = "*"
    case let address?: host = (0..<4).map { "\(address >> (24 - 8 * $0) & 255)" }.joined(separator: ".")
    case nil:
      host = "[" + words.flatMap { [$0 >> 16, $0 & 0xffff] }.map { String($0, radix: 16) }.joined(separator: ":") + "]"
    }
    return Address(ipv4: ipv4, port: port, description: "\(host):\(port == 0 ? "*" : "\(port)")")
  }
}

private func link(_ path: String) -> String? {
  var room = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
  let length = unsafe readlink(path, &room, room.count - 1)
  return length > 0 ? String(decoding: room[..<length].map { UInt8(bitPattern: $0) }, as: UTF8.self) : nil
}

private func protocolName(_ path: String) -> String? {
  var name = [CChar](repeating: 0, count: 64)
  guard unsafe mnc_socket_protocol(path, &name, name.count) == 0, let end = name.firstIndex(of: 0) else { return nil }
  return String(decoding: name[..<end].map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

private func entries(of directory: String) -> [String]? {
  guard let stream = unsafe opendir(directory) else { return nil }
  defer { unsafe closedir(stream) }
  var names: [String] = []
  while let entry = unsafe readdir(stream) {
    names.append(
      unsafe withUnsafeBytes(of: &entry.pointee.d_name) { unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) })
  }
  return names
}
