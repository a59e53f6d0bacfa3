import ArgumentParser
import Glibc
import MachnetControl
import MachnetInspect

/// What `machnet explain --pid` finds. JSON with snake_case keys.
struct ProcessExplanation: Encodable {
  var pid: Int
  var executable: String
  /// The preload library is in the process; nil: not for us to see.
  var hasPreload: Bool?
  /// The control socket of the daemon that was asked, and whether it answered.
  var daemon: String
  var daemonAnswers: Bool
  /// Whether the process is attached to it, since when, and by which name.
  var isAttached: Bool
  var attachedSeconds: Double?
  /// What holds for the whole process.
  var reasons: [String]
  var sockets: [Socket]

  struct Socket: Encodable {
    /// The lowest; nil: not for us to see.
    var fd: Int?
    /// Descriptors of the same socket: the program's copies, and those that the preload library keeps.
    var copies: [Int] = []
    var proto: String?
    var local: String?
    var peer: String?
    /// machnet or kernel
    var path: String
    var sinceSeconds: Double?
    var ruleLine: Int?
    var engine: StatusReport.Traffic?
    var kernel: StatusReport.Traffic?
    var reasons: [String]
  }
}

extension Explain {
  func explain(pid: Int) throws {
    let process: LiveProcess
    do throws(InspectionError) {
      process = try LiveProcess(pid: pid)
    } catch {
      guard error.isDenied, fd == nil, let known = explanationByDaemon(pid: pid) else {
        complain("machnet: \(error)")
        throw ExitCode(2)
      }
      return try tell(known)
    }
    var explanation = explanation(of: process)
    if let fd {
      explanation.sockets.removeAll { $0.fd != fd && !$0.copies.contains(fd) }
      guard !explanation.sockets.isEmpty else {
        complain("machnet: descriptor \(fd) of process \(pid) is no socket; without --fd all its sockets are explained")
        throw ExitCode(2)
      }
    }
    try tell(explanation)
  }

  private func tell(_ explanation: ProcessExplanation) throws {
    print(json ? try encoded(explanation) : readable(explanation, all: fd != nil))
    if !explanation.sockets.contains(where: { $0.path == "machnet" }) { throw ExitCode(1) }
  }

  /// What the daemon knows of a process that this user may not look at; nil: it does not answer either.
  private func explanationByDaemon(pid: Int) -> ProcessExplanation? {
    let path = socket ?? environment("MACHNET_SOCKET") ?? defaultControlSocket
    guard let report = try? ControlClient(path: path).status() else { return nil }
    let attached = report.processes.filter { $0.pid == pid }
    var explanation = ProcessExplanation(
      pid: pid, executable: attached.first?.program ?? "whose program only root and its own user may see", hasPreload: attached.isEmpty ? nil : true,
      daemon: path, daemonAnswers: true, isAttached: !attached.isEmpty, attachedSeconds: attached.map(\.connectedSeconds).max(),
      reasons: [], sockets: [])
    explanation.sockets = report.sockets.filter { $0.pid == pid }.map { onMachnet(nil, $0, pid) }
    for refusal in attached.flatMap(\.refusals) {
      explanation.reasons.append("a \(refusal.request) was refused \(ago(refusal.secondsAgo)): \(refusal.reason)")
    }
    explanation.reasons.append(
      (attached.isEmpty ? "it is not attached to this daemon, so all its sockets are on the kernel" : "its sockets on the kernel are not shown")
        + "; only root and its own user may see more: sudo machnet explain --pid \(pid)")
    return explanation
  }

  private func explanation(of process: LiveProcess) -> ProcessExplanation {
    let path = socket ?? process.environment?["MACHNET_SOCKET"] ?? environment("MACHNET_SOCKET") ?? defaultControlSocket
    var explanation = ProcessExplanation(
      pid: process.pid, executable: process.executable, hasPreload: process.hasPreload, daemon: path, daemonAnswers: false,
      isAttached: false, reasons: [], sockets: [])
    var report: StatusReport?
    var view: DirectoryView?
    do {
      let client = try ControlClient(path: path)
      view = try DirectoryView(client)
      report = try client.status()
      explanation.daemonAnswers = true
    } catch {
      let why = unsafe String(cString: strerror(error.code))
      explanation.reasons.append(
        "no daemon answers at \(path) (\(why)): every socket is on the kernel until one does; start machnetd, or name another by --socket")
    }
    let attached = report?.processes.filter { $0.pid == process.pid } ?? []
    let refusals = attached.flatMap(\.refusals)
    explanation.isAttached = !attached.isEmpty
    explanation.attachedSeconds = attached.map(\.connectedSeconds).max()
    if !process.hasPreload {
      explanation.reasons.append(whyWithoutPreload(process))
    } else if report != nil && attached.isEmpty {
      explanation.reasons.append(
        "the preload library is there, but the process is not attached to this daemon: "
          + (process.environment?["MACHNET_SOCKET"].map { "it was started with MACHNET_SOCKET=\($0)" }
            ?? "it looks for one at its start and, when it opens a UDP socket, once a second at most")
          + "; a child attaches with its own first UDP socket, and a daemon refuses more connections than its limits allow")
    }
    if process.sharesNetwork == false {
      explanation.reasons.append(
        "it is in another network namespace than this command: its loopback flows reach sockets there, and addresses of engines are the daemon's namespace's")
    }
    for refusal in refusals where refusal.inode == nil {
      explanation.reasons.append("a \(refusal.request) was refused \(ago(refusal.secondsAgo)): \(refusal.reason)")
    }
    for socket in process.sockets {
      let left = (report?.unclaimed ?? []).first { $0.inode == socket.inode && $0.inode != 0 }
      let known = (report?.sockets ?? []).filter { $0.inode == socket.inode && $0.inode != 0 }
      if let known = known.first(where: { $0.pid == process.pid }) ?? known.first {
        explanation.sockets.append(onMachnet(socket, known, process.pid))
      } else {
        explanation.sockets.append(
          onKernel(socket, process, refusals.filter { $0.inode == socket.inode }, view, isAttached: !attached.isEmpty))
      }
      if let left {
        explanation.sockets[explanation.sockets.count - 1].reasons.append(
          "\(left.datagrams) datagrams that \(left.program) (pid \(left.pid)) did not receive wait with the daemon since "
            + "\(ago(left.sinceSeconds)): only a program that starts with the preload library gets them")
      }
    }
    return explanation
  }

  private func whyWithoutPreload(_ process: LiveProcess) -> String {
    guard let environment = process.environment else { return "the preload library is not in the process" }
    guard environment["LD_PRELOAD"]?.contains("libmachnet-preload.so") == true else {
      return "the preload library is not in the process: it was not started by machnet run"
    }
    let start = "the preload library is not in the process, although it was started by machnet run"
    guard let preload = preloadLibrary(),
      let inspection = try? Inspector(
        preload: preload, environment: inspectionEnvironment(), uid: geteuid(), gid: getegid()
      ).inspect(process.executable), !inspection.isInterceptable
    else { return start + "; its standard error may say why the loader passed it over" }
    return "\(start): \(inspection.verdict)"
  }

  private func onMachnet(
    _ socket: LiveProcess.Socket?, _ known: StatusReport.SocketStatus, _ pid: Int
  ) -> ProcessExplanation.Socket {
    let isMachnet = known.verdict == "machnet"
    var reasons = [
      isMachnet
        ? "on Machnet for \(duration(known.sinceSeconds)), engine \(known.homeEngine)"
        : "it came to Machnet \(ago(known.sinceSeconds)), and the rules have changed since: its datagrams go by the kernel until one names it again"
    ]
    let rule = known.ruleLine.map { "the rule in line \($0) of the daemon's config" }
    reasons.append(
      rule.map {
        isMachnet && known.peer == nil ? "\($0) may lead its flows to Machnet: each send is judged by its peer" : "\($0) says \(known.verdict)"
      } ?? "no rule names it now")
    if known.pid != pid { reasons.append("process \(known.pid) opened it, and shares it") }
    if known.kernel.tx.datagrams > 0 {
      reasons.append(
        "sent by the kernel: \(known.kernel.tx.datagrams), to peers without a rule, or to programs of this host without Machnet")
    }
    if known.kernel.rx.datagrams > 0 { reasons.append("came by the kernel: \(known.kernel.rx.datagrams), from such peers") }
    for (reason, count) in known.drops.sorted(by: { $0.key < $1.key }) { reasons.append("dropped: \(count) (\(reason))") }
    return ProcessExplanation.Socket(
      fd: socket?.descriptor, copies: socket?.copies ?? [], proto: socket?.proto, local: known.local, peer: known.peer, path: known.verdict,
      sinceSeconds: known.sinceSeconds, ruleLine: known.ruleLine, engine: known.engine, kernel: known.kernel, reasons: reasons)
  }

  private func onKernel(
    _ socket: LiveProcess.Socket, _ process: LiveProcess, _ refusals: [StatusReport.RefusalStatus], _ view: DirectoryView?,
    isAttached: Bool
  ) -> ProcessExplanation.Socket {
    var found = ProcessExplanation.Socket(
      fd: socket.descriptor, copies: socket.copies, proto: socket.proto, local: socket.local?.description, peer: socket.peer?.description,
      path: "kernel", reasons: [])
    guard socket.isUDP else {
      found.reasons = ["\(socket.proto ?? "what it is cannot be seen; it"): only UDP sockets leave the kernel"]
      return found
    }
    for refusal in refusals {
      found.reasons.append("the daemon refused it \(ago(refusal.secondsAgo)): \(refusal.reason)")
    }
    if !process.hasPreload {
      found.reasons.append("the preload library is not in the process")
      return found
    }
    guard let local = socket.local else {
      found.reasons.append("it is not bound: where it goes is decided by bind, connect or the first send")
      return found
    }
    guard let address = local.ipv4, let peer = socket.peer.map({ $0.ipv4 }) ?? 0 else {
      found.reasons.append("it is IPv6: only IPv4, v4-mapped addresses included, leaves the kernel")
      return found
    }
    if let option = process.kernelOption(of: socket) {
      found.reasons.append("it has set \(option), which only the kernel's own queue can honour: it stays there for good")
      return found
    }
    guard let view else { return found }
    let question = FlowQuestion(
      programs: process.names, localAddress: address, localPort: local.port,
      remote: socket.peer.map { (peer, $0.port) })
    let judged = withExtendedLifetime(view) { FlowJudge(view).explain(question) }
    found.ruleLine = judged.ruleLine
    found.reasons += judged.reasons
    found.reasons += judged.misses.map { "the rule in line \($0.line) does not match: \($0.reason)" }
    if judged.isMachnet && refusals.isEmpty {
      if !isAttached {
        found.reasons.append("the process is not attached to the daemon")
      } else if let limit = process.descriptorLimit, process.lacksDescriptors {
        found.reasons.append(
          "the process has no descriptor left for it: a socket on Machnet takes a second one, from the upper quarter of the limit (\(limit)); raise it (ulimit -n)")
      } else {
        found.reasons.append(
          "it was bound before that rule was there, or before the process was attached: its next bind, connect or send to a marked peer moves it; or it was passed to another process, or left to one by exec, and is the kernel's since")
      }
    }
    return found
  }
}

private func duration(_ seconds: Double) -> String {
  let whole = Int(seconds)
  return whole >= 3600 ? "\(whole / 3600) h \(whole / 60 % 60) min" : whole >= 60 ? "\(whole / 60) min \(whole % 60) s" : "\(whole) s"
}

private func ago(_ seconds: Double) -> String { "\(duration(seconds)) ago" }

/// - Parameter all: also sockets that are not UDP.
private func readable(_ explanation: ProcessExplanation, all: Bool) -> String {
  let attached = explanation.attachedSeconds.map { "attached for \(duration($0)) to \(explanation.daemon)" }
  var lines = ["process \(explanation.pid), \(explanation.executable): \(attached ?? "not attached to a daemon")"]
  for reason in explanation.reasons { lines.append("  \(reason)") }
  let datagrams = explanation.sockets.filter { ($0.proto ?? "UDP").hasPrefix("UDP") }
  if explanation.hasPreload != nil && !datagrams.isEmpty {
    lines.append("\(datagrams.count { $0.path == "machnet" }) of \(counted(datagrams.count, "UDP socket")) on Machnet")
  }
  let shown = explanation.sockets.filter { all || ($0.proto ?? "UDP").hasPrefix("UDP") }
  for socket in shown {
    let name = [socket.proto ?? "socket", socket.local, socket.peer.map { "-> \($0)" }].compactMap { $0 }.joined(separator: " ")
    let copies = socket.copies.isEmpty ? "" : " (and \(socket.copies.map(String.init).joined(separator: ", ")))"
    lines.append((socket.fd.map { "fd \($0)\(copies), " } ?? "") + "\(name): \(socket.path)")
    for reason in socket.reasons { lines.append("  \(reason)") }
  }
  let others = explanation.sockets.count - shown.count
  if shown.isEmpty { lines.append(explanation.hasPreload == nil ? "none of its sockets is on Machnet" : "it has no UDP sockets") }
  if others > 0 { lines.append("\(others) more, not UDP: only UDP leaves the kernel") }
  return lines.joined(separator: "\n")
}
