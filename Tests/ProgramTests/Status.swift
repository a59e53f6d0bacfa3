import Foundation
import Testing

/// What the tests read from `machnet status --json`.
struct Status: Decodable {
  struct Amount: Decodable {
    let datagrams, bytes: Int
  }
  struct Traffic: Decodable {
    let rx, tx: Amount
    var datagrams: Int { rx.datagrams + tx.datagrams }
  }
  struct Socket: Decodable {
    let program: String
    let pid: Int32
    let engine, kernel: Traffic
    let wakeups: Int
  }
  struct Engine: Decodable {
    let localDatagrams, rxPackets, txPackets: Int
    let drops, transport: [String: Int]
  }
  struct DaemonStatus: Decodable {
    let abandonedDatagrams: Int
  }
  struct Unclaimed: Decodable {
    let datagrams: Int
  }
  let daemon: DaemonStatus
  let sockets: [Socket]
  let engines: [Engine]
  let unclaimed: [Unclaimed]

  init(json: String) throws {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    self = try decoder.decode(Status.self, from: Data(json.utf8))
  }

  /// Datagrams between sockets of this daemon that its engines have carried since their start.
  var local: Int { engines.reduce(0) { $0 + $1.localDatagrams } }
  /// Messages over its sessions, both directions.
  var messages: Int {
    engines.reduce(0) { $0 + ($1.transport["messages_sent"] ?? 0) + ($1.transport["messages_received"] ?? 0) }
  }
  /// Packets on its interfaces, both directions.
  var onTheWire: Int { engines.reduce(0) { $0 + $1.rxPackets + $1.txPackets } }
}

extension Bench {
  /// Checks in `machnet status` that the engines carried the test's datagrams: at least `least`, the answers to them
  /// included, whether or not their sockets are still there; and that the open sockets of the server `name` had
  /// none from the kernel.
  func expectOnEngine(
    atLeast least: Int, openSockets name: String? = nil, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let daemons = [serverDaemon, clientDaemon === serverDaemon ? nil : clientDaemon].compactMap { $0 }
    for daemon in daemons {
      let status = try daemon.status(in: self)
      let carried = topology == .local ? status.local : topology == .sessions || topology == .fabric ? status.messages : status.onTheWire
      #expect(carried >= least, "machnetd \(daemon.program.name)", sourceLocation: sourceLocation)
      guard let name, daemon === serverDaemon else { continue }
      let open = status.sockets.filter { $0.program.hasPrefix(name) }
      #expect(!open.isEmpty, "no socket of \(name) in the status", sourceLocation: sourceLocation)
      #expect(open.allSatisfy { $0.kernel.datagrams == 0 }, "the kernel carried some", sourceLocation: sourceLocation)
    }
  }
}
