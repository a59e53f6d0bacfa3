import Foundation
import Testing

/// What the documents tell people to type.
extension OneAtATime {
  @Suite(.serialized, .enabled(if: Topology.available.contains(.local))) struct Documents {
    static let python = "/usr/bin/python3"

    /// How a command of README is tried. Each line of a `sh` block belongs to one of these by its beginning, and each of
    /// these to a line.
    enum Trial {
      /// Goes on until the test ends; ready when the daemon answers, a UDP port is bound, or a file is there.
      case daemon, server(port: Int), makes(file: String)
      /// Ends by itself with one of these.
      case ends([Int32])
      /// Fills a terminal until `q`.
      case fills(sees: String)
      /// Goes on while others talk, until the program of that name is interrupted; then has printed something.
      case watches(interrupt: String, prints: String)
      /// With these words behind it, ends so and says so.
      case with(String, status: Int32, says: String)
      /// Not here.
      case elsewhere(String)
    }

    static let trials: [(beginning: String, trial: Trial)] = [
      ("Scripts/demo", .elsewhere("sets up and builds what these tests run on, then runs Scripts/ab")),
      ("Scripts/install", .elsewhere("its own test installs what is built")),
      ("machnetd --config machnet.yaml", .daemon),
      ("machnet run --config machnet.yaml -- memcached", .server(port: 11211)),
      ("machnet run --config machnet.yaml -- some-client", .ends([0])),
      ("machnet status", .ends([0])),
      ("machnet run --strict --profile latency -- some-client", .ends([0])),
      ("machnet run --profile shared-core -- some-client", .ends([0])),
      ("machnet top", .fills(sees: "memcached")),
      ("machnet capture --port 11211", .watches(interrupt: "machnet", prints: ".11211: UDP, length ")),
      ("machnet explain --config", .ends([0])),
      ("machnet explain --pid", .ends([0])),
      ("machnet inspect memcached", .ends([0])),
      ("machnet-fabric", .makes(file: "a.sock")),
      // Every option is understood, and the last one refused.
      ("Scripts/ab --workload all", .with("--rounds 0", status: 2, says: "--rounds, --seconds and --points are at least 1")),
      ("Scripts/ab --workload sockperf-pp --topology pair", .with("--rounds 0", status: 2, says: "--rounds, --seconds and --points are at least 1")),
      ("Scripts/ab --workload sockperf-pp --topology hosts", .with("--rounds 0", status: 2, says: "--rounds, --seconds and --points are at least 1")),
      ("Scripts/ab --server 'my-server", .with("--rounds 1 --seconds 1", status: 0, says: "\"workload\"")),
    ]

    /// The lines of all `sh` blocks, continued ones joined.
    static func commands(_ text: String) -> [String] {
      var commands: [String] = []
      var isInside = false
      var isContinued = false
      for line in text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init) {
        if line.hasPrefix("```") {
          isInside = line == "```sh"
          continue
        }
        guard isInside, !line.trimmingCharacters(in: .whitespaces).isEmpty, !line.hasPrefix("#") else { continue }
        let continues = line.hasSuffix("\\")
        let part = continues ? String(line.dropLast()) : line
        if isContinued { commands[commands.count - 1] += part } else { commands.append(part) }
        isContinued = continues
      }
      return commands
    }

    private static func withoutComment(_ command: String) -> String {
      command.firstRange(of: "  #").map { String(command[..<$0.lowerBound]) } ?? command
    }

    private static func trial(of command: String) -> Int? {
      trials.indices.filter { command.hasPrefix(trials[$0].beginning) }.max { trials[$0].beginning.count < trials[$1].beginning.count }
    }

    @Test("every command in README is tried, or it is said where")
    func allAreKnown() throws {
      let commands = try Self.commands(String(contentsOf: repository.appending(path: "README.md"), encoding: .utf8))
      #expect(commands.count >= Self.trials.count)
      for command in commands { #expect(Self.trial(of: command) != nil, "what is to be done with: \(command)") }
      for (index, trial) in Self.trials.enumerated() {
        #expect(commands.contains { Self.trial(of: $0) == index }, "README has no such command any more: \(trial.beginning)")
      }
    }

    @Test("the commands in README work", .timeLimit(.minutes(3)))
    func commandsWork() throws {
      try withBench(.kernel) { bench in
        let directory = bench.directory.path
        // The paths of an installation are this bench's.
        let text = try String(contentsOf: repository.appending(path: "README.md"), encoding: .utf8)
          .replacing("/run/machnet", with: directory).replacing("/tmp/report", with: "\(directory)/report")
        let yaml = try #require(text.split(separator: "```yaml\n").dropFirst().first?.split(separator: "```").first)
        _ = try bench.write(String(yaml), to: "machnet.yaml")

        func executable(_ name: String, _ lines: String) throws {
          let path = try bench.write(lines, to: "bin/\(name)")
          try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: path)
        }
        try FileManager.default.createDirectory(atPath: "\(directory)/bin", withIntermediateDirectories: true)
        // Root has to say as whom it serves; and other tests' memcached are none of our business.
        try executable("memcached", "#!/bin/sh\nexec /usr/bin/memcached \(getuid() == 0 ? "-u nobody" : "") \"$@\"\n")
        try executable("pidof", "#!/bin/sh\ncat '\(directory)/pid'\n")
        // memcached's UDP header: request number, sequence number, datagrams, reserved.
        try executable(
          "some-client",
          """
          #!/usr/bin/python3
          import socket, sys
          s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
          s.settimeout(10)
          s.sendto(b"\\0\\1\\0\\0\\0\\1\\0\\0version\\r\\n", (sys.argv[1], int(sys.argv[2])))
          assert b"VERSION" in s.recv(1500)

          """)
        // A binary: the comparison looks its sockets up by the program's name.
        let source = try bench.write(
          """
          #include <arpa/inet.h>
          #include <stdlib.h>
          int main(int count, char **words) {
            struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(words[2])), .sin_addr.s_addr = inet_addr(words[1])};
            char data[2048];
            int s = socket(AF_INET, SOCK_DGRAM, 0);
            if (count != 3 || bind(s, (void *)&a, sizeof a)) return 1;
            for (;;) {
              socklen_t n = sizeof a;
              ssize_t got = recvfrom(s, data, sizeof data, 0, (void *)&a, &n);
              if (got < 0 || sendto(s, data, got, 0, (void *)&a, n) < 0) return 2;
            }
          }
          """, to: "my-server.c")
        let compiled = try bench.start("cc", ["cc", "-o", "\(directory)/bin/my-server", source]).wait(seconds: 60)
        #expect(compiled.status == 0, "\(compiled.errors)")
        try executable(
          "my-client", "#!/bin/sh\n\(Self.python) '\(testProgram("blocking_echo.py"))' client \"$@\" 2000 64 && echo rate=2000\n")
        let environment = [
          "PATH": "\(directory)/bin:\(product("machnet").dropLast("/machnet".count)):\(ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin")",
          "MACHNET_SOCKET": "\(directory)/machnetd.sock",
        ]
        func start(_ command: String) throws -> Program {
          let line = command.hasSuffix("&") ? String(command.dropLast()) : command
          return try bench.start(
            "readme", ["bash", "-c", line.hasPrefix("Scripts/") ? "cd '\(repository.path)' && \(line)" : line], environment: environment)
        }
        func expectEnd(_ command: String, _ statuses: [Int32], says: String = "") throws {
          let result = try start(command).wait(seconds: 60)
          #expect(statuses.contains(result.status), "\(command): \(result.status)\n\(result.errors)")
          #expect(says.isEmpty || (result.output + result.errors).contains(says), "\(command): \(result.output)\(result.errors)")
        }
        func ask() throws { try expectEnd("machnet run --config machnet.yaml -- some-client 127.0.0.1 11211", [0]) }

        var daemon: Program?
        for command in Self.commands(text) {
          guard let index = Self.trial(of: command) else { continue }
          switch Self.trials[index].trial {
          case .daemon:
            let program = try start(command)
            daemon = program
            try waitUntil("the daemon", seconds: 20) { program.errors.contains("machnetd ready") }
          case .server(let port):
            let program = try start(command)
            try program.waitBound(port)
            _ = try bench.write("\(program.pid)\n", to: "pid")
          case .makes(let file):
            let program = try start(command)
            try waitUntil(file, seconds: 20) {
              guard program.isRunning else { throw Failure(program.story) }
              return FileManager.default.fileExists(atPath: "\(directory)/\(file)")
            }
          case .ends(let statuses):
            try expectEnd(command, statuses)
          case .with(let words, let status, let says):
            try expectEnd(Self.withoutComment(command) + " " + words, [status], says: says)
          case .fills(let text):
            let terminal = try bench.start(
              "terminal", [Self.python, testProgram("in_a_terminal.py"), "bash", "-c", Self.withoutComment(command)], environment: environment)
            terminal.type("see \(text)")
            terminal.type("key q")
            terminal.type("end")
            #expect(try terminal.wait(seconds: 30).output == "seen\nended 0\n", "\(terminal.story)")
          case .watches(let name, let prints):
            let program = try start(command)
            try waitUntil("the capture", seconds: 20) { daemon?.errors.contains("captures traffic") ?? false }
            try ask()
            let children = try String(contentsOfFile: "/proc/\(program.pid)/task/\(program.pid)/children", encoding: .utf8)
            for child in children.split(separator: " ").compactMap({ Int32($0) }) {
              let comm = try? String(contentsOfFile: "/proc/\(child)/comm", encoding: .utf8)
              if comm == "\(name)\n" { kill(child, SIGINT) }
            }
            let result = try program.wait(seconds: 20)
            #expect(result.status == 0 && result.output.contains(prints), "\(result.output)\(result.errors)")
          case .elsewhere:
            break
          }
        }
        #expect(daemon?.isRunning == true)
      }
    }

    @Test("what is installed runs from where it is")
    func installation() throws {
      try withBench(.kernel) { bench in
        let prefix = "\(bench.directory.path)/usr"
        let script = repository.appending(path: "Scripts/install").path
        let binaries = String(product("machnet").dropLast("/machnet".count))
        let done = try bench.start("install", [script, "--prefix", prefix, "--binaries", binaries]).wait(seconds: 60)
        #expect(done.status == 0, "\(done.errors)")
        // What is tested here is linked to the toolchain's libraries, and it is seen. (Of its own build the script takes no such thing.)
        #expect(done.output.contains("need Swift's libraries on the host:") && done.output.contains("libswiftCore.so"), "\(done.output)")
        // Again, over itself; and a wrong place is refused.
        #expect(try bench.start("install", [script, "--prefix=\(prefix)", "--binaries=\(binaries)"]).wait(seconds: 60).status == 0)
        #expect(try bench.start("install", [script, "--prefix", "relative"]).wait(seconds: 60).status == 2)

        let dry = try bench.start("dry", ["\(prefix)/bin/machnet", "run", "--dry-run", "--", "true"]).wait(seconds: 10)
        #expect(dry.output == "env LD_PRELOAD=\(prefix)/lib/libmachnet-preload.so true\n", "\(dry.errors)")
        let check = try bench.start(
          "check", ["\(prefix)/bin/machnetd", "--check", "--config", "\(prefix)/etc/machnet/machnetd.yaml"]).wait(seconds: 10)
        #expect(check.status == 0 && check.output.contains("OK"), "\(check.errors)")
        let unit = try String(contentsOfFile: "\(prefix)/lib/systemd/system/machnetd.service", encoding: .utf8)
        #expect(unit.contains("ExecStart=\(prefix)/bin/machnetd --config \(prefix)/etc/machnet/machnetd.yaml\n") && !unit.contains("@"+"PREFIX"))

        if FileManager.default.isExecutableFile(atPath: "/usr/bin/systemd-analyze") {
          let verified = try bench.start(
            "verify", ["systemd-analyze", "verify", "--man=no", "\(prefix)/lib/systemd/system/machnetd.service"]).wait(seconds: 20)
          #expect(verified.status == 0, "\(verified.output)\(verified.errors)")
        }

        // For a package: the same below another root, which no file names.
        let staged = "\(bench.directory.path)/staged"
        let package = try bench.start("package", [script, "--prefix", "/usr", "--binaries", binaries], environment: ["DESTDIR": staged]).wait(seconds: 60)
        #expect(package.status == 0, "\(package.errors)")
        #expect(FileManager.default.fileExists(atPath: "\(staged)/etc/machnet/machnetd.yaml"))
        let packaged = try String(contentsOfFile: "\(staged)/usr/lib/systemd/system/machnetd.service", encoding: .utf8)
        #expect(packaged.contains("ExecStart=/usr/bin/machnetd --config /etc/machnet/machnetd.yaml\n") && !packaged.contains(staged))

        #expect(try bench.start("help", ["\(prefix)/bin/machnet", "run", "--help"]).wait(seconds: 10).output.contains("USAGE: machnet run"))
        // A page for each command, in roff that groff has nothing to say about.
        let help = try bench.start("help", ["\(prefix)/bin/machnet", "--help"]).wait(seconds: 10).output
        let subcommands = help.split(separator: "SUBCOMMANDS:\n")[1].split(separator: "\n")
          .compactMap { $0.wholeMatch(of: #/  ([a-z]+) .*/#)?.1 }
        #expect(subcommands.count >= 7)
        for page in ["man8/machnetd.8", "man1/machnet.1", "man1/machnet-fabric.1"] + subcommands.map({ "man1/machnet-\($0).1" }) {
          let rendered = try bench.start("groff", ["groff", "-man", "-Tascii", "-P-cbou", "-ww", "\(prefix)/share/man/\(page)"]).wait(seconds: 10)
          #expect(rendered.status == 0 && rendered.errors == "" && ["SYNOPSIS", "EXIT STATUS"].allSatisfy(rendered.output.contains), "\(page): \(rendered.errors)")
        }

        let keys = try bench.start("groff", ["groff", "-man", "-Tascii", "-P-cbou", "-ww", "\(prefix)/share/man/man5/machnetd.yaml.5"]).wait(seconds: 10)
        #expect(keys.status == 0 && keys.errors == "" && keys.output.contains("max-channels-per-process: 64"), "\(keys.errors)")

        // The daemon needs no right at all for local flows.
        guard getuid() == 0 else { return }
        let home = bench.directory.appending(path: "nobody").path
        try FileManager.default.createDirectory(atPath: home, withIntermediateDirectories: true)
        try FileManager.default.setAttributes([.ownerAccountID: 65534], ofItemAtPath: home)
        let config = try bench.write("control: { socket: \(home)/s, mode: \"0666\" }\nflows: [{ match: {}, path: machnet }]\n", to: "nobody.yaml")
        let daemon = try bench.start(
          "daemon",
          [
            "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
            "\(prefix)/bin/machnetd", "--config", config,
          ])
        try waitUntil("the daemon", seconds: 20) {
          guard daemon.isRunning else { throw Failure(daemon.story) }
          return daemon.errors.contains("machnetd ready")
        }
        let strict = try bench.start("strict", ["\(prefix)/bin/machnet", "run", "--strict", "--config", config, "--", "true"]).wait(seconds: 10)
        #expect(strict.status == 0, "\(strict.errors)")
      }
    }
  }
}
