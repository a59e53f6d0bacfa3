import CLinux
import CMachnetABI
import Foundation
import Logging
import MachnetEngine

@testable import MachnetControl

// What a program that lies can write on the control socket, and into its channel while the control thread looks at it.
//
// An input is a list of steps; a step begins with a byte, whose three low bits say which (`ClientStep`), and whose bits 4 and 5
// which of four connections it is about. What a step lacks at the input's end is zeros. The daemon is a real control server with
// a real engine, on threads of their own, and the same for all inputs. After each input, when all connections are closed, it must
// have nothing left of them, no descriptor either, and another program's endpoint must be as it was.

enum ClientStep: UInt8 {
  /// Length (2), and as many bytes; a count of descriptors (1), and what each is (1: `Clients.descriptor`).
  case raw
  /// A request as the preload library would send it: kind, flags, endpoint (1 each), which channel (1: 0 the connection's own, 1 to 3
  /// another connection's, else nobody's), peer's address (4) and port (2); a count of descriptors (1), and what each is; a count
  /// of changes (1), and as many pairs of offset and value.
  case request
  /// Hangs up and connects anew.
  case connect
  /// One of four sockets (1): closed and made anew; bound unless bit 2 is set, connected if bit 3 is.
  case socket
  /// Offset in the connection's channel (3), a count (1), and as many bytes.
  case write
  /// Many messages at once that nobody waits for: a count (1) and a kind (1).
  case flood
}

@safe
final class Clients {
  static let stepMax = 64
  private static let daemon = FuzzDaemon()

  private var connections: [Client] = (0..<4).map { _ in Client() }
  private var sockets: [Int32] = []

  init() {
    for _ in 0..<4 { sockets.append(Clients.made(0)) }
  }

  private static func made(_ how: UInt8) -> Int32 {
    let made = Glibc.socket(AF_INET, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    var name = sockaddr_in()
    name.sin_family = sa_family_t(AF_INET)
    name.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
    unsafe withUnsafePointer(to: &name) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        if how & 4 == 0 { _ = unsafe Glibc.bind(made, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) }
      }
    }
    name.sin_port = UInt16(9).bigEndian
    unsafe withUnsafePointer(to: &name) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        if how & 8 != 0 { _ = unsafe Glibc.connect(made, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) }
      }
    }
    return made
  }

  func take(_ input: Input) {
    let head = input.byte()
    let number = Int(head >> 4 & 3)
    let client = connections[number]
    switch head & 7 {
    case ClientStep.raw.rawValue:
      let bytes = input.bytes(Int(input.word()))
      send(bytes, input, client)
    case ClientStep.request.rawValue:
      var request = mn_request()
      request.magic = MN_MAGIC
      request.version = UInt16(MN_ABI_VERSION)
      request.kind = UInt16(input.byte())
      request.flags = UInt32(input.byte())
      request.endpoint = UInt32(input.byte())
      let whose = Int(input.byte())
      let channel = whose < 4 ? connections[(number + whose) % 4] : nil
      request.channel = channel?.channel ?? 77
      request.token = channel?.token ?? 7
      request.peer = mapped(UInt32(input.word()) << 16 | UInt32(input.word()))
      request.peer_port = input.word()
      var bytes = unsafe withUnsafeBytes(of: request) { unsafe Array($0) }
      let descriptors = descriptors(input, client)
      for _ in 0..<input.byte() {
        let (offset, value) = (Int(input.byte()), input.byte())
        if offset < bytes.count { bytes[offset] = value }
      }
      client.send(bytes, descriptors)
      finish(descriptors)
    case ClientStep.connect.rawValue:
      connections[number] = Client()
    case ClientStep.socket.rawValue:
      let which = input.byte()
      close(sockets[Int(which & 3)])
      sockets[Int(which & 3)] = Clients.made(which)
    case ClientStep.write.rawValue:
      let offset = Int(input.byte()) << 16 | Int(input.word())
      client.write(input.bytes(Int(input.byte())), at: offset)
    default:
      let (count, kind) = (input.byte(), input.byte())
      var request = mn_request()
      request.magic = MN_MAGIC
      request.version = UInt16(MN_ABI_VERSION)
      request.kind = UInt16(kind)
      let bytes = unsafe withUnsafeBytes(of: request) { unsafe Array($0) }
      for _ in 0..<count { client.send(bytes, []) }
    }
    Clients.daemon.barrier()
    client.hear()
  }

  private func send(_ bytes: [UInt8], _ input: Input, _ client: Client) {
    let descriptors = descriptors(input, client)
    client.send(bytes, descriptors)
    finish(descriptors)
  }

  // MARK: Descriptors

  private func descriptors(_ input: Input, _ client: Client) -> [Int32] {
    (0..<min(input.byte(), 4)).map { _ in descriptor(input.byte(), client) }
  }

  /// 0 to 3: one of its UDP sockets; then an unbound one, TCP, IPv6 alone, a Unix socket, a pipe's end, an eventfd, a file, the
  /// connection itself.
  private func descriptor(_ kind: UInt8, _ client: Client) -> Int32 {
    let datagram = Int32(SOCK_DGRAM.rawValue)
    switch kind % 12 {
    case 0...3: return dup(sockets[Int(kind % 12)])
    case 4: return Glibc.socket(AF_INET, datagram, 0)
    case 5: return Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    case 6:
      let made = Glibc.socket(AF_INET6, datagram, 0)
      var on: Int32 = 1
      _ = unsafe setsockopt(made, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &on, 4)
      return made
    case 7: return Glibc.socket(AF_UNIX, datagram, 0)
    case 8:
      var ends: [Int32] = [-1, -1]
      _ = unsafe pipe(&ends)
      close(ends[1])
      return ends[0]
    case 9: return mn_linux_eventfd()
    case 10: return unsafe open("/dev/null", O_RDONLY)
    default: return dup(client.socket)
    }
  }

  private func finish(_ descriptors: [Int32]) { for number in descriptors where number >= 0 { close(number) } }

  func end() {
    connections = []
    for number in sockets { close(number) }
    Clients.daemon.check()
  }

  /// One connection.
  @safe
  private final class Client {
    let socket: Int32
    private(set) var channel: UInt32?
    /// Safety: `size` bytes of its channel; unmapped by `deinit`.
    private var base: UnsafeMutableRawPointer?
    private var size = 0

    init() {
      socket = unsafe mnc_connect(Clients.daemon.path)
      require(socket >= 0, "the daemon takes no connection: \(socket)")
    }

    deinit {
      if let base = unsafe base { unsafe munmap(base, size) }
      close(socket)
    }

    var token: UInt64? {
      guard let base = unsafe base else { return nil }
      return unsafe base.assumingMemoryBound(to: mn_channel.self).pointee.token
    }

    func send(_ bytes: [UInt8], _ descriptors: [Int32]) {
      let whole = descriptors.allSatisfy { $0 >= 0 } ? descriptors : []
      _ = unsafe bytes.withUnsafeBytes { unsafe mnc_send(socket, $0.baseAddress, $0.count, whole, Int32(whole.count)) }
    }

    func write(_ bytes: [UInt8], at offset: Int) {
      guard let base = unsafe base else { return }
      for (place, byte) in bytes.enumerated() {
        unsafe base.storeBytes(of: byte, toByteOffset: (offset + place) % size, as: UInt8.self)
      }
    }

    /// Takes all that the daemon has said.
    func hear() {
      while true {
        var reply = mn_reply()
        var numbers = [Int32](repeating: -1, count: Int(MNC_DESCRIPTORS_MAX))
        var count: Int32 = 0
        var cut = false
        let length = unsafe withUnsafeMutableBytes(of: &reply) { bytes in
          unsafe mnc_receive(socket, bytes.baseAddress!, bytes.count, &numbers, Int32(numbers.count), &count, &cut, false)
        }
        if length <= 0 { return }
        precondition(length == MemoryLayout<mn_reply>.size && reply.magic == MN_MAGIC && reply.fd_count == UInt16(count) && !cut)
        if Int(reply.kind) == MN_REQUEST_CHANNEL && reply.status == 0 && count > 0 { map(reply, numbers[0]) }
        for number in numbers.prefix(Int(count)) { close(number) }
      }
    }

    private func map(_ reply: mn_reply, _ memory: Int32) {
      if let base = unsafe base { unsafe munmap(base, size) }
      size = Int(reply.size)
      let mapping = unsafe mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0)
      precondition(unsafe mapping != MAP_FAILED)
      unsafe base = mapping
      channel = reply.channel
    }
  }
}

/// A daemon in this process, with a program that has an endpoint, and somebody who watches.
@safe
final class FuzzDaemon: @unchecked Sendable {
  let path: String
  private let server: ControlServer
  private let engine: EngineControl
  private let watcher: ControlClient
  private let program: ControlClient
  /// Safety: the program's channel; never unmapped.
  private let channel: UnsafeMutableRawPointer
  private let endpoint: UInt32
  private var descriptors = 0

  init() {
    do {
      var config = Config()
      path = NSTemporaryDirectory() + "machnet-fuzz-\(getpid())/control.sock"
      config.control.socket = path
      config.channel.transmitRing = Int(MN_RING_MIN)
      config.channel.receiveRing = Int(MN_RING_MIN)
      let socket = try ControlSocket(config.control)
      let directory = try DirectoryMemory(config: config, processors: 2)
      engine = EngineControl(options: EngineOptions(index: 0, directory: directory.directory))!
      let steady = config
      server = try ControlServer(
        config: config, socket: socket, directory: directory, engines: [engine],
        log: Logger(label: "fuzz") { _ in SwiftLogNoOpLogHandler() }, reread: { steady })
      let (server, engine) = (server, engine)
      Thread {
        var running = Engine<NoPackets>(control: engine)
        while !running.isStopped { if !running.iterate() { mn_linux_sleep(20_000) } }
      }.start()
      Thread { try? server.run() }.start()
      watcher = try ControlClient(path: path)
      program = try ControlClient(path: path)
      let attached = try program.call(program.request(MN_REQUEST_CHANNEL))
      unsafe channel = mmap(
        nil, Int(attached.header.size), PROT_READ | PROT_WRITE, MAP_SHARED, attached.descriptors[0].number, 0)
      let shadow = Glibc.socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
      var name = sockaddr_in()
      name.sin_family = sa_family_t(AF_INET)
      unsafe withUnsafePointer(to: &name) { pointer in
        unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          _ = unsafe Glibc.bind(shadow, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
        }
      }
      var open = program.request(MN_REQUEST_OPEN)
      open.channel = attached.header.channel
      let opened = try program.call(open, descriptors: [shadow])
      precondition(opened.header.status == 0)
      endpoint = opened.header.endpoint
    } catch {
      preconditionFailure("\(error)")
    }
    settle()
    descriptors = openDescriptors
  }

  /// Returns when what was sent before has been served.
  func barrier() {
    for _ in 0..<2 { precondition((try? watcher.call(watcher.request(MN_REQUEST_HELLO)))?.header.status == 0) }
  }

  /// What this process has open, but for pipes: those of the sanitizer's symbolizer come and go.
  private var openDescriptors: Int {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")) ?? []
    return names.count {
      (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/" + $0))?.hasPrefix("pipe:") == false
    }
  }

  /// Waits until the daemon has let go of all but what is ours.
  private func settle() {
    let limit = mn_linux_monotonic() + 10_000_000_000
    while true {
      guard let it = (try? watcher.status())?.daemon else { preconditionFailure("the daemon does not answer") }
      if it.connections == 2 && it.channels == 1 && it.endpoints == 1 && it.departing == 0
        && (descriptors == 0 || openDescriptors <= descriptors)
      {
        return
      }
      require(
        mn_linux_monotonic() < limit,
        "left: \(it.connections) connections, \(it.channels) channels, \(it.endpoints) endpoints, \(it.departing) departing, "
          + "\(openDescriptors) of \(descriptors) descriptors")
    }
  }

  func check() {
    settle()
    let block = unsafe channel + Int(mn_endpoint_offset(endpoint))
    precondition(unsafe mn_load_relaxed_u32(block + Int(MN_OFFSET_ENDPOINT_STATE)) == UInt32(MN_ENDPOINT_LIVE))
    precondition((try? program.call(program.request(MN_REQUEST_HELLO)))?.header.status == 0)
  }
}
