public import MachnetControl

/// A report in the text format of Prometheus
/// (https://prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4).
///
/// Names are stable: they may be added to, never renamed. Units are in the names, as Prometheus wants them. What
/// belongs to single sockets is left to `machnet status`: they come and go, and a series for each would never end.
public enum PrometheusText {
  public static let contentType = "text/plain; version=0.0.4; charset=utf-8"

  public static func render(_ report: StatusReport) -> String {
    var page = Page()
    let daemon = report.daemon
    page.add("machnet_uptime_seconds", .gauge, "Time since the daemon's start.", daemon.uptimeSeconds)
    page.add("machnet_rules", .gauge, "Flow rules in force.", Double(daemon.rules))
    page.add("machnet_rules_generation", .gauge, "Counts the reloads of the rules.", Double(daemon.rulesGeneration))
    page.add("machnet_connections", .gauge, "Open control connections.", Double(daemon.connections))
    page.add("machnet_channels", .gauge, "Shared-memory channels.", Double(daemon.channels))
    page.add("machnet_requests_total", .counter, "Requests on the control socket.", Double(daemon.requests))
    page.add("machnet_refused_requests_total", .counter, "Requests that were refused.", Double(daemon.refusedRequests))
    page.add(
      "machnet_refused_connections_total", .counter, "Control connections beyond the limits.", Double(daemon.refusedConnections))
    page.add("machnet_damaged_channels_total", .counter, "Channels in which an engine found a lie.", Double(daemon.damagedChannels))
    page.add(
      "machnet_abandoned_datagrams_total", .counter, "Datagrams left in the rings of sockets that went back to the kernel.",
      Double(daemon.abandonedDatagrams))
    page.add(
      "machnet_disconnected_clients_total", .counter, "Clients that sent what no client sends.", Double(daemon.disconnectedLiars))

    var sockets: [String: Int] = [:]
    for socket in report.sockets { sockets[socket.program, default: 0] += 1 }
    page.add(
      "machnet_sockets", .gauge, "Sockets on Machnet.", sockets.sorted { $0.key < $1.key }.map { ([("program", $0.key)], Double($0.value)) })

    let engines = report.engines
    page.add(
      "machnet_engine_asleep", .gauge, "1 while the engine sleeps.",
      engines.map { ([("engine", "\($0.index)")], $0.sleeping ? 1 : 0) })
    // Every counter of every engine, by its own name; nanoseconds as seconds.
    for name in Set(engines.flatMap(\.counters.keys)).sorted() {
      let isTime = name.hasSuffix("Nanoseconds")
      let metric = "machnet_engine_\(snake(isTime ? name.dropLast(11) + "Seconds" : name[...]))_total"
      page.add(
        metric, .counter, help[name] ?? "Counted by the engine.",
        engines.compactMap { engine in
          engine.counters[name].map { ([("engine", "\(engine.index)")], isTime ? Double($0) / 1e9 : Double($0)) }
        })
    }
    page.add(
      "machnet_engine_drops_total", .counter, "Frames and datagrams that were dropped.",
      engines.flatMap { engine in
        engine.drops.sorted { $0.key < $1.key }.map { ([("engine", "\(engine.index)"), ("reason", $0.key)], Double($0.value)) }
      })
    // Sums over sessions would fall when one closes; the transport counts for all.
    for name in Set(engines.flatMap(\.transport.keys)).sorted() {
      page.add(
        "machnet_transport_\(snake(name))_total", .counter, "Counted by the transport machnet.",
        engines.compactMap { engine in engine.transport[name].map { ([("engine", "\(engine.index)")], Double($0)) } })
    }
    page.add(
      "machnet_sessions", .gauge, "Sessions of the transport machnet.",
      engines.map { engine in ([("engine", "\(engine.index)")], Double(engine.sessions.count)) })
    page.add(
      "machnet_neighbours", .gauge, "Entries of an interface's neighbour table.",
      report.interfaces.flatMap { interface in
        ["incomplete", "reachable", "stale"].map { state in
          ([("interface", interface.name), ("state", state)], Double(interface.neighbours.count { $0.state == state }))
        }
      })
    return page.text
  }

  private static let help = [
    "iterations": "Rounds of the engine's loop.", "busyIterations": "Rounds that found something to do.",
    "sleeps": "Times that the engine went to sleep.", "sleepNanoseconds": "Time in which the engine slept.",
    "wakeups": "Programs that the engine woke.", "rxPackets": "Packets received from interfaces.",
    "rxBytes": "Bytes of received packets, Ethernet headers included.", "txPackets": "Packets handed to interfaces.",
    "txBytes": "Bytes of handed over packets, Ethernet headers included.",
    "localDatagrams": "Datagrams between sockets of this daemon.", "localBytes": "Payload bytes of such datagrams.",
  ]

  private static func snake(_ name: some StringProtocol) -> String {
    name.reduce(into: "") { text, letter in
      if letter.isUppercase { text += "_" }
      text += letter.lowercased()
    }
  }

  private struct Page {
    var text = ""

    enum Kind: String { case gauge, counter }
    typealias Sample = (labels: [(name: String, value: String)], value: Double)

    mutating func add(_ name: String, _ kind: Kind, _ help: String, _ value: Double) {
      add(name, kind, help, [([], value)])
    }

    mutating func add(_ name: String, _ kind: Kind, _ help: String, _ samples: [Sample]) {
      if samples.isEmpty { return }
      text += "# HELP \(name) \(help)\n# TYPE \(name) \(kind.rawValue)\n"
      for sample in samples {
        let labels = sample.labels.map { "\($0.name)=\"\(escaped($0.value))\"" }.joined(separator: ",")
        text += name + (labels.isEmpty ? "" : "{\(labels)}") + " \(number(sample.value))\n"
      }
    }

    private func number(_ value: Double) -> String {
      value == value.rounded() && abs(value) < 9e15 ? "\(Int64(value))" : "\(value)"
    }

    private func escaped(_ value: String) -> String {
      value.replacing("\\", with: "\\\\").replacing("\"", with: "\\\"").replacing("\n", with: "\\n")
    }
  }
}
