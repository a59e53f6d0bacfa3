import ArgumentParser
import CLinux
import Foundation
import MachnetControl

struct Top: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Shows live what engines, sessions and sockets do, the busiest first.",
    discussion: """
      Keys: s the next order, r the reverse, q the end. Rates are per second, over the interval. LOAD is the share of an \
      engine's rounds that found work, ASLEEP the share of the time. KERNEL counts datagrams that a socket's program \
      sent and received by the kernel. Sessions of the transport machnet are shown with the engine there, their round trip, \
      congestion window and packets in flight, and packets sent again. What does not fit is counted. The view goes on when the daemon is started again.

      Exit codes: 0 ended by q or a signal, or printed; 1 no terminal, no daemon answers, or the config is wrong; 64 the \
      command line is wrong.
      """)

  @OptionGroup var daemon: DaemonOptions

  @Option(name: .long, help: "What sockets are sorted by: \(TopOrder.allCases.map(\.rawValue).joined(separator: ", ")).")
  var sort = TopOrder.traffic

  @Option(name: .long, help: "Seconds between two looks, 0.1...3600.")
  var interval = 1.0

  @Flag(name: .long, help: "Print one view over one interval, and end.")
  var once = false

  @Flag(name: .long, help: "Print a line of JSON per interval (one, with --once).")
  var json = false

  func validate() throws {
    guard interval >= 0.1 && interval <= 3600 else { throw ValidationError("--interval: expected 0.1 to 3600 seconds") }
  }

  func run() throws {
    let path = try daemon.path()
    if once || json { return try runPlain(path) }
    guard isatty(STDIN_FILENO) == 1, isatty(STDOUT_FILENO) == 1 else {
      complain("machnet: top needs a terminal; --once or --json print instead")
      throw ExitCode.failure
    }
    let signals = try Signals()
    let terminal = try Terminal()
    defer { terminal.restore() }
    try runLive(path, terminal, signals)
  }

  private func runPlain(_ path: String) throws {
    var last = try ask(path)
    var nextLook = now()
    repeat {
      // By the clock: a look takes its time, too.
      nextLook = max(nextLook + interval, now())
      mn_linux_sleep(UInt64((nextLook - now()) * 1e9))
      let report = try ask(path)
      let rates = StatusRates(from: last, to: report)
      last = report
      if json {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        print(String(decoding: try encoder.encode(rates), as: UTF8.self))
        // For a reader at the other end of a pipe.
        fflush(nil)
      } else {
        print(TopView(report: report, rates: rates, order: sort, isReversed: false, isLive: false).lines(width: 160, height: 10_000).joined(separator: "\n"))
      }
    } while !once
  }

  private func ask(_ path: String) throws -> StatusReport {
    do {
      return try ControlClient(path: path).status()
    } catch {
      complain(advised(error))
      throw ExitCode.failure
    }
  }

  private func runLive(_ path: String, _ terminal: Terminal, _ signals: Signals) throws {
    var order = sort
    var isReversed = false
    var client: ControlClient?
    var last: StatusReport?
    var view: TopView?
    var lost: Double?
    var nextLook = now()
    while true {
      if now() >= nextLook {
        nextLook = now() + interval
        do {
          // One connection for all looks; a new one when the daemon was started again.
          let asked = try client ?? ControlClient(path: path)
          let report = try asked.status()
          client = asked
          view = TopView(report: report, rates: StatusRates(from: last, to: report), order: order, isReversed: isReversed, isLive: true)
          last = report
          lost = nil
        } catch {
          client = nil
          lost = lost ?? now()
        }
      }
      let size = terminal.size()
      var lines: [String]
      if let lost {
        lines = ["no daemon answers for \(Int(now() - lost)) s (q: end)", path]
      } else {
        view?.order = order
        view?.isReversed = isReversed
        lines = view?.lines(width: size.columns, height: size.rows) ?? []
      }
      terminal.draw(lines.map { String($0.prefix(size.columns)) })
      switch terminal.key(within: max(0, nextLook - now()), or: signals) {
      case .end: return
      case .character("q"), .character("\u{3}"), .character("\u{4}"): return
      case .character("s"): order = order.next
      case .character("r"): isReversed.toggle()
      default: break
      }
    }
  }

  private func now() -> Double { Double(mn_linux_monotonic()) / 1e9 }
}

/// What sockets are sorted by, the largest first; names in alphabetical order.
enum TopOrder: String, CaseIterable, ExpressibleByArgument {
  case traffic, rx, tx, bytes, kernel, drops, wakeups, program, pid

  var next: TopOrder {
    let all = Self.allCases
    return all[(all.firstIndex(of: self)! + 1) % all.count]
  }

  func comesFirst(_ a: StatusRates.Socket, _ b: StatusRates.Socket) -> Bool {
    func key(_ socket: StatusRates.Socket) -> Double {
      switch self {
      case .traffic: socket.rx + socket.tx
      case .rx: socket.rx
      case .tx: socket.tx
      case .bytes: socket.rxBytes + socket.txBytes
      case .kernel: socket.kernel
      case .drops: socket.drops
      case .wakeups: socket.wakeups
      case .program, .pid: 0
      }
    }
    if self == .program && a.program != b.program { return a.program < b.program }
    if key(a) != key(b) { return key(a) > key(b) }
    return (a.pid, a.local) < (b.pid, b.local)
  }
}

/// One look, as text.
struct TopView {
  let report: StatusReport
  let rates: StatusRates
  var order: TopOrder
  var isReversed: Bool
  /// Keys are obeyed.
  let isLive: Bool

  /// As much as fits.
  func lines(width: Int, height: Int) -> [String] {
    let daemon = report.daemon
    let seconds = Int(daemon.uptimeSeconds)
    var lines = [
      "machnetd \(daemon.pid)  up \(seconds / 3600):\(two(seconds / 60 % 60)):\(two(seconds % 60))"
        + "  \(counted(daemon.rules, "rule")) (generation \(daemon.rulesGeneration))"
        + "  \(counted(daemon.endpoints, "socket")), \(counted(report.processes.count, "process"))"
    ]
    if daemon.damagedChannels > 0 || daemon.refusedConnections > 0 {
      lines.append("\(daemon.damagedChannels) damaged channels, \(daemon.refusedConnections) refused connections")
    }
    lines.append("")
    // Each of the upper tables may take a third of what is left, so that there is always room for sockets.
    lines += table(
      [("ENGINE", 6), ("CPU", 4), ("LOAD", 5), ("ASLEEP", 7), ("RX/s", 8), ("TX/s", 8), ("LOCAL/s", 9), ("WAKE/s", 8), ("DROPS/s", 8)],
      rates.engines.map { engine in
        [
          "\(engine.index)", engine.cpu.map { "\($0)" } ?? "-", percent(engine.load), percent(engine.asleep),
          short(engine.rxPackets), short(engine.txPackets), short(engine.localDatagrams), short(engine.wakeups), short(engine.drops),
        ]
      }, leading: 0, gap: 1, room: (height - lines.count) / 3)
    lines.append("")
    if !rates.sessions.isEmpty {
      let sessions = rates.sessions.sorted { a, b in
        if a.rx + a.tx != b.rx + b.tx { return a.rx + a.tx > b.rx + b.tx }
        return (a.engine, a.remote, a.remoteEngine) < (b.engine, b.remote, b.remoteEngine)
      }
      lines += table(
        [
          ("SESSION WITH", 15), ("THERE", 5), ("HERE", 4), ("STATE", 7), ("RTT us", 7), ("CWND", 6), ("FLIGHT", 6), ("RX/s", 6), ("TX/s", 6),
          ("AGAIN/s", 7),
        ],
        sessions.map { session in
          [
            session.remote, "\(session.remoteEngine)", "\(session.engine)", session.state,
            session.smoothedRttMicroseconds == 0 ? "-" : short(session.smoothedRttMicroseconds), short(session.congestionWindow),
            "\(session.inFlight)", short(session.rx), short(session.tx), short(session.retransmissions),
          ]
        }, leading: 1, gap: 1, room: (height - lines.count) / 3)
      lines.append("")
    }
    var sockets = rates.sockets.sorted(by: order.comesFirst)
    if isReversed { sockets.reverse() }
    let spare = max(0, width - 80)
    let program = 12 + spare / 3, local = 20 + min(spare / 3, 8)
    let header: [(String, Int)] = [
      ("PROGRAM", program), ("LOCAL", local), ("PID", 7), ("RX/s", 7), ("TX/s", 7), ("KERN/s", 7), ("WAKE/s", 7), ("DROP/s", 6),
    ]
    lines += table(
      header,
      sockets.lazy.map { socket in
        [
          socket.program, socket.local, "\(socket.pid)", short(socket.rx), short(socket.tx), short(socket.kernel),
          short(socket.wakeups), short(socket.drops),
        ]
      }, leading: 2, gap: 1, room: height - lines.count - 1)
    lines.append("sorted by \(order.rawValue)\(isReversed ? ", reversed" : "")\(isLive ? "  (s: next order, r: reverse, q: end)" : "")")
    return lines
  }

  /// Columns of fixed widths; the first `leading` ones to the left and cut, the others to the right. In at most `room`
  /// lines, with the header: the last says how many more there are.
  private func table(
    _ columns: [(name: String, width: Int)], _ rows: some Collection<[String]>, leading: Int, gap: Int, room: Int
  ) -> [String] {
    let isCut = rows.count > room - 1
    let shown = isCut ? max(0, room - 2) : rows.count
    return ([columns.map(\.name)] + rows.prefix(shown)).map { cells in
      zip(cells, columns).enumerated().map { index, pair in
        let (text, width) = (String(pair.0.prefix(index < leading ? pair.1.width : Int.max)), pair.1.width)
        let space = String(repeating: " ", count: max(0, width - text.count))
        return index < leading ? text + space : space + text
      }.joined(separator: String(repeating: " ", count: gap))
    } + (isCut ? ["... \(rows.count - shown) more"] : [])
  }

  private func two(_ number: Int) -> String { number < 10 ? "0\(number)" : "\(number)" }
  private func percent(_ share: Double) -> String { "\(Int((share * 100).rounded()))%" }

  /// At most five characters: 0, 7.5, 950, 12.3K, 4.8M.
  private func short(_ rate: Double) -> String {
    var value = rate
    var prefix = ""
    for next in ["K", "M", "G"] where value >= 999.5 {
      value /= 1000
      prefix = next
    }
    let tenths = Int((value * 10).rounded())
    return value >= 100 || tenths % 10 == 0 ? "\(Int(value.rounded()))\(prefix)" : "\(tenths / 10).\(tenths % 10)\(prefix)"
  }
}
