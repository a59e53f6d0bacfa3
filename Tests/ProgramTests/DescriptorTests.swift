import Foundation
import Testing

extension OneAtATime {
  /// A descriptor's number and its socket: replaced under a blocked thread, passed to others, left to another program.
  @Suite(.serialized) struct Descriptors {
    static let topologies = [Topology.kernel, .absent, .local].filter(Topology.available.contains)

    @Test("case 37: the JVM closes sockets in which a thread is blocked", arguments: topologies)
    func closedByTheJVM(_ topology: Topology) throws {
      try withBench(topology) { bench in
        let result = try bench.client(["java", testProgram("CloseBlocked.java")], environment: ["MACHNET_LOG": "info"])
          .wait(seconds: 40)
        #expect(result.status == 0, "\(result.output)\(result.errors)")
        let lines = result.output.split(separator: "\n")
        #expect(lines.count { $0 == "socket SocketException" } == 20)
        #expect(lines.count { $0 == "channel AsynchronousCloseException" } == 20)
        #expect(lines.last == "ok")
        let offloaded = result.errors.split(separator: "\n").count { $0.contains("is on Machnet") }
        #expect(offloaded == (topology == .local ? 60 : 0))
      }
    }

    @Test("Node's cluster: the primary passes its sockets to the workers", arguments: topologies)
    func cluster(_ topology: Topology) throws {
      try withBench(topology) { bench in
        let port = Bench.freshPort(), count = 300
        let server = try bench.server("node", testProgram("cluster.js"), bench.address, "\(port)", "2")
        try waitUntil("workers", seconds: 20) { server.output.contains("ready") }
        let result = try bench.client("node", testProgram("echo.js"), "client", bench.address, "\(port)", "\(count)", "0,1,64,1472")
          .wait(seconds: 40)
        #expect(result.status == 0, "\(result.errors)\(server.errors)")
        #expect(result.output == "ok \(count)\n")
        // None was lost and sent again.
        try waitUntil("every datagram told of") { datagrams(server) >= count }
        #expect(datagrams(server) == count)
        #expect(server.errors == "")
        // The workers have joined the primary's endpoint.
        if topology == .local { try bench.expectOnEngine(atLeast: 2 * count) }
      }
    }
    private func datagrams(_ server: Program) -> Int {
      server.output.split(separator: "\n").count { $0.hasPrefix("datagram at worker") }
    }

    @Test("a socket in use is passed to another process", arguments: topologies, [true, false])
    func passed(_ topology: Topology, _ shimmed: Bool) throws {
      try withBench(topology) { bench in
        let path = bench.directory.appending(path: "channel").path
        let words = ["/usr/bin/python3", testProgram("pass_socket.py")]
        // (A plain program cannot be started by a shimmed one, which would take the shim along.)
        let receiver = shimmed ? try bench.server(words + ["receiver", path]) : try bench.start("plain", words + ["receiver", path])
        try waitUntil("the receiver") { FileManager.default.fileExists(atPath: path) }
        let result = try bench.client(words + ["sender", path], environment: ["MACHNET_LOG": "info"]).wait(seconds: 30)
        #expect(result.output == "['queued 0', 'queued 1']\nqueued 2 has it\nin order\nafter the close\n", "\(result.errors)\(receiver.errors)")
        #expect(try receiver.wait(seconds: 10).status == 0)
        #expect(result.errors.contains("leaves Machnet") == (topology == .local))
        if topology == .local { #expect(try #require(bench.clientDaemon).status(in: bench).local >= 12) }
      }
    }

    @Test("a socket whose last holder has died is nobody's rival for its port", arguments: topologies)
    func orphan(_ topology: Topology) throws {
      try withBench(topology) { bench in
        let sender = try bench.client("/usr/bin/python3", testProgram("orphan.py"))
        try waitUntil("its port") { sender.output.contains(#/port [0-9]+\n/#) }
        let port = try sender.output.number(after: "port ")
        let receive =
          "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', \(port))); print(s.recv(100))"
        let plain = try bench.start("plain", ["/usr/bin/python3", "-c", receive])
        #expect(try plain.wait(seconds: 15).output == "b'arrived'\n", "\(plain.errors)\(sender.errors)")
        if topology == .local { try bench.expectOnEngine(atLeast: 2) }
      }
    }
  }
}
