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

    /// Every way in which a socket of a program with rules can be where it is.
    static let manySockets = """
      import socket, sys
      def udp(family=socket.AF_INET): return socket.socket(family, socket.SOCK_DGRAM)
      port = int(sys.argv[1])
      bound = udp(); bound.bind(("127.0.0.1", port))
      unbound = udp()
      six = udp(socket.AF_INET6); six.bind(("::1", port))
      only = udp(socket.AF_INET6); only.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1); only.bind(("::", port + 1))
      stream = socket.socket()
      away = udp(); away.connect(("192.0.2.9", 9))
      there = udp(); there.connect(("127.0.0.1", port)); there.send(b"x"); bound.recv(9)
      print(*[s.fileno() for s in (bound, unbound, six, only, stream, away, there)], flush=True)
      sys.stdin.read()
      """

    @Test("each socket of a process is explained")
    func explainProcess() throws {
      try withBench(.local) { bench in
        let daemon = try #require(bench.serverDaemon)
        let port = Bench.freshPort()
        _ = Bench.freshPort()
        let program = try bench.server(Self.python, "-c", Self.manySockets, "\(port)")
        try waitUntil("the sockets") { program.output.hasSuffix("\n") }
        let names = ["bound", "unbound", "six", "only", "stream", "away", "there"]
        let descriptors = Dictionary(uniqueKeysWithValues: zip(names, program.output.split(separator: " ").map { Int($0.trimmingCharacters(in: .newlines))! }))
        func explain(_ name: String) throws -> (Int32, String) {
          let result = try bench.start(
            "explain", [product("machnet"), "explain", "--pid", "\(program.pid)", "--fd", "\(descriptors[name]!)"]).wait(seconds: 10)
          return (result.status, result.output + result.errors)
        }
        for (name, status, words) in [
          ("bound", 0, "on Machnet for"), ("unbound", 1, "it is not bound"), ("six", 1, "it is IPv6"),
          ("only", 1, "the daemon refused it"), ("stream", 1, "only UDP sockets leave the kernel"),
          ("away", 1, "no rule matches"), ("there", 0, "the rule in line"),
        ] {
          let (found, text) = try explain(name)
          #expect(found == Int32(status) && text.contains(words), "\(name): \(text)")
        }
        #expect(try explain("only").1.contains("it carries IPv6 only"))
        #expect(try explain("away").1.contains("its remote side is 127.0.0.0/8"))
        let flow = try bench.start(
          "explain", [product("machnet"), "explain", "--socket", daemon.socket.path, "--remote", "127.0.0.1:\(port)"]).wait(seconds: 10).output
        #expect(flow.contains("machnet (udp)") && flow.contains("rules of generation 1"), "\(flow)")

        // The engine is gone: the program's sockets are on the kernel, and that is the reason.
        daemon.program.send(SIGKILL)
        try daemon.program.wait(seconds: 10)
        let (status, text) = try explain("bound")
        #expect(status == 1 && text.contains("no daemon answers at \(daemon.socket.path)"), "\(text)")

        // A program that nobody launched.
        let plain = try bench.start("plain", [Self.python, "-c", Self.manySockets, "\(Bench.freshPort())"])
        try waitUntil("the sockets") { plain.output.hasSuffix("\n") }
        let result = try bench.start("explain", [product("machnet"), "explain", "--pid", "\(plain.pid)"]).wait(seconds: 10)
        #expect(result.status == 1 && result.output.contains("it was not started by machnet run"), "\(result.output)")
      }
    }

    @Test("top in a terminal of 80x24, over a restart of the daemon")
    func top() throws {
      try withBench(.local) { bench in
        let daemon = try #require(bench.serverDaemon)
        let port = Bench.freshPort()
        let server = try bench.server(Self.python, testProgram("blocking_echo.py"), "server", bench.address, "\(port)")
        try server.waitBound(port)
        let sender = try bench.client(Self.python, testProgram("steady_sender.py"), bench.address, "\(port)")
        let terminal = try bench.start(
          "terminal",
          [Self.python, testProgram("in_a_terminal.py"), product("machnet"), "top", "--socket", daemon.socket.path, "--interval", "0.1"])
        var seen = 0
        func see(_ text: String) throws {
          terminal.type("see \(text)")
          seen += 1
          try waitUntil("'\(text)' on the screen", seconds: 30) {
            guard terminal.isRunning else { throw Failure(terminal.story) }
            return terminal.output.split(separator: "\n").count == seen
          }
        }
        try see("machnetd \(daemon.program.pid)")
        try see(" 127.0.0.1:\(port) ")
        try see("sorted by traffic")
        terminal.type("key s")
        try see("sorted by rx")
        terminal.type("key r")
        try see("sorted by rx, reversed")
        daemon.program.send(SIGKILL)
        try daemon.program.wait(seconds: 10)
        try see("no daemon answers")
        let again = try Daemon("local", flows: ["{ match: { remote: \"127.0.0.0/8\" }, path: machnet }"], in: bench)
        try see("machnetd \(again.program.pid)")
        try see(" 127.0.0.1:\(port) ")
        terminal.type("key q")
        terminal.type("end")
        #expect(try terminal.wait(seconds: 20).output.hasSuffix("ended 0\n"))
        #expect(sender.isRunning)

        let once = try bench.start("top", [product("machnet"), "top", "--socket", again.socket.path, "--once", "--json", "--interval", "0.2"])
        let text = try once.wait(seconds: 10).output
        let object = try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
        #expect(Set(object.keys) == ["engines", "seconds", "sockets"])
        let piped = try bench.start("top", [product("machnet"), "top", "--socket", again.socket.path]).wait(seconds: 10)
        #expect(piped.status == 1 && piped.errors.contains("needs a terminal"))
      }
    }
  }
}
