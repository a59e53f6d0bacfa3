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
  }
}
