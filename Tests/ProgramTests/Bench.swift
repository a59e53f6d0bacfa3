import Foundation
import Testing

/// Where the two programs of a test are, and what is between them.
enum Topology: String, CaseIterable, CustomTestStringConvertible {
  /// Loopback without Machnet: shows that a test and its harness are right.
  case kernel
  /// The same over a veth between two network namespaces.
  case veth
  /// Loopback under the preload, and no daemon: nothing may differ.
  case absent
  /// One daemon, both programs on it, on loopback addresses.
  case local
  /// Two daemons joined by memif.
  case pair
  /// The same with transport machnet: over a session between the engines.
  case sessions
  /// An engine on one end of a veth, the kernel on the other; the server or the client is the one on the engine.
  case wireServer, wireClient
  /// As sessions, through a fabric that loses and reorders, two engines on each side. Only where a test asks for it.
  case fabric

  var testDescription: String { rawValue }
  var needsRoot: Bool { [.veth, .wireServer, .wireClient].contains(self) }

  /// Those that this user can have; `MACHNET_TOPOLOGIES=kernel,local` chooses among them.
  static let available: [Topology] = {
    let chosen = ProcessInfo.processInfo.environment["MACHNET_TOPOLOGIES"]?.split(separator: ",").map(String.init)
    return allCases.filter { $0 != .fabric && (chosen?.contains($0.rawValue) ?? true) && (!$0.needsRoot || isRoot) }
  }()
  /// Those in which the programs can have a TCP connection, too: a pair's goes over a veth.
  static let besideTCP = available.filter { ![.pair, .sessions].contains($0) || isRoot }
}

let isRoot = geteuid() == 0
let repository = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

/// What a Python program prints that has the path of Scripts/lib as its argument.
func outputOfLibrary(_ program: String) throws -> String {
  let process = Process()
  let pipe = Pipe()
  process.executableURL = URL(filePath: "/usr/bin/python3")
  process.arguments = ["-c", program, repository.appending(path: "Scripts/lib").path]
  process.standardOutput = pipe
  try process.run()
  let output = String(decoding: try pipe.fileHandleForReading.readToEnd() ?? Data(), as: UTF8.self)
  process.waitUntilExit()
  return output
}

/// What a user runs: from the release build where there is one.
let products: URL = {
  if let given = ProcessInfo.processInfo.environment["MACHNET_BIN"] { return URL(filePath: given) }
  return ["release", "debug"].map { repository.appending(path: ".build/\($0)") }
    .first { FileManager.default.fileExists(atPath: $0.appending(path: "libmachnet-preload.so").path) }
    ?? repository.appending(path: ".build/release")
}()

func product(_ name: String) -> String { products.appending(path: name).path }
func testProgram(_ name: String) -> String { repository.appending(path: "Tests/Programs/\(name)").path }

/// A machnetd with a generated config, reached by `machnet`.
final class Daemon {
  let program: Program
  let config: URL
  let socket: URL

  init(
    _ name: String, flows: [String], interface: String? = nil, engine: String = "{ polling: adaptive }",
    namespace: String? = nil, in bench: Bench
  ) throws {
    config = bench.directory.appending(path: "\(name).yaml")
    socket = bench.directory.appending(path: "\(name).sock")
    let text = """
      \(interface.map { "interfaces:\n  - \($0)" } ?? "")
      engine: \(engine)
      control: { socket: "\(socket.path)" }
      flows:
      \(flows.map { "  - \($0)" }.joined(separator: "\n"))
      """
    try text.write(to: config, atomically: true, encoding: .utf8)
    program = try bench.start("machnetd-\(name)", [product("machnetd"), "--config", config.path], in: namespace)
    try waitUntil("machnetd \(name)", seconds: 30) {
      guard program.isRunning else { throw Failure("machnetd ended at start\n\(program.story)") }
      return try FileManager.default.fileExists(atPath: socket.path) && askStatus(in: bench).status == 0
    }
  }

  /// The command line that runs a program under the preload.
  func run(_ command: [String]) -> [String] { [product("machnet"), "run", "--config", config.path, "--"] + command }

  private func askStatus(in bench: Bench) throws -> Program.Result {
    let words = [product("machnet"), "status", "--config", config.path, "--json"]
    return try Program("status", words, in: bench.directory).wait(seconds: 10)
  }

  func status(in bench: Bench) throws -> Status {
    let result = try askStatus(in: bench)
    guard result.status == 0 else { throw Failure("machnet status: \(result.errors)\n\(program.story)") }
    return try Status(json: result.output)
  }
}

/// A directory, daemons, namespaces and programs for one test; all gone at `close`.
final class Bench {
  let topology: Topology
  let directory: URL
  /// Where the server listens.
  private(set) var address = "127.0.0.1"
  private(set) var serverDaemon, clientDaemon: Daemon?
  private(set) var fabric: Fabric?
  private var serverNamespace, clientNamespace: String?
  private var namespaces: [String] = []
  private var programs: [Program] = []

  static let serverAddress = "10.77.0.1", clientAddress = "10.77.0.2"
  private static let prefix = "machnet-test-"
  nonisolated(unsafe) private static var lastPort = 23000

  /// A port that no other test of this run uses.
  static func freshPort() -> Int {
    unsafe lastPort += 1
    return unsafe lastPort
  }

  /// - Parameters:
  ///   - flows: the rules of every daemon; by default all that a topology's addresses can match.
  ///   - besideTCP: whether the programs need a TCP connection between them, too; that stays with the kernel.
  init(_ topology: Topology, flows: [String]? = nil, besideTCP: Bool = false) throws {
    Self.sweep
    self.topology = topology
    // Short: the path of a Unix socket has 107 bytes.
    directory = URL(filePath: "/tmp/\(Self.prefix)\(getpid())-\(UUID().uuidString.prefix(6))")
    try FileManager.default.createDirectory(
      at: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o755])
    do {
      try set(up: topology, flows: flows, besideTCP: besideTCP)
    } catch {
      close()
      throw error
    }
  }

  private func set(up topology: Topology, flows: [String]?, besideTCP: Bool) throws {
    let remote = topology == .local ? "127.0.0.0/8" : "10.77.0.0/24"
    let transport = topology == .sessions || topology == .fabric ? "machnet" : "udp"
    let flows = flows ?? ["{ match: { remote: \"\(remote)\" }, path: machnet, transport: \(transport) }"]
    func interface(_ address: String, _ device: String, queues: Int = 1) -> String {
      "{ name: net0, address: \(address)/24, device: { vdev: \"\(device)\" }, queues: \(queues) }"
    }
    switch topology {
    case .kernel, .absent: break
    case .veth:
      address = Self.serverAddress
      (serverNamespace, clientNamespace) = try veth(Self.serverAddress, Self.clientAddress)
    case .local:
      serverDaemon = try Daemon("local", flows: flows, in: self)
      clientDaemon = serverDaemon
    case .pair, .sessions:
      address = Self.serverAddress
      // Where a kernel has to carry a TCP connection between the same addresses, there must be one on each side.
      if besideTCP { (serverNamespace, clientNamespace) = try veth(Self.serverAddress, Self.clientAddress) }
      let memif = "socket=\(directory.path)/memif,socket-abstract=no"
      serverDaemon = try Daemon(
        "server", flows: flows, interface: interface(Self.serverAddress, "net_memif0,role=server,\(memif)"),
        namespace: serverNamespace, in: self)
      clientDaemon = try Daemon(
        "client", flows: flows, interface: interface(Self.clientAddress, "net_memif0,role=client,\(memif)"),
        namespace: clientNamespace, in: self)
    case .fabric:
      address = Self.serverAddress
      if besideTCP { (serverNamespace, clientNamespace) = try veth(Self.serverAddress, Self.clientAddress) }
      let fabric = try Fabric(["--loss", "0.01", "--reordering", "0.02"], in: self)
      self.fabric = fabric
      serverDaemon = try Daemon(
        "server", flows: flows, interface: interface(Self.serverAddress, fabric.device("a"), queues: 2),
        engine: Fabric.engines, namespace: serverNamespace, in: self)
      clientDaemon = try Daemon(
        "client", flows: flows, interface: interface(Self.clientAddress, fabric.device("b"), queues: 2),
        engine: Fabric.engines, namespace: clientNamespace, in: self)
      for name in ["a", "b"] { try fabric.waitUp(name) }
    case .wireServer, .wireClient:
      address = Self.serverAddress
      let engineAtServer = topology == .wireServer
      // The engine's end has no kernel address, unless the kernel carries TCP there.
      let ends = try veth(
        engineAtServer && !besideTCP ? nil : Self.serverAddress,
        !engineAtServer && !besideTCP ? nil : Self.clientAddress)
      (serverNamespace, clientNamespace) = ends
      for end in [ends.0, ends.1] {
        // What a wire would carry: checksums filled in, no segment larger than the MTU.
        try command(["ip", "netns", "exec", end, "ethtool", "-K", "veth0"] + "tx off gso off tso off gro off".split(separator: " ").map(String.init))
      }
      let engineEnd = engineAtServer ? ends.0 : ends.1
      if besideTCP {
        let rules = "table inet machnet { chain input { type filter hook input priority 0; iif veth0 meta l4proto udp drop; }; }"
        try command(["ip", "netns", "exec", engineEnd, "nft", rules])
      }
      // af_xdp takes every frame from the kernel. af_packet leaves the kernel its copy, which TCP needs; but there the
      // kernel puts fragments together before DPDK sees them (PACKET_FANOUT_FLAG_DEFRAG), and a frame has 2 kB.
      let device = besideTCP ? "net_af_packet0,iface=veth0" : "net_af_xdp0,iface=veth0"
      let daemon = try Daemon(
        "wire", flows: flows,
        interface: interface(engineAtServer ? Self.serverAddress : Self.clientAddress, device),
        namespace: engineEnd, in: self)
      if engineAtServer { serverDaemon = daemon } else { clientDaemon = daemon }
    }
  }

  func close() {
    for program in programs.reversed() { program.end() }
    for namespace in namespaces { _ = try? command(["ip", "netns", "del", namespace]) }
    try? FileManager.default.removeItem(at: directory)
  }

  private func veth(_ server: String?, _ client: String?) throws -> (String, String) {
    var ends: [String] = []
    for end in ["a", "b"] {
      let name = "\(Self.prefix)\(getpid())-\(end)"
      try command(["ip", "netns", "add", name])
      namespaces.append(name)
      ends.append(name)
      try command(["ip", "-n", name, "link", "set", "lo", "up"])
    }
    try command(["ip", "-n", ends[0], "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", ends[1]])
    for (end, address) in zip(ends, [server, client]) {
      if let address { try command(["ip", "-n", end, "addr", "add", "\(address)/24", "dev", "veth0"]) }
      // No link-local IPv6 address, which comes when it likes: where it is the only one, getaddrinfo(3) makes IPv4 addresses
      // v4-mapped ones (AI_ADDRCONFIG), and dnsperf refuses them.
      try command(["ip", "-n", end, "link", "set", "veth0", "addrgenmode", "none", "up"])
    }
    return (ends[0], ends[1])
  }

  /// Removes, once, what runs that were killed have left: their process id is in every name.
  private static let sweep: Void = {
    func left(in directory: String) -> [String] {
      let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
      return names.filter { name in
        let owner = name.dropFirst(prefix.count).prefix { $0.isNumber }
        return name.hasPrefix(prefix) && !owner.isEmpty && !FileManager.default.fileExists(atPath: "/proc/\(owner)")
      }
    }
    for name in left(in: "/tmp") { try? FileManager.default.removeItem(atPath: "/tmp/\(name)") }
    for name in left(in: "/run/netns") where isRoot {
      let removal = Process()
      removal.executableURL = URL(filePath: "/usr/bin/env")
      removal.arguments = ["ip", "netns", "del", name]
      try? removal.run()
      removal.waitUntilExit()
    }
  }()

  /// Runs a command of the harness's own to its end; it has to succeed.
  @discardableResult
  func command(_ words: [String], seconds: Double = 20) throws -> String {
    let program = try Program(String(words[0].split(separator: "/").last!), words, in: directory)
    let result = try program.wait(seconds: seconds)
    guard result.status == 0 else { throw Failure(program.story) }
    return result.output
  }

  func start(_ name: String, _ words: [String], in namespace: String? = nil, environment: [String: String] = [:]) throws
    -> Program
  {
    var environment = environment
    if topology == .absent, environment["LD_PRELOAD"] == nil {
      environment["LD_PRELOAD"] = product("libmachnet-preload.so")
      environment["MACHNET_SOCKET"] = directory.appending(path: "none").path
    }
    let inside = namespace.map { ["ip", "netns", "exec", $0] } ?? []
    let program = try Program(name, inside + words, in: directory, environment: environment)
    programs.append(program)
    return program
  }

  /// Starts a program on the server's side: under the preload where there is a daemon.
  func server(_ words: String..., environment: [String: String] = [:]) throws -> Program {
    try server(words, environment: environment)
  }
  func server(_ words: [String], environment: [String: String] = [:]) throws -> Program {
    try start(
      "server-\(words[0].split(separator: "/").last!)", serverDaemon?.run(words) ?? words, in: serverNamespace,
      environment: environment)
  }

  /// The same on the client's side.
  func client(_ words: String..., environment: [String: String] = [:]) throws -> Program {
    try client(words, environment: environment)
  }
  func client(_ words: [String], environment: [String: String] = [:]) throws -> Program {
    try start(
      "client-\(words[0].split(separator: "/").last!)", clientDaemon?.run(words) ?? words, in: clientNamespace,
      environment: environment)
  }

  @discardableResult
  func write(_ text: String, to name: String) throws -> String {
    let file = directory.appending(path: name)
    try text.write(to: file, atomically: true, encoding: .utf8)
    return file.path
  }
}

/// Runs `body` on a fresh bench and leaves nothing behind.
func withBench<T>(
  _ topology: Topology, flows: [String]? = nil, besideTCP: Bool = false, _ body: (Bench) throws -> T
) throws -> T {
  let bench = try Bench(topology, flows: flows, besideTCP: besideTCP)
  defer { bench.close() }
  return try body(bench)
}
