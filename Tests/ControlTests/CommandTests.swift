import Foundation
import Testing

@testable import MachnetControl

/// The programs, as they were built beside these tests.
private let products = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent()

/// A program that runs, and what it says.
private final class Command {
  let process = Process()
  private let out: URL
  private let err: URL

  init(_ arguments: [String], environment: [String: String] = [:]) throws {
    let name = "\(scratch)/\(UUID().uuidString.prefix(8))"
    out = URL(filePath: name + ".out")
    err = URL(filePath: name + ".err")
    for file in [out, err] { try Data().write(to: file) }
    let program = arguments[0].hasPrefix("/") ? URL(filePath: arguments[0]) : products.appending(path: arguments[0])
    process.executableURL = program
    process.arguments = Array(arguments.dropFirst())
    process.environment = ProcessInfo.processInfo.environment
      .filter { !$0.key.hasPrefix("MACHNET_") && $0.key != "LD_PRELOAD" }
      .merging(environment) { $1 }
    process.standardOutput = try FileHandle(forWritingTo: out)
    process.standardError = try FileHandle(forWritingTo: err)
    process.standardInput = FileHandle.nullDevice
    // A child inherits the mask of the thread that spawns it, and pool threads block most signals.
    var none = sigset_t(), mine = sigset_t()
    unsafe sigemptyset(&none)
    unsafe pthread_sigmask(SIG_SETMASK, &none, &mine)
    defer { unsafe pthread_sigmask(SIG_SETMASK, &mine, nil) }
    try process.run()
  }

  deinit { if process.isRunning { kill(process.processIdentifier, SIGKILL) } }

  var output: String { (try? String(contentsOf: out, encoding: .utf8)) ?? "" }
  var errors: String { (try? String(contentsOf: err, encoding: .utf8)) ?? "" }

  func finish() -> Int32 {
    process.waitUntilExit()
    return process.terminationStatus
  }

  /// Until standard error contains a text; false when the program has ended or 20 seconds are over.
  func says(_ text: String) -> Bool {
    let limit = Date(timeIntervalSinceNow: 20)
    while !errors.contains(text) {
      if !process.isRunning || Date() > limit { return errors.contains(text) }
      sched_yield()
    }
    return true
  }
}

private func run(_ arguments: [String], environment: [String: String] = [:]) throws -> (Int32, String, String) {
  let command = try Command(arguments, environment: environment)
  let status = command.finish()
  return (status, command.output, command.errors)
}

private func write(_ text: String, to name: String) throws -> String {
  let path = "\(scratch)/\(name)"
  try text.write(toFile: path, atomically: true, encoding: .utf8)
  return path
}

@Suite(.serialized) struct CommandTests {
  @Test func checkSaysWhetherAConfigIsRight() throws {
    let right = try write("flows: [{ match: {}, path: machnet }]\n", to: "right.yaml")
    #expect(try run(["machnetd", "--config", right, "--check"]) == (0, "\(right): OK: 0 interfaces, 1 engine, 1 flow rule\n", ""))
    // Another large message in the making is 8 MiB more, of each queue; another parking a MiB, of each engine.
    func sessions(_ limits: String) throws -> Int {
      let file = try write(
        """
        interfaces: [{ name: net0, address: 10.9.0.1/24, queues: 2, device: { vdev: net_null0 } }]
        engine: { cpus: [0, 1] }
        transport: { \(limits) }
        flows: []

        """, to: "limits.yaml")
      let (status, output, errors) = try run(["machnetd", "--config", file, "--check"])
      #expect(status == 0 && errors.isEmpty, "\(errors)")
      let words = output.split(separator: " ")
      #expect(words.suffix(5).dropLast(2) == ["in", "at", "most"] && words.last == "MiB\n", "\(output)")
      return Int(words.suffix(2).first ?? "") ?? 0
    }
    let usual = try sessions("")
    #expect((180...215).contains(usual), "\(usual)")
    #expect(try sessions("large-assemblies: 14") == usual + 2 * 80)
    #expect(try sessions("large-assemblies: 0") == usual - 2 * 32)
    #expect(try sessions("parkings: 116") == usual + 2 * 100)
    #expect(try sessions("assemblies: 512") == usual + 2 * 16)
    let wrong = try write("flows: [{ match: {}, path: up }]\nwaiting: { spin-us: x }\n", to: "wrong.yaml")
    #expect(
      try run(["machnetd", "--config", wrong, "--check"]) == (
        1, "",
        """
        \(wrong):1:28: error: expected kernel or machnet, found 'up'
        \(wrong):2:21: error: expected a number of microseconds from 0 to 1000000, found 'x'

        """
      ))
    let (status, _, errors) = try run(["machnetd", "--config", "/nowhere", "--check"])
    #expect(status == 1 && errors.hasPrefix("/nowhere: error: expected a readable config file"))
    for program in ["machnet", "machnetd", "machnet-fabric"] { #expect(try run([program, "--version"]) == (0, machnetVersion + "\n", "")) }
  }

  @Test func aDaemonFromItsStartToItsEnd() throws {
    let socket = "\(scratch)/life.sock"
    func config(_ path: String) -> String {
      "control: { socket: \(socket), mode: \"0666\", operators: games }\nflows: [{ match: {}, path: \(path) }]\n"
    }
    let file = try write(config("machnet"), to: "life.yaml")
    let daemon = try Command(["machnetd", "--config", file])
    #expect(daemon.says("machnetd ready"))

    let (status, text, _) = try run(["machnet", "status", "--config", file, "--json"])
    #expect(status == 0)
    #expect(try StatusReport(json: text).daemon.pid == Int(daemon.process.processIdentifier))
    let object = try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
    #expect(Set(object.keys) == ["daemon", "engines", "interfaces", "processes", "sockets", "unclaimed"])
    let engine = try #require((object["engines"] as? [[String: Any]])?.first)
    #expect(engine["local_datagrams"] is Int && engine["rx_packets"] is Int)
    #expect(try run(["machnet", "status", "--socket", socket]).1.contains("SOCKETS: none"))
    if geteuid() == 0 {
      let asNobody = ["/usr/bin/setpriv", "--reuid=65534", "--clear-groups", products.appending(path: "machnet").path]
      unsafe chmod(scratch, 0o755)
      #expect(try run(asNobody + ["status", "--socket", socket]).0 == 0)
      let (status, _, errors) = try run(asNobody + ["reload", "--socket", socket])
      #expect(
        status == 1
          && errors
            == "machnet: only root, the daemon's own user and the group that control.operators names may reload it: sudo machnet reload\n")
      var asOperator = asNobody
      asOperator.replaceSubrange(2..<3, with: ["--groups=60,65534"])
      #expect(try run(asOperator + ["reload", "--socket", socket]) == (0, "", ""))
      #expect(try run(asOperator + ["capture", "--socket", socket, "--seconds", "0.1", "--write", "/dev/null"]).0 == 0)
    }

    let second = try run(["machnetd", "--config", file])
    #expect(second.0 == 1 && second.2.contains("cannot serve \(socket), because another machnetd does"))

    _ = try write(config("nonsense"), to: "life.yaml")
    let (refused, _, errors) = try run(["machnet", "reload", "--socket", socket])
    #expect(refused == 1 && errors.hasPrefix("\(file):2:28: error: expected kernel or machnet, found 'nonsense'\n"))
    _ = try write(config("machnet") + "waiting: { spin-us: 7 }\n", to: "life.yaml")
    let (half, silence, note) = try run(["machnet", "reload", "--socket", socket])
    #expect(half == 0 && silence == "" && note == "machnet: only flows are reloaded; restart machnetd for changes in other sections\n")
    _ = try write(config("kernel"), to: "life.yaml")
    kill(daemon.process.processIdentifier, SIGHUP)
    #expect(daemon.says("flow rules in force: 1"))

    kill(daemon.process.processIdentifier, SIGTERM)
    #expect(daemon.finish() == 0)
    #expect(!FileManager.default.fileExists(atPath: socket))
    let (gone, _, advice) = try run(["machnet", "status", "--socket", socket])
    #expect(gone == 1 && advice.contains("is machnetd running?"))
  }

  @Test func aDaemonThatIsKilledIsReplaced() throws {
    let socket = "\(scratch)/killed.sock"
    let file = try write("control: { socket: \(socket) }\n", to: "killed.yaml")
    let first = try Command(["machnetd", "--config", file])
    #expect(first.says("machnetd ready"))
    kill(first.process.processIdentifier, SIGKILL)
    _ = first.finish()
    let second = try Command(["machnetd", "--config", file])
    #expect(second.says("machnetd ready"))
    kill(second.process.processIdentifier, SIGINT)
    #expect(second.finish() == 0)
  }

  @Test func runKeepsThePreloadsThatAreThereAndSanitizersFirst() throws {
    let library = products.appending(path: "libmachnet-preload.so").path
    func preload(_ existing: String?) throws -> String {
      let environment = existing.map { ["LD_PRELOAD": $0] } ?? [:]
      let (status, output, _) = try run(
        ["machnet", "run", "--socket", "/nowhere", "--", "/bin/sh", "-c", "echo $LD_PRELOAD $MACHNET_SOCKET"],
        environment: environment)
      #expect(status == 0)
      return output
    }
    #expect(try preload(nil) == "\(library) /nowhere\n")
    // The loader passes over what is not there.
    #expect(
      try preload("/no/a.so:/no/libasan.so.8 /no/b.so") == "/no/libasan.so.8:/no/a.so:/no/b.so:\(library) /nowhere\n")
    #expect(try preload("\(library):/no/a.so") == "/no/a.so:\(library) /nowhere\n")
    #expect(try preload(":/no/a.so:") == "/no/a.so:\(library) /nowhere\n")
  }

  @Test func runEndsAsTheProgramOrAsAShellWould() throws {
    func status(_ command: String...) throws -> Int32 { try run(["machnet", "run", "--"] + command).0 }
    #expect(try status("/bin/sh", "-c", "exit 7") == 7)
    #expect(try status("/bin/sh", "-c", "test \"$1\" = --config", "sh", "--config") == 0)
    #expect(try status("no-such-program-anywhere") == 127)
    #expect(try status("/etc/passwd") == 126)
    let script = try write("#!/no/such/interpreter\n", to: "no-interpreter")
    unsafe chmod(script, 0o755)
    let (bad, _, why) = try run(["machnet", "run", "--", script])
    #expect(bad == 126 && why.contains("its interpreter is not there"), "\(why)")
    // What is wrong with the command line is said of this command, and no option of ours is taken for a program.
    for (words, problem) in [([], "expected -- PROGRAM"), (["--strct", "--", "true"], "there is no option '--strct'"), (["--profile", "x", "--", "true"], "there is no profile 'x'")] {
      let (status, _, errors) = try run(["machnet", "run"] + words)
      #expect(status == 64 && errors.contains(problem) && errors.contains("Usage: machnet run "), "\(errors)")
    }
    let (wrong, _, errors) = try run(["machnet", "explain", "--remote", "[::1]:5"])
    #expect(wrong == 64 && errors.contains("IPv6 stays on the kernel") && errors.contains("Usage: machnet explain "), "\(errors)")
  }

  @Test func runShowsWhatItWouldDo() throws {
    let library = products.appending(path: "libmachnet-preload.so").path
    #expect(
      try run(["machnet", "run", "--dry-run", "--socket", "/a b", "--", "/bin/echo", "it's", "x"]) == (
        0, "env 'MACHNET_SOCKET=/a b' LD_PRELOAD=\(library) /bin/echo 'it'\\''s' x\n", ""
      ))
    // What is printed does what run does.
    let (_, line, _) = try run(["machnet", "run", "--dry-run", "--profile", "shared-core", "--", "/bin/sh", "-c", "echo $MACHNET_SPIN_US $MACHNET_YIELD"])
    #expect(try run(["/bin/sh", "-c", line]) == (0, "50 true\n", ""))
  }

  @Test func runTakesItsProfileFromTheConfig() throws {
    let file = try write("profiles: { mine: { spin-us: 7 }, latency: { yield: false } }\n", to: "profiles.yaml")
    func variables(_ arguments: String...) throws -> String {
      let (status, text, errors) = try run(
        ["machnet", "run"] + arguments + ["--", "/bin/sh", "-c", "echo $MACHNET_SPIN_US/$MACHNET_YIELD"])
      return status == 0 ? text : errors
    }
    #expect(try variables("--config", file, "--profile", "mine") == "7/\n")
    #expect(try variables("--config", file, "--profile", "latency") == "/false\n")
    #expect(try variables("--config", file, "--profile", "throughput") == "10/\n")
    #expect(try variables("--profile", "latency") == "1000/\n")
    #expect(try variables() == "/\n")
    let mistake = try variables("--config", file, "--profile", "other")
    #expect(mistake.contains("there is no profile 'other', but latency, mine, real-time, shared-core, throughput"))
    for (text, problem) in [
      ("profiles: { a b: {} }", "expected a name of 1 to 32 letters"), ("profiles: [x]", "expected profiles by name, found a list"),
      ("profiles: { a: { spin-us: 1000001 } }", "expected a number of microseconds from 0 to 1000000"),
      ("profiles: { a: { yields: true } }", "expected spin-us, yield, restartable-sequences or fifo in the profile 'a', found 'yields'"),
      ("profiles: { a: { fifo: 0 } }", "expected a priority from 1 to 99"), ("profiles: { a: { fifo: 100 } }", "expected a priority from 1 to 99"),
      ("profiles: { a: { restartable-sequences: 0 } }", "expected true or false, found '0'"),
    ] {
      let wrong = try write(text + "\n", to: "wrong-profiles.yaml")
      #expect(try run(["machnetd", "--check", "--config", wrong]).2.contains(problem))
    }
  }

  @Test func aProfileMakesSwitchesShorter() throws {
    func tunables(_ existing: String?, _ profile: String) throws -> String {
      try run(
        ["machnet", "run", "--profile", profile, "--", "/bin/sh", "-c", "echo $GLIBC_TUNABLES"],
        environment: existing.map { ["GLIBC_TUNABLES": $0] } ?? [:]
      ).1
    }
    #expect(try tunables(nil, "shared-core") == "glibc.pthread.rseq=0\n")
    #expect(try tunables("glibc.malloc.check=0", "shared-core") == "glibc.malloc.check=0:glibc.pthread.rseq=0\n")
    // What the user has said of it stays.
    #expect(try tunables("glibc.pthread.rseq=1:glibc.malloc.check=0", "shared-core") == "glibc.pthread.rseq=1:glibc.malloc.check=0\n")
    #expect(try tunables(nil, "latency") == "\n")

    // Priority in real time and policy (proc_pid_stat(5)).
    let show = ["/bin/sh", "-c", "cut -d' ' -f40,41 /proc/self/stat"]
    let isPermitted = try run(["/usr/bin/chrt", "--fifo", "1", "true"]).0 == 0
    if isPermitted {
      #expect(try run(["machnet", "run", "--profile", "real-time", "--"] + show) == (0, "1 1\n", ""))
      let line = try run(["machnet", "run", "--dry-run", "--profile", "real-time", "--"] + show).1
      #expect(line.hasPrefix("chrt --fifo 1 env "))
      #expect(try run(["/bin/sh", "-c", line]) == (0, "1 1\n", ""))
    }
    let without = isPermitted ? ["/usr/bin/setpriv", "--bounding-set", "-sys_nice"] : []
    let refused = try run(without + [products.appending(path: "machnet").path, "run", "--profile", "real-time", "--"] + show)
    #expect(
      refused == (
        126, "",
        "machnet: /bin/sh is not started: SCHED_FIFO at priority 1, as the profile asks: Operation not permitted "
          + "(it takes CAP_SYS_NICE or ulimit -r 1)\n"
      ))
  }

  @Test func settingsThatTheLibraryWillNotObeyAreTold() throws {
    func said(_ environment: [String: String], _ options: String...) throws -> (Int32, String) {
      let (status, _, errors) = try run(["machnet", "run", "--socket", "/nowhere"] + options + ["--", "/bin/true"], environment: environment)
      return (status, errors)
    }
    for (name, right, wrong) in [
      ("MACHNET_SPIN_US", ["0", "1000000"], ["-1", "1000001", "00000000", "fast"]), ("MACHNET_YIELD", ["true", "false"], ["yes"]),
      ("MACHNET_LOG", ["error"], ["verbose"]),
    ] {
      for value in right { #expect(try said([name: value]) == (0, "")) }
      for value in wrong {
        let (status, errors) = try said([name: value])
        #expect(status == 0 && errors.hasPrefix("machnet: \(name)=\(value) is ignored: expected "), "\(errors)")
      }
    }
    let (status, errors) = try said(["MACHNET_YIELD": "maybe"], "--strict")
    #expect(status == 125 && errors.contains("is ignored: expected true or false") && errors.contains("is not started (--strict)"))
    // A profile takes their place.
    #expect(try said(["MACHNET_SPIN_US": "maybe"], "--profile", "latency") == (0, ""))
  }

  @Test func strictStartsNothingThatStaysOnTheKernel() throws {
    let socket = "\(scratch)/strict.sock"
    let touched = "\(scratch)/strict-touched"
    func strict(_ program: String, _ arguments: String...) throws -> (Int32, String) {
      let (status, _, errors) = try run(["machnet", "run", "--strict", "--socket", socket, "--", program] + arguments)
      return (status, errors)
    }
    var (status, errors) = try strict("touch", touched)
    #expect(status == 125 && errors.contains("is machnetd running?") && errors.contains("touch is not started (--strict)"))
    let source = try write("int main(void) { return 0; }\n", to: "strict.c")
    #expect(try run(["/usr/bin/cc", "-static", "-o", "\(scratch)/strict-static", source]).0 == 0)
    (status, errors) = try strict("\(scratch)/strict-static")
    #expect(status == 125 && errors.contains("statically linked") && errors.contains("not started (--strict)"))
    #expect(!FileManager.default.fileExists(atPath: touched))

    let file = try write("control: { socket: \(socket) }\n", to: "strict.yaml")
    let daemon = try Command(["machnetd", "--config", file])
    #expect(daemon.says("machnetd ready"))
    #expect(try strict("touch", touched) == (0, ""))
    #expect(FileManager.default.fileExists(atPath: touched))
    kill(daemon.process.processIdentifier, SIGTERM)
    #expect(daemon.finish() == 0)
  }

  @Test func signalsReachTheProgram() throws {
    let command = try Command(["machnet", "run", "--socket", "/nowhere", "--", "/bin/sh", "-c", "echo ready >&2; exec sleep 60"])
    #expect(command.says("ready"))
    kill(command.process.processIdentifier, SIGTERM)
    #expect(command.finish() == SIGTERM && command.process.terminationReason == .uncaughtSignal)
  }

  @Test func aProgramLinkedWithASanitizerRuns() throws {
    let source = try write(
      """
      #include <arpa/inet.h>
      #include <stdio.h>
      int main(void) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t n = sizeof a;
        char c = 0;
        int s = socket(AF_INET, SOCK_DGRAM, 0);
        if (bind(s, (void *)&a, n) || getsockname(s, (void *)&a, &n) || sendto(s, "x", 1, 0, (void *)&a, n) != 1) return 1;
        if (recv(s, &c, 1, 0) != 1) return 2;
        return puts(c == 'x' ? "ok" : "wrong") < 0;
      }
      """, to: "sanitized.c")
    #expect(try run(["/usr/bin/gcc", "-fsanitize=address", "-o", "\(scratch)/sanitized", source]).0 == 0)
    let result = try run(["machnet", "run", "--socket", "/nowhere", "--", "\(scratch)/sanitized"])
    #expect(result == (0, "ok\n", ""))
  }

  @Test("metrics for Prometheus", arguments: [nil, "/metrics.sock"])
  func metrics(_ path: String?) throws {
    let listen = path.map { scratch + $0 } ?? "127.0.0.1:\(freePort())"
    let file = try write(
      "control: { socket: \(scratch)/metrics-control.sock, mode: \"0600\" }\nmetrics: { listen: \"\(listen)\" }\nflows: [{ match: {}, path: machnet }]\n",
      to: "metrics.yaml")
    let daemon = try Command(["machnetd", "--config", file])
    #expect(daemon.says("machnetd ready"))
    let scraper = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../Programs/scrape.py").standardized.path
    let (status, samples, errors) = try run(["/usr/bin/python3", scraper, listen])
    #expect(status == 0, "\(errors)")
    #expect(samples.contains("machnet_rules 1\n") && samples.contains("machnet_engine_rx_packets_total{engine=\"0\"} 0\n"))
    if let path {
      var status = stat()
      #expect(unsafe stat(scratch + path, &status) == 0 && status.st_mode & 0o777 == 0o600)
    } else {
      #expect(try run(["/usr/bin/python3", scraper, listen, "limits"]) == (0, "ok\n", ""))
    }
    kill(daemon.process.processIdentifier, SIGTERM)
    #expect(daemon.finish() == 0)
    if let path { #expect(!FileManager.default.fileExists(atPath: scratch + path)) }
    let second = try Command(["machnetd", "--config", try write("control: { socket: \(scratch)/m2.sock }\nmetrics: { listen: /nowhere/metrics.sock }\n", to: "m2.yaml")])
    #expect(second.finish() == 1 && second.errors.contains("cannot serve metrics at /nowhere/metrics.sock, which metrics.listen in the config says: No such file"))
  }
}

/// A TCP port of the loopback address that nobody has now.
private func freePort() -> Int {
  let socket = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
  defer { close(socket) }
  var address = sockaddr_in()
  address.sin_family = sa_family_t(AF_INET)
  address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
  var length = socklen_t(MemoryLayout<sockaddr_in>.size)
  unsafe withUnsafeMutablePointer(to: &address) { pointer in
    unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
      _ = unsafe bind(socket, $0, length)
      _ = unsafe getsockname(socket, $0, &length)
    }
  }
  return Int(UInt16(bigEndian: address.sin_port))
}
