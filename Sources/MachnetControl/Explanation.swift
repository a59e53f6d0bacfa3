import CLinux
import CMachnetABI
import Glibc
public import MachnetChannel

/// A flow that somebody asks about. Addresses in host byte order.
public struct FlowQuestion: Sendable, Equatable {
  /// Names that rules may know the program by; empty: rules for any program only.
  public var programs: [String]
  /// 0: the wildcard, or not known.
  public var localAddress: UInt32
  /// 0: not known.
  public var localPort: UInt16
  /// nil: any peer, the question of a socket that is bound and not connected.
  public var remote: (address: UInt32, port: UInt16)?

  public init(
    programs: [String] = [], localAddress: UInt32 = 0, localPort: UInt16 = 0, remote: (address: UInt32, port: UInt16)? = nil
  ) {
    self.programs = programs
    self.localAddress = localAddress
    self.localPort = localPort
    self.remote = remote
  }

  public static func == (a: FlowQuestion, b: FlowQuestion) -> Bool {
    a.programs == b.programs && a.localAddress == b.localAddress && a.localPort == b.localPort
      && a.remote?.address == b.remote?.address && a.remote?.port == b.remote?.port
  }
}

/// Where a flow goes and why, in words.
public struct FlowExplanation: Codable, Sendable, Equatable {
  /// machnet or kernel
  public var path: String
  /// Of the config file; nil: no rule decides.
  public var ruleLine: Int?
  /// The rule as the file would say it.
  public var rule: String?
  public var transport: String?
  /// Counts the reloads of a daemon; nil: from a file.
  public var rulesGeneration: UInt32?
  /// The flow as it was judged: a wildcard has become the address that a datagram will carry.
  public var local: String
  public var remote: String?
  /// In the order in which they decide.
  public var reasons: [String]
  /// Rules for Machnet that come before the deciding one, or are there where none decides, and what keeps each from
  /// matching.
  public var misses: [Miss]

  public struct Miss: Codable, Sendable, Equatable {
    public var line: Int
    public var reason: String
  }

  public var isMachnet: Bool { path == "machnet" }
}

/// What flows are judged by: a daemon's directory, or one made from a config file.
///
/// The judgement is the preload library's (`Socket.classify`, `Socket.verdict`), step by step.
public struct FlowJudge {
  let directory: Directory
  /// Whether the directory is a daemon's, with a generation and endpoints.
  let isLive: Bool

  /// Rules that are told of although they do not match.
  static let missesMax = 8

  public init(_ view: DirectoryView) {
    directory = view.directory
    isLive = true
  }

  /// - Parameter memory: of the config in question, with its interfaces installed.
  public init(_ memory: DirectoryMemory) {
    directory = memory.directory
    isLive = false
  }

  public func explain(_ question: FlowQuestion) -> FlowExplanation {
    let generation = directory.rulesGeneration
    let rules = directory.rules(generation: generation)
    let mask = self.mask(question.programs, rules)
    var explanation = FlowExplanation(
      path: "kernel", rulesGeneration: isLive ? generation : nil,
      local: name(question.localAddress, question.localPort), reasons: [], misses: [])
    guard var remote = question.remote else { return explainUnconnected(question, rules, mask, explanation) }
    if remote.address == 0 { remote.address = 0x7f00_0001 }
    explanation.remote = name(remote.address, remote.port)
    if remote.address >> 28 == 0xe || remote.address == UInt32.max {
      explanation.reasons = ["multicast and broadcast stay on the kernel"]
      return explanation
    }
    let hostOwn = directory.isHostAddress(remote.address, netns: 0)
    let route = hostOwn ? nil : directory.route(to: remote.address)
    let local = source(bound: question.localAddress, to: remote.address, hostOwn: hostOwn, route: route)
    explanation.local = name(local, question.localPort)
    let hit = rules.first(
      program: mask, localAddress: local, localPort: question.localPort, remoteAddress: remote.address,
      remotePort: remote.port)
    explanation.misses = misses(rules, mask, before: hit, question, local: local, remote: remote)
    guard let hit else {
      explanation.reasons = ["no rule matches, and no match means the kernel"]
      if question.localPort == 0 { explanation.reasons.append("(a rule for certain local ports matches no unknown port)") }
      return explanation
    }
    let rule = rules.rule(hit)
    describe(rule, &explanation)
    guard Int(rule.path) == MN_PATH_MACHNET else {
      explanation.reasons = ["the rule in line \(rule.line) matches first, and says kernel"]
      return explanation
    }
    explanation.reasons = ["the rule in line \(rule.line) matches first, and says machnet"]
    guard hostOwn || route != nil || directory.isEngineAddress(remote.address) else {
      explanation.reasons.append(
        "but \(IPv4Address(remote.address)) is none of this host's addresses, and no interface of the daemon leads there")
      return explanation
    }
    if hostOwn && isLive && !directory.hasLocalEndpoint(netns: 0, address: remote.address, port: remote.port) {
      explanation.reasons.append(
        "but now no socket on Machnet is bound to \(name(remote.address, remote.port)): until one is, datagrams go by the kernel to whoever is")
      return explanation
    }
    explanation.path = "machnet"
    if hostOwn {
      explanation.reasons.append("\(IPv4Address(remote.address)) is on this host: the engine hands datagrams over, no NIC is involved")
    } else if let route {
      let interface = directory.interface(route)
      let onSubnet = remote.address & interface.mask == interface.address & interface.mask
      explanation.reasons.append(
        "by the interface with \(IPv4Address(interface.address))"
          + (onSubnet ? "" : " and its gateway \(IPv4Address(interface.gateway))"))
    }
    return explanation
  }

  private func explainUnconnected(
    _ question: FlowQuestion, _ rules: RuleSet, _ mask: ProgramMask, _ start: FlowExplanation
  ) -> FlowExplanation {
    var explanation = start
    for index in 0..<rules.count {
      let rule = rules.rule(index)
      guard Int(rule.path) == MN_PATH_MACHNET else { continue }
      let reason = mismatch(rule, isNamed: mask.contains(index), question, local: question.localAddress, remote: nil)
      guard let reason else {
        describe(rule, &explanation)
        explanation.path = "machnet"
        explanation.reasons = [
          "the rule in line \(rule.line) may lead its flows to Machnet: it receives from there, and each send is judged by its peer"
        ]
        return explanation
      }
      if explanation.misses.count < Self.missesMax {
        explanation.misses.append(FlowExplanation.Miss(line: Int(rule.line), reason: reason))
      }
    }
    explanation.reasons = ["no rule for Machnet can match a flow of this socket"]
    return explanation
  }

  private func mask(_ programs: [String], _ rules: RuleSet) -> ProgramMask {
    func fitted(_ name: String) -> String { String(decoding: name.utf8.prefix(Int(MN_PROGRAM_MAX) - 1), as: UTF8.self) }
    // An empty name fits what names no program, and patterns that are nothing but '*'.
    let first = fitted(programs.first ?? ""), second = fitted(programs.dropFirst().first ?? programs.first ?? "")
    // The names are compared up to MN_PROGRAM_MAX bytes.
    var room = [CChar](repeating: 0, count: 2 * Int(MN_PROGRAM_MAX))
    for (offset, text) in [(0, first), (Int(MN_PROGRAM_MAX), second)] {
      for (index, byte) in text.utf8.prefix(Int(MN_PROGRAM_MAX) - 1).enumerated() { room[offset + index] = CChar(bitPattern: byte) }
    }
    return unsafe room.withUnsafeBufferPointer {
      unsafe rules.mask(programs: $0.baseAddress!, $0.baseAddress! + Int(MN_PROGRAM_MAX))
    }
  }

  /// The address that a datagram will carry as its source (`Socket.sourceAddress`).
  private func source(bound: UInt32, to remote: UInt32, hostOwn: Bool, route: Int?) -> UInt32 {
    if bound != 0 { return bound }
    if remote >> 24 == 127 { return 0x7f00_0001 }
    if hostOwn || directory.isEngineAddress(remote) { return remote }
    return route.map { directory.interface($0).address } ?? 0
  }

  private func describe(_ rule: mn_rule, _ explanation: inout FlowExplanation) {
    explanation.ruleLine = Int(rule.line)
    explanation.rule = text(rule)
    if Int(rule.path) == MN_PATH_MACHNET {
      explanation.transport = Int(rule.transport) == MN_TRANSPORT_UDP ? "udp" : "machnet"
    }
  }

  private func misses(
    _ rules: RuleSet, _ mask: ProgramMask, before hit: Int?, _ question: FlowQuestion, local: UInt32,
    remote: (address: UInt32, port: UInt16)
  ) -> [FlowExplanation.Miss] {
    var misses: [FlowExplanation.Miss] = []
    for index in 0..<(hit ?? rules.count) where misses.count < Self.missesMax {
      let rule = rules.rule(index)
      guard Int(rule.path) == MN_PATH_MACHNET,
        let reason = mismatch(rule, isNamed: mask.contains(index), question, local: local, remote: remote)
      else { continue }
      misses.append(FlowExplanation.Miss(line: Int(rule.line), reason: reason))
    }
    return misses
  }

  /// The first part of a rule that does not fit; nil: all do.
  private func mismatch(
    _ rule: mn_rule, isNamed: Bool, _ question: FlowQuestion, local: UInt32, remote: (address: UInt32, port: UInt16)?
  ) -> String? {
    if !isNamed {
      let who = question.programs.isEmpty ? "no program was named" : "the program is \(question.programs.joined(separator: " or "))"
      return "it is for the program \(programName(rule)), and \(who)"
    }
    // Not connected, the wildcard may yet be any address.
    let anyAddress = remote == nil && local == 0
    if !anyAddress && local & rule.local_mask != rule.local_network
      || !(rule.local_port_low...rule.local_port_high ~= question.localPort)
    {
      return "its local side is \(pattern(rule.local_network, rule.local_mask, rule.local_port_low, rule.local_port_high)), the flow's \(name(local, question.localPort))"
    }
    guard let remote else { return nil }
    if remote.address & rule.remote_mask != rule.remote_network
      || !(rule.remote_port_low...rule.remote_port_high ~= remote.port)
    {
      return "its remote side is \(pattern(rule.remote_network, rule.remote_mask, rule.remote_port_low, rule.remote_port_high)), the flow's \(name(remote.address, remote.port))"
    }
    return nil
  }
}

/// A rule as the config file would say it.
private func text(_ rule: mn_rule) -> String {
  var match: [String] = []
  let program = programName(rule)
  if !program.isEmpty { match.append("program: \(program)") }
  for (side, text) in [
    ("local", pattern(rule.local_network, rule.local_mask, rule.local_port_low, rule.local_port_high)),
    ("remote", pattern(rule.remote_network, rule.remote_mask, rule.remote_port_low, rule.remote_port_high)),
  ] where text != "*" {
    match.append("\(side): \"\(text)\"")
  }
  let inside = match.isEmpty ? "{}" : "{ \(match.joined(separator: ", ")) }"
  var words = ["match: \(inside)", "path: \(Int(rule.path) == MN_PATH_MACHNET ? "machnet" : "kernel")"]
  if Int(rule.transport) == MN_TRANSPORT_MACHNET { words.append("transport: machnet") }
  if Int(rule.on_engine_loss) == MN_LOSS_ERROR { words.append("on-engine-loss: error") }
  return "{ \(words.joined(separator: ", ")) }"
}

private func programName(_ rule: mn_rule) -> String {
  let bytes = unsafe withUnsafeBytes(of: rule.program) { unsafe Array($0) }
  return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
}

private func pattern(_ network: UInt32, _ mask: UInt32, _ low: UInt16, _ high: UInt16) -> String {
  let prefix = IPv4Prefix(address: IPv4Address(network), length: mask.nonzeroBitCount)
  return AddressPattern(prefix: prefix, ports: min(low, high)...max(low, high)).description
}

private func name(_ address: UInt32, _ port: UInt16) -> String {
  "\(address == 0 ? "*" : "\(IPv4Address(address))"):\(port == 0 ? "*" : "\(port)")"
}

/// A daemon's directory as a client reads it.
@safe
public final class DirectoryView {
  public let directory: Directory
  /// Safety: mapped read-only by `init`, unmapped by `deinit`; `directory` does not outlive this object's users.
  private let base: UnsafeMutableRawPointer

  /// Asks a daemon for its directory.
  public init(_ client: ControlClient) throws(SystemError) {
    let reply = try client.call(client.request(MN_REQUEST_HELLO))
    guard reply.header.status == 0, let memory = reply.descriptors.first else {
      throw SystemError(reply.header.status == 0 ? EPROTO : reply.header.status, "get the daemon's directory")
    }
    var error: Int32 = 0
    guard let base = unsafe mnc_map(memory.number, UInt64(MN_DIRECTORY_SIZE), false, &error) else {
      throw SystemError(error, "map the daemon's directory")
    }
    unsafe self.base = base
    unsafe directory = Directory(unsafe: base)
    guard directory.isValid else { throw SystemError(EPROTO, "understand the daemon (is it of another version?)") }
  }

  deinit { unsafe mn_linux_unmap(base, Int(MN_DIRECTORY_SIZE)) }

  public var generation: UInt32 { directory.rulesGeneration }
}
