import Foundation
import Testing

@testable import MachnetControl

/// A report with one engine and one socket.
private func report(
  epoch: String = "e", uptime: Double, iterations: UInt64 = 0, busy: UInt64 = 0, slept: UInt64 = 0, sleeping: Bool = false,
  received: UInt64 = 0, inode: UInt64 = 1, since: Double? = nil, sessionSent: UInt64? = nil
) throws -> StatusReport {
  try StatusReport(
    json: """
      { "daemon": { "pid": 1, "uptime_seconds": \(uptime), "epoch": "\(epoch)", "rules_generation": 1, "rules": 0,
          "control_socket": "", "connections": 0, "channels": 0, "endpoints": 1, "departing": 0, "requests": 0,
          "refused_requests": 0, "refused_connections": 0, "disconnected_liars": 0, "damaged_channels": 0, "abandoned_datagrams": 0 },
        "engines": [ { "index": 0, "polling": "adaptive", "sleeping": \(sleeping), "interfaces": [], "drops": { "ip_checksum": \(busy) },
          "sessions": [\(sessionSent.map { session(sent: $0) } ?? "")],
          "iterations": \(iterations), "busy_iterations": \(busy), "sleep_nanoseconds": \(slept) } ],
        "interfaces": [], "processes": [],
        "sockets": [ { "program": "p", "pid": 2, "local": "*:1", "netns": 0, "verdict": "machnet", "home_engine": 0,
          "inode": \(inode), "since_seconds": \(since ?? uptime), "channel": 1, "endpoint": 0, "drops": {}, "wakeups": 0,
          "engine": { "rx": { "datagrams": \(received), "bytes": 0 }, "tx": { "datagrams": 0, "bytes": 0 } },
          "kernel": { "rx": { "datagrams": 0, "bytes": 0 }, "tx": { "datagrams": 0, "bytes": 0 } } } ] }
      """)
}

private func session(sent: UInt64) -> String {
  """
  { "local": "10.0.0.1", "remote": "10.0.0.2", "remote_engine": 1, "state": "open", "smoothed_rtt_microseconds": 12.5,
    "minimum_rtt_microseconds": 10, "congestion_window": 8, "in_flight": 3, "packets_sent": \(sent), "packets_received": \(sent / 2),
    "retransmissions": \(sent / 10) }
  """
}

@Suite struct StatusRatesTests {
  @Test func sessionsThatGoOnAndThatBeganAnew() throws {
    let old = try report(uptime: 10, sessionSent: 1000)
    let on = StatusRates(from: old, to: try report(uptime: 12, sessionSent: 1400)).sessions[0]
    #expect(on.tx == 200 && on.rx == 100 && on.retransmissions == 20 && on.remoteEngine == 1 && on.smoothedRttMicroseconds == 12.5)
    // Another one with the same two ends: all of it is new.
    #expect(StatusRates(from: old, to: try report(uptime: 12, sessionSent: 60)).sessions[0].tx == 30)
  }

  @Test func betweenTwoLooks() throws {
    let rates = StatusRates(
      from: try report(uptime: 10, iterations: 1000, busy: 100, slept: 1_000_000_000, received: 50),
      to: try report(uptime: 12, iterations: 2000, busy: 350, slept: 2_000_000_000, received: 150))
    #expect(rates.seconds == 2 && rates.sockets[0].rx == 50)
    #expect(rates.engines[0].load == 0.25 && rates.engines[0].asleep == 0.5 && rates.engines[0].drops == 125)
  }

  @Test func anotherDaemonStartsFromNothing() throws {
    let rates = StatusRates(from: try report(uptime: 10, received: 1000), to: try report(epoch: "f", uptime: 2, received: 10))
    #expect(rates.seconds == 2 && rates.sockets[0].rx == 5)
  }

  @Test func aSocketThatTookAnOldOnesInodeOrCameBack() throws {
    let old = try report(uptime: 10, received: 1000)
    #expect(StatusRates(from: old, to: try report(uptime: 11, received: 7, inode: 2)).sockets[0].rx == 7)
    #expect(StatusRates(from: old, to: try report(uptime: 11, received: 7, since: 0.5)).sockets[0].rx == 7)
  }

  @Test func anEngineThatDidNothingSleepsStill() throws {
    let old = try report(uptime: 10, iterations: 5, slept: 7, sleeping: true)
    let rates = StatusRates(from: old, to: try report(uptime: 11, iterations: 5, slept: 7, sleeping: true))
    #expect(rates.engines[0].asleep == 1 && rates.engines[0].load == 0)
    // A sleep from before the first look: never more than the whole time.
    #expect(StatusRates(from: old, to: try report(uptime: 11, iterations: 9, slept: 9_000_000_000)).engines[0].asleep == 1)
  }
}
