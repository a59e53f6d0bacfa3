import Foundation
import Testing

extension OneAtATime {
  /// The processes that the shim finds itself in: how they are linked, started, restricted and ended. Most run
  /// Tests/Programs/host.c, built in many ways; its output is the same on the kernel and on Machnet.
  @Suite(.serialized, .enabled(if: Topology.available.contains(.local))) struct Hosts {
    static let python = "/usr/bin/python3"
    static let shim = product("libmachnet-preload.so")

    private static func exists(_ path: String) -> Bool { FileManager.default.fileExists(atPath: path) }
    private static func library(_ name: String) -> String? {
      ["x86_64", "aarch64"].map { "/usr/lib/\($0)-linux-gnu/\(name)" }.first(where: exists)
    }
    private static func inPath(_ name: String) -> Bool {
      (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":").contains { exists("\($0)/\(name)") }
    }

    private func host(_ kind: String? = nil, _ options: String...) throws -> String {
      try compiledProgram("host", options + ["-pthread", "-D_GNU_SOURCE"], kind: kind)
    }

    /// Runs a program under the preload; what it says must be what it says on the kernel, and nothing on its stderr.
    private func agrees(
      _ bench: Bench, _ command: [String], environment: [String: String] = [:], engine least: Int?, seconds: Double = 60,
      sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
      let before = try #require(bench.serverDaemon).status(in: bench).local
      let plain = try bench.start("plain", command, environment: environment.filter { $0.key != "LD_PRELOAD" }).wait(seconds: seconds)
      let found = try bench.server(command, environment: environment).wait(seconds: seconds)
      #expect(found.status == plain.status, "\(found.output)\(found.errors)", sourceLocation: sourceLocation)
      #expect(found.output == plain.output, sourceLocation: sourceLocation)
      #expect(found.errors == plain.errors, sourceLocation: sourceLocation)
      let carried = try #require(bench.serverDaemon).status(in: bench).local - before
      if let least {
        #expect(carried >= least, "datagrams on the engine", sourceLocation: sourceLocation)
      } else {
        #expect(carried == 0, "not intercepted, and yet there are datagrams on the engine", sourceLocation: sourceLocation)
      }
    }

    @Test("a constructor that runs before the shim's calls all that is intercepted, a destructor after its end, too (case 6)")
    func earlyConstructor() throws {
      let library = try compiledProgram("early", ["-shared", "-fPIC"], kind: "library.so")
      let program = try compiledProgram("early-main", [library])
      for topology in [Topology.absent, .local] {
        try withBench(topology) { bench in
          let plain = try bench.start("plain", [program], environment: ["LD_PRELOAD": ""]).wait(seconds: 20)
          let found = try bench.server(program).wait(seconds: 20)
          #expect(plain.output.contains("\nrecv(early_socket, data, 64, 0) 4\n"))
          #expect(found.status == 0 && found.errors == "", "\(found.errors)")
          #expect(found.output == plain.output)
        }
      }
    }

    @Test("static C++ objects use sockets, in libraries that come first, are opened and closed, and in threads (case 6, case 51)")
    func staticObjects() throws {
      func library(_ place: String, _ options: String...) throws -> String {
        try compiledProgram(
          "statics", ["-DWHERE=\"\(place)\"", "-shared", "-fPIC"] + options, kind: "\(place).so", isCPlusPlus: true)
      }
      let linked = try library("linked", "-Wl,-z,initfirst")
      let opened = try library("opened")
      let program = try compiledProgram(
        "statics", ["-DPROGRAM", "-pthread", "-Wl,--no-as-needed", linked], kind: "program", isCPlusPlus: true)
      try withBench(.local) { bench in
        // (What a constructor does before the shim's own stays on the kernel.)
        try agrees(bench, [program, opened], engine: 200)
      }
    }

    @Test("Node's dgram does what its documentation says")
    func nodeDatagrams() throws {
      try withBench(.local) { bench in
        try agrees(bench, ["node", testProgram("dgram.js")], engine: 60)
      }
    }

    @Test("with the preload, without it, with it again: each run ends alike (case 10)")
    func alternating() throws {
      try withBench(.local) { bench in
        let program = try host()
        for round in 0..<2 {
          try agrees(bench, [program, "echo", "200"], engine: 400)
          // What the environment still says of a shim that is not preloaded means nothing.
          let without = try bench.start(
            "without-\(round)", [program, "echo", "200"], environment: ["MACHNET_SOCKET": try #require(bench.serverDaemon).socket.path]
          ).wait(seconds: 20)
          #expect(without.output == "ok 200\n")
        }
      }
    }

    /// How a program may have got its allocator.
    enum Allocator: String, CaseIterable, CustomTestStringConvertible {
      case jemalloc = "libjemalloc.so.2", tcmalloc = "libtcmalloc_minimal.so.4", mimalloc = "libmimalloc.so.2"
      case jemallocStatic = "libjemalloc.a", tcmallocStatic = "libtcmalloc_minimal.a"
      var isStatic: Bool { rawValue.hasSuffix(".a") }
      var testDescription: String { rawValue }
    }

    @Test("allocators: linked, linked statically, preloaded before us and after us (case 22, case 56)", arguments: Allocator.allCases)
    func allocators(_ allocator: Allocator) throws {
      let library = try #require(Self.library(allocator.rawValue), "\(allocator.rawValue) is missing: run Scripts/setup")
      try withBench(.local) { bench in
        // (A static allocator's names are exported, so that every library uses it.)
        let options = allocator.isStatic ? [library, "-Wl,--export-dynamic", "-ldl", "-lm", "-lstdc++"] : [library]
        let linked = try compiledProgram("host", options + ["-pthread"], kind: "\(allocator)")
        try agrees(bench, [linked, "echo", "1000"], engine: 2000)
        guard !allocator.isStatic else { return }
        let plain = try host()
        let socket = try #require(bench.serverDaemon).socket.path
        // As `machnet run` joins them, by hand the other way round, and with the colon in front that some launchers leave.
        for preload in ["\(library):\(Self.shim)", "\(Self.shim):\(library)", ":\(library):\(Self.shim)", "\(library) \(Self.shim)"] {
          let found = try bench.start(
            "preloaded", [plain, "echo", "1000"], environment: ["LD_PRELOAD": preload, "MACHNET_SOCKET": socket]).wait(seconds: 30)
          #expect(found.status == 0 && found.output == "ok 1000\n" && found.errors == "", "\(preload): \(found.errors)")
        }
        let before = try #require(bench.serverDaemon).status(in: bench).local
        let merged = try bench.server([plain, "echo", "1000"], environment: ["LD_PRELOAD": ":\(library)"]).wait(seconds: 30)
        #expect(merged.output == "ok 1000\n" && merged.errors == "", "\(merged.errors)")
        #expect(try #require(bench.serverDaemon).status(in: bench).local >= before + 2000)
      }
    }

    @Test("sanitized programs, their runtime linked as a library and into the program (case 22)", arguments: ["address", "thread", "undefined"])
    func sanitized(_ sanitizer: String) throws {
      try withBench(.local) { bench in
        // gcc links its runtimes as libraries. (With a runtime inside the program, its own wrappers come first and ours are next.)
        let program = try host("sanitize-\(sanitizer)", "-fsanitize=\(sanitizer)", "-g", "-no-pie")
        // The thread sanitizer wants the addresses as it knows them.
        let calm = sanitizer == "thread" ? ["setarch", "-R"] : []
        try agrees(bench, calm + [program, "echo", "300"], environment: ["ASAN_OPTIONS": "detect_leaks=0"], engine: 600)
      }
    }

    @Test("what the loader does not preload goes on as if nothing were there, and quietly: static-pie, setuid (case 12)")
    func notPreloaded() throws {
      try withBench(.local) { bench in
        try agrees(bench, [try host("static-pie", "-static-pie"), "echo", "100"], engine: nil)
        try agrees(bench, [try host("static", "-static", "-no-pie"), "echo", "100"], engine: nil)
        if isRoot {
          // setuid to another user than the one who starts it.
          let privileged = bench.directory.appending(path: "privileged").path
          try bench.command(["install", "-m", "4755", "-o", "65534", try host(), privileged])
          try agrees(bench, [privileged, "echo", "100"], engine: nil)
        }
      }
    }

    @Test("exec: the next program finds what the last one did not receive, and its socket on Machnet")
    func exec() throws {
      try withBench(.local) { bench in
        try agrees(bench, [try host(), "exec"], engine: 103)
        let after = try #require(bench.serverDaemon).status(in: bench)
        #expect(after.unclaimed.isEmpty && after.daemon.abandonedDatagrams == 0)
      }
    }

    @Test("socket activation: systemd's starter waits for a datagram, and the program that it becomes answers it and more, on Machnet",
      .enabled(if: exists("/usr/bin/systemd-socket-activate"), "no systemd-socket-activate (of the package systemd)"))
    func socketActivation() throws {
      try withBench(.local) { bench in
        let port = Bench.freshPort()
        let server = """
          import os, socket
          assert os.environ["LISTEN_FDS"] == "1" and os.environ["LISTEN_PID"] == str(os.getpid())
          s = socket.socket(fileno=3)
          s.settimeout(20)
          for i in range(100):
            data, sender = s.recvfrom(100)
            s.sendto(data, sender)
          """
        let client = """
          import socket
          s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
          s.settimeout(20)
          s.connect(("127.0.0.1", \(port)))
          for i in range(100):
            s.send(b"%d" % i)
            assert s.recv(100) == b"%d" % i, i
          """
        let started = try bench.server(
          "/usr/bin/systemd-socket-activate", "--datagram", "--listen", "127.0.0.1:\(port)", Self.python, "-c", server)
        try started.waitBound(port)
        let asked = try bench.client(Self.python, "-c", client).wait(seconds: 30)
        #expect(asked.status == 0, "\(asked.errors)\(started.story)")
        #expect(try started.wait(seconds: 10).status == 0, "\(started.story)")
        // (The first answer comes by the kernel if the client is faster than the server's start.)
        #expect(try #require(bench.serverDaemon).status(in: bench).local >= 190)
      }
    }

    @Test("exec of a program that cannot be intercepted: what was unread is explained while it waits, and counted in the end")
    func execWithoutPreload() throws {
      try withBench(.local) { bench in
        let daemon = try #require(bench.serverDaemon)
        let program = try bench.server(try host(), "hand", try host("static", "-static", "-no-pie"), "many", "1")
        try waitUntil("the other program") { program.output == "ok 1\n" }
        #expect(try daemon.status(in: bench).unclaimed.map(\.datagrams) == [3])
        let explained = try bench.start("explain", [product("machnet"), "explain", "--pid", "\(program.pid)"]).wait(seconds: 10)
        #expect(explained.output.contains("3 datagrams that host (pid \(program.pid)) did not receive wait with the daemon"), "\(explained.output)")
        program.type("end")
        #expect(try program.wait(seconds: 10).status == 0)
        try waitUntil("the daemon forgets them") {
          let status = try daemon.status(in: bench)
          return status.unclaimed.isEmpty && status.daemon.abandonedDatagrams == 3
        }
      }
    }

    #if arch(x86_64)
    @Test("a 32-bit program is started without the preload, and the loader has nothing to say (case 57)",
      .enabled(if: exists("/lib/ld-linux.so.2"), "no 32-bit loader: Scripts/setup installs it"))
    func narrowProgram() throws {
      try withBench(.local) { bench in
        let source = try bench.write(
          """
          __attribute__((force_align_arg_pointer)) void _start(void) {
            static const char text[] = "narrow\\n";
            int length = 7, result;
            __asm__ volatile("int $0x80" : "=a"(result) : "a"(4), "b"(1), "c"(text), "d"(length) : "memory");
            __asm__ volatile("int $0x80" : : "a"(252), "b"(7));
            __builtin_unreachable();
          }
          """, to: "narrow.c")
        let program = bench.directory.appending(path: "narrow").path
        try bench.command([
          "cc", "-m32", "-nostdlib", "-nostartfiles", "-fno-stack-protector", "-no-pie", "-fno-pic", source, "-o", program,
          "-Wl,--dynamic-linker=/lib/ld-linux.so.2", "-Wl,--no-as-needed", "/lib32/libc.so.6",
        ])
        // Preloaded by hand, the loader complains: so the test can see.
        let noisy = try bench.start("noisy", [program], environment: ["LD_PRELOAD": Self.shim]).wait(seconds: 10)
        #expect(noisy.status == 7 && noisy.errors.contains("wrong ELF class"), "\(noisy.errors)")
        let quiet = try bench.server(program).wait(seconds: 10)
        #expect(quiet.status == 7 && quiet.output == "narrow\n" && quiet.errors == "", "\(quiet.errors)")
        // The other preloads stay.
        let kept = try bench.server([program], environment: ["LD_PRELOAD": "/nowhere/other.so"]).wait(seconds: 10)
        #expect(kept.errors.contains("/nowhere/other.so") && !kept.errors.contains("machnet"))
      }
    }
    #endif

    @Test("a network namespace without an interface or an address (case 11)", .enabled(if: isRoot))
    func emptyNamespace() throws {
      try withBench(.local) { bench in
        let script = """
          import socket
          s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
          s.bind(("127.0.0.1", 0))
          s.settimeout(0.01)
          for attempt in (lambda: s.sendto(b"x", ("198.51.100.1", 9)), lambda: s.recv(9), lambda: s.bind(("10.9.8.7", 0))):
              try:
                  print(attempt())
              except OSError as error:
                  print(type(error).__name__, error.errno)
          """
        try agrees(bench, ["unshare", "-n", Self.python, "-c", script], engine: 0)
      }
    }

    @Test("a program that locks its memory locks none of what is shared with the daemon", .enabled(if: isRoot))
    func lockedMemory() throws {
      try withBench(.local) { bench in
        // By root before and after the first socket; and by one who may lock less than a channel has.
        for words in [["before"], ["after"], ["after", "65534"]] {
          try agrees(bench, [try compiledProgram("locked")] + words, engine: 200)
        }
      }
    }

    @Test("another root directory and another user after the start", .enabled(if: isRoot))
    func rightsLeft() throws {
      try withBench(.local) { bench in
        let root = bench.directory.appending(path: "root").path
        try FileManager.default.createDirectory(atPath: root, withIntermediateDirectories: true)
        try agrees(bench, [try host(), "leave", root, "65534"], engine: 400)
      }
    }

    @Test("a socket that a program of another user inherits is the kernel's from then on, for both", .enabled(if: isRoot))
    func sharedWithAnotherUser() throws {
      try withBench(.local) { bench in
        let daemon = try #require(bench.serverDaemon)
        // Where any user reaches it.
        let shim = bench.directory.appending(path: "preload.so").path
        try bench.command(["install", "-m", "755", Self.shim, shim])
        try bench.command(["chmod", "666", daemon.socket.path])
        let command = [try host(), "share", "65534"]
        let plain = try bench.start("plain", command).wait(seconds: 30)
        let found = try bench.start(
          "shared", command, environment: ["LD_PRELOAD": shim, "MACHNET_SOCKET": daemon.socket.path]).wait(seconds: 30)
        #expect(found.status == plain.status && found.output == plain.output && found.errors == plain.errors, "\(found.errors)")
        #expect(try daemon.status(in: bench).local >= 400)
        #expect(daemon.program.story.contains("goes back to the kernel"))
      }
    }

    @Test("a filter of system calls that refuses what the shim needs: the program goes on through the kernel", arguments: ["errno", "trap"])
    func filtered(_ how: String) throws {
      try withBench(.local) { bench in
        try agrees(bench, [try host(), "filtered", how], engine: 0)
      }
    }

    @Test("ten thousand sockets in one process; as many are marked as the limit of descriptors allows, all work")
    func manySockets() throws {
      var limit = rlimit()
      unsafe getrlimit(__rlimit_resource_t(7) /* RLIMIT_NOFILE */, &limit)
      let allowed = Int(min(limit.rlim_max, 1 << 20))
      let count = min(10_000, allowed / 2)
      // Each marked socket takes an eventfd, from the upper quarter of what is allowed (`Process.copy`).
      let marked = min(count, allowed - min(allowed - allowed / 4, 16384) - 100)
      print("\(count) sockets, at least \(marked) of them marked")
      try withBench(.local) { bench in
        let program = try bench.server(try host(), "many", "\(count)")
        try waitUntil("the sockets", seconds: 60) {
          guard program.isRunning else { throw Failure(program.story) }
          return program.output == "ok \(count)\n"
        }
        let status = try #require(bench.serverDaemon).status(in: bench)
        let sockets = status.sockets.filter { $0.pid == program.pid }
        #expect(sockets.count >= marked)
        #expect(sockets.count { $0.engine.rx.datagrams == 1 && $0.engine.tx.datagrams == 1 && $0.kernel.datagrams == 0 } >= marked - 2)
        program.type("")
        #expect(try program.wait(seconds: 60).status == 0)
        try waitUntil("the sockets to go") { try #require(bench.serverDaemon).status(in: bench).sockets.isEmpty }
      }
    }

    @Test("a program may fill three quarters of its descriptors with sockets")
    func fewDescriptors() throws {
      try withBench(.local) { bench in
        let program = try bench.server("prlimit", "--nofile=1024:1024", try host(), "many", "750")
        program.type("")
        let result = try program.wait(seconds: 30)
        #expect(result.output == "ok 750\n" && result.status == 0, "\(result.errors)")
      }
    }

    @Test("a high limit of descriptors costs nothing: closing them all looks only where there were some")
    func manyDescriptorsUnused() throws {
      var limit = rlimit()
      unsafe getrlimit(__rlimit_resource_t(7) /* RLIMIT_NOFILE */, &limit)
      let most = min(limit.rlim_max, 1 << 20)
      try withBench(.local) { bench in
        // The table has a page for each 512 of them.
        let result = try bench.server("prlimit", "--nofile=1024:\(most)", try host(), "ranges").wait(seconds: 30)
        print("at most \(most) descriptors: \(result.output)")
        #expect(result.status == 0, "\(result.output)\(result.errors)")
        // Scripts/descriptors is the same with a million.
        try agrees(bench, ["prlimit", "--nofile=1024:\(most)", try host(), "high"], engine: 800)
      }
    }

    private func resident(_ pid: Int32) throws -> Int {
      try String(contentsOfFile: "/proc/\(pid)/status", encoding: .utf8).number(after: #"VmRSS:\s+"#)
    }

    /// MACHNET_CYCLES=1000000 for the full number.
    @Test("sockets come and go, and neither the program nor the daemon grows (case 25)")
    func cycles() throws {
      let count = Int(ProcessInfo.processInfo.environment["MACHNET_CYCLES"] ?? "") ?? 20_000
      try withBench(.local) { bench in
        let daemon = try #require(bench.serverDaemon)
        let program = try host()
        // Once to warm up: the daemon's tables and the allocator's own reserves.
        #expect(try bench.server(program, "cycles", "2000").wait(seconds: 60).status == 0)
        let before = try resident(daemon.program.pid)
        let result = try bench.server(program, "cycles", "\(count)").wait(seconds: 60 + Double(count) / 1000)
        print(result.output)
        #expect(result.status == 0, "\(result.output)\(result.errors)")
        let grown = try resident(daemon.program.pid) - before
        #expect(grown < 4000, "the daemon has grown by \(grown) kB")
        #expect(try daemon.status(in: bench).local >= count / 16)
      }
    }

    /// Scripts/soak is the long form.
    @Test("a soak: each datagram once and in order while sockets in the receiver's epoll come, are modified and close (case 18)")
    func soak() throws {
      let seed = ProcessInfo.processInfo.environment["SEED"] ?? "\(UInt32.random(in: 1...UInt32.max))"
      try withBench(.local) { bench in
        let result = try bench.server(try compiledProgram("soak", ["-pthread"]), "200000", seed).wait(seconds: 90)
        #expect(result.status == 0 && result.output.hasSuffix("each once and in order\n"), "SEED=\(seed): \(result.output)\(result.errors)")
        try bench.expectOnEngine(atLeast: 200_000)
      }
    }

    @Test("a daemon that is itself started with the preload does not intercept itself (case 30)")
    func preloadedDaemon() throws {
      try withBench(.kernel) { bench in
        let socket = bench.directory.appending(path: "self.sock").path
        let config = try bench.write(
          "control: { socket: \"\(socket)\" }\nflows:\n  - { match: { remote: \"127.0.0.0/8\" }, path: machnet }\n", to: "self.yaml")
        let daemon = try bench.start(
          "machnetd", [product("machnetd"), "--config", config], environment: ["LD_PRELOAD": Self.shim, "MACHNET_SOCKET": socket])
        try waitUntil("the daemon", seconds: 30) {
          guard daemon.isRunning else { throw Failure(daemon.story) }
          return try bench.start("status", [product("machnet"), "status", "--socket", socket]).wait(seconds: 10).status == 0
        }
        let found = try bench.start(
          "host", [try host(), "echo", "200"], environment: ["LD_PRELOAD": Self.shim, "MACHNET_SOCKET": socket]).wait(seconds: 20)
        #expect(found.output == "ok 200\n")
        let status = try Status(
          json: bench.start("status", [product("machnet"), "status", "--socket", socket, "--json"]).wait(seconds: 10).output)
        #expect(status.local >= 400)
        #expect(!status.sockets.contains { $0.pid == daemon.pid })
        #expect(try daemon.stop().status == 0)
      }
    }

    @Test("the daemon is killed, then the program ends: atexit handlers and destructors still send (case 51)")
    func outliveDaemon() throws {
      for kill in [false, true] {
        try withBench(.local) { bench in
          let program = try bench.server(try host(), "outlive")
          try waitUntil("the program") {
            guard program.isRunning else { throw Failure(program.story) }
            return program.output == "ready\n"
          }
          if kill {
            let daemon = try #require(bench.serverDaemon)
            daemon.program.send(SIGKILL)
            try daemon.program.wait(seconds: 10)
          }
          program.type("")
          let result = try program.wait(seconds: 10)
          #expect(result.status == 0 && result.output == "ready\nand the end\n" && result.errors == "", "\(result.errors)")
        }
      }
    }

    @Test("a daemon that is only slow loses nothing: each datagram once and in order, across stalls longer than a question waits")
    func slowDaemon() throws {
      let seed = ProcessInfo.processInfo.environment["SEED"] ?? "\(UInt32.random(in: 1...UInt32.max))"
      try withBench(.local) { bench in
        let daemon = try #require(bench.serverDaemon)
        // Its sockets come and go, so that some question meets each stall.
        let program = try bench.server(
          [try compiledProgram("soak", ["-pthread"]), "1000000000", seed], environment: ["MACHNET_LOG": "info"])
        func carried() throws -> Int {
          try daemon.status(in: bench).sockets.filter { $0.pid == program.pid }.map(\.engine.rx.datagrams).max() ?? 0
        }
        func count(_ line: String) -> Int { program.errors.components(separatedBy: line).count - 1 }
        for stall in 1...3 {
          let before = try carried()
          try waitUntil("traffic, SEED=\(seed)") { try carried() > before + 1000 }
          daemon.program.send(SIGSTOP)
          defer { daemon.program.send(SIGCONT) }
          try waitUntil("stall \(stall), SEED=\(seed)", seconds: 20) { count("the daemon is slow") >= stall || !program.isRunning }
          daemon.program.send(SIGCONT)
          try waitUntil("the return, SEED=\(seed)", seconds: 20) { count("the daemon is back") >= stall || !program.isRunning }
        }
        let before = try carried()
        try waitUntil("traffic on the engine, SEED=\(seed)", seconds: 20) { try carried() > before + 1000 || !program.isRunning }
        #expect(program.isRunning, "SEED=\(seed): \(program.story)")
        #expect(count("the daemon has gone") == 0)
        program.send(SIGKILL)
        try program.wait(seconds: 10)
      }
    }

    @Test("a daemon that does not answer for five seconds is left, and its sockets come back when it does")
    func stalledDaemon() throws {
      try withBench(.local) { bench in
        let daemon = try #require(bench.serverDaemon)
        // One socket stays, and others ask the daemon for endpoints all the time.
        let program = try bench.server([try host(), "cycles", "100000000"], environment: ["MACHNET_LOG": "info"])
        func carried() throws -> Int {
          try daemon.status(in: bench).sockets.filter { $0.pid == program.pid }.map(\.engine.rx.datagrams).max() ?? 0
        }
        try waitUntil("traffic") { try carried() > 50 }
        defer { daemon.program.send(SIGCONT) }
        var isLost: Bool { program.errors.contains("the daemon has gone") }
        // Where the daemon stops with a datagram that the program waits for, nobody asks it for anything: then once more.
        for _ in 0..<10 where !isLost {
          let before = try carried()
          daemon.program.send(SIGSTOP)
          try? waitUntil("the loss", seconds: 8) { isLost }
          daemon.program.send(SIGCONT)
          if !isLost { try waitUntil("traffic again") { try carried() > before } }
        }
        try #require(isLost)
        try waitUntil("the return", seconds: 20) { program.errors.contains("the daemon is back") }
        try waitUntil("traffic on the engine", seconds: 20) { try carried() > 50 }
        #expect(program.isRunning)
        program.send(SIGKILL)
        try program.wait(seconds: 10)
      }
    }

    @Test("libc's code is never changed: the shim makes no memory executable and protects nothing of it (case 21)")
    func noCodeChanged() throws {
      try withBench(.local) { bench in
        func calls(_ preload: Bool) throws -> [Substring] {
          let trace = bench.directory.appending(path: "trace").path
          let environment = preload ? ["LD_PRELOAD": Self.shim, "MACHNET_SOCKET": try #require(bench.serverDaemon).socket.path] : [:]
          // The variables for the traced program alone.
          let set = environment.map { "--env=\($0.key)=\($0.value)" }
          let result = try bench.start("strace", ["strace", "-f", "-o", trace, "-e", "trace=mprotect,mmap,pkey_mprotect"] + set + [try host(), "echo", "10"])
            .wait(seconds: 30)
          #expect(result.status == 0 && result.output == "ok 10\n", "\(result.errors)")
          return try String(contentsOfFile: trace, encoding: .utf8).split(separator: "\n").filter { $0.contains("PROT_EXEC") || $0.contains("mprotect") }
        }
        let without = try calls(false), with = try calls(true)
        // Beside what the loader does for one more library: its code mapped, its relocated page made read-only.
        func executable(_ lines: [Substring]) -> Int { lines.count { $0.contains("PROT_EXEC") } }
        func protected(_ lines: [Substring]) -> Int { lines.count { $0.contains("mprotect(") && !$0.contains("PROT_READ|PROT_WRITE") } }
        #expect(!without.isEmpty)
        #expect(!with.contains { $0.contains("PROT_EXEC") && $0.contains("PROT_WRITE") })
        #expect(!with.contains { $0.contains("mprotect(") && $0.contains("PROT_EXEC") })
        #expect(executable(with) == executable(without) + 1)
        #expect(protected(with) <= protected(without) + 1)
      }
    }

    @Test("nginx passes UDP on while it is told to reload, again and again (case 24)")
    func nginxReload() throws {
      let module = "/usr/lib/nginx/modules/ngx_stream_module.so"
      try #require(Self.exists(module), "nginx's stream module is missing: run Scripts/setup")
      try withBench(.local) { bench in
        let front = Bench.freshPort(), back = Bench.freshPort()
        let server = try bench.server(Self.python, testProgram("blocking_echo.py"), "server", bench.address, "\(back)")
        try server.waitBound(back)
        let path = bench.directory.path
        let config = try bench.write(
          """
          load_module \(module);
          \(isRoot ? "user root;" : "")
          worker_processes 2;
          daemon off;
          pid \(path)/nginx.pid;
          error_log \(path)/nginx.log info;
          events { worker_connections 512; }
          stream {
            server {
              listen \(bench.address):\(front) udp reuseport;
              proxy_pass \(bench.address):\(back);
              proxy_responses 1;
              proxy_timeout 2s;
            }
          }

          """, to: "nginx.conf")
        let nginx = try bench.server("nginx", "-p", path, "-c", config)
        try nginx.waitBound(front)
        let sender = try bench.client(Self.python, "-c", Self.patientClient, bench.address, "\(front)")
        func reloads() throws -> Int {
          try String(contentsOfFile: "\(path)/nginx.log", encoding: .utf8).components(separatedBy: ": reconfiguring").count - 1
        }
        func answers() -> Int { sender.output.split(separator: "\n").count }
        for round in 1...8 {
          let before = answers()
          try waitUntil("answers before reload \(round)", seconds: 20) {
            guard nginx.isRunning, sender.isRunning else { throw Failure(nginx.story + sender.story) }
            return answers() > before + 20
          }
          nginx.send(SIGHUP)
          try waitUntil("reload \(round)") { try reloads() == round }
        }
        let last = answers()
        try waitUntil("answers after the last reload", seconds: 20) { answers() > last + 100 }
        let log = try String(contentsOfFile: "\(path)/nginx.log", encoding: .utf8)
        #expect(!log.contains("exited on signal") && !log.contains("[alert]") && !log.contains("[crit]"), "\(log)")
        #expect(try #require(bench.serverDaemon).program.isRunning && server.isRunning)
        try bench.expectOnEngine(atLeast: 100)
        #expect(try nginx.stop(SIGTERM).status == 0)
      }
    }

    /// Asks again when no answer comes: a worker that leaves takes what it holds along, on any kernel.
    static let patientClient = """
      import socket, sys
      s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
      s.settimeout(0.2)
      n = 0
      while True:
          s.sendto(b"%d" % n, (sys.argv[1], int(sys.argv[2])))
          try:
              if s.recv(100) == b"%d" % n:
                  print(n, flush=True)
                  n += 1
          except TimeoutError: pass
          except ConnectionRefusedError: pass
      """

    @Test("asyncio on uvloop", .enabled(if: hasUvloop, "no uvloop: Debian's python3-uvloop has it"))
    func uvloop() throws {
      try withBench(.local) { bench in
        let port = Bench.freshPort()
        let start = "import uvloop, runpy, sys; uvloop.install(); sys.argv = sys.argv[1:]; sys.path.append('\(testProgram(""))'); runpy.run_path(sys.argv[0], run_name='__main__')"
        let words = [Self.python, "-c", start, testProgram("asyncio_echo.py")]
        let server = try bench.server(words + ["server", bench.address, "\(port)"])
        try server.waitBound(port)
        let result = try bench.client(words + ["client", bench.address, "\(port)", "300", "1,64,1472,9000"]).wait(seconds: 40)
        #expect(result.output == "ok 300\n", "\(result.errors)\(server.errors)")
        try bench.expectOnEngine(atLeast: 600, openSockets: "python3")
      }
    }
    static let hasUvloop = (try? withBench(.kernel) { try $0.command([python, "-c", "import uvloop"]) }) != nil

    @Test("a Swift program: no symbol of ours meets its runtime's")
    func swift() throws {
      try withBench(.local) { bench in
        let source = try bench.write(Self.swiftEcho, to: "echo.swift")
        let program = bench.directory.appending(path: "swift-echo").path
        try bench.command(["swiftc", "-O", source, "-o", program], seconds: 120)
        try agrees(bench, [program], engine: 400)
      }
    }
    static let swiftEcho = """
      import Foundation
      func bound() -> (Int32, sockaddr_in) {
        let fd = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
        var name = sockaddr_in()
        name.sin_family = sa_family_t(AF_INET)
        name.sin_addr.s_addr = in_addr_t(0x7f00_0001).bigEndian
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        withUnsafeMutablePointer(to: &name) {
          $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { _ = bind(fd, $0, size); _ = getsockname(fd, $0, &size) }
        }
        return (fd, name)
      }
      func send(_ text: String, _ from: Int32, _ to: sockaddr_in) {
        var to = to
        withUnsafePointer(to: &to) {
          $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { _ = sendto(from, text, text.utf8.count, 0, $0, 16) }
        }
      }
      let a = bound(), b = bound()
      var heard: [String] = []
      let thread = Thread {
        for _ in 0..<200 {
          var buffer = [UInt8](repeating: 0, count: 100)
          let n = recv(b.0, &buffer, 100, 0)
          send(String(decoding: buffer[..<n], as: UTF8.self), b.0, a.1)
        }
      }
      thread.start()
      for i in 0..<200 {
        send("number \\(i)", a.0, b.1)
        var buffer = [UInt8](repeating: 0, count: 100)
        let n = recv(a.0, &buffer, 100, 0)
        heard.append(String(decoding: buffer[..<n], as: UTF8.self))
      }
      print(heard == (0..<200).map { "number \\($0)" } ? "ok" : "wrong")
      """

    @Test("a Rust program", .enabled(if: inPath("rustc"), "no rustc in PATH"))
    func rust() throws {
      try withBench(.local) { bench in
        let source = try bench.write(
          """
          use std::net::UdpSocket;
          fn main() -> std::io::Result<()> {
              let a = UdpSocket::bind("127.0.0.1:0")?;
              let b = UdpSocket::bind("127.0.0.1:0")?;
              let to = b.local_addr()?;
              let answers = std::thread::spawn(move || -> std::io::Result<()> {
                  let mut buffer = [0u8; 100];
                  for _ in 0..200 {
                      let (n, from) = b.recv_from(&mut buffer)?;
                      b.send_to(&buffer[..n], from)?;
                  }
                  Ok(())
              });
              let mut buffer = [0u8; 100];
              for i in 0..200 {
                  let text = format!("number {i}");
                  a.send_to(text.as_bytes(), to)?;
                  let n = a.recv(&mut buffer)?;
                  assert_eq!(&buffer[..n], text.as_bytes());
              }
              answers.join().unwrap()?;
              println!("ok");
              Ok(())
          }

          """, to: "echo.rs")
        let program = bench.directory.appending(path: "rust-echo").path
        try bench.command(["rustc", "-O", source, "-o", program], seconds: 120)
        try agrees(bench, [program], engine: 400)
      }
    }

    @Test("a Go program makes no libc calls: it runs on the kernel, and machnet inspect says so (case 17)", .enabled(if: inPath("go"), "no go in PATH"))
    func go() throws {
      try withBench(.local) { bench in
        let source = try bench.write("package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(\"ok\") }\n", to: "main.go")
        let program = bench.directory.appending(path: "go-program").path
        try bench.command(["env", "HOME=\(bench.directory.path)", "GOFLAGS=-mod=mod", "go", "build", "-o", program, source], seconds: 180)
        try agrees(bench, [program], engine: nil)
        let inspected = try bench.start("inspect", [product("machnet"), "inspect", program]).wait(seconds: 20)
        #expect(inspected.status == 1 && inspected.output.contains("Go"), "\(inspected.output)")
      }
    }
  }
}
