import ArgumentParser
import MachnetControl

struct Status: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Shows every socket that the daemon serves, and the daemon itself.",
    discussion: """
      Of each socket: what it sent and received through the engine and through the kernel, the rule that its flow hits, \
      drops by reason. The kernel's share and the wake-ups are the programs' own word.

      Exit codes: 0 shown; 1 no daemon answers, or the config is wrong; 64 the command line is wrong.
      """)

  @OptionGroup var daemon: DaemonOptions

  @Flag(name: .long, help: "Print JSON: daemon, engines, interfaces, processes, sockets.")
  var json = false

  func run() throws {
    let client = try daemon.connect()
    do {
      print(json ? try client.statusText() : readable(try client.status()))
    } catch {
      complain(advised(error))
      throw ExitCode.failure
    }
  }
}

/// The report for a person.
func readable(_ report: StatusReport) -> String {
  var parts = [heading(report.daemon)]
  let sinceStart = StatusRates(from: nil, to: report).engines
  parts.append(
    table(
      "SOCKETS",
      [
        "PROGRAM", "PID>", "LOCAL", "PEER", "RULE", "TRANSPORT", "ENGINE RX>", "ENGINE TX>", "KERNEL RX>", "KERNEL TX>",
        "WAKE-UPS>", "DROPS",
      ],
      report.sockets.map { socket in
        [
          socket.program, "\(socket.pid)", socket.local + (socket.netns == 0 ? "" : " (netns \(socket.netns))"),
          socket.peer ?? "-", socket.verdict + (socket.ruleLine.map { " (line \($0))" } ?? ""), socket.transport ?? "-",
          amount(socket.engine.rx), amount(socket.engine.tx), amount(socket.kernel.rx), amount(socket.kernel.tx),
          "\(socket.wakeups)", listed(drops: socket.drops),
        ]
      }))
  parts.append(
    table(
      "PROCESSES", ["PROGRAM", "PID>", "USER>", "CHANNELS>", "SOCKETS>"],
      report.processes.map { ["\($0.program)", "\($0.pid)", "\($0.uid)", "\($0.channels)", "\($0.sockets)"] }))
  parts.append(
    table(
      "ENGINES", ["ENGINE>", "CPU>", "POLLING", "NOW", "ASLEEP>", "RX>", "TX>", "LOCAL>", "SLEEPS>", "WAKE-UPS>", "DROPS"],
      report.engines.enumerated().map { place, engine in
        func count(_ name: String) -> UInt64 { engine.counters[name] ?? 0 }
        func traffic(_ datagrams: String, _ bytes: String) -> String {
          amount(StatusReport.Amount(datagrams: count(datagrams), bytes: count(bytes)))
        }
        return [
          "\(engine.index)", engine.cpu.map { "\($0)" } ?? "-", engine.polling, engine.stalledSeconds != 0 ? "stalled" : engine.sleeping ? "asleep" : "awake",
          "\(Int((100 * sinceStart[place].asleep).rounded()))%",
          traffic("rxPackets", "rxBytes"), traffic("txPackets", "txBytes"), traffic("localDatagrams", "localBytes"),
          "\(count("sleeps"))", "\(count("wakeups"))",
          listed(drops: engine.drops),
        ]
      }))
  let sessions = report.engines.flatMap { engine in engine.sessions.map { (engine.index, $0) } }
  if !sessions.isEmpty {
    parts.append(
      table(
        "SESSIONS",
        ["ENGINE>", "LOCAL", "REMOTE", "THERE>", "STATE", "SET UP us>", "RTT us>", "LEAST us>", "CWND>", "IN FLIGHT>", "SENT>", "RECEIVED>", "AGAIN>"],
        sessions.map { engine, session in
          [
            "\(engine)", session.local, session.remote, "\(session.remoteEngine)", session.state,
            session.setUpMicroseconds.map(tenths) ?? "-",
            tenths(session.smoothedRttMicroseconds), tenths(session.minimumRttMicroseconds), tenths(session.congestionWindow),
            "\(session.inFlight)", "\(session.packetsSent)", "\(session.packetsReceived)", "\(session.retransmissions)",
          ]
        }))
  }
  if !report.interfaces.isEmpty {
    parts.append(
      table(
        "INTERFACES", ["NAME", "ADDRESS", "GATEWAY", "MAC", "MTU>", "DEVICE"],
        report.interfaces.map {
          [$0.name, $0.address, $0.gateway ?? "-", $0.mac ?? "-", $0.mtu.map { "\($0)" } ?? "-", $0.device]
        }))
    parts.append(
      table(
        "NEIGHBOURS", ["INTERFACE", "ADDRESS", "MAC", "STATE"],
        report.interfaces.flatMap { interface in
          interface.neighbours.map { [interface.name, $0.address, $0.mac ?? "-", $0.state] }
        }))
  }
  return parts.joined(separator: "\n\n")
}

private func heading(_ daemon: StatusReport.DaemonStatus) -> String {
  let seconds = Int(daemon.uptimeSeconds)
  let time = "\(seconds / 3600)h \(seconds / 60 % 60)m \(seconds % 60)s"
  var text =
    "machnetd pid \(daemon.pid), up \(time), \(counted(daemon.rules, "flow rule")) (generation \(daemon.rulesGeneration)),"
    + " \(counted(daemon.connections, "connection")), \(counted(daemon.endpoints, "socket")) in \(counted(daemon.channels, "channel"))"
  let trouble = [
    ("refused requests", daemon.refusedRequests), ("refused connections", daemon.refusedConnections),
    ("disconnected liars", daemon.disconnectedLiars), ("damaged channels", daemon.damagedChannels),
    ("datagrams left behind", daemon.abandonedDatagrams),
  ].filter { $0.1 > 0 }
  if !trouble.isEmpty { text += "\n" + trouble.map { "\($0.1) \($0.0)" }.joined(separator: ", ") }
  return text
}

/// `1 rule`, `2 rules`.
func counted(_ number: Int, _ noun: String) -> String { "\(number) \(noun)\(number == 1 ? "" : noun.hasSuffix("s") ? "es" : "s")" }

/// `12 (3.4K)`: datagrams and bytes.
private func amount(_ amount: StatusReport.Amount) -> String {
  amount.datagrams == 0 ? "0" : "\(amount.datagrams) (\(size(amount.bytes)))"
}

private func tenths(_ value: Double) -> String {
  let whole = Int((value * 10).rounded())
  return "\(whole / 10).\(whole % 10)"
}

/// Bytes with three significant digits and a binary prefix.
private func size(_ bytes: UInt64) -> String {
  var value = Double(bytes)
  var prefix = ""
  for next in ["K", "M", "G", "T", "P"] where value >= 1000 {
    value /= 1024
    prefix = next
  }
  if prefix.isEmpty { return "\(bytes)B" }
  let tenths = Int((value * 10).rounded())
  return value < 100 ? "\(tenths / 10).\(tenths % 10)\(prefix)" : "\(Int(value.rounded()))\(prefix)"
}

private func listed(drops: [String: UInt64]) -> String {
  drops.isEmpty ? "-" : drops.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
}

/// A title, a header line and rows, columns aligned: to the right where the header ends with '>'.
private func table(_ title: String, _ header: [String], _ rows: [[String]]) -> String {
  if rows.isEmpty { return "\(title): none" }
  let names = header.map { $0.hasSuffix(">") ? String($0.dropLast()) : $0 }
  let widths = names.indices.map { column in ([names] + rows).map { $0[column].count }.max() ?? 0 }
  func line(_ cells: [String]) -> String {
    let padded = cells.indices.map { column in
      let space = String(repeating: " ", count: widths[column] - cells[column].count)
      return header[column].hasSuffix(">") ? space + cells[column] : cells[column] + space
    }
    let text = padded.joined(separator: "  ")
    return String(text.prefix(through: text.lastIndex { $0 != " " } ?? text.startIndex))
  }
  return ([title, line(names)] + rows.map(line)).joined(separator: "\n")
}
