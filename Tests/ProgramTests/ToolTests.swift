import Foundation
import Testing

extension OneAtATime {
  /// The tools around the shim, as a person uses them.
  @Suite(.serialized, .enabled(if: Topology.available.contains(.local))) struct Tools {
    static let python = "/usr/bin/python3"
    /// Asks once in a while, so that each question finds the server asleep unless it looks for long.
    static let calmClient = """
      import socket, sys, time
      s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
      for i in range(30):
          time.sleep(0.005)
          s.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
          s.recv(100)
      print("done")
      """

    @Test("a profile decides how long a program looks before it sleeps", arguments: [(0, 25...60), (1_000_000, 0...2)])
    func profiles(_ spin: Int, _ wakeups: ClosedRange<Int>) throws {
      try withBench(.local) { bench in
        let port = Bench.freshPort()
        let server = try bench.server(
          Self.python, testProgram("blocking_echo.py"), "server", bench.address, "\(port)",
          environment: ["MACHNET_SPIN_US": "\(spin)"])
        try server.waitBound(port)
        let client = try bench.client(Self.python, "-c", Self.calmClient, bench.address, "\(port)")
        #expect(try client.wait(seconds: 20).output == "done\n")
        let status = try #require(bench.serverDaemon).status(in: bench)
        let socket = try #require(status.sockets.first { $0.pid == server.pid })
        #expect(socket.engine.rx.datagrams == 30)
        #expect(wakeups.contains(socket.wakeups))
      }
    }
  }
}
