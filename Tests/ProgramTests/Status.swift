import Foundation
import Testing

/// What the tests read from `machnet status --json`.
struct Status: Decodable {
  struct Way: Decodable {
    let datagrams, bytes: UInt64
  }
  struct Carrier: Decodable {
    let tx, rx: Way
    var total: UInt64 { tx.datagrams + rx.datagrams }
  }
  struct Socket: Decodable {
    let program: String
    let pid: Int32
    let engine, kernel: Carrier
  }
  struct Engine: Decodable {
    let localDatagrams, rxPackets, txPackets: UInt64
  }
  let sockets: [Socket]
  let engines: [Engine]

  /// Datagrams that the engines have carried since their start, those of sockets that are gone included.
  func carried(local: Bool) -> Int {
    engines.reduce(0) { $0 + Int(local ? $1.localDatagrams : $1.rxPackets + $1.txPackets) }
  }
}

extension Bench {
  /// Checks in `machnet status` that the engines carried the test's datagrams: at least `least` of them, both directions
  /// together, and that open sockets of the program `name` had none from the kernel.
  func expectOnEngine(atLeast least: Int, openSockets name: String? = nil, sourceLocation: SourceLocation = #_sourceLocation)
    throws
  {
    for daemon in [serverDaemon, clientDaemon === serverDaemon ? nil : clientDaemon].compactMap({ $0 }) {
      let status = try daemon.status(in: self)
      #expect(status.carried(local: topology == .local) >= least, "\(daemon.program.name)", sourceLocation: sourceLocation)
      guard let name, daemon === serverDaemon else { continue }
      let open = status.sockets.filter { $0.program == name }
      #expect(!open.isEmpty, "no socket of \(name) in the status", sourceLocation: sourceLocation)
      #expect(open.allSatisfy { $0.kernel.total == 0 }, "the kernel carried some", sourceLocation: sourceLocation)
    }
  }
}
