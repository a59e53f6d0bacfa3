import Foundation
import Testing

extension OneAtATime {
  /// The trampolines pass on what the rules leave to the kernel; a verdict ends when the rules change.
  @Suite(.serialized, .enabled(if: Topology.available.contains(.local))) struct Verdicts {
    static let other = "{ match: { remote: \"192.0.2.0/24\" }, path: machnet }"
    static let loopback = "{ match: { remote: \"127.0.0.0/8\" }, path: machnet }"

    private func echoes(_ program: Program) -> Int { program.output.split(separator: "\n").count }

    private func reload(_ flows: [String], _ bench: Bench) throws {
      let daemon = try #require(bench.serverDaemon)
      let old = try String(contentsOf: daemon.config, encoding: .utf8)
      let head = old.split(separator: "flows:", omittingEmptySubsequences: false)[0]
      try (head + "flows:\n" + flows.map { "  - \($0)\n" }.joined()).write(to: daemon.config, atomically: true, encoding: .utf8)
      try bench.command([product("machnet"), "reload", "--config", daemon.config.path])
    }

    @Test("flows move to Machnet and back as the rules are reloaded under running programs", arguments: ["to", "connected"])
    func reloaded(_ form: String) throws {
      try withBench(.local, flows: [Self.other]) { bench in
        let port = Bench.freshPort()
        let server = try bench.server(
          "/usr/bin/python3", testProgram("blocking_echo.py"), "server", bench.address, "\(port)")
        try server.waitBound(port)
        let sender = try bench.client("/usr/bin/python3", testProgram("steady_sender.py"), bench.address, "\(port)", form)
        let daemon = try #require(bench.serverDaemon)
        try waitUntil("echoes by way of the kernel") { echoes(sender) > 200 }
        #expect(try daemon.status(in: bench).local == 0)
        for _ in 0..<2 {
          let before = try daemon.status(in: bench).local
          try reload([Self.loopback], bench)
          try waitUntil("datagrams on the engine") { try daemon.status(in: bench).local > before + 200 }
          try reload([Self.other], bench)
          // What is under way when the rules change may still arrive by the engine.
          let seen = echoes(sender)
          try waitUntil("echoes under the old rules again") { echoes(sender) > seen + 10 }
          let after = try daemon.status(in: bench).local
          try waitUntil("more of them") { echoes(sender) > seen + 200 }
          #expect(try daemon.status(in: bench).local == after)
        }
        let sockets = try daemon.status(in: bench).sockets
        #expect(sockets.contains { $0.pid == server.pid && $0.kernel.rx.datagrams > 400 && $0.kernel.tx.datagrams > 400 })
        #expect(server.errors == "" && sender.errors == "")
      }
    }

    @Test("a receiver leaves Machnet, a plain program takes its port, and back, under a running sender", arguments: ["to", "connected"])
    func receiverChanges(_ form: String) throws {
      try withBench(.local) { bench in
        let port = Bench.freshPort()
        let words = ["/usr/bin/python3", testProgram("blocking_echo.py"), "server", bench.address, "\(port)"]
        let daemon = try #require(bench.serverDaemon)
        var sender: Program? = nil
        for turn in 0..<4 {
          let onMachnet = turn % 2 == 0
          let server = onMachnet ? try bench.server(words) : try bench.start("plain", words)
          try server.waitBound(port)
          let running = try sender ?? bench.client("/usr/bin/python3", testProgram("steady_sender.py"), bench.address, "\(port)", form)
          sender = running
          let before = echoes(running)
          let engine = try daemon.status(in: bench).local
          try waitUntil("echoes of server \(turn)", seconds: 20) {
            guard running.isRunning else { throw Failure(running.story) }
            return echoes(running) > before + 300
          }
          let carried = try daemon.status(in: bench).local - engine
          #expect(onMachnet ? carried > 300 : carried < 50, "\(carried) datagrams by the engine in turn \(turn)")
          server.send(SIGKILL)
          try server.wait(seconds: 10)
        }
      }
    }
  }
}
