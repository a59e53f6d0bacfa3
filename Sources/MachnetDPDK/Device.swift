import Glibc

/// What a port lives on.
public enum Device: Sendable, Equatable, CustomStringConvertible {
  /// `domain:bus:device.function[,key=value]...`; it must have been among the devices that `EAL.start` was given.
  case pci(String)
  /// A network device on Hyper-V's VMBus, by its UUID in small letters; it must have been among those devices, too.
  case vmbus(String)
  /// `net_DRIVER...[,key=value]...`
  case vdev(String)

  /// What DPDK calls it.
  public var name: String {
    switch self {
    case .pci(let address): address.split(separator: ",").first.map(String.init) ?? ""
    case .vmbus(let uuid): uuid
    case .vdev(let text): text.split(separator: ",").first.map(String.init) ?? ""
    }
  }

  public var description: String { name }

  /// A virtual device's string as the driver is to see it.
  ///
  /// A memif socket given as a path is meant as one: without a word, the driver would take it for an abstract name,
  /// which other network namespaces do not see and file permissions do not protect.
  package static func completed(_ vdev: String) -> String {
    guard vdev.hasPrefix("net_memif"), memifSocket(vdev) != nil, !vdev.contains("socket-abstract=") else { return vdev }
    return vdev + ",socket-abstract=no"
  }

  /// The path of a memif socket; nil where there is none, or an abstract one.
  package static func memifSocket(_ vdev: String) -> String? {
    let key = "socket="
    guard vdev.hasPrefix("net_memif"), !vdev.contains("socket-abstract=yes"),
      let argument = vdev.split(separator: ",").first(where: { $0.hasPrefix(key) })
    else { return nil }
    let path = String(argument.dropFirst(key.count))
    return path.hasPrefix("/") ? path : nil
  }

  /// Removes the socket that a server left behind when it was killed: the driver would refuse to bind to it.
  ///
  /// - Throws: EADDRINUSE where somebody listens.
  package static func removeStaleSocket(_ path: String) throws(DPDKError) {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    guard path.utf8.count < MemoryLayout.size(ofValue: address.sun_path) else { return }
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: path.utf8) }
    // Of another type than memif's: the kernel then says who is there without anybody being connected to. (DPDK 22.11
    // aborts a server whose client connects and goes away at once.)
    let probe = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard probe >= 0 else { return }
    defer { close(probe) }
    let status = unsafe withUnsafePointer(to: &address) {
      unsafe $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe connect(probe, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard status < 0 else { return }
    if errno == EPROTOTYPE { throw DPDKError(EADDRINUSE, "listen on \(path)") }
    guard errno == ECONNREFUSED else { return }
    // Nobody has it open. A file that is no socket answers so too, and is left alone.
    var file = stat()
    if unsafe lstat(path, &file) == 0 && file.st_mode & S_IFMT == S_IFSOCK { unsafe unlink(path) }
  }
}
