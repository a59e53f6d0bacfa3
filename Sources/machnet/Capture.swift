import ArgumentParser
import CLinux
import CMachnetABI
import Glibc
import MachnetControl

struct Capture: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Records what the engines receive, send and hand over, which tcpdump cannot see.",
    discussion: """
      Writes pcapng to a file or a pipe: machnet capture | tcpdump -n -r -. What passes between two sockets of this host \
      is recorded as the frame that it would have been, on an interface named 'local'. The engines never wait for the \
      recorder: frames that it was too slow for are counted, and told in the file's interface statistics.

      Ends on Ctrl-C, when the reader of the pipe goes, or by --count and --seconds. Only for root, the daemon's own user \
      and the group that control.operators names: it shows what everybody sends.

      Exit codes: 0 recorded; 1 not, or the daemon went away; 64 the command line is wrong.
      """)

  @OptionGroup var daemon: DaemonOptions

  @Option(name: [.customShort("w"), .long], help: "The file to write; '-': standard output.")
  var write = "-"

  @Option(name: .long, help: "Only frames from or to this IPv4 address.")
  var host: String?

  @Option(name: .long, help: "Only UDP datagrams from or to this port, 1...65535.")
  var port: UInt16?

  @Option(name: .long, help: "Bytes of each frame to keep, 64...65535.")
  var snap: UInt16 = 65535

  @Option(name: [.customShort("c"), .long], help: "End after so many frames.")
  var count: Int?

  @Option(name: .long, help: "End after so many seconds.")
  var seconds: Double?

  func validate() throws {
    guard snap >= 64 else { throw ValidationError("--snap: expected 64 to 65535 bytes") }
    if port == 0 { throw ValidationError("--port: expected 1 to 65535") }
    guard count ?? 1 > 0 else { throw ValidationError("--count: expected 1 or more") }
    if let host, IPv4Address(host) == nil { throw ValidationError("--host: expected an IPv4 address, found '\(host)'") }
    if let seconds, seconds <= 0 || seconds > 1e9 { throw ValidationError("--seconds: expected more than 0") }
  }

  func run() throws {
    if write == "-" && isatty(STDOUT_FILENO) == 1 {
      complain("machnet: a capture is no text: give --write FILE, or a pipe such as | tcpdump -n -r -")
      throw ExitCode.failure
    }
    _ = signal(SIGPIPE, SIG_IGN)
    let signals = try Signals()
    let client = try daemon.connect()
    let engines: [StatusReport.EngineStatus]
    let reader: CaptureReader
    do {
      engines = try client.status().engines
      reader = try CaptureReader(client, address: host.flatMap { IPv4Address($0)?.value } ?? 0, port: port ?? 0, snap: snap)
    } catch {
      let why =
        switch error.code {
        case EPERM: "only root, the daemon's own user and the group that control.operators names may see what everybody sends: try sudo"
        case EBUSY: "somebody else captures already, and one can at a time (machnetd's log has the pid)"
        default: "cannot \(error)"
        }
      complain("machnet: \(why)")
      throw ExitCode.failure
    }
    var recorder = Recorder(reader: reader, engines: engines, snap: Int(snap), output: try openOutput())
    let count = count ?? Int.max
    let limit = seconds.map { mn_linux_monotonic() + UInt64($0 * 1e9) }
    var isConnected = true
    do throws(Recorder.Ended) {
      try recorder.begin()
      while recorder.frames < count {
        let took = try recorder.record(atMost: min(count - recorder.frames, 4096))
        if took == 0 && !isConnected { break }
        isConnected = reader.isConnected
        if let limit, mn_linux_monotonic() >= limit { break }
        // Look again soon, unless a signal asks for the end; an engine is not asked to tell.
        if took == 0 && signals.isPending(within: 5) { break }
        if took != 0 && signals.isPending(within: 0) { break }
      }
      // What was there when the end was asked for belongs to the capture. Busy engines add to it: not for ever.
      for _ in 0..<64 where recorder.frames < count {
        if try recorder.record(atMost: min(count - recorder.frames, 4096)) == 0 { break }
      }
      try recorder.end()
    } catch {
      // The reader of the pipe has what it wanted.
      if error.code != EPIPE {
        complain("machnet: cannot write \(write): \(unsafe String(cString: strerror(error.code)))")
        throw ExitCode.failure
      }
    }
    complain("\(recorder.frames) frames recorded, \(recorder.dropped) lost")
    if !isConnected {
      complain("machnet: the daemon has gone; what it had passed on is recorded")
      throw ExitCode.failure
    }
  }

  private func openOutput() throws -> Int32 {
    if write == "-" { return STDOUT_FILENO }
    let descriptor = unsafe open(write, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    if descriptor < 0 {
      complain("machnet: cannot write \(write): \(unsafe String(cString: strerror(errno)))")
      throw ExitCode.failure
    }
    return descriptor
  }
}

/// Turns what the engines capture into a file.
private struct Recorder {
  struct Ended: Error {
    let code: Int32
  }

  let reader: CaptureReader
  let engines: [StatusReport.EngineStatus]
  let snap: Int
  let output: Int32
  private(set) var frames = 0
  private var file = Pcapng()
  /// Numbers in the file of (engine, interface).
  private var numbers: [[Int: Int]] = []

  init(reader: CaptureReader, engines: [StatusReport.EngineStatus], snap: Int, output: Int32) {
    self.reader = reader
    self.engines = engines
    self.snap = snap
    self.output = output
  }

  var dropped: UInt64 {
    numbers.enumerated().reduce(0) { sum, engine in
      engine.element.keys.reduce(sum) { $0 + reader.counts(engine: engine.offset, interface: $1).dropped }
    }
  }

  mutating func begin() throws(Ended) {
    file.section(application: "machnet capture")
    var next = 0
    for engine in 0..<reader.engineCount {
      var places: [Int: Int] = [:]
      let names = engines.first { $0.index == engine }?.interfaces ?? []
      for interface in 0..<reader.interfaceCount(engine: engine) {
        let name = interface < names.count ? names[interface] : "port\(interface)"
        file.interface(name: name, description: "engine \(engine), \(name)", snap: snap)
        places[interface] = next
        next += 1
      }
      file.interface(name: "local", description: "engine \(engine), between sockets of this host", snap: snap)
      places[Int(MN_CAPTURE_LOCAL)] = next
      next += 1
      numbers.append(places)
    }
    try flush()
  }

  mutating func record(atMost limit: Int) throws(Ended) -> Int {
    let taken: [CapturedFrame]
    do throws(SystemError) {
      taken = try reader.take(limit: limit)
    } catch {
      throw Ended(code: error.code)
    }
    for frame in taken.prefix(limit) {
      guard let interface = numbers[frame.engine][frame.interface] else { continue }
      file.packet(frame, interface: interface)
      frames += 1
    }
    try flush()
    return taken.count
  }

  /// What was seen and what was lost, per interface.
  mutating func end() throws(Ended) {
    let now = mn_linux_realtime()
    for (engine, places) in numbers.enumerated() {
      for (interface, number) in places.sorted(by: { $0.value < $1.value }) {
        let counts = reader.counts(engine: engine, interface: interface)
        file.statistics(interface: number, timestamp: now, received: counts.seen, dropped: counts.dropped)
      }
    }
    try flush()
  }

  private mutating func flush() throws(Ended) {
    let bytes = file.drain()
    var written = 0
    while written < bytes.count {
      let count = unsafe bytes.withUnsafeBytes { unsafe Glibc.write(output, $0.baseAddress! + written, bytes.count - written) }
      if count < 0 && errno == EINTR { continue }
      guard count > 0 else { throw Ended(code: errno) }
      written += count
    }
  }
}
