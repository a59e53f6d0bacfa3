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
      import os, socket, sys
      def udp(family=socket.AF_INET): return socket.socket(family, socket.SOCK_DGRAM)
      port = int(sys.argv[1])
      bound = udp(); bound.bind(("127.0.0.1", port))
      unbound = udp()
      six = udp(socket.AF_INET6); six.bind(("::1", port))
      only = udp(socket.AF_INET6); only.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1); only.bind(("::", port + 1))
      stream = socket.socket()
      away = udp(); away.connect(("192.0.2.9", 9))
      there = udp(); there.connect(("127.0.0.1", port)); there.send(b"x"); bound.recv(9)
      peeking = udp(); peeking.bind(("127.0.0.1", 0)); peeking.setsockopt(socket.SOL_SOCKET, 42, 0)  # SO_PEEK_OFF
      print(*[s.fileno() for s in (bound, unbound, six, only, stream, away, there, peeking)], os.dup(bound.fileno()), flush=True)
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
        let names = ["bound", "unbound", "six", "only", "stream", "away", "there", "peeking", "copy"]
        let descriptors = Dictionary(uniqueKeysWithValues: zip(names, program.output.split(separator: " ").map { Int($0.trimmingCharacters(in: .newlines))! }))
        func explain(_ name: String) throws -> (Int32, String) {
          let result = try bench.start(
            "explain", [product("machnet"), "explain", "--pid", "\(program.pid)", "--fd", "\(descriptors[name]!)"]).wait(seconds: 10)
          return (result.status, result.output + result.errors)
        }
        for (name, status, words) in [
          ("bound", 0, "on Machnet for"), ("unbound", 1, "it is not bound"), ("six", 1, "it is IPv6"),
          ("only", 1, "the daemon refused it"), ("stream", 1, "only UDP sockets leave the kernel"),
          ("away", 1, "no rule matches"), ("there", 0, "the rule in line"), ("peeking", 1, "it has set SO_PEEK_OFF"),
          ("copy", 0, "fd \(descriptors["bound"]!) (and "),
        ] {
          let (found, text) = try explain(name)
          #expect(found == Int32(status) && text.contains(words), "\(name): \(text)")
        }
        #expect(try explain("only").1.contains("it carries IPv6 only"))
        #expect(try explain("away").1.contains("its remote side is 127.0.0.0/8"))
        let flow = try bench.start(
          "explain", [product("machnet"), "explain", "--socket", daemon.socket.path, "--remote", "127.0.0.1:\(port)"]).wait(seconds: 10).output
        #expect(flow.contains("machnet (udp)") && flow.contains("rules of generation 1"), "\(flow)")

        let all = try bench.start("explain", [product("machnet"), "explain", "--pid", "\(program.pid)"]).wait(seconds: 10).output
        #expect(all.contains("\n2 of 7 UDP sockets on Machnet\n"), "\(all)")
        // Another user may look at the daemon, and not at the process.
        if isRoot {
          try FileManager.default.setAttributes([.posixPermissions: 0o666], ofItemAtPath: daemon.socket.path)
          func asNobody(_ words: String...) throws -> Program.Result {
            try bench.start(
              "nobody", ["setpriv", "--reuid=65534", "--clear-groups", product("machnet"), "explain", "--socket", daemon.socket.path, "--pid"] + words
            ).wait(seconds: 10)
          }
          let known = try asNobody("\(program.pid)")
          #expect(known.status == 0 && known.output.contains("127.0.0.1:\(port): machnet"), "\(known.output)\(known.errors)")
          #expect(known.output.contains("sudo machnet explain --pid \(program.pid)") && known.output.contains("it carries IPv6 only"))
          let unknown = try asNobody("1")
          #expect(unknown.status == 1 && unknown.output.contains("it is not attached to this daemon"), "\(unknown.output)\(unknown.errors)")
          let single = try asNobody("\(program.pid)", "--fd", "3")
          #expect(single.status == 2 && single.errors.contains("sudo machnet explain"), "\(single.errors)")
        }

        // The rules change under the sockets.
        let config = try String(contentsOf: daemon.config, encoding: .utf8)
        try config.replacing("127.0.0.0/8", with: "198.51.100.0/24").write(to: daemon.config, atomically: true, encoding: .utf8)
        try bench.command([product("machnet"), "reload", "--config", daemon.config.path])
        let (status, text) = try explain("there")
        #expect(status == 1 && text.contains("-> 127.0.0.1:\(port): kernel") && text.contains("no rule names it now"), "\(text)")
        try config.write(to: daemon.config, atomically: true, encoding: .utf8)
        try bench.command([product("machnet"), "reload", "--config", daemon.config.path])
        #expect(try explain("there").0 == 0)

        // The engine is gone: the program's sockets are on the kernel, and that is the reason.
        daemon.program.send(SIGKILL)
        try daemon.program.wait(seconds: 10)
        let (alone, why) = try explain("bound")
        #expect(alone == 1 && why.contains("no daemon answers at \(daemon.socket.path)"), "\(why)")

        // A program that nobody launched.
        let plain = try bench.start("plain", [Self.python, "-c", Self.manySockets, "\(Bench.freshPort())"])
        try waitUntil("the sockets") { plain.output.hasSuffix("\n") }
        let result = try bench.start("explain", [product("machnet"), "explain", "--pid", "\(plain.pid)"]).wait(seconds: 10)
        #expect(result.status == 1 && result.output.contains("it was not started by machnet run"), "\(result.output)")
      }
    }

    @Test("a socket that finds no descriptor for Machnet is explained")
    func explainWithoutDescriptors() throws {
      try withBench(.local) { bench in
        let daemon = try #require(bench.serverDaemon)
        let program = try bench.server(
          Self.python, "-c",
          """
          import resource, socket, sys
          resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
          sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(40)]
          for s in sockets: s.bind(("127.0.0.1", 0))
          print(sockets[-1].fileno(), flush=True)
          sys.stdin.read()
          """)
        try waitUntil("the sockets") { program.output.hasSuffix("\n") }
        let last = program.output.trimmingCharacters(in: .newlines)
        let words = [product("machnet"), "explain", "--socket", daemon.socket.path, "--pid", "\(program.pid)", "--fd", last]
        let result = try bench.start("explain", words).wait(seconds: 10)
        #expect(result.status == 1 && result.output.contains("no descriptor left for it"), "\(result.output)\(result.errors)")
      }
    }

    /// A sender and an echo server that keep a daemon busy, and top in a terminal that looks at it.
    private func watched(_ daemon: Daemon, in bench: Bench) throws -> (port: Int, sender: Program, terminal: Program) {
      let port = Bench.freshPort()
      let server = try bench.server(Self.python, testProgram("blocking_echo.py"), "server", bench.address, "\(port)")
      try server.waitBound(port)
      let sender = try bench.client(Self.python, testProgram("steady_sender.py"), bench.address, "\(port)")
      let terminal = try bench.start(
        "terminal",
        [Self.python, testProgram("in_a_terminal.py"), product("machnet"), "top", "--socket", daemon.socket.path, "--interval", "0.1"])
      return (port, sender, terminal)
    }

    /// One line of top --json.
    private func rates(_ daemon: Daemon, interval: String, in bench: Bench) throws -> [String: Any] {
      let words = [product("machnet"), "top", "--socket", daemon.socket.path, "--once", "--json", "--interval", interval]
      let text = try bench.start("top", words).wait(seconds: 10).output
      return try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any], "\(text)")
    }

    @Test("top in a terminal of 80x24, over a restart of the daemon")
    func top() throws {
      try withBench(.local) { bench in
        let daemon = try #require(bench.serverDaemon)
        let (port, sender, terminal) = try watched(daemon, in: bench)
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

        #expect(Set(try rates(again, interval: "0.2", in: bench).keys) == ["engines", "seconds", "sessions", "sockets"])
        let piped = try bench.start("top", [product("machnet"), "top", "--socket", again.socket.path]).wait(seconds: 10)
        #expect(piped.status == 1 && piped.errors.contains("needs a terminal"))
      }
    }

    @Test("top shows sessions", .enabled(if: Topology.available.contains(.sessions)))
    func topOfSessions() throws {
      try withBench(.sessions) { bench in
        let daemon = try #require(bench.clientDaemon)
        let (_, sender, terminal) = try watched(daemon, in: bench)
        for text in ["SESSION WITH", "\(bench.address) ", " open ", "sorted by traffic"] { terminal.type("see \(text)") }
        terminal.type("key q")
        terminal.type("end")
        #expect(try terminal.wait(seconds: 60).output == "seen\nseen\nseen\nseen\nended 0\n")
        #expect(sender.isRunning)

        let object = try rates(daemon, interval: "0.5", in: bench)
        let session = try #require((object["sessions"] as? [[String: Any]])?.first, "\(object)")
        #expect(session["remote"] as? String == bench.address && session["state"] as? String == "open")
        for key in ["smoothed_rtt_microseconds", "congestion_window", "tx"] { #expect(session[key] as? Double ?? 0 > 0, "\(key): \(object)") }
      }
    }

    /// Reads pcapng blocks strictly: (type, body) of each, byte order and lengths checked.
    private func blocks(_ data: Data) throws -> [(type: UInt32, body: Data)] {
      var blocks: [(UInt32, Data)] = []
      func word(_ at: Int) -> UInt32 { (0..<4).reduce(0) { $0 | UInt32(data[at + $1]) << (8 * UInt32($1)) } }
      var at = 0
      while at < data.count {
        let length = Int(word(at + 4))
        guard length % 4 == 0, length >= 12, at + length <= data.count, word(at + length - 4) == word(at + 4) else {
          throw Failure("a damaged block at \(at) of \(data.count)")
        }
        blocks.append((word(at), data[(at + 8)..<(at + length - 4)]))
        at += length
      }
      return blocks
    }

    @Test("a capture shows what the wire cannot, and tcpdump reads it", arguments: [Topology.local, .pair])
    func capture(_ topology: Topology) throws {
      try withBench(topology) { bench in
        let daemon = try #require(bench.serverDaemon)
        let port = Bench.freshPort()
        let server = try bench.server(Self.python, testProgram("blocking_echo.py"), "server", bench.address, "\(port)")
        try server.waitBound(port)
        let file = bench.directory.appending(path: "capture.pcapng")
        let capture = try bench.start(
          "capture", [product("machnet"), "capture", "--socket", daemon.socket.path, "--port", "\(port)", "--write", file.path])
        // The file begins when the engines have begun.
        try waitUntil("the capture", seconds: 20) {
          guard capture.isRunning else { throw Failure(capture.story) }
          return try FileManager.default.fileExists(atPath: file.path) && Data(contentsOf: file).count > 0
        }
        let second = try bench.start("second", [product("machnet"), "capture", "--socket", daemon.socket.path, "--write", "/dev/null"])
        let refused = try second.wait(seconds: 20)
        #expect(refused.status == 1 && refused.errors.contains("somebody else captures already"))

        let client = try bench.client(
          Self.python, testProgram("blocking_echo.py"), "client", bench.address, "\(port)", "50", "0,1,100,1472")
        #expect(try client.wait(seconds: 20).output == "ok 50\n")
        // All of it is in the file when its last frame is: 50 questions and 50 answers.
        try waitUntil("every frame in the file", seconds: 20) {
          (try? blocks(Data(contentsOf: file)))?.count { $0.type == 6 } == 100
        }
        capture.send(SIGINT)
        let result = try capture.wait(seconds: 20)
        #expect(result.status == 0 && result.errors == "100 frames recorded, 0 lost\n", "\(result.errors)")

        let found = try blocks(Data(contentsOf: file))
        #expect(found.first?.type == 0x0A0D_0D0A)
        let interfaces = found.count { $0.type == 1 }
        #expect(interfaces == (topology == .local ? 1 : 2))
        #expect(found.suffix(interfaces).allSatisfy { $0.type == 5 }, "statistics of every interface at the end")
        let text = try bench.command(["tcpdump", "-n", "-r", file.path]).split(separator: "\n")
        #expect(text.count == 100)
        #expect(text.allSatisfy { $0.contains("UDP, length ") && $0.contains("\(bench.address).\(port)") }, "\(text.first ?? "")")

        // Live, to a reader that leaves.
        let pipe = try bench.start(
          "pipe", ["sh", "-c", "'\(product("machnet"))' capture --socket '\(daemon.socket.path)' --port \(port) --snap 64 | tcpdump -n -l -c 2 -r -"])
        let asker = try bench.client(Self.python, testProgram("steady_sender.py"), bench.address, "\(port)")
        let read = try pipe.wait(seconds: 20)
        #expect(read.output.split(separator: "\n").count == 2 && read.errors.contains("frames recorded"), "\(read.errors)")
        #expect(asker.isRunning && server.isRunning)
        // Whoever may not look is told.
        if getuid() == 0 {
          try FileManager.default.setAttributes([.posixPermissions: 0o666], ofItemAtPath: daemon.socket.path)
          let other = try bench.start(
            "other", ["setpriv", "--reuid=65534", "--clear-groups", product("machnet"), "capture", "--socket", daemon.socket.path, "--write", "/dev/null"])
          let denied = try other.wait(seconds: 20)
          #expect(denied.status == 1 && denied.errors.contains("only root, the daemon's own user and the group"), "\(denied.errors)")
        }
      }
    }
  }
}
