import Foundation
import Testing

@testable import MachnetControl

@Suite struct StatusReportTests {
  /// Every field has a value of its own, and names are of the kind that JSON must escape.
  static let full = StatusReport(
    daemon: StatusReport.DaemonStatus(
      pid: 1, uptimeSeconds: 2.5, epoch: "00ff", rulesGeneration: 3, rules: 4, controlSocket: "/a \"b\"\\c\u{1}\u{e9}/x", connections: 5,
      channels: 6, endpoints: 7, departing: 8, requests: 9, refusedRequests: 10, refusedConnections: 11, disconnectedLiars: 12,
      damagedChannels: 13, abandonedDatagrams: UInt64.max),
    engines: [
      StatusReport.EngineStatus(
        index: 0, cpu: 1, polling: "busy", sleeping: true, interfaces: ["net0", "net1"], drops: ["ring_full": 2, "a": 1],
        counters: ["rxPackets": 3, "sleepNanoseconds": 4], transport: ["messages_sent": 5],
        sessions: [
          StatusReport.SessionStatus(
            local: "10.0.0.1", remote: "10.0.0.2", remoteEngine: 3, state: "open", setUpMicroseconds: 1e-7, smoothedRttMicroseconds: 1e20,
            minimumRttMicroseconds: 0.1, congestionWindow: 2.25, inFlight: 4, packetsSent: 5, packetsReceived: 6, retransmissions: 7)
        ])
    ],
    interfaces: [
      StatusReport.InterfaceStatus(
        name: "net0", address: "10.0.0.1/24", gateway: "10.0.0.254", device: "0000:00:06.0", mtu: 1500, mac: "02:00:00:00:00:01",
        neighbours: [StatusReport.NeighbourStatus(address: "10.0.0.2", mac: "02:00:00:00:00:02", state: "stale")])
    ],
    processes: [
      StatusReport.ProcessStatus(
        pid: 1, uid: 2, program: "p", channels: 3, sockets: 4, connectedSeconds: 5.5,
        refusals: [StatusReport.RefusalStatus(request: "open", error: 13, reason: "because", inode: 6, count: 7, secondsAgo: 8.5)])
    ],
    sockets: [
      StatusReport.SocketStatus(
        program: "p", pid: 1, local: "*:1", peer: "10.0.0.2:3", netns: 4, verdict: "machnet", ruleLine: 5, transport: "udp", homeEngine: 6,
        inode: 7, sinceSeconds: 8.5, channel: 9, endpoint: 10,
        engine: StatusReport.Traffic(rx: StatusReport.Amount(datagrams: 11, bytes: 12), tx: StatusReport.Amount(datagrams: 13, bytes: 14)),
        kernel: StatusReport.Traffic(rx: StatusReport.Amount(datagrams: 15, bytes: 16), tx: StatusReport.Amount(datagrams: 17, bytes: 18)),
        drops: ["rx_ring_full": 19], wakeups: 20)
    ],
    unclaimed: [StatusReport.UnclaimedStatus(inode: 1, program: "p", pid: 2, datagrams: 3, sinceSeconds: 4.5)])

  /// What a value holds, as JSON has it: by keys with underscores; what is nil is left out.
  private func tree(_ value: Any) -> Any? {
    let mirror = Mirror(reflecting: value)
    switch mirror.displayStyle {
    case .optional: return mirror.children.first.flatMap { tree($0.value) }
    case .collection: return mirror.children.compactMap { tree($0.value) }
    case .dictionary: return value
    case .struct where !mirror.children.isEmpty && !(value is String):
      var object: [String: Any] = [:]
      for child in mirror.children { object[snakeCase(child.label!)] = tree(child.value) }
      // An engine's counters are keys of its own.
      if let counters = object.removeValue(forKey: "counters") as? [String: UInt64] {
        for (name, count) in counters { object[snakeCase(name)] = count }
      }
      return object
    default: return value
    }
  }

  @Test func everyFieldIsInTheText() throws {
    let found = try JSONSerialization.jsonObject(with: Data(Self.full.json.utf8))
    let wanted = try #require(tree(Self.full))
    #expect(try JSONSerialization.data(withJSONObject: found, options: .sortedKeys)
      == JSONSerialization.data(withJSONObject: wanted, options: .sortedKeys))
  }

  @Test func whatIsReadIsWhatWasWritten() throws {
    let again = try StatusReport(json: Self.full.json)
    #expect(again.json == Self.full.json)
    #expect(again.daemon.controlSocket == Self.full.daemon.controlSocket && again.engines[0].counters == Self.full.engines[0].counters)
    var sparse = Self.full
    sparse.engines[0].cpu = nil
    sparse.engines[0].sessions = []
    sparse.interfaces = []
    sparse.sockets[0].peer = nil
    sparse.sockets[0].ruleLine = nil
    sparse.sockets[0].drops = [:]
    sparse.unclaimed = nil
    let read = try StatusReport(json: sparse.json)
    #expect(read.json == sparse.json && read.sockets[0].peer == nil && read.engines[0].cpu == nil)
  }
}
