import ArgumentParser
import Foundation
import MachnetControl
import MachnetInspect

struct Explain: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Says where a flow goes, or where a process's sockets are, and why.",
    discussion: """
      About a flow: --program, --local and --remote, as a rule would see them; --config judges it by a file, without a \
      daemon. About a live process: --pid, and --fd for one of its descriptors; of a process of another user it tells what \
      the daemon knows, and root sees the rest.

      Exit codes: 0 the flow goes by Machnet (of a process: some socket does); 1 all goes by the kernel; 2 there is no \
      answer; 64 the command line is wrong.
      """)

  @Option(name: .long, help: "The program's file name, for rules that name one.")
  var program: String?

  @Option(name: .long, help: "The local address and port, ADDR:PORT; '*' for the wildcard.")
  var local: String?

  @Option(name: .long, help: "The peer's address and port, ADDR:PORT. Without it: a socket that is bound only.")
  var remote: String?

  @Option(name: .long, help: "A running process.")
  var pid: Int?

  @Option(name: .long, help: "One descriptor of it.")
  var fd: Int?

  @Option(name: .long, help: "Judge by this config file, without a daemon.")
  var config: String?

  @Option(name: .long, help: "The daemon's control socket (default: the process's own, $MACHNET_SOCKET, \(defaultControlSocket)).")
  var socket: String?

  @Flag(name: .long, help: "Print JSON.")
  var json = false

  func validate() throws {
    if pid == nil && fd != nil { throw ValidationError("--fd is a descriptor of a process; give its --pid") }
    if pid != nil && (program != nil || local != nil || remote != nil || config != nil) {
      throw ValidationError("--pid asks about a live process; --program, --local, --remote and --config about a flow")
    }
    if pid == nil && program == nil && local == nil && remote == nil {
      throw ValidationError("ask about a flow (--program, --local, --remote) or about a process (--pid)")
    }
    if config != nil && socket != nil { throw ValidationError("--config asks no daemon; give it or --socket") }
    _ = try question()
  }

  func run() throws {
    if let pid {
      try explain(pid: pid)
    } else {
      try explainFlow()
    }
  }

  /// The flow that is asked about.
  private func question() throws -> FlowQuestion {
    var question = FlowQuestion(programs: program.map { [$0] } ?? [])
    if let local {
      let side = try side(local, "--local")
      (question.localAddress, question.localPort) = side
    }
    if let remote {
      let side = try side(remote, "--remote")
      guard side.port != 0 else { throw ValidationError("--remote needs a port: ADDR:PORT") }
      question.remote = side
    }
    return question
  }

  private func explainFlow() throws {
    let question = try question()
    let explanation: FlowExplanation
    do {
      explanation = try config.map { try judge(file: $0, question) } ?? judgeByDaemon(question)
    } catch let error as ConfigFailure {
      complain(error.description)
      throw ExitCode(2)
    } catch let error as SystemError {
      complain(advised(error))
      throw ExitCode(2)
    }
    print(json ? try encoded(explanation) : readable(explanation, file: config))
    if !explanation.isMachnet { throw ExitCode(1) }
  }

  private func judge(file: String, _ question: FlowQuestion) throws -> FlowExplanation {
    let memory = try DirectoryMemory(config: try Config.load(file: file))
    return withExtendedLifetime(memory) { FlowJudge(memory).explain(question) }
  }

  private func judgeByDaemon(_ question: FlowQuestion) throws -> FlowExplanation {
    let client = try ControlClient(path: socket ?? environment("MACHNET_SOCKET") ?? defaultControlSocket)
    let view = try DirectoryView(client)
    return withExtendedLifetime(view) { FlowJudge(view).explain(question) }
  }

  /// `ADDR:PORT`, `*:PORT`, `ADDR` or `:PORT`.
  private func side(_ text: String, _ option: String) throws -> (address: UInt32, port: UInt16) {
    let halves = text.split(separator: ":", omittingEmptySubsequences: false)
    let isAny = halves[0] == "*" || halves[0].isEmpty
    let address = isAny ? IPv4Address(0) : IPv4Address(halves[0])
    let port = halves.count < 2 || halves[1] == "*" ? 0 : UInt16(halves[1])
    guard halves.count <= 2, let address, let port else {
      let hint = text.contains("[") || halves.count > 2 ? " (IPv6 stays on the kernel, whatever the rules say)" : ""
      throw ValidationError("\(option): expected ADDR:PORT with an IPv4 address or '*', found '\(text)'\(hint)")
    }
    return (address.value, port)
  }
}

/// What a person is told when a daemon cannot be asked.
func advised(_ error: SystemError) -> String {
  let advice =
    switch error.code {
    case ENOENT, ECONNREFUSED: "; is machnetd running? --socket or --config name another one"
    case EACCES: "; ask for membership of the group in its config (control.group)"
    case ECONNRESET: "; the daemon has just ended: its log says why"
    case EBUSY: "; the last answer is on its way: ask again"
    case EPROTO: "; machnet and machnetd are to be of one version, which --version tells of each"
    default: "; --socket or --config say which daemon is meant"
    }
  return "machnet: cannot \(error)\(advice)"
}

func encoded(_ value: some Encodable) throws -> String {
  let encoder = JSONEncoder()
  encoder.keyEncodingStrategy = .convertToSnakeCase
  encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
  return String(decoding: try encoder.encode(value), as: UTF8.self)
}

private func readable(_ explanation: FlowExplanation, file: String?) -> String {
  var lines = ["\(explanation.local) -> \(explanation.remote ?? "any peer"): \(explanation.path)\(explanation.isMachnet ? " (\(explanation.transport ?? "udp"))" : "")"]
  for reason in explanation.reasons { lines.append("  \(reason)") }
  if let rule = explanation.rule, let line = explanation.ruleLine { lines.append("  \(file.map { "\($0):" } ?? "line ")\(line): \(rule)") }
  for miss in explanation.misses { lines.append("  the rule in line \(miss.line) does not match: \(miss.reason)") }
  if let generation = explanation.rulesGeneration { lines.append("  rules of generation \(generation)") }
  return lines.joined(separator: "\n")
}
