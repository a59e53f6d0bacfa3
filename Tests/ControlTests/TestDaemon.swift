import CLinux
import CMachnetABI
import Foundation
import Logging
import MachnetChannel
import MachnetEngine
import Synchronization
import Testing

@testable import MachnetControl

/// A control server in this process, with engines on threads of their own.
final class TestDaemon: @unchecked Sendable {
  let config: Config
  let directory: DirectoryMemory
  let engines: [EngineControl]
  let server: ControlServer
  /// What the next reload finds.
  let nextConfig: Box<Result<Config, ConfigFailure>>
  private let serverDone = DispatchGroup()
  private let enginesDone = DispatchGroup()
  /// What the server ended with; nil: as it was told to.
  let failure = Box<(any Error)?>(nil)
  /// While set, the engines stand still.
  let enginesAreStuck = Atomic(false)

  init(
    engines count: Int = 1, interfaces: [mn_interface] = [], render: @escaping @Sendable (StatusReport) throws -> String = { $0.json },
    change: (inout Config) -> Void = { _ in }
  ) throws {
    var config = Config()
    config.engine.cpus = count == 1 ? [] : Array(0..<count)
    config.control.socket = "\(scratch)/\(UUID().uuidString.prefix(8)).sock"
    config.channel.transmitRing = Int(MN_RING_MIN)
    config.channel.receiveRing = Int(MN_RING_MIN)
    change(&config)
    self.config = config
    let socket = try ControlSocket(config.control)
    let directory = try DirectoryMemory(config: config, processors: 2)
    directory.install(interfaces: interfaces)
    self.directory = directory
    engines = (0..<count).map { index in
      EngineControl(options: EngineOptions(index: UInt32(index), directory: directory.directory))!
    }
    let nextConfig = Box(Result<Config, ConfigFailure>.success(config))
    self.nextConfig = nextConfig
    server = try ControlServer(
      config: config, socket: socket, directory: directory, engines: engines, log: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() },
      render: render, reread: { try nextConfig.value.get() })
    for engine in engines { spawn(in: enginesDone) { self.run(engine) } }
    while engines.contains(where: { $0.counters()[.iterations] == 0 }) { sched_yield() }
    spawn(in: serverDone) {
      do { try self.server.run() } catch { self.failure.value = error }
    }
  }

  private func spawn(in group: DispatchGroup, _ body: @escaping @Sendable () -> Void) {
    group.enter()
    Thread {
      body()
      group.leave()
    }.start()
  }

  private func run(_ control: EngineControl) {
    var engine = Engine<NoPackets>(control: control)
    while !engine.isStopped {
      if enginesAreStuck.load(ordering: .relaxed) || !engine.iterate() { mn_linux_sleep(20_000) }
    }
  }

  /// Ends the server and the engines and waits for their threads.
  func stop() {
    enginesAreStuck.store(false, ordering: .relaxed)
    server.stop()
    serverDone.wait()
    for engine in engines { engine.stop() }
    enginesDone.wait()
  }

  func awaitServer() { serverDone.wait() }

  func client() throws -> ControlClient { try ControlClient(path: config.control.socket) }

  /// The report as a client gets it.
  func status() throws -> StatusReport {
    let client = try client()
    let reply = try client.call(client.request(MN_REQUEST_STATUS))
    try #require(reply.header.status == 0)
    return try StatusReport(json: ControlClient.text(reply))
  }

  /// Polls the report until something is so: for what another process's end sets off.
  func eventually(_ what: (StatusReport) -> Bool) throws -> Bool {
    let limit = Date(timeIntervalSinceNow: 5)
    while Date() < limit {
      if what(try status()) { return true }
      sched_yield()
    }
    return false
  }
}

/// A daemon for the time of a test.
func withDaemon(
  engines: Int = 1, interfaces: [mn_interface] = [], render: @escaping @Sendable (StatusReport) throws -> String = { $0.json },
  change: (inout Config) -> Void = { _ in }, _ body: (TestDaemon) throws -> Void
) throws {
  let daemon = try TestDaemon(engines: engines, interfaces: interfaces, render: render, change: change)
  defer { daemon.stop() }
  try body(daemon)
}

/// A value that two threads see.
final class Box<Value: Sendable>: Sendable {
  private let cell: Mutex<Value>
  init(_ value: Value) { cell = Mutex(value) }
  var value: Value {
    get { cell.withLock { $0 } }
    set { cell.withLock { $0 = newValue } }
  }
}

/// Does something with another effective user on this thread. glibc's calls change all threads, and other tests run on those; the
/// kernel's own changes one.
func asUser<T>(_ uid: uid_t, _ body: () throws -> T) throws -> T {
  #if arch(x86_64)
    let setresuid = 117
  #else
    let setresuid = 147
  #endif
  typealias SystemCall = @convention(c) (Int, Int, Int, Int) -> Int
  let call = unsafe unsafeBitCast(dlsym(nil, "syscall"), to: SystemCall.self)
  func become(_ uid: uid_t) -> Bool { call(setresuid, -1, Int(uid), -1) == 0 }
  let own = geteuid()
  try #require(become(uid))
  defer { precondition(become(own)) }
  return try body()
}

/// A directory of this test process.
let scratch: String = {
  let path = NSTemporaryDirectory() + "machnet-control-tests-\(getpid())"
  try! FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
  atexit { try? FileManager.default.removeItem(atPath: scratch) }
  return path
}()

/// A UDP socket as an application would have it.
final class TestSocket: @unchecked Sendable {
  private(set) var descriptor: Int32

  init(family: Int32 = AF_INET, type: Int32 = Int32(SOCK_DGRAM.rawValue), proto: Int32 = 0) {
    descriptor = socket(family, type, proto)
    precondition(descriptor >= 0)
  }

  deinit { finish() }

  func finish() {
    if descriptor >= 0 { close(descriptor) }
    descriptor = -1
  }

  /// - Returns: the port.
  @discardableResult
  func bind(_ address: String = "127.0.0.1", port: UInt16 = 0) throws -> UInt16 {
    var name = sockaddr_in()
    name.sin_family = sa_family_t(AF_INET)
    name.sin_addr.s_addr = IPv4Address(address)!.value.bigEndian
    name.sin_port = port.bigEndian
    let status = unsafe withUnsafePointer(to: &name) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe Glibc.bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    try #require(status == 0, "bind to \(address):\(port): errno \(errno)")
    return self.port
  }

  func connect(_ address: String, port: UInt16) throws {
    var name = sockaddr_in()
    name.sin_family = sa_family_t(AF_INET)
    name.sin_addr.s_addr = IPv4Address(address)!.value.bigEndian
    name.sin_port = port.bigEndian
    let status = unsafe withUnsafePointer(to: &name) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    try #require(status == 0, "connect to \(address):\(port): errno \(errno)")
  }

  func bind6Wildcard() throws {
    var name = sockaddr_in6()
    name.sin6_family = sa_family_t(AF_INET6)
    let status = unsafe withUnsafePointer(to: &name) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe Glibc.bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in6>.size))
      }
    }
    try #require(status == 0, "bind to [::]: errno \(errno)")
  }

  func set(_ level: Int32, _ option: Int32, _ value: Int32 = 1) throws {
    var value = value
    let status = unsafe setsockopt(descriptor, level, option, &value, 4)
    try #require(status == 0, "setsockopt: errno \(errno)")
  }

  var port: UInt16 {
    var facts = mnc_socket()
    _ = unsafe mnc_inspect_socket(descriptor, &facts)
    return facts.local_port
  }
}

/// An attached application, as the shim attaches.
@safe
final class TestApplication {
  let client: ControlClient
  let channel: UInt32
  let doorbells: Int
  /// Safety: `size` bytes, mapped by `init` and unmapped by `deinit`.
  let base: UnsafeMutableRawPointer
  let size: Int

  init(_ daemon: TestDaemon, program: String = "test") throws {
    client = try daemon.client()
    var hello = client.request(MN_REQUEST_HELLO)
    unsafe withUnsafeMutableBytes(of: &hello.program) { unsafe $0.copyBytes(from: program.utf8) }
    let greeting = try client.call(hello)
    try #require(greeting.header.status == 0 && greeting.descriptors.count == 1)
    let reply = try client.call(client.request(MN_REQUEST_CHANNEL))
    try #require(reply.header.status == 0)
    channel = reply.header.channel
    doorbells = reply.descriptors.count - 1
    size = Int(reply.header.size)
    let mapping = unsafe mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, reply.descriptors[0].number, 0)
    try #require(unsafe mapping != MAP_FAILED)
    unsafe base = mapping!
  }

  deinit { unsafe munmap(base, size) }

  var header: mn_channel { unsafe base.load(as: mn_channel.self) }

  func block(_ index: UInt32) -> mn_endpoint { unsafe (base + Int(mn_endpoint_offset(index))).load(as: mn_endpoint.self) }

  private func receiveRing(_ index: UInt32) -> UnsafeMutableRawPointer {
    let rings = mn_rings_offset(
      index, header.endpoint_capacity, header.engine_count, header.tx_capacity, header.rx_capacity)
    return unsafe base + Int(rings + mn_ring_stride(UInt64(header.tx_capacity)))
  }

  /// Datagrams in the RX ring of engine 0, as if it had delivered them.
  func deliver(_ index: UInt32, count: Int, length: Int = 1000, seed: UInt8 = 0, flags: UInt16 = 0) {
    var writer = unsafe RingWriter(unsafe: receiveRing(index), capacity: header.rx_capacity)
    for _ in 0..<count {
      guard let record = writer.reserve(length) else { continue }
      unsafe record.header.pointee.flags = flags
      unsafe UnsafeMutableRawBufferPointer(start: record.payload, count: length).initializeMemory(as: UInt8.self, repeating: seed)
      writer.commit(record)
    }
    writer.publish()
  }

  /// What control and engine say of that ring.
  func receiveMark(_ index: UInt32) -> (tail: UInt64, mark: UInt64) {
    let ring = unsafe receiveRing(index).load(as: mn_ring.self)
    return (ring.tail, ring.mark)
  }

  func unread(_ index: UInt32) -> Int { receiveAll(index, publishing: false) }

  /// Takes what is in that ring.
  @discardableResult
  func receiveAll(_ index: UInt32, publishing: Bool = true, _ body: (Record) -> Void = { _ in }) -> Int {
    var reader = unsafe RingReader(unsafe: receiveRing(index), capacity: header.rx_capacity)
    var count = 0
    while case .record(let record) = reader.peek() {
      body(record)
      reader.advance(record)
      count += 1
    }
    if publishing { reader.publish() }
    return count
  }

  /// Counts processes that hold an endpoint, as the shim does.
  func refer(_ index: UInt32, _ count: Int) {
    _ = unsafe mn_fetch_add_u32(base + Int(mn_endpoint_offset(index)) + Int(MN_OFFSET_ENDPOINT_REFERENCES), UInt32(truncatingIfNeeded: count))
  }

  /// The first record in that ring gets a length that no ring can hold.
  func damage(_ index: UInt32) {
    var reader = unsafe RingReader(unsafe: receiveRing(index), capacity: header.rx_capacity)
    if case .record(let record) = reader.peek() { unsafe record.header.pointee.length = .max }
  }

  /// A TX tail that no ring can have, and the bit that has the engine look at it.
  func publishNonsense(_ index: UInt32) {
    let rings = mn_rings_offset(
      index, header.endpoint_capacity, header.engine_count, header.tx_capacity, header.rx_capacity)
    unsafe mn_store_release_u64(base + Int(rings), 3)
    _ = unsafe mn_fetch_or_u64(base + Int(MN_CHANNEL_READY) + Int(index / 64) * 8, 1 << UInt64(index % 64))
  }

  func open(_ socket: TestSocket, change: (inout mn_request) -> Void = { _ in }) throws -> ControlClient.Reply {
    var request = client.request(MN_REQUEST_OPEN)
    request.channel = channel
    change(&request)
    return try client.call(request, descriptors: [socket.descriptor])
  }

  /// Returns when the daemon has carried it out: a close has no reply, but requests of a connection keep their order.
  func close(_ endpoint: UInt32, keeping: Bool = false) throws { try close(endpoint, how: keeping ? MN_CLOSE_KEEPING : 0) }

  /// - Parameter how: MN_CLOSE_*.
  func close(_ endpoint: UInt32, how: Int) throws {
    var request = client.request(MN_REQUEST_CLOSE)
    request.flags = UInt32(how)
    request.channel = channel
    request.endpoint = endpoint
    request.token = header.token
    try client.send(request)
    _ = try client.call(client.request(MN_REQUEST_STATUS))
  }
}
