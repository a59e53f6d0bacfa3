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
  }

  @Test func aDaemonFromItsStartToItsEnd() throws {
    let socket = "\(scratch)/life.sock"
    func config(_ path: String) -> String {
      "control: { socket: \(socket), mode: \"0666\" }\nflows: [{ match: {}, path: \(path) }]\n"
    }
    let file = try write(config("machnet"), to: "life.yaml")
    let daemon = try Command(["machnetd", "--config", file])
    #expect(daemon.says("machnetd ready"))

    let (status, text, _) = try run(["machnet", "status", "--config", file, "--json"])
    #expect(status == 0)
    #expect(try StatusReport(json: text).daemon.pid == Int(daemon.process.processIdentifier))
    let object = try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
    #expect(Set(object.keys) == ["daemon", "engines", "interfaces", "processes", "sockets"])
    let engine = try #require((object["engines"] as? [[String: Any]])?.first)
    #expect(engine["local_datagrams"] is Int && engine["rx_packets"] is Int)
    #expect(try run(["machnet", "status", "--socket", socket]).1.contains("SOCKETS: none"))
    if geteuid() == 0 {
      let asNobody = ["/usr/bin/setpriv", "--reuid=65534", "--clear-groups", products.appending(path: "machnet").path]
      unsafe chmod(scratch, 0o755)
      #expect(try run(asNobody + ["status", "--socket", socket]).0 == 0)
      let (status, _, errors) = try run(asNobody + ["reload", "--socket", socket])
      #expect(status == 1 && errors == "machnet: only root and the daemon's own user may reload it\n")
    }

    let second = try run(["machnetd", "--config", file])
    #expect(second.0 == 1 && second.2.contains("cannot serve \(socket), because another machnetd does"))

    _ = try write(config("nonsense"), to: "life.yaml")
    let (refused, _, errors) = try run(["machnet", "reload", "--socket", socket])
    #expect(refused == 1 && errors.hasPrefix("\(file):2:28: error: expected kernel or machnet, found 'nonsense'\n"))
    _ = try write(config("kernel"), to: "life.yaml")
    kill(daemon.process.processIdentifier, SIGHUP)
    #expect(daemon.says("1 flow rules are in force"))

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
  }

  @Test func runEndsAsTheProgramOrAsAShellWould() throws {
    func status(_ command: String...) throws -> Int32 { try run(["machnet", "run", "--"] + command).0 }
    #expect(try status("/bin/sh", "-c", "exit 7") == 7)
    #expect(try status("/bin/sh", "-c", "test \"$1\" = --config", "sh", "--config") == 0)
    #expect(try status("no-such-program-anywhere") == 127)
    #expect(try status("/etc/passwd") == 126)
    #expect(try run(["machnet", "run"]).0 == 64)
  }
}
