import Foundation
import Testing

/// Real programs, unmodified. One at a time: they share the machine's processors and its loopback ports.
@Suite(.serialized) enum OneAtATime {}

extension OneAtATime {
  @Suite(.serialized) struct Sockperf {
    private func serve(_ bench: Bench, _ port: Int, _ options: String...) throws -> Program {
      let server = try bench.server(["sockperf", "server", "-i", bench.address, "-p", "\(port)"] + options)
      try server.waitBound(port)
      return server
    }

    @Test("ping-pong, every message checked", arguments: Topology.available)
    func pingPong(_ topology: Topology) throws {
      try withBench(topology) { bench in
        let port = Bench.freshPort()
        let server = try serve(bench, port)
        let result = try bench.client(
          "sockperf", "ping-pong", "-i", bench.address, "-p", "\(port)", "-m", "64", "-t", "1", "--data-integrity"
        ).wait(seconds: 20)
        #expect(result.status == 0, "\(result.output)\(result.errors)")
        let received = try result.output.number(after: #"\[Total Run\].*ReceivedMessages="#)
        #expect(received > 100)
        #expect(result.output.contains("dropped messages = 0; # duplicated messages = 0; # out-of-order messages = 0"))
        #expect(!result.output.contains("data corruption"))
        try bench.expectOnEngine(atLeast: 2 * received * 9 / 10, openSockets: "sockperf")
        #expect(try server.stop().status == 0)
      }
    }

    @Test("ping-pong over epoll, poll and select", arguments: Topology.available, ["e", "p", "s"])
    func multiplexed(_ topology: Topology, _ kind: String) throws {
      try withBench(topology) { bench in
        let ports = [Bench.freshPort(), Bench.freshPort()]
        let feed = try bench.write(ports.map { "U:\(bench.address):\($0)\n" }.joined(), to: "feed")
        let server = try bench.server("sockperf", "server", "-f", feed, "-F", kind)
        for port in ports { try server.waitBound(port) }
        let result = try bench.client("sockperf", "ping-pong", "-f", feed, "-F", kind, "-m", "200", "-t", "1")
          .wait(seconds: 20)
        #expect(result.status == 0, "\(result.output)\(result.errors)")
        let received = try result.output.number(after: #"\[Total Run\].*ReceivedMessages="#)
        #expect(received > 100)
        try bench.expectOnEngine(atLeast: 2 * received * 9 / 10, openSockets: "sockperf")
      }
    }

    @Test("throughput, counted by the receiver", arguments: Topology.available)
    func throughput(_ topology: Topology) throws {
      try withBench(topology) { bench in
        let port = Bench.freshPort()
        let server = try serve(bench, port)
        let result = try bench.client(
          "sockperf", "throughput", "-i", bench.address, "-p", "\(port)", "-m", "64", "-t", "1"
        ).wait(seconds: 20)
        #expect(result.status == 0, "\(result.output)\(result.errors)")
        let sent = try result.output.number(after: "Total of ")
        try bench.expectOnEngine(atLeast: sent / 100, openSockets: "sockperf")
        let received = try server.stop().output.number(after: "Total ")
        #expect(received > 0)
        #expect(received <= sent + 1000, "more arrived than was sent, warm-up included")
      }
    }

    @Test("under load, replies to every tenth message", arguments: Topology.available)
    func underLoad(_ topology: Topology) throws {
      try withBench(topology) { bench in
        let port = Bench.freshPort()
        _ = try serve(bench, port)
        let result = try bench.client(
          "sockperf", "under-load", "-i", bench.address, "-p", "\(port)", "-m", "256", "-t", "1", "--mps", "5000",
          "--reply-every", "10"
        ).wait(seconds: 20)
        #expect(result.status == 0, "\(result.output)\(result.errors)")
        let received = try result.output.number(after: #"\[Total Run\].*ReceivedMessages="#)
        #expect(received > 100)
        #expect(result.output.contains("duplicated messages = 0"))
        try bench.expectOnEngine(atLeast: 10 * received * 9 / 10, openSockets: "sockperf")
      }
    }
  }

  @Suite(.serialized) struct Servers {
    @Test("iperf3 -u", arguments: Topology.besideTCP)
    func iperf3(_ topology: Topology) throws {
      try withBench(topology, besideTCP: true) { bench in
        let sum = try IperfReport.run(bench, rate: "50M", seconds: 1) { sum in
          try bench.expectOnEngine(atLeast: (sum.packets - sum.lost_packets) * 9 / 10)
        }
        #expect(sum.packets > 3000)
        #expect(sum.lost_percent < 5)
      }
    }

    @Test("memcached over UDP", arguments: Topology.available)
    func memcached(_ topology: Topology) throws {
      try withBench(topology) { bench in
        let port = Bench.freshPort()
        let load = try compiledProgram("memcached-udp-load")
        let server = try bench.server(
          ["memcached", "-U", "\(port)", "-p", "0", "-l", bench.address] + (isRoot ? ["-u", "root"] : []))
        try server.waitBound(port)
        let result = try bench.client(load, bench.address, "\(port)", "1", "16").wait(seconds: 20)
        #expect(result.status == 0, "\(result.output)\(result.errors)")
        let gets = try result.output.number(after: "gets=")
        #expect(gets > 500)
        try bench.expectOnEngine(atLeast: 2 * gets * 9 / 10, openSockets: "memcached")
        #expect(try server.stop().status == 0)
      }
    }

    @Test("nsd, asked by dnsperf and by dig", arguments: Topology.available)
    func nsd(_ topology: Topology) throws {
      try withBench(topology) { bench in
        let port = Bench.freshPort()
        let (server, queries) = try bench.nsd(port)
        let load = try bench.client(
          "dnsperf", "-s", bench.address, "-p", "\(port)", "-d", queries, "-l", "1", "-q", "16", "-c", "4"
        ).wait(seconds: 30)
        #expect(load.status == 0, "\(load.output)\(load.errors)")
        let completed = try load.output.number(after: #"Queries completed: +"#)
        #expect(completed > 500)
        #expect(load.output.contains(/NOERROR \d+ \(100\.00%\)/), "\(load.output)")
        let dig = try bench.client(
          "dig", "@\(bench.address)", "-p", "\(port)", "+short", "+tries=5", "+time=2", "host7.example", "A"
        ).wait(seconds: 20)
        #expect(dig.output == "192.0.2.7\n", "\(dig.output)\(dig.errors)")
        // An answer of more than an MTU: fragments, on a wire.
        let large = try bench.client(
          "dig", "@\(bench.address)", "-p", "\(port)", "+short", "+ignore", "+bufsize=4096", "+tries=5", "+time=2",
          "long.example", "TXT"
        ).wait(seconds: 20)
        #expect(large.output.split(separator: "\n").count == 12, "\(large.output)\(large.errors)")
        try bench.expectOnEngine(atLeast: 2 * completed * 9 / 10, openSockets: "nsd")
        #expect(try server.stop(SIGTERM).status == 0)
      }
    }

    @Test("socat, a line there and back", arguments: Topology.available)
    func socat(_ topology: Topology) throws {
      try withBench(topology) { bench in
        let port = Bench.freshPort()
        // socat forks a child per peer here; PIPE echoes.
        let server = try bench.server("socat", "UDP4-RECVFROM:\(port),bind=\(bench.address),fork", "PIPE")
        try server.waitBound(port)
        for round in 0..<3 {
          let client = try bench.client(
            "sh", "-c", "echo question \(round) | socat -t 2 - UDP4:\(bench.address):\(port)")
          let result = try client.wait(seconds: 20)
          #expect(result.status == 0, "\(result.errors)")
          #expect(result.output == "question \(round)\n", "\(server.errors)")
        }
        try bench.expectOnEngine(atLeast: 3)
      }
    }
  }

  @Suite(.serialized) struct Languages {
    /// The same echo, written five times. The sizes go up to a datagram of several fragments.
    enum Echo: String, CaseIterable, CustomTestStringConvertible {
      case pythonBlocking = "python3 blocking_echo.py"
      case pythonAsyncio = "python3 asyncio_echo.py"
      case javaSocket = "java SocketEcho.java"
      case javaChannel = "java ChannelEcho.java"
      case node = "node echo.js"

      var testDescription: String { rawValue }
      var command: [String] {
        let words = rawValue.split(separator: " ").map(String.init)
        return [words[0] == "python3" ? "/usr/bin/python3" : words[0], testProgram(words[1])]
      }
      /// Neither asyncio nor a connected DatagramChannel sends an empty datagram.
      var sizes: String { (self == .pythonAsyncio || self == .javaChannel ? "" : "0,") + "1,64,1472,1473,9000" }
    }

    @Test("UDP echo", arguments: Topology.available, Echo.allCases)
    func echo(_ topology: Topology, _ echo: Echo) throws {
      try withBench(topology) { bench in
        let port = Bench.freshPort(), count = 300
        let server = try bench.server(echo.command + ["server", bench.address, "\(port)"])
        try server.waitBound(port)
        let result = try bench.client(echo.command + ["client", bench.address, "\(port)", "\(count)", echo.sizes])
          .wait(seconds: 40)
        #expect(result.status == 0, "\(result.errors)\(server.errors)")
        #expect(result.output == "ok \(count)\n")
        try bench.expectOnEngine(atLeast: 2 * count, openSockets: echo.command[0].fileName)
      }
    }
  }
}

extension String {
  /// The number that follows the first match of a pattern.
  func number(after pattern: String) throws -> Int {
    let regex = try Regex("\(pattern)([0-9]+)")
    guard let found = try regex.firstMatch(in: self), let text = found.output[1].substring, let number = Int(text) else {
      throw Failure("no \(pattern) in:\n\(self)")
    }
    return number
  }

  var fileName: String { String(split(separator: "/").last ?? "") }
}

extension Bench {
  /// nsd at the server's address, with `host0.example` to `host19.example` and an answer of more than an MTU; and a file of
  /// questions for dnsperf.
  func nsd(_ port: Int) throws -> (server: Program, queries: String) {
    let long = String(repeating: "x", count: 200)
    try write(
      """
      $ORIGIN example.
      $TTL 3600
      @ SOA ns admin 1 3600 600 86400 60
      @ NS ns
      ns A 192.0.2.200
      \((0..<20).map { "host\($0) A 192.0.2.\($0)" }.joined(separator: "\n"))
      \((0..<12).map { "long TXT \"\($0) \(long)\"" }.joined(separator: "\n"))

      """, to: "zone")
    let queries = try write((0..<20).map { "host\($0).example A\n" }.joined(), to: "queries")
    let path = directory.path
    let config = try write(
      """
      server:
        ip-address: \(address)@\(port)
        server-count: 1
        username: ""
        zonesdir: "\(path)"
        database: ""
        pidfile: "\(path)/nsd.pid"
        zonelistfile: "\(path)/zone.list"
        xfrdfile: "\(path)/xfrd.state"
        xfrdir: "\(path)"
        ip-freebind: yes
        rrl-ratelimit: 0
        rrl-whitelist-ratelimit: 0
        ipv4-edns-size: 4096
      remote-control:
        control-enable: no
      zone:
        name: example
        zonefile: zone

      """, to: "nsd.conf")
    let program = try server("nsd", "-d", "-c", config)
    try program.waitBound(port)
    return (program, queries)
  }
}

/// What the tests read from `iperf3 -J`.
struct IperfReport: Decodable {
  struct Sum: Decodable { let packets, lost_packets: Int; let lost_percent: Double }
  struct End: Decodable { let sum: Sum? }
  let end: End?
  let error: String?

  /// iperf3 -u between the bench's two sides. `check` is called while the server may still be there.
  static func run(_ bench: Bench, rate: String, seconds: Int, check: (Sum) throws -> Void = { _ in }) throws -> Sum {
    let port = Bench.freshPort()
    let server = try bench.server("iperf3", "-s", "-1", "-B", bench.address, "-p", "\(port)")
    try server.waitBound(port, protocol: "tcp")
    let result = try bench.client(
      "iperf3", "-c", bench.address, "-p", "\(port)", "-u", "-b", rate, "-l", "1448", "-t", "\(seconds)", "-J"
    ).wait(seconds: Double(seconds) + 30)
    let report = try JSONDecoder().decode(IperfReport.self, from: Data(result.output.utf8))
    let sum = try #require(report.end?.sum, "\(report.error ?? result.errors)")
    try check(sum)
    #expect(try server.wait(seconds: 10).status == 0)
    return sum
  }
}

/// Tests/Programs/NAME.c, compiled once per run of the tests.
///
/// - Parameter kind: names what `options` make of it.
func compiledProgram(_ name: String, _ options: [String] = [], kind: String? = nil, isCPlusPlus: Bool = false) throws -> String {
  let directory = repository.appending(path: ".build/programs")
  try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
  let target = directory.appending(path: kind.map { "\(name)-\($0)" } ?? name).path
  let compiler = try Program(
    "cc", [isCPlusPlus ? "c++" : "cc", "-O2", "-o", target, testProgram("\(name).\(isCPlusPlus ? "cc" : "c")")] + options, in: directory)
  guard try compiler.wait(seconds: 60).status == 0 else { throw Failure(compiler.story) }
  return target
}
