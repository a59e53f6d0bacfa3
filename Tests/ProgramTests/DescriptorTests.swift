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
      }
    }
    private func datagrams(_ server: Program) -> Int {
      server.output.split(separator: "\n").count { $0.hasPrefix("datagram at worker") }
    }

    @Test("a socket in use is passed to another process", arguments: topologies, ["shimmed", "plain"])
    func passed(_ topology: Topology, _ receiver: String) throws {
      try withBench(topology) { bench in
        let words = ["/usr/bin/python3", testProgram("pass_socket.py"), receiver]
        let result = try bench.client(words, environment: ["MACHNET_LOG": "info"]).wait(seconds: 30)
        #expect(
          result.output == "['queued 0', 'queued 1']\nqueued 2 has it\nin order\nafter the close\nexit status 0\n", "\(result.errors)")
        #expect(result.errors.contains("leaves Machnet") == (topology == .local))
        if topology == .local {
          #expect(try #require(bench.clientDaemon).status(in: bench).local >= 12)
        }
      }
    }
  }
}
