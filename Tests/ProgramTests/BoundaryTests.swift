import Foundation
import Testing

extension OneAtATime {
  /// What no rule marks stays with the kernel, as if nothing were there.
  @Suite(.serialized, .enabled(if: Topology.available.contains(.local))) struct UnmarkedFlows {
    static let python = "/usr/bin/python3"

    private func echo(_ bench: Bench, _ port: Int) throws -> Program {
      let server = try bench.server(Self.python, testProgram("blocking_echo.py"), "server", bench.address, "\(port)")
      try server.waitBound(port)
      return server
    }

    @Test("a flow that no rule names", arguments: [
      "{ match: { remote: \"192.0.2.0/24\" }, path: machnet }",
      "{ match: { program: other-program }, path: machnet }",
      "{ match: { remote: \"127.0.0.1:9\" }, path: machnet }",
    ])
    func unmatched(_ rule: String) throws {
      try withBench(.local, flows: [rule]) { bench in
        let port = Bench.freshPort()
        let server = try echo(bench, port)
        let result = try bench.client(
          Self.python, testProgram("blocking_echo.py"), "client", bench.address, "\(port)", "100", "0,1,1472,9000"
        ).wait(seconds: 20)
        #expect(result.status == 0, "\(result.errors)")
        #expect(result.output == "ok 100\n")
        #expect(result.errors == "")
        let status = try #require(bench.serverDaemon).status(in: bench)
        #expect(status.local == 0)
        #expect(status.sockets.allSatisfy { $0.engine.datagrams == 0 })
        #expect(server.errors == "")
      }
    }

    @Test("a rule for the kernel comes before one for Machnet")
    func kernelFirst() throws {
      let port = Bench.freshPort()
      let rules = [
        "{ match: { remote: \"127.0.0.1:\(port)\" }, path: kernel }", "{ match: { remote: \"127.0.0.0/8\" }, path: machnet }",
      ]
      try withBench(.local, flows: rules) { bench in
        // The server is a plain program: its own rule would have to name the client's port.
        let server = try bench.start("plain", [Self.python, testProgram("blocking_echo.py"), "server", bench.address, "\(port)"])
        try server.waitBound(port)
        let result = try bench.client(
          Self.python, testProgram("blocking_echo.py"), "client", bench.address, "\(port)", "100", "64"
        ).wait(seconds: 20)
        #expect(result.output == "ok 100\n", "\(result.errors)")
        #expect(try #require(bench.serverDaemon).status(in: bench).local == 0)
      }
    }

    @Test("one socket, a marked and an unmarked peer")
    func mixed() throws {
      let marked = Bench.freshPort(), unmarked = Bench.freshPort(), count = 200
      // The servers' replies match by their local port.
      let rules = [
        "{ match: { remote: \"127.0.0.1:\(marked)\" }, path: machnet }",
        "{ match: { local: \"127.0.0.1:\(marked)\" }, path: machnet }",
      ]
      try withBench(.local, flows: rules) { bench in
        _ = try echo(bench, marked)
        _ = try echo(bench, unmarked)
        let client = try bench.client(
          Self.python, testProgram("two_peers.py"), "127.0.0.1:\(marked)", "127.0.0.1:\(unmarked)", "\(count)")
        try waitUntil("every echo", seconds: 30) {
          guard client.isRunning else { throw Failure(client.story) }
          return client.output == "ok \(count)\n"
        }
        let status = try #require(bench.serverDaemon).status(in: bench)
        let socket = try #require(status.sockets.first { $0.pid == client.pid })
        #expect(socket.engine.tx.datagrams == count)
        #expect(socket.engine.rx.datagrams == count)
        #expect(socket.kernel.tx.datagrams == count)
        #expect(socket.kernel.rx.datagrams == count)
        client.closeInput()
        #expect(try client.wait(seconds: 10).status == 0)
      }
    }

    @Test("a plain client of a server on Machnet, and the reverse", arguments: [true, false])
    func shimToPlain(_ serverOnMachnet: Bool) throws {
      try withBench(.local) { bench in
        let port = Bench.freshPort()
        let words = [Self.python, testProgram("blocking_echo.py")]
        let serve = words + ["server", bench.address, "\(port)"]
        let ask = words + ["client", bench.address, "\(port)", "100", "0,1,1472,9000,65507"]
        let server = serverOnMachnet ? try bench.server(serve) : try bench.start("plain-server", serve)
        try server.waitBound(port)
        let client = serverOnMachnet ? try bench.start("plain-client", ask) : try bench.client(ask)
        #expect(try client.wait(seconds: 30).output == "ok 100\n", "\(client.errors)\(server.errors)")
      }
    }
  }

  /// Things that go wrong.
  @Suite(.serialized, .enabled(if: Topology.available.contains(.local))) struct Robustness {
    static let python = "/usr/bin/python3"

    private func lines(_ program: Program) -> Int { program.output.split(separator: "\n").count }

    private func exchange(_ bench: Bench) throws -> (server: Program, sender: Program) {
      let port = Bench.freshPort()
      let server = try bench.server(Self.python, testProgram("blocking_echo.py"), "server", bench.address, "\(port)")
      try server.waitBound(port)
      let sender = try bench.client(Self.python, testProgram("steady_sender.py"), bench.address, "\(port)")
      try waitUntil("a hundred echoes") { lines(sender) > 100 }
      return (server, sender)
    }

    @Test("the daemon is killed while programs talk: they go on through the kernel")
    func daemonKilled() throws {
      try withBench(.local) { bench in
        let (server, sender) = try exchange(bench)
        let daemon = try #require(bench.serverDaemon)
        try bench.expectOnEngine(atLeast: 200)
        daemon.program.send(SIGKILL)
        try daemon.program.wait(seconds: 10)
        let before = lines(sender)
        try waitUntil("echoes by way of the kernel", seconds: 20) { lines(sender) > before + 1000 }
        #expect(server.isRunning)
        #expect(sender.isRunning)
      }
    }

    @Test("a killed daemon comes back: the sockets come back to it", .timeLimit(.minutes(1)))
    func daemonRestarted() throws {
      try withBench(.local) { bench in
        let (server, sender) = try exchange(bench)
        let daemon = try #require(bench.serverDaemon)
        daemon.program.send(SIGKILL)
        try daemon.program.wait(seconds: 10)
        let again = try Daemon(
          "local", flows: ["{ match: { remote: \"127.0.0.0/8\" }, path: machnet }"], in: bench)
        try waitUntil("datagrams on the new daemon", seconds: 20) {
          try again.status(in: bench).local > 100
        }
        #expect(server.isRunning)
        #expect(sender.isRunning)
      }
    }

    @Test("the daemon goes and another one comes: what its rings held, what came meanwhile and what comes then is in order", .timeLimit(.minutes(1)))
    func inOrder() throws {
      try withBench(.local) { bench in
        let program = try bench.server(Self.python, testProgram("in_order.py"))
        try waitUntil("the first hundred") { program.output.contains("sent 100\n") }
        let daemon = try #require(bench.serverDaemon)
        try bench.expectOnEngine(atLeast: 100)
        daemon.program.send(SIGKILL)
        try daemon.program.wait(seconds: 10)
        program.type("gone")
        try waitUntil("the second hundred") { program.output.contains("sent 200\n") }
        let again = try Daemon("local", flows: ["{ match: { remote: \"127.0.0.0/8\" }, path: machnet }"], in: bench)
        program.type("there")
        try waitUntil("its sockets", seconds: 20) { try again.status(in: bench).sockets.count == 2 }
        program.type("back")
        let result = try program.wait(seconds: 20)
        #expect(result.output.hasSuffix("\nin order\n"), "\(result.output)\(result.errors)")
        #expect(try again.status(in: bench).local >= 100)
      }
    }

    @Test("a program is killed while it sends: nothing of it is left")
    func programKilled() throws {
      try withBench(.local) { bench in
        let (server, sender) = try exchange(bench)
        let daemon = try #require(bench.serverDaemon)
        #expect(try daemon.status(in: bench).sockets.contains { $0.pid == sender.pid })
        sender.send(SIGKILL)
        try sender.wait(seconds: 10)
        try waitUntil("the sender's sockets to go", seconds: 2) {
          try !daemon.status(in: bench).sockets.contains { $0.pid == sender.pid }
        }
        server.send(SIGKILL)
        try server.wait(seconds: 10)
        try waitUntil("all sockets to go", seconds: 2) { try daemon.status(in: bench).sockets.isEmpty }
        #expect(daemon.program.isRunning)
      }
    }

    @Test("six programs killed while they send, one after the other")
    func manyKilled() throws {
      try withBench(.local) { bench in
        let port = Bench.freshPort()
        let server = try bench.server("sockperf", "server", "-i", bench.address, "-p", "\(port)")
        try server.waitBound(port)
        let daemon = try #require(bench.serverDaemon)
        for _ in 0..<6 {
          let sender = try bench.client(
            "sockperf", "throughput", "-i", bench.address, "-p", "\(port)", "-m", "64", "-t", "60")
          let before = try daemon.status(in: bench).local
          try waitUntil("the sender to send") { try daemon.status(in: bench).local > before + 1000 }
          sender.send(SIGKILL)
          try sender.wait(seconds: 10)
        }
        try waitUntil("the senders' sockets to go", seconds: 2) {
          try daemon.status(in: bench).sockets.allSatisfy { $0.pid == server.pid }
        }
        let result = try bench.client("sockperf", "ping-pong", "-i", bench.address, "-p", "\(port)", "-t", "1")
          .wait(seconds: 20)
        #expect(result.status == 0, "\(result.errors)")
        #expect(try result.output.number(after: #"\[Total Run\].*ReceivedMessages="#) > 100)
      }
    }

    @Test("no daemon at all: the kernel, and not a word")
    func noDaemon() throws {
      try withBench(.absent) { bench in
        let port = Bench.freshPort()
        let words = [Self.python, testProgram("blocking_echo.py")]
        let server = try bench.server(words + ["server", bench.address, "\(port)"])
        try server.waitBound(port)
        let result = try bench.client(
          words + ["client", bench.address, "\(port)", "200", "0,1,1472,9000,65507"]).wait(seconds: 20)
        #expect(result.status == 0)
        #expect(result.output == "ok 200\n")
        #expect(result.errors == "")
        #expect(server.errors == "")
      }
    }

    @Test("two daemons on one socket path: the second says so and leaves the first alone")
    func twoDaemons() throws {
      try withBench(.local) { bench in
        let daemon = try #require(bench.serverDaemon)
        let second = try bench.start("second", [product("machnetd"), "--config", daemon.config.path])
        let result = try second.wait(seconds: 20)
        #expect(result.status != 0)
        #expect((result.errors + result.output).contains(daemon.socket.path), "\(result.errors)")
        #expect(daemon.program.isRunning)
        _ = try daemon.status(in: bench)
      }
    }

    @Test("a config with a mistake: file, line, and no daemon")
    func mistake() throws {
      try withBench(.kernel) { bench in
        let config = try bench.write("engine: { polling: adaptive }\nflows:\n  - { match: { remot: \"10.0.0.0/8\" }, path: machnet }\n", to: "wrong.yaml")
        for words in [["--check", "--config", config], ["--config", config]] {
          let result = try bench.start("wrong", [product("machnetd")] + words).wait(seconds: 20)
          #expect(result.status != 0)
          #expect((result.errors + result.output).contains("wrong.yaml:3"), "\(result.errors)")
        }
      }
    }
  }

  /// What is shipped.
  @Suite(.serialized, .enabled(if: Topology.available.contains(.local))) struct Artefacts {
    private func run(_ words: String...) throws -> [Substring] {
      try withBench(.kernel) { try $0.command(words) }.split(separator: "\n")
    }

    /// (25 kB of them are tables by which a debugger and pthread_cancel unwind its frames.)
    @Test("the shim has at most 119 kB")
    func size() throws {
      let size = try FileManager.default.attributesOfItem(atPath: product("libmachnet-preload.so"))[.size] as? Int
      #expect(try #require(size) <= 119_000)
    }

    @Test("the shim needs libc and nothing else")
    func needed() throws {
      let needed = try run("readelf", "-d", product("libmachnet-preload.so")).filter { $0.contains("(NEEDED)") }
      #expect(needed.count == 1)
      #expect(needed.allSatisfy { $0.contains("[libc.so.6]") })
    }

    @Test("the shim exports the interception list and nothing else")
    func exports() throws {
      let map = try String(contentsOf: repository.appending(path: "Shim/Preload/exports.map"), encoding: .utf8)
      let list = map.split(separator: "local:")[0].split(separator: "global:")[1]
      let wanted = Set(list.split { !($0.isLetter || $0.isNumber || $0 == "_") })
      let exported = try Set(
        run("nm", "-D", "--defined-only", "--extern-only", product("libmachnet-preload.so")).compactMap { $0.split(separator: " ").last })
      #expect(exported == wanted)
      #expect(wanted.isSuperset(of: ["sendto", "recvfrom", "epoll_wait", "close", "syscall"]))
    }

    #if arch(x86_64)
      /// The kernel's work drives each line out of the first-level cache (ARCHITECTURE.md, Verdicts).
      @Test("of a send that does not concern the shim, one line of instructions is the shim's", arguments: ["sendto", "send", "sendmsg"])
      func oneLine(_ name: String) throws {
        func address(_ line: Substring, before end: Character) -> Int? {
          line.firstIndex(of: end).flatMap { Int(line[..<$0].drop { $0 == " " }, radix: 16) }
        }
        let lines = try run("objdump", "-d", "--no-show-raw-insn", product("libmachnet-preload.so"))
        let head = try #require(lines.firstIndex { $0.contains("<\(name)@@") && $0.hasSuffix(">:") })
        let start = try #require(address(lines[head], before: " "))
        #expect(start % 64 == 0)
        let onward = try #require(lines[head...].first { $0.contains("jmp    *%") }.flatMap { address($0, before: ":") })
        #expect(onward / 64 == start / 64, "libc's is jumped to \(onward - start) bytes from the first")
      }
    #endif

    @Test("the daemon asks a NIC for nothing beyond the least common denominator")
    func leastCommonDenominator() throws {
      let symbols = try run("nm", "-D", product("machnetd"))
      #expect(symbols.contains { $0.contains("rte_eth_") }, "the daemon drives ports")
      for beyond in ["rte_flow", "rss", "reta", "rte_mtr", "rte_tm_"] {
        #expect(!symbols.contains { $0.contains("rte_") && $0.contains(beyond) }, "\(beyond)")
      }
    }
  }
}
